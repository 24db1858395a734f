# SPDX-License-Identifier: Apache-2.0
"""Cases from the peers' own test suites and from users' reports: hosts, plans and checks.

The kinds that are pure allocation stand in tests/allocator. The format and its conventions are at
the top of tests/data/cases.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vmm_iova as vi
from vmm_iova.guest.machine import Machine, Pci64Window, RamWindow
from vmm_iova.host.model import Group, Host
from vmm_iova.host.regions import parse_reserved_regions
from vmm_iova.host.width import vtd_width
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, RangeSet

CASES = json.loads((Path(__file__).parents[1] / "data/cases.json").read_text("utf-8"))["cases"]

ALLOCATION = {"alloc", "align", "query", "range_math", "complement", "union", "granule"}
ELSEWHERE = {"fleet"}  # tests/fleet
HERE = {"plan_vs_host", "guest_ram", "parse_reserved_regions", "vtd_cap", "aperture"}
NOT_YET = {
    "layout": "BAR windows and several RAM requests in one plan come with the full planner",
    "property": "statements about placement by the kernel and by other machines' planners",
    "budget": "mapping by chunks of a stated size comes with the full planner",
    "reserved_overlay": "overlay of typed regions comes with the full planner",
    "dma": "needs map calls",
    "attach": "needs map calls",
    "ranges_query": "needs the ioctl",
    "rollback": "needs map calls",
    "iommufd_ops": "needs map calls",
    "register": "needs map calls",
    "parse_caps": "needs the ioctl's structures",
    "abi": "needs the ioctl's structures",
    "msi_window": "choosing the window needs a kernel that offers it",
    "translate": "needs map calls",
}


def _of(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["id"]) for case in CASES if case["kind"] == kind]


def _int(text: str) -> int:
    return int(text, 16)


def _span(entry: dict[str, str] | list[str]) -> AddrRange:
    if isinstance(entry, dict):
        return AddrRange(_int(entry["first"]), _int(entry["last"]))
    return AddrRange(_int(entry[0]), _int(entry[1]))


def _usable(case: dict[str, Any]) -> vi.Usable:
    lines = [
        f"{item['first']} {item['last']} {item['type']}" for item in case.get("host_reserved", [])
    ]
    text = "".join(f"{line}\n" for line in lines)
    group = Group("7", regions=parse_reserved_regions(text, "case", "7").regions)
    aperture = case.get("aperture", [["0x0", f"{ADDRESS_LAST:#x}"]])
    return Host("case", groups=(group,)).usable(
        aperture=RangeSet(map(_span, aperture)),
        granule=4096,
        strict=case.get("options", {}).get("honour_relaxable", False),
    )


def test_every_case_is_run_or_has_a_reason() -> None:
    unknown = {case["kind"] for case in CASES} - ALLOCATION - HERE - ELSEWHERE - set(NOT_YET)
    assert unknown == set()


@pytest.mark.parametrize("case", _of("plan_vs_host"))
def test_plan_of_a_peer_against_a_host_gives_the_right_verdict(case: dict[str, Any]) -> None:
    usable, expect = _usable(case), case["expect"]
    verdicts = [vi.check(usable, _span(chunk)) for chunk in case["plan"]]
    if expect.get("ok"):
        assert [item.kind for item in verdicts] == ["ok"] * len(verdicts)
        warnings = [text for item in verdicts for text in item.warnings]
        for wanted in expect.get("warnings", []):
            assert any(wanted in text for text in warnings)
        assert bool(warnings) == bool(expect.get("warnings"))
        return
    refused = next(item for item in verdicts if not item.ok)
    assert refused.kind == expect["error"]
    if "chunk" in expect:
        assert refused.range == _span(expect["chunk"])
    if "region" in expect:
        assert refused.causes[0].range == _span(expect["region"])
        assert "group 7" in refused.causes[0].text
    if "usable_prefix_last" in expect:
        assert refused.range.start + refused.room - 1 == _int(expect["usable_prefix_last"])
    if "largest_fit_at_this_base" in expect:
        assert refused.room == _int(expect["largest_fit_at_this_base"])
    if "limit" in expect:
        assert refused.limit == _int(expect["limit"])
    if "bits_needed" in expect:
        assert refused.bits_needed == expect["bits_needed"]
    assert refused.fixes


def _machine(case: dict[str, Any]) -> Machine:
    if "gaps" in case:
        gaps = RangeSet(map(_span, case["gaps"]))
        room = gaps.complement(AddrRange(_int(case["ram_first"]), ADDRESS_LAST))
        windows = tuple(RamWindow(f"window {n}", item) for n, item in enumerate(room))
    else:
        low = AddrRange(0, _int(case["low_ram_last"]))
        high = AddrRange(1 << 32, ADDRESS_LAST)
        windows = (
            RamWindow("low", low),
            RamWindow("high", high, move_to=1 << 40, movable=True),
        )
    size = _int(case["pci_window64"]) if "pci_window64" in case else 0
    pci64 = Pci64Window(size, 1 << 30, 1 << 32) if size else None
    return Machine("case", "case", case["arch"], windows, pci64=pci64)


def _ram(case: dict[str, Any], policy: str) -> list[AddrRange]:
    on_hole = {"move_all": "move", "split": "split", "refuse": "refuse"}[policy]
    guest = vi.Guest(_machine(case), _int(case["request"]))
    layout = vi.plan(guest, _usable(case), on_hole)  # type: ignore[arg-type]
    return [item.gpa for item in layout.ram if item.gpa is not None]


@pytest.mark.parametrize("case", _of("guest_ram"))
def test_guest_ram_goes_where_the_peer_puts_it(case: dict[str, Any]) -> None:
    expect = case["expect"]
    if isinstance(expect, list):
        assert _ram(case, "refuse") == [_span(item) for item in expect]
        return
    wanted = [_span(item) for item in expect["ranges"]]
    assert _ram(case, expect.get("policy", "refuse")) == wanted
    other = expect.get("alternative")
    if other:
        assert _ram(case, other["policy"]) == [_span(item) for item in other["ranges"]]


@pytest.mark.parametrize("case", _of("parse_reserved_regions"))
def test_reserved_regions_text_is_read_as_it_should(case: dict[str, Any]) -> None:
    expect = case["expect"]
    found = parse_reserved_regions(case["text"], "case")
    records = expect["records"] if isinstance(expect, dict) else expect
    assert [(item.range, item.word) for item in found.regions] == [
        (_span(item), item["type"]) for item in records
    ]
    if isinstance(expect, dict):
        assert list(found.rejected) == expect.get("rejected_lines", [])
        if "holes_at_4k" in expect:
            holes = RangeSet(item.range for item in found.regions).align_outward(4096)
            assert list(holes) == [_span(item) for item in expect["holes_at_4k"]]


@pytest.mark.parametrize("case", _of("vtd_cap"))
def test_vtd_capability_register_is_decoded(case: dict[str, Any]) -> None:
    for vector in case["vectors"]:
        width, expect = vtd_width(_int(vector["cap"])), vector["expect"]
        assert width.mgaw_bits == expect["mgaw_bits"]
        assert list(width.table_bits) == expect["table_bits"]
        assert width.usable_bits == expect["usable_bits"]


@pytest.mark.parametrize("case", _of("aperture"))
def test_peers_fallback_aperture_is_refused_unless_the_user_states_it(case: dict[str, Any]) -> None:
    # These peers take a missing range list for an aperture. That guess is what we never make; who
    # knows better can state it.
    host = Host("case", groups=(Group("7", regions=()),))
    with pytest.raises(vi.EvidenceError):
        host.usable()
    stated = RangeSet(map(_span, case["expect"]))
    top = RangeSet([AddrRange(ADDRESS_LAST - 4095, ADDRESS_LAST)])
    assert host.usable(aperture=stated, granule=4096).ranges.as_set() == stated - top
