# SPDX-License-Identifier: Apache-2.0
"""The pictures: complete, well-formed, the same each time, and nothing written over anything."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

import vmm_iova as vi
from vmm_iova.host.usable import Cause, CauseKind
from vmm_iova.planning.request import bare_usable
from vmm_iova.report.svg import draw_layout, draw_machine, draw_usable

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<&\">'\x00\x1b\u202e\ud800\n漢字 " * 9
FORTY_HOLES = "".join(
    f"{i << 31:#x} {(i << 31) + (1 << (12 + i % 18)) - 1:#x} {('reserved', 'msi', 'x<&y')[i % 3]}\n"
    for i in range(1, 41)
)
S390_SPLIT = (
    "0x0 0xffffffff reserved\n0x200000000 0x2ffffffff reserved\n"
    "0x900000000 0x3ffffffffff reserved\n0xfee00000 0xfeefffff msi\n"
)


def usable_of(spec: str) -> vi.Usable:
    host = vi.load_host(spec)
    try:
        return host.usable()
    except vi.errors.EvidenceError:
        return host.usable(aperture=42 if "s390" in spec else 48)


def bundled() -> list[str]:
    names = []
    for name in vi.bundled_hosts():
        try:
            vi.load_host(name)
        except vi.errors.HostDataError:  # a text with several hosts
            name += "#1"
        names.append(name)
    return names


def bundled_layout(spec: str, ram: str = "16G", on_hole: str = "split") -> vi.Layout:
    machine = "virt" if spec.startswith("arm") else "s390x" if "s390" in spec else "q35"
    return vi.plan(vi.Guest(machine, ram), usable_of(spec), on_hole)  # type: ignore[arg-type]


def pasted_layout(tmp_path: Path, text: str, machine: str, ram: str, bits: int) -> vi.Layout:
    path = tmp_path / "pasted.txt"
    path.write_text(text)
    return vi.plan(vi.Guest(machine, ram), vi.load_host(path).usable(aperture=bits))


def hostile_layout() -> vi.Layout:
    """Forty items that overlap in every way, with names nobody should give them."""
    base = bundled_layout("amd-epyc-1tb", "1.5TiB")
    kinds = list(vi.ItemKind)
    items = []
    for i in range(40):
        span = vi.AddrRange.from_size((i * i << 28) % (1 << 41), 4096 << (i * 7 % 30))
        gpa = None if kinds[i % 6] is vi.ItemKind.MSI and i % 4 else span
        cause = Cause(CauseKind.SAVED, span, HOSTILE)
        items.append(vi.Item(kinds[i % 6], f"{i} {HOSTILE}", gpa, span, cause, cause))
    everything = vi.AddrRange(0, (1 << 64) - 1)
    hostile = Cause(CauseKind.SAVED, everything, HOSTILE)
    return replace(
        base,
        items=tuple(items),
        guest_reserved=(vi.GuestReserved(everything, hostile),),
        usable=replace(base.usable, host=HOSTILE),
        machine=replace(base.machine, title=HOSTILE),
    )


def parse(text: str) -> ET.Element:
    text.encode("utf-8")  # no lone surrogates
    return ET.fromstring(text)


def by_id(root: ET.Element) -> dict[str, ET.Element]:
    found = [node for node in root.iter() if node.get("id")]
    named = {node.get("id") or "": node for node in found}
    assert len(named) == len(found), "ids are unique"
    return named


def title_of(node: ET.Element) -> str:
    return node.findtext(f"{SVG}title") or ""


def sizes_of(root: ET.Element) -> dict[str, float]:
    style = root.findtext(f"{SVG}style") or ""
    return {css: float(px) for css, px in re.findall(r"\.(\w+)\{font-size:(\d+)px", style)}


def check_texts(root: ET.Element) -> None:
    """No text meets another, leaves its box, or leaves the page. Widths are the average of DejaVu.

    `tools/test_browser.py` measures them where they are drawn.
    """
    sizes = sizes_of(root)
    page_width, page_height = float(root.get("width", 0)), float(root.get("height", 0))
    found = []
    for group in root.iter():
        body = group.find(f"{SVG}rect[@class='body']")
        for text in group.findall(f"{SVG}text"):
            size = sizes[text.get("class", "").split()[0]]
            wide = sum(1 if ord(char) > 0x2FF else 0.53 for char in text.text or "") * size
            x, y = float(text.get("x", 0)), float(text.get("y", 0))
            x -= wide if text.get("text-anchor") == "end" else 0
            box = (x, y - 0.75 * size, x + wide, y + 0.2 * size, text.text)
            found.append(box)
            assert x >= 0, box
            assert x + wide <= page_width, box
            assert y <= page_height, box
            if body is not None:
                left, top, width, height = (
                    float(body.get(name, 0)) for name in ("x", "y", "width", "height")
                )
                assert left <= x, box
                assert x + wide <= left + width, box
                assert top <= box[1], box
                assert box[3] <= top + height, box
    for a, b in combinations(found, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{a} is written over {b}"


@pytest.mark.parametrize("spec", bundled())
def test_draw_layout_bundled_host_is_complete_and_readable(spec: str) -> None:
    try:
        layout = bundled_layout(spec)
    except vi.PlanError:  # RAM must be where the host has a hole: take a guest that is translated
        layout = vi.plan(vi.Guest("s390x", "512M"), usable_of(spec))
    root = parse(draw_layout(layout))
    named = by_id(root)
    check_texts(root)
    for index, item in enumerate(layout.items, 1):
        assert str(item.place) in title_of(named[f"item-{index}"])
        assert str(item.iova) in title_of(named[f"item-{index}"]) or item.iova is None
    for index, told in enumerate(layout.guest_reserved, 1):
        assert told.cause.text in title_of(named[f"reserved-{index}"])
    last = max(item.place.last for item in layout.items)
    for hole in ~layout.usable.ranges.as_set():
        if hole.start <= last:
            assert title_of(named[f"hole-{hole.start:#x}"])


@pytest.mark.parametrize("spec", bundled())
def test_draw_usable_bundled_host_names_every_range_and_hole(spec: str) -> None:
    usable = usable_of(spec)
    root = parse(draw_usable(usable, spec))
    named = by_id(root)
    check_texts(root)
    for hole in ~usable.ranges.as_set():
        cause = usable.causes_of(hole)[0]
        assert cause.text in title_of(named[f"hole-{hole.start:#x}"])
    for span in usable.ranges:
        kind = "usable" if f"usable-{span.start:#x}" in named else "relaxable"
        assert title_of(named[f"{kind}-{span.start:#x}"])
    assert title_of(root) == spec


@pytest.mark.parametrize("on_hole", ["split", "move"])
def test_draw_layout_amd_shows_addresses_cut_and_source(on_hole: str) -> None:
    layout = bundled_layout("amd-epyc-1tb", "1.5TiB", on_hole)
    text = draw_layout(layout)
    written = {node.text for node in parse(text).iter(f"{SVG}text")}
    for piece in layout.ram:
        assert str(piece.gpa) in written
        assert f"{piece.place.start:#x}" in written
    verb = {"split": "goes around", "move": "starts after"}[on_hole]
    assert f"RAM {verb}: AMD HyperTransport range" in written
    assert "0xfd00000000-0xffffffffff reserved, amd-epyc-1tb:4" in written
    assert "usable up to 0xffffffffffffefff" in written
    assert {"tell the guest: reserved", "12 GiB"} <= written


def test_draw_layout_gap_nobody_uses_is_short_and_marked() -> None:
    named = by_id(parse(draw_layout(bundled_layout("amd-epyc-1tb", "1.5TiB", "move"))))
    gap = named["gap-0x100000000"].find(f"{SVG}rect")
    ram = named["item-7"].find(f"{SVG}rect")
    assert gap is not None
    assert ram is not None
    assert "1008 GiB" in title_of(named["gap-0x100000000"])
    assert float(gap.get("height", 0)) < float(ram.get("height", 0)) / 2


def test_draw_layout_hole_above_last_item_ends_the_picture() -> None:
    named = by_id(parse(draw_layout(bundled_layout("arm-centos7-server-05-00-0"))))
    assert "hole-0x80000000000" in named  # why the last usable range ends
    assert "usable-0x83000000000" not in named  # beyond what matters


def test_draw_layout_translated_guest_shows_both_addresses(tmp_path: Path) -> None:
    layout = pasted_layout(tmp_path, S390_SPLIT, "s390x", "26G", 42)
    root = parse(draw_layout(layout))
    named = by_id(root)
    written = {node.text for node in root.iter(f"{SVG}text")}
    check_texts(root)
    for index, item in enumerate(layout.items, 1):
        assert f"item-{index}" in named
        if item.gpa is not None:
            assert {str(item.gpa), str(item.iova)} <= written
            assert str(item.iova) in title_of(named[f"item-{index}-gpa"])


def test_draw_layout_cut_of_translated_guest_is_marked_where_devices_see_it(
    tmp_path: Path,
) -> None:
    layout = pasted_layout(tmp_path, S390_SPLIT, "s390x", "26G", 42)
    root = parse(draw_layout(layout))
    cuts = [node for node in root.iter(f"{SVG}g") if node.get("class") == "cut"]
    around = next(node for node in cuts if "goes around" in title_of(node))
    path = next(node.get("d", "") for node in around.iter(f"{SVG}path"))
    hole = by_id(root)["hole-0x200000000"].find(f"{SVG}rect")
    assert hole is not None
    top, bottom = float(hole.get("y", 0)), float(hole.get("y", 0)) + float(hole.get("height", 0))
    assert re.match(rf"M\d+ {top:.0f}h3V{bottom:.0f}h", path)


def test_draw_layout_numa_nodes_are_named() -> None:
    nodes = (vi.Node("4G", name="a"), vi.Node("4G", name="b"))
    layout = vi.plan(vi.Guest("q35", nodes=nodes), usable_of("amd-epyc-1tb"))
    text = draw_layout(layout)
    assert "node a" in text
    assert "node b" in text


def many_holes(tmp_path: Path, count: int, words: str = "reserved") -> vi.Layout:
    names = words.split()
    path = tmp_path / "many.txt"
    lines = (
        f"{(i << 24) + (8 << 30):#x} {(i << 24) + (8 << 30) + 0xFFFF:#x} {names[i % len(names)]}\n"
        for i in range(1, count + 1)
    )
    path.write_text("".join(lines))
    usable = vi.load_host(path).usable(aperture=48)
    return vi.plan(vi.Guest("own-x86", "64G"), usable, "split")


@pytest.mark.parametrize("words", ["reserved", "reserved msi x"])
def test_draw_layout_many_like_holes_are_folded(tmp_path: Path, words: str) -> None:
    layout = many_holes(tmp_path, 300, words)
    text = draw_layout(layout)
    check_texts(parse(text))
    named = by_id(parse(text))
    kind = "like this" if words == "reserved" else "holes"
    assert f"297 more {kind}" in title_of(named["fold-0x203000000"])
    assert "more pieces of RAM" in title_of(named["fold-0x203000000-guest"])
    assert len(text) < 40_000
    usable = draw_usable(layout.usable, "many")
    assert len(usable) < 40_000
    assert re.search("29[78] more", usable)


@pytest.mark.slow
def test_draw_layout_ten_thousand_holes_stay_small(tmp_path: Path) -> None:
    layout = many_holes(tmp_path, 10_000)
    assert len(layout.ram) > 3000
    assert len(draw_layout(layout)) < 200_000


def test_draw_layout_translated_many_holes_are_folded_in_all_columns(tmp_path: Path) -> None:
    lines = (
        f"{(i << 28) + (4 << 30):#x} {(i << 28) + (4 << 30) + 0xFFFFF:#x} reserved\n"
        for i in range(100)
    )
    layout = pasted_layout(
        tmp_path,
        "0x0 0xffffffff reserved\n0x740000000 0x3ffffffffff reserved\n" + "".join(lines),
        "s390x",
        "20G",
        42,
    )
    text = draw_layout(layout)
    root = parse(text)
    check_texts(root)
    named = by_id(root)
    folds = sorted(name for name in named if name.startswith("fold-"))
    assert [name.rpartition("-")[2] for name in folds][-2:] == ["gpa", "guest"]
    ties = [node for node in root.iter(f"{SVG}g") if node.get("class") == "tie"]
    assert len(ties) == len([name for name in named if name.endswith("-gpa")])


def test_draw_machine_has_no_host() -> None:
    machine = vi.load_machine("q35")
    text = draw_machine(vi.plan(vi.Guest(machine, "8G"), bare_usable(machine)))
    root = parse(text)
    check_texts(root)
    assert not [name for name in by_id(root) if name.startswith(("usable", "hole"))]
    assert "on no host" not in text
    assert "host allows" not in text


def test_draw_layout_strip_is_to_scale() -> None:
    layout = bundled_layout("amd-epyc-1tb", "1.5TiB")
    root = parse(draw_layout(layout))
    strip = next(node for node in root.iter(f"{SVG}g") if node.get("class") == "strip")
    ram = [node for node in strip if node.get("class") == "ram true"]
    tall = [float(node.get("height", 0)) for node in ram]
    sizes = [item.place.size for item in layout.ram]
    assert tall[1] / tall[2] == pytest.approx(sizes[1] / sizes[2], rel=0.02)


def test_draw_layout_page_is_narrow_and_letters_are_large_enough_at_420_pixels() -> None:
    root = parse(draw_layout(bundled_layout("amd-epyc-1tb", "1.5TiB")))
    scale = 420 / float(root.get("width", 0))
    assert min(sizes_of(root).values()) * scale >= 7


def test_draw_layout_relaxable_region_under_ram_is_remarked() -> None:
    text = draw_layout(bundled_layout("arm-nxp-lx2160a-fslmc-group0", "64G"))
    assert "relaxable-0x80c000000" in by_id(parse(text))
    assert "usable with a warning: direct-relaxable" in text


def test_draw_layout_direct_region_is_said_at_the_top() -> None:
    layout = bundled_layout("arm-hisilicon-rmr-megaraid-group0")
    root = parse(draw_layout(layout))
    warned = [node for node in root.iter(f"{SVG}text") if "warn" in node.get("class", "")]
    assert "cannot be given to a guest" in (warned[0].text or "")


def test_draw_layout_forty_holes_has_one_remark_for_each_cut(tmp_path: Path) -> None:
    layout = pasted_layout(tmp_path, FORTY_HOLES, "virt", "64G", 48)
    text = draw_layout(layout)
    check_texts(parse(text))
    assert len(layout.ram) > 30
    assert text.count('<g class="cut">') == len(layout.ram) - 1
    check_texts(parse(draw_usable(layout.usable, "forty holes")))


def test_draw_layout_hostile_names_are_escaped_and_cut() -> None:
    layout = hostile_layout()
    root = parse(draw_layout(layout))
    check_texts(root)
    named = by_id(root)
    for index in range(1, 41):
        assert "<&\">'" in title_of(named[f"item-{index}"])
    assert "\u202e" not in ET.tostring(root, encoding="unicode")


def test_draw_layout_name_too_long_is_cut_and_whole_in_title() -> None:
    layout = bundled_layout("amd-epyc-1tb", "8G")
    name = "a window with a very long name " * 20
    items = tuple(
        replace(item, name=name) if item.kind is vi.ItemKind.WINDOW else item
        for item in layout.items
    )
    root = parse(draw_layout(replace(layout, items=items)))
    check_texts(root)
    node = next(node for node in by_id(root).values() if node.get("class") == "window")
    assert name.strip() in title_of(node)
    assert any((text.text or "").endswith("…") for text in node.iter(f"{SVG}text"))


def test_draw_usable_title_with_markup_is_escaped() -> None:
    root = parse(draw_usable(usable_of("amd-epyc-1tb"), "<script>&\"'"))
    assert title_of(root) == "<script>&\"'"
    assert root.find(f".//{SVG}script") is None


def test_draw_usable_nothing_usable_is_drawn_as_one_hole(tmp_path: Path) -> None:
    path = tmp_path / "none.txt"
    path.write_text("0x0 0xffffffff reserved\n")
    named = by_id(parse(draw_usable(vi.load_host(path).usable(aperture=32), "nothing")))
    assert [name for name in named if "-0x" in name] == ["hole-0x0", "hole-0x100000000"]


def test_draw_usable_touching_ranges_stay_two_boxes() -> None:
    usable = usable_of("amd-epyc-1tb")
    split = replace(usable, ranges=usable.ranges.split_at(0x8000_0000))
    named = by_id(parse(draw_usable(split, "seam")))
    assert {"usable-0x0", "usable-0x80000000"} <= set(named)


@pytest.mark.parametrize("spec", ["amd-epyc-1tb", "s390x-32g", "arm-nxp-lx2160a-fslmc-group0"])
def test_draw_same_layout_gives_same_bytes(spec: str) -> None:
    layout = bundled_layout(spec)
    assert draw_layout(layout) == draw_layout(bundled_layout(spec))
    assert draw_usable(layout.usable, spec) == draw_usable(usable_of(spec), spec)


def test_draw_layout_document_stands_alone_in_light_and_dark() -> None:
    text = draw_layout(bundled_layout("amd-epyc-1tb"))
    assert "prefers-color-scheme:dark" in text
    assert "url(#hatch-hole)" in text
    assert 'id="hatch-hole"' in text
    outside = re.findall(r"(?:href|src)=|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert outside == []
