# SPDX-License-Identifier: Apache-2.0
"""A picture of an address space: a vertical map on a broken axis, low addresses at the top.

Everything becomes a `Box` in a column first, then an `_Axis` gives heights, and only then text is
written. The axis has one band between any two neighbouring edges; it is high enough for what is
written beside and inside of it, so that no label meets another, and grows with the bits of its
size, so that 4 KiB and 1 TiB are both seen. The output depends on the arguments alone.
"""

from __future__ import annotations

from bisect import bisect_left
from html import escape
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from vmm_iova.plain import one_line
from vmm_iova.ranges import ADDRESS_LAST
from vmm_iova.record import record
from vmm_iova.report.letters import TYPE, fit, width, wrap
from vmm_iova.report.scene import layout_scene, machine_scene, near, usable_scene
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.layout import Layout
    from vmm_iova.report.picture import Box, Remark
    from vmm_iova.report.scene import Column, Scene

_MARGIN, _PAD = 20, 8  # around the page, and between a box and its text
_LINE, _ONE, _HIGHEST = 16, 22, 86  # heights: of a line, of a box with one, of any band
_FOOTNOTES = 4  # pieces of evidence, and notes, that are written out
_MARKS = frozenset({"gap", "rest"})  # boxes that are only words, and break the axis

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
    "fold": ("#6b7178", 0.06, "M0 2h8M0 6h8", "many alike, folded"),
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
    "vmm-iova · a height grows with the bits of a size, and the axis is broken where the guest has "
    "nothing; the strip at the right is to scale"
)
# Where things are across the page, by the number of columns: each column's left edge and width;
# where remarks are marked; where sizes are written, and the strip to scale. Narrow on purpose: it
# is read on telephones and in a README, where a wide page has small letters.
_LEFT = 162  # of the first column: room for an address of 64 bits
_ACROSS = {
    1: (((_LEFT, 386),), 552, 596, 658),
    2: (((_LEFT, 160), (330, 218)), 552, 596, 658),
    3: (((_LEFT, 104), (274, 188), (530, 188)), 466, 0, 848),
}
_STRIP = 14


