#!/usr/bin/env bash
# The engine against llama.cpp and torch, in one run: the same GGUF file, the same threads, in
# turns, several rounds, as ratios of each round with their spread.
#
#   benches/engine_against_peers.sh --model FILE [--peers FOLDER] [--threads 1,2] [--rounds 3]
#                                   [--repeats 3] [--flash off,on] [--run-with "nice -n -19"]
#
# --flash says how llama.cpp computes attention; --run-with goes before every measured program.
#
# Makes its peers once, in FOLDER (target/peers): a virtual environment with torch and transformers,
# and llama.cpp, whose source the package llama-cpp-python holds, built with the instruction sets of
# this machine but AMX (build "avx512" or "avx2"), and with AMX where the processor has it ("amx").
# Needs Python 3 with pip and venv, a C++ compiler, and an idle machine.
set -euo pipefail
cd "$(dirname "$0")/.."

model="" peers=target/peers threads=1,2 rounds=3 repeats=3 flash=off,on run_with=
while [ $# -gt 0 ]; do
  case $1 in
    --*) [ $# -ge 2 ] || { echo "got $1 without a value" >&2; exit 2; } ;;&
    --model) model=$2 ;;
    --peers) peers=$2 ;;
    --threads) threads=$2 ;;
    --rounds) rounds=$2 ;;
    --repeats) repeats=$2 ;;
    --flash) flash=$2 ;;
    --run-with) run_with=$2 ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
[ -f "$model" ] || { echo "got no model at \"$model\": give a GGUF file with --model" >&2; exit 2; }

mkdir -p "$peers"
peers=$(realpath "$peers") model=$(realpath "$model")
python=$peers/venv/bin/python
if ! "$python" -c 'import torch, transformers, gguf, cmake' 2>/dev/null; then
  python3 -m venv "$peers/venv"
  "$peers/venv/bin/pip" install --quiet --only-binary :all: \
    torch transformers gguf accelerate cmake ninja scikit-build-core
fi
export PATH=$peers/venv/bin:$PATH

source=$(ls -d "$peers"/llama_cpp_python-*/vendor/llama.cpp 2>/dev/null || true)
if [ -z "$source" ]; then
  # Without isolation pip does not build cmake itself from source.
  (cd "$peers" && pip download --quiet --no-deps --no-build-isolation \
    --no-binary llama-cpp-python llama-cpp-python && tar xzf llama_cpp_python-*.tar.gz)
  source=$(ls -d "$peers"/llama_cpp_python-*/vendor/llama.cpp)
fi

has() { grep -qw "$1" /proc/cpuinfo; }

# build NAME FLAG…: llama-bench and llama-perplexity under $peers/NAME.
build() {
  local name=$1
  shift
  [ -x "$peers/$name/bin/llama-perplexity" ] && return
  cmake -S "$source" -B "$peers/$name" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_OPENMP=OFF \
    -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON \
    -DGGML_F16C=ON -DGGML_BMI2=ON "$@" >"$peers/$name.log" 2>&1 &&
    ninja -C "$peers/$name" llama-bench llama-perplexity >>"$peers/$name.log" 2>&1 ||
    { tail -n 20 "$peers/$name.log" >&2; exit 1; }
}

builds=()
if has avx512f; then
  wide=(-DGGML_AVX512=ON)
  if has avx512_vnni; then wide+=(-DGGML_AVX512_VNNI=ON); fi
  if has avx512_vbmi; then wide+=(-DGGML_AVX512_VBMI=ON); fi
  if has avx512_bf16; then wide+=(-DGGML_AVX512_BF16=ON); fi
  build avx512 "${wide[@]}"
  builds+=("avx512=$peers/avx512/bin")
  if has amx_int8; then
    build amx "${wide[@]}" -DGGML_AMX_TILE=ON -DGGML_AMX_INT8=ON
    builds+=("amx=$peers/amx/bin")
  fi
else
  build avx2
  builds+=("avx2=$peers/avx2/bin")
fi

cargo build --release --locked
exec "$python" benches/engine_against_peers.py --model "$model" --threads "$threads" \
  --rounds "$rounds" --repeats "$repeats" --flash "$flash" --run-with "$run_with" --binary target/release/disagg-bench "${builds[@]}"
