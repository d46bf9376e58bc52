"""A second implementation of the decoders in float64, in numpy, after the papers.

It shares no code with transformers, so what both agree on is not a fault of one, and its distance
from transformers' float32 is that implementation's rounding noise.
"""

import numpy as np


def logits(config, tensors, ids):
    """Logits (len(ids), vocabulary) of every position. `config`: keys of the hub's files, old or new."""
    n_heads, n_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    d = config.get("head_dim") or config["hidden_size"] // n_heads
    n = len(ids)
    tensor = lambda name: tensors[f"{name}.weight"]
    norm = lambda x, weight: x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight

    def project(x, name):
        bias = tensors.get(f"{name}.bias")
        y = x @ tensor(name).T
        return y if bias is None else y + bias

    angle = np.arange(n)[:, None] * frequencies(config, d)  # (n, d / 2)
    turn = np.exp(1j * angle)[:, None, :]

    def rope(x):  # (n, heads, d): element i and i + d / 2 are one complex number
        turned = (x[..., : d // 2] + 1j * x[..., d // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], -1)

    back = np.arange(n)[:, None] - np.arange(n)[None, :]
    seen = (back >= 0) & (back < (window(config) or n))
    x = tensor("model.embed_tokens")[ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        h = norm(x, tensor(f"{layer}.input_layernorm"))
        q, k, v = (project(h, f"{layer}.self_attn.{p}_proj").reshape(n, -1, d) for p in "qkv")
        if f"{layer}.self_attn.q_norm.weight" in tensors:
            q, k = norm(q, tensor(f"{layer}.self_attn.q_norm")), norm(k, tensor(f"{layer}.self_attn.k_norm"))
        q, k = rope(q), rope(k)
        heads = []
        for head in range(n_heads):
            group = head // (n_heads // n_kv_heads)
            score = np.where(seen, q[:, head] @ k[:, group].T / np.sqrt(d), -np.inf)
            score = np.exp(score - score.max(-1, keepdims=True))
            heads.append(score / score.sum(-1, keepdims=True) @ v[:, group])
        x = x + project(np.concatenate(heads, -1), f"{layer}.self_attn.o_proj")
        h = norm(x, tensor(f"{layer}.post_attention_layernorm"))
        gate = project(h, f"{layer}.mlp.gate_proj")
        x = x + project(gate / (1 + np.exp(-gate)) * project(h, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj")
    output = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return norm(x, tensor("model.norm")) @ tensor(output).T


def window(config):
    """Tokens that attention sees, the newest included; None is all."""
    return None if config.get("use_sliding_window") is False else config.get("sliding_window")


def frequencies(config, head_dim):
    """Radians from a position to the next, (head_dim / 2,), scaled as the file says."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = scaling.get("rope_theta") or config["rope_theta"]
    plain = base ** (-np.arange(0, head_dim, 2) / head_dim)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        return plain / scaling["factor"]
    if kind == "llama3":
        waves = scaling["original_max_position_embeddings"] * plain / (2 * np.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = np.clip((waves - low) / (high - low), 0, 1)
        return plain * kept + plain / scaling["factor"] * (1 - kept)
    assert kind == "default", kind
    return plain
