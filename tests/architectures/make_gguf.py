"""Makes GGUF files of tiny models with llama.cpp's own converter, and what transformers computes with their weights.

    PYTHONPATH=LLAMA_CPP:LLAMA_CPP/gguf-py python make_gguf.py [NAME...]

LLAMA_CPP is a source tree of llama.cpp, such as `vendor/llama.cpp` in the sdist of llama-cpp-python,
which has to be installed as well: it writes the k-quants. Writes NAME.gguf and NAME.json per entry of
FILES. Expected values are transformers' in float32 on the weights that the file holds, dequantised
by the `gguf` package: an engine that computes in float32 on these agrees up to rounding, one that
multiplies quantised activations does not. Seeds are chosen as in `make.py`.

Of every file llama.cpp's own logits are compared and printed; on F32 files they have to agree.
"""

import argparse
import ctypes
import logging
import os
import pathlib
import shutil
import tempfile

import conversion
import gguf
import llama_cpp
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from transformers import AutoConfig, AutoModelForCausalLM

import float64
from cases import CASES, TOKENIZERS, WIDE, build_tokenizer
from make import HERE, clear_seed, expectations, prompts_of, report, write_expected, write_model, write_tokenizer

F32_DISTANCE = 1e-4  # the most between llama.cpp and transformers on float32 weights
F32_CACHE = 0  # GGML_TYPE_F32

