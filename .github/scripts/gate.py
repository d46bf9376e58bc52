#!/usr/bin/env python3
"""Holds a run against an earlier one with `disagg-bench compare`, as Markdown on stdout.

    gate.py OLD NEW DISAGG_BENCH [--fail-on 'ARM.FIGURE>CHANGE']...

OLD and NEW are folders with a run.json. --fail-on is passed on only if the same machine made both
runs. Otherwise the comparison is informative: on another processor times differ by what they may
ever differ by, and on another virtual machine of the same type by what its neighbours take, so
that a gate would judge the machines and not the change. So are runs of unlike experiments, where
prompts or settings were changed.

Exits with the code of `compare` (6: a gate is broken), and with 0 where nothing could be judged.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

# What `compare` says, with its code for settings, where the runs have nothing in common.
UNLIKE = "unlike experiments"
CODE_OF_SETTINGS = 3


def machine(folder):
    """What must be equal for times to be comparable, by the words for it."""
    prefill = json.loads((folder / "run.json").read_text())["environment"]["prefill"]
    host, processor = prefill["host"], prefill["processor"]
    return {
        "machine": f"{host['hostname']} ({host['machine_id']})",
        "processor": processor["model"],
        "instruction set": processor["instruction_set"],
        "usable cores": processor["usable_cores"],
        "memory": host["memory_bytes"],
    }


def differences(old, new):
    """Why the machines are not the same one; empty where they are."""
    return [f"{what} {old[what]} then, {new[what]} now" for what in old if old[what] != new[what]]


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("disagg_bench")
    parser.add_argument("--fail-on", action="append", default=[])
    args = parser.parse_args()

    unlike = differences(machine(args.old), machine(args.new))
    gates = [] if unlike else args.fail_on
    command = [args.disagg_bench, "compare", args.old, args.new, "--format", "md"]
    command += [word for gate in gates for word in ("--fail-on", gate)]
    compared = subprocess.run(command, capture_output=True, text=True)

    print(f"## Against {args.old}\n")
    if gates:
        print(f"Gate on the same machine: {', '.join(f'`{gate}`' for gate in gates)}.\n")
    elif args.fail_on:
        print(f"Informative only, no gate: {'; '.join(unlike)}.\n")
    print(compared.stdout)
    sys.stderr.write(compared.stderr)
    if compared.returncode == CODE_OF_SETTINGS and UNLIKE in compared.stderr:
        print(f"Not compared: {compared.stderr.strip()}\n")
        sys.exit(0)
    if compared.returncode != 0:
        print(f"**{compared.stderr.strip()}**\n")
    sys.exit(compared.returncode)


if __name__ == "__main__":
    main()
