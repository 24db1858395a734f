# SPDX-License-Identifier: Apache-2.0
"""Doorbells that the VMM places: away from holes and from everything of the guest."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.machines.parts import OpenDoorbell
from vmm_iova.planning.doorbells import place_doorbells
from vmm_iova.planning.layout import ItemKind
from vmm_iova.planning.misfit import DoorbellMisfit
from vmm_iova.planning.request import resolve
from vmm_iova.planning.site import site_of
from vmm_iova.ranges import AddrRange, RangeSet

ARM = "0x8000000 0x80fffff msi\n0xc6010000 0xc601ffff msi\n"


def _usable(text: str = ARM) -> vi.Usable:
    return parse_text(text, "arm")[0].usable(aperture=40, granule=4096)


def _bells(layout: vi.Layout) -> dict[str, AddrRange]:
    fixed = {item.range for item in layout.machine.fixed}
    return {
        item.name: item.place
        for item in layout.items
        if item.kind is ItemKind.DOORBELL and item.place not in fixed
    }


def test_doorbell_that_a_machine_leaves_open_is_placed_away_from_the_hosts() -> None:
    place = _bells(vi.plan(vi.Guest("own-arm", "1G"), _usable()))["its"]
    assert place.size == 128 << 10
    assert not place.overlaps(AddrRange(0x800_0000, 0x80F_FFFF))


def test_doorbell_that_is_asked_for_is_placed_beside_the_machines() -> None:
    guest = vi.Guest("own-arm", "1G", doorbells=[vi.Doorbell("v2m", "4KiB")])
    assert set(_bells(vi.plan(guest, _usable()))) == {"its", "v2m"}


def test_doorbell_of_the_machine_takes_the_size_that_is_asked_for() -> None:
    guest = vi.Guest("own-arm", "1G", doorbells=[vi.Doorbell("its", "256KiB", "64KiB")])
    assert _bells(vi.plan(guest, _usable()))["its"].size == 256 << 10


def test_doorbell_stays_where_it_was_on_the_next_start() -> None:
    layout = vi.plan(vi.Guest("own-arm", "1G"), _usable())
    saved: dict[str, Any] = json.loads(json.dumps(layout.to_json()))
    bell = next(item for item in saved["items"] if item["name"] == "its")
    bell["gpa"] = {"start": "0x7f0000000", "last": "0x7f001ffff"}
    kept = vi.plan(vi.Guest("own-arm", "1G"), _usable(), keep=saved)
    assert kept.kept
    assert _bells(kept)["its"].start == 0x7_F000_0000


def test_doorbell_that_a_new_hole_takes_is_moved_and_named() -> None:
    saved = vi.plan(vi.Guest("own-arm", "1G"), _usable())
    place = _bells(saved)["its"]
    new = vi.plan(
        vi.Guest("own-arm", "1G"),
        _usable(f"{ARM}{place.start:#x} {place.last:#x} reserved\n"),
        keep=saved,
    )
    assert any(f"its {place} cannot stay" in text for text in new.changes)
    assert _bells(new)["its"] != place


def test_doorbell_is_in_the_device_tree_and_in_json() -> None:
    layout = vi.plan(vi.Guest("own-arm", "1G"), _usable())
    place = _bells(layout)["its"]
    assert f"msi-controller@{place.start:x} {{" in vi.device_tree(layout)
    assert any(item["name"] == "its" for item in layout.to_json()["items"])


def test_doorbell_without_a_place_names_what_is_in_the_way() -> None:
    guest = vi.Guest("own-arm", "1G", doorbells=[vi.Doorbell("its", "512GiB")])
    with pytest.raises(vi.PlanError, match=r"doorbell its .*has no place") as caught:
        vi.plan(guest, _usable("0x4000000000 0xffffffffff reserved\n"))
    assert any("a doorbell of" in fix for fix in caught.value.fixes)


@pytest.mark.parametrize(
    ("guest", "text"),
    [
        (vi.Guest("virt", "1G", doorbells=[vi.Doorbell("GICv2m doorbell", "4KiB")]), "fixed place"),
        (vi.Guest("s390x", "1G", doorbells=[vi.Doorbell("its", "4KiB")]), "no address"),
        (vi.Guest("virt", "1G", doorbells=[vi.Doorbell("its", "2KiB")]), "whole pages"),
        (vi.Guest("virt", "1G", doorbells=[vi.Doorbell("a", 4096)] * 2), "one name"),
    ],
)
def test_doorbell_that_makes_no_sense_is_refused(guest: vi.Guest, text: str) -> None:
    with pytest.raises(vi.RequestError, match=text):
        vi.plan(guest, _usable())


_SPANS = st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 12))


@settings(max_examples=60, deadline=None)
@given(
    holes=st.lists(_SPANS, max_size=6),
    sizes=st.lists(st.sampled_from([4096, 1 << 16, 1 << 17, 1 << 21]), min_size=1, max_size=3),
    ram=st.integers(2, 4096),
)
def test_doorbells_are_aligned_and_meet_nothing(
    holes: list[tuple[int, int]], sizes: list[int], ram: int
) -> None:
    text = "".join(f"{s << 12:#x} {(s + n << 12) | 0xFFF:#x} reserved\n" for s, n in holes)
    usable = _usable(text or ARM)
    bells = [vi.Doorbell(f"bell{index}", size) for index, size in enumerate(sizes)]
    try:
        layout = vi.plan(vi.Guest("own-arm", ram << 20, doorbells=bells), usable)
    except vi.PlanError:
        return
    placed = _bells(layout)
    others = RangeSet(
        item.gpa
        for item in layout.items
        if item.gpa is not None and item.name not in placed and item.kind is not ItemKind.MSI
    )
    for index, size in enumerate(sizes):
        place = placed[f"bell{index}"]
        assert place.start % size == 0
        assert place.size == size
        assert RangeSet([place]) <= usable.ranges.as_set()
        assert RangeSet([place]).isdisjoint(others)
    assert RangeSet(placed.values()).size == sum(sizes) + (128 << 10)


def test_largest_gap_for_a_doorbell_leaves_the_first_page_out() -> None:
    """Address 0 is not chosen by itself, and nothing is smaller than a page."""
    usable = parse_text("0x0 - 0x4ffff\n0x40000000 - 0xffffffffff\n", "l", "iova_ranges")[
        0
    ].usable()
    wanted = resolve(vi.Guest("own-arm", "1G"), usable)
    bell = OpenDoorbell("d", 1 << 20, 1 << 20, AddrRange(0, 0x3FFF_FFFF))
    site = site_of(replace(wanted, doorbells=(bell,)), usable)
    with pytest.raises(DoorbellMisfit) as caught:
        list(place_doorbells(site, ()))
    assert caught.value.fits == 0x4_F000
    taken = replace(bell, range=AddrRange(0x5_0000, 0x5_FFFF))
    site = site_of(replace(wanted, doorbells=(taken,)), usable)
    with pytest.raises(DoorbellMisfit) as caught:
        list(place_doorbells(site, ()))
    assert caught.value.fits == 0
    small = replace(bell, size=4096, align=4096)
    site = site_of(replace(wanted, doorbells=(small, small)), usable)
    assert [item.place.start for item in place_doorbells(site, ())] == [0x1000, 0x2000]
