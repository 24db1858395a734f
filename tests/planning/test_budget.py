# SPDX-License-Identifier: Apache-2.0
"""What mapping costs, counted against a tree built page by page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm_iova as vi
from vmm_iova.planning.page_tables import page_tables
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
    layout = vi.plan(vi.Guest("own-x86", "1.5TiB"), vi.load_host("amd-epyc-1tb").usable())
    cost = vi.budget(layout)
    assert (cost.entries, cost.entry_limit, cost.entry_limit_known) == (3, 65535, False)
    assert cost.locked_bytes == 3 << 39
    assert dict(cost.best.leaves)[1 << 30] == 1536


def test_intel_registers_say_which_pages_there_are() -> None:
    # cap c9008020660262 has no bit of SLLPS: 4 KiB pages alone.
    layout = vi.plan(vi.Guest("own-x86", "4G"), vi.load_host("intel-dmar-i7-2600").usable())
    cost = vi.budget(layout)
    assert cost.page_sizes_known
    assert cost.best == cost.worst


def test_chunks_are_counted_at_their_multiples() -> None:
    layout = vi.plan(vi.Guest("own-x86", "4G"), vi.load_host("amd-epyc-1tb").usable())
    cost = vi.budget(layout, chunk="1GiB")
    assert (cost.entries, cost.chunk) == (4, 1 << 30)
    assert dict(cost.by_chunk) == {1 << 30: 4, 1 << 21: 2048, 1 << 12: 1 << 20}
    assert cost.fits


def test_bar_that_peers_reach_is_a_map_call_but_no_locked_memory() -> None:
    bars = [vi.Bar("gpu", "16G", required=True)]
    layout = vi.plan(vi.Guest("own-x86", "4G", bars=bars), vi.load_host("amd-epyc-1tb").usable())
    cost = vi.budget(layout)
    assert (cost.entries, cost.slots, cost.locked_bytes) == (3, 2, 4 << 30)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"chunk": "3M"}, "chunk 0x300000"),
        ({"chunk": 1024}, "less than a page"),
        ({"containers": 0}, "containers 0 is not positive"),
        ({"entry_limit": -1}, "entry_limit -1 is not positive"),
    ],
)
def test_nonsense_in_a_budget_is_refused(given: dict[str, object], said: str) -> None:
    layout = vi.plan(vi.Guest("own-x86", "4G"), vi.load_host("amd-epyc-1tb").usable())
    with pytest.raises(vi.RequestError, match=said):
        vi.budget(layout, **given)  # type: ignore[arg-type]


def test_limit_of_the_process_gives_the_exact_setting() -> None:
    from dataclasses import replace

    from vmm_iova.host.facts import Limits

    usable = vi.load_host("amd-epyc-1tb").usable()
    tight = replace(usable, limits=Limits(dma_entries=2, memlock=1 << 30))
    layout = vi.plan(vi.Guest("own-x86", "4G", viommu=True, devices=3, nodes=["2G", "2G"]), tight)
    cost = vi.budget(layout, chunk="1GiB")
    assert not cost.fits
    assert cost.settings[0].startswith("dma_entry_limit=4 (")
    assert cost.settings[1].startswith(f"ulimit -l {3 * 4 << 20} (KiB)")


def test_policies_and_page_sizes_are_compared() -> None:
    guest = vi.Guest("own-x86", "1.5TiB")
    rows = vi.compare_costs(guest, vi.load_host("amd-epyc-1tb").usable())
    found = {(policy, align): cost and cost.slots for policy, align, cost in rows}
    assert found[("split", "granule")] == 3
    assert found[("move", "1GiB")] == 2
    assert found[("refuse", "granule")] is None
    assert len(rows) == 12


def test_pages_that_back_ram_bound_the_tables() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    cost = vi.budget(vi.plan(vi.Guest("own-x86", "64G", page_size="2MiB"), usable))
    # 64 tables of 2 MiB pages, one for each GiB, and the two above them.
    assert cost.worst.table_bytes == 66 * 4096
    assert dict(cost.worst.leaves) == {1 << 30: 0, 1 << 21: 32768, 1 << 12: 0}
    nodes = [vi.Node("30G", "1GiB"), vi.Node("34G")]
    cost = vi.budget(vi.plan(vi.Guest("own-x86", "64G", nodes=nodes), usable))
    assert dict(cost.worst.leaves) == {1 << 30: 30, 1 << 21: 0, 1 << 12: 34 << 18}


def test_ram_larger_than_a_memory_slot_takes_several() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    layout = vi.plan(vi.Guest("own-x86", "12TiB"), usable, "move")
    assert len(layout.ram) == 2
    assert vi.budget(layout).slots == 3
