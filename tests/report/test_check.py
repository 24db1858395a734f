# SPDX-License-Identifier: Apache-2.0
"""What people read of a check: the verdict, what to do, why, and what it rests on."""

from __future__ import annotations

from dataclasses import replace

import vmm_iova as vi
from tests.kit.hosts import CAP_39, group, intel, msi, region
from vmm_iova.report.check import show_verdict

HOLE = region(0x8000_0000, 0x8000_FFFF)
USABLE = intel(group("1", msi(), HOLE), cap=CAP_39).usable()


def shown(start: int, size: int, *, verbose: bool = False) -> list[str]:
    verdict = vi.check(USABLE, vi.AddrRange.from_size(start, size))
    return show_verdict(verdict, USABLE, verbose=verbose).splitlines()


def test_range_that_may_be_mapped_says_so_and_what_it_rests_on() -> None:
    verdict, *source = shown(0x1000, 0x1000)
    assert verdict == "YES: 0x1000-0x1fff (4 KiB) may be mapped in one call."
    assert source[0].startswith("Based on IOMMU dmar0 translates")


def test_range_with_a_name_has_it_in_front() -> None:
    verdict = vi.check(USABLE, vi.AddrRange(0x1000, 0x1FFF))
    assert show_verdict(verdict, USABLE, "queue 0").startswith("YES: queue 0: 0x1000-0x1fff ")


def test_range_in_a_hole_says_what_is_in_the_way_then_what_to_do_then_why() -> None:
    first, action, *more = shown(0x7FFF_F000, 0x2000)
    assert first.startswith("NO: 0x7ffff000-0x80000fff (8 KiB) overlaps ")
    assert "0x80000000-0x8000ffff" in first
    assert action.startswith("Do:     ")
    assert any("4 KiB fit at this base, up to 0x7fffffff" in line for line in more)
    assert not any("5.4" in line for line in (first, action, *more))


def test_history_of_the_kernel_comes_only_when_asked() -> None:
    lines = shown(0x7FFF_F000, 0x2000, verbose=True)
    assert any("EINVAL since Linux 5.4; older kernels map it" in line for line in lines)


def test_range_beyond_the_aperture_says_its_last_address_and_the_bits() -> None:
    lines = shown(1 << 39, 0x1000, verbose=True)
    assert "lies beyond what the IOMMU translates" in lines[0]
    text = " ".join(line.strip() for line in lines)
    assert "it needs 40 address bits; the last usable address is 0x7fffffffff" in text
    assert "EINVAL since Linux 5.4, or EFAULT where the kernel's list is too wide" in text


def test_range_that_is_not_whole_pages_is_refused_whatever_is_there() -> None:
    lines = shown(0x1800, 0x1000, verbose=True)
    assert "is not whole granules" in lines[0]
    assert any("every kernel refuses it with EINVAL" in line for line in lines)


def test_range_that_may_be_mapped_shows_its_warning() -> None:
    relaxable = region(0x9000_0000, 0x9000_FFFF, "direct-relaxable")
    usable = intel(group("1", msi(), relaxable)).usable()
    verdict = vi.check(usable, vi.AddrRange.from_size(0x9000_0000, 0x1000))
    text = show_verdict(verdict, usable)
    assert text.startswith("YES: ")
    assert "Why:" in text
    assert "direct-relaxable" in text


def test_last_page_of_all_is_what_old_kernels_lose() -> None:
    last = vi.AddrRange(2**64 - 4096, 2**64 - 1)
    verdict = replace(
        vi.check(USABLE, vi.AddrRange.from_size(0x8000_0000, 0x1000)),
        causes=(vi.Cause(vi.CauseKind.TOP_PAGE, last, "the last page"),),
    )
    assert "Linux before 6.18 takes it, and may lose it" in show_verdict(
        verdict, USABLE, verbose=True
    )
