"""Makes the reference values that the decoder, the tokenizer and the chat template are tested against.

    python make_reference.py MODEL.gguf OUT.json [--no-llama-cpp]

It needs Python 3.11 and, from PyPI (other versions will likely do; the JSON records what was used):
torch 2.9.1, transformers 5.23.0, tokenizers 0.23.3, gguf 0.19.0, numpy 2.4.6, jinja2 3.1.6 and, unless
`--no-llama-cpp` is given, llama-cpp-python 0.3.36 (its sdist builds llama.cpp; for a portable build
without AMX: `CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_AVX512=ON -DGGML_FMA=ON
-DGGML_F16C=ON -DGGML_BMI2=ON -DLLAMA_BUILD_TOOLS=OFF" pip install --no-binary llama-cpp-python
llama-cpp-python`). About 3 minutes and 5 GB of memory on two cores; no network.

Independent paths from the same file:
  1. The reference: transformers' Llama in float32 on weights dequantised by the `gguf` package.
  2. A float64 forward pass in numpy, written below from the GGUF layout (interleaved rope, so without
     the row permutation that path 1 has to undo). It gives the rounding noise of the reference.
  3. llama.cpp, in float32 and in its quantised ways: see `llama_cpp_opinion.py`.

Nothing here samples: greedy means argmax (the lower id on an exact tie) for 50 tokens, straight
through end-of-text tokens. The texts are in `reference_texts.py`.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.chat_template_utils import render_jinja_template

from compare import GREEDY_TOKENS, TOP, distance, rounded, two_best
from reference_texts import CHAT_PROMPT, CONVERSATIONS, PROMPTS, TOKENIZER_TEXTS

N_PROBES = 200
PROBE_SEED = 20251123
SPECIAL_TOKEN_TYPE = 3  # gguf.TokenType.CONTROL


class Model:
    """The GGUF file: its metadata, and its tensors as float32 arrays of shape (out, in)."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.path = path
        self.meta = {name: field.contents() for name, field in reader.fields.items()}
        self.types = {t.name: t.tensor_type.name for t in reader.tensors}
        self.tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
        assert self.meta["general.architecture"] == "llama", self.meta["general.architecture"]
        assert self.meta["tokenizer.ggml.pre"] == "smollm", self.meta["tokenizer.ggml.pre"]
        self.n_layers = self.meta["llama.block_count"]
        self.n_heads = self.meta["llama.attention.head_count"]
        self.n_kv_heads = self.meta["llama.attention.head_count_kv"]
        self.hidden = self.meta["llama.embedding_length"]
        self.head_dim = self.hidden // self.n_heads
        self.rope_base = self.meta["llama.rope.freq_base"]
        self.eps = self.meta["llama.attention.layer_norm_rms_epsilon"]

    def file_facts(self):
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        counts = {}
        for kind in self.types.values():
            counts[kind] = counts.get(kind, 0) + 1
        return {
            "file": os.path.basename(self.path),
            "bytes": os.path.getsize(self.path),
            "sha256": digest.hexdigest(),
            "tensor_types": counts,
        }


# ---- the tokenizer ------------------------------------------------------------------------------


