# SPDX-License-Identifier: Apache-2.0
"""BARs of a PC, where firmware puts them: every release that may be meant counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.host.facts import Note
from vmm_iova.machines.firmware import BarNeed, Firmware, place, windows
from vmm_iova.planning.guest import bar_title
from vmm_iova.planning.layout import Item, ItemKind
from vmm_iova.planning.misfit import BarMisfit, BarUnreached
from vmm_iova.ranges import GIB, MIB, AddrRange, RangeSet, power_up
from vmm_iova.record import replace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.machines.firmware import Board
    from vmm_iova.machines.parts import FixedItem
    from vmm_iova.planning.bars import WantedBar
    from vmm_iova.planning.site import Site

_ECAM = "PCIe configuration space"
_WINDOW = "64-bit PCI window"


def unreached(site: Site, what: str, place: AddrRange) -> Iterator[Note]:
    """Say what keeps peers from reaching a window or a BAR; nothing where it is reached."""
    blocked = site.usable.causes_of(place)
    if blocked:
        yield Note(
            f"{what} meets {blocked[0].range} ({blocked[0].text}): RAM is not affected, "
            "but devices cannot reach BARs there (peer-to-peer)"
        )


def bar_item(site: Site, bar: WantedBar, place: AddrRange) -> Iterator[Item | Note]:
    """Yield a BAR at its place, and what keeps devices from reaching it, if any could."""
    iova = place if place in site.usable.ranges and not bar.emulated else None
    if iova is None and not bar.emulated:
        yield from unreached(site, f"{bar_title(bar.name)} {place}", place)
    yield Item(ItemKind.BAR, bar.name, place, iova, required=bar.required, emulated=bar.emulated)


def place_bars(site: Site, ram: Sequence[AddrRange], top: int) -> Iterator[Item | Note]:
    """Yield the window and the BARs where the newest release that may be meant has them.

    Args:
        site: what is wanted, and where it may go.
        ram: guest addresses of RAM.
        top: last address of RAM and of the area for hotplugged memory.

    Raises:
        Misfit: with one of the releases, a BAR has no place, or peers do not reach one they must.
    """
    low = [bar for bar in site.wanted.bars if bar.bits == 32]
    high = [bar for bar in site.wanted.bars if bar.bits == 64]
    every = [_of(site, firmware, ram) for firmware in site.wanted.firmware]
    chosen = every[-1]
    natural = site.window_place(top)
    every_high = [each for bar in high for each in bar.each]
    above = [chosen[bar.name] for bar in every_high if chosen[bar.name].start >= 4 * GIB]
    if above and natural is not None:
        # hw/pci-host/q35.c, q35_host_get_pci_hole64_end(): it begins at the lowest BAR
        start = min(place.start for place in above)
        last = max(start + natural.size - 1, *(place.last for place in above))
        natural = AddrRange(start, AddrRange(start, last).align_outward(GIB).last)
    if natural is not None:
        reached = natural in site.usable.ranges
        if not reached and not above:
            yield from unreached(site, f"the {_WINDOW} {natural}", natural)
        cause = site.pushed(natural.start, site.floor(top)) if not above else None
        yield Item(ItemKind.WINDOW, _WINDOW, natural, natural if reached else None, cause)
    for bar in (*low, *every_high):
        yield from bar_item(site, bar, chosen[bar.name])
    yield from _differences(site, every)
    yield from _other_ports(site, ram, high)
    yield from _too_many_ports(site)
    yield from _below(site, ram, high, chosen)


def _of(site: Site, firmware: Firmware, ram: Sequence[AddrRange]) -> dict[str, AddrRange]:
    """Where one release has the BARs, by their names."""
    board, bars = site.board(ram), site.wanted.bars
    every = _placed(site, firmware, board, site.wanted.spare_ports or ())
    if every is None:
        room = windows(firmware, board)
        low = [bar for bar in bars if bar.bits == 32]
        if low and place(firmware, board, list(map(_need, low))) is None:
            raise BarMisfit(low[0], [room.low], 32)
        first = next(bar for bar in bars if bar.bits == 64)
        raise BarMisfit(first, [room.high] if room.high else [], 64)
    places: dict[str, AddrRange] = {}
    for needed, spans in zip(bars, every, strict=True):
        places |= {each.name: span for each, span in zip(needed.each, spans, strict=True)}
    for bar in (each for needed in bars for each in needed.each):
        span = places[bar.name]
        inside = None
        if RangeSet([span]).isdisjoint(RangeSet(ram)):
            if span.last > site.wanted.address_last:
                inside = f"beyond {site.wanted.limits[0].text}"
        else:
            inside = "inside RAM"
        if span.start % bar.align:
            # fixed in 1.17.0: "pciinit: don't misalign large BARs"
            inside = f"no multiple of {bar.align:#x}, so the device decodes other addresses"
        missed = bar.required and span not in site.usable.ranges
        if inside or missed:
            raise BarUnreached(bar, firmware, span, site.usable.causes_of(span), inside)
    return places


def _placed(
    site: Site, firmware: Firmware, board: Board, spare_ports: Sequence[int]
) -> list[list[AddrRange]] | None:
    """Return where firmware puts each BAR, or those behind each port; None if they have no place.

    Args:
        site: what is wanted.
        firmware: which.
        board: what it finds.
        spare_ports: as `Wanted.spare_ports`.
    """
    needs, own = list[BarNeed](), list[int]()
    for index, bar in enumerate(site.wanted.bars):
        needs += [_SPARE] * spare_ports.count(index)
        own.append(len(needs))
        needs.append(_need(bar))
    needs += [_SPARE] * spare_ports.count(len(site.wanted.bars))
    every = place(firmware, board, needs)
    return None if every is None else [every[at] for at in own]


_SPARE = BarNeed(0, 1, behind=())


def _need(bar: WantedBar) -> BarNeed:
    behind = tuple(map(_need, bar.behind)) or None
    return BarNeed(bar.size, bar.align, behind, low=bar.bits == 32)


def by_firmware(site: Site, ram: Sequence[AddrRange]) -> Iterator[FixedItem]:
    """Yield what has a fixed place; what firmware has elsewhere than the machine is there."""
    machine = site.wanted.machine
    if not any(firmware.kind == "ovmf" for firmware in site.wanted.firmware):
        yield from machine.fixed
        return
    room = windows(site.wanted.firmware[-1], site.board(ram))
    for item in machine.fixed:
        if item.name == _ECAM and room.ecam is not None:
            yield replace(item, range=room.ecam)
        elif item in machine.pci32:
            yield replace(item, range=room.low)
        else:
            yield item


def _differences(site: Site, every: Sequence[dict[str, AddrRange]]) -> Iterator[Note]:
    """Say where other releases have a BAR."""
    chosen, newest = every[-1], site.wanted.firmware[-1]
    for name, span in chosen.items():
        others = [
            f"{firmware} at {places[name].start:#x}"
            for firmware, places in zip(site.wanted.firmware, every, strict=True)
            if places[name] != span
        ]
        if others:
            yield Note(
                f"{bar_title(name)} is at {span.start:#x} with {newest}; with {', '.join(others)} "
                "(--firmware names the release)"
            )


def _other_ports(site: Site, ram: Sequence[AddrRange], high: Sequence[WantedBar]) -> Iterator[Note]:
    """Say that ports nobody told of would move BARs, where one before or behind all does so."""
    if site.wanted.spare_ports is not None or not any(bar.behind for bar in high):
        return
    firmware, board = site.wanted.firmware[-1], site.board(ram)
    alone = _placed(site, firmware, board, ())
    for at in (0, len(site.wanted.bars)):
        if _placed(site, firmware, board, (at,)) != alone:
            yield Note(
                f"further PCIe root ports move these BARs: {firmware} keeps room behind each for "
                "what is plugged in later (--vm knows them; --spare-ports N)"
            )
            return


_IO_PORTS = 9
"""Root ports for which OVMF 2022.11 has I/O addresses: 4 KiB each of 40 KiB, and some for disks."""


def _too_many_ports(site: Site) -> Iterator[Note]:
    """Say that a release of OVMF without I/O addresses for all ports does otherwise.

    Seen with QEMU 7.2: with nine all is as planned, with ten and eleven it is not; OVMF 2025.02 was
    as planned with eleven.
    """
    wanted = site.wanted
    count = sum(bool(bar.behind) for bar in wanted.bars) + len(wanted.spare_ports or ())
    old = [item for item in wanted.firmware if item.kind == "ovmf" and item.version < (2023, 2)]
    if old and count > _IO_PORTS:
        yield Note(
            f"{old[0]} has I/O addresses for {_IO_PORTS} PCIe root ports, and there are {count}: "
            "it leaves some out, and may have BARs elsewhere than here"
        )


def _below(
    site: Site,
    ram: Sequence[AddrRange],
    high: Sequence[WantedBar],
    places: dict[str, AddrRange],
) -> Iterator[Note]:
    """What would bring BARs to where peers reach them, tried."""
    reach, every = site.host.ranges.hull, [each for bar in high for each in bar.each]
    if reach is None:
        return
    beyond = {bar.name for bar in every if places[bar.name].last > reach.last}
    if not beyond:
        return
    machine, board = site.wanted.machine, site.board(ram)

    def helped(other: Board) -> list[Firmware]:
        """The releases that then have these BARs where peers reach them."""
        found = []
        for firmware in site.wanted.firmware:
            spans = _placed(site, firmware, other, site.wanted.spare_ports or ())
            if spans is None:
                continue
            then = [
                span
                for needed, places_ in zip(site.wanted.bars, spans, strict=True)
                for bar, span in zip(needed.each, places_, strict=True)
                if bar.name in beyond
            ]
            if all(span in site.usable.ranges for span in then):
                found.append(firmware)
        return found

    bits = (reach.last + 1).bit_length() - 1
    titles = ", ".join(bar_title(bar.name) for bar in every if bar.name in beyond)
    names = f"to have {titles} below 2^{bits}, where peers reach it"
    option = machine.option("phys_bits", bits=bits)
    starts = site.reach(max(span.last for span in ram)).bit_length() <= bits
    if option is not None and starts and helped(replace(board, bits=bits)):
        yield Note(f"{names}: {option}")
    ovmf = any(firmware.kind == "ovmf" for firmware in site.wanted.firmware)
    mib = ovmf_megabytes(high)
    option = machine.option("ovmf_window", mib=mib)
    if option is not None and ovmf and board.ovmf_window is None:
        told = helped(replace(board, ovmf_window=mib << 20))
        since = f", from {told[0]} on" if told and told != list(site.wanted.firmware) else ""
        if told:
            yield Note(f"{names}: {option}{since}")


def ovmf_megabytes(bars: Sequence[WantedBar]) -> int:
    """Return what opt/ovmf/X-PciMmio64Mb has to say for these BARs: a power of two."""
    size = sum(-(-bar.size // bar.align) * bar.align for bar in bars)
    return max(power_up(size), 32 * GIB) // MIB
