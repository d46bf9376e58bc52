#!/usr/bin/env bash
# Scores the projection: for each rate a run over loopback and, over a shaped link (links.sh), a sweep
# without a model and the same run; then what `project` says from the first two about the third.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: score.sh --binary FILE --model FILE --out FOLDER [options] [-- OPTIONS OF split]

  --binary FILE          the built disagg-bench
  --model FILE           a GGUF file (both nodes)
  --out FOLDER           gets loopback-RATE and RATEgbps for each rate; what is there stays
  --rates LIST           Gbit/s of each direction       [0.1,0.25,1,10,25]
  --threads N            compute threads of each node   [1]
  --prompt-tokens LIST   prompt lengths                 [128,384]
  --output-tokens N      tokens of each answer          [4]
  --repeats N            measured requests of each arm  [10]
  --sweep SIZES          sizes that the link is fitted on [256KiB to 64MiB, doubling]

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
rates=0.1,0.25,1,10,25 threads=1 prompt_tokens=128,384 output_tokens=4 repeats=10
sweep_sizes=256KiB,512KiB,1MiB,2MiB,4MiB,8MiB,16MiB,32MiB,64MiB
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    --*) [ $# -ge 2 ] || refuse "got $1 without a value: see --help" ;;&
    --binary) binary=$2 ;;
    --model) model=$2 ;;
    --out) out=$2 ;;
    --rates) rates=$2 ;;
    --threads) threads=$2 ;;
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
binary=$(realpath "$binary") model=$(realpath "$model")
mkdir -p "$out"
cd "$out"
# Runs record their command line, which must not name folders of this machine.
model_name=$(basename "$model")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
ln -s "$binary" "$scratch/disagg-bench"
ln -s "$model" "$scratch/$model_name"

for rate in ${rates//,/ }; do
  if [ ! -e "loopback-$rate" ]; then
    ln -sfn "$PWD" "$scratch/measured"
    (cd "$scratch" && ./disagg-bench split --quiet --model "$model_name" --offline \
      --threads "$threads" --transfer bulk,layered --prompt-tokens "$prompt_tokens" \
      --output-tokens "$output_tokens" --repeats "$repeats" --out "measured/loopback-$rate" "$@") \
      >"loopback-$rate.txt"
  fi
  if [ ! -e "${rate}gbps" ]; then
    "$here/links.sh" --binary "$binary" --model "$model" --out . --rates "$rate" \
      --threads "$threads" \
      --prompt-tokens "$prompt_tokens" --output-tokens "$output_tokens" --repeats "$repeats" \
      --iperf3-seconds 2 --sweep "$sweep_sizes" -- "$@" >/dev/null
  fi
done
for rate in ${rates//,/ }; do
  run=${rate}gbps/run
  printf '\n== %s Gbit/s, from loopback and a fit of the link\n' "$rate"
  "$binary" project "loopback-$rate" --link-fit "${rate}gbps/link.json" --against "$run" || true
  printf '\n== %s Gbit/s, from loopback and the rate alone\n' "$rate"
  "$binary" project "loopback-$rate" --gbps "$rate" --against "$run" || true
done
