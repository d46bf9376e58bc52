#!/usr/bin/env python3
"""What two nodes that compute at once on one machine cost each other: prefill and decode of one
`baseline` process alone, and beside a second one that never stops, with threads shared or apart.

    benches/two_pools.py --model FILE [--binary target/release/disagg-bench] [--rounds 3]

Needs Linux with taskset, two cores or more, and an idle machine. Half of the cores go to each node
where they are kept apart.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import tempfile
import time

PROMPT_TOKENS, OUTPUT_TOKENS = 512, 33


def command(how, threads, repeats, folder):
    return [str(pathlib.Path(how.binary).resolve()), "baseline", "--model", how.model,
            "--threads", str(threads), "--prompt-tokens", str(PROMPT_TOKENS),
            "--output-tokens", str(OUTPUT_TOKENS), "--repeats", str(repeats), "--warmup", "1",
            "--out", folder + "/run", "--quiet", "--format", "json"]


def pinned(cores):
    return ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []


def measure(how, threads, cores):
    """Tokens/s of prefill and of decode."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(pinned(cores) + command(how, threads, 3, folder), cwd=folder, check=True,
                       stdout=subprocess.DEVNULL)
        record = json.loads(pathlib.Path(folder, "run/run.json").read_text())
    rates = ([], [])
    for sample in record["cases"][0]["samples"]:
        if sample["warmup"]:
            continue
        at = {}
        for event in sample["events"]:
            at.setdefault(event["name"], []).append(event["t_ns"])
        rates[0].append(PROMPT_TOKENS / (at["prefill-end"][0] - at["prefill-start"][0]) * 1e9)
        rates[1].append((OUTPUT_TOKENS - 1) / (at["step-end"][-1] - at["step-start"][0]) * 1e9)
    return [statistics.median(values) for values in rates]


def beside(how, threads, cores, neighbours_cores):
    """As `measure`, while another process does the same over and over."""
    with tempfile.TemporaryDirectory() as folder:
        neighbour = subprocess.Popen(
            pinned(neighbours_cores) + command(how, threads, 100_000, folder), cwd=folder,
            stdout=subprocess.DEVNULL)
        try:
            time.sleep(3)
            return measure(how, threads, cores)
        finally:
            neighbour.send_signal(signal.SIGKILL)
            neighbour.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--binary", default="target/release/disagg-bench")
    parser.add_argument("--rounds", type=int, default=3)
    how = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    first, second = cores[:half], cores[half:]
    ways = {
        f"alone, {len(cores)} threads": lambda: measure(how, len(cores), None),
        f"alone, {half} thread(s)": lambda: measure(how, half, first),
        f"two nodes, {len(cores)} threads each": lambda: beside(how, len(cores), None, None),
        f"two nodes, {half} thread(s) each": lambda: beside(how, half, None, None),
        f"two nodes, {half} thread(s) each on cores of its own":
            lambda: beside(how, half, first, second),
    }
    rates = {way: [] for way in ways}
    for _ in range(how.rounds):
        for way, run in ways.items():
            rates[way].append(run())
    print(f"| one of | prefill of {PROMPT_TOKENS}, tokens/s | decode behind it, tokens/s |\n|---|---|---|")
    for way, rounds in rates.items():
        cells = []
        for values in zip(*rounds):
            low, middle, high = min(values), statistics.median(values), max(values)
            cells.append(f"{middle:.1f} ({low:.1f} to {high:.1f})")
        print(f"| {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
