# SPDX-License-Identifier: Apache-2.0
"""Map calls against a bare C loop of the same ioctls, on the kernel that it runs on.

    python -m bench.map_calls 0000:00:10.0 [type1|iommufd] [pieces]
    python -m bench.map_calls null [mappings] [--pure]

The bare loop is `LinuxKernel.ioctl_many`, in C, on records that were packed before the clock
started. Every round maps and unmaps the same pieces of one page; the best of several rounds counts.
Prints one line of JSON.

`null` needs no device: the calls go to /dev/null, as an ioctl that every file takes, so that what
remains is what this package adds. A thousand mappings come and go beside so many that are there,
and each of the last is looked for right after it came. `--pure` does it as where nothing was
compiled.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import struct
import sys
import time
from collections.abc import Callable

from vmm_iova.kernel import uapi
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.kernel.book import LiveMappings
from vmm_iova.kernel.device import open_space
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.syscalls import LINUX, PAGE_SIZE, is_direct
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.mapping import Piece

ROUNDS = 7
NULL_ROUNDS = 100
PURE = """
import sys
sys.modules["vmm_iova.kernel._ioctl"] = None  # no such module
from bench.map_calls import on_null
on_null(sys.argv[1])
"""
FIOCLEX = 0x5451  # ABI: include/uapi/asm-generic/ioctls.h; every file takes it


def records(space: Type1Container | Ioas, pieces: list[Piece]) -> tuple[int, int, bytearray, int]:
    """Return descriptor, request, packed records and their stride."""
    if isinstance(space, Ioas):
        packed = [
            struct.pack("=IIIIQQQ", 40, 7, space.id, 0, item.hva, item.size, item.iova)
            for item in pieces
        ]
        return space.iommufd.fd, abi.IOAS_MAP, bytearray().join(packed), 40
    packed = [struct.pack("=IIQQQ", 32, 3, item.hva, item.iova, item.size) for item in pieces]
    return space.fd, uapi.IOMMU_MAP_DMA, bytearray().join(packed), 32


def best(call: Callable[[], object], undo: Callable[[], object]) -> float:
    """Return the shortest time of a call, in seconds; what it did is undone off the clock."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        undo()
    return min(times)


def on_null(count: str = "1000") -> None:
    """Measure beside `count` mappings of /dev/null, and print."""
    space = Type1Container.__new__(Type1Container)  # the node would have to answer as VFIO
    space._fds, space._kernel = [os.open(os.devnull, os.O_RDWR)], LINUX
    space.live = LiveMappings()
    in_c = is_direct(LINUX)
    uapi.IOMMU_MAP_DMA = uapi.IOMMU_UNMAP_DMA = FIOCLEX
    if in_c:
        space._ask_directly(space.live.book, space._fds, FIOCLEX, FIOCLEX, False)
    there = [(1 << 32) + 2 * n * PAGE_SIZE for n in range(int(count))]
    for iova in there:
        space.map(iova, iova, PAGE_SIZE)
    new = [iova + PAGE_SIZE for iova in random.Random(1).sample(there, min(1000, len(there)))]
    packed = b"".join(struct.pack("=IIQQQ", 32, 3, iova, iova, PAGE_SIZE) for iova in new)
    asked: list[float] = []

    def bare() -> None:
        LINUX.ioctl_many(space.fd, FIOCLEX, bytearray(packed), 32)

    def singly() -> None:
        for iova in new:
            space.map(iova, iova, PAGE_SIZE)

    def undo() -> None:
        for iova in new:
            space.unmap(iova, PAGE_SIZE)

    calls = {"bare C loop": bare, "map": singly, "unmap": undo}
    took = dict.fromkeys(calls, float("inf"))
    for _ in range(NULL_ROUNDS):  # in turns: a busy machine is as busy for each
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            took[name] = min(took[name], time.perf_counter() - start)
    for iova in new:
        space.map(iova, iova, PAGE_SIZE)
        start = time.perf_counter()
        space.live.translate(iova + 8, 16)
        asked.append(time.perf_counter() - start)
    base = took["bare C loop"]
    told = {
        name: {"us": round(t / len(new) * 1e6, 3), "ratio": round(t / base, 2)}
        for name, t in took.items()
    }
    told["translate after a change"] = {"us": round(sorted(asked)[len(asked) // 4] * 1e6, 3)}
    print(json.dumps({"kind": "null", "mappings": len(there), "in C": in_c, **told}))
    space.live.clear()
    os.close(space._fds.pop())


def main(bdf: str, via: str = "auto", count: str = "4096") -> None:
    """Measure and print."""
    memory = mmap.mmap(-1, PAGE_SIZE)
    hva = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    pieces = [Piece((1 << 32) + n * PAGE_SIZE, PAGE_SIZE, hva) for n in range(int(count))]
    with open_space([bdf], via=via) as space:
        fd, request, packed, stride = records(space, pieces)

        def bare() -> None:
            done, number = LINUX.ioctl_many(fd, request, bytearray(packed), stride)
            assert (done, number) == (len(pieces), 0)

        def singly() -> None:
            for item in pieces:
                space.map(item.iova, item.hva, item.size)

        took = {
            "bare C loop": best(bare, space.unmap_all),
            "map_many": best(lambda: space.map_many(pieces), space.unmap_all),
            "map": best(singly, space.unmap_all),
        }
        kind = space.kind
    base = took["bare C loop"]
    told = {
        name: {"us": round(t / len(pieces) * 1e6, 3), "ratio": round(t / base, 2)}
        for name, t in took.items()
    }
    print(json.dumps({"kind": kind, "pieces": len(pieces), **told}))


if __name__ == "__main__":
    if sys.argv[-1] == "--pure":
        os.execv(sys.executable, [sys.executable, "-c", PURE, *sys.argv[2:-1]])
    on_null(*sys.argv[2:]) if sys.argv[1:2] == ["null"] else main(*sys.argv[1:])
