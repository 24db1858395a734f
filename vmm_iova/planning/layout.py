# SPDX-License-Identifier: Apache-2.0
"""Layouts: where each part of a guest went, what cut it, and what the guest must be told."""

from __future__ import annotations

import enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

from vmm_iova import shown
from vmm_iova.errors import HostDataError, IovaError, UnknownNameError
from vmm_iova.host.facts import Note
from vmm_iova.host.registers import Width
from vmm_iova.host.usable import Cause, CauseKind
from vmm_iova.machines.catalogue import load_machine
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_iova.host.usable import Usable
    from vmm_iova.machines.model import Machine

_ENDS = ("start", "last")

LAYOUT_FORMAT = 1
"""Version of the saved form: another one cannot be read."""

LAYOUT_RULES = 2
"""Version of the placement rules: the same input gives the same layout within a version.

A layout that was saved under other rules is read and kept all the same.
"""

OnHole = Literal["auto", "split", "move", "refuse"]
"""What to do with RAM whose own place is not free; `auto`: what the VMM does by itself."""

Done = Literal["as is", "split", "move"]
"""What was done with RAM whose own place was not free."""


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
    RESERVED = "reserved"
    """Kept free of RAM and BARs, because the machine or the request says so."""
    BAR = "bar"
    """A BAR with a place of its own; devices reach it where it has IOVAs."""
    ROOM = "room"
    """Kept for what is plugged in later."""


@record
class Item:
    """One part of a layout.

    Attributes:
        kind: what it is.
        name: its name.
        gpa: guest physical addresses; None for what only devices see.
        iova: IOVAs at which devices see it; None for what no device reaches.
        start_cause: what put its lower edge there, or None when the machine did.
        last_cause: what put its upper edge there, or None when the machine or the size did.
        node: NUMA node of RAM, or None.
        required: for a BAR: peers must reach it.
        emulated: for a BAR: the VMM answers for it itself, so that no device could reach it.
    """

    kind: ItemKind
    name: str
    gpa: AddrRange | None
    iova: AddrRange | None = None
    start_cause: Cause | None = None
    last_cause: Cause | None = None
    node: str | None = None
    required: bool = False
    emulated: bool = False

    @property
    def place(self) -> AddrRange:
        """Where to draw it: guest addresses, or IOVAs for what the guest does not see."""
        place = self.gpa or self.iova
        assert place is not None  # an item is somewhere
        return place


@record
class GuestReserved:
    """A span that the guest must be told to keep its hands off, and why.

    The guest's own allocators (PCI BAR placement, memory hotplug) would use it otherwise.
    """

    range: AddrRange
    cause: Cause


GUEST_WIDTH = "guest, physical"
"""Among `Layout.widths`: the guest's own address bits, where they are stated."""


def bits_of(items: Iterable[Item], stated: int | None) -> int:
    """Guest physical address bits that these need.

    Where firmware has put BARs into a window, QEMU tells of its whole size from the lowest of them
    on, also beyond the guest's own addresses (q35_host_get_pci_hole64_end()), where nothing is.

    Args:
        items: of a layout.
        stated: the guest's own address bits, or None.
    """
    ends = ((item.gpa.last.bit_length(), item.kind) for item in items if item.gpa)
    return max(
        min(bits, stated) if stated and kind is ItemKind.WINDOW else bits for bits, kind in ends
    )


