# SPDX-License-Identifier: Apache-2.0
"""An allocator shared by eight threads, for a CPython without the GIL (`--disable-gil`).

`python3.13t -m tools.free_threads`, where the package is installed; needs nothing else. Each
thread owns what it was given: two that own one address, or a thread that stops, end it with 1.
"""

from __future__ import annotations

import random
import sys
import threading
from itertools import pairwise

import vmm_iova as vi

THREADS, CALLS = 8, 20_000


def churn(iovas: vi.IovaAllocator, seed: int) -> dict[int, int]:
    """Allocate and release at random; return what is still owned."""
    chance = random.Random(seed)
    mine: dict[int, int] = {}
    for _ in range(CALLS):
        if not mine or chance.random() < 0.55:
            size = 4096 * chance.randint(1, 64)
            mine[iovas.allocate(size)] = size
        else:
            start = next(iter(mine))
            iovas.release(start)
            del mine[start]
    return mine


def main() -> int:
    """Do it once; print what came out."""
    iovas = vi.IovaAllocator(vi.load_host("amd-epyc-1tb").usable())
    owned: list[dict[int, int]] = []
    threads = [
        threading.Thread(target=lambda seed: owned.append(churn(iovas, seed)), args=(seed,))
        for seed in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ranges = sorted((start, start + size) for mine in owned for start, size in mine.items())
    twice = sum(above[0] < below[1] for below, above in pairwise(ranges))
    for start, _ in ranges:
        iovas.release(start)
    locked = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(
        f"{vi.engine_name()} engine, GIL {'on' if locked else 'off'}: {len(owned)} of {THREADS} "
        f"threads came to their end, {len(ranges)} ranges owned, {twice} of them twice, "
        f"{len(iovas)} left"
    )
    return int(len(owned) != THREADS or bool(twice) or bool(len(iovas)))


if __name__ == "__main__":
    sys.exit(main())
