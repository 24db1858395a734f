# SPDX-License-Identifier: Apache-2.0
"""BARs and rooms that a guest wants, in numbers: checked, those behind one root port together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.errors import RequestError
from vmm_iova.planning.bars import WantedBar, room_for
from vmm_iova.ranges import BASE_PAGE, MIB, check_granule, power_up
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.host.usable import Usable
    from vmm_iova.machines.model import Machine
    from vmm_iova.planning.guest import Bar, Room


def bars_of(
    bars: Sequence[Bar], machine: Machine, ports: Sequence[str] = ()
) -> tuple[tuple[WantedBar, ...], tuple[int, ...]]:
    """Return BARs in the order of the bus, those behind one port as one; and where the others are.

    A port that is not listed stands where its first BAR does; listed ones stand together, where the
    first of them does. Of each port with nothing behind it, the number of BARs and ports before it.

    Raises:
        RequestError: a size, alignment or port makes no sense.
    """
    behind: dict[str, list[WantedBar]] = {}
    lone: list[WantedBar | str] = []
    for bar in bars:
        wanted = _bar(bar)
        if bar.port is None or bar.bits == 32:  # another window of the port is for those
            lone.append(wanted)
            continue
        if machine.firmware is not None and not machine.pcie:
            raise RequestError(
                f"machine {machine.name} has no PCIe root port: BAR {bar.name} cannot be behind "
                f"{bar.port!r}",
                field="bars",
                value=bar.port,
            )
        if bar.port not in behind:
            lone.append(bar.port)
        behind.setdefault(bar.port, []).append(wanted)
    if ports:
        lone = _in_order(lone, _checked(ports, machine))
    found: list[WantedBar] = []
    spare: list[int] = []
    for entry in lone:
        if not isinstance(entry, str):
            found.append(entry)
        elif entry in behind:
            found.append(_port(entry, behind[entry]))
        else:
            spare.append(len(found))
    return tuple(found), tuple(spare)


def _checked(ports: Sequence[str], machine: Machine) -> Sequence[str]:
    if machine.firmware is not None and not machine.pcie:
        raise RequestError(
            f"machine {machine.name} has no PCIe root port", field="ports", value=ports
        )
    twice = next((name for at, name in enumerate(ports) if name in ports[:at]), None)
    if twice is not None:
        raise RequestError(f"port {twice!r} is listed twice", field="ports", value=twice)
    return ports


def _in_order(entries: Sequence[WantedBar | str], ports: Sequence[str]) -> list[WantedBar | str]:
    """Put listed ports together, where the first of them stands; at the end if none does."""
    at = next((n for n, entry in enumerate(entries) if entry in ports), len(entries))
    first, rest = entries[:at], [entry for entry in entries[at:] if entry not in ports]
    return [*first, *ports, *rest]


def _port(name: str, bars: Sequence[WantedBar]) -> WantedBar:
    """The window of a root port: a bridge decodes whole MiB, at the alignment of its BARs."""
    size = -(-room_for(bars, MIB) // MIB) * MIB
    return WantedBar(
        f"{', '.join(bar.name for bar in bars)} behind {name}",
        size,
        max(MIB, *(bar.align for bar in bars)),
        64,
        any(bar.required for bar in bars),
        behind=tuple(bars),
    )


def _bar(bar: Bar) -> WantedBar:
    size = parse_size(bar.size, f"size of BAR {bar.name}")
    if bar.bits not in (32, 64):
        raise RequestError(
            f"BAR {bar.name}: bits {bar.bits!r} is neither 32 nor 64", field="bits", value=bar.bits
        )
    align = power_up(size)
    if bar.align is not None:
        align = check_granule(parse_size(bar.align, f"align of BAR {bar.name}"), "align")
    if align < BASE_PAGE or size % BASE_PAGE:  # it is mapped by whole pages
        raise RequestError(
            f"BAR {bar.name}: size {size:#x} and alignment {align:#x} are not whole pages of "
            "4 KiB, so it cannot be mapped",
            field="align" if size % BASE_PAGE == 0 else "size",
            value=align,
            hint="leave out BARs that no other device needs to reach",
        )
    if bar.required and bar.emulated:
        raise RequestError(
            f"BAR {bar.name} is emulated, so that no device can be required to reach it",
            field="bars",
            value=bar.name,
        )
    return WantedBar(
        bar.name,
        size,
        align,
        bar.bits,
        bar.required,
        bar.emulated,
        sizes=bar.sizes,
        sized_by=bar.sized_by,
    )


def room_of(room: Room, usable: Usable) -> WantedBar:
    """Return a room in numbers: whole granules.

    Raises:
        RequestError: its size or alignment makes no sense.
    """
    size = parse_size(room.size, f"size of room {room.name}")
    align = usable.granule
    if room.align is not None:
        align = max(align, check_granule(parse_size(room.align, "align"), "align"))
    return WantedBar(room.name, -(-size // usable.granule) * usable.granule, align, 64, True)