@record
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
        page_sizes: (name, bytes, page size or None) of each node; one nameless without nodes.
        viommu: True if the guest has an IOMMU of its own.
        devices: number of assigned devices.
        widths: address widths of host and guest, side by side.
        changes: what differs from the layout that was to be kept, and why; empty if nothing does.
        kept: True if a saved layout was kept as it was.
        rules: version of the rules that placed it.
        vmm_reserved: what the VMM itself reports as reserved, whatever the host has.
        settings: what the VMM has to be told for this layout, beside the sizes that were asked for.
        reasons: what the VMM or its firmware does that a person may not expect, each with why.
        otherwise: what would have it do otherwise.

    Synchronization: none required (immutable).
    """

    machine: Machine
    ram_bytes: int
    on_hole: OnHole
    policy: Done
    items: tuple[Item, ...]
    guest_reserved: tuple[GuestReserved, ...]
    usable: Usable
    notes: tuple[Note, ...]
    page_sizes: tuple[tuple[str | None, int, int | None], ...] = ()
    viommu: bool = False
    devices: int = 1
    widths: tuple[Width, ...] = ()
    changes: tuple[str, ...] = ()
    kept: bool = False
    rules: int = LAYOUT_RULES
    vmm_reserved: tuple[AddrRange, ...] = ()
    settings: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    otherwise: tuple[str, ...] = ()

    @property
    def starts(self) -> bool:
        """True if the VMM of the machine has this layout by itself, or by its options."""
        return self.policy != "split" or "split" in self.machine.can

    @property
    def ram(self) -> tuple[Item, ...]:
        """The pieces of RAM, ascending: each is one mapping."""
        return tuple(item for item in self.items if item.kind is ItemKind.RAM)

    @property
    def host_holes(self) -> tuple[GuestReserved, ...]:
        """What the guest must be told because of the host: not what it asked to keep free."""
        return tuple(
            entry for entry in self.guest_reserved if entry.cause.kind is not CauseKind.GUEST
        )

    @property
    def address_bits(self) -> int:
        """Guest physical address bits that the layout needs."""
        stated = (width.bits for width in self.widths if width.what == GUEST_WIDTH)
        return bits_of(self.items, next(stated, None))

    def text(self, *, verbose: bool = False) -> str:
        """Return what `vmm-iova plan` prints of it: verdict, map, cuts, cost, evidence.

        Args:
            verbose: sizes in bytes.
        """
        return shown.text_of(self, verbose=verbose)

    def svg(self) -> str:
        """Return the picture as `vmm-iova plan -o map.svg` draws it: a whole SVG document."""
        return shown.svg_of(self)

    _repr_svg_ = svg

    def _repr_html_(self) -> str:
        return shown.html_of(self)

    @classmethod
    def from_json(
        cls, saved: dict[str, Any], usable: Usable, machine: Machine | None = None
    ) -> Layout:
        """Return the layout that `to_json` wrote, as it was saved.

        Nothing is judged again; `plan(..., keep=...)` does that.

        Args:
            saved: the parsed JSON.
            usable: what the host allows now.
            machine: the model; default the one of that name.

        Raises:
            HostDataError: it is no layout, or of another version.
            UnknownNameError: there is no machine model of that name.
        """
        name = str(saved.get("machine", "layout"))
        check_layout(saved, name)
        causes = _Causes(usable, saved["items"])
        try:
            items = tuple(_item_of(item, causes) for item in saved["items"])
            reserved = tuple(
                GuestReserved(_span_of(item), causes.of(item["cause"], _span_of(item)))
                for item in saved["guest_reserved"]
            )
            nodes = tuple(
                (
                    node["name"],
                    int(node["size"], 16),
                    None if node["page_size"] is None else int(node["page_size"], 16),
                )
                for node in saved["nodes"]
            )
            model = load_machine(name) if machine is None else machine
            _check_items(items, int(saved["ram"], 16), identity=model.identity)
            return cls(
                machine=model,
                ram_bytes=int(saved["ram"], 16),
                on_hole=_ON_HOLE[saved["on_hole"]],
                policy=_DONE[saved["policy"]],
                items=items,
                guest_reserved=reserved,
                usable=usable,
                notes=tuple(Note(str(text)) for text in saved["notes"]),
                page_sizes=nodes,
                viommu=saved["viommu"] is True,
                devices=int(saved["devices"]),
                widths=tuple(
                    Width(w["what"], w["bits"], w["source"], w["counts"]) for w in saved["widths"]
                ),
                changes=tuple(map(str, saved["changes"])),
                kept=saved["kept"] is True,
                rules=int(saved.get("rules", 1)),  # those of the first release were not numbered
                vmm_reserved=tuple(map(_span_of, saved.get("vmm_reserved", ()))),
                settings=tuple(map(str, saved.get("settings", ()))),
                reasons=tuple(map(str, saved.get("reasons", ()))),
                otherwise=tuple(map(str, saved.get("otherwise", ()))),
            )
        except (KeyError, TypeError, ValueError, OverflowError, IovaError) as error:
            if isinstance(error, UnknownNameError):
                raise
            raise HostDataError(
                f"{name} is no layout: {error} is missing or makes no sense", source=name
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the layout as plain data with addresses and sizes as hex strings."""
        return {
            "schema": {"name": "vmm-iova-layout", "version": LAYOUT_FORMAT},
            "rules": self.rules,
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
                {**_span(item.range), "cause": item.cause.text} for item in self.guest_reserved
            ],
            "evidence": [item.text for item in self.usable.evidence],
            "unassignable": [item.text for item in self.usable.unassignable],
            "notes": [note.text for note in self.notes],
            "nodes": [
                {
                    "name": name,
                    "size": f"{size:#x}",
                    "page_size": None if pages is None else f"{pages:#x}",
                }
                for name, size, pages in self.page_sizes
            ],
            "viommu": self.viommu,
            "devices": self.devices,
            "widths": [
                {
                    "what": width.what,
                    "bits": width.bits,
                    "source": width.source,
                    "counts": width.counts,
                }
                for width in self.widths
            ],
            "kept": self.kept,
            "changes": list(self.changes),
            "vmm_reserved": [_span(span) for span in self.vmm_reserved],
            "settings": list(self.settings),
            "reasons": list(self.reasons),
            "otherwise": list(self.otherwise),
        }


def kept_for(name: str) -> str:
    """Return the cause of an area that the guest asked to keep free."""
    return f"kept for {name}, as asked for"


