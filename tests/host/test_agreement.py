# SPDX-License-Identifier: Apache-2.0
"""Several sources about one aperture: what is said when they agree, and when they do not."""

from __future__ import annotations

import pytest

import vmm_iova as vi
from tests.kit.hosts import group, kernel_list, region
from vmm_iova.host.agreement import open_gap
from vmm_iova.host.facts import DmaWindow, Source
from vmm_iova.host.host import Host
from vmm_iova.ranges import AddrRange

WINDOW = AddrRange(0x1_0000_0000, 0x8_FFFF_FFFF)


def s390(start: int, *lists: vi.KernelRanges, **fields: object) -> Host:
    window = DmaWindow("0001:00:00.0", AddrRange(start, WINDOW.last), Source("zpci"))
    return Host("z", arch="s390x", windows=(window,), kernel_ranges=lists, **fields)  # type: ignore[arg-type]


def notes_of(host: Host) -> str:
    return " ".join(note.text for note in host.usable().notes)


def test_sources_that_agree_are_counted() -> None:
    host = s390(WINDOW.start, kernel_list((WINDOW.start, WINDOW.last)))
    assert "2 sources agree on 0x100000000-0x8ffffffff" in notes_of(host)


def test_window_that_disagrees_with_the_list_is_named_with_the_winner() -> None:
    host = s390(0, kernel_list((WINDOW.start, WINDOW.last)))
    assert "two sources disagree" in notes_of(host)
    assert "the first of them wins" in notes_of(host)
    assert list(host.usable().ranges) == [WINDOW]


def test_two_lists_that_disagree_are_named() -> None:
    lists = kernel_list((0, 0xFFFF_FFFF)), kernel_list((0, 0x7FFF_FFFF))
    host = Host("x", arch="x86_64", kernel_ranges=lists)
    assert "what both allow counts" in notes_of(host)


def test_one_source_says_nothing_of_agreement() -> None:
    host = Host("x", arch="x86_64", kernel_ranges=(kernel_list((0, 0xFFFF_FFFF)),))
    assert "agree" not in notes_of(host)


def test_gap_between_the_regions_of_s390_is_offered_as_the_aperture() -> None:
    with pytest.raises(vi.errors.EvidenceError) as caught:
        vi.load_host("s390x-32g").usable()
    assert caught.value.settles[0].startswith("--aperture 0x100000000-0x8ffffffff, which its")
    assert list(vi.load_host("s390x-32g").usable(aperture="0x100000000-0x8ffffffff").ranges)


@pytest.mark.parametrize(
    "regions",
    [
        (),
        (region(0x1000, 0x1FFF),),
        (region(0x0, 0xFFF), region(0x2000, 0x2FFF)),  # ends nowhere special
        (region(0x1000, 0x1FFF), region(0x3000, (1 << 42) - 1)),  # does not begin at 0
    ],
)
def test_regions_of_another_shape_leave_no_gap(regions: tuple[vi.ReservedRegion, ...]) -> None:
    assert open_gap(group("1", *regions)) is None
