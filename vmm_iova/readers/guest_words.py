# SPDX-License-Identifier: Apache-2.0
"""A guest as people describe it in a report: sizes, devices and machine, in words.

No format: what is found is found by the words beside the numbers (`64 GiB RAM`, `maxmem 1.5 TiB`,
`8 GPUs`, `[size=512G]`, `46 address bits`), as issues of KubeVirt, edk2 and Red Hat have them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.errors import IovaError
from vmm_iova.patterns import regex
from vmm_iova.ranges import MIB
from vmm_iova.record import record
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable

_SIZE = r"(?P<size>\d{1,5}(?:\.\d{1,3})?) ?(?P<unit>[MGT])i?B?"
_RAM = (
    regex(rf"\b{_SIZE} (?:of )?(?:guest )?(?:RAM|memory)\b", re.IGNORECASE),
    regex(rf"\b(?:RAM|memory)(?: size)? ?[:=]? ?{_SIZE}\b", re.IGNORECASE),
)
_MAXMEM = regex(rf"\bmax(?:imum)?[ _-]?mem(?:ory)? ?[:=]? ?{_SIZE}\b", re.IGNORECASE)
_BITS = regex(
    r"\baddress bits:? ?(?P<after>\d{2})\b|\bphys-bits ?[=:]? ?(?P<option>\d{2})\b|"
    r"\b(?P<before>\d{2})(?:-bit| bits?)? (?:guest )?(?:physical )?address",
    re.IGNORECASE,
)
_MACHINE = regex(r"\b(?:pc-)?(?P<machine>q35|i440fx)\b", re.IGNORECASE)
_GUEST = regex(r"\b(?:guests?|VMs?|virtual machines?|QEMU|KVM|q35|i440fx)\b", re.IGNORECASE)
_COUNT = regex(
    r"\b(?P<count>\d{1,3}) ?(?:x )?(?:(?!of\b)[A-Za-z][\w-]{0,20} ){0,2}"
    r"(?:GPUs|cards|accelerators)\b",
    re.IGNORECASE,
)
_BAR = (
    regex(r"Memory .{0,60}64-bit.{0,40}\[size=(?P<size>\d{1,5})(?P<unit>[MGT])\]"),
    regex(rf"\b{_SIZE} BARs?\b"),
    regex(rf"\bBARs? of {_SIZE}\b"),
)
_AMD = regex(r"\bEPYC\b|\bRyzen\b|\bThreadripper\b|AuthenticAMD|\bAMD (?:CPU|host|server)\b")
_INTEL = regex(r"\bXeon\b|GenuineIntel|\bIntel (?:CPU|host|server)\b")
_OVMF = regex(r"\b(?:OVMF|edk2)\b", re.IGNORECASE)
_SEABIOS = regex(r"\bSeaBIOS\b", re.IGNORECASE)
_MOST_BARS = 64
_LONGEST = 100_000  # characters: people describe a guest in a few lines, and paste logs behind it


@record
class GuestWords:
    """A guest that a text describes.

    Attributes:
        ram: bytes.
        maxmem: bytes that it may grow to, or None.
        machine: `q35` or `i440fx`, or None.
        bits: guest physical address bits, or None.
        cpu: `amd` or `intel`, where the host's or the guest's CPU is named, or None.
        firmware: `ovmf` or `seabios`, or None.
        bars: bytes of each large BAR, device by device.
    """

    ram: int
    maxmem: int | None = None
    machine: str | None = None
    bits: int | None = None
    cpu: str | None = None
    firmware: str | None = None
    bars: tuple[int, ...] = ()


def read_guest_words(lines: Iterable[str]) -> GuestWords | None:
    """Read a description; None where no guest's RAM is told, which is the least that a plan takes.

    Complexity: O(size), of at most 100,000 characters.
    """
    text = "\n".join(line[:1000] for line in lines)[:_LONGEST]
    ram = next((size for size in (_size(pattern.search(text)) for pattern in _RAM) if size), None)
    if ram is None or _GUEST.search(text) is None:
        return None
    bits = _BITS.search(text)
    machine = _MACHINE.search(text)
    amd, intel = _AMD.search(text), _INTEL.search(text)
    ovmf, seabios = _OVMF.search(text), _SEABIOS.search(text)
    sizes = [_size(match) for pattern in _BAR for match in pattern.finditer(text)]
    large = [size for size in sizes if size and size >= MIB and size & (size - 1) == 0]
    count = _COUNT.search(text)
    each = int(count["count"]) if count and len(large) == 1 else 1  # `8 GPUs, each: ...`
    return GuestWords(
        ram=ram,
        maxmem=_size(_MAXMEM.search(text)),
        machine=machine["machine"].lower() if machine else None,
        bits=int(bits["after"] or bits["option"] or bits["before"]) if bits else None,
        cpu=None if bool(amd) == bool(intel) else "amd" if amd else "intel",
        firmware=None if bool(ovmf) == bool(seabios) else "ovmf" if ovmf else "seabios",
        bars=tuple(large * each)[:_MOST_BARS],
    )


def _size(match: re.Match[str] | None) -> int | None:
    if match is None:
        return None
    try:
        return parse_size(f"{match['size']}{match['unit'].upper()}iB")
    except IovaError:
        return None
