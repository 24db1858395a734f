"""What a guest would read: fw_cfg's files, e820, NUMA nodes of ACPI, the device tree."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_iova.ranges import AddrRange

from lab.say import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.vmm.observe import Qmp

# fw_cfg copies a file into memory for whoever writes where a request stands, and clears it (QEMU
# docs/specs/fw_cfg.rst); `loader` puts requests there before the guest would run.
_REQUEST, _BUFFER, _LENGTH = 0x1000, 0x10_0000, 0x2_0000
_READ, _DIRECTORY = 2, 0x19
_FILES = ("etc/e820", "etc/acpi/tables")
DMA = tuple(
    f"loader,addr={_REQUEST + at:#x},data={value:#x},data-len=8,data-be=on"
    for index in range(1 + len(_FILES))
    for at, value in ((16 * index, _READ << 32 | _LENGTH), (16 * index + 8, _BUFFER))
)
"""Devices with which `fw_cfg` can read a PC's files."""


def fw_cfg(qmp: Qmp) -> dict[str, bytes]:
    """Read e820 and ACPI's tables on a PC that was started with `DMA`, and stands still."""
    folder = _read(qmp, 0, _DIRECTORY)
    found = {}
    for at in range(4, 4 + 64 * int.from_bytes(folder[:4], "big"), 64):
        entry = folder[at : at + 64]
        name = entry[8:].split(b"\0")[0].decode()
        if name in _FILES:
            content = _read(qmp, 1 + len(found), int.from_bytes(entry[4:6], "big"))
            found[name] = content[: int.from_bytes(entry[:4], "big")]
    return found


def _read(qmp: Qmp, request: int, key: int) -> bytes:
    swapped = int.from_bytes((_REQUEST + 16 * request).to_bytes(4, "big"), "little")
    qmp.hmp(f"o /h 0x510 {key:#x}", "o /w 0x514 0", f"o /w 0x518 {swapped:#x}")
    with tempfile.TemporaryDirectory(prefix="fw-cfg-") as folder:
        path = Path(folder) / "bytes"
        qmp.ask("pmemsave", val=_BUFFER, size=_LENGTH, filename=str(path))
        return path.read_bytes()


def e820(table: bytes) -> tuple[tuple[AddrRange, int], ...]:
    """Return range and type of each entry of fw_cfg's etc/e820, ascending."""
    entries = []
    for line in range(0, len(table), 20):
        base, size, kind = (
            int.from_bytes(table[line + a : line + b], "little")
            for a, b in ((0, 8), (8, 16), (16, 20))
        )
        entries.append((AddrRange.from_size(base, size), kind))
    return tuple(sorted(entries))


def srat(tables: bytes) -> dict[int, list[AddrRange]]:
    """Return the memory of each node that is there from the start (ACPI 6.5, 5.2.16.2)."""
    start = tables.find(b"SRAT")
    if start < 0:
        raise LabError("ACPI has no SRAT")
    length = int.from_bytes(tables[start + 4 : start + 8], "little")
    found: dict[int, list[AddrRange]] = {}
    at = start + 48
    while at < start + length:
        kind, size = tables[at], tables[at + 1]
        if kind == 1:
            node = int.from_bytes(tables[at + 2 : at + 6], "little")
            base = int.from_bytes(tables[at + 8 : at + 16], "little")
            much = int.from_bytes(tables[at + 16 : at + 24], "little")
            enabled, plugged = tables[at + 28] & 1, tables[at + 28] & 2
            if enabled and not plugged and much:
                found.setdefault(node, []).append(AddrRange.from_size(base, much))
        at += size
    return found


class Tree:
    """A device tree (Devicetree Specification 0.4, 5): properties by path and name."""

    def __init__(self, blob: bytes) -> None:
        words = [int.from_bytes(blob[at : at + 4], "big") for at in range(0, 40, 4)]
        if words[0] != 0xD00DFEED:
            raise LabError("no device tree")
        self.properties: dict[str, dict[str, bytes]] = {}
        structure, names = words[2], words[3]
        path: list[str] = []
        at = structure
        while (token := int.from_bytes(blob[at : at + 4], "big")) != 9:
            at += 4
            if token == 1:
                stop = blob.index(b"\0", at)
                path.append(blob[at:stop].decode())
                self.properties["/".join(path)] = {}
                at = (stop + 4) // 4 * 4
            elif token == 2:
                path.pop()
            elif token == 3:
                size, name = (int.from_bytes(blob[at + i : at + i + 4], "big") for i in (0, 4))
                text = blob[names + name : blob.index(b"\0", names + name)].decode()
                self.properties["/".join(path)][text] = blob[at + 8 : at + 8 + size]
                at += 8 + (size + 3) // 4 * 4

    def named(self, *prefixes: str) -> Iterator[dict[str, bytes]]:
        """Yield the properties of each node whose name begins so."""
        for path, values in self.properties.items():
            if path.rpartition("/")[2].startswith(prefixes):
                yield values

    def memory(self) -> dict[int, list[AddrRange]]:
        """Return the memory of each node; all is node 0 where there are none."""
        found: dict[int, list[AddrRange]] = {}
        for values in self.named("memory@"):
            node = int.from_bytes(values.get("numa-node-id", b""), "big")
            found.setdefault(node, []).extend(_pairs(values["reg"]))
        return found

    def ecam(self) -> list[AddrRange]:
        """Return the PCIe configuration spaces."""
        return [span for values in self.named("pcie@", "pci@") for span in _pairs(values["reg"])]

    def windows(self) -> dict[int, AddrRange]:
        """Return the PCI windows by their kind: 2 for 32-bit memory, 3 for 64-bit."""
        found = {}
        for values in self.named("pcie@", "pci@"):
            ranges = values["ranges"]
            for at in range(0, len(ranges), 28):
                kind = ranges[at] & 3
                base = int.from_bytes(ranges[at + 12 : at + 20], "big")
                size = int.from_bytes(ranges[at + 20 : at + 28], "big")
                found[kind] = AddrRange.from_size(base, size)
        return found

    def doorbells(self) -> list[AddrRange]:
        """Return where MSIs are written to: the ITS, or GICv2m's frame."""
        nodes = self.named("its@", "v2m@", "msi-controller@")
        return [_pairs(values["reg"])[0] for values in nodes]


def _pairs(reg: bytes) -> list[AddrRange]:
    """Ranges of a `reg` with two cells of address and two of size."""
    spans = []
    for at in range(0, len(reg), 16):
        base = int.from_bytes(reg[at : at + 8], "big")
        spans.append(AddrRange.from_size(base, int.from_bytes(reg[at + 8 : at + 16], "big")))
    return spans


def device_tree(qmp: Qmp) -> Tree:
    """Return the device tree that QEMU made for its guest."""
    with tempfile.TemporaryDirectory(prefix="tree-") as folder:
        path = Path(folder) / "tree.dtb"
        qmp.ask("dumpdtb", filename=str(path))
        return Tree(path.read_bytes())
