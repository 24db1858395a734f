# SPDX-License-Identifier: Apache-2.0
"""Layouts: where each part of a guest went, what cut it, and what the guest must be told."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmm_iova.errors import HostDataError

if TYPE_CHECKING:
    from vmm_iova.guest.machine import Machine
    from vmm_iova.host.model import Note
    from vmm_iova.host.usable import Usable
    from vmm_iova.ranges import AddrRange

_ENDS = ("start", "last")

LAYOUT_VERSION = 1
"""Version of the placement rules: the same input gives the same layout within a version."""


class ItemKind(enum.Enum):
    """What a part of a layout is."""

    RAM = "ram"
    """Guest memory; every piece is one mapping."""
    MSI = "msi"
    """Interrupt window of the host: devices write interrupts there, nothing may be mapped."""
    DOORBELL = "doorbell"
    """Where the guest's own interrupt controller takes MSI writes."""
    WINDOW = "window"
    """Room for PCI BARs; mapped only for peer-to-peer, so the guest runs without."""
    DEVICE = "device"
    """A device of the machine at a fixed place."""
    FIRMWARE = "firmware"
    """Firmware of the guest."""


@dataclass(frozen=True, slots=True)
class Item:
    """One part of a layout.

    Attributes:
        kind: what it is.
        name: its name.
        gpa: guest physical addresses; None for what only devices see.
        iova: IOVAs at which devices see it; None for what no device reaches.
        start_cause: what put its lower edge there, or None when the machine did.
        last_cause: what put its upper edge there, or None when the machine or the size did.
    """

    kind: ItemKind
    name: str
    gpa: AddrRange | None
    iova: AddrRange | None = None
    start_cause: str | None = None
    last_cause: str | None = None

    @property
    def place(self) -> AddrRange:
        """Where to draw it: guest addresses, or IOVAs for what the guest does not see."""
        place = self.gpa or self.iova
        assert place is not None  # an item is somewhere
        return place


@dataclass(frozen=True, slots=True)
class GuestReserved:
    """A span that the guest must be told to keep its hands off, and why.

    The guest's own allocators (PCI BAR placement, memory hotplug) would use it otherwise.
    """

    range: AddrRange
    cause: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of a guest is. Made by `vmm_iova.plan`.

    Attributes:
        machine: the model.
        ram_bytes: RAM in all.
        on_hole: policy that was asked for.
        policy: what was done: `as is`, `split` or `move`.
        items: all parts, ascending by guest address.
        guest_reserved: what the guest must be told, ascending.
        usable: the ranges that it was planned in.
        notes: what a person should know; groups that cannot be assigned come first.

    Synchronization: none required (immutable).
    """

    machine: Machine
    ram_bytes: int
    on_hole: str
    policy: str
    items: tuple[Item, ...]
    guest_reserved: tuple[GuestReserved, ...]
    usable: Usable
    notes: tuple[Note, ...]

    @property
    def ram(self) -> tuple[Item, ...]:
        """The pieces of RAM, ascending: each is one mapping."""
        return tuple(item for item in self.items if item.kind is ItemKind.RAM)

    @property
    def address_bits(self) -> int:
        """Guest physical address bits that the layout needs."""
        return max((item.gpa.last.bit_length() for item in self.items if item.gpa), default=0)

    def to_json(self) -> dict[str, Any]:
        """Return the layout as plain data with addresses and sizes as hex strings."""
        return {
            "schema": {"name": "vmm-iova-layout", "version": LAYOUT_VERSION},
            "machine": self.machine.name,
            "host": self.usable.host,
            "groups": list(self.usable.groups),
            "ram": f"{self.ram_bytes:#x}",
            "on_hole": self.on_hole,
            "policy": self.policy,
            "granule": f"{self.usable.granule:#x}",
            "address_bits": self.address_bits,
            "items": [_item(item) for item in self.items],
            "guest_reserved": [
                {**_span(item.range), "cause": item.cause} for item in self.guest_reserved
            ],
            "evidence": [item.text for item in self.usable.evidence],
            "unassignable": [item.text for item in self.usable.unassignable],
            "notes": [note.text for note in self.notes],
        }


def _span(item: AddrRange) -> dict[str, str]:
    return {"start": f"{item.start:#x}", "last": f"{item.last:#x}"}


def _item(item: Item) -> dict[str, Any]:
    return {
        "kind": item.kind.value,
        "name": item.name,
        "size": f"{item.place.size:#x}",
        "gpa": None if item.gpa is None else _span(item.gpa),
        "iova": None if item.iova is None else _span(item.iova),
        "start_cause": item.start_cause,
        "last_cause": item.last_cause,
    }


def check_layout(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what `Layout.to_json` wrote and a file gave back, if it is whole.

    Args:
        found: the parsed JSON.
        name: file name for messages.

    Raises:
        HostDataError: it is of another version, or a part is missing.
    """
    version = found.get("schema", {}).get("version")
    if version != LAYOUT_VERSION:
        raise HostDataError(
            f"{name}: layout version {version!r} is not {LAYOUT_VERSION}",
            source=name,
            hint="update vmm-iova, or plan again",
        )
    try:
        for item in found["items"]:
            places = [item[key] for key in ("gpa", "iova") if item[key] is not None]
            whole = [item["kind"], item["name"], *(place[k] for place in places for k in _ENDS)]
            if not all(isinstance(part, str) for part in whole):
                raise TypeError("a part is not text")
        for told in found["guest_reserved"]:
            _ = told["start"] + told["last"]
    except (KeyError, TypeError) as error:
        raise HostDataError(
            f"{name} is no layout: {error} is missing or of a wrong kind", source=name
        ) from error
    return found
