# SPDX-License-Identifier: Apache-2.0
"""The book of what is mapped: its order, its places, and that C and Python keep it alike."""

from __future__ import annotations

import errno
import inspect
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from vmm_iova.errors import DmaError, NotAllocatedError, RangeOverflowError, RequestError
from vmm_iova.kernel import book, uapi
from vmm_iova.kernel.book import LiveMappings, PlainOrder, line_of, plain_spot
from vmm_iova.kernel.syscalls import LINUX
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.ranges import AddrRange

FIOCLEX = 0x5451  # ABI: include/uapi/asm-generic/ioctls.h; every file takes it, and nothing changes
ORDERS = list(dict.fromkeys([book.Order, PlainOrder]))
SPOTS = list(dict.fromkeys([book.spot, plain_spot]))


@pytest.fixture(params=[True, False], ids=["in C", "in Python"])
def null(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Type1Container]:
    """A container whose file is /dev/null, which takes every map and unmap."""
    made = Type1Container.__new__(Type1Container)
    made._fds, made._kernel, made.live = [os.open("/dev/null", os.O_RDWR)], LINUX, LiveMappings()
    made._groups, made._devices, made._ready, made.compat = {}, {}, False, False
    made.direct = request.param
    if made.direct and book.Order is PlainOrder:
        pytest.skip("not compiled")
    monkeypatch.setattr(uapi, "IOMMU_MAP_DMA", FIOCLEX)
    monkeypatch.setattr(uapi, "IOMMU_UNMAP_DMA", FIOCLEX)
    yield made
    made.live.clear()
    os.close(made._fds.pop())


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_many_changes_is_that_of_a_sorted_list(order: Any) -> None:
    chance = random.Random(order.__name__)
    noted: dict[int, Any] = {chance.randrange(1 << 64): None for _ in range(3000)}
    subject = order(sorted(noted))

    for _ in range(60):
        late = [chance.randrange(1 << 64) for _ in range(40)]
        for start in late:
            noted[start] = None
        gone = chance.sample(sorted(noted), 80)
        for start in gone:
            noted.pop(start)
        subject.update([*late, *gone, *late], noted)
        first, last = sorted(chance.randrange(1 << 64) for _ in range(2))
        expected = sorted(noted)
        assert subject.span(first, last) == [s for s in expected if first <= s <= last]
        assert subject.below(first) == max((s for s in expected if s <= first), default=-1)
    assert subject.span(0, (1 << 64) - 1) == sorted(noted)

    everything = sorted(noted)
    noted.clear()
    subject.update(everything, noted)
    assert (subject.span(0, (1 << 64) - 1), subject.below((1 << 64) - 1)) == ([], -1)
    noted[7] = None
    subject.update([7], noted)
    assert subject.below(7) == 7


@pytest.mark.parametrize("spot", SPOTS)
def test_spot_is_the_line_that_calls(spot: Any) -> None:
    def called() -> Any:
        return spot(2)

    frame = inspect.currentframe()
    assert frame is not None
    found, line = called(), frame.f_lineno
    assert line_of(found) == f"{__file__}:{line}"


def test_questions_between_changes_see_each_of_them(null: Type1Container) -> None:
    for n in range(200):
        null.map(n * 0x2000, 0x7F00_0000_0000 + n * 0x2000, 0x1000)
    assert len(list(null.live)) == 200
    for n in range(0, 200, 2):
        assert null.unmap(n * 0x2000, 0x1000) == 0x1000
        with pytest.raises(NotAllocatedError, match="nothing is mapped"):
            null.live.translate(n * 0x2000 + 8, 1)
        assert null.live.translate(n * 0x2000 + 0x2008, 64) == (0x7F00_0000_2008 + n * 0x2000, 64)
    null.map(0x1000, 0x1000, 0x1000)
    null.map(0, 0, 0x1000)
    assert null.live.translate(8, 0x4000) == (8, 0x1FF8)
    assert [item.range.start for item in null.live.overlapping(AddrRange(0, 0x2FFF))] == [
        0,
        0x1000,
        0x2000,
    ]


def test_changes_that_nobody_asks_about_are_not_kept(null: Type1Container) -> None:
    null.map(0, 0, 0x1000)
    assert null.live.translate(0, 1) == (0, 1)
    for _ in range(4000):
        null.map(0x1000, 0, 0x1000)
        null.unmap(0x1000, 0x1000)

    assert len(null.live._late) < 2000
    assert [item.range.start for item in null.live] == [0]


def test_place_of_a_mapping_is_the_line_that_maps(null: Type1Container) -> None:
    frame = inspect.currentframe()
    assert frame is not None
    null.map(0, 0x5000, 0x1000, write=False)
    line = frame.f_lineno - 1
    item = null.live.at(0)
    assert (item.place, item.hva) == (f"{__file__}:{line}", 0x5000)
    assert (item.read, item.write) == (True, False)


def test_refusal_of_the_kernel_says_what_and_where(
    null: Type1Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    null.map(0x1000, 0x5000, 0x1000)
    monkeypatch.undo()  # /dev/null knows none of the real calls

    with pytest.raises(DmaError) as mapped:
        null.map(0x3000, 0x5000, 0x1000)
    with pytest.raises(DmaError) as unmapped:
        null.unmap(0x1000, 0x1000)

    assert str(mapped.value).startswith(
        "the kernel does not map 0x1000 bytes at 0x5000 to 0x3000: Inappropriate ioctl"
    )
    assert str(unmapped.value).startswith(
        "the kernel does not unmap 0x1000 bytes at 0x1000: Inappropriate ioctl"
    )
    for error in (mapped.value, unmapped.value):
        assert error.errno == errno.ENOTTY
        assert isinstance(error.__cause__, OSError)
    assert (mapped.value.hva, unmapped.value.iova) == (0x5000, 0x1000)
    assert [item.range.start for item in null.live] == [0x1000]


def test_size_that_is_not_mapped_is_refused_before_the_call(null: Type1Container) -> None:
    null.map(0x1000, 0x5000, 0x1000)
    with pytest.raises(NotAllocatedError, match="no mapping is exactly 0x2000 bytes at 0x1000"):
        null.unmap(0x1000, 0x2000)
    assert 0x1000 in null.live


@pytest.mark.parametrize(
    ("iova", "error"),
    [(1 << 64, RangeOverflowError), (-1, RangeOverflowError), (1.5, RequestError)],
)
def test_number_that_no_field_takes_is_named(
    null: Type1Container, iova: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        null.map(iova, 0x5000, 0x1000)
    assert getattr(caught.value, "field", None) == "iova"
    assert len(null.live) == 0
