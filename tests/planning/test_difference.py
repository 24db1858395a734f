# SPDX-License-Identifier: Apache-2.0
"""What changes for a guest, in sentences that a person can act on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vmm_iova as vi
from vmm_iova import cli
from vmm_iova.host.facts import Group, RegionKind, ReservedRegion, Source
from vmm_iova.host.host import Host
from vmm_iova.host.text import parse_text
from vmm_iova.planning.difference import (
    Difference,
    _with_cause,
    compare_hosts,
    compare_layouts,
    host_changes,
    layout_changes,
)
from vmm_iova.ranges import AddrRange

Output = pytest.CaptureFixture[str]


def changes(left: str, right: str, **of: object) -> tuple[str, ...]:
    ours, theirs = vi.load_host(left), vi.load_host(right)
    return host_changes(ours, theirs, ours.usable(), theirs.usable(), **of)  # type: ignore[arg-type]


def test_same_host_changes_nothing() -> None:
    assert changes("amd-epyc-1tb", "amd-epyc-1tb") == ()


def test_amd_hole_moves_a_q35_guest_above_978_gib() -> None:
    (sentence,) = changes("qemu-vtd-notifier-ranges", "amd-epyc-1tb")
    assert sentence.startswith("a q35 guest with more than 978 GiB of RAM moves")
    assert "to 0x10000000000-" in sentence
    assert "HyperTransport" in sentence


def test_policy_move_moves_and_its_window_counts() -> None:
    (sentence,) = changes("qemu-vtd-notifier-ranges", "amd-epyc-1tb", on_hole="move")
    assert sentence.startswith("a q35 guest with more than 978 GiB of RAM moves: RAM piece high ")
    assert "to 0x10000000000-" in sentence


def test_narrower_host_ends_what_fits() -> None:
    sentences = changes("amd-epyc-1tb", "intel-dmar-i7-2600")
    assert sentences == ("a q35 guest with more than 510 GiB of RAM no longer fits",)
    back = changes("intel-dmar-i7-2600", "amd-epyc-1tb")
    assert back == ("a q35 guest with more than 510 GiB of RAM fits now",)


def test_guest_that_is_given_is_planned_on_both() -> None:
    guest = vi.Guest("own-x86", "1.5TiB")
    sentences = changes("qemu-vtd-notifier-ranges", "amd-epyc-1tb", guest=guest)
    assert any(text.startswith("RAM piece high at 0x100000000 ends earlier") for text in sentences)
    assert any("RAM piece high 2 is new at 0x10000000000-" in text for text in sentences)
    assert any("64-bit PCI window moved from" in text for text in sentences)
    assert any("must be told that 0xfd00000000-0xffffffffff is reserved" in t for t in sentences)


def test_guest_that_no_longer_fits_is_said_with_the_reason() -> None:
    (sentence,) = changes("amd-epyc-1tb", "intel-dmar-i7-2600", guest=vi.Guest("q35", "1T"))
    assert sentence.startswith("the guest no longer fits: 1 TiB of RAM does not fit")
    (sentence,) = changes("intel-dmar-i7-2600", "amd-epyc-1tb", guest=vi.Guest("q35", "1T"))
    assert sentence.startswith("the guest fits now; before, 1 TiB of RAM does not fit")
    (sentence,) = changes("intel-dmar-i7-2600", "intel-dmar-i7-2600", guest=vi.Guest("q35", "1T"))
    assert sentence.startswith("the guest fits on neither")


def _host(direct: bool) -> Host:
    regions = ()
    if direct:
        span = AddrRange(0x7B80_0000, 0x7BFF_FFFF)
        source = Source("rmrr", 1)
        regions = (ReservedRegion(span, RegionKind.DIRECT, "direct", source, "9"),)
    group = Group("9", ("0000:09:00.0",), regions)
    return Host("h", arch="x86_64", page_size=4096, groups=(group,))


def test_group_that_firmware_takes_can_no_longer_be_assigned() -> None:
    free, held = _host(False), _host(True)
    judged = free.usable(aperture=48), held.usable(aperture=48)
    sentences = host_changes(free, held, *judged)
    assert sentences[0] == "group 9 (0000:09:00.0) can no longer be assigned: direct region, rmrr:1"
    assert (
        host_changes(held, free, *judged[::-1])[0] == "group 9 (0000:09:00.0) can be assigned now"
    )


def test_hosts_without_evidence_are_compared_as_far_as_it_goes() -> None:
    free, held = _host(False), _host(True)
    assert host_changes(free, held, None, held.usable(aperture=48)) == (
        "group 9 (0000:09:00.0) can no longer be assigned: direct region, rmrr:1",
        "what else changes is not known: the facts of h do not say what may be mapped "
        "(--aperture states a width)",
    )


def test_larger_pages_are_named() -> None:
    small, large = Host("s", page_size=4096), Host("l", page_size=65536)
    sentences = host_changes(small, large, small.usable(aperture=48), large.usable(aperture=48))
    assert "RAM must be whole multiples of 64 KiB instead of 4 KiB" in sentences


def test_two_layouts_say_what_moved() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    guest = vi.Guest("q35", "1.5TiB")
    split, move = (vi.plan(guest, usable, policy).to_json() for policy in ("split", "move"))  # type: ignore[arg-type]
    sentences = layout_changes(split, move)
    assert any(text.startswith("RAM piece high moved from 0x100000000-") for text in sentences)
    assert any(text.startswith("RAM piece high 2 at 0x10000000000-") for text in sentences)
    assert layout_changes(split, split) == ()


def test_command_says_what_changes_for_the_guest_first(capsys: Output, tmp_path: Path) -> None:
    hosts = ("qemu-vtd-notifier-ranges", "amd-epyc-1tb")
    assert cli.main(["diff", *hosts]) == 3
    text = capsys.readouterr().out
    verdict, why, *_ = text.splitlines()
    assert verdict.startswith("DIFFERENT: ")
    assert "a q35 guest with more than 978 GiB" in why
    assert cli.main(["diff", *hosts, "--ram", "8G", "-J"]) == 3
    assert '"guest": []' in capsys.readouterr().out
    assert cli.main(["diff", *hosts, "--ram", "8G"]) == 3
    assert "nothing changes" in capsys.readouterr().out


def test_two_layouts_of_other_sizes_say_how_much_ram_each_has() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    small, large = (vi.plan(vi.Guest("q35", ram), usable).to_json() for ram in ("8G", "16G"))
    assert layout_changes(small, large)[0] == "RAM: 8 GiB became 16 GiB"


def test_what_both_hosts_have_is_in_no_section_of_their_difference() -> None:
    ours, theirs = vi.load_host("lab-vtd-39"), vi.load_host("lab-vtd-48")
    difference = compare_hosts(ours, theirs, ours.usable(), theirs.usable())
    assert difference.sections
    for _, left, right in difference.sections:
        assert not set(left) & set(right)


# -- each sentence ---------------------------------------------------------------------------------


def _item(name: str, start: int, last: int, kind: str = "ram", **more: object) -> dict[str, object]:
    place = {"start": f"{start:#x}", "last": f"{last:#x}"}
    item = {"kind": kind, "name": name, "gpa": place, "iova": place, "node": None}
    return item | {"start_cause": None, "last_cause": None} | more


def _layout(*items: dict[str, object], **more: object) -> dict[str, object]:
    document = {"machine": "q35", "ram": "0x40000000", "address_bits": 40, "policy": "as is"}
    return document | {"granule": "0x1000", "items": items, "guest_reserved": ()} | more


LOW = _item("low", 0, 0xFFF)
IOVA = {"start": "0x5000", "last": "0x5fff"}


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (_layout(), _layout(machine="i440fx"), "machine: q35 became i440fx"),
        (_layout(), _layout(ram="0x80000000"), "RAM: 1 GiB became 2 GiB"),
        (_layout(ram=None), _layout(), "RAM: None became 1 GiB"),
        (_layout(), _layout(address_bits=48), "address bits: 40 became 48"),
        (_layout(), _layout(LOW), "RAM piece low is new at 0x0-0xfff (4 KiB)"),
        (
            _layout(LOW),
            _layout(LOW, _item("low", 0x2000, 0x2FFF, start_cause="a hole")),
            "RAM piece low 2 is new at 0x2000-0x2fff (4 KiB): a hole",
        ),
        (_layout(LOW), _layout(), "RAM piece low at 0x0-0xfff (4 KiB) is gone"),
        (
            _layout(LOW),
            _layout(_item("low", 0x1000, 0x1FFF, start_cause="a hole")),
            "RAM piece low moved from 0x0-0xfff (4 KiB) to 0x1000-0x1fff (4 KiB): a hole",
        ),
        (
            _layout(LOW),
            _layout(_item("low", 0x1000, 0x1FFF)),
            "RAM piece low moved from 0x0-0xfff (4 KiB) to 0x1000-0x1fff (4 KiB)",
        ),
        (
            _layout(_item("w", 0, 0x1FFF, "window")),
            _layout(_item("w", 0, 0xFFF, "window", last_cause="a hole")),
            "w at 0x0 ends earlier, at 0xfff instead of 0x1fff: a hole",
        ),
        (
            _layout(_item("w", 0, 0x1FFF, "window")),
            _layout(_item("w", 0, 0xFFF, "window")),
            "w at 0x0 ends earlier, at 0xfff instead of 0x1fff",
        ),
        (
            _layout(_item("w", 0, 0xFFF, "window")),
            _layout(_item("w", 0, 0x1FFF, "window", last_cause="a hole")),
            "w at 0x0 goes on further, at 0x1fff instead of 0xfff",
        ),
        (
            _layout(LOW),
            _layout(LOW | {"iova": IOVA}),
            "devices see RAM piece low at 0x5000 instead of 0x0",
        ),
        (_layout(LOW), _layout(LOW | {"iova": None}), None),
        (_layout(LOW | {"iova": None}), _layout(LOW), None),
        (
            _layout(LOW | {"gpa": None}),
            _layout(LOW | {"gpa": None, "iova": IOVA}),
            "RAM piece low moved from 0x0-0xfff (4 KiB) to 0x5000-0x5fff (4 KiB)",
        ),
        (_layout(_item("m", 0, 1, "msi")), _layout(), "m at 0x0-0x1 (2 B) is gone"),
        (_layout(_item("d", 0, 1, "doorbell")), _layout(), "d at 0x0-0x1 (2 B) is gone"),
        (_layout(_item("b", 0, 1, "device")), _layout(), None),
        (
            _layout(),
            _layout(guest_reserved=[{"start": "0x0", "last": "0x1", "cause": "a hole"}]),
            "the guest must be told that 0x0-0x1 is reserved: a hole",
        ),
        (
            _layout(guest_reserved=[{"start": "0x0", "last": "0x1", "cause": "a hole"}]),
            _layout(),
            "the guest need no longer be told that 0x0-0x1 is reserved",
        ),
    ],
)  # fmt: skip
def test_each_change_of_a_layout_has_its_sentence(
    left: dict[str, object], right: dict[str, object], said: str | None
) -> None:
    assert layout_changes(left, right) == (() if said is None else (said,))
    assert layout_changes(left, left) == ()


def test_layouts_are_compared_by_parts_by_what_is_told_and_by_facts() -> None:
    told = {"start": "0x0", "last": "0x1"}
    left = _layout(LOW, _item("x", 0, 1, iova=None), guest_reserved=[told])
    right = _layout(LOW, ram="0x0", policy="move", granule="0x10000")
    found = compare_layouts(left, right)
    assert found.to_json() == {
        "parts": {"only_first": ["ram x: gpa 0x0-0x1"], "only_second": []},
        "told to the guest": {"only_first": ["0x0-0x1"], "only_second": []},
        "facts": {
            "only_first": ["ram 0x40000000", "policy as is", "granule 0x1000"],
            "only_second": ["ram 0x0", "policy move", "granule 0x10000"],
        },
    }
    assert not found.same
    assert compare_layouts(left, left).same
    assert not Difference((("t", (), ("x",)),)).same
    assert not Difference((("t", ("x",), ()),)).same
    assert not Difference((), ("x",)).same


def _open(name: str, *regions: ReservedRegion, groups: int = 1, **fields: Any) -> Host:
    made = [Group(str(n), (), regions if n == 1 else ()) for n in range(1, groups + 1)]
    return Host(name, arch="x86_64", page_size=4096, groups=tuple(made), **fields)


SPAN = AddrRange(0x7B80_0000, 0x7BFF_FFFF)
RESERVED = ReservedRegion(SPAN, RegionKind.RESERVED, "reserved", Source("r", 1), "1")
GONE = "not there any more: " + ", ".join(f"group {n}" for n in range(2, 10))
WHY = "direct region, rmrr:1"
DIRECT = ReservedRegion(SPAN, RegionKind.DIRECT, "direct", Source("rmrr", 1), "1")


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (_open("a", groups=9), _open("b", groups=9), None),
        (_open("a", groups=9), _open("b"), GONE),
        (_open("a", groups=10), _open("b"), f"{GONE}, ..."),
        (_open("a", groups=9), _open("b", groups=0), None),
        (_open("a", groups=0), _open("b", DIRECT), f"group 1 cannot be assigned: {WHY}"),
        (_open("a"), _open("b", DIRECT), f"group 1 can no longer be assigned: {WHY}"),
        (_open("a", DIRECT), _open("b"), "group 1 can be assigned now"),
        (_open("a", DIRECT), _open("b", groups=0), None),
        (_open("a", DIRECT), _open("b", DIRECT), None),
    ],
)  # fmt: skip
def test_each_change_of_what_can_be_assigned_has_its_sentence(
    left: Host, right: Host, said: str | None
) -> None:
    judged = left.usable(aperture=48), right.usable(aperture=48)
    found = host_changes(left, right, *judged, guest=vi.Guest("own-x86", "1G"))
    assert found == (() if said is None else (said,))


def test_hosts_are_compared_by_what_is_usable_and_by_their_limits() -> None:
    left = _open("a", RESERVED, limits=vi.Limits(100, 4096))
    right = replace(_open("b"), page_size=65536, limits=vi.Limits(200, None))
    judged = left.usable(aperture=40, strict=True), right.usable(aperture=39)
    found = compare_hosts(left, right, *judged).to_json()
    assert list(found) == [
        "usable on one alone", "granule", "cannot be assigned", "reserved regions", "limits",
    ]  # fmt: skip
    alone = found["usable on one alone"]
    assert [text.split(" (")[0] for text in alone["only_first"]] == ["0x8000000000-0xffffffffff"]
    assert "(512 GiB); the other: " in alone["only_first"][0]
    assert [text.split(" (")[0] for text in alone["only_second"]] == [str(SPAN)]
    assert "reserved region" in alone["only_second"][0]
    assert found["reserved regions"]["only_first"] == [f"{SPAN} reserved"]
    assert found["limits"] == {
        "only_first": ["map calls 100", "memlock 4096"],
        "only_second": ["map calls 200"],
    }
    unknown = compare_hosts(left, right, judged[0], None).to_json()
    assert unknown["aperture known"] == {"only_first": ["yes"], "only_second": ["no"]}
    assert f"{SPAN} reserved" in unknown["reserved regions"]["only_first"]
    neither = compare_hosts(left, right, None, None).to_json()
    assert neither["aperture known"] == {"only_first": [], "only_second": []}


def test_hosts_without_evidence_are_both_named() -> None:
    left, right = _open("a"), _open("b")
    judged = left.usable(aperture=48)
    for ours, theirs, names in (
        (None, judged, "a"),
        (judged, None, "b"),
        (None, None, "a and of b"),
    ):
        (text,) = host_changes(left, right, ours, theirs)
        assert text.startswith(f"what else changes is not known: the facts of {names} do not say")


def _listed(*spans: tuple[int, int]) -> vi.Usable:
    text = "".join(f"{start:#x} - {last:#x}\n" for start, last in spans)
    return parse_text(text, "list", "iova_ranges")[0].usable()


GIB = 1 << 30
LARGER = "a own-x86 guest with more than 62 GiB of RAM"
WIDE = _listed((0, (1 << 48) - 1))


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (WIDE, WIDE, None),
        (WIDE, _listed((0, 64 * GIB - 1)), f"{LARGER} no longer fits"),
        (_listed((0, 64 * GIB - 1)), WIDE, f"{LARGER} fits now"),
        (_listed((0, 64 * GIB - 1)), _listed((0, 64 * GIB - 1)), None),
        (WIDE, _listed((8 * GIB, 64 * GIB - 1)), "a own-x86 guest of any size no longer fits"),
        (
            WIDE,
            _listed((0, 8 * GIB - 1), (9 * GIB, (1 << 48) - 1)),
            "a own-x86 guest with more than 6 GiB of RAM is laid out differently: "
            "RAM piece high at 0x100000000 ends earlier, at 0x1ffffffff instead of 0x23fffffff: "
            "left out of the kernel's range list, list:1",
        ),
    ],
)  # fmt: skip
def test_first_guest_that_sees_a_difference_is_found_to_a_mib(
    left: vi.Usable, right: vi.Usable, said: str | None
) -> None:
    host = _open("h", groups=0)
    found = host_changes(host, host, left, right, machine="own-x86")
    assert found == (() if said is None else (said,))


def test_range_of_one_host_alone_has_two_causes_of_the_other_at_most() -> None:
    spans = (AddrRange(0x1000_0000 * n, 0x1000_0000 * n + 0xFFF) for n in (1, 2, 3))
    regions = [
        ReservedRegion(s, RegionKind.RESERVED, "reserved", Source("r", 1), "1") for s in spans
    ]
    other = _open("b", *regions).usable(aperture=40)
    text = _with_cause(AddrRange(0, 0xFFFF_FFFF), other)
    assert text.count("reserved region") == 2
    assert "0x10000000-0x10000fff" in text
    assert "0x20000000-0x20000fff" in text
