# SPDX-License-Identifier: Apache-2.0
"""What a layout costs to map: map calls, locked memory, page-table memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from vmm_iova import remedies as say
from vmm_iova.diagnosis.causes import SLOT_MAX
from vmm_iova.errors import MisalignedError, PlanError, RequestError
from vmm_iova.planning.layout import ItemKind, Layout, OnHole
from vmm_iova.planning.page_tables import ALL_LEAVES, LEAVES, PageTables, page_tables
from vmm_iova.planning.plan import plan
from vmm_iova.ranges import AddrRange, check_granule
from vmm_iova.record import record, replace
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.guest import Guest
    from vmm_iova.planning.plan import Prefer

DEFAULT_ENTRIES = 65535
"""Default of vfio_iommu_type1.dma_entry_limit (drivers/vfio/vfio_iommu_type1.c, Linux 5.1)."""


@record
class LargePages:
    """Host pages that back RAM.

    Attributes:
        page_size: bytes.
        count: pages.
    """

    page_size: int
    count: int

    @property
    def setting(self) -> str:
        """How to have them (Documentation/admin-guide/mm/hugetlbpage.rst)."""
        name = f"hugepages-{self.page_size >> 10}kB"
        short = f"{self.page_size >> 30}G" if self.page_size >> 30 else f"{self.page_size >> 20}M"
        return say.HUGEPAGES_SET.format(short=short, count=self.count, name=name)


@record
class Budget:
    """What mapping a layout takes.

    Attributes:
        entries: map calls in one container: one for each piece of RAM and each BAR that peers
            reach, or one for each chunk of it.
        entry_limit: `dma_entry_limit`; the kernel's default where the host does not state it.
        entry_limit_known: True if the host states it. iommufd has no such limit.
        bars: BARs that peers reach, of these `entries`, and how many of them must be reached.
        bar_bytes: their bytes; not locked, as no memory of the process is behind them.
        locked_bytes: memory that is counted against RLIMIT_MEMLOCK without CAP_IPC_LOCK: all RAM,
            once for each container.
        memlock: the host's soft limit in bytes, -1 for unlimited, None when not known.
        best: tables of one container with the largest pages that the host takes; 4 KiB, 2 MiB and
            1 GiB where the host does not say. Needs host memory that is contiguous and congruent.
        worst: the same with pages no larger than those that back RAM, 4 KiB where none are stated.
        page_sizes_known: True if the host states its page sizes.
        containers: 1, or the number of devices when the guest has an IOMMU of its own.
        chunk: bytes that one map call takes at most, or None for whole pieces.
        by_chunk: (chunk, entries) for other chunks: 1 GiB, 2 MiB, and 4 KiB, as VMMs map
            confidential guests.
        large_pages: host pages that back RAM, by size.
        slots: KVM memory slots for RAM: one for each piece, or more where it is too large for one.
        slot_limit: KVM_USER_MEM_SLOTS of x86 (include/linux/kvm_host.h, Linux 5.12).
        settings: what to set so that it is enough; empty when it is enough as it is.
    """

    entries: int
    entry_limit: int
    entry_limit_known: bool
    locked_bytes: int
    memlock: int | None
    best: PageTables
    worst: PageTables
    page_sizes_known: bool
    containers: int = 1
    chunk: int | None = None
    by_chunk: tuple[tuple[int, int], ...] = ()
    large_pages: tuple[LargePages, ...] = ()
    slots: int = 0
    slot_limit: int = 32764
    settings: tuple[str, ...] = ()
    bars: tuple[int, int] = (0, 0)
    bar_bytes: int = 0

    @property
    def fits(self) -> bool:
        """True if no limit that is known, or that a kernel has by default, is in the way."""
        memlock = self.memlock is None or self.memlock < 0 or self.locked_bytes <= self.memlock
        return self.entries <= self.entry_limit and memlock and self.slots <= self.slot_limit


def budget(
    layout: Layout,
    *,
    chunk: str | int | None = None,
    entry_limit: int | None = None,
    containers: int | None = None,
) -> Budget:
    """Count what mapping a layout takes, before anything is mapped.

    Args:
        layout: the layout.
        chunk: how much the VMM maps with one call: text or bytes, a power of two; default whole
            pieces.
        entry_limit: `dma_entry_limit` that the host will have; default what the host states.
        containers: how many containers map all RAM; default the number of devices where the guest
            has an IOMMU of its own, else one.

    Raises:
        RequestError: `chunk` is no power of two of at least 4 KiB, or a number is not positive.

    Complexity: O(pieces).
    Synchronization: none required.
    """
    spans = [item.iova for item in layout.ram if item.iova is not None]
    reached = [i for i in layout.items if i.kind is ItemKind.BAR and i.iova is not None]
    bars = [item.iova for item in reached if item.iova is not None]
    usable = layout.usable
    limit = usable.limits.dma_entries if entry_limit is None else entry_limit
    size = None if chunk is None else check_granule(parse_size(chunk, "chunk"), "chunk")
    if size is not None and size < LEAVES[-1]:
        raise RequestError(f"chunk {size:#x} is less than a page", field="chunk", value=chunk)
    if containers is None:
        containers = layout.devices if layout.viommu else 1
    for name, value in (("containers", containers), ("entry_limit", entry_limit)):
        if value is not None and value < 1:
            raise RequestError(f"{name} {value} is not positive", field=name, value=value)
    every = [*spans, *bars]
    cost = Budget(
        entries=len(every) if size is None else _chunks(every, size),
        entry_limit=DEFAULT_ENTRIES if limit is None else limit,
        entry_limit_known=limit is not None,
        locked_bytes=sum(span.size for span in spans) * containers,
        memlock=usable.limits.memlock,
        best=page_tables(spans, usable.page_sizes or ALL_LEAVES),
        worst=_backed(layout, usable.page_sizes or ALL_LEAVES),
        page_sizes_known=usable.page_sizes is not None,
        containers=containers,
        chunk=size,
        by_chunk=tuple((leaf, _chunks(every, leaf)) for leaf in LEAVES),
        large_pages=tuple(_large_pages(layout)),
        slots=sum(-(-span.size // SLOT_MAX) for span in spans),
        bars=(len(bars), sum(item.required for item in reached)),
        bar_bytes=sum(span.size for span in bars),
    )
    return replace(cost, settings=tuple(_settings(cost)))


def _backed(layout: Layout, page_sizes: int) -> PageTables:
    """Tables with pages no larger than those that back each node's RAM."""
    pages = {name: size or LEAVES[-1] for name, _, size in layout.page_sizes}
    ram = [(item.iova, pages.get(item.node, LEAVES[-1])) for item in layout.ram]
    return page_tables(
        [span for span, _ in ram if span is not None], page_sizes, [size for _, size in ram]
    )


