# SPDX-License-Identifier: Apache-2.0
"""What mapping costs, counted against a tree built page by page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm_iova as vi
from vmm_iova.guest.budget import page_tables
from vmm_iova.ranges import AddrRange

ALL = 1 << 12 | 1 << 21 | 1 << 30


def _model(spans: list[AddrRange], sizes: int) -> tuple[dict[int, int], int]:
    """Insert every leaf by itself, as a page-table walk does; count leaves and tables."""
    leaves: dict[int, int] = {size: 0 for size in (1 << 30, 1 << 21, 1 << 12) if sizes & size}
    tables: set[tuple[int, int]] = set()
    for span in spans:
        at = span.start
        while at <= span.last:
            fits = (s for s in leaves if at % s == 0 and at + s - 1 <= span.last)
            size = max(fits)
            leaves[size] += 1
            for shift in range(size.bit_length() - 1 + 9, 49, 9):
                tables.add((shift, at >> shift))
            at += size
    return leaves, len(tables) * 4096


@pytest.mark.parametrize("sizes", [1 << 12, 1 << 12 | 1 << 21, ALL])
@given(
    start=st.integers(0, 1 << 20),
    pages=st.integers(1, 3000),
    gap=st.integers(0, 1200),
    more=st.integers(1, 1500),
)
def test_tables_agree_with_a_walk_of_every_page(
    sizes: int, start: int, pages: int, gap: int, more: int
) -> None:
    first = AddrRange.from_size(start * 4096, pages * 4096)
    second = AddrRange.from_size(first.last + 1 + (gap + 1) * 4096, more * 4096)
    found = page_tables([first, second], sizes)
    leaves, table_bytes = _model([first, second], sizes)
    assert dict(found.leaves) == leaves
    assert found.table_bytes == table_bytes


def test_four_levels_are_counted_for_a_small_guest() -> None:
    assert page_tables([AddrRange(0, (1 << 30) - 1)], ALL).table_bytes == 2 * 4096


def test_fifth_level_is_counted_above_48_bits() -> None:
    below = page_tables([AddrRange.from_size(1 << 47, 1 << 30)], ALL).table_bytes
    above = page_tables([AddrRange.from_size(1 << 48, 1 << 30)], ALL).table_bytes
    assert above == below + 4096


def test_amd_guest_of_1_5_tib_costs_three_calls() -> None:
    layout = vi.plan(vi.Guest("q35", "1.5TiB"), vi.load_host("amd-epyc-1tb").usable())
    cost = vi.budget(layout)
    assert (cost.entries, cost.entry_limit, cost.entry_limit_known) == (3, 65535, False)
    assert cost.locked_bytes == 3 << 39
    assert dict(cost.best.leaves)[1 << 30] == 1536


def test_intel_registers_say_which_pages_there_are() -> None:
    # cap c9008020660262 has no bit of SLLPS: 4 KiB pages alone.
    layout = vi.plan(vi.Guest("q35", "4G"), vi.load_host("intel-dmar-i7-2600").usable())
    cost = vi.budget(layout)
    assert cost.page_sizes_known
    assert cost.best == cost.worst
