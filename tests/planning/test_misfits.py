# SPDX-License-Identifier: Apache-2.0
"""Each misfit in words, and each rule of QEMU and OVMF that a layout has to say, at its limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import vmm_iova as vi
from tests.planning.test_wanted import ALL, AMD, site, wanted
from vmm_iova.host.text import parse_text
from vmm_iova.host.usable import Cause, CauseKind
from vmm_iova.machines.firmware import BarNeed
from vmm_iova.planning.attempt import attempt
from vmm_iova.planning.bars import Packing, WantedBar, fit, room_for, spread
from vmm_iova.planning.describe import describe
from vmm_iova.planning.firmware_bars import ovmf_megabytes
from vmm_iova.planning.misfit import BarMisfit, BarUnreached, Misfit
from vmm_iova.planning.ram import place_ram
from vmm_iova.planning.reasons import _device, _larger, reasons_of
from vmm_iova.planning.site import HolePolicy, Policy
from vmm_iova.ranges import GIB, MIB, AddrRange


def _listed(*spans: tuple[int, int]) -> vi.Usable:
    text = "".join(f"{start:#x} - {last:#x}\n" for start, last in spans)
    return parse_text(text, "list", "iova_ranges")[0].usable()


NARROW = _listed((0, (1 << 39) - 1))
AFTER = _listed((0, 8 * GIB - 1), (12 * GIB, (1 << 40) - 1))
TWO_GIB = _listed((0, 2 * GIB - 1))
MISFITS: list[tuple[str, vi.Usable, str, dict[str, Any], list[tuple[str, int, str]]]] = [
    ("q35", ALL, "auto", {"phys_bits": 34}, [("0x27fffffff-0xa7fffffff", 0, "the guest")]),
    (
        "microvm", ALL, "auto", {"ram": "30G", "phys_bits": 35},
        [("0x600000000-0x7bfffffff", 24 * GIB, "RAM")],
    ),
    (
        "q35", AFTER, "auto", {"ram": "6G", "maxmem": "8G"},
        [("0x200000000-0x27fffffff", 0, "memory plugged in later")],
    ),
    (
        "q35", NARROW, "auto",
        {"bars": [vi.Bar("g", "1T", required=True)], "firmware": "ovmf", "phys_bits": 46},
        [("0x380000000000-0x38ffffffffff", 0, "BAR g")],
    ),
    (
        "q35", NARROW, "auto", {"viommu": True, "viommu_bits": 48},
        [("0x8000000000-0xffffffffffff", 0, "the guest's IOMMU")],
    ),
    (
        "own-arm", _listed((GIB, 4 * GIB - 1)), "split",
        {"ram": "2G", "doorbells": [vi.Doorbell("d", "1G")]},
        [
            ("0x0-0xffffffffffffffff", 0x3FFE_0000, "doorbell d beside "),
            ("0x0-0xffffffffffffffff", 0x3FFE_0000, "doorbell d beside "),
        ],
    ),
    (
        "firecracker-arm", ALL, "auto", {"ram": "1023G"},
        [("0x80000000-0x1003fffffff", 1022 * GIB, "ram")],
    ),
    ("s390x", ALL, "split", {"phys_bits": 32}, [("0x0-0x1ffffffff", 4 * GIB, "ram")]),
    (
        "q35", NARROW, "split", {"rooms": [vi.Room("d", "2T")]},
        [("0xa80000000-0xffffffffffffffff", 0, "room d")],
    ),
    (
        "q35", ALL, "split", {"bars": [vi.Bar("b", "2G", bits=32)]},
        [("0xc0000000-0xfebfffff", 0xFEC0_0000 - 0xC000_0000, "BAR b (2 GiB")],
    ),
    ("own-x86", TWO_GIB, "split", {}, [("0x7fffffff-0xffffffffffffffff", 2 * GIB, "ram")]),
    ("own-x86", AFTER, "refuse", {}, [("0x100000000-0x27fffffff", 4 * GIB, "high RAM")]),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "usable", "policy", "how", "expected"), MISFITS)
def test_misfit_says_where_and_how_much_fits(
    machine: str,
    usable: vi.Usable,
    policy: str,
    how: dict[str, Any],
    expected: list[tuple[str, int, str]],
) -> None:
    here = site(machine, usable, **how)
    with pytest.raises(Misfit) as caught:
        attempt(here, Policy(HolePolicy(policy)))
    _, reasons = describe(caught.value, here)
    for reason, (span, fits, item) in zip(reasons, expected, strict=False):
        assert str(reason.range).startswith(span[:11])
        assert reason.item.startswith(item)
        assert reason.fits == fits
        assert ("fit there" in str(reason)) is bool(fits)


def test_bar_without_any_window_has_nothing_that_fits() -> None:
    bar = WantedBar("b", GIB, GIB, 64, True)
    for here in (site("own-x86", ALL), site("own-x86", ALL, phys_bits=40)):
        message, (reason,) = describe(BarMisfit(bar, [], 64), here)
        assert (reason.fits, reason.range) == (0, AddrRange(0, 0))
        assert message.startswith("BAR b (1 GiB, that peers must reach at a multiple of ")
    _, (reason,) = describe(BarMisfit(bar, [AddrRange(1, GIB)], 64), here)
    assert (reason.fits, reason.range) == (GIB, AddrRange(1, GIB))


@pytest.mark.parametrize(
    ("usable", "bits", "refused"),
    [(NARROW, 39, False), (NARROW, 48, True), (NARROW, None, False), (ALL, 48, False)],
)
def test_guests_iommu_is_no_wider_than_the_hosts(
    usable: vi.Usable, bits: int | None, refused: bool
) -> None:
    here = site("q35", usable, viommu=True, viommu_bits=bits)
    if not refused:
        assert attempt(here, Policy(HolePolicy.AUTO)).viommu
        return
    with pytest.raises(Misfit) as caught:
        attempt(here, Policy(HolePolicy.AUTO))
    assert caught.value.span == AddrRange(1 << 39, (1 << 48) - 1)


def test_misfit_of_a_bar_is_where_its_largest_window_is() -> None:
    bar = WantedBar("b", GIB, GIB, 64, True)
    windows = [AddrRange(0, 9), AddrRange(20, 49), AddrRange(60, 69)]
    assert BarMisfit(bar, windows, 64).span == AddrRange(20, 49)
    assert BarMisfit(bar, [], 64).span == AddrRange(0, 0)


# -- packing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spans", "size", "align", "low", "high"),
    [
        ([(0, 9)], 10, 1, 0, 0),
        ([(0, 9)], 11, 1, None, None),
        ([(1, 9)], 4, 4, 4, 4),
        ([(1, 11)], 4, 4, 4, 8),
        ([(1, 6)], 4, 4, None, None),
        ([(5, 7), (8, 11)], 4, 4, 8, 8),
        ([(0, 3), (8, 11)], 4, 4, 0, 8),
        ([], 1, 1, None, None),
    ],
)
def test_place_is_the_lowest_or_the_highest_that_is_aligned(
    spans: list[tuple[int, int]], size: int, align: int, low: int | None, high: int | None
) -> None:
    ranges = [AddrRange(*span) for span in spans]
    for downward, at in ((False, low), (True, high)):
        expected = None if at is None else AddrRange.from_size(at, size)
        assert fit(ranges, size, align, downward) == expected


def _bar(name: str, size: int, align: int = 0, required: bool = False) -> WantedBar:
    return WantedBar(name, size, align or size, 64, required)


def test_bars_are_packed_the_largest_first_and_those_that_must_be_reached() -> None:
    one, two, four = _bar("one", 1), _bar("two", 2, required=True), _bar("four", 4)
    both = Packing([one, two, four], [AddrRange(0, 6)], (), False)
    assert (both.all_reached, both.stuck) == (True, None)
    assert [both.places[n].start for n in range(3)] == [6, 4, 0]
    some = Packing([one, two, four], [AddrRange(0, 3)], [AddrRange(0, 7)], False)
    assert (some.all_reached, some.stuck) == (False, None)
    assert [some.places[n].start for n in range(3)] == [2, 0, 4]
    none = Packing([one, two, four], [AddrRange(0, 3)], [AddrRange(0, 6)], False)
    assert (none.all_reached, none.stuck) == (False, 2)
    assert Packing([], (), (), False).all_reached


@pytest.mark.parametrize(
    ("bars", "align", "start", "size"),
    [
        ([], 4, 0, 0),
        ([_bar("a", 4)], 4, 0, 4),
        ([_bar("a", 4), _bar("b", 1)], 1, 0, 5),
        ([_bar("a", 4), _bar("b", 1)], 4, 0, 8),
        ([_bar("a", 4)], 1, 1, 7),
        ([_bar("a", 4)], 4, 4, 4),
        ([_bar("a", 1 << 63)], 1, 1 << 63, 1 << 63),
    ],
)
def test_room_for_bars_is_counted_from_where_it_begins(
    bars: list[WantedBar], align: int, start: int, size: int
) -> None:
    assert room_for(bars, align, start) == size


def test_bars_behind_a_port_are_spread_the_largest_first() -> None:
    (port,) = wanted(
        "q35",
        bars=[
            vi.Bar("a", "1M", port="p"),
            vi.Bar("b", "4M", port="p"),
            vi.Bar("c", "3M", port="p"),
        ],
    ).bars
    assert (port.size, port.align) == (8 * MIB, 4 * MIB)
    places = [
        (bar.name, at.start, at.size) for bar, at in spread(port, AddrRange(16 * MIB, 25 * MIB))
    ]
    assert places == [
        ("b", 16 * MIB, 4 * MIB), ("c", 20 * MIB, 3 * MIB), ("a", 23 * MIB, MIB),
    ]  # fmt: skip
    assert not port.required
    assert [bar.name for bar in port.each] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("sizes", "mib"),
    [
        ([16 * GIB], 32 << 10),
        ([32 * GIB], 32 << 10),
        ([32 * GIB, MIB], 64 << 10),
        ([64 * GIB - MIB, MIB], 64 << 10),
        ([64 * GIB], 64 << 10),
        ([64 * GIB, 4096], 128 << 10),
        ([48 * GIB], 64 << 10),
    ],
)
def test_window_that_ovmf_is_told_is_the_power_of_two_that_holds_its_bars(
    sizes: list[int], mib: int
) -> None:
    bars = [_bar(str(n), size, MIB) for n, size in enumerate(sizes)]
    assert ovmf_megabytes(bars) == mib
    # A BAR counts with its alignment.
    assert ovmf_megabytes([_bar("b", 33 * GIB, 64 * GIB)]) == 64 << 10
    assert ovmf_megabytes([_bar("b", 65 * GIB, 64 * GIB)]) == 128 << 10


# -- rules of QEMU and OVMF that come with a layout ------------------------------------------------

AMDS = 0xFD_0000_0000


def _reasons(machine: str = "q35", usable: vi.Usable = AMD, **how: Any) -> list[str]:
    here = site(machine, usable, **how)
    ram = next(iter(place_ram(here, Policy(HolePolicy.AUTO))))
    return ["|".join((item.text, item.why, item.action or "")) for item in reasons_of(here, ram)]


# RAM above 4 GiB is all but 2 GiB, and a window of 32 GiB follows: so much ends below the hole.
FREE = AMDS // GIB - 32 - 2


@pytest.mark.parametrize(
    ("ram", "maxmem", "said"),
    [
        (FREE - 100, FREE - 100, False),
        (FREE - 100, FREE, False),
        (FREE - 100, FREE + 1, True),
        (FREE - 1, FREE + 1, True),
        (FREE, FREE + 1, False),  # with any more RAM it is moved
    ],
)
def test_maxmem_that_moves_ram_says_how_much_would_not(ram: int, maxmem: int, said: bool) -> None:
    found = _reasons(ram=f"{ram}G", maxmem=f"{maxmem}G")
    assert bool(found) is said
    for text in found:
        assert text.startswith("because of maxmem, QEMU moves all RAM above 4 GiB to 0x10000000000")
        assert f"|maxmem={FREE}G or less" in text
        (slots,) = _reasons(ram=f"{ram}G", maxmem=f"{maxmem}G", slots=1)
        assert f"|maxmem={FREE - 1}G or less" in slots  # each slot takes 1 GiB


@pytest.mark.parametrize(
    ("room", "how", "said"),
    [
        (101, {}, True),
        (100, {}, False),
        (101, {"cpu": "intel"}, False),
        (101, {"machine": "virt"}, False),
        (101, {"maxmem": f"{FREE - 99}G"}, False),
    ],
)
def test_room_that_would_move_ram_as_plugged_memory_is_said(
    room: int, how: dict[str, Any], said: bool
) -> None:
    ram = FREE - 100
    found = _reasons(**{"ram": f"{ram}G", "rooms": [vi.Room("d", f"{room}G")], **how})
    if not said:
        assert not any("the room of" in text for text in found)
        return
    (text,) = found
    assert text.startswith(f"as memory that is plugged in, the room of {room} GiB makes QEMU move")
    action = f"|keep the room at 100 GiB or less (maxmem={FREE}G), and QEMU moves no RAM; "
    assert f"{action}--maxmem {FREE + 1}G plans it" in text


def _ovmf(*sizes: str, machine: str = "q35", **how: Any) -> list[str]:
    bars = [vi.Bar(str(n), size) for n, size in enumerate(sizes)]
    how = {"ram": "4G", "phys_bits": 40, "firmware": "ovmf-2022.11", "bars": bars} | how
    return _reasons(machine, ALL, **how)


@pytest.mark.parametrize(
    ("sizes", "how", "said"),
    [
        (["16G"], {}, None),  # the next would begin at twice its size, and there is none
        (["32G"], {}, "the BAR may find no place: its device behind a root port takes 64 GiB, and"),
        (
            ["16G", "16G"],
            {},
            "one BAR may find no place: 2 devices behind root ports take 64 GiB",
        ),
        (
            ["16G", "8G"],
            {},
            "one BAR may find no place: 2 devices behind root ports take 48 GiB",
        ),
        (["8G", "8G"], {}, None),
        (["512M"] * 64, {}, None),  # small ones find room beside the others
        (["1G"] * 16, {}, None),
        (
            ["1G"] * 17,
            {},
            "one BAR may find no place: 17 devices behind root ports take 34 GiB",
        ),
        (["32G"], {"firmware": "seabios"}, None),
        (["32G"], {"firmware": None}, "the BAR may find no place"),
        (["16G"], {"ovmf_window": "32G"}, None),
        (["32G"], {"machine": "own-x86", "firmware": None}, None),
        (["32G"], {"machine": "i440fx"}, None),
        (["16G", "8G"], {"machine": "i440fx"}, None),
    ],
)
def test_window_of_ovmf_that_is_full_is_said(
    sizes: list[str], how: dict[str, Any], said: str | None
) -> None:
    found = _ovmf(*sizes, **how)
    assert bool(found) is (said is not None), found
    if said is not None:
        assert said in found[0]


# -- what a VMM has to be told ---------------------------------------------------------------------

THIS_WIDE = "QEMU: -cpu host, or -cpu MODEL,phys-bits="
HOLE64 = "QEMU: -global q35-pcihost.pci-hole64-size="
STAYS = (
    "RAM stays where it is if the area for plugged memory (maxmem less RAM, and 1 GiB a slot) is "
)
ENDS = (
    " ends beyond 0x7fffffffff, the last that devices reach, and left to itself the VMM gives out"
)


@pytest.mark.parametrize(
    ("machine", "how", "told"),
    [
        ("q35", {}, []),
        ("q35", {"phys_bits": 40}, []),  # as many as a CPU model has by itself
        ("q35", {"phys_bits": 41}, [f"{THIS_WIDE}41"]),
        ("q35", {"ram": "988G"}, []),  # with its window it ends at 1 TiB
        ("q35", {"ram": "991G"}, [f"{THIS_WIDE}41"]),
        ("q35", {"pci64": "64G"}, [f"{HOLE64}64G"]),
        ("q35", {"pci64": "65537M"}, [f"{HOLE64}65537M"]),
        ("q35", {"pci64": 0}, [f"{HOLE64}0"]),
        ("cloud-hypervisor", {"pci64": 0}, []),
        ("q35", {"max_ram_below_4g": "1G"}, [f"QEMU: -machine max-ram-below-4g={GIB}"]),
        (
            "q35", {"firmware": "ovmf", "ovmf_window": "64G"},
            ["QEMU: -fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=65536"],
        ),
    ],
)  # fmt: skip
def test_vmm_is_told_what_it_does_not_have_by_itself(
    machine: str, how: dict[str, Any], told: list[str]
) -> None:
    assert list(vi.plan(vi.Guest(machine, **{"ram": "8G", **how}), ALL).settings) == told


@pytest.mark.parametrize(
    ("machine", "how", "usable", "noted"),
    [
        ("own-x86", {"bars": [vi.Bar("a", "16G")]}, ALL, None),
        (
            "own-x86", {"bars": [vi.Bar("a", "64G")]}, ALL,
            "the 64-bit PCI window is 64GiB for the BARs: its 64-bit PCI window: 64G",
        ),
        ("own-x86", {"bars": [vi.Bar("a", "32G")], "pci64": "64G"}, ALL, None),
        ("q35", {"maxmem": "9G"}, ALL, None),
        ("q35", {"maxmem": "9G", "cpu": "amd"}, ALL, f"{STAYS}970 GiB or less"),
        (
            "q35", {"ram": f"{FREE - 1}G", "maxmem": f"{FREE}G", "cpu": "amd"}, ALL,
            f"{STAYS}1 GiB or less",
        ),
        ("q35", {"ram": f"{FREE}G", "maxmem": f"{FREE + 1}G", "cpu": "amd"}, ALL, None),
        ("crosvm", {"phys_bits": 39}, NARROW, None),
        (
            "crosvm", {"phys_bits": 40}, NARROW,
            f"the 64-bit PCI window 0x238000000-0xffffffffff{ENDS}",
        ),
        (
            "crosvm", {"phys_bits": 40}, _listed((0, (1 << 39) - 0x1001)),
            "the 64-bit PCI window 0x238000000-0xffffffffff ends beyond 0x7ffffeffff",
        ),
    ],
)  # fmt: skip
def test_what_a_person_may_not_expect_is_noted(
    machine: str, how: dict[str, Any], usable: vi.Usable, noted: str | None
) -> None:
    notes = [
        note.text
        for note in vi.plan(vi.Guest(machine, **{"ram": "8G", **how}), usable).notes
        if note.text.startswith(("the 64-bit PCI window", "RAM stays"))
    ]
    assert [text[: len(noted or "")] for text in notes] == ([] if noted is None else [noted])


@pytest.mark.parametrize(
    ("last", "bits"), [((1 << 39) - 1, 39), ((1 << 39) - 0x1001, 38), (1 << 39 | 0xFFF, 39)]
)
def test_bits_that_keep_a_window_below_are_those_that_devices_reach(last: int, bits: int) -> None:
    layout = vi.plan(vi.Guest("cloud-hypervisor", "8G", phys_bits=46), _listed((0, last)))
    assert any(f"--cpus max_phys_bits={bits} keeps them" in note.text for note in layout.notes)


def test_option_of_a_machine_may_count_its_window_in_mib() -> None:
    options = (("pci64", "window {mib} MiB"), ("pci64_none", "no window"))
    machine = replace(vi.load_machine("own-x86"), options=options)
    assert vi.plan(vi.Guest(machine, "8G", pci64="3G"), ALL).settings == ("window 3072 MiB",)
    assert vi.plan(vi.Guest(machine, "8G", pci64=0), ALL).settings == ("no window",)
    grown = vi.plan(vi.Guest(machine, "4G", bars=[vi.Bar("a", "64G")]), ALL)
    assert any(note.text.endswith(": window 124928 MiB") for note in grown.notes)


@pytest.mark.parametrize(
    ("free", "start"),
    [
        # The area of 2 GiB for plugged memory begins where RAM ends, at 8 GiB; a hole from 9 on.
        ((0, 10 * GIB - 1), 8),
        ((12 * GIB, 14 * GIB - 1), 12),
        ((12 * GIB, 14 * GIB - 4097), None),
        ((12 * GIB + 4096, 15 * GIB - 1), 13),
    ],
)
def test_area_for_plugged_memory_goes_to_the_first_range_that_holds_it(
    free: tuple[int, int], start: int | None
) -> None:
    usable = _listed((0, 9 * GIB - 1), free) if free[0] else _listed(free)
    guest = vi.Guest("own-x86", "6G", maxmem="8G", pci64=0)
    if start is None:
        with pytest.raises(vi.PlanError, match="memory plugged in later at 0x200000000-"):
            vi.plan(guest, usable, "split")
        return
    (area,) = [i for i in vi.plan(guest, usable, "split").items if i.kind.value == "room"]
    assert (area.place, area.required) == (AddrRange.from_size(start * GIB, 2 * GIB), True)
    assert (area.start_cause is None) is (start == 8)


@pytest.mark.parametrize(
    ("last", "align", "place", "most"),
    [
        (20, 1, (12, 16), None),
        (16, 1, (12, 16), None),
        (15, 1, None, "3GiB"),
        (20, 8, (16, 20), None),
        (19, 8, None, "3GiB"),
    ],
)
def test_room_is_kept_right_above_everything(
    last: int, align: int, place: tuple[int, int] | None, most: str | None
) -> None:
    guest = vi.Guest("own-x86", "10G", pci64=0, rooms=[vi.Room("r", "4G", f"{align}G")])
    usable = _listed((0, last * GIB - 1))
    if place is not None:
        (room,) = [i for i in vi.plan(guest, usable, "split").items if i.kind.value == "room"]
        assert (room.place.start // GIB, (room.place.last + 1) // GIB) == place
        assert room.start_cause is None
        return
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(guest, usable, "split")
    assert caught.value.fixes[0] == f"--room r={most} fits"


# -- limits of the host and of the machine, and lists that end -------------------------------------


@pytest.mark.parametrize(
    ("cpu", "said"),
    [(None, "with OVMF, tell"), (40, "with OVMF, tell"), (39, "with OVMF, tell"), (38, "39 ")],
)
def test_window_that_ovmf_is_told_is_within_the_hosts_cpu(cpu: int | None, said: str) -> None:
    """A window of 256 GiB takes 39 address bits."""
    usable = replace(ALL, cpu_bits=cpu)
    how: dict[str, Any] = {"phys_bits": 38, "firmware": "ovmf-2022.11", "ram": "4G"}
    (text,) = _reasons("q35", usable, bars=[vi.Bar("0", "64G")], **how)
    action = text.split("|")[2]
    assert said in action
    assert ("phys-bits=39" in action) is (cpu != 38)


@pytest.mark.parametrize(("bits", "more"), [(38, True), (39, False), (40, False)])
def test_window_that_ovmf_is_told_asks_for_the_bits_that_are_missing(bits: int, more: bool) -> None:
    here = site("q35", ALL, phys_bits=bits, firmware="ovmf-2022.11", ram="4G")
    board = here.board([AddrRange(0, 2 * GIB - 1), AddrRange(4 * GIB, 6 * GIB - 1)])
    action = _larger(here, board, here.wanted.firmware[0], 128 * GIB)
    assert action is not None
    assert "string=262144" in action
    assert ("phys-bits=39" in action) is more


@pytest.mark.parametrize(("ram", "said"), [("478G", True), ("479G", False)])
def test_fewer_bits_are_named_for_bars_only_if_the_guest_starts_with_them(
    ram: str, said: bool
) -> None:
    """Behind 478 GiB the window of QEMU ends at 2^39, all that the host has."""
    bars = [vi.Bar("0", "8G")]
    guest = vi.Guest("q35", ram, phys_bits=46, firmware="ovmf-2022.11", bars=bars)
    notes = [note.text for note in vi.plan(guest, NARROW).notes]
    assert any(text.startswith("to have BAR 0 below 2^39") for text in notes) is said


def _with_holes(count: int) -> vi.Usable:
    """64 GiB with holes of a page from 4 GiB on, 256 MiB apart, each a region of its own."""
    lines = (
        f"{4 * GIB + (n << 28):#018x} {4 * GIB + (n << 28) + 0xFFF:#018x} reserved\n"
        for n in range(count)
    )
    return parse_text("".join(lines), "made")[0].usable(aperture=36, granule=4096)


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_refusal_names_the_first_holes_and_counts_on_no_more(count: int) -> None:
    usable = _with_holes(count)
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(vi.Guest("own-x86", "100G"), usable, "split")
    assert caught.value.message.count("reserved region") == min(count, 3)
    assert len(caught.value.reasons) == min(count, 3) + 1
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(vi.Guest("own-x86", "8G"), usable, "refuse")
    assert len(caught.value.reasons) == count
    assert (caught.value.detail or "").count("high RAM at") == min(count - 1, 3)


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_bar_that_fits_nowhere_names_three_causes(count: int) -> None:
    """Its only place is from 16 to 32 GiB, in a window from 4 GiB on."""
    lines = (
        f"{16 * GIB + (n << 28):#018x} {16 * GIB + (n << 28) + 0xFFF:#018x} reserved\n"
        for n in range(count)
    )
    usable = parse_text("".join(lines), "made")[0].usable(aperture=40, granule=4096)
    bar = vi.Bar("b", "16G", required=True)
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(vi.Guest("own-x86", "1G", pci64="28G", bars=[bar]), usable, "refuse")
    assert caught.value.message.count("reserved region") == min(count, 3)
    assert len(caught.value.reasons) == count


@pytest.mark.parametrize("count", [1, 3, 4])
def test_bar_that_firmware_puts_out_of_reach_names_three_causes(count: int) -> None:
    here = site("q35", ALL, firmware="ovmf")
    bar, span = WantedBar("b", GIB, GIB, 64, True), AddrRange(0, 9)
    causes = [Cause(CauseKind.REGION, AddrRange(n, n), f"cause {n}") for n in range(count)]
    misfit = BarUnreached(bar, here.wanted.firmware[-1], span, causes)
    message, reasons = describe(misfit, here)
    named = "; ".join(f"cause {n}" for n in range(min(count, 3)))
    assert message.endswith(f" puts BAR b (1 GiB) at 0x0-0x9, where peers do not reach it: {named}")
    assert [reason.cause for reason in reasons] == causes
    inside = BarUnreached(bar, here.wanted.firmware[-1], span, causes, "inside RAM")
    message, more = describe(inside, here)
    assert message.endswith(" puts BAR b (1 GiB) at 0x0-0x9, inside RAM")
    assert all(reason.fits == 0 for reason in (*reasons, *more))


def test_device_behind_a_port_takes_room_for_a_second_bar() -> None:
    bar, second = WantedBar("b", 3 * GIB, 4 * GIB, 64, True), BarNeed(32 * MIB, 32 * MIB)
    alone = BarNeed(3 * GIB, 4 * GIB)
    assert _device(bar, port=False) == alone
    assert _device(bar, port=True) == BarNeed(3 * GIB + 32 * MIB, 4 * GIB, (alone, second))
