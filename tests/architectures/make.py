"""Makes tiny models of every architecture as the hub stores them, and what transformers computes with them.

    python make.py [CASE...]

Writes a folder per case of `cases.py`: `config.json`, weights as safetensors, the tokenizer and
`expected.json`: token ids, logits and greedy tokens in float32 on the stored weights. Weights are
random, norms and biases included, since a forgotten norm of ones or bias of zeros would not show.
The first seed counts whose greedy tokens are clear (SMALLEST_GAP), varied and not special.

Versions are in README.md. Seconds on one core; no network.
"""

import argparse
import json
import os
import shutil

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import float64
from cases import CASES, LONG_PROMPT, SHORT_PROMPT, TOKENIZERS, VOCABULARY, build_tokenizer, special_ids

HERE = os.path.dirname(os.path.abspath(__file__))
GREEDY_TOKENS = 16
SMALLEST_GAP = 1e-2  # between the two best logits of a step: an engine that is right within 1e-4 cannot choose another
FEWEST_DISTINCT = 6  # of the greedy tokens
LEAST_EFFECT = 0.05  # on some logit, of what must matter
MOST_NOISE = 2e-5  # float32 against float64: a fifth of what tests allow
LARGEST_ROUNDING = 1e-3  # more is no rounding: one of the two implementations is wrong
MOST_SEEDS = 100


# ---- weights and files --------------------------------------------------------------------------


def randomise(network, seed):
    """Weights such that logits are of order 1 to 10 and attention is neither flat nor of one token."""
    random = np.random.RandomState(seed)
    for name, weight in sorted(network.named_parameters()):
        shape = tuple(weight.shape)
        if "norm" in name:
            values = random.uniform(0.5, 1.5, shape)
        elif name.endswith(".bias"):
            values = random.normal(0, 0.25, shape)
        elif "embed_tokens" in name or "lm_head" in name:
            values = random.normal(0, 2 / np.sqrt(shape[1]), shape)
        else:
            values = random.normal(0, 1.2 / np.sqrt(shape[1]), shape)
        weight.data = torch.from_numpy(values).to(weight.dtype)


def write_model(folder, case, seed):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    settings = case["config"]
    write_json(os.path.join(folder, "config.json"), settings)
    network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    randomise(network, seed)
    network.to(getattr(torch, settings["torch_dtype"]))
    network.save_pretrained(folder, max_shard_size=case.get("shard_bytes", "1GB"))
    if not case.get("keys_of_transformers_5"):
        write_json(os.path.join(folder, "config.json"), settings)


