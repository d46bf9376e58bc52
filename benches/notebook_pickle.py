"""The notebook's way of a KV cache: pickle, TCP with a four-byte length, unpickle, between two
processes over loopback. One JSON line a measurement, with the keys of `whole_way.rs`.

    pip install torch numpy
    python benches/notebook_pickle.py

Without torch the tensors are numpy arrays, which pickle faster; the output says which it was.
The functions that move the cache are the notebook's, line by line; prompt and token ids, which
the notebook sends before the cache, are left out in its favour.
"""

import argparse
import hashlib
import json
import pickle
import platform
import socket
import statistics
import struct
import subprocess
import sys
import time

import numpy

try:
    import torch
except ImportError:
    torch = None

WARM_UPS = 2
REPEATS = 9

# Name, layers, heads, tokens, width of a head, element type; K and V are (1, heads, tokens, width).
PAYLOADS = [
    ("dummy-f32", 4, 8, 100, 64, "float32"),
    ("default-1024-f32", 30, 3, 1024, 64, "float32"),
    ("default-1024-f16", 30, 3, 1024, 64, "float16"),
]


def serialize_kv_cache(past_key_values):
    cpu_cache = []
    for key, value in past_key_values:
        cpu_cache.append((key.cpu(), value.cpu()) if torch else (key, value))
    return pickle.dumps(cpu_cache)


def deserialize_kv_cache(serialized_data):
    cpu_cache = pickle.loads(serialized_data)
    device_cache = []
    for key, value in cpu_cache:
        device_cache.append((key.to("cpu"), value.to("cpu")) if torch else (key, value))
    return tuple(device_cache)


def recv_exact(sock, n):
    data = b""
    while len(data) < n:
        chunk = sock.recv(n - len(data))
        if not chunk:
            raise ConnectionError("Socket connection broken")
        data += chunk
    return data


def random_cache(layers, heads, tokens, width, dtype):
    random = numpy.random.default_rng(1)

    def tensor():
        array = random.standard_normal((1, heads, tokens, width)).astype(dtype)
        return torch.from_numpy(array) if torch else array

    return [(tensor(), tensor()) for _ in range(layers)]


def digest(cache):
    """Of all bytes of a cache, to check that what was restored is what was sent."""
    hasher = hashlib.blake2b(digest_size=32)
    for pair in cache:
        for tensor in pair:
            hasher.update((tensor.numpy() if torch else tensor).tobytes())
    return hasher.digest()


def receive_forever():
    """The second process: restores one cache a connection, says so, then sends its digest."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.bind(("127.0.0.1", 0))
    server.listen(5)
    print(server.getsockname()[1], flush=True)
    while True:
        client, _ = server.accept()
        with client:
            header = client.recv(4, socket.MSG_WAITALL)
            if not header:
                return
            length = struct.unpack("I", header)[0]
            restored = deserialize_kv_cache(recv_exact(client, length))
            client.sendall(b"\x01")
            client.sendall(digest(restored))


def transfer(cache, port, congestion_control):
    """Sends a cache once; gives the times of its parts in ms and the congestion control used."""
    start = time.perf_counter()
    serialized = serialize_kv_cache(cache)
    serialised = time.perf_counter()
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if congestion_control:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion_control.encode())
    sock.connect(("127.0.0.1", port))
    with sock:
        sock.sendall(struct.pack("I", len(serialized)))
        sock.sendall(serialized)
        sent = time.perf_counter()
        recv_exact(sock, 1)
        restored = time.perf_counter()
        if recv_exact(sock, 32) != digest(cache):
            sys.exit("the cache that was restored is not the one that was sent")
        used = None
        if hasattr(socket, "TCP_CONGESTION"):
            used = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            used = used.split(b"\0")[0].decode()
    milliseconds = lambda a, b: (b - a) * 1e3
    return {
        "whole_ms": milliseconds(start, restored),
        "serialise_ms": milliseconds(start, serialised),
        "connect_and_sendall_ms": milliseconds(serialised, sent),
        "rest_and_restore_ms": milliseconds(sent, restored),
    }, used


def figure(samples):
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "n": len(samples),
    }


def measure(name, cache, kv_bytes, port, congestion_control):
    for _ in range(WARM_UPS):
        transfer(cache, port, congestion_control)
    samples, used = [], None
    for _ in range(REPEATS):
        sample, used = transfer(cache, port, congestion_control)
        samples.append(sample)
    library = f"torch {torch.__version__}" if torch else f"numpy {numpy.__version__}"
    line = {
        "way": "notebook",
        "implementation": f"python {platform.python_version()}, {library}",
        "payload": name,
        "kv_bytes": kv_bytes,
        "connection": "fresh",
        "congestion_control": used,
    }
    line |= {key: figure([sample[key] for sample in samples]) for key in samples[0]}
    print(json.dumps(line), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--congestion-control",
        metavar="NAME",
        help="instead of the system's own, which the notebook takes",
    )
    arguments = parser.parse_args()
    if arguments.receive:
        return receive_forever()
    receiver = subprocess.Popen(
        [sys.executable, __file__, "--receive"], stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(receiver.stdout.readline())
        for name, layers, heads, tokens, width, dtype in PAYLOADS:
            cache = random_cache(layers, heads, tokens, width, dtype)
            elements = layers * 2 * heads * tokens * width
            kv_bytes = elements * numpy.dtype(dtype).itemsize
            measure(name, cache, kv_bytes, port, arguments.congestion_control)
    finally:
        receiver.kill()
        receiver.wait()


if __name__ == "__main__":
    main()
