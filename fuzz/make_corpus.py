#!/usr/bin/env python3
"""Makes corpus/ anew: small sound inputs of every target, so that the fuzzer starts behind the
first check. Runs, sweeps and baselines are recorded ones, cut down; the rest is made here."""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
LAYERS = 2
TOKENS = 4
SAMPLES_AN_ARM = 2


def put(target, name, content):
    path = HERE / "corpus" / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else compact(content)).encode()
    path.write_bytes(content)


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def recorded(path):
    return json.loads((ROOT / path).read_text())


# Frames and messages.

MAGIC = b"\xd1SAGGKV\n"
HELLO, AUTH, REFUSE, JOIN, OPEN, ADMIT, START, TOKEN, DONE, FAILED, PROBE = range(11)
# Positions of these kinds among all, which a message begins with.
POSITION = {HELLO: 0, AUTH: 1, REFUSE: 3, JOIN: 4, OPEN: 5, ADMIT: 6, START: 8, TOKEN: 10,
            DONE: 11, FAILED: 13, PROBE: 16}


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def frame(number, payload=b"", run=(0, 0, 0)):
    def header(crc):
        return MAGIC + struct.pack("<HHIQQIIIIQ", 1, number, 0, 0, 1, *run, crc, len(payload))
    return header(crc32c(header(0) + payload)) + payload


def hello(proof=None):
    layer = {"n_kv_heads": 1, "head_dim": 2, "window": None}
    return {
        "build": {"tool_version": "0.1.0", "git_revision": "abc", "target": "x86_64",
                  "instruction_set": "avx2", "threads": 1},
        "node": {"host": "b", "machine": "n"},
        "model": {"name": "tiny", "weights": "f32", "fingerprint": "f00d"},
        "layout": {"layers": [layer] * LAYERS, "arrangement": "token-major,k|v per head"},
        "limits": {"max_tokens": 64, "max_piece_bytes": 1 << 20, "max_cache_bytes": 1 << 20},
        "environment": None, "auth_required": proof is not None, "nonce": "07" * 32,
        "proof": proof,
    }


MESSAGES = {
    HELLO: hello(), AUTH: {"proof": "07" * 32}, REFUSE: {"code": "busy", "reason": "full"},
    JOIN: {"session": 1, "stream": 1},
    OPEN: {"prompt_tokens": [1, 2], "output_tokens": 3, "kv_dtype": "f16", "wire_dtype": "int8",
           "chunk_tokens": 1, "ignore_eos": True, "role": "decode"},
    ADMIT: {"capacity_tokens": 4, "others_in_flight": 0}, START: {"first_token": 7},
    TOKEN: {"index": 1, "token": 7},
    DONE: {"steps": [{"digest": "00", "top": [[7, None], [8, 1.5]], "digest_ns": 1}],
           "finish": "length", "cache_digest": "00", "activity": None,
           "events": [{"name": "piece-landed", "layer": 0, "token_start": 0, "t_ns": 9}],
           "memory": {"loaded_bytes": 1, "peak_bytes": None, "cache_bytes": 2},
           "receiving": {"cpu_ns": 1, "wall_ns": 2, "core": 0}},
    FAILED: {"reason": "bytes changed", "checksum": True},
    PROBE: {"n_layers": 2, "row_bytes": 8, "tokens": 3},
}


def message(kind, value):
    payload = compact(value).encode()
    return bytes([POSITION[kind]]) + struct.pack("<H", len(payload)) + payload


def wire():
    payload = compact(hello()).encode()
    put("frames", "hello-ready", frame(1, payload) + frame(3))
    put("frames", "piece-ack-done", frame(8, b"\0" * 16, (1, 2, 3)) + frame(10, b"", (1, 2, 3))
        + frame(12, compact(MESSAGES[DONE]).encode()))
    put("frames", "other-version", MAGIC + b"\2\0")
    for number, (kind, value) in enumerate(MESSAGES.items()):
        put("messages", f"{number:02}", message(kind, value))
    put("messages", "session", b"".join(message(k, MESSAGES[k]) for k in (HELLO, AUTH, OPEN)))
    put("messages", "proof", message(HELLO, hello("07" * 32)) + bytes([2, 0, 0]))


# Models.

U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
VOCABULARY = ["t", "h", "e", "th", "the", "Ġ", "Ġthe", "<|end|>"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'].strip() }}{{ eos_token }}{% endfor %}"


def text(value):
    value = value.encode()
    return struct.pack("<Q", len(value)) + value


def typed(kind, value):
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        of, items = value
        return struct.pack("<IQ", of, len(items)) + b"".join(typed(of, item) for item in items)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], value)


