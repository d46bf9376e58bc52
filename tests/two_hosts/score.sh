#!/usr/bin/env bash
# Scores the projection: at each rate and for each mode a run over loopback and, over a shaped link
# (links.sh), a sweep without a model and the same run; then what `project` says from the first two
# about the third.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: score.sh --binary FILE --model FILE --out FOLDER [options] [-- OPTIONS OF split]

  --binary FILE          the built disagg-bench
  --model FILE           a GGUF file, or dummy:FILE of a config.json (both nodes)
  --out FOLDER           gets bulk and layered, each with loopback-RATE and RATEgbps for each rate;
                         what is there stays
  --rates LIST           Gbit/s of each direction       [0.1,0.25,1,10,25]
  --prompt-tokens LIST   prompt lengths                 [20,44]
  --output-tokens N      tokens of each answer          [2]
  --repeats N            measured requests of each arm  [20]
  --sweep SIZES          sizes that the link is fitted on [256KiB to 128MiB, doubling]

Two cores stand for two machines: one thread computes on each node, and no two threads share a core
that on two machines would work at once, as far as two cores go. In bulk these are both ends of the
link; layered, compute and what sends behind it, and both ends share the other core.

Loopback and link are measured one after the other at each rate, since a machine's speed drifts. With
a folder that has all rates already, only the tables are made. Needs what links.sh needs.
USAGE
}

refuse() {
  printf 'score.sh: %s\n' "$*" >&2
  exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary="" model="" out=""
rates=0.1,0.25,1,10,25 prompt_tokens=20,44 output_tokens=2 repeats=20
sweep_sizes=256KiB,512KiB,1MiB,2MiB,4MiB,8MiB,16MiB,32MiB,64MiB,128MiB
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    --*) [ $# -ge 2 ] || refuse "got $1 without a value: see --help" ;;&
    --binary) binary=$2 ;;
    --model) model=$2 ;;
    --out) out=$2 ;;
    --rates) rates=$2 ;;
    --prompt-tokens) prompt_tokens=$2 ;;
    --output-tokens) output_tokens=$2 ;;
    --repeats) repeats=$2 ;;
    --sweep) sweep_sizes=$2 ;;
    *) refuse "got $1, wanted an option: see --help" ;;
  esac
  shift 2
done
if [ -z "$binary" ] || [ -z "$model" ] || [ -z "$out" ]; then
  usage >&2
  refuse "wanted --binary, --model and --out"
fi
# What `dummy:` is given is a file too.
kind=""
[[ $model != dummy:* ]] || kind=dummy:
model=${model#dummy:}
[ -f "$model" ] || refuse "got no file at $model: give a GGUF file, or dummy:FILE of a config.json"
binary=$(realpath "$binary") model=$(realpath "$model")
mkdir -p "$out"
cd "$out"
# No core sleeps meanwhile, over loopback as in links.sh.
if [ -w /dev/cpu_dma_latency ]; then
  exec {awake}<>/dev/cpu_dma_latency
  printf '\0\0\0\0' >&"$awake"
else
  printf 'score.sh: /dev/cpu_dma_latency cannot be written: idle cores may sleep, and small transfers scatter\n' >&2
fi
# Runs record their command line, which must not name folders of this machine.
model_name=$kind$(basename "$model")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
ln -s "$binary" "$scratch/disagg-bench"
ln -s "$model" "$scratch/${model##*/}"

# measure RATE MODE APART CORES…: over loopback with these cores, and over the link.
measure() {
  local rate=$1 mode=$2 apart=$3
  shift 3
  mkdir -p "$mode"
  if [ ! -e "$mode/loopback-$rate" ]; then
    ln -sfn "$PWD/$mode" "$scratch/measured"
    (cd "$scratch" && ./disagg-bench split --quiet --model "$model_name" --offline --threads 1 \
      --transfer "$mode" --prompt-tokens "$prompt_tokens" --output-tokens "$output_tokens" \
      --repeats "$repeats" --out "measured/loopback-$rate" "$@" \
      ${split_options[@]+"${split_options[@]}"}) >"$mode/loopback-$rate.txt"
  fi
  if [ ! -e "$mode/${rate}gbps" ]; then
    "$here/links.sh" --binary "$binary" --model "$kind$model" --out "$mode" --rates "$rate" \
      --threads 1 --transfer "$mode" --apart "$apart" --prompt-tokens "$prompt_tokens" \
      --output-tokens "$output_tokens" --repeats "$repeats" --iperf3-seconds 2 \
      --sweep "$sweep_sizes" -- ${split_options[@]+"${split_options[@]}"} >/dev/null
  fi
}

# All changes of both modes at one rate, from what `project` wrote of each.
both_modes() {
  python3 - "$@" <<'PY'
import json, sys

rows = [row for path in sys.argv[1:] for row in json.load(open(path))["scores"]]
changes = [row[event] for row in rows for event in ("ttst", "e2e") if row[event]]
error = lambda said: sum(abs(change[said] - change["measured_ms"]) for change in changes)
share = error("predicted_ms") / error("without_transfer_ms")
# The bar of src/projection/score.rs.
holds = lambda c: abs(c["predicted_ms"] - c["measured_ms"]) <= max(1.0, 0.1 * abs(c["measured_ms"]))
print(f"\nbulk and layered: {sum(map(holds, changes))} of {len(changes)} changes hold; errors of all are "
      f"{share:.2f} of those of predicting no transfer at all")
PY
}

split_options=("$@")
refused=0
for rate in ${rates//,/ }; do
  measure "$rate" bulk ends --network-cores 0
  measure "$rate" layered compute --cores 0 --network-cores 1 --decode-cores 1
done
for rate in ${rates//,/ }; do
  for mode in bulk layered; do
    printf '\n== %s Gbit/s, %s, from loopback and a fit of the link\n' "$rate" "$mode"
    project=("$binary" project "$mode/loopback-$rate" --link-fit "$mode/${rate}gbps/link.json"
      --against "$mode/${rate}gbps/run")
    if ! "${project[@]}"; then
      refused=1 # and why was said
      continue 2
    fi
    "${project[@]}" --format json >"$scratch/$mode.json"
  done
  both_modes "$scratch/bulk.json" "$scratch/layered.json"
done
exit "$refused"