def _span(item: AddrRange) -> dict[str, str]:
    return {"start": f"{item.start:#x}", "last": f"{item.last:#x}"}


def _item(item: Item) -> dict[str, Any]:
    return {
        "kind": item.kind.value,
        "name": item.name,
        "size": f"{item.place.size:#x}",
        "gpa": None if item.gpa is None else _span(item.gpa),
        "iova": None if item.iova is None else _span(item.iova),
        "start_cause": _text(item.start_cause),
        "last_cause": _text(item.last_cause),
        "node": item.node,
        "required": item.required,
        "emulated": item.emulated,
    }


def _text(cause: Cause | None) -> str | None:
    return None if cause is None else cause.text


_ON_HOLE: dict[str, OnHole] = {name: name for name in get_args(OnHole)}
_DONE: dict[str, Done] = {name: name for name in get_args(Done)}


class _Causes:
    """Finds the cause that a saved text stands for: one of the host's, or of the saved guest's."""

    def __init__(self, usable: Usable, items: Sequence[dict[str, Any]]) -> None:
        edges = [cause for edge in usable.edges for cause in (edge.start_cause, edge.last_cause)]
        self._by_text = {cause.text: cause for cause in (*edges, *usable.causes)}
        self._asked = {kept_for(item["name"]) for item in items if item["kind"] == "reserved"}

    def of(self, text: str, span: AddrRange) -> Cause:
        """Return the cause of this text; a new one over `span` where the host has none."""
        kind = CauseKind.GUEST if text in self._asked else CauseKind.SAVED
        return self._by_text.get(text) or Cause(kind, span, str(text))


def _span_of(saved: dict[str, str]) -> AddrRange:
    return AddrRange(int(saved["start"], 16), int(saved["last"], 16))


def _item_of(saved: dict[str, Any], causes: _Causes) -> Item:
    gpa, iova = (
        None if place is None else _span_of(place) for place in (saved["gpa"], saved["iova"])
    )
    where = iova or gpa
    assert where is not None  # `check_layout` refuses a part that is nowhere
    start, last = (
        None if text is None else causes.of(text, where)
        for text in (saved["start_cause"], saved["last_cause"])
    )
    return Item(
        ItemKind(saved["kind"]),
        saved["name"],
        gpa,
        iova,
        start,
        last,
        saved["node"],
        saved["required"] is True,
        saved.get("emulated") is True,
    )


def _check_items(items: Sequence[Item], ram_bytes: int, *, identity: bool) -> None:
    """Refuse parts that contradict each other: a saved file may have been edited by hand."""
    ram = [item for item in items if item.kind is ItemKind.RAM]
    for item in ram:
        if item.gpa is None or item.iova is None or item.gpa.size != item.iova.size:
            raise ValueError(f"RAM {item.name} has no guest address and IOVA of one size, which")
        if identity and item.gpa != item.iova:
            raise ValueError(f"RAM {item.name} has an IOVA other than its guest address, which")
    if sum(item.place.size for item in ram) != ram_bytes:
        raise ValueError(f"RAM is not {ram_bytes:#x} bytes in all, which")
    placed = [item for item in items if item.kind in (ItemKind.RAM, ItemKind.WINDOW)]
    placed.sort(key=lambda item: item.place)
    for below, above in pairwise(placed):
        if below.place.overlaps(above.place):
            raise ValueError(f"{below.name} {below.place} overlaps {above.name}, which")


def check_layout(saved: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what `Layout.to_json` wrote and a file gave back, if it is whole.

    Args:
        saved: the parsed JSON.
        name: file name for messages.

    Raises:
        HostDataError: it is of another version, or a part is missing.
    """
    schema = saved.get("schema") if isinstance(saved, dict) else None
    version = schema.get("version") if isinstance(schema, dict) else None
    if version != LAYOUT_FORMAT:
        raise HostDataError(
            f"{name}: layout version {version!r} is not {LAYOUT_FORMAT}",
            source=name,
            hint="update vmm-iova, or plan again",
        )
    try:
        if not 0 < int(saved.get("ram", "0x1"), 16) <= ADDRESS_LAST + 1:
            raise ValueError("a size of RAM")
        for item in saved["items"]:
            places = [item[key] for key in ("gpa", "iova") if item[key] is not None]
            if not places:
                raise TypeError("a place")
            for place in places:
                _span_of(place)
            texts = [item.get(key) for key in ("start_cause", "last_cause", "node")]
            whole = [item["kind"], item["name"], *(text for text in texts if text is not None)]
            if not all(isinstance(part, str) for part in whole):
                raise TypeError("a part is not text")
        for entry in saved["guest_reserved"]:
            _span_of(entry)
            if not isinstance(entry.get("cause", ""), str):
                raise TypeError("a cause")
    except (KeyError, TypeError, ValueError, AttributeError, IovaError) as error:
        raise HostDataError(
            f"{name} is no layout: {error} is missing or of a wrong kind", source=name
        ) from error
    return saved
