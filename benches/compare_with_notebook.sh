#!/bin/sh
# The notebook's way of a KV cache against ours, in one run: both in turn, three rounds, and how
# many times faster ours is, with its spread over the rounds.
#
#   PYTHON=python3 benches/compare_with_notebook.sh
#
# PYTHON is an interpreter with numpy and, for the notebook's own way, torch. The notebook is
# measured as it is and once more with the congestion control that ours chooses on loopback. The
# raw lines go to stderr, the table to stdout.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
trap 'exit 130' INT TERM

# Run without cargo, so that nothing is built between the rounds.
whole_way=$(cargo bench --no-run --bench whole_way 2>&1 |
    sed -n 's/.*whole_way\.rs (\(.*\))$/\1/p')
if [ -z "$whole_way" ]; then
    echo "whole_way was not built: see what cargo bench --no-run --bench whole_way says" >&2
    exit 1
fi

load() { cut -d ' ' -f 1 /proc/loadavg 2>/dev/null || echo unknown; }
loads=$(load)
for _ in 1 2 3; do
    {
        "$python" benches/notebook_pickle.py
        "$whole_way" --bench
        "$python" benches/notebook_pickle.py --congestion-control reno
    } >>"$lines"
    loads="$loads, $(load)"
done
cat "$lines" >&2

"$python" - "$lines" "$loads" <<'END'
import json
import statistics
import sys

with open(sys.argv[1]) as file:
    rows = [json.loads(line) for line in file]
medians = {}
for row in rows:
    way = (row["way"], row["connection"], row["congestion_control"])
    medians.setdefault(row["payload"], {}).setdefault(way, []).append(row["whole_ms"]["median"])


def spread(values, digits):
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


implementations = sorted({row["implementation"] for row in rows})
print(f"{'; '.join(implementations)}")
print(f"load average before the first round and after each: {sys.argv[2]}")
print("median of the rounds (smallest to largest); each round is a median of",
      f"{rows[0]['whole_ms']['n']} transfers\n")
print("| cache | notebook, congestion control | ms | ours, connection | ms | times faster |")
print("|---|---|---|---|---|---|")
for payload, ways in medians.items():
    for (theirs, _, control), their_ms in ways.items():
        if theirs != "notebook":
            continue
        for (ours, connection, _), our_ms in ways.items():
            if ours == "notebook":
                continue
            # Both are in rounds; where a system's own control is reno there are twice as many.
            ratios = [a / b for a, b in zip(their_ms, our_ms * (len(their_ms) // len(our_ms)))]
            print(f"| {payload} | {control} | {spread(their_ms, 1)} | {connection} |",
                  f"{spread(our_ms, 2)} | {spread(ratios, 1)} |")
END