def _chunks(spans: Iterable[AddrRange], size: int) -> int:
    """Map calls when no call crosses a multiple of the chunk."""
    return sum((span.last // size) - (span.start // size) + 1 for span in spans)


def _large_pages(layout: Layout) -> Iterable[LargePages]:
    counts: dict[int, int] = {}
    for _, size, pages in layout.page_sizes:
        if pages is not None and pages > LEAVES[-1]:
            counts[pages] = counts.get(pages, 0) + size // pages
    return (LargePages(pages, count) for pages, count in sorted(counts.items(), reverse=True))


def _settings(cost: Budget) -> Iterable[str]:
    if cost.entries > cost.entry_limit:
        yield say.ENTRIES_NUMBER.format(entries=cost.entries)
    if cost.memlock is not None and 0 <= cost.memlock < cost.locked_bytes:
        locked = cost.locked_bytes
        yield say.LOCK_NUMBER.format(kib=-(-locked // 1024), size=locked)
    if cost.slots > cost.slot_limit:
        yield say.FEWER_PIECES.format(slots=cost.slot_limit)
    for pages in cost.large_pages:
        yield pages.setting


def compare_costs(
    guest: Guest, usable: Usable, *, prefer: Prefer = "lowest"
) -> tuple[tuple[str, str, Budget | None], ...]:
    """Count what each policy costs with each page size.

    Returns:
        (policy, alignment, cost) for `refuse`, `split` and `move` with the granule, 2 MiB and
        1 GiB; the cost is None where the plan is refused.

    Complexity: nine plans.
    """
    costs: list[tuple[str, str, Budget | None]] = []
    for policy in get_args(OnHole):
        for align in (None, "2MiB", "1GiB"):
            try:
                layout = plan(replace(guest, align=align), usable, policy, prefer=prefer)
                cost = budget(layout, chunk=align)
            except (PlanError, MisalignedError):
                cost = None
            costs.append((policy, align or "granule", cost))
    return tuple(costs)
