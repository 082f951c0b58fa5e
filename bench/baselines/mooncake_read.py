"""Mooncake's Transfer Engine over TCP between two processes of this machine.

serve BYTES            registers that much memory, prints "SEGMENT ADDRESS", serves until stdin ends
fetch SEGMENT ADDRESS REPETITIONS BYTES...   reads each size once to warm up and then so often; prints the median as [{bytes, gb_per_s}] as JSON

The package asks the CUDA driver whether there is a GPU. Where there is no driver an empty one has to be found (bench/src/lib/mooncake.ts makes one).
"""

import json
import statistics
import sys
import time

import numpy
from mooncake.engine import TransferEngine


def start(bytes_count):
    engine = TransferEngine()
    if engine.initialize("127.0.0.1:0", "P2PHANDSHAKE", "tcp", "") != 0:
        sys.exit("Mooncake's Transfer Engine did not start")
    memory = numpy.zeros(bytes_count, dtype=numpy.uint8)
    if engine.register_memory(memory.ctypes.data, bytes_count) != 0:
        sys.exit("Mooncake's Transfer Engine refused the memory")
    return engine, memory


def serve(bytes_count):
    engine, memory = start(bytes_count)
    memory[:] = numpy.arange(bytes_count, dtype=numpy.uint8)
    print(f"127.0.0.1:{engine.get_rpc_port()} {memory.ctypes.data}", flush=True)
    sys.stdin.read()


def fetch(segment, address, repetitions, sizes):
    engine, memory = start(max(sizes))
    pulls = []
    for size in sizes:
        rates = []
        for _ in range(1 + repetitions):
            memory[size - 1] = 0 if size % 256 != 1 else 1
            began = time.perf_counter()
            if engine.transfer_sync_read(segment, memory.ctypes.data, address, size) != 0:
                sys.exit(f"Mooncake's read of {size} bytes failed")
            seconds = time.perf_counter() - began
            if memory[size - 1] != (size - 1) % 256:
                sys.exit(f"Mooncake's read of {size} bytes did not arrive")
            rates.append(size / seconds / 1e9)
        pulls.append({"bytes": size, "gb_per_s": statistics.median(rates[1:])})
    print(json.dumps(pulls))


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    fetch(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), [int(size) for size in sys.argv[5:]])
