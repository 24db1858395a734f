# SPDX-License-Identifier: Apache-2.0
"""Where SeaBIOS and OVMF put the BARs and the configuration space of a QEMU PC.

SeaBIOS src/fw/pciinit.c, pci_bios_map_devices(); edk2 OvmfPkg/Library/PlatformInitLib/MemDetect.c,
PlatformGetFirstNonAddress() and PlatformDynamicMmioWindow(). What is not read there was seen on
SeaBIOS 1.16.2, 1.16.3 and 1.17.0 and OVMF 2022.11, 2025.02 and 2026.08 (`python -m lab.vmm`
compares).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.errors import RequestError
from vmm_iova.machines.parts import FIRMWARE_KINDS
from vmm_iova.ranges import GIB, MIB, AddrRange
from vmm_iova.record import ordered, record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_iova.machines.model import Machine
    from vmm_iova.machines.parts import CpuVendor, FirmwareKind

_FOUR_GIB = 4 * GIB
_OVMF_BITS = (
    46  # MemDetect.c, PlatformAddressWidthFromCpuid(): no 5-level paging, old Linux kernels
)
_OVMF_SMALL_BITS = 40  # the same, where the CPU has no pages of 1 GiB
_OVMF_WINDOW = 32 * GIB  # PcdPciMmio64Size (OvmfPkg/OvmfPkgX64.dsc)
_SEABIOS_TOP = 0xFEC0_0000  # BUILD_PCIMEM_END (SeaBIOS src/config.h): the I/O APIC
_ECAM = 256 * MIB
_OVMF_NEW = (2023, 2)  # 2022.11 does otherwise, 2025.02 as all since; seen, none between was tried
_SEABIOS_PORT = 2 * MIB  # PCI_BRIDGE_MEM_MIN (SeaBIOS src/fw/pciinit.c)
_OVMF_PORT = MIB  # what a bridge decodes (PciBusDxe/PciResourceSupport.c)


@ordered
class Firmware:
    """A release of a firmware.

    Attributes:
        kind: which.
        version: such as (1, 16, 3) or (2025, 2); empty where it does not matter.
    """

    kind: FirmwareKind
    version: tuple[int, ...] = ()

    def __str__(self) -> str:
        names = {"seabios": "SeaBIOS", "ovmf": "OVMF", "none": "no firmware"}
        if self.kind == "ovmf" and self.version:
            return f"OVMF {self.version[0]}.{self.version[1]:02}"
        return " ".join([names[self.kind], ".".join(map(str, self.version))]).rstrip()

    @property
    def option(self) -> str:
        """How `--firmware` names it."""
        number = str(self).partition(" ")[2]
        return f"{self.kind}-{number}" if self.version else self.kind


RELEASES = (
    Firmware("seabios", (1, 16, 2)),
    Firmware("seabios", (1, 16, 3)),
    Firmware("seabios", (1, 17, 0)),
    Firmware("ovmf", (2022, 11)),
    Firmware("ovmf", (2025, 2)),
    Firmware("ovmf", (2026, 8)),
)
"""One release of each way to place BARs, oldest first: those in use that differ."""


def candidates(name: str | None, machine: Machine) -> tuple[Firmware, ...]:
    """Return the releases that a name may mean; none where the machine does not depend on it.

    Args:
        name: `seabios`, `ovmf`, `none`, or one with a version: `seabios-1.16.3`; None for the
            machine's usual one.
        machine: the model.

    Raises:
        RequestError: no such firmware, or the machine has none.
    """
    if machine.firmware is None:
        if name not in (None, "none"):
            raise RequestError(
                f"machine {machine.name}: the place of its BARs does not depend on firmware",
                field="firmware",
                value=name,
            )
        return ()
    text = machine.firmware if name is None else name
    match = re.fullmatch(r"([a-z]+)(?:-(\d+(?:\.\d+){1,2}))?", text)
    kind = next((known for known in FIRMWARE_KINDS if match and match[1] == known), None)
    if match is None or kind is None or (kind == "none" and match[2]):
        raise RequestError(
            f"firmware {text!r} is none of {', '.join(FIRMWARE_KINDS)}, or of the form "
            "seabios-1.16.3 or ovmf-2025.02",
            field="firmware",
            value=text,
        )
    if match[2]:
        return (Firmware(kind, tuple(map(int, match[2].split(".")))),)
    return tuple(item for item in RELEASES if item.kind == kind) or (Firmware(kind),)


@record
class BarNeed:
    """What of a device wants a place together: one BAR, or all behind a root port.

    Attributes:
        size: bytes of the BAR, or of all behind the port.
        align: bytes, a power of two.
        behind: BARs behind a root port, which stand in one window of it; empty for a port with
            nothing behind it, or only what is small. None: it is no port.
        low: True if it must lie below 4 GiB.
    """

    size: int
    align: int
    behind: tuple[BarNeed, ...] | None = None
    low: bool = False


@record
class Board:
    """What firmware finds when it starts.

    Attributes:
        q35: True for a PC with a PCIe configuration space.
        low_end: where RAM below 4 GiB ends.
        high_end: where RAM above 4 GiB ends; 4 GiB when there is none.
        reserved_end: where the area for hotplugged memory ends; 0 when there is none.
        bits: guest physical address bits.
        cpu: vendor.
        big_pages: True if the CPU has pages of 1 GiB.
        reserved: what QEMU's e820 table reserves.
        ovmf_window: bytes that opt/ovmf/X-PciMmio64Mb states, or None.
    """

    q35: bool
    low_end: int
    high_end: int
    reserved_end: int
    bits: int
    cpu: CpuVendor
    big_pages: bool = True
    reserved: tuple[AddrRange, ...] = ()
    ovmf_window: int | None = None


@record
class Windows:
    """Where firmware gives out BARs.

    Attributes:
        low: below 4 GiB.
        high: above; None where it has none.
        ecam: the PCIe configuration space, or None.
    """

    low: AddrRange
    high: AddrRange | None
    ecam: AddrRange | None


def _known_bits(board: Board, *, intel: Iterable[int]) -> int:
    """The address bits that firmware believes; 0 for a width that QEMU may have made up.

    QEMU says 40 by default whatever the host has, so both go by what CPUs of a vendor really have
    (MemDetect.c, PlatformAddressWidthFromCpuid(); SeaBIOS src/fw/paravirt.c, physbits()).
    """
    good = board.bits >= 41
    good |= board.cpu == "intel" and board.bits in intel
    good |= board.cpu == "amd" and board.bits == 40
    return board.bits if good else 0


def _up(value: int, align: int) -> int:
    return -(-value // align) * align


def place(
    firmware: Firmware, board: Board, bars: Sequence[BarNeed]
) -> list[list[AddrRange]] | None:
    """Return where firmware puts BARs, in the order given; None if they have no place.

    One place for a BAR; behind a root port one for each BAR there. A port with nothing behind it
    has a window for what is plugged in later, and moves others.

    Args:
        firmware: which.
        board: what it finds.
        bars: BARs and ports, in the order of the bus.

    Complexity: O(bars²).
    """
    every = [bar if bar.behind is None else _port(firmware, board, bar.behind) for bar in bars]
    windowed = [bar for bar in every if bar.size]
    down = firmware.kind == "seabios"
    room = windows(firmware, board).low
    # SeaBIOS has all below 4 GiB where that is enough.
    all_low = down and not _seabios_pads(firmware, board) and _below(every) >= room.start
    lower = [bar for bar in windowed if bar.low or all_low]
    upper = [bar for bar in windowed if not (bar.low or all_low)]
    below = _stack(firmware, lower, _below(lower) if down else room.start)
    above = _stack(firmware, upper, 0)
    if upper:
        start, stop = _seabios(firmware, board, upper) if down else _ovmf(firmware, board)
        above = _stack(firmware, upper, start)
        if max(span.last for span in above) >= stop:
            return None
    if any(span not in room for span in below):
        return None
    low, high = iter(below), iter(above)
    places: list[list[AddrRange]] = []
    for bar in every:
        span = next(low if bar.low or all_low else high) if bar.size else None
        if span is None:
            places.append([])
        else:
            places.append([span] if bar.behind is None else _behind(firmware, span, bar.behind))
    return places


def _stack(firmware: Firmware, bars: Sequence[BarNeed], start: int) -> list[AddrRange]:
    """Put BARs one above the other, in the order that the firmware has for them.

    Both give out the largest first. SeaBIOS comes to ports after the other devices, and to the last
    port first (pci_bios_check_devices()). OVMF sorts what is prefetchable once by itself, and again
    when it joins what is not (PciBusDxe/PciResourceSupport.c, MergeResourceTree()).
    """

    def key(index: int) -> tuple[int, int, bool, int]:
        bar = bars[index]
        port = bar.behind is not None
        return -bar.align, -bar.size, port, -index if port else index

    places: dict[int, AddrRange] = {}
    at = start
    order = sorted(range(len(bars)), key=key)
    if firmware.kind == "ovmf":
        order = _ovmf_order(bars, _ovmf_order(bars, range(len(bars))))
    for index in order:
        at = _up(at, bars[index].align)
        places[index] = AddrRange.from_size(at, bars[index].size)
        at += bars[index].size
    return [places[index] for index in range(len(bars))]


def _ovmf_order(bars: Sequence[BarNeed], found: Iterable[int]) -> list[int]:
    """Sort BARs as OVMF does (PciBusDxe/PciResourceSupport.c, InsertResourceNode()).

    Each goes before those of smaller alignment, and before equal ones unless it leaves less behind
    its last whole multiple of the alignment: of equal BARs, the last found comes first.
    """
    order: list[int] = []
    for index in found:
        align, rest = bars[index].align, bars[index].size % bars[index].align
        at = 0
        for other in (bars[item] for item in order):
            if align > other.align:
                break
            if align == other.align and (not rest or rest >= other.size % other.align):
                break
            at += 1
        order.insert(at, index)
    return order


def _below(bars: Sequence[BarNeed]) -> int:
    """Where SeaBIOS begins with BARs below 4 GiB (pci_bios_init_root_regions_mem()).

    The small BARs of other devices stand above, and other windows of ports.
    """
    largest = max((bar.align for bar in bars), default=1)
    ports = sum(bar.behind is not None for bar in bars)
    spare = MIB + ports * _SEABIOS_PORT
    return max(0, (_SEABIOS_TOP - spare - sum(bar.size for bar in bars)) // largest * largest)


def _behind(firmware: Firmware, window: AddrRange, bars: Sequence[BarNeed]) -> list[AddrRange]:
    """Where the BARs behind a port are in its window."""
    ovmf = firmware.kind == "ovmf"
    order = sorted(range(len(bars)), key=lambda i: (-bars[i].align, -bars[i].size, i))
    if ovmf:
        order = _ovmf_order(bars, range(len(bars)))
    places: dict[int, AddrRange] = {}
    at = window.start
    for index in order:
        size, align = bars[index].size, bars[index].align
        # SeaBIOS adds one size to the other, also in a window that suits none of them.
        at = _up(at, align) if ovmf else at
        places[index] = AddrRange.from_size(at, size)
        at += size
    return [places[index] for index in range(len(bars))]


def _port(firmware: Firmware, board: Board, behind: tuple[BarNeed, ...]) -> BarNeed:
    """The window of a port, with what firmware adds for devices that are plugged in later."""
    largest = max((bar.align for bar in behind), default=1)
    sizes = sum(bar.size for bar in behind)
    if firmware.kind == "seabios":
        # pci_bios_check_devices(): 1/2048 of the addresses; 1.17.0 is the first whose alignment
        # suits larger BARs, too ("pciinit: don't misalign large BARs").
        align = max(_SEABIOS_PORT, largest)
        top = _seabios_top(firmware, board)
        if top and _seabios_pads(firmware, board):
            align = max(align, top >> 11) if firmware.version >= (1, 17, 0) else top >> 11
        return BarNeed(_up(sizes or 1, align), align, behind)
    places = _behind(firmware, AddrRange(0, 0), behind)
    used = _up(max((place.last + 1 for place in places), default=0), _OVMF_PORT)
    _, size = _ovmf_window(firmware, board)
    # PciHotPlugInitDxe, GetResourcePadding(): 1/256 of the window, as a power of two; seen: none
    # of one that is no larger than the default
    spare = (1 << (size - 1).bit_length()) >> 8 if size > _OVMF_WINDOW else 0
    return BarNeed(max(used, spare), max(_OVMF_PORT, largest, spare), behind)


def _seabios(firmware: Firmware, board: Board, bars: Sequence[BarNeed]) -> tuple[int, int]:
    """Where SeaBIOS begins with 64-bit BARs, and the last address that it may take."""
    sizes = sum(bar.size for bar in bars)
    largest = max((bar.align for bar in bars), default=1)
    high, top = _seabios_pads(firmware, board), _seabios_top(firmware, board)
    base = max(board.reserved_end, board.high_end)
    if top:
        size = _up(sizes, GIB)
        if high:
            size = _up(size, top >> 3)
        base = max(base, top - size)
        taken = AddrRange.from_size(base, size)
        if any(taken.overlaps(span) for span in board.reserved):
            base -= size
    return _up(_up(base, largest), GIB), 1 << 64


def _seabios_pads(firmware: Firmware, board: Board) -> bool:
    """True where SeaBIOS has 64-bit BARs in the top eighth of the addresses (pci_pad_mem64)."""
    return _seabios_top(firmware, board) >= 1 << 36 and board.high_end > _FOUR_GIB


def _seabios_top(firmware: Firmware, board: Board) -> int:
    """Where addresses end for SeaBIOS (pci_mem64_top); 0 where it does not ask."""
    if firmware.version and firmware.version < (1, 16, 3):
        return 0
    bits = _seabios_bits(firmware, board)
    return 1 << bits if bits else 0


def _seabios_bits(firmware: Firmware, board: Board) -> int:
    """Address bits that SeaBIOS uses, with a cap for the sake of old Linux kernels."""
    bits = _known_bits(board, intel=(36, 39))
    if firmware.version < (1, 17, 0):
        return min(bits, 46)
    return bits if board.high_end - _FOUR_GIB >= 1 << 40 else min(bits, 44)


def _seabios_low(board: Board) -> AddrRange:
    """SeaBIOS's room below 4 GiB (mch_mem_addr_setup(), i440fx_mem_addr_setup())."""
    if board.q35:
        return AddrRange(0xC000_0000, _SEABIOS_TOP - 1)  # above the configuration space
    start = 0x8000_0000 if board.low_end <= 0x8000_0000 else 0xC000_0000
    return AddrRange(start if board.low_end <= 0xC000_0000 else 0xE000_0000, _SEABIOS_TOP - 1)


