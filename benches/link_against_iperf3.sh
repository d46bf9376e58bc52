#!/usr/bin/env bash
# `link` against iperf3 on loopback, in one run: the same congestion control, both ends pinned to
# different cores, in turns, several rounds, as ratios of each round with their spread.
#
#   benches/link_against_iperf3.sh [--rounds 5] [--streams 1,2,4] [--size 64MiB] [--cores 0,1]
#
# iperf3 always uses one connection, the rate of a plain copy from a buffer that stays in cache; ours
# reads a cache from memory, checksums it on both ends and waits for every acknowledgement.
# Needs Linux, iperf3, taskset, Python 3 and an idle machine. Other links: tests/two_hosts/links.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=5 streams=1,2,4 size=64MiB cores=0,1 control=reno
while [ $# -gt 0 ]; do
  case $1 in
    --*) [ $# -ge 2 ] || { echo "got $1 without a value" >&2; exit 2; } ;;&
    --rounds) rounds=$2 ;;
    --streams) streams=$2 ;;
    --size) size=$2 ;;
    --cores) cores=$2 ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
for program in iperf3 taskset python3; do
  command -v "$program" >/dev/null || { echo "got no $program: install it" >&2; exit 2; }
done
cargo build --release --locked
program=target/release/disagg-bench
receiving=${cores%,*} sending=${cores#*,}
folder=$(mktemp -d)
started=()
end() {
  for id in "${started[@]}"; do kill "$id" 2>/dev/null || true; wait "$id" 2>/dev/null || true; done
  rm -rf "$folder"
}
trap end EXIT
trap 'exit 130' INT TERM

taskset -c "$receiving" "$program" serve-decode --link-only --listen 127.0.0.1:0 \
  --congestion-control "$control" >"$folder/node.txt" 2>&1 &
started+=($!)
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
taskset -c "$receiving" iperf3 -s -B 127.0.0.1 -p "$port" --forceflush >"$folder/server.txt" 2>&1 &
started+=($!)
until grep -q '^listening on' "$folder/node.txt" && grep -q 'Server listening' "$folder/server.txt"; do
  kill -0 "${started[0]}" && kill -0 "${started[1]}" || { cat "$folder"/*.txt >&2; exit 1; }
  sleep 0.1
done
address=$(sed -n 's/^listening on //p' "$folder/node.txt")

load() { cut -d ' ' -f 1 /proc/loadavg; }
loads=$(load)
for ((round = 0; round < rounds; round++)); do
  taskset -c "$sending" iperf3 -c 127.0.0.1 -p "$port" -t 2 -O 1 -C "$control" -J \
    >"$folder/iperf3-$round.json"
  taskset -c "$sending" "$program" link --peer "$address" --sizes "$size" --streams "$streams" \
    --piece-sizes 256KiB,1MiB --idle-seconds 0 --congestion-control "$control" --quiet \
    --format json --output "$folder/link-$round.json"
  loads="$loads, $(load)"
done

python3 - "$folder" "$rounds" "$loads" <<'END'
import json
import pathlib
import statistics
import sys

folder, rounds, loads = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
iperf3, ours = [], {}
for i in range(rounds):
    end = json.loads((folder / f"iperf3-{i}.json").read_text())["end"]
    iperf3.append(end["sum_received"]["bits_per_second"] / 1e9)
    sweep = json.loads((folder / f"link-{i}.json").read_text())
    for row in sweep["rows"]:
        way = (row["streams"], row["pieces"], row["bytes"])
        ours.setdefault(way, []).append(row["gbps"]["median"])


def spread(values, digits):
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


print(f"load average before the first round and after each: {loads}")
print(f"iperf3, one connection, {sweep['socket']['congestion_control']}: {spread(iperf3, 1)} Gbps")
print("medians of rounds (smallest to largest); each round of ours is a median of warm transfers\n")
print("| bytes | streams | pieces | Gbps | over iperf3 |")
print("|---|---|---|---|---|")
for (streams, pieces, size), gbps in ours.items():
    ratios = [a / b for a, b in zip(gbps, iperf3)]
    print(f"| {size} | {streams} | {pieces} | {spread(gbps, 1)} | {spread(ratios, 2)} |")
END
