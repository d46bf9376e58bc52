#!/usr/bin/env bash
# Instructions of a fixed prefill and a fixed decode step, one thread, counted by callgrind.
#
#   benches/instruction_counts.sh            compares with benches/instruction_counts.tsv, fails
#                                            (code 6) where a count has grown by more than 2%
#   benches/instruction_counts.sh --record   writes that file anew
#
# Counts are the same on an idle machine and a busy one. Valgrind knows AVX2 and nothing wider, so
# what is counted is the code for such machines. The default model's rows need it in the model
# cache; without it they are left out. Another compiler may count otherwise: the file names its own.
set -euo pipefail
cd "$(dirname "$0")/.."

record=benches/instruction_counts.tsv
percent=2
case ${1:-} in
  "" | --record) ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
command -v valgrind >/dev/null || { echo "got no valgrind: install the package valgrind" >&2; exit 2; }

bench=$(cargo bench --locked --bench instruction_counts --no-run --message-format=json |
  sed -n 's/.*"executable":"\([^"]*instruction_counts[^"]*\)".*/\1/p')
models=(tiny)
if "$bench" smollm2-135m find 2>/dev/null; then models+=(smollm2-135m); fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
rustc=$(rustc --version | cut -d' ' -f2)
{
  printf '# rustc %s, %s\n' "$rustc" "$(valgrind --version)"
  printf 'model\tphase\tinstructions\n'
  for model in "${models[@]}"; do
    for phase in prefill step; do
      RAYON_NUM_THREADS=1 CANDLE_NUM_THREADS=1 valgrind --tool=callgrind --collect-atstart=no \
        --toggle-collect='*::counted' --callgrind-out-file="$scratch/callgrind" \
        "$bench" "$model" "$phase" 2>"$scratch/log" || { cat "$scratch/log" >&2; exit 1; }
      count=$(sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$scratch/log")
      [ "${count:-0}" -gt 0 ] || { echo "callgrind counted nothing in $model $phase" >&2; exit 1; }
      printf '%s\t%s\t%s\n' "$model" "$phase" "$count"
    done
  done
} >"$scratch/counts"

if [ "${1:-}" = --record ]; then
  cp "$scratch/counts" "$record"
  cat "$record"
  exit
fi
head -n 1 "$scratch/counts" | diff - <(head -n 1 "$record") >/dev/null ||
  echo "recorded with $(head -n 1 "$record"), counted with $(head -n 1 "$scratch/counts")"
awk -F'\t' -v percent="$percent" '
  /^#/ || $1 == "model" { next }
  NR == FNR { recorded[$1, $2] = $3; next }
  !(($1, $2) in recorded) { printf "%s %s: %d, nothing recorded\n", $1, $2, $3; worse = 1; next }
  {
    change = ($3 / recorded[$1, $2] - 1) * 100
    printf "%s %s: %d, recorded %d (%+.2f%%)\n", $1, $2, $3, recorded[$1, $2], change
    if (change > percent) worse = 1
  }
  END { exit worse ? 6 : 0 }' "$record" "$scratch/counts"
