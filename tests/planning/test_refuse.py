# SPDX-License-Identifier: Apache-2.0
"""Misfits in words, and fixes that were tried: with an attempt of one's own they can be counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

import vmm_iova as vi
from vmm_iova import remedies as say
from vmm_iova.host.bars import BarBits
from vmm_iova.host.facts import RegionKind, ReservedRegion, Source
from vmm_iova.host.text import parse_text
from vmm_iova.host.usable import Cause, CauseKind
from vmm_iova.planning.attempt import attempt
from vmm_iova.planning.describe import describe
from vmm_iova.planning.layout import Layout
from vmm_iova.planning.misfit import DoorbellMisfit, Misfit, RamLeft
from vmm_iova.planning.refuse import _more_room, _wider, _worth, explain
from vmm_iova.planning.request import resolve
from vmm_iova.planning.site import HolePolicy, Policy, Site, site_of
from vmm_iova.planning.trials import Trials
from vmm_iova.ranges import AddrRange

GIB = 1 << 30
HOLE = "0x0 - 0xfedfffff\n0xfef00000 - 0x17fffffff\n0x200000000 - 0xffffffffff\n"
AUTO, SPLIT, MOVE, REFUSE = map(Policy, HolePolicy)


def _site(guest: vi.Guest, ranges: str = HOLE) -> Site:
    usable = parse_text(ranges, "list", "iova_ranges")[0].usable()
    return site_of(resolve(guest, usable), usable)


def _misfit(site: Site, policy: Policy) -> Misfit:
    with pytest.raises(Misfit) as caught:
        attempt(site, policy)
    return caught.value


def _never(site: Site, policy: Policy) -> Layout:
    raise Misfit("ram", site.usable.ranges[0])


GUESTS: list[tuple[vi.Guest, str, Policy]] = [
    (vi.Guest("q35", "8G"), HOLE, REFUSE),
    (vi.Guest("q35", "8G"), "0x0 - 0x7fffffff\n", SPLIT),
    (vi.Guest("q35", "8G", bars=[vi.Bar("gpu", "1TiB", required=True)]), HOLE, SPLIT),
    (vi.Guest("q35", "8G", rooms=[vi.Room("dimms", "2TiB")]), HOLE, SPLIT),
    (vi.Guest("s390x", "8G", phys_bits=32), HOLE, SPLIT),
    (vi.Guest("microvm", "8G", bars=[vi.Bar("gpu", "1G")]), HOLE, SPLIT),
]


@pytest.mark.parametrize(("guest", "ranges", "policy"), GUESTS)
def test_description_tries_nothing_and_is_what_the_error_says(
    guest: vi.Guest, ranges: str, policy: Policy
) -> None:
    site = _site(guest, ranges)
    misfit = _misfit(site, policy)
    message, reasons = describe(misfit, site)
    error = explain(misfit, site, policy, attempt)
    assert error.message == message
    assert error.reasons == tuple(reasons)
    assert reasons


@pytest.mark.parametrize(("guest", "ranges", "policy"), GUESTS)
def test_no_fix_of_a_number_or_policy_is_named_when_nothing_works(
    guest: vi.Guest, ranges: str, policy: Policy
) -> None:
    site = _site(guest, ranges)
    error = explain(_misfit(site, policy), site, policy, _never)
    tried = ("--ram", "--on-hole", "--align", "--bar", "--phys-bits 3", "mark it", "with --on-hole")
    assert [fix for fix in error.fixes if fix.startswith(tried)] == []


def test_fix_of_ram_is_the_most_that_an_attempt_has_a_place_for() -> None:
    site = _site(vi.Guest("q35", "8G"), "0x0 - 0x7fffffff\n")

    def at_most(most: int) -> Callable[[Site, Policy], Layout]:
        def attempt_(site: Site, policy: Policy) -> Layout:
            if site.wanted.ram > most:
                raise Misfit("ram", site.usable.ranges[0])
            return attempt(_site(vi.Guest("q35", "1G")), policy)

        return attempt_

    misfit = _misfit(site, SPLIT)
    assert explain(misfit, site, SPLIT, at_most(2 * GIB)).fixes[0] == "--ram 2GiB fits"
    assert explain(misfit, site, SPLIT, at_most(GIB + 12345)).fixes[0] == "--ram 1024MiB fits"


def test_refusal_offers_the_policies_that_work_with_their_places() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    site = site_of(resolve(vi.Guest("own-x86", "1.5TiB"), usable), usable)
    error = explain(_misfit(site, REFUSE), site, REFUSE, attempt)
    assert error.fixes[:2] == (
        "--on-hole split puts RAM at 0x0-0x7fffffff, 0x100000000-0xfcffffffff, "
        "0x10000000000-0x1837fffffff",
        "--on-hole move puts RAM at 0x0-0x7fffffff, 0x10000000000-0x27f7fffffff",
    )


def test_trials_of_more_bits_stop_at_the_first_that_works() -> None:
    site, seen = _site(vi.Guest("q35", "64G", phys_bits=35), "0x0 - 0xffffffffff\n"), list[int]()

    def counted(site: Site, policy: Policy) -> Layout:
        seen.append(site.wanted.limits[0].bits)
        return attempt(site, policy)

    assert Trials(site, SPLIT, counted).more_bits() == 37
    assert seen == [36, 37]


def test_trials_leave_what_is_wanted_as_it_is() -> None:
    site = _site(vi.Guest("q35", "8G"))
    before = site.wanted
    explain(_misfit(site, REFUSE), site, REFUSE, attempt)
    assert site.wanted == before


# -- trials at their limits: the attempt is a number to compare with -------------------------------


def _trials(
    guest: vi.Guest,
    works: Callable[[Site, Policy], bool],
    policy: Policy = SPLIT,
    ranges: str = HOLE,
) -> Trials:
    def attempt_(site: Site, policy: Policy) -> Layout:
        if not works(site, policy):
            raise Misfit("ram", site.usable.ranges[0])
        return SimpleNamespace(ram=())  # type: ignore[return-value]

    return Trials(_site(guest), policy, attempt_)


@pytest.mark.parametrize("most", [200, 255, 1000, 5000, 300 << 10, 1 << 20, 16 << 20])
@pytest.mark.parametrize("part", [0.0, 0.003, 0.2, 0.5, 0.77, 0.999, 1.0, 2.0])
def test_most_ram_that_works_is_found_to_a_256th_or_a_gib(most: int, part: float) -> None:
    limit, tried = int(most * part), list[int]()

    def works(site: Site, policy: Policy) -> bool:
        tried.append(site.wanted.ram)
        return site.wanted.ram <= limit << 20

    found = _trials(vi.Guest("q35", "8G"), works).most_ram(most << 20) >> 20
    if limit >= most:
        assert found == most
    elif limit >= 1024:
        assert found == limit >> 10 << 10  # GiB read better
    else:
        assert 0 <= limit - found < max(1, most >> 8)
    assert len(tried) <= most.bit_length() + 3
    if most // 2 < limit:  # to a part in 256 or a GiB, and two sizes that read better
        assert len(tried) <= 1 + max(9, (most >> 11).bit_length()) + 2
    assert max(tried) <= most << 20


@pytest.mark.parametrize("most", [3 << 10, 64 << 10, 256 << 10, 300 << 10, 1 << 20, 16 << 20])
def test_most_ram_of_whole_gib_is_found_exactly(most: int) -> None:
    for limit in {
        most,
        most - 1024,
        1024,
        *(most * part // 1000 >> 10 << 10 for part in range(7, 999, 31)),
    }:
        trials = _trials(
            vi.Guest("q35", "8G"), lambda site, _, at=limit: site.wanted.ram <= at << 20
        )
        assert trials.most_ram(most << 20) == limit << 20


def test_most_ram_is_of_what_is_wanted_in_whole_mib() -> None:
    tried = list[int]()

    def works(site: Site, policy: Policy) -> bool:
        tried.append(site.wanted.ram)
        return site.wanted.ram <= 100 << 20

    trials = _trials(vi.Guest("q35", (8 << 30) + 4096), works)
    assert trials.most_ram() == 100 << 20
    assert (max(tried), min(tried) >= 64 << 20) == (8 << 30, True)
    assert all(ram % (1 << 20) == 0 for ram in tried)
    assert trials.most_ram((99 << 20) + 5) == 99 << 20
    assert trials.most_ram((1 << 20) - 1) == 0


@pytest.mark.parametrize(
    ("guest", "ram", "works"),
    [
        (vi.Guest("q35", "8G"), 0, False),
        (vi.Guest("q35", "8G"), 4096, True),
        (vi.Guest("q35", "8G"), 4095, False),
        (vi.Guest("q35", "8G", page_size="2M"), 4096, False),
        (vi.Guest("q35", "8G", page_size="2M"), 2 << 20, True),
        (vi.Guest("q35", nodes=[vi.Node("2M", "2M"), vi.Node("4G", "1G")]), 2 << 20, False),
        (vi.Guest("q35", nodes=[vi.Node("2M", "2M"), vi.Node("4G", "1G")]), GIB, True),
    ],
)
def test_ram_that_is_tried_is_whole_pages(guest: vi.Guest, ram: int, works: bool) -> None:
    trials = _trials(guest, lambda site, policy: True)
    assert trials.ram_works(ram) is works
    assert [(node.name, node.size) for node in trials.with_ram(GIB).nodes] == [(None, GIB)]


@pytest.mark.parametrize(
    ("machine", "policy", "others"),
    [
        ("own-x86", REFUSE, ["split", "move"]),
        ("own-x86", SPLIT, ["move"]),
        ("own-x86", MOVE, ["split"]),
        ("own-x86", AUTO, []),
        ("q35", REFUSE, ["move"]),
        ("q35", MOVE, []),
        ("virt", REFUSE, []),
        ("s390x", REFUSE, []),
    ],
)
def test_other_policies_are_those_that_the_vmm_has(
    machine: str, policy: Policy, others: list[str]
) -> None:
    seen: list[Policy] = []
    trials = _trials(vi.Guest(machine, "8G"), lambda site, how: not seen.append(how), policy)
    assert [found.value for found in trials.policies()] == others
    assert [how.on_hole.value for how in seen] == others
    assert all(how.own for how in seen)
    assert _trials(vi.Guest(machine, "8G"), lambda *_: False, policy).policies() == {}


@pytest.mark.parametrize(
    ("guest", "at_most", "found"),
    [
        (vi.Guest("q35", "8G", align="4G"), 1 << 30, 1 << 30),
        (vi.Guest("q35", "8G", align="1G"), 1 << 30, 2 << 20),
        (vi.Guest("q35", "8G", align="1G"), (2 << 20) - 1, 4096),
        (vi.Guest("q35", "8G", align="2M"), 1 << 30, 4096),
        (vi.Guest("q35", "8G", align="8K"), 1 << 30, 4096),
        (vi.Guest("q35", "8G"), 1 << 30, None),
        (vi.Guest("q35", "8G", align="1G", page_size="2M"), 1 << 30, 2 << 20),
        (vi.Guest("q35", "8G", align="1G", page_size="2M"), 4096, None),
        (vi.Guest("q35", nodes=[vi.Node("2M", "2M"), "2G"], align="1G"), 1 << 30, 2 << 20),
        (vi.Guest("q35", "8G", align="1G"), 0, None),
    ],
)
def test_smaller_alignment_is_the_largest_that_works(
    guest: vi.Guest, at_most: int, found: int | None
) -> None:
    def works(site: Site, policy: Policy) -> bool:
        return max(node.align for node in site.wanted.nodes) <= at_most

    assert _trials(guest, works).smaller_align() == found


@pytest.mark.parametrize(
    ("have", "need", "found"),
    [(36, 37, 37), (36, 52, 52), (51, 52, 52), (36, 53, None), (52, 53, None), (52, 52, None)],
)
def test_more_address_bits_end_at_52(have: int, need: int, found: int | None) -> None:
    guest = vi.Guest("q35", "1G", phys_bits=have)
    trials = _trials(guest, lambda site, policy: site.wanted.limits[0].bits >= need)
    assert trials.more_bits() == found


def test_bar_is_tried_in_place_of_another_also_behind_a_port() -> None:
    bars = [vi.Bar("a", "1G", port="p"), vi.Bar("b", "2G", port="p"), vi.Bar("c", "4G")]
    trials = _trials(vi.Guest("q35", "8G", bars=bars), lambda *_: True)
    port, lone = trials.site.wanted.bars
    for bar in (*port.behind, lone):
        changed = trials.with_bar(bar, replace(bar, name="new")).bars
        names = [each.name for one in changed for each in one.each]
        assert names == [x.name if x.name != bar.name else "new" for x in (*port.behind, lone)]


@pytest.mark.parametrize(
    ("bits", "firmware", "kinds"),
    [
        # The guest has 46 address bits, the host fewer; no guest starts with less than 36.
        (35, "ovmf", ["mark it"]),
        (36, "ovmf", ["--ovmf-window 32768MiB", "--phys-bits 36", "mark it"]),
        (36, "ovmf-2022.11", ["--phys-bits 36", "mark it"]),
        (36, "seabios", ["--phys-bits 36", "--firmware seabios-1.16.2", "mark it"]),
        (36, "seabios-1.16.3", ["--phys-bits 36", "mark it"]),
        (45, "ovmf-2022.11", ["--phys-bits 45", "mark it"]),
    ],
)
def test_bar_that_firmware_puts_beyond_the_host_is_brought_below(
    bits: int, firmware: str, kinds: list[str]
) -> None:
    bars = [vi.Bar("a", "8G", required=True), vi.Bar("b", "32M", bits=32)]
    guest = vi.Guest("q35", "4G", firmware=firmware, phys_bits=46, bars=bars)
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(guest, _site(guest, f"0x0 - {(1 << bits) - 1:#x}\n").host)
    tried = ("--ovmf-window", "--phys-bits", "--firmware", "mark it")
    found = [fix for fix in caught.value.fixes if fix.startswith(tried)]
    assert [fix[: len(kind)] for fix, kind in zip(found, kinds, strict=True)] == kinds


def test_window_that_ovmf_is_told_is_for_the_64_bit_bars() -> None:
    bars = [vi.Bar("a", "64G", required=True), vi.Bar("b", "32M", bits=32)]
    guest = vi.Guest("q35", "4G", firmware="ovmf", phys_bits=46, bars=bars)
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(guest, _site(guest, "0x0 - 0x7fffffffff\n").host)
    assert caught.value.fixes[0].startswith("--ovmf-window 65536MiB (")


@pytest.mark.parametrize(
    ("size", "align", "sizes", "smaller"),
    [
        ("1G", "8G", None, "512 MiB"),  # its alignment is what has no room; smaller is smaller
        ("2G", None, None, "1 GiB"),
        ("1025M", None, None, "1 GiB"),
        ("2G", None, (1 << 29, 1 << 20), "512 MiB"),  # sizes that the device has
        ("2G", None, (1 << 31,), None),
        ("1M", "8G", None, None),  # no BAR can be resized below 1 MiB
        ("2M", "8G", None, "1 MiB"),
    ],
)
def test_smaller_bar_is_the_largest_that_the_device_has_and_has_room(
    size: str, align: str | None, sizes: tuple[int, ...] | None, smaller: str | None
) -> None:
    # The window of 1 GiB lies right behind RAM, from 7 GiB on.
    bar = vi.Bar("b", size, align=align, required=True, sizes=sizes)
    guest = vi.Guest("own-x86", "5G", pci64="1G", bars=[bar])
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(guest, _site(guest, "0x0 - 0xffffffffff\n").host)
    found = [fix for fix in caught.value.fixes if fix.startswith("a BAR of")]
    expected = f"a BAR of {smaller} has room (resizable BAR on the device)"
    assert found == ([] if smaller is None else [expected])


def _fixes(guest: vi.Guest) -> tuple[str, ...]:
    """Of a host that has room for all of it."""
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(guest, _site(guest, "0x0 - 0xffffffffff\n").host)
    return caught.value.fixes


@pytest.mark.parametrize(
    ("window", "size", "says"), [("1G", "2G", "1 GiB has {}10 >"), ("1M", "2M", "1 MiB has {}0 >")]
)
def test_smaller_bar_that_the_host_can_size_says_what_to_write(
    window: str, size: str, says: str
) -> None:
    bar = vi.Bar("b", size, required=True, sized_by="/sys/b/resource0_resize")
    (fix,) = [
        fix
        for fix in _fixes(vi.Guest("own-x86", "5G", pci64=window, bars=[bar]))
        if "resource0_resize" in fix
    ]
    text = says.format("room: on the host, with no driver bound, echo ")
    assert fix.startswith(f"a BAR of {text} /sys/b/resource0_resize")


@pytest.mark.parametrize(
    ("size", "bits", "port", "offered"),
    [
        ("64M", 64, None, True),
        ("2G", 64, None, False),  # the gap below 4 GiB has less
        ("2G", 32, None, False),
        ("64M", 64, "p", False),  # of a port each BAR is its own
    ],
)
def test_bar_without_room_may_be_one_below_4_gib_if_that_has_room(
    size: str, bits: BarBits, port: str | None, offered: bool
) -> None:
    bar = vi.Bar("b", size, bits, required=True, port=port)
    fixes = _fixes(vi.Guest("own-x86", "5G", pci64="1M", bars=[bar]))
    assert any(fix == f"--bar b={size}iB,32 has room" for fix in fixes) is offered


@pytest.mark.parametrize(
    ("need", "cpu", "machine", "said"),
    [
        (40, None, None, "--phys-bits 40"),
        (40, 40, 40, "--phys-bits 40"),
        (41, 40, 40, "a host whose CPU has 41 physical address bits"),
        (
            41,
            41,
            40,
            "another machine: TITLE has 40 address bits at most",
        ),  # and not the guest's 36
        (53, None, None, None),
    ],
)
def test_more_address_bits_are_those_that_cpu_and_machine_have(
    need: int, cpu: int | None, machine: int | None, said: str | None
) -> None:
    model = replace(vi.load_machine("own-x86"), phys_bits=machine, title="TITLE")
    trials = _trials(
        vi.Guest(model, "8G", phys_bits=36), lambda site, _: site.wanted.limits[0].bits >= need
    )
    host = replace(trials.site.host, cpu_bits=cpu)
    found = list(_wider(replace(trials, site=replace(trials.site, host=host))))
    assert [text[: len(said or "")] for text in found] == ([] if said is None else [said])


@pytest.mark.parametrize(
    ("left", "stop", "worth"),
    [
        (2, None, ["relaxable", "fixed"]),  # the relaxable one is enough
        (3, None, ["fixed"]),
        (10, None, ["fixed"]),
        (11, None, []),  # not even both
        (9, 15, ["fixed"]),  # what lies behind the end of the space gives nothing
        (10, 15, []),
        (2, 2, ["relaxable", "fixed"]),
        (3, 2, []),
    ],
)
def test_holes_are_worth_giving_back_if_that_is_enough(
    left: int, stop: int | None, worth: list[str]
) -> None:
    def hole(word: str, kind: RegionKind, start: int, last: int) -> Cause:
        span = AddrRange(start, last)
        return Cause(CauseKind.REGION, span, word, ReservedRegion(span, kind, word, Source("s")))

    holes = [
        hole("relaxable", RegionKind.DIRECT_RELAXABLE, 0, 1),
        hole("fixed", RegionKind.RESERVED, 8, 15),
    ]
    limit = None if stop is None else Cause(CauseKind.APERTURE, AddrRange(stop, 99), "")
    assert [cause.text for cause in _worth(holes, limit, left)] == worth
    gap = Cause(CauseKind.KERNEL_GAP, AddrRange(20, 29), "gap")
    assert _worth([gap], None, 10) == [gap]


def test_ram_of_a_host_where_nothing_is_usable_is_left_from_address_0_on() -> None:
    usable = vi.Host("none").usable(aperture="0x0-0x7ff", granule=4096)
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(vi.Guest("s390x", "1G"), usable, "split")
    assert {reason.range.start for reason in caught.value.reasons} == {0}
    assert {reason.fits for reason in caught.value.reasons} == {0}


# -- what helps, at its limits ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fits", "size"),
    [(0, None), (4095, None), (4096, "4 KiB"), (0x4_F000, "256 KiB"), (1 << 20, "1 MiB")],
)
def test_doorbell_without_room_may_be_the_largest_power_of_two_that_has(
    fits: int, size: str | None
) -> None:
    site = _site(vi.Guest("own-arm", "1G"))
    misfit = DoorbellMisfit("doorbell d", AddrRange(0, 0xFFFF), (), fits)
    trials = _trials(vi.Guest("own-arm", "1G"), lambda site, policy: False)
    fixes = explain(misfit, site, SPLIT, trials.attempt).fixes
    assert [fix for fix in fixes if "doorbell" in fix] == (
        [] if size is None else [f"a doorbell of {size} or less"]
    )


@pytest.mark.parametrize(
    ("machine", "policy", "said"),
    [
        ("own-x86", REFUSE, True),
        ("own-x86", MOVE, True),
        ("own-x86", SPLIT, False),
        ("q35", REFUSE, False),  # it cannot split
    ],
)
def test_ram_that_fits_around_the_holes_is_said_where_the_vmm_can_split(
    machine: str, policy: Policy, said: bool
) -> None:
    """2 GiB below 4 GiB, 2 GiB to the hole from 6 to 8 GiB, and from there to 1 TiB."""
    site = _site(vi.Guest(machine, "2TiB", pci64=0))
    fixes = explain(_misfit(site, policy), site, policy, attempt).fixes
    split = f"with --on-hole split, --ram {1020 << 10}MiB fits"
    assert [fix for fix in fixes if "split" in fix] == [split] * said


@pytest.mark.parametrize(
    ("size", "align", "bits"), [("512G", None, 40), ("1T", None, 41), ("256G", "512G", 40)]
)
def test_bar_beyond_the_host_says_how_many_bits_a_device_would_need(
    size: str, align: str | None, bits: int
) -> None:
    usable = _site(vi.Guest("own-x86", "5G"), "0x0 - 0x7fffffffff\n").host
    bar = vi.Bar("b", size, align=align, required=True)
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(vi.Guest("own-x86", "5G", bars=[bar]), usable)
    (fix,) = [fix for fix in caught.value.fixes if "address bits" in fix]
    assert f"{bits} address bits" in fix


def test_bar_that_has_no_room_though_optional_is_not_said_to_have() -> None:
    bar = vi.Bar("b", "2G", 32, required=True)
    assert not any("optional" in fix for fix in _fixes(vi.Guest("own-x86", "5G", bars=[bar])))
    ranges = "0x0 - 0xbfffffff\n0xfef00000 - 0xffffffffff\n"
    bar = vi.Bar("b", "256M", 32, required=True)
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(vi.Guest("own-x86", "5G", bars=[bar]), _site(vi.Guest("q35", "1G"), ranges).host)
    assert any("optional" in fix for fix in caught.value.fixes)
    assert not any("address bits" in fix for fix in caught.value.fixes)


def test_area_for_plugged_memory_in_a_hole_is_better_left_out() -> None:
    """The hole begins where the area would, at 6 GiB; less RAM brings it below."""
    guest = vi.Guest("q35", "4G", maxmem="8G", pci64=0)
    site = _site(guest)
    fixes = explain(_misfit(site, AUTO), site, AUTO, attempt).fixes
    assert fixes[0] == str(say.MAXMEM_NONE)


@pytest.mark.parametrize(("ram", "helps"), [("990G", True), ("991G", False)])
def test_plugged_memory_that_takes_the_guest_beyond_its_addresses_is_better_left_out(
    ram: str, helps: bool
) -> None:
    """Without it the window of 32 GiB ends at the last address exactly, behind 990 GiB."""
    guest = vi.Guest("q35", ram, maxmem="992G", cpu="intel", phys_bits=40)
    site = _site(guest, "0x0 - 0xffffffffffff\n")
    fixes = explain(_misfit(site, AUTO), site, AUTO, attempt).fixes
    assert (str(say.MAXMEM_LESS) in fixes) is helps


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ([], [str(say.ANOTHER_MACHINE)]),
        ([CauseKind.GUEST_WIDTH], []),  # more bits of the guest are another fix
        ([CauseKind.KERNEL_GAP], []),  # a hole of a page is not worth giving back
        ([CauseKind.APERTURE], [str(say.ROOMIER_DEVICE.format(better="more address bits"))]),
    ],
)
def test_another_machine_is_named_only_where_nothing_of_the_host_is_in_the_way(
    kinds: list[CauseKind], said: list[str]
) -> None:
    causes = [Cause(kind, AddrRange(1 << 40, (1 << 40) + 0xFFF), "text") for kind in kinds]
    misfit = RamLeft("ram", AddrRange(0, 9), causes, GIB)
    assert list(_more_room(misfit, _site(vi.Guest("q35", "8G")))) == said
