# SPDX-License-Identifier: Apache-2.0
"""Memory of others that is mapped: arrays of NumPy and ctypes, mmap, tensors by DLPack."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.kit.kernels import NIC, Space
from vmm_iova import AddrRange, IovaAllocator
from vmm_iova.errors import MisalignedError, RequestError
from vmm_iova.mapping import DynamicMaps
from vmm_iova.mapping.dlpack import _Tensor
from vmm_iova.simulated import SimulatedKernel

PAGE = 0x1000


@pytest.fixture
def maps(space: Space) -> DynamicMaps:
    return DynamicMaps(IovaAllocator(space.facts().ranges, granule=PAGE), space)


class _Managed(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_NEW = ctypes.pythonapi.PyCapsule_New
_NEW.restype = ctypes.py_object
_NEW.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_DROP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Stand:
    """A tensor that has no buffer, as PyTorch's; it counts the capsules that are out."""

    def __init__(
        self,
        memory: mmap.mmap,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
        kind: int = 1,
        offset: int = 0,
    ) -> None:
        self._memory = memory
        self.kind = kind
        self.out = 0
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = (ctypes.c_int64 * len(shape))(*strides) if strides else None
        where = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        tensor = _Tensor(where, kind, 0, len(shape), 0, 32, 1, self._shape, None, offset)
        if self._strides is not None:
            tensor.strides = ctypes.cast(self._strides, ctypes.POINTER(ctypes.c_int64))
        self._managed = _Managed(tensor)
        self._drop = _DROP(self._dropped)

    def _dropped(self, _: object) -> None:
        self.out -= 1

    def __dlpack__(self, *, stream: Any = None) -> object:
        self.out += 1
        drop = ctypes.cast(self._drop, ctypes.c_void_p)
        return _NEW(ctypes.addressof(self._managed), b"dltensor", drop)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.kind, 0)


def _pages(count: int = 2) -> mmap.mmap:
    return mmap.mmap(-1, count * PAGE)


WRITABLE: dict[str, Callable[[mmap.mmap], Any]] = {
    "mmap": lambda memory: memory,
    "memoryview": memoryview,
    "memoryview of 64-bit items": lambda memory: memoryview(memory).cast("Q"),
    "ctypes": lambda memory: (ctypes.c_uint32 * (2 * PAGE // 4)).from_buffer(memory),
    "NumPy": lambda memory: np.frombuffer(memory, dtype=np.float32),
    "NumPy of two dimensions": lambda memory: np.frombuffer(memory, np.uint8).reshape(2, PAGE),
    "DLPack": lambda memory: Stand(memory, (2, PAGE // 4)),
    "DLPack with strides": lambda memory: Stand(memory, (2, PAGE // 4), (PAGE // 4, 1)),
    "DLPack of pinned memory": lambda memory: Stand(memory, (2 * PAGE // 4,), kind=3),
}


@pytest.mark.parametrize("kind", WRITABLE)
def test_device_reads_and_writes_the_memory_that_is_lent(
    sim: SimulatedKernel, maps: DynamicMaps, kind: str
) -> None:
    memory = _pages()
    memory[:4] = b"sent"

    iova = maps.map(WRITABLE[kind](memory))

    assert sim.device_read(NIC, iova, 4) == b"sent"
    sim.device_write(NIC, iova + 2 * PAGE - 4, b"back")
    assert memory[-4:] == b"back"
    assert maps.unmap(iova) == 2 * PAGE


def test_options_hold_for_a_lent_array(maps: DynamicMaps, space: Space) -> None:
    low = AddrRange(0, 0xFFFF_FFFF)
    array_ = np.frombuffer(_pages(), np.uint8)
    iova = maps.map(array_, within=low, align=1 << 20, policy="last", write=False, tag="array")
    assert iova in low
    assert iova % (1 << 20) == 0
    assert not space.live.at(iova).write
    maps.unmap(iova)


def test_tensor_is_held_until_it_is_unmapped(maps: DynamicMaps) -> None:
    tensor = Stand(_pages(), (2 * PAGE // 4,))
    iova = maps.map(tensor)
    gc.collect()
    assert tensor.out == 1
    maps.unmap(iova)
    gc.collect()
    assert tensor.out == 0


def test_array_is_held_until_it_is_unmapped(maps: DynamicMaps) -> None:
    held = np.frombuffer(_pages(), np.uint8)
    seen = weakref.ref(held)
    iova = maps.map(held)
    del held
    gc.collect()
    assert seen() is not None
    maps.unmap(iova)
    gc.collect()
    assert seen() is None


def test_tensor_that_begins_within_its_memory_is_found(
    sim: SimulatedKernel, maps: DynamicMaps
) -> None:
    memory = _pages()
    memory[PAGE : PAGE + 4] = b"here"
    iova = maps.map(Stand(memory, (PAGE // 4,), offset=PAGE))
    assert sim.device_read(NIC, iova, 4) == b"here"
    maps.unmap(iova)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"read only", "writable and contiguous"),
        (lambda: np.zeros(4 * PAGE, np.uint8)[::2], "writable and contiguous"),
        (lambda: np.frombuffer(bytes(PAGE), np.uint8), "writable and contiguous"),
        (lambda: bytearray(), "empty"),
        (lambda: Stand(_pages(), (0, 4), (4, 1)), "empty"),
        (lambda: Stand(_pages(), (2, 4), (8, 1)), "contiguous"),
        (lambda: Stand(_pages(), (2, PAGE // 4), (1, 2)), "contiguous"),
        (lambda: np.frombuffer(_pages(), np.uint8).reshape(2, PAGE).T, "contiguous"),
        (lambda: Stand(_pages(), (4,), kind=2), "kind 2 of DLPack"),
        (lambda: "text", "str lends no memory"),
        (lambda: [1, 2], "list lends no memory"),
    ],
)
def test_what_cannot_be_lent_is_refused_with_the_reason(
    maps: DynamicMaps, make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        maps.map(make())
    assert caught.value.field == "buffer"
    assert len(maps) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: array.array("B", bytes(2 * PAGE + 16)),
        lambda: np.zeros(1000, np.float64)[3:],
        lambda: Stand(_pages(), (100,)),
    ],
)
def test_memory_of_no_whole_pages_is_refused_with_the_way_to_have_it(
    maps: DynamicMaps, make: Callable[[], Any]
) -> None:
    with pytest.raises(MisalignedError) as caught:
        maps.map(make())
    assert "maps.allocate(size).view" in str(caught.value)


def test_array_over_allocated_memory_is_what_the_device_sees(
    sim: SimulatedKernel, maps: DynamicMaps
) -> None:
    with maps.allocate(1000 * 8) as buffer:
        numbers = np.frombuffer(buffer.view, np.float64)
        numbers[:] = np.arange(1000)
        read = np.frombuffer(sim.device_read(NIC, buffer.iova, 8000), np.float64)
        assert (read == np.arange(1000)).all()
