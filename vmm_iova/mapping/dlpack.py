# SPDX-License-Identifier: Apache-2.0
"""Tensors that lend their memory by DLPack, where that is memory of the CPU.

Source: https://dmlc.github.io/dlpack/latest/c_api.html (DLManagedTensor; the capsule "dltensor")
and https://dmlc.github.io/dlpack/latest/python_spec.html.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, ClassVar, Protocol, runtime_checkable

from vmm_iova.errors import RequestError

_ON_CPU = {1: "CPU", 3: "CUDA's pinned memory of the CPU", 11: "ROCm's pinned memory of the CPU"}
_CAPSULE = b"dltensor"


@runtime_checkable
class Tensor(Protocol):
    """What lends its memory by DLPack: tensors of PyTorch, JAX, CuPy, NumPy's arrays."""

    def __dlpack__(self, *, stream: Any = None) -> object:
        """Return a capsule with a `DLManagedTensor`, which is given back when it is dropped."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return kind and number of the device that has the memory."""


class _Tensor(ctypes.Structure):
    _fields_: ClassVar = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def memory_of(source: Tensor) -> tuple[int, int, object]:
    """Return address and bytes of a tensor, and what keeps them there while it is held.

    Raises:
        RequestError: the memory is not the CPU's, or the tensor is not contiguous.
    """
    kind, _ = source.__dlpack_device__()
    if kind not in _ON_CPU:
        raise RequestError(
            f"the tensor is in the memory of a device (kind {int(kind)} of DLPack), not of the CPU",
            field="buffer",
            value=source,
        )
    capsule = source.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(get(capsule, _CAPSULE))
    shape = tensor.shape[: tensor.ndim]
    if tensor.strides and not _contiguous(shape, tensor.strides[: tensor.ndim]):
        text = "a tensor for DMA must be contiguous (in C's order of its items)"
        raise RequestError(text, field="buffer", value=source)
    size = -(-math.prod(shape) * tensor.bits * tensor.lanes // 8)
    return (tensor.data or 0) + tensor.byte_offset, size, capsule


def _contiguous(shape: list[int], strides: list[int]) -> bool:
    """Whether the items lie behind each other, in C's order of them."""
    dense = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != dense:
            return False
        dense *= length
    return True
