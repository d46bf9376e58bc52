"""The models of `make.py` and `make_gguf.py`: `config.json` as the hub has it, tokenizers and prompts.

Sizes are tiny, everything else is as published: the keys of the file, what is tied, how text is cut
before BPE, which tokens are special. `must_matter` alters a file's setting; logits after the long
prompt have to change, or the case would not test that setting.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY = 300
CONTEXT_TOKENS = 256
SHORT_PROMPT = "It's 2026!"
LONG_PROMPT = (
    "In the year 1969 two people walked on the moon; they'll say that the 382 kg of dust and stone they "
    "took home were worth the way there.\n\n  Naïve? Perhaps."
)
# What the few merges are learned from: words and numbers of the prompts, others, and runs of spaces.
CORPUS = [
    "the they there that then other another weather whether together",
    "in on and stone home one and and sand hand land",
    "1969 1969 19 69 382 382 2026 2026 20 26",
    "they'll they'll we'll it's it's\n\n  and\n\n  on\n\n  the",
]

# How published tokenizers cut text before BPE.
LLAMA3_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_CUTS = LLAMA3_CUTS.replace(r"\p{N}{1,3}", r"\p{N}")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT_TOKENS,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": VOCABULARY,
}
QWEN = {
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT_TOKENS,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}

CASES = {
    # In several files with an index, as all large models are.
    "llama2": {
        "config": LLAMA | {"hidden_size": 64, "intermediate_size": 96},
        "tokenizer": "llama",
        "shard_bytes": 150_000,
    },
    "llama3": {
        "config": LLAMA
        | {
            # head_dim is not hidden_size / num_attention_heads; of the 16 rotary frequencies, some are
            # kept, some divided and one is in between. The long prompt is beyond the original context.
            "head_dim": 32,
            "num_key_value_heads": 2,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 32,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
        },
        "tokenizer": "llama3",
        "must_matter": {"rope_scaling": None},
    },
    # `type` instead of `rope_type`, as in files of 2023.
    "llama-linear-rope": {
        "config": LLAMA | {"rope_scaling": {"factor": 4.0, "type": "linear"}},
        "tokenizer": "llama",
        "must_matter": {"rope_scaling": None},
    },
    "smollm2": {
        "config": LLAMA
        | {
            "hidden_size": 36,
            "num_attention_heads": 9,
            "num_hidden_layers": 3,
            "num_key_value_heads": 3,
            "rope_theta": 100000.0,
            "tie_word_embeddings": True,
        },
        "tokenizer": "smollm",
    },
    "tinyllama": {
        "config": LLAMA | {"num_attention_heads": 8, "num_key_value_heads": 1, "torch_dtype": "bfloat16"},
        "tokenizer": "llama",
    },
    # Three layers of 24 tokens reach back 70 of about 100.
    "mistral": {
        "config": LLAMA
        | {
            "architectures": ["MistralForCausalLM"],
            "head_dim": 24,
            "model_type": "mistral",
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "sliding_window": 24,
        },
        "tokenizer": "llama",
        "must_matter": {"sliding_window": None},
    },
    "qwen2": {
        "config": QWEN | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "sliding_window": 32},
        "tokenizer": "qwen2",
        "must_matter": {"rope_theta": 10000.0},
    },
    # Written by transformers 5, whose keys are others: rope_parameters, dtype, layer_types.
    "qwen3": {
        "config": QWEN
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "head_dim": 32,
            "model_type": "qwen3",
            "sliding_window": None,
        },
        "tokenizer": "qwen2",
        "keys_of_transformers_5": True,
        "must_matter": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    },
}

# Rows of 256 elements, a block of the k-quants.
WIDE = {
    "config": LLAMA
    | {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
    },
    "tokenizer": "llama",
}

# Special tokens that stand before the vocabulary or after it, the roles some have, and GGUF's
# name for how text is cut.
TOKENIZERS = {
    "llama": {
        "gguf_pre": "gpt-2",
        "before": ["<unk>", "<s>", "</s>"],
        "bos": "<s>",
        "eos": ["</s>"],
        "adds_bos": True,
    },
    "llama3": {
        "gguf_pre": "llama-bpe",
        "after": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "bos": "<|begin_of_text|>",
        "eos": ["<|eot_id|>", "<|end_of_text|>"],
        "adds_bos": True,
    },
    "smollm": {
        "gguf_pre": "smollm",
        "before": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "bos": "<|im_start|>",
        "eos": ["<|im_end|>"],
        "chat_template": CHATML,
    },
    "qwen2": {
        "gguf_pre": "qwen2",
        "after": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "bos": None,
        "eos": ["<|im_end|>", "<|endoftext|>"],
        "chat_template": CHATML,
    },
}


def cuts(name):
    """The pre-tokenizer of the published `tokenizer.json`."""
    if name in ("llama3", "qwen2"):
        pattern = Regex(LLAMA3_CUTS if name == "llama3" else QWEN_CUTS)
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    return byte_level


def build_tokenizer(name):
    """A byte-level BPE of VOCABULARY tokens; "llama" has GPT-2's rule in place of SentencePiece."""
    rules = TOKENIZERS[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cuts(name)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in rules.get("before", [])]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(rules.get("after", [])),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in rules.get("after", [])])
    if rules.get("adds_bos"):
        bos = rules["bos"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    assert tokenizer.get_vocab_size() == VOCABULARY, tokenizer.get_vocab_size()
    return tokenizer


def special_ids(name, tokenizer):
    """(bos id or None, [eos ids])."""
    rules = TOKENIZERS[name]
    bos = rules["bos"] and tokenizer.token_to_id(rules["bos"])
    return bos, [tokenizer.token_to_id(token) for token in rules["eos"]]
