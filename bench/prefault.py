# SPDX-License-Identifier: Apache-2.0
"""Pre-faulting by one thread and by one a processor.

    python bench/prefault.py [GiB]

Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

from vmm_iova import AddrRange
from vmm_iova.mapping import GuestMemory, prefault


def seconds(size: int, threads: int) -> float:
    """Return how long fresh memory takes."""
    with GuestMemory([(AddrRange.from_size(0, size), "ram")]) as memory:
        start = time.perf_counter()
        prefault(memory.pieces, threads=threads)
        return time.perf_counter() - start


def main(gib: str = "8") -> None:
    """Measure and print."""
    size, many = int(gib) << 30, len(os.sched_getaffinity(0))
    took = {threads: round(seconds(size, threads), 2) for threads in sorted({1, many})}
    print(json.dumps({"GiB": int(gib), "seconds by threads": took}))


if __name__ == "__main__":
    main(*sys.argv[1:])