# NAME: the model and the type of all its matrices.
FILES = {name: (CASES[name], "F32") for name in ("llama2", "llama3", "llama-linear-rope", "mistral", "qwen2", "qwen3")}
FILES |= {
    f"llama2-{kind.lower()}": (CASES["llama2"], kind)
    for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16")
}
FILES |= {f"llama-wide-{kind.lower()}": (WIDE, kind) for kind in ("Q4_K", "Q5_K", "Q6_K")}
# File types named otherwise than the type of their matrices.
FILE_TYPES = {"Q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_S, "Q5_K": gguf.LlamaFileType.MOSTLY_Q5_K_S}


# ---- files --------------------------------------------------------------------------------------


def convert(folder, path, name, pre):
    """llama.cpp's converter to F32. It knows pre-tokenizers by published vocabularies only, so it is told."""
    settings = conversion.ModelBase.load_hparams(folder, False)
    architecture = conversion.get_model_architecture(settings, conversion.ModelType.TEXT)
    converter = conversion.get_model_class(architecture)
    converter.get_vocab_base_pre = lambda self, tokenizer: pre
    with torch.inference_mode():
        converter(folder, gguf.LlamaFileType.ALL_F32, path, model_name=name).write()


def requantise(source, path, kind):
    """The same file with its matrices as `kind`."""
    if kind == "F32":
        shutil.copyfile(source, path)
        return
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    writer.add_file_type(FILE_TYPES.get(kind) or gguf.LlamaFileType[f"MOSTLY_{kind}"])
    matrix_type = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            writer.add_tensor(tensor.name, quantised(tensor.data, matrix_type), raw_dtype=matrix_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantised(matrix, kind):
    """The rows of a matrix as bytes. The `gguf` package reads k-quants, but only llama.cpp writes them."""
    if not kind.name.endswith("_K"):
        return quantize(matrix, kind)
    floats_per_block, bytes_per_block = gguf.GGML_QUANT_SIZES[kind]
    n_rows, width = matrix.shape
    rows = np.empty((n_rows, width // floats_per_block * bytes_per_block), np.uint8)
    address = lambda array: ctypes.c_void_p(array.ctypes.data)
    matrix = np.ascontiguousarray(matrix)
    library = ctypes.CDLL(os.path.join(os.path.dirname(llama_cpp.__file__), "lib", "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    written = library.ggml_quantize_chunk(
        ctypes.c_int(kind.value),
        address(matrix),
        address(rows),
        ctypes.c_int64(0),  # the first element
        ctypes.c_int64(n_rows),
        ctypes.c_int64(width),
        None,  # no importance matrix
    )
    assert written == rows.nbytes, f"ggml wrote {written} bytes, not {rows.nbytes}"
    return rows


# ---- what transformers and llama.cpp compute with a file ----------------------------------------


def read_weights(path, kind, network, settings):
    """The file's weights in float32 under transformers' names and in its order of rotary pairs."""
    reader = gguf.GGUFReader(path)
    stored = {t.name: t for t in reader.tensors}
    matrices = {t.tensor_type.name for t in reader.tensors if len(t.shape) > 1}
    assert matrices == {kind}, f"matrices are {matrices}"
    architecture = reader.fields["general.architecture"].contents()
    enum = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(enum, settings["num_hidden_layers"])
    heads = {"q_proj": settings["num_attention_heads"], "k_proj": settings["num_key_value_heads"]}
    weights = {}
    for name, _ in network.named_parameters():
        tensor = stored.pop(names.get_name(name, (".weight", ".bias")))
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if architecture == "llama" and (n_heads := heads.get(name.split(".")[-2])):
            # Llama's files have the two elements of a rotary pair beside each other.
            weight = weight.reshape(n_heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
        weights[name] = weight
    assert set(stored) <= {"rope_freqs.weight"}, f"not used: {set(stored)}"
    return weights


def expectations_of(path, case, kind, prompts):
    # llama.cpp's converter writes no window for these architectures.
    settings = case["config"] | {"sliding_window": None}
    config = AutoConfig.for_model(**settings)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    weights = read_weights(path, kind, network, settings)
    for name, parameter in network.named_parameters():
        parameter.data = torch.from_numpy(weights[name])
    tensors = {name: weight.astype(np.float64) for name, weight in weights.items()}
    return expectations(network, lambda ids: float64.logits(settings, tensors, ids), prompts)


def compare_with_llama_cpp(path, kind, expected):
    """Prints how far llama.cpp is; its matrices other than F32 multiply rounded activations."""
    llama = llama_cpp.Llama(
        str(path), n_ctx=256, n_threads=1, flash_attn=False, type_k=F32_CACHE, type_v=F32_CACHE, verbose=False
    )

    def logits_after(ids):
        llama.eval(ids)
        pointer = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(llama.n_vocab(),)).copy()

    for prompt in expected:
        ids = llama.tokenize(prompt["text"].encode(), add_bos=llama.metadata["tokenizer.ggml.add_bos_token"] == "true")
        llama.reset()
        steps = [logits_after(prompt["ids"])] + [logits_after([token]) for token in prompt["greedy_tokens"][:-1]]
        agreeing = sum(int(step.argmax()) == token for step, token in zip(steps, prompt["greedy_tokens"]))
        distance = max(np.abs(steps[0] - prompt["logits"]).max(), np.abs(steps[-1] - prompt["last_logits"]).max())
        print(f"  llama.cpp: {agreeing} of {len(steps)} tokens, distance {distance:.1e}, ids {ids == prompt['ids']}")
        assert kind != "F32" or (agreeing == len(steps) and distance < F32_DISTANCE and ids == prompt["ids"])


# ---- putting it together ------------------------------------------------------------------------


def make(name):
    case, kind = FILES[name]
    tokenizer = build_tokenizer(case["tokenizer"])
    path = os.path.join(HERE, f"{name}.gguf")
    with tempfile.TemporaryDirectory() as scratch:
        folder, f32_path = pathlib.Path(scratch, "model"), pathlib.Path(scratch, "f32.gguf")

        def compute(seed):
            write_model(folder, case, seed)
            write_tokenizer(folder, case["tokenizer"], tokenizer)
            convert(folder, f32_path, name, TOKENIZERS[case["tokenizer"]]["gguf_pre"])
            requantise(f32_path, path, kind)
            return expectations_of(path, case, kind, prompts_of(tokenizer))

        seed, expected = clear_seed(name, tokenizer, compute)
    report(f"{name}.gguf, seed {seed}, {os.path.getsize(path)} bytes", expected)
    compare_with_llama_cpp(path, kind, expected)
    write_expected(os.path.join(HERE, f"{name}.json"), {"seed": seed, "prompts": expected})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", default=list(FILES))
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    for name in parser.parse_args().name:
        make(name)


if __name__ == "__main__":
    main()
