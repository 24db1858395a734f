# SPDX-License-Identifier: Apache-2.0
"""Snapshots for tests of fleets."""

from __future__ import annotations

from vmm_iova.fleet import SourceText
from vmm_iova.host.facts import Device, Group, KernelRanges, RegionKind, ReservedRegion, Source
from vmm_iova.host.host import Host
from vmm_iova.host.snapshot import dump_snapshot
from vmm_iova.ranges import AddrRange, MappableRanges

GIB = 1 << 30
MSI = (0xFEE0_0000, 0xFEEF_FFFF, "msi")


def snapshot(
    name: str = "h",
    bits: int = 48,
    regions: tuple[tuple[int, int, str], ...] = (MSI,),
    direct: bool = False,
    ranges: list[tuple[int, int]] | None = None,
    arch: str | None = "x86_64",
    cpu_bits: int | None = None,
    granule: int | None = None,
    listed: bool = True,
) -> bytes:
    """A host with a kernel's list and two groups, one of which may have a direct region."""
    found = []
    for group in ("1", "2"):
        of = [
            ReservedRegion(
                AddrRange(start, last), RegionKind(word), word, Source("regions", 1), group
            )
            for start, last, word in regions
        ]
        if direct and group == "2":
            span = AddrRange(0x7B80_0000, 0x7BFF_FFFF)
            of.append(ReservedRegion(span, RegionKind.DIRECT, "direct", Source("rmrr", 2), group))
        found.append(Group(group, (f"0000:0{group}:00.0",), tuple(of)))
    spans = MappableRanges(AddrRange(*pair) for pair in ranges or [(0, (1 << bits) - 1)])
    kernel = KernelRanges(spans, "type1", Source("ranges", 1), granule=granule)
    host = Host(
        name,
        arch=arch,
        page_size=4096,
        groups=tuple(found),
        devices=(
            Device("0000:01:00.0", "1", driver="vfio-pci", pci_class=0x030200),
            Device("0000:02:00.0", "2", driver="xhci_hcd", pci_class=0x0C0330),
        ),
        kernel_ranges=(kernel,) if listed else (),
        sysfs=True,
        cpu_bits=cpu_bits,
    )
    return dump_snapshot(host, "test").encode()


def source(name: str, **of: object) -> SourceText:
    """A snapshot with its name."""
    return SourceText(name, snapshot(name, **of))  # type: ignore[arg-type]
