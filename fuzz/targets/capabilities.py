# SPDX-License-Identifier: Apache-2.0
"""Capability chains of VFIO: read, or refused as contradicting themselves."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

from vmm_iova.errors import CapabilityError
from vmm_iova.kernel import caps
from vmm_iova.ranges import ADDRESS_LAST

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LENGTH = 1024


def one_input(data: bytes) -> None:
    """Walk a chain, and read it as the answer of a container and of a device."""
    if len(data) < 24:
        return
    try:
        chain = list(caps.walk(data, *struct.unpack_from("=III", data)))
    except CapabilityError as error:
        assert error.offset >= 0
    else:
        assert len({item.id for item in chain}) == len(chain)
        for item in chain:
            assert item.offset + len(item.payload) <= len(data)
            assert item.payload  # shorter than a header where the next one lies in it
    try:
        facts = caps.read_type1_info(data)
    except CapabilityError:
        pass
    else:
        for span in facts.ranges or ():
            assert 0 <= span.start <= span.last <= ADDRESS_LAST
    with contextlib.suppress(CapabilityError):
        caps.read_device_info(data)


def seeds() -> Iterator[bytes]:
    """Answers of real kernels."""
    pairs = [(0, 0xFEDF_FFFF), (0xFEF0_0000, 0xFFFF_FFFF_FFFF)]
    for following in (0, 24, 72, 9999):
        ranges = struct.pack("=HHIII", 1, 1, following, len(pairs), 0)
        ranges += b"".join(struct.pack("=QQ", *pair) for pair in pairs)
        migration = struct.pack("=HHIIIQQ", 2, 1, 56, 0, 0, 0x1000, 1 << 28)
        entries = struct.pack("=HHII", 3, 1, 72, 65535)
        for body in (ranges, migration + entries + bytes(4) + ranges, entries):
            yield struct.pack("=IIQII", 24 + len(body), 3, 0x4020_1000, 24, 0) + body
    for kind in (1, 2, 3, 4, 5):
        cap = struct.pack("=HHIQQQQ", kind, 1, 0, 0x1000, 0xFFFF, 3, 4)
        yield struct.pack("=IIIIII", 24 + len(cap), 2, 9, 5, 24, 0) + cap
