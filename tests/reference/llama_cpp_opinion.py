"""llama.cpp's second opinion on the prompts and on the tokenizer, added to the report of `make_reference.py`.

Four variants, all without flash attention:
  llama_cpp_f32_weights_f32_cache  every tensor dequantised to F32: a second float32 implementation
  llama_cpp_q8_0_f32_cache         Q4_1 tensors requantised to Q8_0: what Q8_0 weights with Q8_0
                                   activations cost
  llama_cpp_q4_1_f32_cache         the file itself: what quantised activations cost
  llama_cpp_q4_1_f16_cache         the file itself with llama.cpp's default cache type

`greedy_ids` is llama.cpp's own free-running choice. `forced_differences` feeds it the reference's
tokens instead and lists [step, its choice, the reference's gap between its two best logits] where
it would have chosen another token; `forced_max_gap` is the largest of those gaps.
"""

import importlib.metadata
import os
import tempfile

import gguf
import llama_cpp
import numpy as np
from gguf.quants import quantize

from compare import GREEDY_TOKENS, distance, rounded, two_best

F32_CACHE, F16_CACHE = 0, 1  # GGML_TYPE_F32, GGML_TYPE_F16


def add_llama_cpp(report, model, firsts, probes):
    """Adds llama.cpp's variants to each prompt and its token ids to every text it splits otherwise."""
    report["packages"]["llama-cpp-python"] = importlib.metadata.version("llama-cpp-python")
    report["llama_cpp_system"] = llama_cpp.llama_print_system_info().decode().strip()
    add_tokenizer_opinion(report, model.path)
    with tempfile.TemporaryDirectory() as folder:
        f32, q8_0 = os.path.join(folder, "f32.gguf"), os.path.join(folder, "q8_0.gguf")
        write_copy(model, f32, gguf.GGMLQuantizationType.F32)
        write_copy(model, q8_0, gguf.GGMLQuantizationType.Q8_0)
        for label, path, cache in [
            ("llama_cpp_f32_weights_f32_cache", f32, F32_CACHE),
            ("llama_cpp_q8_0_f32_cache", q8_0, F32_CACHE),
            ("llama_cpp_q4_1_f32_cache", model.path, F32_CACHE),
            ("llama_cpp_q4_1_f16_cache", model.path, F16_CACHE),
        ]:
            runner = Runner(path, cache)
            for prompt, first in zip(report["prompts"], firsts):
                prompt[label] = opinion = opinion_on(runner, prompt, first, probes)
                print(label, prompt["name"], {k: v for k, v in opinion.items() if not isinstance(v, list)}, flush=True)


def add_tokenizer_opinion(report, path):
    cases = report["tokenizer"] + report["chat_template"] + report["prompts"]
    vocab = llama_cpp.Llama(model_path=path, vocab_only=True, verbose=False)
    disagreements = 0
    for case in cases:
        text = case.get("rendered", case.get("text"))
        ids = list(vocab.tokenize(text.encode(), add_bos=False, special=True))
        if ids != case["ids"]:
            disagreements += 1
            case["llama_cpp_ids"] = ids
            print(f"tokenizers disagree on {text!r}: {case['ids']}, llama.cpp {ids}")
    report["tokenizer_agreement"] = {"texts": len(cases), "disagreements": disagreements}


def write_copy(model, path, matrix_type):
    """The same file with its Q4_1 matrices as `matrix_type`; for F32, the Q8_0 embedding as well."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in gguf.GGUFReader(model.path).fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)
    f32 = matrix_type == gguf.GGMLQuantizationType.F32
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if f32 else gguf.LlamaFileType.MOSTLY_Q8_0)
    for name, weight in model.tensors.items():
        if f32 or weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            # The embedding is Q8_0 already; Q8_0 of its dequantised values gives back the same values
            # up to the rounding of the block scale.
            writer.add_tensor(name, quantize(weight, matrix_type), raw_dtype=matrix_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Runner:
    """One llama.cpp context: prompts in, logits (vocab,) out."""

    def __init__(self, path, cache):
        self.llama = llama_cpp.Llama(
            model_path=path,
            n_ctx=2048,
            n_batch=512,
            n_threads=2,
            n_threads_batch=2,
            flash_attn=False,
            type_k=cache,
            type_v=cache,
            verbose=False,
        )

    def logits_after(self, ids):
        self.llama.eval(ids)
        pointer = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.llama.n_vocab(),)).copy()

    def choices(self, ids, forced=None):
        """First-token logits and the best id at each of 50 steps, going on from `forced` where given."""
        self.llama.reset()
        first = logits = self.logits_after(ids)
        chosen = [two_best(logits)[0]]
        while len(chosen) < GREEDY_TOKENS:
            onward = chosen[-1] if forced is None else forced[len(chosen) - 1]
            logits = self.logits_after([onward])
            chosen.append(two_best(logits)[0])
        return first, chosen


def opinion_on(runner, prompt, first, probes):
    reference = prompt["greedy"]
    logits, chosen = runner.choices(prompt["ids"])
    _, forced = runner.choices(prompt["ids"], reference["ids"])
    top = np.argsort(-logits, kind="stable")[:8]
    gaps = [round(a - b, 5) for a, b in zip(reference["top_logits"], reference["second_logits"])]
    differ = [[i, t, gaps[i]] for i, t in enumerate(forced) if t != reference["ids"][i]]
    first_difference = next((i for i, t in enumerate(chosen) if t != reference["ids"][i]), None)
    return {
        "distance": distance(logits, first, probes),
        "top_ids": [int(i) for i in top],
        "top_logits": rounded(logits[top]),
        "probe_logits": rounded(logits[probes]),
        "greedy_ids": chosen,
        "first_difference": first_difference,
        "forced_differences": differ,
        "forced_max_gap": max((gap for _, _, gap in differ), default=0.0),
    }
