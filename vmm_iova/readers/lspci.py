# SPDX-License-Identifier: Apache-2.0
"""What `lspci` prints (plain, -v, -vv, -nn, -k), and listings of IOMMU groups that are made of it.

Source: pciutils, lspci.c, show_verbose and show_bases; the script of the Arch Linux wiki that
prints `IOMMU Group 1 00:01.0 PCI bridge [0604]: ...`, one line or a heading a group; `lsiommu`,
which prints `Group:  1  [8086:1901] [R] 00:01.0  PCI bridge ...`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from vmm_iova.errors import IovaError
from vmm_iova.patterns import regex
from vmm_iova.record import record, replace
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BDF = r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]"
_DEVICE = regex(rf"(?P<bdf>{_BDF}) (?P<title>\S.*)", re.IGNORECASE)
_GROUP = regex(r"(?:\S+\s)?IOMMU group:? (?P<group>\d{1,9})\b:?\s*(?P<rest>.*)", re.IGNORECASE)
_LSIOMMU = regex(
    r"(?:Group:? {1,9}(?P<group>\d{1,9}):?\s{1,9})?\[[0-9a-f]{4}:[0-9a-f]{4}\]\s{1,9}"
    r"(?:\[R\]\s{1,9})?"
    rf"(?P<bdf>{_BDF})\s{{1,9}}(?P<title>\S.*)"
)
_CLASS = regex(r"\[([0-9a-f]{4})\]")
_REGION = regex(
    r"(?:Region (?P<index>\d): )?(?:\[\w{1,9}\] )?Memory at (?P<start>[0-9a-f]{4,16}|<\w+>)"
    r"(?: \((?P<kind>[^)]{0,60})\))?(?P<rest>.*)"
)
_ROM = regex(r"(?:\[\w{1,9}\] )?Expansion ROM at (?P<start>[0-9a-f]{4,16}|<\w+>)(?P<rest>.*)")
_CAPABILITY = regex(r"Capabilities: (?:\[\w{2,4}(?: v\d{1,3})?\] )?(?P<name>.*)")
_RESIZABLE = regex(r"BAR (?P<index>\d): current size: \S{1,9}, supported: (?P<sizes>.{0,400})")
_SIZE = regex(r"\[size=(\d{1,6}[KMGT]?)\]")
_DRIVER = regex(r"Kernel driver in use: (\S+)")
_BRIDGE = "0604"

PciRegionKind = Literal["bar", "rom", "vf"]
"""Whose address space a region is."""


@record
class PciRegion:
    """One memory BAR.

    Attributes:
        index: its number, or None where it is not printed (`lspci -v`).
        start: address, or None where it has none.
        size: bytes, or None where it is not printed.
        wide: True if it takes 64 bits.
        prefetchable: True if it is.
        kind: `bar`, `rom`, or `vf` for one of the virtual functions.
        sizes: that it can be given, ascending; empty where it has one.
    """

    index: int | None
    start: int | None
    size: int | None
    wide: bool = False
    prefetchable: bool = False
    kind: PciRegionKind = "bar"
    sizes: tuple[int, ...] = ()


@record
class PciDevice:
    """One device of a listing.

    Attributes:
        name: with its domain.
        title: as it is printed behind the name.
        pci_class: four hex digits, or None where numbers are not printed.
        regions: its memory BARs, its ROM, and those of its virtual functions.
        verbose: True if what is printed of it would have had its BARs.
        group: number of its IOMMU group, or None.
        driver: that is in use, or None.
    """

    name: str
    title: str
    pci_class: str | None = None
    regions: tuple[PciRegion, ...] = ()
    group: str | None = None
    driver: str | None = None
    verbose: bool = False

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
        verbose=old.verbose or new.verbose,
    )


def _devices(lines: Iterable[str]) -> Iterator[PciDevice]:
    device: PciDevice | None = None
    heading: str | None = None
    capability = ""
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
            capability = ""
        elif group is not None:
            if device is not None and not raw[:1].isspace():
                yield device
                device = None
            if device is None:
                heading = group["group"]  # a heading; inside of a device it is its own group
            else:
                device = replace(device, group=group["group"])
        elif device is not None:
            named = _CAPABILITY.match(line)
            capability = named["name"] if named else capability
            device = _more(device, line, capability)
    if device is not None:
        yield device


def _device(bdf: str, title: str, group: str | None) -> PciDevice:
    name = bdf.lower() if bdf.count(":") == 2 else f"0000:{bdf.lower()}"
    code = _CLASS.search(title)
    return PciDevice(name, title.strip(), code[1] if code else None, group=group)


def _more(device: PciDevice, line: str, capability: str) -> PciDevice:
    """Add what a line says of a device; `capability` is the one that it stands under."""
    region = _REGION.match(line)
    if region is not None:
        kind: PciRegionKind = "vf" if "SR-IOV" in capability else "bar"
        return replace(device, regions=(*device.regions, _region(region, kind)))
    rom = _ROM.match(line)
    if rom is not None:
        return replace(device, regions=(*device.regions, _region(rom, "rom")))
    sizes = _RESIZABLE.match(line)
    if sizes is not None and "Physical Resizable" in capability:
        return replace(device, regions=tuple(_resizable(device.regions, sizes)))
    driver = _DRIVER.match(line)
    if driver is not None:
        return replace(device, driver=driver[1])
    return replace(device, verbose=True) if line.startswith(_VERBOSE) else device


_VERBOSE = ("Flags:", "Control:")  # the first lines of -v and of -vv, which print BARs


def _region(match: re.Match[str], kind: PciRegionKind) -> PciRegion:
    size = _SIZE.search(match["rest"])
    groups = match.groupdict()
    words = groups.get("kind") or ""
    index = groups.get("index")
    return PciRegion(
        index=int(index) if index else None,
        start=None if match["start"].startswith("<") else int(match["start"], 16),
        size=_bytes(size[1]) if size else None,
        wide="64-bit" in words,
        prefetchable="prefetchable" in words and "non-prefetchable" not in words,
        kind=kind,
    )


def _resizable(regions: tuple[PciRegion, ...], match: re.Match[str]) -> Iterator[PciRegion]:
    """The regions, with the sizes of the one that a line of Resizable BAR is about."""
    sizes = [_bytes(size.removesuffix("B")) for size in match["sizes"].split()]
    known = tuple(sorted(size for size in sizes if size))
    for item in regions:
        meant = item.kind == "bar" and item.index == int(match["index"])
        yield replace(item, sizes=known) if meant else item


def _bytes(text: str) -> int | None:
    try:
        return parse_size(text)
    except IovaError:
        return None
