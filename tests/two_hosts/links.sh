#!/usr/bin/env bash
# Two hosts on one machine: two network namespaces joined by a shaped link, `serve-decode` in one and
# `split --peer` in the other, at each rate asked for. Every link is measured with iperf3 first, and
# every folder it writes says that the link was emulated. Touches nothing outside its namespaces.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: links.sh --binary FILE --model FILE --out FOLDER [options] [-- OPTIONS OF split]

  --binary FILE          the built disagg-bench
  --model FILE           a GGUF file, or dummy:FILE of a config.json (both nodes)
  --out FOLDER           gets a folder for each link; none of them may exist
  --rates LIST           Gbit/s of each direction       [0.1,0.25,1,10,25]
  --round-trip-ms LIST   0: a veth pair shaped by tbf; above 0: tun_bridge.py [0]
  --streams LIST         connections of a transfer, and of iperf3 [1]
  --prompt-tokens LIST   prompt lengths                 [1024]
  --repeats N            measured requests of each arm  [5]
  --output-tokens N      tokens of each answer          [8]
  --iperf3-seconds N     length of each measurement     [4]
  --mtu BYTES            of the veth pair               [9000]
  --threads N            compute threads of each node   [the usable cores]
  --transfer LIST        when the cache leaves: bulk, layered [bulk,layered]
  --apart WHAT           what keeps a core of its own, of cores 0 and 1: [ends]
                         ends: each end of the link, since the scheduler left alone often puts both
                         on one; compute: the prefill node's compute (one thread), since layers are
                         sent behind it, and both ends on the other
  --sweep SIZES          before the run, `link` over the same link, kept as link.json

The two hosts share this machine's cores, two machines do not. iperf3 and the sweep run on the cores
that the ends of the link have.

Needs root, Linux, iproute2, iperf3 and Python 3. Everything it makes goes when it ends.

  sudo tests/two_hosts/links.sh --binary target/release/disagg-bench \
    --model ~/.cache/disagg-bench/models/SmolLM2-135M-Instruct.Q4_1.gguf --out emulated
  sudo tests/two_hosts/links.sh … --rates 10 --round-trip-ms 10 --streams 1,8
  sudo tests/two_hosts/links.sh … --rates 1 --repeats 3 --threads 1
USAGE
}

refuse() {
  printf 'links.sh: %s\n' "$*" >&2
  exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary="" model="" out=""
rates=0.1,0.25,1,10,25 round_trips_ms=0 all_streams=1
prompt_tokens=1024 repeats=5 output_tokens=8 iperf3_s=4 mtu_bytes=9000 sweep_sizes="" threads=()
transfers=bulk,layered apart=ends
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    --*) [ $# -ge 2 ] || refuse "got $1 without a value: see --help" ;;&
    --binary) binary=$2 ;;
    --model) model=$2 ;;
    --out) out=$2 ;;
    --rates) rates=$2 ;;
    --round-trip-ms) round_trips_ms=$2 ;;
    --streams) all_streams=$2 ;;
    --prompt-tokens) prompt_tokens=$2 ;;
    --repeats) repeats=$2 ;;
    --output-tokens) output_tokens=$2 ;;
    --iperf3-seconds) iperf3_s=$2 ;;
    --mtu) mtu_bytes=$2 ;;
    --threads) threads=(--threads "$2") ;;
    --transfer) transfers=$2 ;;
    --apart) apart=$2 ;;
    --sweep) sweep_sizes=$2 ;;
    *) refuse "got $1, wanted an option: see --help" ;;
  esac
  shift 2
done
split_options=("$@")

if [ -z "$binary" ] || [ -z "$model" ] || [ -z "$out" ]; then
  usage >&2
  refuse "wanted --binary, --model and --out"
fi
case $apart in ends | compute) ;; *) refuse "got --apart $apart, wanted ends or compute" ;; esac
[ "$(id -u)" -eq 0 ] || refuse "got user $(id -un), wanted root, which may make namespaces: use sudo"
for program in ip:iproute2 tc:iproute2 iperf3:iperf3 python3:python3; do
  command -v "${program%%:*}" >/dev/null ||
    refuse "got no ${program%%:*} on this machine: install the package ${program##*:}"
