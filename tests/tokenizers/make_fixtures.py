"""Makes the tokenizers, chat templates and expectations that tests/tokenizers.rs reads.

    python make_fixtures.py

It needs Python 3.11 and, from PyPI (other versions will likely do): transformers 5.24.0,
tokenizers 0.23.3, sentencepiece 0.2.3, gguf 0.19.0, protobuf 7.36.2, jinja2 3.1.6. No torch, no
network, half a minute.

The vocabularies are tiny, trained on `texts.json` and on the prose in src/workload; the rules around
them (how text is normalised and cut before BPE, what becomes of bytes, what is special) are those
of the published tokenizers. Each is written as a folder with `tokenizer.json` and its settings, and
as a GGUF file without tensors; `expected.json` beside them has what transformers makes of the texts.

The chat templates in `templates/` were written down from memory of the published ones, not fetched;
`features.jinja` was never published. `rendered.json` has what transformers makes of them.
"""

import datetime
import io
import json
import pathlib

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import generate_merges
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent
TEXTS = json.loads((HERE / "texts.json").read_text())
PROSE = (HERE / "../../src/workload/public_domain.txt").read_text().splitlines()
CORPUS = TEXTS * 20 + PROSE
BYTE_LEVEL_TOKENS = 450
SPM_TOKENS = 700
SPACE = "\u2581"

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What the templates call the date: transformers reads the clock, the test gives this one.
NOW = datetime.datetime(2024, 9, 3, 14, 5)

CONVERSATIONS = {
    "one": [("user", "  Who's \u201cthere\u201d?\n")],
    "system": [("system", "Be brief & <kind>."), ("user", "2+2=?")],
    "turns": [
        ("user", "Hi"),
        ("assistant", "<think>\nhm\n</think>\n\n Hello there. "),
        ("user", "na\u00efve \U0001f469\u200d\U0001f52c?"),
        ("assistant", "Yes"),
        ("user", "</s><|im_end|><|eot_id|> 'quoted' \"text\""),
    ],
    "wrong-order": [("assistant", "I begin"), ("user", "no")],
}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def split(regex):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(regex), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def byte_level(pre_tokenizer, special, plain=(), normalizer=None, unmerged=0):
    """A trained tokenizer; the last `unmerged` tokens can be had as whole words only."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=BYTE_LEVEL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))
    if unmerged:
        model = json.loads(tokenizer.to_str())["model"]
        merges = [tuple(pair) for pair in model["merges"][:-unmerged]]
        tokenizer.model = models.BPE(model["vocab"], merges, ignore_merges=True)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    return tokenizer


def begins_with(tokenizer, bos):
    id = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, id)]
    )


def sentence_piece(add_dummy_prefix):
    """As Llama 2 and Mistral were trained, and as their tokenizer.json was published."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=SPM_TOKENS,
        byte_fallback=True,
        character_coverage=0.995,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        add_dummy_prefix=add_dummy_prefix,
        user_defined_symbols=["<mark>"],
        num_threads=1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(processor.get_piece_size())
    pieces = [processor.id_to_piece(id) for id in ids]
    types = []
    for id in ids:
        if processor.is_unknown(id):
            types.append(gguf.TokenType.UNKNOWN)
        elif processor.is_control(id):
            types.append(gguf.TokenType.CONTROL)
        elif processor.is_byte(id):
            types.append(gguf.TokenType.BYTE)
        elif pieces[id] == "<mark>":
            types.append(gguf.TokenType.USER_DEFINED)
        else:
            types.append(gguf.TokenType.NORMAL)
    scores = [processor.get_score(id) for id in ids]

    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    merges = generate_merges(vocabulary, dict(zip(pieces, scores)))
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    prepend = [normalizers.Prepend(SPACE)] if add_dummy_prefix else []
    strip = [decoders.Strip(" ", 1, 0)] if add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence(prepend + [normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()] + strip
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ["<unk>", "<s>", "</s>"]]
    )
    tokenizer.add_tokens([AddedToken("<mark>", special=False, normalized=False)])
    begins_with(tokenizer, "<s>")

    # The conversion must be what sentencepiece itself says, wherever no token is written out.
    for text in TEXTS:
        if "<" not in text:
            ours = tokenizer.encode(text, add_special_tokens=False).ids
            assert ours == processor.encode(text), (text, ours, processor.encode(text))
    return tokenizer, pieces, scores, types


