# SPDX-License-Identifier: Apache-2.0
"""A picture of an address space: a vertical map on a broken axis, low addresses at the top.

Everything becomes a `Box` in a column first, then an `_Axis` gives heights, and only then text is
written. The axis has one band between any two neighbouring edges; it is high enough for what is
written beside and inside of it, so that no label meets another, and grows with the bits of its
size, so that 4 KiB and 1 TiB are both seen. The output depends on the arguments alone.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from vmm_iova.host.facts import PASTED
from vmm_iova.plain import one_line
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
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
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.layout import Layout

_MARGIN, _PAD = 28, 8  # around the page, and between a box and its text
_LINE, _ONE, _HIGHEST = 16, 22, 92  # heights: of a line, of a box with one, of any band
_FOOTNOTES = 4  # pieces of evidence, and notes, that are written out
_MARKS = frozenset({"gap", "rest"})  # boxes that are only words, and break the axis

# Class of a text -> size in pixels, width factor, CSS: one table for measuring and for drawing.
_TYPE = {
    "h1": (20, 1.12, "font-weight:600"),
    "h2": (13, 1.0, ""),
    "head": (12, 1.12, "font-weight:600"),
    "name": (12, 1.0, ""),
    "note": (11, 1.0, ""),
    "addr": (11, 1.0, "font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"),
}
# Widths of characters in parts of the size, of DejaVu Sans: no usual font is wider.
_EMS = (
    (" iIjl.,:;'|!·", 0.34),
    ("frt()[]/-", 0.43),
    ("cksvxyzFJLT", 0.61),
    ("0123456789abdeghnopqu_EKPSZ", 0.66),
    ("ABCRVXYU<>&", 0.78),
    ("mwMW@%—…", 1.04),
)
# Class of a box -> colour (Okabe and Ito's, which the colour-blind tell apart), tint, hatch that
# tells it apart in grey, words in the legend.
_LOOK = {
    "usable": ("#009e73", 0.17, "", "host: usable"),
    "relaxable": ("#009e73", 0.17, "M0 4h8", "host: usable, with a warning"),
    "hole": ("#6b7178", 0.12, "M-2 2l4-4M0 8l8-8M6 10l4-4", "host: hole"),
    "ram": ("#0072b2", 1.0, "", "guest: RAM"),
    "window": ("#56b4e9", 0.28, "", "guest: PCI window"),
    "bar": ("#56b4e9", 0.6, "", "guest: BAR"),
    "room": ("#56b4e9", 0.12, "M0 8L8 0", "guest: room for later"),
    "device": ("#8c9196", 0.24, "", "guest: device"),
    "firmware": ("#f0e442", 0.36, "", "guest: firmware"),
    "doorbell": ("#e69f00", 0.34, "", "guest: doorbell"),
    "msi": ("#d55e00", 0.17, "M-2 6l4 4M0 0l8 8M6-2l4 4", "MSI window"),
    "reserved": ("#cc79a7", 0.17, "M4 0v8", "tell the guest: reserved"),
}
_STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}"
    ".body{stroke-width:1}.reserved .body,.relaxable .body{stroke-dasharray:5 3}"
    ".ram .body{stroke:#56b4e9}.gap .body,.rest .body{fill:none}path{fill:none;stroke:#8c9196}"
    ".tie path{fill:#0072b2;fill-opacity:.16;stroke:none}"
    ".cut path{stroke:#d55e00;stroke-width:1.4}"
    ".page{fill:#fff}.ink{fill:#16191d}.dim{fill:#565d65}.warn{fill:#b34700}"
    "@media (prefers-color-scheme:dark)"
    "{.page{fill:#14181d}.ink{fill:#f1f3f5}.dim{fill:#a9b1ba}.warn{fill:#ff9d5c}}"
    ".ram .ink{fill:#fff}"
)
_SCALE = (
    "vmm-iova · not to scale: a height grows with the bits of a size, and the axis is broken where "
    "the guest has nothing"
)
_DONE = {
    "as is": "nothing had to be cut or moved",
    "split": "RAM is cut around the holes of the host",
    "move": "RAM is moved as a whole",
}


@dataclass(frozen=True, slots=True)
class _Placed:
    """A box in its column, with the lines that fit its width, each with its class."""

    box: Box
    x: int
    width: int
    lines: tuple[tuple[str, str], ...]


class _Axis:
    """Where an address is on the page; knows the edges of its boxes only."""

    def __init__(self, placed: Sequence[_Placed], top: int) -> None:
        boxes = [item.box for item in placed]
        self.edges = sorted({edge for box in boxes for edge in (box.range.start, box.stop)})
        kinds: list[set[str]] = [set() for _ in self.edges[1:]]
        for box in boxes:
            for index in self._bands(box):
                kinds[index].add(box.css)
        sizes = [above - below for below, above in pairwise(self.edges)]
        heights = list(map(_height, sizes, kinds))
        for item in placed:
            bands = self._bands(item.box)
            needed = _ONE + _LINE * max(0, len(item.lines) - 1)
            lacking = needed - sum(heights[index] for index in bands)
            heights[max(bands, key=heights.__getitem__)] += max(0, lacking)
        self.tops = list(accumulate(heights, initial=top))
        marks = [box for box in boxes if box.css in _MARKS]
        self.breaks = [(self.y(box.range.start) + self.y(box.stop)) // 2 for box in marks]

    def _bands(self, box: Box) -> range:
        start, stop = box.range.start, box.stop
        return range(bisect_left(self.edges, start), bisect_left(self.edges, stop))

    def y(self, address: int) -> int:
        """Return where an edge is."""
        return self.tops[min(bisect_left(self.edges, address), len(self.edges) - 1)]


def _height(size: int, kinds: set[str]) -> int:
    if kinds & _MARKS:
        return _ONE + 4
    step, most = (4, _HIGHEST) if "ram" in kinds else (2, _HIGHEST // 2)
    return min(_ONE + step * max(0, size.bit_length() - 21), most)


# -- drawing ---------------------------------------------------------------------------------------


def draw_layout(layout: Layout) -> str:
    """Draw a layout beside what its host allows.

    Args:
        layout: what `vmm_iova.plan` returned.

    Returns:
        A complete SVG document. Every part is a group with an id (`item-N`, `hole-0x...`,
        `usable-0x...`, `reserved-N`) and a `<title>`, which browsers show on hovering.

    Complexity: O(boxes log boxes + boxes x causes).
    Synchronization: none required.
    """
    usable = layout.usable
    apart = any(item.gpa and item.iova and item.gpa != item.iova for item in layout.items)
    page = _Page(
        1500 if apart else 1240,
        f"{layout.machine.title}: {show_size(layout.ram_bytes)} of RAM on {usable.host}",
        f"policy {layout.on_hole}: {_DONE.get(layout.policy, layout.policy)} · "
        f"{layout.address_bits} guest address bits · {_selection(usable)}",
        usable,
    )
    seen = guest_boxes(layout, "iova" if apart else "both")
    host = host_boxes(usable, max(box.range.last for box in seen))
    seen += unused_boxes(usable, host, seen)
    left = {"host: what may be mapped": _place(host, 184, 256)}
    if not apart:
        axis = page.columns(left | {"guest: what goes where": _place(seen, 452, 344)})
        cuts = list(cut_remarks(layout, "RAM"))
        others = other_remarks(layout, host, {remark.proof for remark in cuts})
        page.remarks([*cuts, *others], axis, 796)
    else:
        axis = page.columns(left | {"guest as devices see it: IOVA": _place(seen, 452, 260)})
        own = guest_boxes(layout, "gpa")
        hull = AddrRange(min(b.range.start for b in own), max(b.range.last for b in own))
        own += unused_boxes(None, [usable_box(hull)], own)
        right = {"guest as it sees itself: GPA": _place(own, 772, 260)}
        own_axis = page.columns(right, "start")
        page.ties(layout, axis, own_axis, 712, 772)
        page.remarks(list(cut_remarks(layout, "RAM mapping")), own_axis, 1174)
    notes = [note.text for note in layout.notes if note.warning]
    above = [span for span in usable.ranges if span.start > host[-1].range.last]
    if above:
        notes.append(f"usable ranges above, not drawn: {len(above)}, up to {above[-1].last:#x}")
    return page.finish(notes)


def draw_usable(usable: Usable, title: str) -> str:
    """Draw what a host allows, alone, every hole with its cause and source.

    Args:
        usable: what `Host.usable` returned.
        title: headline of the picture.

    Returns:
        A complete SVG document, with ids and titles as in `draw_layout`.

    Complexity: O(boxes log boxes + boxes x causes).
    Synchronization: none required.
    """
    page = _Page(1000, title, f"host {usable.host} · {_selection(usable)}", usable)
    host = host_boxes(usable, None)
    axis = page.columns({"host: what may be mapped": _place(host, 184, 344)})
    page.remarks([hole_remark(box) for box in host if box.proof], axis, 528)
    return page.finish([note.text for note in usable.notes if note.warning])


def _selection(usable: Usable) -> str:
    """The groups and the granule, in a few words."""
    names = ", ".join("pasted text" if name == PASTED else name for name in usable.groups)
    groups = f"groups: {names or 'not named'}" if len(usable.groups) < 6 else ""
    return f"{groups or f'{len(usable.groups)} groups'} · granule {show_size(usable.granule)}"


def _place(boxes: Sequence[Box], x: int, width: int) -> list[_Placed]:
    """Put boxes into a column; those that overlap share its width."""
    placed: list[_Placed] = []
    cluster: list[Box] = []
    for box in sorted(boxes, key=lambda box: (box.range, box.id)):
        if cluster and box.range.start > max(other.range.last for other in cluster):
            placed += _share(cluster, x, width)
            cluster = []
        cluster.append(box)
    return placed + _share(cluster, x, width)


def _share(cluster: Sequence[Box], x: int, width: int) -> list[_Placed]:
    lanes: list[list[Box]] = []
    for box in sorted(cluster, key=lambda box: (box.aside, box.range, box.id)):
        free = (lane for lane in lanes if all(not box.range.overlaps(o.range) for o in lane))
        lane = next(free, None)
        if lane is None:
            lanes.append(lane := [])
        lane.append(box)
    placed = []
    for index, lane in enumerate(lanes):
        left, right = (x + width * edge // len(lanes) for edge in (index, index + 1))
        for box in lane:
            lines = tuple(_label(box, right - left - 2 * _PAD))
            placed.append(_Placed(box, left, right - left, lines))
    return placed


def _label(box: Box, room: int) -> Iterator[tuple[str, str]]:
    """The lines of a box, each with its class: name, size, and addresses where there are any."""
    css, detail_css = ("note", "note") if box.css in _MARKS else ("name", "addr")
    *lines, last = _wrap(box.name, css, room, 2)
    size = show_size(box.range.size)
    if box.css == "rest" or (box.css == "hole" and box.range.last == ADDRESS_LAST):
        size = ""  # says nothing: up to where the space ends
    joined = " · ".join(filter(None, (last, size)))
    lines += [joined] if _width(joined, css) <= room else [last, _fit(size, css, room)]
    yield from ((line, css) for line in lines if line)
    if detail := _fit(box.detail, detail_css, room):
        yield detail, detail_css


class _Page:
    """The document: collects SVG elements and knows how far down they reach."""

    def __init__(self, width: int, title: str, subtitle: str, usable: Usable) -> None:
        self.width, self.title, self.usable = width, title, usable
        self.kinds: set[str] = set()
        self.parts: list[str] = []
        self.bottom = _MARGIN + 4
        self.paragraph("h1 ink", title, 1)
        self.bottom += 6
        self.paragraph("h2 dim", subtitle, 1)
        self.bottom += 4
        barred = [entry.text for entry in usable.unassignable]
        more = f" (and {len(barred) - 1} more groups)" if len(barred) > 1 else ""
        for line in barred[:1]:
            self.paragraph("head warn", line + more)
        self.top = self.bottom + 40

    def paragraph(self, css: str, text: str, most: int = 2) -> None:
        """Write a text over the width of the page."""
        for line in _wrap(text, css, self.width - 2 * _MARGIN, most):
            self.bottom += _LINE
            self.parts.append(_text(_MARGIN, self.bottom, css, line))

    def columns(self, columns: dict[str, list[_Placed]], side: str = "end") -> _Axis:
        """Draw columns of one axis, each below its heading, with the addresses at one side."""
        every = [item for placed in columns.values() for item in placed]
        axis = _Axis(every, self.top)
        self.bottom = max(self.bottom, axis.tops[-1])
        outer = max(item.x + item.width for item in every) + 6
        self.spine(axis, min(item.x for item in every) - 16 if side == "end" else outer, side)
        for heading, placed in columns.items():
            x = min(item.x for item in placed)
            self.parts.append(_text(x, self.top - 14, "head dim", heading))
            self.parts += (_draw(item, axis) for item in placed)
        self.kinds |= {item.box.css for item in every}
        return axis

    def spine(self, axis: _Axis, x: int, side: str) -> None:
        """Draw the axis with its addresses, broken where a band is drawn short."""
        ticks = "".join(f"M{x} {y}h10" for y in axis.tops)
        self.parts.append(f'<path d="M{x + 5} {axis.tops[0]}V{axis.tops[-1]}{ticks}"/>')
        at = x - 6 if side == "end" else x + 16
        for edge, y in zip(axis.edges, axis.tops, strict=True):
            self.parts.append(_text(at, y + 4, "addr dim", f"{min(edge, ADDRESS_LAST):#x}", side))
        for y in axis.breaks:
            self.parts.append(f'<rect class="page" x="{x}" y="{y - 6}" width="10" height="12"/>')
            self.parts.append(f'<path d="M{x + 5} {y - 7}v1l4 2l-8 4l8 4l-4 2v1"/>')

    def ties(self, layout: Layout, left: _Axis, right: _Axis, x: int, to: int) -> None:
        """Tie each item as devices see it to where the guest sees it."""
        mid = (x + to) // 2
        for item in layout.items:
            if item.iova and item.gpa:
                a, b = left.y(item.iova.start), left.y(item.iova.last + 1)
                c, d = right.y(item.gpa.start), right.y(item.gpa.last + 1)
                curve = f"M{x} {a}C{mid} {a} {mid} {c} {to} {c}V{d}C{mid} {d} {mid} {b} {x} {b}Z"
                title = f"guest addresses {item.gpa} are IOVAs {item.iova}"
                self.parts.append(_group("tie", title, [f'<path d="{curve}"/>']))

    def remarks(self, remarks: Sequence[Remark], axis: _Axis, x: int) -> None:
        """Write remarks at the right, as near to their places as there is room."""
        free, room = self.top - 10, self.width - _MARGIN - x - 32
        for remark in sorted(remarks, key=lambda remark: (remark.start, remark.stop)):
            lines = [("head ink", line) for line in _wrap(remark.head, "head", room, 2)]
            lines += (("note dim", line) for line in _wrap(remark.proof, "note", room, 2) if line)
            low, high = axis.y(remark.start), axis.y(remark.stop)
            middle = (low + high) // 2
            y = max(middle - len(lines) * _LINE // 2, free)
            free = y + len(lines) * _LINE + 6
            bracket = f"M{x + 4} {low}h4V{high}h-4M{x + 8} {middle}h4L{x + 20} {y + 8}h8"
            parts = [f'<path d="{bracket}"/>']
            for index, (css, line) in enumerate(lines):
                parts.append(_text(x + 32, y + 12 + index * _LINE, css, line))
            self.parts.append(_group(remark.css, remark.title, parts))
        self.bottom = max(self.bottom, free)

    def legend(self) -> None:
        """Write what the colours and hatches mean, of what is in the picture."""
        x = _MARGIN
        for css in [css for css in _LOOK if css in self.kinds]:
            words = _LOOK[css][3]
            wide = 21 + round(_width(words, "note"))
            if x + wide > self.width - _MARGIN:
                x, self.bottom = _MARGIN, self.bottom + _LINE + 4
            sample = "".join(_filled(css, x, self.bottom - 10, 16, 12))
            self.parts.append(f'<g class="{css}">{sample}</g>')
            self.parts.append(_text(x + 21, self.bottom, "note ink", words))
            x += wide + 14

    def finish(self, notes: Sequence[str]) -> str:
        """Write the footer and return the document."""
        self.bottom += 36
        self.legend()
        self.bottom += 8
        barred = {entry.text for entry in self.usable.unassignable}
        evidence = [f"aperture: {item.text}" for item in self.usable.evidence]
        remarks = [f"note: {note}" for note in notes if note not in barred]
        for lines, what in ((evidence, "pieces of evidence"), (remarks, "notes")):
            more = [f"and {len(lines) - _FOOTNOTES} more {what}"] if lines[_FOOTNOTES:] else []
            for line in (*lines[:_FOOTNOTES], *more):
                self.paragraph("note dim", line)
        self.paragraph("note dim", _SCALE)
        size = f'width="{self.width}" height="{self.bottom + _MARGIN}"'
        view = f'viewBox="0 0 {self.width} {self.bottom + _MARGIN}"'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view} role="img">',
            f"<title>{escape(one_line(self.title))}</title>",
            f"<style>{''.join(_rules())}</style>",
            f"<defs>{''.join(_hatches(self.kinds))}</defs>",
            '<rect class="page" width="100%" height="100%"/>',
        )
        return "\n".join((*head, *self.parts, "</svg>\n"))


def _draw(item: _Placed, axis: _Axis) -> str:
    """One box with its label in the middle."""
    box = item.box
    y, stop = axis.y(box.range.start), axis.y(box.stop)
    parts = list(_filled(box.css, item.x, y, item.width, stop - y))
    base = y + (stop - y - _LINE * len(item.lines)) // 2 + 12
    ink = "dim" if box.css in _MARKS else "ink"
    for index, (line, css) in enumerate(item.lines):
        parts.append(_text(item.x + _PAD, base + index * _LINE, f"{css} {ink}", line))
    return _group(box.css, box.title, parts, f" id={quoteattr(box.id)}")


def _filled(css: str, x: int, y: int, width: int, height: int) -> Iterator[str]:
    """The rectangles of a box: its tint and, over it, its hatch."""
    shape = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    yield f'<rect class="body" {shape}/>'
    if css in _LOOK and _LOOK[css][2]:
        yield f'<rect fill="url(#hatch-{css})" {shape}/>'


def _group(css: str, title: str, parts: Iterable[str], more: str = "") -> str:
    """A group with a tooltip."""
    lines = escape("\n".join(map(one_line, title.split("\n"))))
    return f'<g class="{css}"{more}><title>{lines}</title>{"".join(parts)}</g>'


def _text(x: int, y: int, css: str, line: str, anchor: str = "start") -> str:
    at = f'x="{x}" y="{y}"' + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text class="{css}" {at}>{escape(one_line(line))}</text>'


def _rules() -> Iterator[str]:
    for css, (size, _, more) in _TYPE.items():
        yield f".{css}{{font-size:{size}px;{more}}}"
    for css, (colour, tint, _, _) in _LOOK.items():
        yield f".{css} .body{{fill:{colour};fill-opacity:{tint};stroke:{colour}}}"
    yield _STYLE


def _hatches(kinds: set[str]) -> Iterator[str]:
    for css, (colour, _, hatch, _) in _LOOK.items():
        if hatch and css in kinds:
            yield (
                f'<pattern id="hatch-{css}" width="8" height="8" patternUnits="userSpaceOnUse">'
                f'<path d="{hatch}" style="stroke:{colour};stroke-opacity:.3"/></pattern>'
            )


# -- text ------------------------------------------------------------------------------------------


def _width(text: str, css: str) -> float:
    """Estimate the width of a text in pixels, on the safe side for the usual fonts."""
    size, factor, _ = _TYPE[css.partition(" ")[0]]
    return sum(_em(char, css[:4]) for char in text) * size * factor


@lru_cache(maxsize=4096)
def _em(char: str, css: str) -> float:
    if unicodedata.east_asian_width(char) in ("W", "F") or ord(char) > 0xFFFF:
        return 1.05
    if css == "addr":
        return 0.62
    return next((em for chars, em in _EMS if char in chars), 0.84)


def _fit(text: str, css: str, room: float) -> str:
    """Cut a text to a width, with an ellipsis; nothing is left where nothing fits."""
    widths = list(accumulate(_width(char, css) for char in text))
    if not widths or widths[-1] <= room:
        return text
    keep = bisect_right(widths, room - _width("…", css))
    return text[:keep].rstrip() + "…" if keep else ""


def _wrap(text: str, css: str, room: float, most: int) -> list[str]:
    """Break a text into at most so many lines; the last one is cut."""
    lines = [""]
    for word in one_line(text).split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and len(lines) < most and _width(longer, css) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fit(line, css, room) for line in lines]
