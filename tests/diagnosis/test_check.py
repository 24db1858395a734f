# SPDX-License-Identifier: Apache-2.0
"""What forbids a range, what would fit, and lists of failed maps."""

from __future__ import annotations

import pytest

import vmm_iova as vi
from tests.kit.data import FAILED_MAPS
from vmm_iova.host.host import Host
from vmm_iova.host.text import parse_text
from vmm_iova.ranges import AddrRange
from vmm_iova.readers.failed_maps import parse_failed_maps
from vmm_iova.units import parse_range


@pytest.fixture
def amd() -> vi.Usable:
    return vi.load_host("amd-epyc-1tb").usable()


@pytest.fixture
def laptop() -> vi.Usable:
    return vi.load_host("intel-dmar-ivy-bridge-3770").usable()


def test_range_in_the_hole_names_region_and_next_place(amd: vi.Usable) -> None:
    verdict = vi.check(amd, parse_range("0xfd00000000+4G"))
    assert (verdict.ok, verdict.kind, verdict.room) == (False, "conflict", 0)
    assert "HyperTransport" in verdict.causes[0].text
    assert verdict.next_fit == 1 << 40


def test_bar_over_the_hole_keeps_its_alignment_in_the_fix(amd: vi.Usable) -> None:
    # cloud-hypervisor#8896: a 128 GiB BAR at 896 GiB
    verdict = vi.check(amd, parse_range("0xe000000000+128G"))
    assert verdict.room == 116 << 30
    assert verdict.next_fit is not None
    assert verdict.next_fit % (128 << 30) == 0


def test_range_across_two_holes_names_both_in_order(amd: vi.Usable) -> None:
    verdict = vi.check(amd, AddrRange(0xFED0_0000, 0xFD_0000_0FFF))
    assert [cause.range.start for cause in verdict.causes] == [0xFEE0_0000, 0xFD_0000_0000]
    assert verdict.pieces == (
        AddrRange(0xFED0_0000, 0xFEDF_FFFF),
        AddrRange(0xFEF0_0000, 0xFC_FFFF_FFFF),
    )
    assert any("map around it" in fix for fix in verdict.fixes)


def test_range_beyond_the_width_names_limit_bits_and_option(laptop: vi.Usable) -> None:
    verdict = vi.check(laptop, parse_range("0x382000000000+256M"))
    assert verdict.kind == "outside_aperture"
    assert verdict.limit == (1 << 39) - 1
    assert verdict.bits_needed == 46
    assert "host-phys-bits-limit=39" in verdict.fixes[0]
    assert "<maxphysaddr mode='passthrough' limit='39'/>" in verdict.fixes[0]


def test_range_that_crosses_the_width_keeps_the_room_below(laptop: vi.Usable) -> None:
    verdict = vi.check(laptop, AddrRange(0x7F_FFFF_F000, 0x80_0000_0FFF))
    assert (verdict.kind, verdict.room) == ("outside_aperture", 0x1000)


def test_range_that_fits_is_ok_without_fixes(laptop: vi.Usable) -> None:
    verdict = vi.check(laptop, parse_range("0x8_0000_0000+4K"))
    assert (verdict.ok, verdict.causes, verdict.fixes) == (True, (), ())


def test_range_across_a_seam_needs_two_mappings() -> None:
    text = "0x0 - 0xfffff\n0x100000 - 0x7fffffffff\n"
    usable = parse_text(text, "list", "iova_ranges")[0].usable(granule=4096)
    verdict = vi.check(usable, AddrRange(0xF0000, 0x10FFFF))
    assert verdict.kind == "straddle"
    assert "0xf0000-0xfffff" in verdict.fixes[0]


def test_ragged_range_on_a_known_granule_is_refused() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable(granule=4096)
    verdict = vi.check(usable, AddrRange(0x1000, 0x17FF))
    assert verdict.kind == "granule"
    assert "0x1000" in verdict.fixes[0]


def test_misaligned_base_beside_a_hole_has_no_room_and_both_causes(amd: vi.Usable) -> None:
    verdict = vi.check(amd, AddrRange(0xFC_FFFF_F800, 0xFD_0000_07FF))
    assert (verdict.kind, verdict.room) == ("granule", 0)
    assert "start 0xfcfffff800 is not a multiple of 0x1000" in verdict.causes[0].text
    assert "HyperTransport" in verdict.causes[1].text