@record
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
        `usable-0x...`, `reserved-N`; `fold-0x...` for many like holes) and a `<title>`, which
        browsers show on hovering.

    Complexity: O(boxes log boxes + boxes x causes).
    Synchronization: none required.
    """
    return draw(layout_scene(layout))


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
    return draw(usable_scene(usable, title))


def draw_machine(layout: Layout) -> str:
    """Draw a machine alone: a layout that was planned on no host.

    Returns:
        A complete SVG document, with ids and titles as in `draw_layout`.

    Complexity: O(boxes log boxes).
    Synchronization: none required.
    """
    return draw(machine_scene(layout))


def draw(scene: Scene) -> str:
    """Draw a scene, many like holes as one."""
    scene = scene.folded()
    places, mark, units, strip = _ACROSS[len(scene.columns)]
    page = _Page(strip + _STRIP + _MARGIN, scene)
    shared = [(one, x, wide) for one, (x, wide) in zip(scene.columns, places, strict=True)]
    first = [entry for entry in shared if not entry[0].own]
    axis = page.columns(first)
    if units:
        page.units(axis, units)
    page.strip([one for one, *_ in first], axis, strip)
    for column, x, wide in shared:
        if column.own:
            page.ties(scene, axis, page.columns([(column, x, wide)], "start"), mark + 30, x)
    page.remarks(scene.remarks, axis, mark)
    return page.finish()


def _place(boxes: Sequence[Box], x: int, wide: int) -> list[_Placed]:
    """Put boxes into a column; those that overlap share its width."""
    placed: list[_Placed] = []
    cluster: list[Box] = []
    for box in sorted(boxes, key=lambda box: (box.range, box.id)):
        if cluster and box.range.start > max(other.range.last for other in cluster):
            placed += _share(cluster, x, wide)
            cluster = []
        cluster.append(box)
    return placed + _share(cluster, x, wide)


def _share(cluster: Sequence[Box], x: int, wide: int) -> list[_Placed]:
    lanes: list[list[Box]] = []
    for box in sorted(cluster, key=lambda box: (box.aside, box.range, box.id)):
        free = (lane for lane in lanes if all(not box.range.overlaps(o.range) for o in lane))
        lane = next(free, None)
        if lane is None:
            lanes.append(lane := [])
        lane.append(box)
    placed = []
    for index, lane in enumerate(lanes):
        left, right = (x + wide * edge // len(lanes) for edge in (index, index + 1))
        for box in lane:
            lines = tuple(_label(box, right - left - 2 * _PAD))
            placed.append(_Placed(box, left, right - left, lines))
    return placed


def _label(box: Box, room: int) -> Iterator[tuple[str, str]]:
    """The lines of a box, each with its class: name, size, and addresses where there are any."""
    css, detail_css = ("note", "note") if box.css in _MARKS else ("name", "addr")
    *lines, last = wrap(box.name, css, room, 2)
    size = show_size(box.range.size)
    if box.css == "rest" or (box.css == "hole" and box.range.last == ADDRESS_LAST):
        size = ""  # says nothing: up to where the space ends
    joined = " · ".join(filter(None, (last, size)))
    lines += [joined] if width(joined, css) <= room else [last, fit(size, css, room)]
    yield from ((line, css) for line in lines if line)
    if detail := fit(box.detail, detail_css, room):
        yield detail, detail_css


class _Page:
    """The document: collects SVG elements and knows how far down they reach."""

    def __init__(self, across: int, scene: Scene) -> None:
        self.width, self.scene = across, scene
        self.kinds: set[str] = set()
        self.parts: list[str] = []
        self.bottom = _MARGIN
        self.paragraph("h1 ink", scene.title)
        self.bottom += 6
        self.paragraph("h2 dim", scene.subtitle)
        self.bottom += 4
        more = f" (and {len(scene.barred) - 1} more groups)" if len(scene.barred) > 1 else ""
        for line in scene.barred[:1]:
            self.paragraph("head warn", line + more)
        self.top = self.bottom + 40

    def paragraph(self, css: str, text: str, most: int = 2, left: int = _MARGIN) -> None:
        """Write a text over the width of the page."""
        step = _LINE + 4 * css.startswith("h1")
        for line in wrap(text, css, self.width - left - _MARGIN, most):
            self.bottom += step
            self.parts.append(_text(left, self.bottom, css, line))

    def columns(self, columns: Sequence[tuple[Column, int, int]], side: str = "end") -> _Axis:
        """Draw columns of one axis, each below its heading, with the addresses at one side."""
        placed = [_place(column.boxes, x, wide) for column, x, wide in columns]
        every = [item for one in placed for item in one]
        axis = _Axis(every, self.top)
        self.bottom = max(self.bottom, axis.tops[-1])
        outer = max(item.x + item.width for item in every) + 6
        self.spine(axis, min(item.x for item in every) - 16 if side == "end" else outer, side)
        for (column, x, _), items in zip(columns, placed, strict=True):
            self.parts.append(_text(x, self.top - 14, "head dim", column.heading))
            self.parts += (_draw(item, axis) for item in items)
        self.kinds |= {item.box.css for item in every}
        return axis

    def spine(self, axis: _Axis, x: int, side: str) -> None:
        """Draw the axis with its addresses, broken where a band is drawn short."""
        ticks = "".join(f"M{x} {y}h10" for y in axis.tops)
        self.parts.append(f'<path d="M{x + 5} {axis.tops[0]}V{axis.tops[-1]}{ticks}"/>')
        at = x - 4 if side == "end" else x + 14
        for edge, y in zip(axis.edges, axis.tops, strict=True):
            self.parts.append(_text(at, y + 4, "addr dim", f"{min(edge, ADDRESS_LAST):#x}", side))
        for y in axis.breaks:
            self.parts.append(f'<rect class="page" x="{x}" y="{y - 6}" width="10" height="12"/>')
            self.parts.append(f'<path d="M{x + 5} {y - 7}v1l4 2l-8 4l8 4l-4 2v1"/>')

    def units(self, axis: _Axis, x: int) -> None:
        """Write each address as a size, for those who think in GiB and TiB."""
        before = ""
        for edge, y in zip(axis.edges, axis.tops, strict=True):
            size = near(edge)
            if size != before:
                self.parts.append(_text(x, y + 4, "note dim", size))
            before = size

    def strip(self, columns: Sequence[Column], axis: _Axis, x: int) -> None:
        """Draw the same to true scale, as a thin strip that has the columns side by side."""
        drawn = [[box for box in one.boxes if box.css not in _MARKS] for one in columns]
        ends = [box for box in drawn[-1] if box.css != "hole"] or drawn[-1]
        whole = max(box.stop for box in ends)
        top, high, wide = axis.tops[0], axis.tops[-1] - axis.tops[0], _STRIP // len(columns)
        parts = []
        for index, boxes in enumerate(drawn):
            for box in boxes:
                if box.range.start < whole:
                    y = box.range.start * high // whole
                    tall = max(1, min(box.stop, whole) * high // whole - y)
                    shape = f'x="{x + wide * index}" y="{top + y}" width="{wide}" height="{tall}"'
                    parts.append(f'<rect class="{box.css} true" {shape}/>')
        self.parts.append(_group("strip", f"to true scale, up to {near(whole)}", parts))
        right = self.width - _MARGIN + 6
        name = "to scale" if len(self.scene.columns) < 3 else "IOVA to scale"
        self.parts.append(_text(right, self.top - 14, "note dim", name, "end"))
        self.parts.append(_text(right, axis.tops[-1] + 18, "note dim", near(whole), "end"))
        self.bottom = max(self.bottom, axis.tops[-1] + 18)

    def ties(self, scene: Scene, left: _Axis, right: _Axis, x: int, to: int) -> None:
        """Tie each item as devices see it to where the guest sees it."""
        mid = (x + to) // 2
        for tie in scene.ties:
            a, b = left.y(tie.iova.start), left.y(tie.iova.last + 1)
            c, d = right.y(tie.gpa.start), right.y(tie.gpa.last + 1)
            curve = f"M{x} {a}C{mid} {a} {mid} {c} {to} {c}V{d}C{mid} {d} {mid} {b} {x} {b}Z"
            title = f"guest addresses {tie.gpa} are IOVAs {tie.iova}"
            self.parts.append(_group("tie", title, [f'<path d="{curve}"/>']))

    def remarks(self, remarks: Sequence[Remark], axis: _Axis, x: int) -> None:
        """Number remarks beside the columns, and write them below."""
        free, self.bottom = self.top - 12, self.bottom + 20
        starts = []
        for number, remark in enumerate(sorted(remarks, key=lambda one: (one.start, one.stop)), 1):
            low, high = axis.y(remark.start), axis.y(remark.stop)
            middle = (low + high) // 2
            y = max(middle - _LINE // 2, free)
            free = y + _LINE
            starts.append((number, remark, low, high, middle, y))
        self.bottom = max(self.bottom, free + 8)
        for number, remark, low, high, middle, y in starts:
            bracket = f"M{x} {low}h3V{high}h-3M{x + 3} {middle}L{x + 9} {y + 8}h3"
            parts = [f'<path d="{bracket}"/>', _text(x + 15, y + 12, "note ink", str(number))]
            self.bottom += 4
            outer, self.parts = self.parts, []
            self.parts.append(_text(_MARGIN, self.bottom + _LINE, "head dim", str(number)))
            self.paragraph("head ink", remark.head, left=_MARGIN + 32)
            if remark.proof:
                self.paragraph("note dim", remark.proof, left=_MARGIN + 32)
            parts += self.parts
            self.parts = outer
            self.parts.append(_group(remark.css, remark.title, parts))

    def legend(self) -> None:
        """Write what the colours and hatches mean, of what is in the picture."""
        x = _MARGIN
        for css in [css for css in _LOOK if css in self.kinds]:
            words = _LOOK[css][3]
            wide = 21 + round(width(words, "note"))
            if x + wide > self.width - _MARGIN:
                x, self.bottom = _MARGIN, self.bottom + _LINE + 4
            sample = "".join(_filled(css, x, self.bottom - 10, 16, 12))
            self.parts.append(f'<g class="{css}">{sample}</g>')
            self.parts.append(_text(x + 21, self.bottom, "note ink", words))
            x += wide + 14

    def finish(self) -> str:
        """Write the footer and return the document."""
        self.bottom += 32
        self.legend()
        self.bottom += 8
        remarks = [f"note: {note}" for note in self.scene.notes]
        for lines, what in ((self.scene.evidence, "pieces of evidence"), (remarks, "notes")):
            more = [f"and {len(lines) - _FOOTNOTES} more {what}"] if lines[_FOOTNOTES:] else []
            for line in (*lines[:_FOOTNOTES], *more):
                self.paragraph("note dim", line)
        self.paragraph("note dim", _SCALE)
        size = f'width="{self.width}" height="{self.bottom + _MARGIN}"'
        view = f'viewBox="0 0 {self.width} {self.bottom + _MARGIN}"'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view} role="img">',
            f"<title>{escape(one_line(self.scene.title), quote=False)}</title>",
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
    return _group(box.css, box.title, parts, f' id="{escape(box.id)}"')


def _filled(css: str, x: int, y: int, wide: int, high: int) -> Iterator[str]:
    """The rectangles of a box: its tint and, over it, its hatch."""
    shape = f'x="{x}" y="{y}" width="{wide}" height="{high}"'
    yield f'<rect class="body" {shape}/>'
    if css in _LOOK and _LOOK[css][2]:
        yield f'<rect fill="url(#hatch-{css})" {shape}/>'


def _group(css: str, title: str, parts: Iterable[str], more: str = "") -> str:
    """A group with a tooltip."""
    lines = escape("\n".join(map(one_line, title.split("\n"))), quote=False)
    return f'<g class="{css}"{more}><title>{lines}</title>{"".join(parts)}</g>'


def _text(x: int, y: int, css: str, line: str, anchor: str = "start") -> str:
    at = f'x="{x}" y="{y}"' + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text class="{css}" {at}>{escape(one_line(line), quote=False)}</text>'


def _rules() -> Iterator[str]:
    for css, (size, _, more) in TYPE.items():
        yield f".{css}{{font-size:{size}px;{more}}}"
    for css, (colour, tint, _, _) in _LOOK.items():
        yield f".{css} .body{{fill:{colour};fill-opacity:{tint};stroke:{colour}}}"
        yield f".{css}.true{{fill:{colour};fill-opacity:{max(tint, 0.4)}}}"
    yield _STYLE


def _hatches(kinds: set[str]) -> Iterator[str]:
    for css, (colour, _, hatch, _) in _LOOK.items():
        if hatch and css in kinds:
            yield (
                f'<pattern id="hatch-{css}" width="8" height="8" patternUnits="userSpaceOnUse">'
                f'<path d="{hatch}" style="stroke:{colour};stroke-opacity:.3"/></pattern>'
            )
