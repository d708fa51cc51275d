"""What this machine can do at best, measured in the run itself: reading, multiplying."""

import ctypes
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

READ_BYTES, FEW_BYTES = 5 << 28, 1 << 27
"""More than any cache holds, 1.25 GiB; and enough to see that it works."""
READS, PRODUCTS = 8, 8
SIDE = 2048
FLAGS = ("avx2", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16")

_READER = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef long long wide __attribute__((vector_size(64), aligned(64)));
typedef struct { const wide *begin; size_t count; int cpu; pthread_barrier_t *barrier; } Part;
volatile long long kept;

static void *read_part(void *given) {
    Part *part = given;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(part->cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    pthread_barrier_wait(part->barrier);
    wide sum[8];
    memset(sum, 0, sizeof sum);
    for (size_t at = 0; at < part->count; at += 8)
        for (int lane = 0; lane < 8; lane++) {
            __builtin_prefetch(part->begin + at + lane + 64);
            sum[lane] ^= part->begin[at + lane];
        }
    for (int lane = 1; lane < 8; lane++) sum[0] ^= sum[lane];
    kept = sum[0][0];
    pthread_barrier_wait(part->barrier);
    return 0;
}

/* Seconds of one pass over `bytes` bytes, shared by a thread on each of these CPUs. */
double read_once(const void *data, size_t bytes, const int *cpus, int threads) {
    pthread_barrier_t barrier;
    pthread_t *started = malloc(threads * sizeof *started);
    Part *parts = malloc(threads * sizeof *parts);
    size_t each = bytes / sizeof(wide) / threads & ~(size_t)7;
    struct timespec begun, ended;
    pthread_barrier_init(&barrier, 0, threads + 1);
    for (int at = 0; at < threads; at++) {
        parts[at] = (Part){(const wide *)data + at * each, each, cpus[at], &barrier};
        pthread_create(started + at, 0, read_part, parts + at);
    }
    pthread_barrier_wait(&barrier);
    clock_gettime(CLOCK_MONOTONIC, &begun);
    pthread_barrier_wait(&barrier);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    for (int at = 0; at < threads; at++) pthread_join(started[at], 0);
    pthread_barrier_destroy(&barrier);
    free(started);
    free(parts);
    return ended.tv_sec - begun.tv_sec + 1e-9 * (ended.tv_nsec - begun.tv_nsec);
}

void *room(size_t bytes) {
    void *found = aligned_alloc(4096, bytes);
    if (found) memset(found, 1, bytes);
    return found;
}
"""
_PRODUCT = f"""
import time, torch
torch.set_num_threads({{threads}})
a, b = (torch.randn({SIDE}, {SIDE}).to(torch.bfloat16) for _ in range(2))
best = float("inf")
for _ in range({PRODUCTS} + 2):
    begun = time.perf_counter()
    torch.mm(a, b)
    best = min(best, time.perf_counter() - begun)
print(2 * {SIDE} ** 3 / best)
"""


def cpus() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))


def read_bandwidth(size: int = READ_BYTES) -> float:
    """Bytes a second of the best of several passes, a thread on each CPU.

    Raises:
        OSError: there is no gcc, or no room for `size` bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "reader.c", Path(folder) / "reader.so"
        source.write_text(_READER)
        words = ["gcc", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
        done = subprocess.run([*words, str(source), "-o", str(library)], capture_output=True)
        if done.returncode:
            raise OSError(f"gcc: {done.stderr.decode()[-500:]}")
        return _read(ctypes.CDLL(str(library)), size)


def _read(reader: ctypes.CDLL, size: int) -> float:
    reader.room.restype, reader.room.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    reader.read_once.restype = ctypes.c_double
    data, on = reader.room(size), cpus()
    if not data:
        raise OSError(f"no room for {size} bytes")
    numbers = (ctypes.c_int * len(on))(*on)
    given = (ctypes.c_void_p(data), ctypes.c_size_t(size), numbers, len(on))
    try:
        return size / min(reader.read_once(*given) for _ in range(READS))
    finally:
        libc = ctypes.CDLL(None)
        libc.free.argtypes = [ctypes.c_void_p]
        libc.free(data)


def product_rate() -> float:
    """Operations a second of torch's product of two matrices in bfloat16, best of several."""
    code = _PRODUCT.format(threads=len(cpus()))
    words = [sys.executable, "-c", code]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def described() -> dict[str, Any]:
    """The machine, and which of the instructions that kernels choose by it has."""
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    has = set(found[1].split()) if found else set()
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return {
        "machine": f"{platform.machine()} {len(cpus())} cores, {model[1] if model else '?'}",
        "instructions": [flag for flag in FLAGS if flag in has],
        "load": os.getloadavg(),
    }