def write_gguf(path, model, pre, tokens, types, special, flags, scores=None, merges=None):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if scores:
        writer.add_token_scores(scores)
    if merges:
        writer.add_token_merges(merges)
    for name, id in special.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", id)
    for name, flag in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def save(name, tokenizer, config, gguf_pre, ends=None, pieces=None, flags=None, extra=None):
    folder = HERE / name
    write(folder / "tokenizer.json", json.loads(tokenizer.to_str()))
    write(folder / "tokenizer_config.json", config)
    for file, content in (extra or {}).items():
        write(folder / file, content)
    if ends:
        write(folder / "generation_config.json", {"eos_token_id": ends})

    texts = {id: text for text, id in tokenizer.get_vocab(with_added_tokens=True).items()}
    tokens = [texts[id] for id in range(len(texts))]
    def text(token):
        return token["content"] if isinstance(token, dict) else token
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token"}
    all_settings = {**(extra or {}).get("special_tokens_map.json", {}), **config}
    special = {
        short: tokenizer.token_to_id(text(all_settings[long]))
        for short, long in names.items() if all_settings.get(long)
    }
    if pieces:
        _, scores, types = pieces
        write_gguf(folder / "model.gguf", "llama", None, tokens, types, special, flags or {}, scores)
    else:
        added = {t.content: t for t in tokenizer.get_added_tokens_decoder().values()}
        kind = lambda t: (gguf.TokenType.NORMAL if t not in added else
                          gguf.TokenType.CONTROL if added[t].special else gguf.TokenType.USER_DEFINED)
        merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
        write_gguf(folder / "model.gguf", "gpt2", gguf_pre, tokens, [kind(t) for t in tokens],
                   special, flags or {}, merges=merges)

    reference = AutoTokenizer.from_pretrained(folder)
    expected = []
    for text in TEXTS:
        plain = reference(text)["input_ids"]
        rendered = reference(text, add_special_tokens=False)["input_ids"]
        beginning = plain[: len(plain) - len(rendered)]
        assert plain == beginning + rendered
        decoded = reference.decode(plain, skip_special_tokens=True)
        expected.append({"ids": rendered, "decoded": None if decoded == text else decoded})
    write(folder / "expected.json", {"beginning": beginning, "texts": expected})
    print(f"{name}: {len(tokens)} tokens, begins with {beginning}")


def main():
    clean = {"clean_up_tokenization_spaces": False}
    im = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

    gpt2 = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])
    save("gpt-2", gpt2, {
        "tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>", "add_bos_token": False, "add_prefix_space": False, **clean,
    }, "gpt-2", flags={"add_bos_token": False})

    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Published as GPT2Tokenizer, which transformers 5 takes for GPT-2's rules whatever the file says.
    save("smollm", byte_level(digits, im), {
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": (HERE / "templates/smollm2.jinja").read_text(),
        **clean,
    }, "smollm", extra={"special_tokens_map.json": {
        "bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>", "lstrip": False},
    }})

    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    llama3 = byte_level(split(LLAMA3), names, unmerged=30)
    begins_with(llama3, "<|begin_of_text|>")
    save("llama-3", llama3, {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>", **clean,
    }, "llama-bpe", ends=[llama3.token_to_id("<|end_of_text|>"), llama3.token_to_id("<|eot_id|>")])

    qwen2 = byte_level(split(QWEN2), im, plain=["<tool_call>", "<think>"], normalizer=normalizers.NFC())
    save("qwen2", qwen2, {
        "tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "add_bos_token": False, **clean,
    }, "qwen2", ends=qwen2.token_to_id("<|endoftext|>"), flags={"add_bos_token": False})

    tekken = byte_level(split(TEKKEN), ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], unmerged=30)
    begins_with(tekken, "<s>")
    save("tekken", tekken, {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", **clean,
    }, "tekken")

    for name, prefix in [("llama-2", True), ("spm-no-prefix", False)]:
        tokenizer, *pieces = sentence_piece(prefix)
        object = lambda t: {"__type": "AddedToken", "content": t, "lstrip": False, "normalized": False,
                            "rstrip": False, "single_word": False}
        save(name, tokenizer, {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": object("<s>"),
            "eos_token": object("</s>"), "unk_token": object("<unk>"), "add_bos_token": True,
            "chat_template": [
                {"name": "other", "template": "unused"},
                {"name": "default", "template": (HERE / "templates/llama-2.jinja").read_text()},
            ], **clean,
        }, None, pieces=pieces, flags={} if prefix else {"add_space_prefix": False})

    render()


def render():
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    chat_template_utils.datetime = Clock
    rendered = {}
    for path in sorted((HERE / "templates").glob("*.jinja")):
        tokenizer = next((t for t in ("llama-3", "qwen", "smollm") if path.name.startswith(t)), "llama-2")
        tokenizer = {"qwen": "qwen2"}.get(tokenizer, tokenizer)
        reference = AutoTokenizer.from_pretrained(HERE / tokenizer)
        cases = {}
        for name, turns in CONVERSATIONS.items():
            messages = [{"role": role, "content": content} for role, content in turns]
            try:
                text, ids = (reference.apply_chat_template(
                    messages, chat_template=path.read_text(), add_generation_prompt=True,
                    tokenize=tokenize, return_dict=False) for tokenize in (False, True))
                cases[name] = {"text": text, "ids": ids}
            except chat_template_utils.jinja2.exceptions.TemplateError as error:
                cases[name] = {"error": str(error)}
        rendered[path.stem] = {"tokenizer": tokenizer, "cases": cases}
    write(HERE / "rendered.json", {
        "now": NOW.isoformat(), "conversations": CONVERSATIONS, "templates": rendered,
    })


main()
