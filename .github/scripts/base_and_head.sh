#!/usr/bin/env bash
# Builds the revision BASE and this one, and measures both right after each other on this machine,
# into OUT/base and OUT/head: the only pair on a rented machine that a gate can judge.
#   base_and_head.sh BASE OUT
set -euo pipefail
base=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
root=$(git rev-parse --show-toplevel)
cd "$root"

scratch=$(mktemp -d)
cleanup() {
  git worktree remove --force "$scratch/tree" || true
  rm -rf "$scratch"
}
trap cleanup EXIT
git worktree add --detach "$scratch/tree" "$base"

# One target folder, so that dependencies are built once; each build replaces the other's binary.
export CARGO_TARGET_DIR="$root/target"
(cd "$scratch/tree" && cargo build --release --locked)
cp target/release/disagg-bench "$scratch/base"
cargo build --release --locked
cp target/release/disagg-bench "$scratch/head"

# Away from the checkout, whose baseline_metrics.json would stand in for an arm.
cd "$scratch"
for which in base head; do
  "./$which" split --repeats 10 --out "$out/$which"
done