def build_tokenizer(model):
    """SmolLM2's tokenizer from the GGUF vocabulary: digits one by one, then byte level without a prefix space."""
    tokens = model.meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in model.meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = model.meta["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, types) if kind == SPECIAL_TOKEN_TYPE]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def cut_at_word(tokenizer, text, most_tokens):
    """The longest beginning of `text` that ends before a space or at its end and fits `most_tokens`."""
    while len(encode(tokenizer, text)) > most_tokens:
        text = re.sub(r"\s*\S+\s*$", "", text)
    return text


def render_chat(model, messages):
    rendered, _ = render_jinja_template(
        conversations=[messages],
        chat_template=model.meta["tokenizer.chat_template"],
        add_generation_prompt=True,
    )
    return rendered[0]


# ---- path 1: transformers, float32 --------------------------------------------------------------


def unpermute(weight, n_heads):
    """GGUF interleaves the two rope halves of each head for llama; transformers wants them apart."""
    out, width = weight.shape
    return weight.reshape(n_heads, out // n_heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def build_transformers(model):
    config = LlamaConfig(
        vocab_size=len(model.meta["tokenizer.ggml.tokens"]),
        hidden_size=model.hidden,
        intermediate_size=model.meta["llama.feed_forward_length"],
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads,
        max_position_embeddings=model.meta["llama.context_length"],
        rms_norm_eps=model.eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_base},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for i in range(model.n_layers):
        for short, long in [
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ]:
            names[f"blk.{i}.{short}"] = f"model.layers.{i}.{long}"
    state = {}
    for name, weight in model.tensors.items():
        if ".attn_q." in name:
            weight = unpermute(weight, model.n_heads)
        if ".attn_k." in name:
            weight = unpermute(weight, model.n_kv_heads)
        state[names[name.removesuffix(".weight")] + ".weight"] = torch.from_numpy(np.array(weight))
    network = LlamaForCausalLM(config).to(torch.float32).eval()
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    network.tie_weights()
    assert network.lm_head.weight.data_ptr() == network.model.embed_tokens.weight.data_ptr()
    return network


def check_against_gguf_loader(model, network):
    """transformers' own GGUF loader must come to bit-identical weights."""
    folder, file = os.path.split(os.path.abspath(model.path))
    other = LlamaForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    theirs = other.state_dict()
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, theirs[name]), f"{name} differs from transformers' GGUF loader"
    assert other.config.rope_parameters["rope_theta"] == model.rope_base, other.config.rope_parameters


@torch.no_grad()
def transformers_greedy(network, ids):
    """First-token logits (vocab,) as float32, and per step the two best ids and logits."""
    out = network(torch.tensor([ids]), use_cache=True)
    first = out.logits[0, -1].numpy().copy()
    steps = []
    while True:
        logits = out.logits[0, -1].numpy()
        best = two_best(logits)
        steps.append((best, logits[best]))
        if len(steps) == GREEDY_TOKENS:
            return first, steps
        out = network(torch.tensor([[best[0]]]), past_key_values=out.past_key_values, use_cache=True)


# ---- path 2: numpy, float64, straight from the GGUF layout --------------------------------------


def numpy_first_logits(model, ids):
    """Logits (vocab,) after the last of `ids`, in float64 throughout."""
    tensor = lambda name: model.tensors[name + ".weight"].astype(np.float64)
    norm = lambda x, name: x / np.sqrt((x * x).mean(-1, keepdims=True) + model.eps) * tensor(name)
    n, d = len(ids), model.head_dim
    angle = np.arange(n)[:, None] * model.rope_base ** (-np.arange(0, d, 2) / d)
    turn = np.exp(1j * angle)[:, None, :]  # (n, 1, head_dim / 2)

    def rope(x):  # (n, heads, head_dim): neighbours 2i and 2i + 1 are one complex number
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    mask = np.triu(np.full((n, n), -np.inf), 1)
    x = tensor("token_embd")[ids]
    for i in range(model.n_layers):
        blk = lambda name: f"blk.{i}.{name}"
        h = norm(x, blk("attn_norm"))
        q = rope((h @ tensor(blk("attn_q")).T).reshape(n, model.n_heads, d))
        k = rope((h @ tensor(blk("attn_k")).T).reshape(n, model.n_kv_heads, d))
        v = (h @ tensor(blk("attn_v")).T).reshape(n, model.n_kv_heads, d)
        heads = []
        for head in range(model.n_heads):
            group = head // (model.n_heads // model.n_kv_heads)
            score = q[:, head] @ k[:, group].T / np.sqrt(d) + mask
            score = np.exp(score - score.max(-1, keepdims=True))
            heads.append(score / score.sum(-1, keepdims=True) @ v[:, group])
        x = x + np.concatenate(heads, -1) @ tensor(blk("attn_output")).T
        h = norm(x, blk("ffn_norm"))
        gate = h @ tensor(blk("ffn_gate")).T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ tensor(blk("ffn_up")).T)) @ tensor(blk("ffn_down")).T
    return tensor("token_embd") @ norm(x[-1], "output_norm")


