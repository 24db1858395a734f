# SPDX-License-Identifier: Apache-2.0
"""A machine model, as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.units import show_size

if TYPE_CHECKING:
    from vmm_iova.machines.model import Machine
    from vmm_iova.machines.parts import RamWindow
    from vmm_iova.ranges import AddrRange

from vmm_iova.report.data import span
from vmm_iova.report.text import line, section


def machine_row(machine: Machine) -> dict[str, str]:
    """A machine model as a row of a table; the first seven columns are the usual ones."""
    gap = machine.gap32
    return {
        "NAME": machine.name,
        "ARCH": machine.arch,
        "RAM-FROM": f"{machine.ram[0].range.start:#x}",
        "GAP32": "none"
        if gap is None
        else f"{gap.start:#x}+{show_size(gap.size)}".replace(" ", ""),
        "PCI64": _window_of(machine),
        "LIMITS": _limits_of(machine),
        "TITLE": machine.title,
        "ALIASES": ",".join(machine.aliases),
        "SOURCE": machine.source,
    }


def _window_of(machine: Machine) -> str:
    window = machine.pci64
    if window is None:
        return "none"
    if window.start is not None:
        return f"{show_size(window.size or 0)} at {window.start:#x}"
    if window.size is not None:
        return f"{show_size(window.size)} above RAM"
    return f"topmost 1/{window.share}" if window.share else "all above RAM"


def _limits_of(machine: Machine) -> str:
    limits = [f"{machine.phys_bits} bits" if machine.phys_bits else ""]
    limits.append(f"{show_size(machine.ram_max)} RAM" if machine.ram_max else "")
    return ", ".join(filter(None, limits)) or "none"


def show_machine(machine: Machine, *, bytes_: bool) -> str:
    """Show a machine model: where RAM may and must go, and what else has its place."""
    lines = [
        f"machine  {machine.name}: {machine.title}, {machine.arch}",
        f"source   {machine.source}",
        f"limits   {_limits_of(machine)}; 64-bit PCI window: {_window_of(machine)}",
        f"IOVA     {'equals the guest address' if machine.identity else 'is chosen'}",
        "",
    ]
    entries = [(item.range, f"RAM {item.name}", _window_note(item)) for item in machine.ram]
    entries += ((item.range, item.name, item.kind) for item in machine.fixed)
    entries += ((item.range, item.name, "told to the guest") for item in machine.ram_reserved)
    open_: list[AddrRange] = []
    for place, name, more in sorted(entries, key=lambda e: (e[0].start, -e[0].last)):
        while open_ and place.start > open_[-1].last:
            open_.pop()
        lines.append(line(place, name, indent=2 * len(open_), bytes_=bytes_, more=more))
        open_.append(place)
    options = (f"{name}: {template}" for name, template in machine.options)
    return "\n".join([*lines, *section("options of the VMM", options)]) + "\n"


def _window_note(window: RamWindow) -> str:
    clauses = [
        f"the first {show_size(window.required)} must be RAM" if window.required else "",
        f"all RAM below {window.whole_below:#x} is here" if window.whole_below else "",
        f"may move to {window.move_to:#x} as a whole" if window.move_to else "",
        "may begin elsewhere" if window.movable and not window.move_to else "",
    ]
    return ", ".join(filter(None, clauses))


def machine_data(machine: Machine) -> dict[str, Any]:
    """A machine model."""
    window = machine.pci64
    return {
        "name": machine.name,
        "title": machine.title,
        "arch": machine.arch,
        "aliases": list(machine.aliases),
        "source": machine.source,
        "identity": machine.identity,
        "phys_bits": machine.phys_bits,
        "ram_max": _hex(machine.ram_max),
        "gap32": None if machine.gap32 is None else span(machine.gap32),
        "ram": [
            {
                "name": item.name,
                **span(item.range),
                "whole_below": _hex(item.whole_below),
                "required": f"{item.required:#x}",
                "move_to": _hex(item.move_to),
                "movable": item.movable,
            }
            for item in machine.ram
        ],
        "fixed": [
            {"name": item.name, "kind": item.kind, **span(item.range)} for item in machine.fixed
        ],
        "ram_reserved": [{"name": item.name, **span(item.range)} for item in machine.ram_reserved],
        "pci64": None
        if window is None
        else {
            "size": _hex(window.size),
            "align": f"{window.align:#x}",
            "floor": f"{window.floor:#x}",
            "start": _hex(window.start),
            "share": window.share,
            "downward": window.downward,
        },
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"
