"""Runs the engine and its peers in turns and prints their ratios; see engine_against_peers.sh.

Everything is measured from outside, each program in a process of its own: ours by `baseline`,
llama.cpp by its llama-bench, torch by transformers in f32 on the matrices of the same file. K and V
are f16 in ours and llama.cpp's, f32 in torch's. Prefill is tokens of the prompt over the time to its
logits; decode is steps over their time, behind a prompt of the length named.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile

PREFILL = (512, 1024, 2047)
DECODE = (128, 1024)
STEPS = 32

# Run in a process of its own, since its threads stay.
TORCH = r"""
import json, pathlib, sys, time
import torch, transformers
model, threads = pathlib.Path(sys.argv[1]), int(sys.argv[2])
prefill, decode = json.loads(sys.argv[3]), json.loads(sys.argv[4])
steps, repeats = int(sys.argv[5]), int(sys.argv[6])
torch.set_num_threads(threads)
torch.set_grad_enabled(False)
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
net = transformers.AutoModelForCausalLM.from_pretrained(
    str(model.parent), gguf_file=model.name, dtype=torch.float32).eval()
generator = torch.Generator().manual_seed(1)
def tokens(n):
    return torch.randint(1000, 40000, (1, n), generator=generator)
def run(n):
    started = time.perf_counter()
    out = net(tokens(n), use_cache=True, logits_to_keep=1)
    return time.perf_counter() - started, out.past_key_values
run(64)
rows = {}
for n in prefill:
    rows[f"prefill {n}"] = [n / run(n)[0] for _ in range(repeats)]
for n in decode:
    rates = []
    for _ in range(repeats):
        _, cache = run(n)
        started = time.perf_counter()
        for _ in range(steps):
            cache = net(tokens(1), past_key_values=cache, use_cache=True).past_key_values
        rates.append(steps / (time.perf_counter() - started))
    rows[f"decode {n}"] = rates
print(json.dumps(rows))
"""


def run(how, command, **options):
    """Runs one program to its end and returns what it printed."""
    done = subprocess.run(how.run_with + command, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def ours(how, threads):
    rows = {}
    for group, outputs in ((PREFILL, 1), (DECODE, STEPS + 1)):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                str(pathlib.Path(how.binary).resolve()), "baseline", "--model", how.model,
                "--threads", str(threads), "--prompt-tokens", ",".join(map(str, group)),
                "--output-tokens", str(outputs), "--repeats", str(how.repeats), "--warmup", "1",
                "--kv-dtype", "f16", "--out", folder + "/run", "--quiet", "--format", "json",
            ]
            run(how, command, cwd=folder)
            record = json.loads(pathlib.Path(folder, "run/run.json").read_text())
        for case in record["cases"]:
            n = case["prompt_tokens"]
            for sample in case["samples"]:
                if sample["warmup"]:
                    continue
                at = {}
                for event in sample["events"]:
                    at.setdefault(event["name"], []).append(event["t_ns"])
                if group is PREFILL:
                    ns = at["prefill-end"][0] - at["prefill-start"][0]
                    rows.setdefault(f"prefill {n}", []).append(n / ns * 1e9)
                else:
                    ns = at["step-end"][-1] - at["step-start"][0]
                    rows.setdefault(f"decode {n}", []).append(STEPS / ns * 1e9)
    return rows


def llama(how, folder, threads, flash):
    common = [f"{folder}/llama-bench", "-m", how.model, "-t", str(threads), "-r", str(how.repeats),
              "-ctk", "f16", "-ctv", "f16", "-fa", flash, "-o", "json"]
    rows = {}
    runs = (
        ["-p", ",".join(map(str, PREFILL)), "-n", "0", "-b", "2048", "-ub", "512"],
        ["-p", "0", "-n", str(STEPS), "-d", ",".join(map(str, DECODE))],
    )
    for arguments in runs:
        for test in json.loads(run(how, common + arguments)):
            what = (f"prefill {test['n_prompt']}" if test["n_prompt"]
                    else f"decode {test['n_depth']}")
            rows[what] = test["samples_ts"]
    return rows


def torch(how, threads):
    arguments = [how.model, threads, json.dumps(PREFILL), json.dumps(DECODE), STEPS, how.repeats]
    printed = run(how, [sys.executable, "-c", TORCH, *map(str, arguments)])
    return json.loads(printed.splitlines()[-1])


def load():
    return pathlib.Path("/proc/loadavg").read_text().split()[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flash", default="off,on")
    parser.add_argument("--run-with", type=shlex.split, default=[], metavar="COMMAND")
    parser.add_argument("builds", nargs="+", metavar="NAME=FOLDER")
    how = parser.parse_args()
    builds = dict(build.split("=", 1) for build in how.builds)
    for threads in map(int, how.threads.split(",")):
        rates, loads = {}, [load()]
        for _ in range(how.rounds):
            ways = {"ours": lambda: ours(how, threads)}
            for name, folder in builds.items():
                for flash in how.flash.split(","):
                    way = f"llama.cpp {name}" + (" -fa" if flash == "on" else "")
                    ways[way] = lambda folder=folder, flash=flash: llama(how, folder, threads, flash)
            ways["torch f32"] = lambda: torch(how, threads)
            for way, measure in ways.items():
                rows = measure()
                # What has been measured is not lost where a run is cut off.
                print(json.dumps({"threads": threads, "way": way, "tokens_per_s": rows}),
                      file=sys.stderr, flush=True)
                for what, values in rows.items():
                    rates.setdefault(what, {}).setdefault(way, []).append(statistics.median(values))
            loads.append(load())
        report(threads, rates, loads)


def report(threads, rates, loads):
    """Every way's figures, then ours over each of the others, round by round."""
    print(f"\n## {threads} thread{'s' if threads > 1 else ''}, load average before and after each"
          f" round: {', '.join(loads)}\n")
    ways = list(next(iter(rates.values())))
    _, middle, last = PREFILL
    rows = {f"{what}, tokens/s": by_way for what, by_way in rates.items()}
    rows[f"prefill time at {last} over {middle}"] = {
        way: [(last / b) / (middle / a) for a, b in zip(rates[f"prefill {middle}"][way],
                                                        rates[f"prefill {last}"][way])]
        for way in ways}
    print("| median of rounds | " + " | ".join(ways) + " |")
    print("|---" * (len(ways) + 1) + "|")
    for what, by_way in rows.items():
        medians = [statistics.median(by_way[way]) for way in ways]
        cells = [f"{x:.1f}" if x >= 10 else f"{x:.2f}" for x in medians]
        print(f"| {what} | " + " | ".join(cells) + " |")
    print("\n| ours over theirs (smallest to largest round) | " + " | ".join(ways[1:]) + " |")
    print("|---" * len(ways) + "|")
    for what, by_way in rows.items():
        cells = []
        for way in ways[1:]:
            ratios = [a / b for a, b in zip(by_way["ours"], by_way[way])]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"| {what.removesuffix(', tokens/s')} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
