# SPDX-License-Identifier: Apache-2.0
"""What a kernel log says of PCI windows, BARs, IOMMU groups and identity maps.

Source: drivers/pci/probe.c and setup-bus.c (`root bus resource`, `BAR 1 [mem ...]`, `reg 0x14`),
drivers/iommu/iommu.c (`Adding to iommu group`), drivers/iommu/intel/iommu.c (`Setting identity map
for device`, until Linux 5.5); Xen, drivers/passthrough/vtd/dmar.c (`RMRR region`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.patterns import regex
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.record import record

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable

_MEM = r"\[mem 0x(?P<start>[0-9a-f]{1,16})-0x(?P<last>[0-9a-f]{1,16})(?P<flags>[^\]]{0,40})\]"
_DEV = r"(?P<dev>(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7])"
_ROOT = regex(rf"pci_bus (?P<bus>\S{{1,12}}): (?:root bus resource|resource \d{{1,3}}) {_MEM}")
_BAR = regex(rf"pci {_DEV}: (?:BAR (?P<bar>\d)|reg 0x(?P<reg>[0-9a-f]{{2}})):? {_MEM}")
_GROUP = regex(
    r"(?P<dev>\S{1,64}): Adding to iommu group (?P<group>\d{1,9})|"
    r"(?:[Aa]dding|Adding) device (?P<old>\S{1,64}) to group (?P<number>\d{1,9})"
)
_IDENTITY = regex(
    rf"[Ss]etting identity map for device {_DEV} \[0x(?P<start>[0-9a-f]{{1,16}}) - "
    r"0x(?P<last>[0-9a-f]{1,16})\]"
)
_XEN_RMRR = regex(
    r"RMRR region: base_addr (?P<start>[0-9a-f]{1,16}) end_addr (?P<last>[0-9a-f]{1,16})"
)
_MAIN = "window"


@record
class LogBar:
    """A memory BAR of a device.

    Attributes:
        device: its name.
        index: number of the BAR.
        range: where it was.
        wide: True if it takes 64 bits.
    """

    device: str
    index: int
    range: AddrRange
    wide: bool


@record
class IdentityMap:
    """A range that firmware demands for a device, and the kernel maps 1:1 (an RMRR)."""

    device: str | None
    range: AddrRange


@record
class KernelLog:
    """The facts of a log.

    Attributes:
        windows: memory windows of root buses, (bus, range), physical addresses.
        bars: memory BARs.
        groups: (device, group) as the kernel made them.
        identity: ranges that firmware demands.
    """

    windows: tuple[tuple[str, AddrRange], ...] = ()
    bars: tuple[LogBar, ...] = ()
    groups: tuple[tuple[str, str], ...] = ()
    identity: tuple[IdentityMap, ...] = ()


def read_kernel_log(lines: Iterable[str]) -> KernelLog:
    """Read a log; lines about anything else are passed over.

    Complexity: O(size).
    """
    windows: dict[tuple[str, AddrRange], None] = {}
    bars: dict[LogBar, None] = {}
    groups: dict[str, str] = {}
    identity: dict[IdentityMap, None] = {}
    for raw in lines:
        line = raw[:400]
        if (match := _ROOT.search(line)) is not None:
            span = _span(match)
            if span is not None and _MAIN in match["flags"]:
                windows[match["bus"], span] = None
        elif (match := _BAR.search(line)) is not None:
            span = _span(match)
            index = int(match["bar"]) if match["bar"] else (int(match["reg"], 16) - 0x10) // 4
            if span is not None and 0 <= index < 6:
                bars[LogBar(_name(match["dev"]), index, span, "64bit" in match["flags"])] = None
        elif (match := _GROUP.search(line)) is not None:
            groups[match["dev"] or match["old"]] = match["group"] or match["number"]
        elif (match := _IDENTITY.search(line)) is not None:
            span = _span(match)
            if span is not None:
                identity[IdentityMap(_name(match["dev"]), span)] = None
        elif (match := _XEN_RMRR.search(line)) is not None:
            span = _span(match)
            if span is not None:
                identity[IdentityMap(None, span)] = None
    return KernelLog(tuple(windows), tuple(bars), tuple(groups.items()), tuple(identity))


def _name(bdf: str) -> str:
    return bdf.lower() if bdf.count(":") == 2 else f"0000:{bdf.lower()}"


def _span(match: re.Match[str]) -> AddrRange | None:
    start, last = int(match["start"], 16), int(match["last"], 16)
    return AddrRange(start, last) if start < last <= ADDRESS_LAST else None
