# SPDX-License-Identifier: Apache-2.0
"""What a picture has, before it is drawn: the same for SVG and HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.host.facts import PASTED
from vmm_iova.host.usable import Usable
from vmm_iova.planning.request import NO_HOST
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.record import record, replace
from vmm_iova.report.fold import Folded, fold, fold_remarks, fold_translated
from vmm_iova.report.picture import (
    Box,
    Remark,
    cut_remarks,
    guest_boxes,
    hole_remark,
    host_boxes,
    other_remarks,
    unused_boxes,
    usable_box,
)
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.planning.layout import Layout

_DONE = {
    "as is": "nothing had to be cut or moved",
    "split": "RAM is cut around the holes of the host",
    "move": "RAM is moved as a whole",
}


@record
class Column:
    """Boxes below one heading; `own` has an axis of its own, at its right."""

    heading: str
    boxes: tuple[Box, ...]
    own: bool = False


@record
class Tie:
    """Where devices see what the guest has elsewhere."""

    iova: AddrRange
    gpa: AddrRange


@record
class Scene:
    """A picture before it is drawn.

    Attributes:
        title: headline.
        subtitle: what was asked for and done.
        barred: groups that cannot be given to a guest, each a sentence.
        columns: the host, the guest as devices see it, the guest as it sees itself where that
            differs; or one of them.
        remarks: about places of the first columns.
        ties: between the last two columns.
        evidence: what states the aperture.
        notes: warnings.
    """

    title: str
    subtitle: str
    barred: tuple[str, ...]
    columns: tuple[Column, ...]
    remarks: tuple[Remark, ...] = ()
    ties: tuple[Tie, ...] = ()
    evidence: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def folded(self) -> Scene:
        """Return it with many like holes as one box each."""
        host, *guest = self.columns
        seen = guest[0].boxes if guest else ()
        done = fold(host.boxes, seen)
        if not done.folds:
            return self
        columns = [replace(host, boxes=tuple(done.host))]
        columns += [replace(one, boxes=tuple(done.guest)) for one in guest[:1]]
        ties = self.ties
        for one in guest[1:]:
            boxes, folds = fold_translated(one.boxes, done)
            columns.append(replace(one, boxes=tuple(boxes)))
            ties = _tied(ties, folds, done)
        remarks = tuple(fold_remarks(self.remarks, done.folds))
        return replace(self, columns=tuple(columns), remarks=remarks, ties=ties)


def _tied(ties: Sequence[Tie], folds: Sequence[Box], done: Folded) -> tuple[Tie, ...]:
    """Ties of what is still drawn, and one for each fold."""
    gone = {box.range for held in done.hidden for box in held}
    left = [tie for tie in ties if tie.iova not in gone]
    by_id = {box.id: box.range for box in done.guest}
    return (
        *left,
        *(Tie(by_id[f"{box.id.removesuffix('-gpa')}-guest"], box.range) for box in folds),
    )


def scene_of(subject: Layout | Usable, title: str | None = None) -> Scene:
    """What is seen of a layout, of a machine (planned on no host), or of what a host allows."""
    if isinstance(subject, Usable):
        return usable_scene(subject, title or subject.host)
    return machine_scene(subject) if subject.usable.host == NO_HOST else layout_scene(subject)


def layout_scene(layout: Layout) -> Scene:
    """A layout beside what its host allows."""
    usable = layout.usable
    apart = any(item.gpa and item.iova and item.gpa != item.iova for item in layout.items)
    seen = guest_boxes(layout, "iova" if apart else "both")
    host = host_boxes(usable, max(box.range.last for box in seen))
    seen += unused_boxes(usable, host, seen)
    cuts = list(cut_remarks(layout, "RAM mapping" if apart else "RAM"))
    columns = [Column("host allows", tuple(host))]
    ties: tuple[Tie, ...] = ()
    if not apart:
        columns.append(Column("guest has", tuple(seen)))
        cuts += other_remarks(layout, host, {remark.proof for remark in cuts})
    else:
        columns.append(Column("devices see (IOVA)", tuple(seen)))
        columns.append(Column("guest sees (GPA)", tuple(_alone(layout, "gpa")), own=True))
        ties = tuple(Tie(item.iova, item.gpa) for item in layout.items if item.iova and item.gpa)
    notes = [note.text for note in layout.notes if note.warning]
    above = [span for span in usable.ranges if span.start > host[-1].range.last]
    if above:
        notes.append(f"usable ranges above, not drawn: {len(above)}, up to {above[-1].last:#x}")
    return Scene(
        f"{layout.machine.title}: {show_size(layout.ram_bytes)} of RAM on {usable.host}",
        f"policy {layout.on_hole}: {_DONE.get(layout.policy, layout.policy)} · "
        f"{layout.address_bits} guest address bits · {_selection(usable)}",
        tuple(entry.text for entry in usable.unassignable),
        tuple(columns),
        tuple(cuts),
        ties,
        *_footnotes(usable, notes),
    )


def usable_scene(usable: Usable, title: str) -> Scene:
    """What a host allows, alone."""
    host = host_boxes(usable, None)
    return Scene(
        title,
        f"host {usable.host} · {_selection(usable)}",
        tuple(entry.text for entry in usable.unassignable),
        (Column("host allows", tuple(host)),),
        tuple(hole_remark(box) for box in host if box.proof),
        (),
        *_footnotes(usable, [note.text for note in usable.notes if note.warning]),
    )


def machine_scene(layout: Layout) -> Scene:
    """A machine by itself, planned on no host."""
    title = f"{layout.machine.title}: {show_size(layout.ram_bytes)} of RAM"
    bits = f"needs {layout.address_bits} guest address bits · no host"
    column = Column("guest has", tuple(_alone(layout, "both")))
    return Scene(title, bits, (), (column,), evidence=(f"source: {layout.machine.source}",))


def _alone(layout: Layout, view: str) -> list[Box]:
    """The guest's boxes without a host, with marks where there is nothing."""
    own = guest_boxes(layout, view)
    if not own:
        return own
    hull = AddrRange(0, max(box.range.last for box in own))
    return [*own, *unused_boxes(None, [usable_box(hull)], own)]


def _footnotes(usable: Usable, notes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    barred = {entry.text for entry in usable.unassignable}
    evidence = tuple(f"aperture: {item.text}" for item in usable.evidence)
    return evidence, tuple(note for note in notes if note not in barred)


def _selection(usable: Usable) -> str:
    """The groups and the granule, in a few words."""
    names = ", ".join("pasted text" if name == PASTED else name for name in usable.groups)
    groups = f"groups: {names or 'not named'}" if len(usable.groups) < 6 else ""
    return f"{groups or f'{len(usable.groups)} groups'} · granule {show_size(usable.granule)}"


def near(address: int) -> str:
    """Print an address as a size, to three digits: `1012 GiB`, `3.98 GiB`."""
    if address in (0, ADDRESS_LAST):
        return "16 EiB" if address else "0"
    power = min(6, (address.bit_length() - 1) // 10)
    value = address / (1 << 10 * power)
    unit = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")[power]
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
