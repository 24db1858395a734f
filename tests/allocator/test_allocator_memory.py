# SPDX-License-Identifier: Apache-2.0
"""Each call of the compiled engine for memory refused once, in each call of the allocator."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from array import array
from pathlib import Path

import pytest

from vmm_iova.allocator import allocator_class
from vmm_iova.errors import IovaError
from vmm_iova.ranges import AddrRange, MappableRanges, RangeSet

PAGE = 0x1000
WIDE = MappableRanges([AddrRange(0, 0xFFFF), AddrRange(0x1_0000, 0xFFF_FFFF)])
LESS = MappableRanges([AddrRange(0, 0xFFFF), AddrRange(0x1_0000, 0xFF_FFFF)])


def sizes(count):
    return array("Q", [PAGE * (1 + n % 3) for n in range(count)])


def undone(allocator):
    try:
        with allocator.transaction():
            allocator.release_many(array("Q", [0x1_0000, 0x1_1000]))
            allocator.narrow(LESS)
            allocator.allocate_many(sizes(300))
            raise LookupError
    except LookupError:
        pass


# Each changes nothing when it is refused memory.
CALLS = {
    "allocate": lambda a: a.allocate(PAGE),
    "allocate at an alignment": lambda a: a.allocate(PAGE, 0x8000),
    "allocate best": lambda a: a.allocate(PAGE, policy="best", tag="tag"),
    "allocate too much": lambda a: a.allocate(1 << 40, 0x8000),
    "allocate_at": lambda a: a.allocate_at(0x800_0000, PAGE),
    "allocate_many": lambda a: a.allocate_many(sizes(5000), policy="last"),
    "allocate_many, refused": lambda a: a.allocate_many(array("Q", [*sizes(5000), 1 << 40])),
    "release": lambda a: a.release(0x1_0000),
    "release_many": lambda a: a.release_many(array("Q", [0x1_0000, 0x1_1000])),
    "release_many, refused": lambda a: a.release_many(array("Q", [0x1_0000, 0x1_1000, 5])),
    "narrow": lambda a: a.narrow(LESS),
    "narrow, refused": lambda a: a.narrow(RangeSet()),
    "undone": undone,
    "iterate": lambda a: list(a),
    "free_spans": lambda a: list(a.free_spans()),
}


def prepared(cache):
    allocator = allocator_class("fast")(WIDE, granule=PAGE, size_cache=cache)
    starts = allocator.allocate_many(sizes(1000))
    allocator.release_many(starts[3::4])
    allocator.allocate(PAGE, policy="best", tag="tag")
    return allocator


def shown(allocator):
    return (
        [(str(item.range), item.tag) for item in allocator],
        [str(span) for span in allocator.free_spans()],
        str(allocator.usable),
        len(allocator),
        allocator.allocated_bytes,
    )


def refuse_each(name, act, cache, refuse):
    """Refuse the first call for memory, the second, and so on; return how many there were."""
    done = prepared(cache)
    before = shown(done)
    with contextlib.suppress(IovaError):
        act(done)
    after = shown(done)
    number = 0
    while True:
        allocator = prepared(cache)
        refuse(number)
        try:
            act(allocator)
            denied = False
        except IovaError:
            denied = False
        except MemoryError:
            denied = True
        unused = refuse(-1)
        allocator._check()
        # A release, or what it undoes, needs no memory: it may be done although some was refused.
        assert shown(allocator) == before if denied else shown(allocator) in (before, after), (
            name,
            number,
            cache,
        )
        if unused >= 0:
            return number
        number += 1


def main() -> int:
    """Run under the library that refuses; print how many refusals there were of each call."""
    import vmm_iova._fast as fast

    library = ctypes.CDLL(None)
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    spans = [line.split()[0].split("-") for line in lines if fast.__file__ in line]
    first, last = (int(text, 16) for text in (spans[0][0], spans[-1][1]))

    def refuse(number):
        left = library.deny_left()
        library.deny_after(ctypes.c_ulong(first), ctypes.c_ulong(last), ctypes.c_long(number))
        return left

    library.deny_left.restype = ctypes.c_long
    for cache in (False, True):
        for name, act in CALLS.items():
            print(name, cache, refuse_each(name, act, cache, refuse))
    refuse(0)
    try:
        prepared(False)
    except MemoryError:
        print("construction refused")
    return 0


@pytest.mark.slow
def test_each_refusal_of_memory_leaves_all_of_a_call_or_nothing(tmp_path):
    pytest.importorskip("vmm_iova._fast")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make the library that refuses memory")
    if "ASAN_OPTIONS" in os.environ:
        pytest.skip("the sanitizer's own allocator takes the place of the library that refuses")
    library = tmp_path / "deny.so"
    source = Path(__file__).with_name("deny_malloc.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)

    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    counts = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert counts.pop("construction") == "refused"
    assert {name.rsplit(" ", 1)[0] for name in counts} == set(CALLS)
    needy = {name for name, count in counts.items() if int(count)}
    # The others are served from blocks that the tree has in stock.
    asking = {"allocate_many", "release_many", "narrow", "undone", "iterate", "free_spans"}
    assert {f"{name} False" for name in asking} <= needy


if __name__ == "__main__":
    sys.exit(main())
