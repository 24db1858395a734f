# SPDX-License-Identifier: Apache-2.0
"""Keeping a saved layout on the next start, or naming what has changed and why.

A guest that was saved, or that has learnt where its memory is, needs the same places again,
also when the rules or the facts would now give others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmm_iova.planning.layout import Item, ItemKind, Layout
from vmm_iova.planning.planner import Planner
from vmm_iova.ranges import AddrRange, RangeSet
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.request import Wanted

_PLACED = (ItemKind.WINDOW, ItemKind.BAR, ItemKind.ROOM)


def plan_kept(
    wanted: Wanted,
    usable: Usable,
    keep: Layout | dict[str, Any],
    afresh: Callable[[], Layout],
) -> Layout:
    """Return the saved layout if it still holds, else a new one that names the changes.

    Args:
        wanted: what is wanted now.
        usable: what the host allows now.
        keep: the saved layout, or its JSON.
        afresh: makes a new one.
    """
    old = keep
    if not isinstance(old, Layout):
        same = keep["machine"] if isinstance(keep, dict) and "machine" in keep else None
        model = wanted.machine if same == wanted.machine.name else None
        old = Layout.from_json(old, usable, model)
    planner = Planner(wanted, usable, "split")
    fixed = {(item.name, item.range) for item in wanted.machine.fixed}
    placed = [item for item in old.items if _is_placed(item, fixed)]
    ram = sorted(old.ram, key=lambda item: item.place)
    obstacles = [*_asked(wanted, old, placed), *_blocked(planner, ram, placed)]
    if not obstacles:
        planner.policy = old.policy
        kept = planner.finish([_fresh(item, planner) for item in ram], placed)
        return replace(kept, on_hole=old.on_hole, kept=True)
    new = afresh()
    changes = [*obstacles, *_moved(old, new)]
    return replace(new, changes=tuple(changes))


def _is_placed(item: Item, fixed: set[tuple[str, AddrRange]]) -> bool:
    return item.kind in _PLACED and (item.name, item.place) not in fixed


def _fresh(item: Item, planner: Planner) -> Item:
    """The same piece; what cut it is what ends the usable range there now, if anything does."""
    iova = item.iova or item.place
    home = planner.usable.ranges.range_at(iova.start)
    start = item.start_cause if home and home.start == iova.start else None
    last = item.last_cause if home and home.last == iova.last else None
    return replace(item, start_cause=start, last_cause=last)


def _asked(wanted: Wanted, old: Layout, placed: Sequence[Item]) -> Iterator[str]:
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
    now = {(bar.name, bar.size) for bar in (*wanted.bars, *wanted.rooms)}
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


def _blocked(planner: Planner, ram: Sequence[Item], placed: Sequence[Item]) -> Iterator[str]:
    """Which saved place is not free any more, and what takes it."""
    usable = planner.usable
    required = {bar.name for bar in planner.wanted.bars if bar.required}
    top = planner.wanted.address_last
    for item in (*ram, *placed):
        name = f"RAM {item.place}" if item.kind is ItemKind.RAM else f"{item.name} {item.place}"
        if item.gpa is not None and item.gpa.last > top:
            yield f"{name} ends beyond {planner.wanted.limits[0].text}"
            continue
        must = item.kind in (ItemKind.RAM, ItemKind.ROOM) or item.name in required
        iova = item.iova or (item.place if must else None)
        if iova is None or iova in usable.ranges:
            continue
        refused = usable.refusal(iova)
        why = refused.message if refused is not None else "it is not usable"
        if must:
            yield f"{name} cannot stay: {why}"
        elif item.iova is not None and item.kind is ItemKind.BAR:
            yield f"{name} is not reached by peers any more: {why}"
    for reserved in planner.wanted.reserved:
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
