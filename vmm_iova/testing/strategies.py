# SPDX-License-Identifier: Apache-2.0
"""Strategies of Hypothesis: hosts as they are in the world, and guests that somebody may want.

Needs the extra `vmm-iova[testing]`.
"""

from __future__ import annotations

from hypothesis import strategies as st

from vmm_iova.host.facts import Device, Group, RegionKind, ReservedRegion, Source, StatedWidth
from vmm_iova.host.host import Host
from vmm_iova.machines.catalogue import machine_names
from vmm_iova.planning.guest import Bar, Guest
from vmm_iova.ranges import BASE_PAGE, GIB, MIB, AddrRange

_SOURCE = Source("a strategy")
_KINDS = (RegionKind.RESERVED, RegionKind.MSI, RegionKind.DIRECT_RELAXABLE)


@st.composite
def reserved_regions(draw: st.DrawFn, bits: int, group: str) -> tuple[ReservedRegion, ...]:
    """Draw the reserved regions of a group, ascending and apart, below 2^`bits`."""
    pages = (1 << bits) // BASE_PAGE
    edges = draw(st.lists(st.integers(1, pages - 1), max_size=8, unique=True).map(sorted))
    pairs = list(zip(edges[::2], edges[1::2], strict=False))
    return tuple(
        ReservedRegion(
            AddrRange(start * BASE_PAGE, stop * BASE_PAGE - 1), kind, kind.value, _SOURCE, group
        )
        for start, stop in pairs
        for kind in [draw(st.sampled_from(_KINDS))]
    )


@st.composite
def hosts(draw: st.DrawFn, max_groups: int = 3) -> Host:
    """Draw a host with a stated width, and groups of one device each.

    Args:
        draw: of Hypothesis.
        max_groups: at most so many groups, from 1.
    """
    bits = draw(st.integers(39, 57))
    count = draw(st.integers(1, max_groups))
    groups, devices = [], []
    for number in range(count):
        name = f"0000:{number + 1:02x}:00.0"
        regions = draw(reserved_regions(bits, str(number)))
        groups.append(Group(str(number), (name,), regions))
        devices.append(Device(name, str(number), driver="vfio-pci"))
    return Host(
        "drawn",
        page_size=BASE_PAGE,
        groups=tuple(groups),
        devices=tuple(devices),
        widths=(StatedWidth(bits, _SOURCE),),
        sysfs=True,
    )


def bars() -> st.SearchStrategy[Bar]:
    """Draw a 64-bit BAR: a power of two from a page to 16 GiB."""
    return st.builds(lambda power: Bar(f"bar of 2^{power}", 1 << power), st.integers(12, 34))


@st.composite
def guests(draw: st.DrawFn, max_ram: int = 1 << 42) -> Guest:
    """Draw a guest of any machine in the catalogue.

    Args:
        draw: of Hypothesis.
        max_ram: bytes of RAM at most, from 1 GiB.
    """
    ram = draw(st.integers(1, max_ram // GIB)) * GIB + draw(st.integers(0, 511)) * 2 * MIB
    machine = draw(st.sampled_from(machine_names()))
    # On s390 devices do not see guest addresses, so that no BAR has a place there.
    most = 0 if machine == "s390x" else 3
    return Guest(machine, min(ram, max_ram), bars=draw(st.lists(bars(), max_size=most)))
