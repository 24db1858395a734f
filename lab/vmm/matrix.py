# SPDX-License-Identifier: Apache-2.0
"""Configurations to compare, drawn with a seed: sizes around every boundary of a machine."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_iova.ranges import GIB, MIB, TIB

if TYPE_CHECKING:
    from collections.abc import Iterator

CPUS = {"EPYC": "amd", "Skylake-Server": "intel", "Dhyana": "other"}
BITS = (36, 39, 40, 41, 42, 44, 46, 47, 48, 52)
_FEW = ("virt-lowmem", "virt-gicv2", "riscv-virt")
NUMA = ("q35", "i440fx", "q35-7.0", "i440fx-7.0", "virt", "virt-gicv2", "riscv-virt")
MANY_CPUS = {"virt": (123, 200), "virt-lowmem": (123,), "virt-gicv2": (8,)}
"""As many as fill the lower redistributors, and more; those of GICv2, and without high memory."""
VARIANTS = {
    "virt": ("", "its=off", "gic-version=2"),
    "riscv-virt": ("", "aia=aplic-imsic"),
    "q35": ("", "flash"),
    "i440fx": ("", "flash"),
    "microvm": ("", "usb=on"),
}
"""More options of a machine; `flash` is the largest that a PC takes."""
BARS = (64 * MIB, 256 * MIB, GIB, 8 * GIB, 16 * GIB, 64 * GIB)
LOW_BARS = (16 * MIB, 64 * MIB, 128 * MIB, 256 * MIB)


@dataclass(frozen=True)
class Config:
    """One guest to start.

    Attributes:
        kind: `map` (no firmware), `firmware`, or `hotplug`.
        machine: name of the model.
        ram: bytes.
        cpu: QEMU's name of the CPU model, for a PC.
        bits: guest physical address bits, for a PC.
        pci64: bytes of the 64-bit PCI window that are stated; None for the default.
        more: bytes that may be plugged in later.
        slots: of memory modules.
        low_ram: max-ram-below-4g, or None.
        bars: sizes of 64-bit BARs, each of a device on the root bus.
        ports: for each root port, the sizes of the 64-bit BARs behind it; none of a spare one.
        low_bars: sizes of 32-bit BARs.
        nodes: bytes of each NUMA node; none for a guest without.
        cpus: how many; what an interrupt controller takes depends on it.
        variant: more options of the machine.
        firmware: `seabios` or `ovmf`, or None where it does not run.
        window: MiB of opt/ovmf/X-PciMmio64Mb, or None.
    """

    kind: str
    machine: str
    ram: int
    cpu: str = "EPYC"
    bits: int = 40
    pci64: int | None = None
    more: int = 0
    slots: int = 0
    low_ram: int | None = None
    bars: tuple[int, ...] = ()
    ports: tuple[tuple[int, ...], ...] = ()
    low_bars: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    cpus: int = 1
    variant: str = ""
    firmware: str | None = None
    window: int | None = None

    @property
    def pc(self) -> bool:
        """True for a PC."""
        return self.machine.startswith(("q35", "i440fx", "microvm"))

    def __str__(self) -> str:
        parts = [self.kind, self.machine, f"{self.ram >> 20}M"]
        if self.pc:
            parts.append(f"{self.cpu},phys-bits={self.bits}")
        if self.pci64 is not None:
            parts.append(f"pci64={self.pci64 >> 20}M")
        if self.more:
            parts.append(f"maxmem={(self.ram + self.more) >> 20}M,slots={self.slots}")
        if self.low_ram is not None:
            parts.append(f"max-ram-below-4g={self.low_ram >> 20}M")
        if self.bars:
            parts.append("bars=" + ",".join(f"{size >> 20}M" for size in self.bars))
        parts += ("port=" + ",".join(f"{size >> 20}M" for size in port) for port in self.ports)
        if self.low_bars:
            parts.append("bars32=" + ",".join(f"{size >> 20}M" for size in self.low_bars))
        if self.nodes:
            parts.append("nodes=" + ",".join(f"{size >> 20}M" for size in self.nodes))
        parts += [f"cpus={self.cpus}"] if self.cpus > 1 else []
        parts += [self.variant] if self.variant else []
        if self.firmware:
            parts.append(self.firmware)
        if self.window is not None:
            parts.append(f"X-PciMmio64Mb={self.window}")
        return " ".join(parts)


def configs(seed: int, maps: int, firmware: int, ovmf: int, hotplug: int) -> Iterator[Config]:
    """Yield so many of each kind; the same seed yields the same."""
    draw = random.Random(seed)  # noqa: S311 -- the same draw each time
    for _ in range(maps):
        yield _map(draw)
    for _ in range(hotplug):
        yield _hotplug(draw)
    for index in range(firmware):
        yield _firmware(draw, "ovmf" if index < ovmf else "seabios")


def _ram(draw: random.Random) -> int:
    """A size near a boundary, or any."""
    edges = (GIB, 2 * GIB, 0xB000_0000, 3 * GIB, 0xE000_0000, 4 * GIB, 16 * GIB, 255 * GIB)
    tops = [1 << bits for bits in (36, 38, 39, 40, 41, 42)]
    edge = draw.choice([*edges, *tops, 0xFD_0000_0000, 0xFD_0000_0000, TIB])
    away = draw.choice((0, 0, MIB, 2 * MIB, GIB, 2 * GIB, 3 * GIB, 34 * GIB, 35 * GIB, 40 * GIB))
    if draw.random() < 0.3:
        return draw.randrange(128, 6 << 20) * MIB
    return max(128 * MIB, edge + draw.choice((-1, 1)) * away)


def _map(draw: random.Random) -> Config:
    machine = draw.choice(
        (*["q35"] * 3, *["i440fx"] * 2, *["virt"] * 2, "q35-7.0", "i440fx-7.0", "microvm", *_FEW)
    )
    cpu, bits = draw.choice(tuple(CPUS)), draw.choice(BITS)
    pc = machine.startswith(("q35", "i440fx"))
    pci64 = low_ram = None
    if pc and draw.random() < 0.3:
        pci64 = draw.choice((0, 2 * MIB, GIB, 33 * GIB + 7 * MIB, 250 * GIB, TIB, 3 * GIB + MIB))
    if pc and draw.random() < 0.2:
        low_ram = draw.choice((GIB, 2 * GIB, 2 * GIB + 256 * MIB, 3 * GIB, 3 * GIB + 512 * MIB))
    ram = _ram(draw)
    nodes: tuple[int, ...] = ()
    if machine in NUMA and draw.random() < 0.4:
        cut = draw.randrange(1, max(2, ram >> 27)) << 27  # the loader wants whole pages
        nodes = (cut, ram - cut) if 0 < cut < ram else ()
    cpus = len(nodes) or 1
    if machine.startswith("virt") and draw.random() < 0.3:
        cpus = draw.choice(MANY_CPUS[machine])
    variant = draw.choice(VARIANTS.get(machine, ("",)))
    cpus = min(cpus, 8) if variant == "gic-version=2" else cpus
    if machine == "virt" and draw.random() < 0.2:
        pci64 = draw.choice((0, 256 * GIB, 512 * GIB, TIB, 3 * TIB, 4 * TIB))
    return Config(
        "map",
        machine,
        ram,
        cpu,
        bits,
        pci64,
        low_ram=low_ram,
        nodes=nodes,
        cpus=cpus,
        variant=variant,
    )


def _hotplug(draw: random.Random) -> Config:
    machine = draw.choice(("q35", "q35", "i440fx", "q35-7.0", "virt", "s390x"))
    more = draw.choice((128 * MIB, GIB, 4 * GIB, 60 * GIB, 500 * GIB, 520 * GIB, TIB, 3 * TIB))
    slots = draw.choice((0, 1, 2, 16, 255))
    cpu, bits = draw.choice(tuple(CPUS)), draw.choice(BITS)
    ram = min(_ram(draw), 4 * TIB)
    return Config("hotplug", machine, ram, cpu, bits, more=more, slots=slots)


def _firmware(draw: random.Random, firmware: str) -> Config:
    machine = draw.choice(("q35", "q35", "i440fx"))
    cpu, bits = draw.choice(tuple(CPUS)), draw.choice(BITS)
    few = draw.sample(BARS, 2) if draw.random() < 0.3 else BARS  # so that some are equal
    bars = tuple(draw.choice(few) for _ in range(draw.randint(1, 3)))
    ports: tuple[tuple[int, ...], ...] = ()
    if machine == "q35" and draw.random() < 0.5:
        sizes = [draw.choice(few) for _ in range(draw.randint(1, 5))]
        cut = draw.randint(1, len(sizes))
        ports = tuple(port for port in (tuple(sizes[:cut]), tuple(sizes[cut:])) if port)
        bars = bars[: draw.randint(0, 2)]
    if machine == "q35" and draw.random() < 0.3:
        # No more than seven in all: OVMF 2022.11 has I/O addresses for nine.
        spare = [()] * draw.randint(1, 5)
        ports = tuple(draw.sample([*ports, *spare], len(ports) + len(spare)))
    low_bars: tuple[int, ...] = ()
    if draw.random() < 0.3:
        low_bars = tuple(draw.choice(LOW_BARS) for _ in range(draw.randint(1, 2)))
    sizes = (GIB, 2 * GIB, 2560 * MIB, 3 * GIB, 3500 * MIB, 4 * GIB, 8 * GIB, 30 * GIB, 100 * GIB)
    large = (900 * GIB, 978 * GIB, 979 * GIB, 1000 * GIB, 1025 * GIB, 1026 * GIB, 2 * TIB, 5 * TIB)
    ram = draw.choice((*sizes, *large))
    more = draw.choice((0, 0, 0, 4 * GIB, 60 * GIB, 500 * GIB))
    slots = draw.choice((1, 2, 16)) if more else 0
    window = None
    if firmware == "ovmf" and draw.random() < 0.3:
        window = draw.choice((32768, 65536, 131072))
    return Config(
        "firmware",
        machine,
        ram,
        cpu,
        bits,
        more=more,
        slots=slots,
        bars=bars,
        ports=ports,
        low_bars=low_bars,
        firmware=firmware,
        window=window,
    )
