#!/usr/bin/env python3
"""Turns a run's summary.json into the input of github-action-benchmark: one file of figures that
should fall (`tool: customSmallerIsBetter`), one of figures that should rise
(`tool: customBiggerIsBetter`).

    action_benchmark.py SUMMARY OUT_FOLDER

A run that is not complete, or whose outputs differ, is refused: its times answer nothing.
"""

import json
import sys
from pathlib import Path

# Figure of summary.json -> unit.
SMALLER_IS_BETTER = {
    "ttft_ms": "ms",
    "ttst_ms": "ms",
    "tpot_ms": "ms",
    "e2e_ms": "ms",
    "exposed_transfer_ms": "ms",
    "handoff_ms": "ms",
    "transfer_overhead_pct": "%",
}
BIGGER_IS_BETTER = {"tokens_per_s": "tokens/s", "effective_gbps": "Gbps"}


def arm_name(arm):
    """The arm with all that tells it from others, the same from run to run."""
    if arm["transfer"] is None:
        return f"{arm['arm']}@{arm['node']}"
    name = f"{arm['arm']} {arm['transfer']} x{arm['streams']}"
    return name if arm["wire_dtype"] == arm["kv_dtype"] else f"{name} {arm['wire_dtype']}"


def spread(figure):
    """The interval of the median where there is one, else the range of the samples."""
    low, high = figure.get("ci_low"), figure.get("ci_high")
    if low is not None and high is not None:
        return f"95%: {low:.4g} to {high:.4g}"
    return f"samples: {figure['min']:.4g} to {figure['max']:.4g}"


def rows(summary, units):
    """One entry for every case, arm and figure that has a value."""
    return [
        {
            "name": f"{case['prompt_tokens']} prompt tokens, {arm_name(arm)}: {figure}",
            "unit": unit,
            "value": arm[figure]["median"],
            "range": spread(arm[figure]),
            "extra": f"median of {arm[figure]['n']}, revision {summary['git_revision']}",
        }
        for case in summary["cases"]
        for arm in case["arms"]
        for figure, unit in units.items()
        if arm.get(figure) is not None
    ]


def convert(summary):
    """Contents of both files by their names."""
    if summary["status"] != "complete" or summary["outputs"] == "differ":
        raise ValueError(
            f"the run is {summary['status']} with outputs {summary['outputs']}: "
            "only a complete run whose outputs agree belongs into a history"
        )
    return {
        "smaller-is-better.json": rows(summary, SMALLER_IS_BETTER),
        "bigger-is-better.json": rows(summary, BIGGER_IS_BETTER),
    }


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    summary, folder = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        files = convert(json.loads(summary.read_text()))
    except ValueError as error:
        sys.exit(f"{summary}: {error}")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
