# SPDX-License-Identifier: Apache-2.0
"""The picture to explore, as a file: whole, alone, and with everything that the SVG has.

`tools/test_browser.py` goes through it in a browser.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import vmm_iova as vi
from tests.report.test_svg import HOSTILE, bundled, bundled_layout, hostile_layout, usable_of
from vmm_iova.report.html import page_of
from vmm_iova.report.scene import Scene, layout_scene, usable_scene


def data_of(page: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert len(found) == 1
    read: dict[str, Any] = json.loads(found[0])
    return read


def pieces(page: str) -> list[dict[str, str]]:
    return [box for column in data_of(page)["columns"] for box in column["boxes"]]


@pytest.mark.parametrize("spec", bundled())
def test_page_of_host_has_every_box_with_its_cause(spec: str) -> None:
    usable = usable_of(spec)
    scene = usable_scene(usable, spec)
    found = {box["id"]: box for box in pieces(page_of(scene, "test"))}
    assert set(found) == {box.id for box in scene.columns[0].boxes}
    for hole in ~usable.ranges.as_set():
        cause = usable.causes_of(hole)[0]
        assert cause.text in " ".join(found[f"hole-{hole.start:#x}"]["facts"])


def test_page_of_layout_has_every_item_and_its_addresses() -> None:
    layout = bundled_layout("amd-epyc-1tb", "1.5TiB")
    found = {box["id"]: box for box in pieces(page_of(layout_scene(layout), "test"))}
    for index, item in enumerate(layout.items, 1):
        box = found[f"item-{index}"]
        assert (int(box["start"], 16), int(box["last"], 16)) == (item.place.start, item.place.last)


def test_page_of_anything_asks_no_network() -> None:
    page = page_of(layout_scene(bundled_layout("amd-epyc-1tb")), "test")
    assert "default-src 'none'" in page
    links = re.findall(r"""(?:href|src)=["']?([^"'>]*)|@import|url\(|fetch\(|https?:""", page)
    assert links == ["data:,"]  # the icon, so that a browser asks for none


def test_page_of_hostile_names_stays_data() -> None:
    layout = hostile_layout()
    ends = "</script><script>alert(1)</script>"
    scene = layout_scene(layout)
    assert HOSTILE[:3] in scene.title
    page = page_of(Scene(ends, ends, (ends,), scene.columns, scene.remarks), ends)
    assert page.count("</script>") == 2
    assert data_of(page)["title"] == ends
    assert "alert(1)" not in re.sub(
        r'<script type="application/json".*?</script>|<title>.*?</title>', "", page, flags=re.S
    )
    page.encode("utf-8")


def test_page_of_same_scene_gives_same_bytes() -> None:
    def page() -> str:
        return page_of(layout_scene(bundled_layout("amd-epyc-1tb")), "test")

    assert page() == page()
    assert vi.__version__ not in page()
