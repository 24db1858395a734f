# SPDX-License-Identifier: Apache-2.0
"""Packing the records of many map calls: compiled where that was built, else in Python."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmm_iova.kernel import uapi
from vmm_iova.kernel import uapi_iommufd as abi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.kernel.book import Mappable

__all__ = [
    "IOAS_MAP",
    "TYPE1_MAP",
    "ioas_flags",
    "pack_ioas",
    "pack_ioas_plain",
    "pack_type1",
    "pack_type1_plain",
]

TYPE1_MAP = struct.Struct("=IIQQQ")
IOAS_MAP = struct.Struct("=IIIIQQQ")


def pack_type1_plain(pieces: Sequence[Mappable]) -> bytearray:
    """Return the records of VFIO_IOMMU_MAP_DMA for these pieces."""
    read, write, pack = uapi.MAP_READ, uapi.MAP_WRITE, TYPE1_MAP.pack
    return bytearray().join(
        pack(
            32,
            (read if item.read else 0) | (write if item.write else 0),
            item.hva,
            item.iova,
            item.size,
        )
        for item in pieces
    )


def ioas_flags(fixed: bool, read: bool, write: bool) -> int:
    """Return the flags of IOMMU_IOAS_MAP and its like."""
    return (
        (abi.MAP_FIXED_IOVA if fixed else 0)
        | (abi.MAP_READABLE if read else 0)
        | (abi.MAP_WRITEABLE if write else 0)
    )


def pack_ioas_plain(pieces: Sequence[Mappable], ioas_id: int) -> bytearray:
    """Return the records of IOMMU_IOAS_MAP, at fixed places, for these pieces."""
    pack = IOAS_MAP.pack
    return bytearray().join(
        pack(
            40,
            ioas_flags(True, item.read, item.write),
            ioas_id,
            0,
            item.hva,
            item.size,
            item.iova,
        )
        for item in pieces
    )


try:
    from vmm_iova.kernel._ioctl import pack_ioas, pack_type1
except ImportError:  # not compiled
    pack_type1, pack_ioas = pack_type1_plain, pack_ioas_plain