done
[ -x "$binary" ] || refuse "got no program at $binary: cargo build --release, then --binary"
# What `dummy:` is given is a file too.
kind=""
[[ $model != dummy:* ]] || kind=dummy:
model=${model#dummy:}
[ -f "$model" ] || refuse "got no file at $model: give a GGUF file, or dummy:FILE of a config.json"
binary=$(realpath "$binary") model=$(realpath "$model")
mkdir -p "$out"
out=$(realpath "$out")

# Cores of each host's end of the link, and of all of a node where its compute is kept apart.
prefill_end=() decode_end=() prefill_iperf3_end=() decode_iperf3_end=() prefill_node=() decode_node=()
if [ "$(nproc)" -ge 2 ]; then
  end_core=0
  if [ "$apart" = compute ]; then
    end_core=1 prefill_node=(--cores 0) decode_node=(--cores 1)
  fi
  prefill_end=(--network-cores "$end_core") decode_end=(--network-cores 1)
  prefill_iperf3_end=(-A "$end_core") decode_iperf3_end=(-A 1)
fi

# A core of a virtual machine that has slept may need 0.4 ms to wake, which is what 1 MB takes at
# 25 Gbit/s; while this file is open with a 0 in it, none sleeps (Linux, power management QoS).
idle_text="as this machine leaves them"
if [ -w /dev/cpu_dma_latency ]; then
  exec {awake}<>/dev/cpu_dma_latency
  printf '\0\0\0\0' >&"$awake"
  idle_text="kept awake by a 0 in /dev/cpu_dma_latency"
fi

prefill=disagg-prefill-$$ decode=disagg-decode-$$
prefill_address=10.99.0.1 decode_address=10.99.0.2
scratch=$(mktemp -d)
started=()

# Ends what this script started, by its id, newest first.
end_started() {
  local i
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    kill "${started[i]}" 2>/dev/null || true
    wait "${started[i]}" 2>/dev/null || true
  done
  started=()
}

# The veth pair goes with its namespaces; deleting what was never made is no error here.
unlink_hosts() {
  end_started
  ip netns delete "$prefill" 2>/dev/null || true
  ip netns delete "$decode" 2>/dev/null || true
}

on_exit() {
  local code=$?
  trap - EXIT INT TERM
  unlink_hosts
  rm -rf "$scratch"
  exit "$code"
}
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# wait_for TEXT FILE PID: until the file holds the text.
wait_for() {
  local tries
  for ((tries = 0; tries < 1200; tries++)); do
    grep -q "$1" "$2" 2>/dev/null && return
    kill -0 "$3" 2>/dev/null || break
    sleep 0.1
  done
  printf 'links.sh: no "%s" came:\n' "$1" >&2
  cat "$2" >&2
  return 1
}

# await_in_prefill STDOUT STDERR COMMAND…: in the background and waited for, since a signal is answered
# at once only while bash waits.
await_in_prefill() {
  local output=$1 errors=$2
  shift 2
  ip netns exec "$prefill" "$@" >"$output" 2>"$errors" &
  started+=($!)
  wait $! && return
  printf 'links.sh: failed: %s\n' "$*" >&2
  tail -n 20 "$output" "$errors" >&2
  return 1
}

# Bytes that tbf may send at once, which every transfer gains: two of the 64 KiB segments that a socket
# hands over whole. At 25 Gbit/s that is 0.04 ms, and iperf3 comes as near the rate as with five times
# as much.
burst_bytes=131072

# Two namespaces, the same congestion control in both.
make_hosts() {
  local host
  for host in "$prefill" "$decode"; do
    ip netns add "$host"
    ip -n "$host" link set lo up
    ip netns exec "$host" sysctl -qw net.ipv4.tcp_congestion_control=reno
  done
}

# veth_link RATE: sets `link_text`.
veth_link() {
  local host end
  ip link add vp$$ netns "$prefill" type veth peer name vd$$ netns "$decode"
  ip -n "$prefill" address add "$prefill_address/24" dev vp$$
  ip -n "$decode" address add "$decode_address/24" dev vd$$
  for end in "$prefill vp$$" "$decode vd$$"; do
    read -r host end <<<"$end"
    ip -n "$host" link set "$end" mtu "$mtu_bytes" up
    ip netns exec "$host" tc qdisc replace dev "$end" root \
      tbf rate "$1gbit" burst "$burst_bytes" latency 20ms
  done
  link_text="veth pair, MTU $mtu_bytes, each end: tc qdisc replace … root tbf rate ${1}gbit burst $burst_bytes latency 20ms"
}

# tun_link RATE ROUND_TRIP_MS: sets `link_text`.
tun_link() {
  local one_way_ms bridge
  one_way_ms=$(python3 -c 'import sys; print(float(sys.argv[1]) / 2)' "$2")
  bridge=(python3 "$here/tun_bridge.py" --netns "$prefill" "$decode"
    --addresses "$prefill_address/24" "$decode_address/24"
    --rate-gbps "$1" --one-way-ms "$one_way_ms")
  "${bridge[@]}" >"$scratch/bridge.txt" 2>&1 &
  started+=($!)
  wait_for ready "$scratch/bridge.txt" $!
  link_text="TUN devices, MTU 65500, joined by tun_bridge.py --rate-gbps $1 --one-way-ms $one_way_ms (queue 20 ms)"
}

# iperf3_to FILE STREAMS: prefill node to decode node, as the cache goes.
iperf3_to() {
  ip netns exec "$decode" iperf3 -s -1 --forceflush ${decode_iperf3_end[@]+"${decode_iperf3_end[@]}"} >"$scratch/iperf3-server.txt" 2>&1 &
  started+=($!)
  wait_for "Server listening" "$scratch/iperf3-server.txt" $!
  iperf3_command=(iperf3 -c "$decode_address" -t "$iperf3_s" -O 1 -P "$2" -C reno -J
    ${prefill_iperf3_end[@]+"${prefill_iperf3_end[@]}"})
  await_in_prefill "$1" "$scratch/iperf3-errors.txt" "${iperf3_command[@]}"
  rm "$scratch/iperf3-server.txt"
}

# serve_decode STDOUT OPTIONS…: the decode node, in the background and listening; sets `server`.
serve_decode() {
  local output=$1
  shift
  node=(./disagg-bench serve-decode --listen "$decode_address:5556" --token-file token.txt
    ${decode_end[@]+"${decode_end[@]}"} "$@")
  ip netns exec "$decode" "${node[@]}" >"$output" 2>&1 &
  server=$!
  started+=("$server")
  wait_for "$decode_address:5556" "$output" "$server"
}

# sweep FOLDER STREAMS: the link alone, without a model; sets `sweep_text`.
sweep() {
  serve_decode "$scratch/link-node.txt" --link-only
  sweep_command=(./disagg-bench link --peer "$decode_address:5556" --token-file token.txt
    --sizes "$sweep_sizes" --streams "$2" --piece-sizes 1MiB
    --idle-seconds 0.2 --idle-repeats 9 --format json -o measured/link.json
    ${prefill_end[@]+"${prefill_end[@]}"})
  await_in_prefill "$scratch/link.txt" "$scratch/link-errors.txt" "${sweep_command[@]}"
  kill "$server" && wait "$server" || true
  sweep_text="
- before the run, the link alone: \`${sweep_command[*]}\` (link.json)"
}

# measure FOLDER RATE ROUND_TRIP_MS STREAMS
measure() {
  local folder=$1 rate=$2 round_trip_ms=$3 streams=$4 server load node sweep_text=""
  make_hosts
  if [ "$round_trip_ms" = 0 ]; then veth_link "$rate"; else tun_link "$rate" "$round_trip_ms"; fi
  mkdir "$folder"
  iperf3_to "$folder/iperf3.json" "$streams"

  # Names without this machine's folders, since the record keeps the command line.
  ln -sfn "$folder" measured
  [ -z "$sweep_sizes" ] || sweep "$folder" "$streams"
  serve_decode "$folder/decode-node.txt" --model "$model_name" --offline \
    ${threads[@]+"${threads[@]}"} ${decode_node[@]+"${decode_node[@]}"}
  local run=(./disagg-bench split --peer "$decode_address:5556" --token-file token.txt
    --model "$model_name" --offline --transfer "$transfers" --streams "$streams"
    --prompt-tokens "$prompt_tokens" --output-tokens "$output_tokens" --repeats "$repeats"
    --out measured/run ${prefill_end[@]+"${prefill_end[@]}"} ${prefill_node[@]+"${prefill_node[@]}"}
    ${threads[@]+"${threads[@]}"} ${split_options[@]+"${split_options[@]}"})
  load=$(cut -d' ' -f1-3 /proc/loadavg)
  cat >"$folder/EMULATED.md" <<NOTE
# Emulated link

Measured over an emulated link: two network namespaces of one machine, which share its cores and
memory. Not a measurement of two machines.

- rate of each direction: $rate Gbit/s
- round trip added: $round_trip_ms ms
- link: $link_text
- congestion control: reno, iperf3 and program alike
- iperf3, before the run, prefill node to decode node: \`${iperf3_command[*]}\` (iperf3.json)$sweep_text
- decode node: \`${node[*]}\`
- prefill node: \`${run[*]}\`
- kernel $(uname -r), $(nproc) cores, load average before the run (1, 5, 15 min): $load
- idle cores: $idle_text
- made by tests/two_hosts/links.sh on $(date -u +%Y-%m-%dT%H:%M:%SZ)
NOTE
  await_in_prefill "$folder/split.txt" "$folder/prefill-node.txt" "${run[@]}"
  unlink_hosts
}

# One row an arm of `split` and prompt length, from the folders in the order given.
table() {
  python3 - "$@" <<'PY'
import json, pathlib, sys

HEAD = ("link", "tokens", "iperf3 Gbps", "bulk exposed ms", "wire/iperf3 ms", "ratio",
        "layered exposed ms", "layered at most ms", "layered/bulk", "bulk prefill ms",
        "layered prefill ms", "outputs")
rows = [HEAD]
for folder in map(pathlib.Path, sys.argv[1:]):
    measured = json.loads((folder / "iperf3.json").read_text())
    rate_bps = measured["end"]["sum_received"]["bits_per_second"]
    layers = json.loads((folder / "run/run.json").read_text())["model"]["n_layers"]
    for case in json.loads((folder / "run/summary.json").read_text())["cases"]:
        arms = {arm["transfer"]: arm for arm in case["arms"] if arm["arm"] == "split"}
        # None where a mode was not asked for or failed.
        median = lambda mode, figure: (arms.get(mode, {}).get(figure) or {}).get("median")
        bulk, layered = (median(m, "exposed_transfer_ms") for m in ("bulk", "layered"))
        bulk_prefill, layered_prefill = (median(m, "prefill_ms") for m in ("bulk", "layered"))
        wire_ms = max((arm["wire_bytes"] for arm in arms.values()), default=0) * 8 / rate_bps * 1e3
        ratio = bulk / wire_ms if bulk else None
        at_most = share = None
        if layered_prefill:
            behind_ms = layered_prefill * (layers - 1) / layers
            at_most = 1.15 * max(wire_ms / layers, wire_ms - behind_ms) + 0.5
        if bulk and layered is not None:
            share = layered / bulk
        number = lambda value, digits: "-" if value is None else f"{value:.{digits}f}"
        rows.append((
            folder.name, case["prompt_tokens"], number(rate_bps / 1e9, 3), number(bulk, 2),
            number(wire_ms, 2), number(ratio, 3), number(layered, 2), number(at_most, 2),
            number(share, 3), number(bulk_prefill, 1), number(layered_prefill, 1), case["outputs"]))
widths = [max(len(str(row[i])) for row in rows) for i in range(len(HEAD))]
for row in rows:
    print("  ".join(str(cell).rjust(width) for cell, width in zip(row, widths)))
print("""
emulated links; medians; exposed: transfer that the request waited for; wire/iperf3: KV bytes over
iperf3's rate, t; -: not measured; layered at most: 1.15 x max(t/L, t - prefill (L-1)/L) + 0.5 ms with L layers""")
PY
}

folders=()
for rate in ${rates//,/ }; do
  for round_trip_ms in ${round_trips_ms//,/ }; do
    for streams in ${all_streams//,/ }; do
      name=${rate}gbps
      [ "$round_trip_ms" = 0 ] || name=$name-${round_trip_ms}ms
      [ "$streams" = 1 ] || name=$name-${streams}streams
      [ ! -e "$out/$name" ] || refuse "$out/$name is there already, and no record is overwritten: give another --out"
      folders+=("$rate $round_trip_ms $streams $out/$name")
    done
  done
done

cd "$scratch" # no disagg-bench.toml of the caller's folder
head -c 32 /dev/urandom | base64 >token.txt
chmod 600 token.txt
model_name=$kind$(basename "$model")
ln -s "$binary" disagg-bench
ln -s "$model" "${model##*/}"
done_folders=()
for entry in "${folders[@]}"; do
  read -r rate round_trip_ms streams folder <<<"$entry"
  printf '%s …\n' "${folder##*/}" >&2
  # In this shell, not a subshell: what was started must be known to `on_exit`.
  measure "$folder" "$rate" "$round_trip_ms" "$streams"
  done_folders+=("$folder")
done
table "${done_folders[@]}" | tee "$out/table-$(date -u +%Y%m%dT%H%M%SZ).txt"