def test_misaligned_range_is_told_the_whole_pages_that_hold_it(amd: vi.Usable) -> None:
    verdict = vi.check(amd, AddrRange.from_size(0x1_0000_0800, 0x900))
    assert "start 0x100000800 and size 0x900 are not multiples of 0x1000" in verdict.causes[0].text
    assert verdict.fixes == (
        "make start and size multiples of 0x1000: 0x100000000-0x100001fff holds all of it",
    )


def test_room_at_an_aligned_base_is_whole_granules() -> None:
    usable = vi.load_host("arm-nvidia-0015-01-00-0").usable(aperture=48, granule=65536)
    verdict = vi.check(usable, AddrRange.from_size(0x8000, 1 << 20))
    assert (verdict.kind, verdict.room) == ("granule", 0)


def test_large_bar_over_a_hole_is_told_the_bits_that_keep_it_below(amd: vi.Usable) -> None:
    bar = parse_range("0xfd00000000+32M")
    (fix,) = (text for text in vi.check(amd, bar, part="bar").fixes if "address bits" in text)
    assert "limit the guest to 39" in fix
    assert not any("address bits" in text for text in vi.check(amd, bar, part="ram").fixes)


def test_bar_that_the_window_of_fewer_bits_does_not_hold_is_not_told_of_them(
    amd: vi.Usable,
) -> None:
    bar = parse_range("0xe000000000+128G")  # with 39 bits firmware has 64 GiB for all BARs
    assert not any("address bits" in text for text in vi.check(amd, bar, part="bar").fixes)


def test_ram_beyond_the_width_is_not_told_of_fewer_bits(laptop: vi.Usable) -> None:
    verdict = vi.check(laptop, AddrRange(1 << 32, (1 << 40) - 1), part="ram")
    assert any("make it smaller: 508 GiB" in text for text in verdict.fixes)
    assert not any("physical address bits" in text for text in verdict.fixes)


@pytest.mark.parametrize(
    ("arch", "bits", "named"),
    [("aarch64", 40, "Cloud Hypervisor"), ("aarch64", 32, None), ("s390x", 42, None)],
)
def test_advice_on_bits_is_of_the_host_architecture(
    arch: str, bits: int, named: str | None
) -> None:
    usable = Host("other", arch=arch, page_size=4096).usable(aperture=bits)
    fixes = vi.check(usable, AddrRange.from_size(1 << 44, 4096)).fixes
    told = [text for text in fixes if "physical address bits" in text]
    assert not any("QEMU" in text for text in told)
    assert (named is not None) == any(str(named) in text for text in told)


def test_program_limits_the_options_that_are_named(laptop: vi.Usable) -> None:
    beyond = parse_range("0x382000000000+256M")
    assert "max_phys_bits=39" in vi.check(laptop, beyond, program="Cloud Hypervisor").fixes[0]
    assert "host-phys-bits" not in vi.check(laptop, beyond, program="Cloud Hypervisor").fixes[0]
    assert "move it to" in vi.check(laptop, beyond, program="kvmtool").fixes[0]


def test_ragged_range_on_a_likely_granule_is_a_warning() -> None:
    usable = vi.load_host("arm-multisocket-2021").usable(aperture=48)
    verdict = vi.check(usable, AddrRange(0x4000_0000, 0x4000_0FFF))
    assert verdict.ok
    assert "0x10000" in verdict.warnings[0]


def test_nothing_fits_anywhere_has_no_next_place() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable(aperture="0x0-0xffff", granule=4096)
    assert vi.check(usable, parse_range("0x0+1M")).next_fit is None


def test_every_line_of_the_failed_maps_is_read() -> None:
    found = parse_failed_maps(FAILED_MAPS.read_text("utf-8"), "failed")
    assert [item.range.start for item in found] == [
        0x88_0000_0000,
        0x3820_0000_0000,
        0x3800_1000_0000,
        0x4000_0000_0000,
        0x1_0000_0000,
        0xE0_0000_0000,
        0xFF_FF00_8000,
    ]
    assert found[0].said.startswith("kernel-log")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("somebody 0x1000\n", "f:1: 'somebody 0x1000'"),
        ("somebody 0x1000 0x0 EINVAL\n", "out of the range"),
        ("somebody here 0x1000 EINVAL\n", "iova 'here'"),
        ("# nothing\n", "lists no failed map"),
        ("a 0xfffffffffffff000 0x2000 EINVAL\n", "beyond 2\\^64-1"),
    ],
)
def test_damaged_line_of_failed_maps_is_an_error(text: str, said: str) -> None:
    with pytest.raises(vi.errors.HostDataError, match=said):
        parse_failed_maps(text, "f")
