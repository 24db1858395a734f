# SPDX-License-Identifier: Apache-2.0
"""A picture to explore: one HTML file that asks no network, made of a scene and `map.html`."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

from vmm_iova.files import shipped
from vmm_iova.plain import one_line
from vmm_iova.report.fold import fold
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from vmm_iova.report.picture import Box, Remark
    from vmm_iova.report.scene import Scene


_REMARKS = 50  # that are written beside the map; each piece has its own all the same


def page_of(scene: Scene, generator: str) -> str:
    """Return a page that stands alone: its style, its program and its data are in it.

    Complexity: O(boxes log boxes); a page has about 300 bytes for each of them.
    """
    page = (shipped("report") / "map.html").read_text("utf-8")
    found = json.dumps(_data(scene, generator), separators=(",", ":"))
    # No text from outside closes the element that the data is in.
    safe = found.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return page.replace("{{title}}", escape(one_line(scene.title))).replace("{{data}}", safe)


def _data(scene: Scene, generator: str) -> dict[str, Any]:
    host, *guest = scene.columns
    folds = fold(host.boxes, guest[0].boxes if guest else ()).folds
    return {
        "generator": generator,
        "title": one_line(scene.title),
        "subtitle": one_line(scene.subtitle),
        "barred": [one_line(text) for text in scene.barred],
        "columns": [
            {
                "heading": column.heading,
                "own": column.own,
                "boxes": [_box(box) for box in sorted(column.boxes, key=_order)],
            }
            for column in scene.columns
        ],
        "folds": [
            {"start": f"{box.range.start:#x}", "last": f"{box.range.last:#x}", "name": box.name}
            for box in folds
        ],
        "remarks": [_remark(remark) for remark in sorted(scene.remarks, key=_place)[:_REMARKS]],
        "more_remarks": max(0, len(scene.remarks) - _REMARKS),
        "evidence": [one_line(text) for text in scene.evidence],
        "notes": [one_line(text) for text in scene.notes],
    }


def _order(box: Box) -> tuple[int, int, str]:
    return box.range.start, box.range.last, box.id


def _place(remark: Remark) -> tuple[int, int]:
    return remark.start, remark.stop


def _box(box: Box) -> dict[str, Any]:
    return {
        "id": box.id,
        "css": box.css,
        "start": f"{box.range.start:#x}",
        "last": f"{box.range.last:#x}",
        "name": one_line(box.name),
        "size": "" if box.css == "rest" else show_size(box.range.size),
        "facts": [one_line(line) for line in box.title.split("\n")],
        "source": one_line(box.proof),
    }


def _remark(remark: Remark) -> dict[str, Any]:
    return {
        "start": f"{remark.start:#x}",
        "stop": f"{remark.stop:#x}",
        "head": one_line(remark.head),
        "source": one_line(remark.proof),
    }