# ---- putting it together ------------------------------------------------------------------------


def reference_of(model, network, tokenizer, name, text, probes):
    ids = encode(tokenizer, text)
    first, steps = transformers_greedy(network, ids)
    top = np.argsort(-first, kind="stable")[:TOP]
    gaps = [float(values[0] - values[1]) for _, values in steps]
    tokens = [best[0] for best, _ in steps]
    prompt = {
        "name": name,
        "text": text,
        "n_tokens": len(ids),
        "ids": ids,
        "first": {
            "top_ids": [int(i) for i in top],
            "top_logits": rounded(first[top]),
            "probe_logits": rounded(first[probes]),
            "mean": round(float(first.astype(np.float64).mean()), 6),
            "std": round(float(first.astype(np.float64).std()), 6),
            "float64_distance": distance(numpy_first_logits(model, ids), first, probes),
        },
        "greedy": {
            "ids": tokens,
            "top_logits": rounded(v[0] for _, v in steps),
            "second_ids": [best[1] for best, _ in steps],
            "second_logits": rounded(v[1] for _, v in steps),
            "smallest_gap": round(min(gaps), 5),
            "text": tokenizer.decode(tokens, skip_special_tokens=False),
        },
    }
    print(f"{name}: {len(ids)} tokens, smallest gap {min(gaps):.4f}, {prompt['greedy']['text']!r}")
    return prompt, first


def package_versions(names):
    return {name: importlib.metadata.version(name) for name in names}


def dump(report, path):
    """Indented JSON with arrays of numbers on one line each."""
    text = json.dumps(report, indent=1, ensure_ascii=True)
    text = re.sub(r"\[\s+(-?[\d.e+-]+(?:,\s+-?[\d.e+-]+)*)\s+\]", lambda m: "[" + re.sub(r"\s+", "", m[1]) + "]", text)
    with open(path, "w", encoding="ascii") as file:
        file.write(text + "\n")
    print(f"wrote {path}, {os.path.getsize(path)} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--no-llama-cpp", action="store_true", help="leave out llama.cpp's second opinion")
    args = parser.parse_args()
    torch.set_num_threads(2)

    model = Model(args.model)
    tokenizer = build_tokenizer(model)
    network = build_transformers(model)
    check_against_gguf_loader(model, network)
    vocab = len(model.meta["tokenizer.ggml.tokens"])
    probes = np.sort(np.random.RandomState(PROBE_SEED).choice(vocab, N_PROBES, replace=False))

    named = [(name, cut_at_word(tokenizer, text, most)) for name, text, most in PROMPTS]
    named.append((CHAT_PROMPT[0], render_chat(model, CHAT_PROMPT[1])))
    computed = [reference_of(model, network, tokenizer, name, text, probes) for name, text in named]
    prompts = [prompt for prompt, _ in computed]

    report = {
        "what": "Reference values for the default model; see make_reference.py. "
        "prompts[].first and .greedy: transformers, float32, eager attention, whole prompt in one "
        "forward pass, weights dequantised by the gguf package and bit-identical to transformers' own "
        "GGUF loader. first.float64_distance: the same computed in numpy in float64, minus the reference.",
        "model": model.file_facts(),
        "packages": package_versions(["torch", "transformers", "tokenizers", "gguf", "numpy", "jinja2"]),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "probe_ids": [int(i) for i in probes],
        "prompts": prompts,
        "tokenizer": [{"text": text, "ids": encode(tokenizer, text)} for text in TOKENIZER_TEXTS],
        "chat_template": [],
    }
    for name, messages in CONVERSATIONS:
        text = render_chat(model, messages)
        report["chat_template"].append(
            {"name": name, "messages": messages, "rendered": text, "ids": encode(tokenizer, text)}
        )

    if not args.no_llama_cpp:
        from llama_cpp_opinion import add_llama_cpp

        add_llama_cpp(report, model, [first for _, first in computed], probes)
    dump(report, args.out)


if __name__ == "__main__":
    main()