def write_tokenizer(folder, name, tokenizer):
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    rules = TOKENIZERS[name]
    bos, eos = special_ids(name, tokenizer)
    tokenizer_config = {
        "add_bos_token": rules.get("adds_bos", False),
        "bos_token": rules["bos"],
        "chat_template": rules.get("chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": rules["eos"][0],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation_config = {"bos_token_id": bos, "eos_token_id": eos if len(eos) > 1 else eos[0]}
    without_none = lambda settings: {k: v for k, v in settings.items() if v is not None}
    write_json(os.path.join(folder, "tokenizer_config.json"), without_none(tokenizer_config))
    write_json(os.path.join(folder, "generation_config.json"), without_none(generation_config))


def write_json(path, content):
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


# ---- what transformers computes -----------------------------------------------------------------


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def greedy(network, ids):
    """The greedy tokens, and per step the logits (vocabulary,) that chose one."""
    out = network(torch.tensor([ids]), use_cache=True)
    tokens, steps = [], []
    while True:
        steps.append(out.logits[0, -1].numpy().copy())
        tokens.append(int(steps[-1].argmax()))
        if len(tokens) == GREEDY_TOKENS:
            return tokens, steps
        out = network(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)


def expectations(network, exact, prompts):
    """What a file `expected.json` or NAME.json says of `prompts` [(text, ids)]. `exact`: ids to float64 logits."""
    expected = []
    for text, ids in prompts:
        tokens, steps = greedy(network, ids)
        exact_steps = exact(ids + tokens[:-1])[len(ids) - 1 :]
        noise = np.abs(exact_steps - np.stack(steps)).max()
        assert noise < LARGEST_ROUNDING, f"transformers is {noise} from float64"
        best = np.sort(np.stack(steps), -1)
        expected.append(
            {
                "text": text,
                "ids": ids,
                "greedy_tokens": tokens,
                "smallest_gap": digits((best[:, -1] - best[:, -2]).min()),
                "f32_noise": float(f"{noise:.2g}"),
                "logits": [digits(v) for v in steps[0]],
                "last_logits": [digits(v) for v in steps[-1]],
            }
        )
    return expected


def digits(value):
    """The shortest decimal that is this float32 and no other."""
    return float(str(np.float32(value)))


def is_clear(expected, special):
    """Whether an engine within tolerance has to choose these tokens, and a wrong one hardly can."""
    return all(
        prompt["smallest_gap"] > SMALLEST_GAP
        and prompt["f32_noise"] < MOST_NOISE
        and len(set(prompt["greedy_tokens"])) >= FEWEST_DISTINCT
        and not special & set(prompt["greedy_tokens"])
        for prompt in expected
    )


def exact_logits(folder):
    """Ids to logits in float64 from a case's files, their settings changed on demand."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            tensors |= {k: v.double().numpy() for k, v in load_file(os.path.join(folder, name)).items()}
    return lambda ids, changes={}: float64.logits(config | changes, tensors, ids)


def check_effects(case, exact, ids):
    """The largest change of a logit after `ids` by what must matter."""
    after = lambda ids, changes={}: exact(ids, changes)[-1]
    effects = {}
    if changes := case.get("must_matter"):
        effects[next(iter(changes))] = np.abs(after(ids) - after(ids, changes)).max()
    if "sliding_window" not in effects:
        effects["first token"] = np.abs(after(ids) - after([(ids[0] + 9) % VOCABULARY] + ids[1:])).max()
    assert all(e > LEAST_EFFECT for e in effects.values()), effects
    return effects


# ---- putting it together ------------------------------------------------------------------------


def prompts_of(tokenizer):
    return [(text, tokenizer.encode(text).ids) for text in (SHORT_PROMPT, LONG_PROMPT)]


def clear_seed(name, tokenizer, compute):
    """The first seed with clear tokens in `compute(seed)`, and what that gave."""
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for seed in range(1, MOST_SEEDS):
        expected = compute(seed)
        if is_clear(expected, special):
            return seed, expected
    raise SystemExit(f"{name}: no seed below {MOST_SEEDS} gives clear tokens")


def make(name):
    case, folder = CASES[name], os.path.join(HERE, name)
    tokenizer = build_tokenizer(case["tokenizer"])
    prompts = prompts_of(tokenizer)

    def compute(seed):
        write_model(folder, case, seed)
        return expectations(load(folder), exact_logits(folder), prompts)

    seed, expected = clear_seed(name, tokenizer, compute)
    write_tokenizer(folder, case["tokenizer"], tokenizer)
    effects = check_effects(case, exact_logits(folder), prompts[1][1])
    write_expected(os.path.join(folder, "expected.json"), {"seed": seed, "prompts": expected})
    report(f"{name}, seed {seed}", expected)
    print(f"  effects { {k: round(float(v), 3) for k, v in effects.items()} }")


def write_expected(path, content):
    """JSON with a line for each key of a prompt."""
    lines = json.dumps(content["prompts"], ensure_ascii=False)
    for key in content["prompts"][0]:
        lines = lines.replace(f' "{key}": ', f'\n   "{key}": ').replace(f'{{"{key}": ', f'{{\n   "{key}": ')
    head = json.dumps({k: v for k, v in content.items() if k != "prompts"})[1:-1]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'{{\n {head},\n "prompts": {lines}\n}}\n')


def report(title, expected):
    print(title)
    for prompt in expected:
        largest = np.abs(prompt["logits"]).max()
        print(
            f"  {len(prompt['ids'])} tokens, f32_noise {prompt['f32_noise']}, smallest gap "
            f"{prompt['smallest_gap']:.3f}, largest logit {largest:.1f}, greedy {prompt['greedy_tokens']}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="*", default=list(CASES))
    torch.set_num_threads(1)
    for name in parser.parse_args().case:
        make(name)


if __name__ == "__main__":
    main()
