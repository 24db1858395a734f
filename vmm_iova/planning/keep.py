# SPDX-License-Identifier: Apache-2.0
"""Keeping a saved layout on the next start, or naming what has changed and why.

A guest that was saved, or that has learnt where its memory is, needs the same places again,
also when the rules or the facts would now give others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.host.facts import Note
from vmm_iova.planning.attempt import assemble
from vmm_iova.planning.firmware_bars import by_firmware
from vmm_iova.planning.layout import LAYOUT_RULES, Item, ItemKind, Layout
from vmm_iova.planning.ram import PlacedRam
from vmm_iova.planning.site import Placed
from vmm_iova.planning.windows import PLUGGED
from vmm_iova.ranges import AddrRange, RangeSet
from vmm_iova.record import replace
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.request import Wanted
    from vmm_iova.planning.site import Site

_PLACED = (ItemKind.WINDOW, ItemKind.BAR, ItemKind.ROOM, ItemKind.DOORBELL)


def plan_kept(site: Site, saved: Layout | dict[str, Any], afresh: Callable[[], Layout]) -> Layout:
    """Return the saved layout if it still holds, else a new one that names the changes.

    Args:
        site: what is wanted now, and where the host allows it now.
        saved: the saved layout, or its JSON.
        afresh: makes a new one.
    """
    wanted = site.wanted
    old = saved if isinstance(saved, Layout) else _read(saved, wanted, site.host)
    fixed = {(item.name, item.range) for item in wanted.machine.fixed}
    fixed |= {(item.name, item.range) for item in by_firmware(site, [i.place for i in old.ram])}
    placed = [item for item in old.items if _is_placed(item, fixed)]
    ram = sorted(old.ram, key=lambda item: item.place)
    rules = _older_rules(old)
    obstacles = [*_wanted_otherwise(wanted, old, placed), *_blocked(site, ram, placed)]
    if not obstacles:
        kept = PlacedRam(tuple(_fresh(item, site) for item in ram), old.policy)
        notes = (Note(f"kept as it was saved {rules}"),) if rules else ()
        layout = assemble(site, kept, Placed(tuple(placed), notes), old.on_hole)
        return replace(layout, kept=True, rules=old.rules)
    new = afresh()
    changes = [*obstacles, *([f"planned anew: it was saved {rules}"] if rules else [])]
    return replace(new, changes=(*changes, *_moved(old, new)))


def _read(saved: dict[str, Any], wanted: Wanted, usable: Usable) -> Layout:
    same = saved["machine"] if isinstance(saved, dict) and "machine" in saved else None
    model = wanted.machine if same == wanted.machine.name else None
    return Layout.from_json(saved, usable, model)


def _older_rules(old: Layout) -> str | None:
    """Say under which rules it was saved, where they are not those of today."""
    if old.rules == LAYOUT_RULES:
        return None
    return f"under rules {old.rules} of placement; a new plan follows rules {LAYOUT_RULES}"


def _is_placed(item: Item, fixed: set[tuple[str, AddrRange]]) -> bool:
    return item.kind in _PLACED and (item.name, item.place) not in fixed


def _fresh(item: Item, site: Site) -> Item:
    """The same piece; what cut it is what ends the usable range there now, if anything does."""
    iova = item.iova or item.place
    home = site.usable.ranges.range_at(iova.start)
    start = item.start_cause if home and home.start == iova.start else None
    last = item.last_cause if home and home.last == iova.last else None
    return replace(item, start_cause=start, last_cause=last)


def _wanted_otherwise(wanted: Wanted, old: Layout, placed: Sequence[Item]) -> Iterator[str]:
    """What is wanted otherwise than it was."""
    if wanted.machine.name != old.machine.name:
        yield f"machine {wanted.machine.name} instead of {old.machine.name}"
    if wanted.ram != old.ram_bytes:
        yield f"RAM of {show_size(wanted.ram)} instead of {show_size(old.ram_bytes)}"
    else:
        nodes = tuple((node.name, node.size, node.page_size) for node in wanted.nodes)
        if nodes != old.page_sizes:
            yield "the NUMA nodes, or the pages that back them, are others"
    sizes = {(item.name, item.place.size) for item in placed if item.kind is not ItemKind.WINDOW}
    bars = (each for bar in wanted.bars for each in bar.each)
    now = {(bar.name, bar.size) for bar in (*bars, *wanted.rooms)}
    now |= {(bell.name, bell.size) for bell in wanted.doorbells}
    if wanted.hotplug:
        now.add((PLUGGED, wanted.hotplug))
    for name, size in sorted(now - sizes):
        yield f"{name} of {show_size(size)} was not there"
    for name, size in sorted(sizes - now):
        yield f"{name} of {show_size(size)} is not wanted any more"
    had = any(item.kind is ItemKind.WINDOW for item in placed)
    if had and wanted.pci64 is None:
        yield "the 64-bit PCI window is not wanted any more"
    if wanted.pci64_stated and wanted.pci64 is not None:
        windows = [item.place.size for item in placed if item.kind is ItemKind.WINDOW]
        if windows and wanted.pci64.size not in windows:
            yield f"the 64-bit PCI window is {show_size(wanted.pci64.size or 0)} now"


def _blocked(site: Site, ram: Sequence[Item], placed: Sequence[Item]) -> Iterator[str]:
    """Which saved place is not free any more, and what takes it."""
    usable, wanted = site.usable, site.wanted
    required = {each.name for bar in wanted.bars for each in bar.each if each.required}
    for item in (*ram, *placed):
        name = f"RAM {item.place}" if item.kind is ItemKind.RAM else f"{item.name} {item.place}"
        if item.gpa is not None and item.gpa.last > wanted.address_last:
            yield f"{name} ends beyond {wanted.limits[0].text}"
            continue
        must = (
            item.kind in (ItemKind.RAM, ItemKind.ROOM, ItemKind.DOORBELL) or item.name in required
        )
        iova = item.iova or (item.place if must else None)
        if iova is None or iova in usable.ranges:
            continue
        refused = usable.refusal(iova)
        why = refused.message if refused is not None else "it is not usable"
        if must:
            yield f"{name} cannot stay: {why}"
        elif item.iova is not None and item.kind is ItemKind.BAR:
            yield f"{name} is not reached by peers any more: {why}"
    for reserved in wanted.reserved:
        taken = RangeSet(item.place for item in (*ram, *placed) if item.gpa is not None)
        if not taken.isdisjoint(RangeSet([reserved.range])):
            yield f"{reserved.name} {reserved.range} is to be kept free now"


def _moved(old: Layout, new: Layout) -> Iterator[str]:
    """Which parts are elsewhere in the new layout."""
    for kind in (ItemKind.RAM, *_PLACED):
        before = [item.place for item in old.items if item.kind is kind]
        after = [item.place for item in new.items if item.kind is kind]
        if before != after:
            gone = ", ".join(map(str, before)) or "none"
            come = ", ".join(map(str, after)) or "none"
            yield f"{kind.value}: {come} instead of {gone}"
