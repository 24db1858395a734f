# SPDX-License-Identifier: Apache-2.0
"""Answers of a kernel that cannot be trusted: chains that loop, lists that lie, sizes that grow.

What the readers make of an answer is held against a second reader, which knows nothing of the
first: it takes the bytes apart with `struct` alone. Nothing but `CapabilityError` may come out, and
an answer that one of the two refuses, the other must refuse too.
"""

from __future__ import annotations

import itertools
import struct

from fuzz.draw import Draw
from vmm_iova.errors import CapabilityError
from vmm_iova.kernel import caps, uapi
from vmm_iova.ranges import ADDRESS_LAST


class Refused(Exception):  # noqa: N818 - the second reader's only word
    """The second reader does not take the answer."""


def _chain(answer: bytes, first: int, total: int) -> list[tuple[int, int, bytes, int]]:
    """Take a chain apart: id, version, payload up to the next header in the answer, offset."""
    offsets: list[int] = []
    at = first
    while at:
        if at < 16 or at + 8 > total or at in offsets:
            raise Refused
        offsets.append(at)
        at = struct.unpack_from("=I", answer, at + 4)[0]
    found, seen = [], set()
    for at in offsets:
        kind, version = struct.unpack_from("=HH", answer, at)
        stop = min([other for other in offsets if other > at], default=total)
        if kind not in seen:
            seen.add(kind)
            found.append((kind, version, answer[at:stop], at))
    return found


def _ranges(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    pairs = sorted(pairs)
    upside_down = any(last < start for start, last in pairs)
    overlap = any(above[0] <= below[1] for below, above in itertools.pairwise(pairs))
    if upside_down or overlap:
        raise Refused
    return pairs


def _field(code: str, payload: bytes, at: int, size: int) -> int:
    if len(payload) < size:
        raise Refused
    value: int = struct.unpack_from(f"={code}", payload, at)[0]
    return value


def _type1(answer: bytes) -> tuple[object, ...]:
    if len(answer) < 24:
        raise Refused
    argsz, flags, sizes, first, _ = struct.unpack_from("=IIQII", answer)
    ranges = entries = None
    dirty = limit = 0
    unknown = []
    total = min(argsz, len(answer))
    for kind, _, payload, _ in _chain(answer, first if flags & 2 else 0, total):
        if kind == 1:
            count = _field("I", payload, 8, 16)
            if 16 + 16 * count > len(payload):
                raise Refused
            body = payload[16 : 16 + 16 * count]
            ranges = _ranges(list(struct.iter_unpack("=QQ", body)))  # type: ignore[arg-type]
        elif kind == 3:
            entries = _field("I", payload, 8, 12)
        elif kind == 2:
            dirty, limit = _field("Q", payload, 16, 32), _field("Q", payload, 24, 32)
        else:
            unknown.append(kind)
    return sizes if flags & 1 else 0, ranges, entries, dirty, limit, tuple(unknown)


def _device(answer: bytes) -> tuple[object, ...]:
    if len(answer) < 24:
        raise Refused
    argsz, flags, regions, irqs, first, _ = struct.unpack_from("=IIIIII", answer)
    base, group, unknown = None, (None, None), []
    total = min(argsz, len(answer))
    for kind, version, payload, _ in _chain(answer, first if flags & 128 else 0, total):
        if kind == 1:
            start, last = _field("Q", payload, 8, 32), _field("Q", payload, 16, 32)
            base = (version, start, last, payload[30], payload[31])
        elif kind == 2:
            group = (_field("Q", payload, 8, 40), _field("Q", payload, 16, 40))
        else:
            unknown.append(kind)
    if base is not None and base[2] < base[1]:
        raise Refused
    return flags, regions, irqs, base and (*base, *group), tuple(unknown)


def _shown_type1(facts: caps.Type1Facts) -> tuple[object, ...]:
    ranges = None if facts.ranges is None else [(r.start, r.last) for r in facts.ranges]
    return (
        facts.page_sizes,
        ranges,
        facts.entries_left,
        facts.dirty_page_sizes,
        facts.max_dirty_bitmap,
        facts.unknown,
    )


def _shown_device(facts: caps.DeviceFacts) -> tuple[object, ...]:
    zpci = facts.zpci and (
        facts.zpci.version,
        facts.zpci.dma.start,
        facts.zpci.dma.last,
        facts.zpci.function_type,
        facts.zpci.group_id,
        facts.zpci.space_mask,
        facts.zpci.msi_address,
    )
    return facts.flags, facts.regions, facts.irqs, zpci, facts.unknown


_HEADS = (
    # id, payload behind the header of 8 bytes; sound ones, for inputs that bend them
    (1, struct.pack("=II4Q", 2, 0, 0, 0xFEDF_FFFF, 0xFEF0_0000, (1 << 39) - 1)),
    (1, struct.pack("=II", 0, 0)),
    (2, struct.pack("=IIQQ", 0, 0, 0x1000, 1 << 28)),
    (3, struct.pack("=I", 65535)),
    (1, struct.pack("=QQHHHBB", 0x1000, ADDRESS_LAST, 0, 0, 64, 1, 2)),
    (2, struct.pack("=QQQHHBBH", 1, 2, 0, 0, 0, 0, 0, 0)),
    (9, b"what no one knows"),
)


def _answer(draw: Draw) -> bytes:
    """Make an answer: a sound one, then some of its bytes are others."""
    chain = b""
    count = draw.below(5)
    for left in reversed(range(count)):
        kind, payload = draw.one_of(_HEADS)
        following = 24 + len(chain) + 8 + len(payload) if left else 0
        chain += struct.pack("=HHI", kind, draw.below(3), following) + payload
    total = 24 + len(chain) + draw.one_of((0, 0, 0, 1, -1))
    answer = bytearray(struct.pack("=IIQII", total, 0x83, 0x4020_1000, 24 if chain else 0, 0))
    answer += chain
    for _ in range(draw.below(4)):
        at = draw.below(len(answer))
        answer[at : at + 1] = draw.bytes(1)
    if not draw.below(8):
        del answer[draw.below(len(answer)) :]
    return bytes(answer)


def one_input(data: bytes) -> None:
    """Read one answer, in both ways, as a container's and as a device's."""
    draw = Draw(data)
    raw = not draw.below(4)
    rounds = [draw.below(1 << 12) for _ in range(draw.below(6))]
    answer = draw.rest() if raw else _answer(draw)
    pairs = (
        (caps.read_type1_info, _type1, _shown_type1),
        (caps.read_device_info, _device, _shown_device),
    )
    for read, second, shown in pairs:
        try:
            expected = second(answer)
        except Refused:
            expected = None
        try:
            found = shown(read(answer))  # type: ignore[operator]
        except CapabilityError:
            found = None
        assert found == expected, (answer.hex(), found, expected)
    _grow(rounds)


def _grow(rounds: list[int]) -> None:
    """A kernel whose answer grows and shrinks is read whole, or given up after some rounds."""
    calls = 0

    def call(buffer: bytearray) -> None:
        nonlocal calls
        size = rounds[calls % len(rounds)] if rounds else len(buffer)
        calls += 1
        assert not any(buffer[4:]), "each round begins with zeros"
        struct.pack_into("=I", buffer, 0, size)

    try:
        answer = uapi.grow_by_argsz(call, uapi.TYPE1_INFO)
    except CapabilityError:
        pass
    else:
        assert uapi.TYPE1_INFO.minimum <= struct.unpack_from("=I", answer)[0] <= len(answer)
    assert calls <= uapi.GROW_LIMIT
