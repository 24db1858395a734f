# SPDX-License-Identifier: Apache-2.0
"""Why a VMM or its firmware does what a layout has, and what would have it do otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.machines.firmware import RELEASES, BarNeed, Board, Firmware, place, windows
from vmm_iova.ranges import GIB, MIB
from vmm_iova.record import record, replace
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.planning.bars import WantedBar
    from vmm_iova.planning.ram import PlacedRam
    from vmm_iova.planning.site import Site

_LARGE = GIB  # smaller BARs find room beside the others


@record
class Reason:
    """Something that a person may not expect of a guest that fits.

    Attributes:
        text: what comes of it, a clause that stands first in the answer.
        why: the rule that it comes of.
        action: what to do for it to be otherwise, or nothing.
    """

    text: str
    why: str
    action: str | None = None


def reasons_of(site: Site, ram: PlacedRam) -> Iterator[Reason]:
    """Yield what a person should know of the VMM's own rules, for this layout."""
    yield from _moved(site, ram)
    yield from _behind_ports(site, ram)


# -- memory that is plugged in, and RAM that is moved for it ---------------------------------------


def _moved(site: Site, ram: PlacedRam) -> Iterator[Reason]:
    """QEMU moves all RAM above 4 GiB when what lies above it would reach AMD's hole.

    Source: pc_max_used_gpa() and pc_memory_init(), hw/i386/pc.c; RHEL-98247 for what it does to
    guests.
    """
    wanted, window = site.wanted, site.wanted.machine.ram[-1]
    spare = site.spare()
    if spare < GIB or window.move_to is None:
        return  # the VMM moves none, or RAM itself is too large
    limit = f"{window.move_past:#x}"
    if ram.done == "move" and wanted.hotplug:
        slots = wanted.hotplug - (wanted.maxmem - wanted.ram)
        most = (wanted.ram + spare - slots) // GIB
        yield Reason(
            f"because of maxmem, QEMU moves all RAM above 4 GiB to {window.move_to:#x}, {_FAILS}",
            f"with maxmem the guest would end above {limit}, which is what QEMU moves RAM for",
            say.LESS_MAXMEM.format(size=f"{most}G"),
        )
    rooms = sum(room.size for room in wanted.rooms)
    if not wanted.hotplug and wanted.machine.hotplug is not None and rooms > spare:
        maxmem = -(-(wanted.ram + rooms) // GIB)
        yield Reason(
            f"as memory that is plugged in, the room of {format_size(rooms)} makes QEMU move all "
            f"RAM above 4 GiB to {window.move_to:#x}, {_FAILS}",
            f"the room is kept as asked for; as QEMU's area for plugged memory it would end above "
            f"{limit}, which is what QEMU moves RAM for",
            say.AS_MAXMEM.format(
                size=f"{maxmem}G",
                spare=format_size(spare // GIB * GIB),
                most=f"{(wanted.ram + spare) // GIB}G",
            ),
        )


_FAILS = "where NVIDIA's driver on Windows was seen to fail (Code 43)"
"""RHEL-98247."""


# -- BARs behind root ports ------------------------------------------------------------------------


def _behind_ports(site: Site, ram: PlacedRam) -> Iterator[Reason]:
    """OVMF's window is full where each device is behind a port of its own, as libvirt has them.

    A port's window is as large as all BARs of its device, and aligned to the largest: with a second
    64-bit BAR the next begins at twice the largest. Seen on OVMF 2022.11 and 2025.02: eight devices
    of 512 GiB and 32 MiB leave half a TiB of 8, and each further port takes 32 GiB of it.
    """
    wanted = site.wanted
    large = [bar for bar in wanted.bars if bar.bits == 64 and bar.size >= _LARGE]
    if wanted.machine.firmware is None or not large or wanted.ovmf_window is not None:
        return
    named = [item for item in wanted.firmware if item.kind == "ovmf"]
    if not named and not wanted.firmware_open:
        return
    board, ports = site.board(ram.spans), wanted.machine.pcie
    releases = named or [item for item in RELEASES if item.kind == "ovmf"]
    devices = [_device(bar, port=ports) for bar in large]
    further = _OTHER_PORTS if wanted.spare_ports is None else len(wanted.spare_ports)
    others = [BarNeed(MIB, MIB, (BarNeed(MIB, MIB),))] * (further if ports else 0)
    tight = [one for one in releases if place(one, board, [*devices, *others]) is None]
    if not tight:
        return
    release = tight[0]
    room = windows(release, board).high
    if room is None:
        return
    alike = [item for item in tight if windows(item, board).high == room]
    who = "OVMF" if len(alike) == len(releases) else ", ".join(map(str, alike))
    # The second BAR of each is assumed: where there is room without it, it may go well.
    alone = [BarNeed(bar.size, bar.align) for bar in large]
    finds = "finds" if place(release, board, alone) is None else "may find"
    needed = 2 * sum(bar.align for bar in large) if ports else sum(bar.align for bar in large)
    size = format_size(room.size)
    takes = f"{format_size(needed)}, and the 64-bit window has {size}"
    if place(release, board, devices) is not None:
        spare = format_size(room.size >> 8)
        takes = f"nearly all of the 64-bit window of {size}, and each further port {spare} of it"
    elif needed == room.size:
        takes = f"all of the 64-bit window of {size}"
    if len(large) == 1:
        which, takes = "the BAR", f"its device{' behind a root port' * ports} takes {takes}"
    else:
        which, takes = "one BAR", f"{len(large)} devices{' behind root ports' * ports} take {takes}"
    behind = (
        "; behind a port of its own, as libvirt has it, a device with a second 64-bit BAR takes "
        "twice its largest one"
    )
    yield Reason(
        f"with {who} {which} {finds} no place: {takes}",
        f"OVMF decides where BARs go{behind * ports}",
        _larger(site, board, release, needed),
    )


_OTHER_PORTS = 16
"""Root ports beside those of the devices: libvirt makes some for disks, nets and hotplug."""
_SECOND = 32 * MIB  # the second 64-bit BAR that GPUs have


def _device(bar: WantedBar, *, port: bool) -> BarNeed:
    need = BarNeed(bar.size, bar.align)
    second = BarNeed(_SECOND, _SECOND)
    return BarNeed(bar.size + _SECOND, bar.align, (need, second)) if port else need


def _larger(site: Site, board: Board, release: Firmware, needed: int) -> str | None:
    """Tell OVMF a window that is large enough, and the guest address bits that it takes."""
    size = 1 << needed.bit_length()  # a power of two, with room for the small ones
    room = windows(release, replace(board, ovmf_window=size)).high
    if room is None:
        return None
    machine, bits = site.wanted.machine, room.last.bit_length()
    option = machine.option("ovmf_window", mib=size // MIB) or ""
    now = site.wanted.limits[0].bits if site.wanted.limits else bits
    if bits <= now:
        return say.TELL_OVMF.format(option=option, size=format_size(size))
    host = site.host.cpu_bits
    if host is not None and bits > host:
        return say.FEWER_PORTS.format(bits=bits, host=host)
    more = machine.option("least_bits", bits=bits) or f"{bits} guest address bits"
    return say.TELL_OVMF_BITS.format(option=option, size=format_size(size), more=more)


def actions_of(reasons: Sequence[Reason]) -> tuple[str, ...]:
    """Return what there is to do."""
    return tuple(item.action for item in reasons if item.action is not None)
