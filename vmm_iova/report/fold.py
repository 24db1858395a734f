# SPDX-License-Identifier: Apache-2.0
"""Many like holes become one box of a picture: "297 more like this"."""

from __future__ import annotations

from bisect import bisect_right
from itertools import groupby
from typing import TYPE_CHECKING

from vmm_iova.ranges import AddrRange
from vmm_iova.record import record
from vmm_iova.report.picture import Box, Remark
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_ALIKE, _ANY = 8, 40  # holes in a row that are all drawn: of one name, of any names
_BEFORE, _BEHIND = 2, 1  # of a row that is folded: holes that are drawn all the same
_FILLING = frozenset({"ram", "msi", "reserved", "gap"})  # what of a guest holes cut into many


@record
class Folded:
    """Columns after folding: boxes, the folds among those of the host, and what each hides."""

    host: list[Box]
    guest: list[Box]
    folds: list[Box]
    hidden: list[list[Box]]  # of the guest, for each fold


def fold(host: Sequence[Box], guest: Sequence[Box]) -> Folded:
    """Fold rows of holes, with what lies between them in both columns.

    Args:
        host: its boxes, ascending.
        guest: boxes of the guest, in any order; none where the host is drawn alone.

    Complexity: O(boxes log boxes).
    """
    rows = list(_rows(host, guest))
    folds = [_of_host(row) for row in rows]
    host_left, _ = _outside(host, folds)
    guest_left, hidden = _outside(guest, folds)
    held = [
        _of_guest(f"{one.id}-guest", one.range, boxes)
        for one, boxes in zip(folds, hidden, strict=True)
        if boxes
    ]
    merged = sorted([*host_left, *folds], key=lambda box: box.range)
    return Folded(merged, [*guest_left, *held], folds, hidden)


def fold_translated(own: Sequence[Box], folded: Folded) -> tuple[list[Box], list[Box]]:
    """Fold the guest's own view where its view as devices have it is folded; boxes and folds."""
    home = {f"{box.id}-gpa": at for at, held in enumerate(folded.hidden) for box in held}
    groups: list[list[Box]] = [[] for _ in folded.hidden]
    left: list[Box] = []
    for box in own:
        (groups[home[box.id]] if box.id in home else left).append(box)
    folds = [
        _of_guest(f"{one.id}-gpa", AddrRange(boxes[0].range.start, boxes[-1].range.last), boxes)
        for one, boxes in zip(folded.folds, groups, strict=True)
        if boxes
    ]
    return [*left, *folds], folds


def fold_remarks(remarks: Iterable[Remark], folds: Sequence[Box]) -> list[Remark]:
    """Leave out remarks inside of folds, with one for all of a fold instead."""
    kept, counts = [], [0] * len(folds)
    starts = [box.range.start for box in folds]
    for remark in remarks:
        at = _fold_at(starts, folds, remark.start)
        if at is None or remark.stop > folds[at].stop:
            kept.append(remark)
        else:
            counts[at] += 1
    for box, count in zip(folds, counts, strict=True):
        if count:
            head = f"{count} more like this"
            kept.append(Remark(box.range.start, box.stop, head, "", f"{box.range}: {head}", "cut"))
    return kept


def _rows(host: Sequence[Box], guest: Sequence[Box]) -> Iterator[list[Box]]:
    """Rows of holes that are long enough, each without anything of the guest but its filling."""
    firm = sorted((box.range for box in guest if box.css not in _FILLING), key=lambda r: r.start)
    starts = [span.start for span in firm]
    lasts: list[int] = []  # the highest last of all up to here
    for span in firm:
        lasts.append(max(span.last, lasts[-1] if lasts else 0))

    def behind(hole: Box) -> tuple[int, bool]:
        """Which stretch between firm things a hole is in; and whether one overlaps it."""
        before = bisect_right(starts, hole.range.last)
        return before, bool(before) and lasts[before - 1] >= hole.range.start

    holes = [box for box in host if box.css == "hole"]
    for (_, firmly), group in groupby(holes, behind):
        if not firmly:
            yield from _parts(list(group))


def _parts(row: Sequence[Box]) -> Iterator[list[Box]]:
    """Parts of a row that are folded: those of one name first, and what is between them."""
    mixed: list[Box] = []
    for _, alike in groupby(row, lambda box: box.name):
        like = list(alike)
        if len(like) <= _ALIKE:
            mixed += like
            continue
        if len(mixed) > _ANY:
            yield mixed
        mixed = []
        yield like
    if len(mixed) > _ANY:
        yield mixed


def _of_host(row: Sequence[Box]) -> Box:
    folded = row[_BEFORE:-_BEHIND]
    span = AddrRange(folded[0].range.start, folded[-1].range.last)
    same = len({box.name for box in row}) == 1
    name = f"{len(folded)} more like this" if same else f"{len(folded)} more holes"
    title = f"{span}: {name}; {show_size(sum(box.range.size for box in folded))} in holes"
    return Box(f"fold-{span.start:#x}", "fold", span, name, title)


def _of_guest(where: str, span: AddrRange, boxes: Sequence[Box]) -> Box:
    ram = [box.range.size for box in boxes if box.css == "ram"]
    other = "nothing here" if {box.css for box in boxes} == {"gap"} else f"{len(boxes)} more"
    name = f"{len(ram)} more pieces of RAM" if ram else other
    title = f"{span}: {name}" + (f", {show_size(sum(ram))}" if ram else "")
    return Box(where, "fold", span, name, title)


def _outside(boxes: Sequence[Box], folds: Sequence[Box]) -> tuple[list[Box], list[list[Box]]]:
    """Boxes that are not wholly in a fold; and those that are, of each fold."""
    left: list[Box] = []
    inside: list[list[Box]] = [[] for _ in folds]
    starts = [fold.range.start for fold in folds]
    for box in boxes:
        at = _fold_at(starts, folds, box.range.start)
        if at is not None and box.range.last <= folds[at].range.last:
            inside[at].append(box)
        else:
            left.append(box)
    return left, inside


def _fold_at(starts: Sequence[int], folds: Sequence[Box], address: int) -> int | None:
    at = bisect_right(starts, address) - 1
    return at if at >= 0 and address <= folds[at].range.last else None
