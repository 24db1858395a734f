# SPDX-License-Identifier: Apache-2.0
"""A saved layout is kept on the next start, or the change is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.host.usable import CauseKind
from vmm_iova.planning.layout import check_layout
from vmm_iova.ranges import AddrRange

OPEN = "0x0 - 0xfedfffff\n0xfef00000 - 0xffffffffff\n"
CUT = "0x0 - 0xfedfffff\n0xfef00000 - 0x1ffffffff\n0x300000000 - 0xffffffffff\n"
GUEST = vi.Guest("own-x86", "16G", bars=[vi.Bar("gpu", "8G", required=True)])


def _usable(text: str) -> vi.Usable:
    return parse_text(text, "list", "iova_ranges")[0].usable()


def _saved(layout: vi.Layout) -> dict[str, object]:
    found: dict[str, object] = json.loads(json.dumps(layout.to_json()))
    return found


def test_json_and_back_is_the_same() -> None:
    usable = _usable(OPEN)
    layout = vi.plan(GUEST, usable)
    assert vi.Layout.from_json(_saved(layout), usable).to_json() == layout.to_json()


def test_layout_of_a_host_with_fewer_holes_is_kept_where_a_new_one_would_differ() -> None:
    # The saved guest has a gap where a hole was; a new plan would fill it.
    saved = vi.plan(GUEST, _usable(CUT))
    kept = vi.plan(GUEST, _usable(OPEN), keep=_saved(saved))
    new = vi.plan(GUEST, _usable(OPEN))

    assert kept.kept
    assert kept.changes == ()
    assert [item.place for item in kept.ram] == [item.place for item in saved.ram]
    assert [item.place for item in new.ram] != [item.place for item in saved.ram]
    bar = [item.place for item in kept.items if item.name == "gpu"]
    assert bar == [item.place for item in saved.items if item.name == "gpu"]


def test_hole_that_is_new_is_named_with_what_moves() -> None:
    saved = vi.plan(GUEST, _usable(OPEN))
    new = vi.plan(GUEST, _usable(CUT), keep=saved)

    assert not new.kept
    assert "RAM 0x100000000-0x47fffffff cannot stay" in new.changes[0]
    assert "left out of the kernel's range list" in new.changes[0]
    assert any(text.startswith("ram: ") and " instead of " in text for text in new.changes)


@pytest.mark.parametrize(
    ("guest", "said"),
    [
        (vi.Guest("own-x86", "32G", bars=GUEST.bars), "RAM of 32 GiB instead of 16 GiB"),
        (vi.Guest("i440fx", "16G", bars=GUEST.bars), "machine i440fx instead of own-x86"),
        (vi.Guest("own-x86", "16G"), "gpu of 8 GiB is not wanted any more"),
        (vi.Guest("own-x86", nodes=["8G", "8G"], bars=GUEST.bars), "NUMA nodes"),
        (
            vi.Guest("own-x86", "16G", bars=[*GUEST.bars, vi.Bar("nic", "1M")]),
            "nic of 1 MiB was not there",
        ),
        (vi.Guest("own-x86", "16G", bars=GUEST.bars, phys_bits=34), "beyond guest physical"),
        (vi.Guest("own-x86", "16G", bars=GUEST.bars, pci64="64G"), "window is 64 GiB now"),
        (
            vi.Guest(
                "q35",
                "16G",
                bars=GUEST.bars,
                reserved=[vi.FixedItem("x", "reserved", AddrRange(0x10_0000, 0x1F_FFFF))],
            ),
            "x 0x100000-0x1fffff is to be kept free now",
        ),
    ],
)
def test_change_of_what_is_wanted_is_named(guest: vi.Guest, said: str) -> None:
    saved = vi.plan(GUEST, _usable(OPEN))
    if guest.phys_bits == 34:
        with pytest.raises(vi.PlanError):
            vi.plan(guest, _usable(OPEN), keep=saved)
        return
    new = vi.plan(guest, _usable(OPEN), keep=saved)
    assert any(said in text for text in new.changes)
    assert not new.kept


def test_same_layout_of_a_host_that_did_not_change_has_the_same_parts() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    saved = vi.plan(vi.Guest("own-x86", "1.5TiB"), usable)
    kept = vi.plan(vi.Guest("own-x86", "1.5TiB"), usable, keep=_saved(saved))
    assert kept.items == saved.items
    assert kept.guest_reserved == saved.guest_reserved


@pytest.mark.parametrize("key", ["items", "ram", "nodes", "machine"])
def test_damaged_layout_is_refused(key: str) -> None:
    usable = _usable(OPEN)
    saved = _saved(vi.plan(GUEST, usable))
    del saved[key]
    with pytest.raises((vi.errors.HostDataError, vi.errors.UnknownNameError)):
        vi.plan(GUEST, usable, keep=saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("0x17fffffff", "0x1ffffffff"), "of one size|overlaps|bytes in all"),
        (('"ram": "0x100000000"', '"ram": "0x200000000"'), "bytes in all"),
    ],
)
def test_saved_layout_that_contradicts_itself_is_refused(
    change: tuple[str, str], said: str
) -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    text = json.dumps(vi.plan(vi.Guest("own-x86", "4GiB"), usable).to_json())
    assert change[0] in text
    with pytest.raises(vi.errors.HostDataError, match=said):
        vi.Layout.from_json(json.loads(text.replace(*change)), usable)


class TestRules:
    """The format of a saved layout is checked; the rules that placed it are only said."""

    def test_layout_of_older_rules_is_kept_and_says_so(self) -> None:
        usable = _usable(OPEN)
        saved = _saved(vi.plan(GUEST, _usable(CUT)))
        saved["rules"] = 0
        kept = vi.plan(GUEST, usable, keep=saved)
        assert kept.kept
        assert [item.place for item in kept.ram] == [
            AddrRange(int(item["gpa"]["start"], 16), int(item["gpa"]["last"], 16))
            for item in saved["items"]  # type: ignore[attr-defined]
            if item["kind"] == "ram"
        ]
        assert any("saved under rules 0 of placement" in note.text for note in kept.notes)
        again = vi.plan(GUEST, usable, keep=_saved(kept))
        assert again.to_json() == kept.to_json()  # its rules stay those that placed it

    def test_layout_of_todays_rules_says_nothing_of_them(self) -> None:
        kept = vi.plan(GUEST, _usable(OPEN), keep=_saved(vi.plan(GUEST, _usable(OPEN))))
        assert not any("rules" in note.text for note in kept.notes)

    def test_layout_without_a_number_was_saved_under_the_first_rules(self) -> None:
        saved = _saved(vi.plan(GUEST, _usable(OPEN)))
        del saved["rules"]
        assert vi.Layout.from_json(saved, _usable(OPEN)).rules == 1

    def test_layout_of_older_rules_that_cannot_stay_says_so_after_the_reasons(self) -> None:
        saved = _saved(vi.plan(GUEST, _usable(OPEN)))
        saved["rules"] = 0
        new = vi.plan(GUEST, _usable(CUT), keep=saved)
        assert new.changes[0].startswith("RAM 0x100000000-0x47fffffff cannot stay")
        assert "planned anew: it was saved under rules 0 of placement" in new.changes[1]

    def test_layout_of_another_format_is_refused(self) -> None:
        saved = _saved(vi.plan(GUEST, _usable(OPEN)))
        saved["schema"] = {"name": "vmm-iova-layout", "version": 99}
        with pytest.raises(vi.errors.HostDataError, match="version 99 is not"):
            vi.plan(GUEST, _usable(OPEN), keep=saved)


def test_saved_causes_are_those_of_the_host_again() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    layout = vi.plan(vi.Guest("own-x86", "1.5TiB"), usable)
    back = vi.Layout.from_json(_saved(layout), usable)
    assert back.items == layout.items
    cause = back.ram[1].last_cause
    assert cause is not None
    assert cause.region is not None
    assert cause.region.word == "reserved"


def test_saved_cause_that_the_host_has_no_more_keeps_its_text() -> None:
    layout = vi.plan(GUEST, _usable(CUT))
    back = vi.Layout.from_json(_saved(layout), _usable(OPEN))
    before, after = layout.ram[1].last_cause, back.ram[1].last_cause
    assert before is not None
    assert after is not None
    assert (after.kind, after.text) == (CauseKind.SAVED, before.text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 1),
        (("schema", "version"), None),
        (("ram",), "much"),
        (("ram",), 5),
        (("ram",), "0x0"),
        (("ram",), "0x" + "f" * 5000),
        (("items",), 5),
        (("items", 0), []),
        (("items", 0, "gpa", "start"), "direct"),
        (("items", 0, "gpa", "last"), "0x10000000000000000"),
        (("items", 0, "gpa"), "0x0"),
        (("items", 0, "name"), None),
        (("items", 0, "start_cause"), 7),
        (("items", 0, "node"), []),
        (("guest_reserved",), None),
        (("guest_reserved",), [{"start": "0x1", "last": "0x0"}]),
        (("guest_reserved",), [{"start": "0x0", "last": "0xfff", "cause": 5}]),
    ],
)
def test_part_of_a_wrong_kind_is_refused_and_is_no_defect(
    path: tuple[str | int, ...], value: object
) -> None:
    saved = _saved(vi.plan(vi.Guest("q35", "8G"), _usable(OPEN)))
    holder: Any = saved
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(vi.errors.HostDataError, match="layout"):
        check_layout(saved, "saved")


def test_part_without_a_place_is_refused() -> None:
    saved: Any = _saved(vi.plan(vi.Guest("q35", "8G"), _usable(OPEN)))
    saved["items"][0]["gpa"] = saved["items"][0]["iova"] = None
    with pytest.raises(vi.errors.HostDataError, match="a place is missing"):
        check_layout(saved, "saved")
