#!/usr/bin/env python3
"""Joins two network namespaces by a link with a delay and a rate, for kernels without netem.

A TUN device in each namespace, and between them one process a direction: a packet waits for the
rate clock, then for its delay, then it is written to the other side. What finds the queue full is
dropped. Makes no namespaces and shapes nothing itself in the kernel. Root, Linux, Python 3 alone.

    ip netns add left; ip netns add right
    tun_bridge.py --netns left right --addresses 10.99.0.1/24 10.99.0.2/24 \\
        --rate-gbps 10 --one-way-ms 5

Prints `ready` once packets flow and ends at SIGTERM, Ctrl-C or when a device is gone, with a line of
counts for each direction.
"""

import argparse
import collections
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
# The largest round MTU below the 65,535 bytes of an IP packet: fewest packets, so the least work
# for this program.
MTU_BYTES = 65_500
# Packets that one turn may take in before those that are due go out.
PACKETS_A_TURN = 64


def tun(name):
    """A TUN device of this name in the caller's namespace; it lives as long as the descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


def tun_inside(netns, name, address):
    """A TUN device moved into a namespace, with its address, up."""
    device = tun(name)
    ip("link", "set", name, "netns", netns)
    ip("-n", netns, "address", "add", address, "dev", name)
    ip("-n", netns, "link", "set", name, "mtu", str(MTU_BYTES), "up")
    return device


def carry(source, sink, rate_bits_per_s, one_way_s, queue_s, stop):
    """Moves packets until `stop` is readable; (packets, bytes, dropped)."""
    waiting = collections.deque()  # (due, packet), due never falls
    clock_free = 0.0  # when the last packet taken in has left at the link's rate
    packets = taken_bytes = dropped = 0
    now = time.monotonic
    while True:
        patience = max(0.0, waiting[0][0] - now()) if waiting else None
        readable = select.select([source, stop], [], [], patience)[0]
        if stop in readable:
            return packets, taken_bytes, dropped
        if readable:
            for _ in range(PACKETS_A_TURN):
                try:
                    packet = os.read(source, MTU_BYTES)
                except BlockingIOError:
                    break
                arrived = now()
                start = max(arrived, clock_free)
                if start - arrived > queue_s:
                    dropped += 1
                    continue
                clock_free = start + len(packet) * 8 / rate_bits_per_s
                waiting.append((clock_free + one_way_s, packet))
                # What is due goes first; taking in can wait in the device's own queue.
                if waiting[0][0] <= arrived:
                    break
        while waiting and waiting[0][0] <= now():
            packet = waiting.popleft()[1]
            try:
                os.write(sink, packet)
                packets += 1
                taken_bytes += len(packet)
            except OSError:
                dropped += 1


def direction(name, source, sink, options, stop, running):
    """One direction as a process of its own, so that both have a core where there are two."""
    process = os.fork()
    if process:
        return process
    # The parent alone answers signals. Its end of the pipe closes when it has ended, however.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.close(running)
    # The 50 us by which the kernel may stretch a sleep would be added to every delay.
    with open("/proc/self/timerslack_ns", "w") as slack:
        slack.write("1000")
    rate_bits_per_s = options.rate_gbps * 1e9
    one_way_s, queue_s = options.one_way_ms / 1e3, options.queue_ms / 1e3
    try:
        counts = carry(source, sink, rate_bits_per_s, one_way_s, queue_s, stop)
    except OSError as error:
        print(f"{name}: the device is gone: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    line = "{}: {} packets, {} bytes, {} dropped\n".format(name, *counts)
    os.write(sys.stdout.fileno(), line.encode())  # in one piece: two processes share the output
    os._exit(0)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    two = {"nargs": 2, "required": True}
    parser.add_argument("--netns", metavar=("LEFT", "RIGHT"), help="existing namespaces", **two)
    parser.add_argument(
        "--addresses", metavar=("LEFT", "RIGHT"), help="with prefix: 10.99.0.1/24", **two
    )
    parser.add_argument("--rate-gbps", type=float, required=True, help="of each direction")
    parser.add_argument("--one-way-ms", type=float, required=True, help="delay of each direction")
    parser.add_argument(
        "--queue-ms",
        type=float,
        default=20.0,
        help="a packet that would wait longer than this for the rate is dropped [default: 20]",
    )
    options = parser.parse_args()
    if options.rate_gbps <= 0 or options.one_way_ms < 0 or options.queue_ms <= 0:
        parser.error("rate and queue must be above 0, the delay not below")
    if os.geteuid() != 0:
        parser.error("got a user without the right to make devices, wanted root: use sudo")
    return options


def main():
    options = arguments()
    # Before anything is made: a signal must find its handler.
    wake, woken = os.pipe()
    for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(ending, lambda number, _: os.write(woken, bytes([number])))
    left = tun_inside(options.netns[0], f"tl{os.getpid()}", options.addresses[0])
    right = tun_inside(options.netns[1], f"tr{os.getpid()}", options.addresses[1])
    # What running `ip` has left there.
    while select.select([wake], [], [], 0)[0]:
        if os.read(wake, 1)[0] != signal.SIGCHLD:
            return 0
    stop, running = os.pipe()
    processes = [
        direction("left to right", left, right, options, stop, running),
        direction("right to left", right, left, options, stop, running),
    ]
    print("ready", flush=True)
    os.read(wake, 1)
    os.close(running)
    failed = [p for p in processes if os.waitpid(p, 0)[1] != 0]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
