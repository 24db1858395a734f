# SPDX-License-Identifier: Apache-2.0
"""A saved layout is kept on the next start, or the change is named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.host.usable import CauseKind
from vmm_iova.planning.keep import _blocked, _fresh, plan_kept
from vmm_iova.planning.layout import Item, ItemKind, _check_items, check_layout
from vmm_iova.planning.request import resolve
from vmm_iova.planning.site import site_of
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


# -- each reason for a new layout, and each limit of a saved one -----------------------------------

GIB = 1 << 30
ROM = vi.Bar("rom", "4K", emulated=True)
FULL = vi.Guest(
    "own-x86",
    nodes=[vi.Node("8G", "1G", "a"), vi.Node("8G")],
    bars=[
        vi.Bar("gpu", "8G", required=True),
        vi.Bar("nic", "1M"),
        vi.Bar("rom", "4K", emulated=True),
    ],
    rooms=[vi.Room("dimms", "4G")],
    doorbells=[vi.Doorbell("bell", "64K")],
    reserved=[vi.FixedItem("x", "reserved", AddrRange(0x4000_0000, 0x40FF_FFFF))],
    viommu=True,
    devices=2,
    phys_bits=40,
)


def _without(layout: vi.Layout, name: str) -> vi.Layout:
    return replace(layout, items=tuple(item for item in layout.items if item.name != name))


def _with(layout: vi.Layout, name: str, **fields: Any) -> vi.Layout:
    items = (replace(i, **fields) if i.name == name else i for i in layout.items)
    return replace(layout, items=tuple(items))


def test_every_field_of_a_layout_is_saved_and_read() -> None:
    usable = _usable(CUT)
    layout = replace(
        vi.plan(FULL, usable, "split"),
        changes=("a",), kept=True, settings=("b",), reasons=("c",), otherwise=("d",), rules=7,
        vmm_reserved=(AddrRange(0x10, 0x2F),),
    )  # fmt: skip
    back = vi.Layout.from_json(_saved(layout), usable)
    for name in vi.Layout.__slots__:
        if name not in ("notes", "usable", "items", "guest_reserved"):
            assert getattr(back, name) == getattr(layout, name), name
    assert back.to_json() == layout.to_json()
    assert back.page_sizes == (("a", 8 * GIB, GIB), ("1", 8 * GIB, None))
    plain = vi.plan(GUEST, usable)
    found = vi.Layout.from_json(_saved(plain), usable)
    assert (found.viommu, found.kept, found.devices) == (False, False, 1)
    assert [item.required for item in found.items if item.name == "gpu"] == [True]
    assert {item.kind for item in back.items if item.required or item.emulated} == {
        ItemKind.BAR, ItemKind.ROOM,
    }  # fmt: skip


def test_saved_cause_is_of_the_guest_only_where_it_asked_for_the_area() -> None:
    saved = vi.plan(FULL, _usable(CUT), "split")
    back = vi.Layout.from_json(_saved(saved), _usable(OPEN))
    causes = [(item.place, item.last_cause) for item in back.ram if item.last_cause is not None]
    assert [cause.kind for _, cause in causes] == [CauseKind.GUEST, CauseKind.SAVED]
    assert all(cause.range == place for place, cause in causes)
    (told,) = back.guest_reserved
    assert (told.cause.kind, told.cause.range) == (CauseKind.SAVED, told.range)


@pytest.mark.parametrize(
    ("ram", "refused"),
    [("0x0", True), ("0x1", False), ("0x10000000000000000", False), ("0x10000000000000001", True)],
)
def test_saved_ram_is_from_one_byte_to_the_whole_space(ram: str, refused: bool) -> None:
    saved = _saved(vi.plan(GUEST, _usable(OPEN))) | {"ram": ram}
    if refused:
        with pytest.raises(vi.errors.HostDataError, match="a size of RAM"):
            check_layout(saved, "saved")
    else:
        assert check_layout(saved, "saved") is saved


RAM = {"kind": ItemKind.RAM, "name": "low"}
HERE, THERE = AddrRange(0, 0xFFF), AddrRange(0x1000, 0x1FFF)
LOW = Item(**RAM, gpa=HERE, iova=HERE)


@pytest.mark.parametrize(
    ("items", "ram", "identity", "said"),
    [
        ([Item(**RAM, gpa=HERE, iova=HERE)], 0x1000, True, None),
        ([Item(**RAM, gpa=HERE, iova=THERE)], 0x1000, False, None),
        ([Item(**RAM, gpa=HERE, iova=THERE)], 0x1000, True, "an IOVA other than"),
        ([Item(**RAM, gpa=None, iova=HERE)], 0x1000, False, "of one size"),
        ([Item(**RAM, gpa=HERE, iova=None)], 0x1000, False, "of one size"),
        ([Item(**RAM, gpa=HERE, iova=AddrRange(0, 0x1FFF))], 0x1000, False, "of one size"),
        ([Item(**RAM, gpa=HERE, iova=HERE)], 0x1001, True, "not 0x1001 bytes in all"),
        ([LOW, Item(ItemKind.WINDOW, "w", THERE)], 0x1000, True, None),
        ([LOW, Item(ItemKind.WINDOW, "w", HERE)], 0x1000, True, "overlaps w"),
        ([LOW, Item(ItemKind.BAR, "w", HERE)], 0x1000, True, None),
    ],
)  # fmt: skip
def test_parts_of_a_saved_layout_may_not_contradict_each_other(
    items: list[Item], ram: int, identity: bool, said: str | None
) -> None:
    if said is None:
        _check_items(items, ram, identity=identity)
        return
    with pytest.raises(ValueError, match=said):
        _check_items(items, ram, identity=identity)


HIGH = AddrRange(1 << 32, (1 << 32) + 8 * GIB - 1)


@pytest.mark.parametrize(
    ("guest", "saved", "said"),
    [
        (FULL, lambda old: old, []),
        (FULL, lambda old: _without(old, "gpu"), ["gpu of 8 GiB was not there"]),
        (FULL, lambda old: _without(old, "dimms"), ["dimms of 4 GiB was not there"]),
        (FULL, lambda old: _without(old, "bell"), ["bell of 64 KiB was not there"]),
        (
            replace(FULL, bars=FULL.bars[:2]), lambda old: old,
            ["rom of 4 KiB is not wanted any more"],
        ),
        (replace(FULL, rooms=()), lambda old: old, ["dimms of 4 GiB is not wanted any more"]),
        (replace(FULL, doorbells=()), lambda old: old, ["bell of 64 KiB is not wanted any more"]),
        (replace(FULL, reserved=()), lambda old: old, []),
        (
            replace(FULL, nodes=["8G", "8G"]), lambda old: old,
            ["the NUMA nodes, or the pages that back them, are others"],
        ),
        (
            replace(FULL, nodes=["8G", "7G"]), lambda old: old,
            ["RAM of 15 GiB instead of 16 GiB"],
        ),
        (replace(FULL, pci64=0), lambda old: old, ["the 64-bit PCI window is not wanted any more"]),
        (replace(FULL, pci64=0), lambda old: _without(old, "64-bit PCI window"), []),
        (replace(FULL, pci64="32G"), lambda old: old, []),
        (replace(FULL, pci64="33G"), lambda old: old, ["the 64-bit PCI window is 33 GiB now"]),
        (replace(FULL, pci64="33G"), lambda old: _without(old, "64-bit PCI window"), []),
        (
            FULL, lambda old: replace(old, machine=vi.load_machine("q35")),
            ["machine own-x86 instead of q35"],
        ),
        (
            replace(FULL, maxmem="20G"), lambda old: old,
            ["memory plugged in later of 4 GiB was not there"],
        ),
        (FULL, lambda old: _with(old, "x", gpa=HIGH, kind=ItemKind.RESERVED), []),
        (
            FULL, lambda old: _with(old, "nic", gpa=AddrRange(0x4000_0000, 0x400F_FFFF)),
            ["x 0x40000000-0x40ffffff is to be kept free now"],
        ),
        (FULL, lambda old: _with(old, "nic", gpa=AddrRange(0x3FF0_0000, 0x3FFF_FFFF)), []),
        (FULL, lambda old: _with(old, "nic", gpa=AddrRange(0x4100_0000, 0x410F_FFFF)), []),
    ],
)  # fmt: skip
def test_each_change_of_what_is_wanted_is_one_sentence(
    guest: vi.Guest, saved: Any, said: list[str]
) -> None:
    usable = _usable("0x0 - 0xffffffffff\n")
    old = vi.plan(FULL, usable, "split")
    site = site_of(resolve(guest, usable), usable)
    new = plan_kept(site, saved(old), lambda: replace(old, items=()))
    places = ("ram: ", "64-bit ", "window: ", "bar: ", "room: ", "doorbell: ")
    assert [text for text in new.changes if not text.startswith(places[:1] + places[2:])] == said
    assert new.kept is (not said)
    if said:
        assert "ram: none instead of 0x0-" in "".join(new.changes)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        # A hole from 8 GiB to 12 GiB: what a device must reach may not lie there.
        ("high", {"gpa": HIGH, "iova": HIGH}, "RAM 0x100000000-0x2ffffffff cannot stay: "),
        ("dimms", {"gpa": HIGH, "iova": None}, "dimms 0x100000000-0x2ffffffff cannot stay: "),
        ("bell", {"gpa": HIGH, "iova": None}, "bell 0x100000000-0x2ffffffff cannot stay: "),
        ("gpu", {"gpa": HIGH, "iova": None}, "gpu 0x100000000-0x2ffffffff cannot stay: "),
        (
            "nic", {"gpa": HIGH, "iova": HIGH},
            "nic 0x100000000-0x2ffffffff is not reached by peers any more: ",
        ),
        ("nic", {"gpa": HIGH, "iova": None}, None),
        ("64-bit PCI window", {"gpa": HIGH, "iova": HIGH}, None),
        ("nic", {"gpa": AddrRange((1 << 40) - 1, (1 << 40) - 1), "iova": None}, None),
        (
            "nic", {"gpa": AddrRange(1 << 40, 1 << 40), "iova": None},
            "nic 0x10000000000-0x10000000000 ends beyond guest physical address bits: 40",
        ),
        ("nic", {"gpa": None, "iova": AddrRange(0, 0xFFF)}, None),
    ],
)  # fmt: skip
def test_each_place_that_cannot_stay_is_named(
    name: str, fields: dict[str, Any], said: str | None
) -> None:
    usable = _usable("0x0 - 0x1ffffffff\n0x300000000 - 0x1ffffffffff\n")
    wide = vi.plan(FULL, _usable("0x0 - 0x1ffffffffff\n"), "split")
    old = vi.plan(FULL, usable, "split")
    parts = [item for item in old.items if item.name == name][:1]
    assert parts
    moved = tuple(replace(item, **fields) for item in parts)
    site = site_of(resolve(FULL, usable), usable)
    ram, placed = (moved, ()) if name == "high" else ((), moved)
    found = list(_blocked(site, ram, placed))
    assert [text[: len(said or "")] for text in found] == ([] if said is None else [said])
    assert wide.ram != old.ram


def test_every_place_that_cannot_stay_is_named() -> None:
    usable = _usable("0x0 - 0x1ffffffff\n0x300000000 - 0x1ffffffffff\n")
    old = vi.plan(FULL, usable, "split")
    site = site_of(resolve(FULL, usable), usable)
    (gpu,) = [item for item in old.items if item.name == "gpu"]
    far = replace(gpu, gpa=AddrRange(1 << 40, 1 << 40))
    found = list(_blocked(site, (), (far, replace(gpu, gpa=HIGH, iova=None), far)))
    said = ["ends beyond", "cannot stay", "ends beyond"]
    assert [text for text, part in zip(found, said, strict=True) if part in text] == found


def test_cause_of_an_edge_goes_where_nothing_ends_there_any_more() -> None:
    saved = vi.plan(GUEST, _usable(CUT))
    site = site_of(resolve(GUEST, _usable(CUT)), _usable(CUT))
    now = site_of(resolve(GUEST, _usable(OPEN)), _usable(OPEN))
    edges = [(item.start_cause is None, item.last_cause is None) for item in saved.ram]
    assert edges == [(True, True), (True, False), (False, True)]
    same = [_fresh(item, site) for item in saved.ram]
    assert [(i.start_cause is None, i.last_cause is None) for i in same] == edges
    open_ = [_fresh(item, now) for item in saved.ram]
    assert all(item.start_cause is item.last_cause is None for item in open_)
    away = replace(saved.ram[1], iova=None)
    assert _fresh(away, site).last_cause == saved.ram[1].last_cause