def _ovmf(firmware: Firmware, board: Board) -> tuple[int, int]:
    """Where OVMF's 64-bit window begins, and what follows it."""
    base, size = _ovmf_window(firmware, board)
    return base, base + size


def _ovmf_window(firmware: Firmware, board: Board) -> tuple[int, int]:
    """OVMF's 64-bit window and its size: the top eighth of the addresses, or 32 GiB above RAM."""
    size = _up(board.ovmf_window or _OVMF_WINDOW, GIB)
    base = _up(max(board.reserved_end, board.high_end), GIB)
    base = _up(base, 1 << size.bit_length() - 1)
    bits = _known_bits(board, intel=() if firmware.version >= (2026, 8) else (36, 39))
    bits = min(bits, _OVMF_BITS if board.big_pages else _OVMF_SMALL_BITS)
    new = firmware.version >= _OVMF_NEW
    asked = board.ovmf_window is not None and new  # older ones take the larger of the two
    dynamic = not asked and bits and firmware.version >= (2022, 11)
    if dynamic and size < 1 << bits - 3 and base + (1 << bits - 3) < 1 << bits:
        size = 1 << bits - 3
        base = (1 << bits) - size
        for span in board.reserved if new else ():  # PlatformReservationConflictCB()
            if span.overlaps(AddrRange.from_size(base, size)):
                base = (span.start - size) // size * size
    return base, size


def windows(firmware: Firmware, board: Board) -> Windows:
    """Return where firmware gives out BARs, and where it has the configuration space."""
    if firmware.kind != "ovmf":
        ecam = AddrRange.from_size(0xB000_0000, _ECAM) if board.q35 else None
        return Windows(_seabios_low(board), None, ecam)
    # PlatformQemuUc32BaseInitialization(): one MTRR has to cover what RAM leaves.
    rest = _FOUR_GIB - max(board.low_end, 0x8000_0000)
    start = _FOUR_GIB - (1 << rest.bit_length() - 1)
    base, stop = _ovmf(firmware, board)
    high, last = AddrRange(base, stop - 1), 0xFBFF_FFFF
    if not board.q35:
        return Windows(AddrRange(start, last), high, None)
    # PlatformMemMapInitialization(): BARs above the configuration space, since then below it
    if firmware.version < _OVMF_NEW:
        ecam = AddrRange.from_size(0xB000_0000, _ECAM)
        return Windows(AddrRange(ecam.last + 1, last), high, ecam)
    ecam = AddrRange.from_size(0xE000_0000, _ECAM)
    return Windows(AddrRange(start, ecam.start - 1), high, ecam)
