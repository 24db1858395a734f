# SPDX-License-Identifier: Apache-2.0
"""The parts of a machine model: RAM windows, what has its place, the 64-bit PCI window, hotplug."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from vmm_iova.ranges import Gpa
from vmm_iova.record import record

if TYPE_CHECKING:
    from vmm_iova.ranges import AddrRange

FixedKind = Literal["device", "doorbell", "firmware", "reserved", "window"]
"""What has a fixed place, or one above RAM."""

FIXED_KINDS: tuple[FixedKind, ...] = get_args(FixedKind)

Ability = Literal["split", "move"]
"""What a VMM can do with RAM whose own place is not free: cut it, or move it as a whole."""

FirmwareKind = Literal["seabios", "ovmf", "none"]
"""What gives out the BARs of a PC before its operating system: SeaBIOS, OVMF, or nothing."""

CpuVendor = Literal["amd", "intel", "other"]
"""Whose CPU a guest has: QEMU and OVMF go by the vendor that CPUID names; Hygon counts as other."""

LowCap = Literal["window", "all"]
"""How an option for less RAM below 4 GiB counts."""

ABILITIES: tuple[Ability, ...] = get_args(Ability)
CPU_VENDORS: tuple[CpuVendor, ...] = get_args(CpuVendor)
FIRMWARE_KINDS: tuple[FirmwareKind, ...] = get_args(FirmwareKind)


@record
class RamWindow:
    """A span of guest addresses that RAM fills from the bottom.

    Attributes:
        name: `low`, `high`, ...
        range: the span.
        whole_below: a guest with less RAM than this many bytes has it all in this window, up to
            that address; None when there is no such rule.
        required: bytes at the start of the span that must be RAM; 0 when none.
        move_to: where all of this window's RAM may go instead, or None.
        movable: it may go anywhere instead.
        movable_note: what to know about that.
        move_past: the VMM itself moves RAM, and only then, when RAM, hotplugged memory or the
            64-bit PCI window reaches this address; None: it moves when it is told to.
        move_cpu: the vendor of the guest's CPU with which it does so; None: any.
        cap: how the VMM's option for less RAM below 4 GiB counts: it caps the `window`, or takes
            the place of `whole_below` too (`all`); None when there is no such option.
    """

    name: str
    range: AddrRange
    whole_below: int | None = None
    required: int = 0
    move_to: Gpa | None = None
    movable: bool = False
    movable_note: str | None = None
    move_past: Gpa | None = None
    move_cpu: CpuVendor | None = None
    cap: LowCap | None = None


@record
class FixedItem:
    """Something that has its fixed place and is not free RAM.

    Attributes:
        name: what it is.
        kind: what sort of thing.
        range: guest addresses.
    """

    name: str
    kind: FixedKind
    range: AddrRange


@record
class AboveItem:
    """Something that the machine puts above RAM, each at the next multiple of `align` in turn.

    Attributes:
        name: what it is.
        kind: what sort of thing.
        size: bytes, a power of two.
        align: bytes, a power of two.
    """

    name: str
    kind: FixedKind
    size: int
    align: int


@record
class Pci64Window:
    """The 64-bit PCI window: above all RAM, so its place depends on the layout.

    Whether its VMM can be told another size, or where it begins, is said by the machine's options
    (`pci64`, `pci64_start`): without them it stays as the machine has it.

    Attributes:
        size: bytes by default; None for all that is left up to the top of the guest's addresses.
        align: bytes; with `self_aligned` the size by default.
        floor: lowest address.
        start: its fixed place, which RAM windows leave free; None when it lies above RAM.
        share: with `size` None, the topmost 1/share of the guest's addresses instead.
        top_free: bytes at the top of the guest's addresses that it leaves free.
        step: with `size` None, it has as many whole `step` bytes as fit, counted from its start;
            0 when it has all.
        downward: True if the VMM gives out BARs from its top.
        self_aligned: True if it is aligned to its size, which then is a power of two.
        least: fewest bytes that the VMM takes for its size.
        must_fit: the VMM does not start when it reaches beyond the guest's addresses; else it is
            left out.
        last_align: its end is rounded up to a multiple of this.
        hides_ram: it lies where it is, also over RAM, which the guest then loses.
    """

    size: int | None
    align: int
    floor: Gpa
    start: Gpa | None = None
    share: int | None = None
    top_free: int = 0
    downward: bool = False
    self_aligned: bool = False
    least: int = 0
    step: int = 0
    must_fit: bool = False
    last_align: int = 1
    hides_ram: bool = False


@record
class OpenDoorbell:
    """A doorbell whose place the machine leaves open: where a guest's devices write interrupts.

    Attributes:
        name: what it is, such as `its`.
        size: bytes, a power of two.
        align: bytes, a power of two.
        range: where it may be.
    """

    name: str
    size: int
    align: int
    range: AddrRange


@record
class Hotplug:
    """Where the VMM has memory that is plugged in later: above RAM, before the 64-bit window.

    Attributes:
        align: its start is the next multiple of this many bytes above RAM.
        slot: bytes that each slot adds to its size, so that every module can be aligned.
        floor: lowest address.
        size_align: its size is rounded up to a multiple of this.
    """

    align: int
    slot: int = 0
    floor: Gpa = Gpa(0)
    size_align: int = 1