def gguf(width, inner, heads, kv_heads, tensor_format, block, more=(), more_tensors=()):
    """A Llama of one layer; `block` makes the bytes of so many values."""
    metadata = [
        ("general.architecture", STRING, "llama"), ("llama.block_count", U32, 1),
        ("llama.embedding_length", U32, width), ("llama.feed_forward_length", U32, inner),
        ("llama.attention.head_count", U32, heads),
        ("llama.attention.head_count_kv", U32, kv_heads),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("llama.context_length", U32, 16), ("llama.rope.freq_base", F32, 1e4),
        ("tokenizer.ggml.model", STRING, "gpt2"), ("tokenizer.ggml.pre", STRING, "smollm"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, VOCABULARY)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, [1] * 7 + [3])),
        ("tokenizer.ggml.merges", ARRAY, (STRING, ["t h", "th e", "Ġ the"])),
        ("tokenizer.ggml.eos_token_id", U32, 7), ("tokenizer.ggml.bos_token_id", U32, 7),
        ("tokenizer.ggml.add_bos_token", BOOL, True), ("tokenizer.chat_template", STRING, TEMPLATE),
        *more,
    ]
    head = width // heads
    matrices = {"attn_q": (width, width), "attn_k": (kv_heads * head, width),
                "attn_v": (kv_heads * head, width), "attn_output": (width, width),
                "ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    tensors = [("token_embd.weight", (len(VOCABULARY), width))]
    tensors += [(f"blk.0.{name}.weight", shape) for name, shape in matrices.items()]
    norms = ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"]
    tensors += [(name, (width,)) for name in norms] + list(more_tensors)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, kind, value in metadata:
        header += text(key) + struct.pack("<I", kind) + typed(kind, value)
    data = b""
    for name, shape in tensors:
        one_dimension = len(shape) == 1
        header += text(name) + struct.pack("<I", len(shape))
        header += b"".join(struct.pack("<Q", d) for d in reversed(shape))
        header += struct.pack("<IQ", 0 if one_dimension else tensor_format, len(data))
        values = shape[0] if one_dimension else shape[0] * shape[1]
        data += struct.pack("<f", 1.0) * values if one_dimension else block(values)
        data += b"\0" * (-len(data) % 32)
    return header + b"\0" * (-len(header) % 32) + data


def models():
    floats = lambda n: b"".join(struct.pack("<f", (i % 7 - 3) / 4) for i in range(n))
    q8 = lambda n: (struct.pack("<e", 0.01) + bytes(range(32))) * (n // 32)
    q4 = lambda n: (struct.pack("<e", 0.01) + bytes(range(16))) * (n // 32)
    put("model", "f32.gguf", gguf(4, 4, 2, 1, 0, floats))
    put("model", "q8_0.gguf", gguf(32, 32, 2, 1, 8, q8))
    put("model", "q4_0.gguf", gguf(32, 32, 2, 2, 2, q4))
    zero = ("general.alignment", U32, 0)
    put("model", "alignment-0.gguf", gguf(4, 4, 2, 1, 0, floats, [zero]))
    divisors = ("rope_freqs.weight", (0,))
    put("model", "empty-divisors.gguf", gguf(1, 4, 2, 1, 0, floats, [], [divisors]))


def tokenizer(normalizer, pre_tokenizer, decoder, post_processor, added, **model):
    special = [{"id": number, "content": content, "special": True, "normalized": False}
               for content, number in added.items()]
    return {"added_tokens": special, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "decoder": decoder, "post_processor": post_processor, "model": {"type": "BPE", **model}}


def files(*contents):
    """Contents with a NUL between them."""
    return b"\0".join(content if isinstance(content, bytes) else
                      (content if isinstance(content, str) else compact(content)).encode()
                      for content in contents)


def tokenizers():
    sequence = lambda name, *steps: {"type": "Sequence", name: steps}
    replace = lambda pattern, content: {"type": "Replace", "pattern": {"String": pattern},
                                        "content": content}
    ids = {token: number for number, token in enumerate(VOCABULARY)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\s+(?!\S)|\s+"},
             "behavior": "Isolated", "invert": False}
    digits = {"type": "Digits", "individual_digits": True}
    put("tokenizer", "byte-level", files(
        tokenizer({"type": "NFC"}, sequence("pretokenizers", split, digits, byte_level), byte_level,
                  byte_level, {"<|end|>": 7}, vocab=ids, merges=["t h", "th e", "Ġ the"],
                  ignore_merges=True),
        {"eos_token": "<|end|>", "add_bos_token": False,
         "added_tokens_decoder": {"7": {"content": "<|end|>", "special": True}}}, TEMPLATE))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)),
              "▁", "t", "h", "e", "th", "the", "▁the"]
    bos = {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}
    put("tokenizer", "pieces", files(
        tokenizer(sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
                  None, sequence("decoders", replace("▁", " "), {"type": "ByteFallback"},
                                 {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1,
                                                    "stop": 0}), bos,
                  {"<unk>": 0, "<s>": 1, "</s>": 2},
                  vocab={piece: number for number, piece in enumerate(pieces)},
                  merges=[["t", "h"], ["th", "e"], ["▁", "the"]], unk_token="<unk>", fuse_unk=True,
                  byte_fallback=True),
        {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "additional_special_tokens": ["<s>"],
         "chat_template": [{"name": "default", "template": "{{ bos_token }}{% for m in messages "
                            "%}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson(indent=2)"
                            " }}{% endfor %}{{ strftime_now('%Y') }}"}]}))
    # A chain that compiling it would look through once for each of its links.
    put("tokenizer", "chain", files(
        tokenizer(None, byte_level, byte_level, None, {"<|end|>": 7}, vocab=ids, merges=[]),
        {"eos_token": "<|end|>"}, "{{ a" + "~a" * 32000 + " }}"))
    for choice in range(7):
        put("model_values", str(choice), bytes([choice]) + bytes(range(9)))


