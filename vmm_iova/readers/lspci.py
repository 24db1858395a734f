# SPDX-License-Identifier: Apache-2.0
"""What `lspci` prints (plain, -v, -vv, -nn, -k), and listings of IOMMU groups that are made of it.

Source: pciutils, lspci.c, show_verbose and show_bases; the script of the Arch Linux wiki that
prints `IOMMU Group 1 00:01.0 PCI bridge [0604]: ...`, one line or a heading a group; `lsiommu`,
which prints `Group:  1  [8086:1901] [R] 00:01.0  PCI bridge ...`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_iova.errors import IovaError
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BDF = r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]"
_DEVICE = re.compile(rf"(?P<bdf>{_BDF}) (?P<title>\S.*)", re.IGNORECASE)
_GROUP = re.compile(r"(?:\S+\s)?IOMMU group:? (?P<group>\d{1,9})\b:?\s*(?P<rest>.*)", re.IGNORECASE)
_LSIOMMU = re.compile(
    r"(?:Group:? {1,9}(?P<group>\d{1,9}):?\s{1,9})?\[[0-9a-f]{4}:[0-9a-f]{4}\]\s{1,9}"
    r"(?:\[R\]\s{1,9})?"
    rf"(?P<bdf>{_BDF})\s{{1,9}}(?P<title>\S.*)"
)
_CLASS = re.compile(r"\[([0-9a-f]{4})\]")
_REGION = re.compile(
    r"(?:Region (?P<index>\d): )?Memory at (?P<start>[0-9a-f]{4,16}|<\w+>)"
    r"(?: \((?P<kind>[^)]{0,60})\))?(?P<rest>.*)"
)
_SIZE = re.compile(r"\[size=(\d{1,6}[KMGT]?)\]")
_DRIVER = re.compile(r"Kernel driver in use: (\S+)")
_BRIDGE = "0604"


@dataclass(frozen=True, slots=True)
class PciRegion:
    """One memory BAR.

    Attributes:
        index: its number, or None where it is not printed (`lspci -v`).
        start: address, or None where it has none.
        size: bytes, or None where it is not printed.
        wide: True if it takes 64 bits.
        prefetchable: True if it is.
    """

    index: int | None
    start: int | None
    size: int | None
    wide: bool = False
    prefetchable: bool = False


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One device of a listing.

    Attributes:
        name: with its domain.
        title: as it is printed behind the name.
        pci_class: four hex digits, or None where numbers are not printed.
        regions: its memory BARs.
        group: number of its IOMMU group, or None.
        driver: that is in use, or None.
    """

    name: str
    title: str
    pci_class: str | None = None
    regions: tuple[PciRegion, ...] = ()
    group: str | None = None
    driver: str | None = None

    @property
    def bridge(self) -> bool:
        """Tell whether it is a PCI bridge, which may keep its driver in a group."""
        return self.pci_class == _BRIDGE or "PCI bridge" in self.title.split(":")[0]


def read_lspci(lines: Iterable[str]) -> tuple[PciDevice, ...]:
    """Read the devices of a listing; lines that are none of its are passed over.

    Complexity: O(size).
    """
    found: dict[str, PciDevice] = {}
    for device in _devices(lines):
        old = found.get(device.name)
        found[device.name] = device if old is None else _joined(old, device)
    return tuple(found.values())


def _joined(old: PciDevice, new: PciDevice) -> PciDevice:
    return replace(
        old,
        pci_class=old.pci_class or new.pci_class,
        regions=old.regions or new.regions,
        group=old.group or new.group,
        driver=old.driver or new.driver,
    )


def _devices(lines: Iterable[str]) -> Iterator[PciDevice]:
    device: PciDevice | None = None
    heading: str | None = None
    for raw in lines:
        line = raw[:1000].strip().strip("`")
        group = _GROUP.match(line)
        start = _DEVICE.match(group["rest"] if group else line)
        if start is None and (listed := _LSIOMMU.match(line)) is not None:
            start, group = listed, listed if listed["group"] else None
            heading = listed["group"] or heading
        if start is not None:
            if device is not None:
                yield device
            device = _device(start["bdf"], start["title"], group["group"] if group else heading)
        elif group is not None:
            if device is not None and not raw[:1].isspace():
                yield device
                device = None
            if device is None:
                heading = group["group"]  # a heading; inside of a device it is its own group
            else:
                device = replace(device, group=group["group"])
        elif device is not None:
            device = _more(device, line)
    if device is not None:
        yield device


def _device(bdf: str, title: str, group: str | None) -> PciDevice:
    name = bdf.lower() if bdf.count(":") == 2 else f"0000:{bdf.lower()}"
    code = _CLASS.search(title)
    return PciDevice(name, title.strip(), code[1] if code else None, group=group)


def _more(device: PciDevice, line: str) -> PciDevice:
    region = _REGION.match(line)
    if region is not None:
        return replace(device, regions=(*device.regions, _region(region)))
    driver = _DRIVER.match(line)
    return device if driver is None else replace(device, driver=driver[1])


def _region(match: re.Match[str]) -> PciRegion:
    size = _SIZE.search(match["rest"])
    kind = match["kind"] or ""
    return PciRegion(
        index=int(match["index"]) if match["index"] else None,
        start=None if match["start"].startswith("<") else int(match["start"], 16),
        size=_bytes(size[1]) if size else None,
        wide="64-bit" in kind,
        prefetchable="prefetchable" in kind and "non-prefetchable" not in kind,
    )


def _bytes(text: str) -> int | None:
    try:
        return parse_size(text)
    except IovaError:
        return None
