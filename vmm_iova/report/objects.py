# SPDX-License-Identifier: Apache-2.0
"""What a layout, usable ranges and a diagnosis show of themselves, as text, SVG and HTML."""

from __future__ import annotations

import base64
from html import escape

from vmm_iova.diagnosis.findings import Diagnosis
from vmm_iova.host.usable import Usable
from vmm_iova.planning.budget import budget
from vmm_iova.planning.layout import Layout
from vmm_iova.report.answer import show_answer, without_colours
from vmm_iova.report.diagnosis import show_diagnosis
from vmm_iova.report.layout import show_layout
from vmm_iova.report.svg import draw_layout, draw_usable
from vmm_iova.report.text import evidence, section, usable_map
from vmm_iova.report.verdicts import layout_answer


def text_of(item: object, *, verbose: bool) -> str:
    """Return what the command prints of it, without colours.

    Args:
        item: what is shown.
        verbose: with the history and the rare causes of a diagnosis; sizes in bytes elsewhere.
    """
    if isinstance(item, Diagnosis):
        return without_colours(show_diagnosis(item, verbose=verbose))
    if isinstance(item, Layout):
        cost = budget(item)
        answer = without_colours(show_answer(layout_answer(item, cost)))
        return f"{answer}\n{show_layout(item, cost, bytes_=verbose)}"
    assert isinstance(item, Usable)  # nothing else asks
    lines = [f"host    {item.host}", "", "map", *usable_map(item, bytes_=verbose)]
    lines += section("evidence", evidence(item))
    lines += section("notes", (note.text for note in item.notes))
    return "\n".join(lines) + "\n"


def svg_of(item: object) -> str:
    """Return the picture of it."""
    if isinstance(item, Layout):
        return draw_layout(item)
    assert isinstance(item, Usable)
    return draw_usable(item, item.host)


def html_of(item: object) -> str:
    """Return a picture, where there is one, and the text.

    The picture is an image of its own: its styles and ids would meet those of the page.
    """
    text = f"<pre>{escape(text_of(item, verbose=False))}</pre>"
    if not isinstance(item, Layout | Usable):
        return text
    picture = base64.b64encode(svg_of(item).encode()).decode("ascii")
    name = escape(item.machine.title if isinstance(item, Layout) else item.host, quote=True)
    return (
        f'<img alt="{name}" src="data:image/svg+xml;base64,{picture}">'
        f"<details><summary>as text</summary>{text}</details>"
    )