def folders():
    def put_folder(name, element, code, more_config, more_tensors, output, index):
        width, inner, head = 4, 6, 2
        tensors = {"model.embed_tokens.weight": [len(VOCABULARY), width],
                   "model.norm.weight": [width]}
        layer = {"self_attn.q_proj.weight": [width, width],
                 "self_attn.k_proj.weight": [head, width],
                 "self_attn.v_proj.weight": [head, width],
                 "self_attn.o_proj.weight": [width, width],
                 "mlp.gate_proj.weight": [inner, width], "mlp.up_proj.weight": [inner, width],
                 "mlp.down_proj.weight": [width, inner], "input_layernorm.weight": [width],
                 "post_attention_layernorm.weight": [width], **more_tensors}
        tensors |= {f"model.layers.0.{tensor}": shape for tensor, shape in layer.items()}
        if output:
            tensors["lm_head.weight"] = [len(VOCABULARY), width]
        header, data = {}, b""
        for tensor, shape in tensors.items():
            count = shape[0] * shape[-1] if len(shape) == 2 else shape[0]
            values = b"".join(code((i % 7 - 3) / 4) for i in range(count))
            header[tensor] = {"dtype": element, "shape": shape,
                              "data_offsets": [len(data), len(data) + len(values)]}
            data += values
        config = {"num_hidden_layers": 1, "hidden_size": width, "intermediate_size": inner,
                  "num_attention_heads": 2, "num_key_value_heads": 1,
                  "vocab_size": len(VOCABULARY), "max_position_embeddings": 16, **more_config}
        weight_map = {"weight_map": dict.fromkeys(tensors, "a.safetensors")}
        put("model_folder", name, files(config, weight_map if index else "", header, data))

    f32 = lambda value: struct.pack("<f", value)
    f16 = lambda value: struct.pack("<e", value)
    bf16 = lambda value: struct.pack("<f", value)[2:]
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
    put_folder("llama", "F32", f32, {"architectures": ["LlamaForCausalLM"], "rope_theta": 5e5,
               "rope_scaling": scaling, "tie_word_embeddings": True}, {}, False, False)
    put_folder("qwen2", "BF16", bf16, {"architectures": ["Qwen2ForCausalLM"],
               "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 0},
               {"self_attn.q_proj.bias": [4], "self_attn.k_proj.bias": [2],
                "self_attn.v_proj.bias": [2]}, True, True)
    put_folder("qwen3", "F16", f16, {"architectures": ["Qwen3ForCausalLM"], "head_dim": 2,
               "layer_types": ["full_attention"]},
               {"self_attn.q_norm.weight": [2], "self_attn.k_norm.weight": [2]}, True, False)
    # Another's whole file in place of a header.
    header = compact({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    put("model_folder", "whole-file", files({"architectures": ["LlamaForCausalLM"]}, "", "",
        struct.pack("<Q", len(header)) + header + b"\0" * 4))


# Configurations.

def configurations():
    put("config", "llama.json", {"num_hidden_layers": 2, "num_attention_heads": 4,
        "hidden_size": 8, "num_key_value_heads": 2, "sliding_window": 8,
        "use_sliding_window": False})
    put("config", "gemma.json", {"text_config": {"num_hidden_layers": 6, "head_dim": 4,
        "num_key_value_heads": 1, "sliding_window": 8, "sliding_window_pattern": 6,
        "model_type": "gemma3_text"}})
    put("config", "typed.json", {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 2,
        "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]})
    put("config", "mla.json", {"num_hidden_layers": 2, "num_attention_heads": 2,
        "kv_lora_rank": 4, "qk_rope_head_dim": 2})
    # As large as every single number may be, on a prompt as long as may be.
    put("config", "wide.json", {"num_hidden_layers": 10000, "num_key_value_heads": 1 << 20,
        "head_dim": 1 << 20})
    put("settings", "split.toml", b"0" + b'repeats = 3\nprompt = ["a, b", "c"]\noffline = true\n'
        b'gbps = [0.1, 25]\nkv_dtype = "bf16"\nlisten = "[::1]:0"\nstreams = 2\n')
    put("settings", "notebook.json", b"1" + compact({"model": {"name": "org/hub"},
        "network": {"node1_ip": "10.0.0.1", "node2_ip": "fe80::1"}}).encode())


def prompts():
    put("prompts", "lines.jsonl", '{"prompt": "a", "max_tokens": 3, "name": "n"}\r\n\n{"messages":'
        ' [{"role": "system", "content": "b"}, {"role": "user", "content":'
        ' [{"type": "text", "text": "c"}]}], "id": "i"}\n')
    put("prompts", "array.json", '[{"conversations": [{"from": "human", "value": "a\\u00e9"},'
        ' {"from": "gpt", "value": "b"}]}, {"prompt": "]}\\"{"}]')
    put("prompts", "object.json", '{\n  "prompt": "a"\n}\n')
    put("prompts", "plain.txt", b"\xef\xbb\xbfone\ntwo\n")


# Runs, sweeps, baselines.

def small_environment(environment):
    environment["processor"]["features"] = environment["processor"]["features"][:1]
    environment["network_interfaces"] = environment.get("network_interfaces", [])[:1]


def small_sample(sample):
    keep = lambda event: (event.get("layer", 0) < LAYERS
                          and not (event["name"] in ("token", "step-start", "step-end")
                                   and event.get("chunk", 0) >= TOKENS))
    sample["events"] = [event for event in sample["events"] if keep(event)]
    if output := sample.get("output"):
        output["tokens"] = output["tokens"][:TOKENS]
        output["text"] = "a"
        output["steps"] = [dict(step, top=step["top"][:1]) for step in output["steps"][:TOKENS]]
    return sample


def small_cases(cases, prompts):
    small = []
    for case in cases[:prompts]:
        arms = {}
        for sample in case["samples"]:
            if not sample["warmup"]:
                arms.setdefault((sample["arm"], sample["transfer"]), []).append(sample)
        samples = [s for all_of_arm in arms.values() for s in all_of_arm[:SAMPLES_AN_ARM]]
        small.append(dict(case, samples=[small_sample(s) for s in samples]))
    return small


def small_run(run, prompts):
    for node in ("prefill", "decode"):
        if run["environment"][node]:
            small_environment(run["environment"][node])
    run["configuration"] = dict(list(run["configuration"].items())[:3])
    run["model"]["n_layers"] = LAYERS
    run["link"]["round_trips_ns"] = run["link"]["round_trips_ns"][:3]
    run["cases"] = small_cases(run["cases"], prompts)
    del run["observed"]["looks"][2:]
    if interference := run.get("interference"):
        interference["samples"] = [s for s in interference["samples"] if not s["warmup"]][:6]
        for sample in interference["samples"]:
            if moments := sample.get("moments"):
                moments["tokens"] = moments["tokens"][:24]
                moments["token_ns"] = moments["token_ns"][:24]
    return run


def records():
    put("runs", "split.json", small_run(recorded("reports/loopback-smollm2-135m/run.json"), 2))
    put("runs", "interference.json",
        small_run(recorded("reports/loopback-interference-smollm2-135m/run.json"), 1))
    sweep = recorded("baselines/2026-11-27-scored-emulated-links/1gbps/link.json")
    for row in sweep["rows"]:
        row["times"]["warm_ns"] = row["times"]["warm_ns"][:2]
    sweep["rows"] = sweep["rows"][:3]
    put("sweeps", "loopback.json", sweep)
    baseline = recorded("baseline_metrics.json")
    small_environment(baseline["environment"])
    baseline["cases"] = small_cases(baseline["cases"], 1)
    put("baselines", "tiny.json", baseline)
    for choice in range(4):
        put("run_values", str(choice), bytes([choice]) + bytes(range(9)))
    # Found by the fuzzer: a last token before the first one.
    put("run_values", "backwards", bytes.fromhex("97999999999999190708"))
    # A projection without an end, whose digits were counted with overflow.
    put("run_values", "infinite-projection", bytes.fromhex("71859a006573859a0043"))
    # And a row of a sweep that took less than no time, which no cost can be fitted to.
    put("run_values", "negative", bytes.fromhex("01ae0602ae06"))
    sweep["rows"][1]["transfer_ms"]["median"] = -1
    put("sweeps", "negative.json", sweep)


wire()
models()
tokenizers()
folders()
configurations()
prompts()
records()
