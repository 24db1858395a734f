# SPDX-License-Identifier: Apache-2.0
"""One start of a real QEMU: where it has RAM, windows and BARs, or what it says when it refuses."""

from __future__ import annotations

import json
import re
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm_iova.ranges import AddrRange

from lab.say import LabError

if TYPE_CHECKING:
    from lab.vmm.tables import Tree

SECONDS = 40.0
_REGION = re.compile(
    r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, [^)]*\): (?:alias )?(\S+)", re.MULTILINE
)
_HIGH = ("pcie-mmio-high", "pcie-mmio64")


@dataclass(frozen=True)
class Observed:
    """What a real QEMU has.

    Attributes:
        refused: what it printed instead of starting; None if it started.
        ram: pieces of RAM, ascending.
        device_memory: where hotplugged memory goes, or None.
        window: the 64-bit PCI window, or None.
        bars: address of each BAR that firmware gave out, by the device's id and the BAR's number.
        e820: (range, type), ascending, of fw_cfg's etc/e820; None where it was not read.
        nodes: memory of each NUMA node, of ACPI's SRAT or the device tree; None where not read.
        tree: what its device tree says beside; None where there is none.
        ecam: the PCI configuration space as firmware left it, or None.
        regions: what its memory has, by name.
        astray: devices with a 64-bit BAR outside the window of their root port.
    """

    refused: str | None = None
    ram: tuple[AddrRange, ...] = ()
    device_memory: AddrRange | None = None
    window: AddrRange | None = None
    bars: dict[tuple[str, int], AddrRange] = field(default_factory=dict)
    e820: tuple[tuple[AddrRange, int], ...] | None = None
    nodes: dict[int, list[AddrRange]] | None = None
    tree: Tree | None = None
    ecam: AddrRange | None = None
    regions: tuple[tuple[str, AddrRange], ...] = ()
    astray: frozenset[str] = frozenset()


class Qmp:
    """A QEMU that is talked to over its standard streams."""

    def __init__(self, command: list[str]) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the program
        self.process = subprocess.Popen(
            [*command, "-qmp", "stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self._left = b""
        self.alive = self._read(SECONDS) is not None
        if self.alive:
            try:
                self.ask("qmp_capabilities")
            except (LabError, BrokenPipeError):
                self.alive = False  # it greets first, and looks at its options later

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message; None when the program is gone."""
        assert self.process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self._left:
            ready, _, _ = select.select(
                [self.process.stdout], [], [], max(0.0, until - time.monotonic())
            )
            if not ready:
                raise LabError(f"QEMU does not answer within {seconds} s")
            part = self.process.stdout.read1(1 << 20)  # type: ignore[attr-defined]
            if not part:
                return None
            self._left += part
        line, _, self._left = self._left.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def ask_all(self, commands: list[dict[str, Any]]) -> list[Any]:
        """Send commands in one go and return all answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(json.dumps(c).encode() + b"\n" for c in commands))
        self.process.stdin.flush()
        answers: list[Any] = []
        while len(answers) < len(commands):
            message = self._read(SECONDS)
            if message is None:
                raise LabError(f"QEMU has ended: {self.complaint()}")
            if "error" in message:
                raise LabError(f"QEMU: {message['error']['desc']}")
            if "return" in message:
                answers.append(message["return"])
        return answers

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send one command and return its answer."""
        return self.ask_all([{"execute": command, "arguments": arguments}])[0]

    def hmp(self, *lines: str) -> list[str]:
        """Send commands of the human monitor."""
        return self.ask_all(
            [
                {"execute": "human-monitor-command", "arguments": {"command-line": line}}
                for line in lines
            ]
        )

    def complaint(self) -> str:
        """Return what it printed to its standard error."""
        self.errors.seek(0)
        return self.errors.read().decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def regions(text: str) -> list[tuple[str, AddrRange]]:
    """Return name and span of each region of `info mtree`, of the system's memory alone."""
    text = text.replace("\r", "")
    start = re.search(r"^address-space: memory$", text, re.MULTILINE)
    if start is None:
        raise LabError(f"info mtree has no memory: {text[:200]!r}")
    block = text[start.start() :].partition("\n\n")[0]
    return [
        (match[3], AddrRange(int(match[1], 16), int(match[2], 16)))
        for match in _REGION.finditer(block)
    ]


def bars_of(qmp: Qmp) -> dict[tuple[str, int], AddrRange]:
    """Return the BARs that have an address, by device id and number."""
    found: dict[tuple[str, int], AddrRange] = {}

    def walk(devices: list[dict[str, Any]]) -> None:
        for device in devices:
            for region in device.get("regions", ()):
                address = region.get("address", -1)
                if region["type"] == "memory" and address not in (-1, (1 << 64) - 1):
                    place = AddrRange.from_size(address & ((1 << 64) - 1), region["size"])
                    found[device.get("qdev_id", ""), region["bar"]] = place
            walk(device.get("pci_bridge", {}).get("devices", []))

    for bus in qmp.ask("query-pci"):
        walk(bus["devices"])
    return found


def astray(qmp: Qmp) -> frozenset[str]:
    """Return the devices with a prefetchable BAR that their port does not forward."""
    found = set()
    for bus in qmp.ask("query-pci"):
        for port in bus["devices"]:
            window = port.get("pci_bridge", {}).get("bus", {}).get("prefetchable_range")
            for device in port.get("pci_bridge", {}).get("devices", []):
                for region in device["regions"]:
                    if not region.get("prefetch"):
                        continue
                    first, last = region["address"], region["address"] + region["size"] - 1
                    if not window["base"] <= first <= last <= window["limit"]:
                        found.add(device["qdev_id"])
    return frozenset(found)


def wait_for_bars(qmp: Qmp, names: set[str], seconds: float) -> dict[tuple[str, int], AddrRange]:
    """Let firmware run until all BARs of these devices have addresses that stay."""
    until, before, same = time.monotonic() + seconds, None, 0
    while time.monotonic() < until:
        bars = bars_of(qmp)
        if names <= {name for name, _ in bars} and bars == before:
            same += 1
            if same >= 5:
                return bars
        else:
            same = 0
        before = bars
        time.sleep(0.1)
    raise LabError(f"firmware gave out only {before} within {seconds:.0f} s")


def window_of(qmp: Qmp, machine: str, spans: list[tuple[str, AddrRange]]) -> AddrRange | None:
    """Return the 64-bit PCI window that a PC states, or that a machine of another sort has."""
    paths = {"q35": "/machine/q35", "i440fx": "/machine/i440fx"}
    path = paths.get(machine)
    if path is None:
        return next((span for name, span in spans if name in _HIGH), None)
    start, last = (
        qmp.ask("qom-get", path=path, property=f"pci-hole64-{end}") for end in ("start", "end")
    )
    return AddrRange(start, last - 1) if last > start else None


def ecam_of(spans: list[tuple[str, AddrRange]]) -> AddrRange | None:
    """Return where the PCI configuration space is decoded."""
    return next((span for name, span in spans if name.startswith("pcie-mmcfg")), None)


def temporary(source: Path) -> Path:
    """Copy OVMF's variables, which it writes to."""
    with tempfile.NamedTemporaryFile(prefix="vars-", suffix=".fd", delete=False) as target:
        shutil.copyfileobj(source.open("rb"), target)
    return Path(target.name)
