"""One guest twice: as the planner takes it, and as QEMU's command line."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import vmm_iova as vi
from vmm_iova.ranges import MIB

from lab.vmm.matrix import CPUS
from lab.vmm.observe import temporary
from lab.vmm.tables import DMA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.machines.model import Machine

    from lab.vmm.binaries import Qemu
    from lab.vmm.matrix import Config

QEMU_MACHINES = {
    "q35": "q35",
    "i440fx": "pc",
    "q35-7.0": "pc-q35-7.0",
    "i440fx-7.0": "pc-i440fx-7.0",
    "microvm": "microvm,acpi=on,pcie=on",
    "virt": "virt,gic-version=3",
    "virt-lowmem": "virt,highmem=off,gic-version=3",
    "virt-gicv2": "virt,gic-version=2",
    "riscv-virt": "virt",
    "s390x": "s390-ccw-virtio",
}
_BITS = {"virt": 48, "virt-gicv2": 48, "riscv-virt": 56}  # of -cpu max; riscv64's Sv57 and 56 bits
_LARGEST_FLASH = 16 * MIB


@dataclass(frozen=True)
class BarOf:
    """A BAR of a guest: which device and number it is in QEMU, and how it is planned."""

    device: str
    number: int
    size: int
    bits: int
    port: str | None
    options: str


def bars_of(config: Config) -> Iterator[BarOf]:
    """Yield each BAR, in the order of its devices on the bus."""
    for port, sizes in enumerate(config.ports):
        for function, size in enumerate(sizes):
            at = f",bus=port{port},addr=0.{function},multifunction=on"
            name = f"port{port}.{function}"
            yield BarOf(name, 2, size, 64, f"port{port}", f"pci-testdev,membar={size}{at}")
    for index, size in enumerate(config.bars):
        yield BarOf(f"bar{index}", 2, size, 64, None, f"pci-testdev,membar={size}")
    for index, size in enumerate(config.low_bars):
        yield BarOf(f"low{index}", 0, size, 32, None, f"secondary-vga,vgamem_mb={size >> 20}")


def guest_of(config: Config, qemu: Qemu, model: Machine | None = None) -> vi.Guest:
    """Return the guest as the planner takes it.

    Args:
        config: the guest.
        qemu: which QEMU it is for.
        model: the machine, where it is not the bundled one.
    """
    firmware = None
    if vi.load_machine(config.machine).firmware is not None:
        firmware = "none"
    if config.firmware is not None:
        version = qemu.seabios if config.firmware == "seabios" else qemu.ovmf
        firmware = f"{config.firmware}-{version}"
    return vi.Guest(
        model or config.machine,
        None if config.nodes else config.ram,
        config.pci64,
        nodes=config.nodes,
        bars=[
            vi.Bar(bar.device, bar.size, bits=bar.bits, port=bar.port)  # type: ignore[arg-type]
            for bar in bars_of(config)
        ],
        ports=[f"port{number}" for number in range(len(config.ports))],
        phys_bits=config.bits if config.pc else _BITS.get(config.machine),
        maxmem=config.ram + config.more if config.more else None,
        slots=config.slots if config.more else 0,
        max_ram_below_4g=config.low_ram,
        cpu=CPUS[config.cpu] if config.pc else None,  # type: ignore[arg-type]
        firmware=firmware,
        ovmf_window=None if config.window is None else config.window << 20,
    )


def command_of(config: Config, qemu: Qemu) -> tuple[list[str], list[Path]]:
    """Return the command line that starts the guest, and files to remove afterwards."""
    arch = vi.load_machine(config.machine).arch
    machine = QEMU_MACHINES[config.machine]
    size = f"{config.ram >> 20}M"
    if config.more:
        size += f",maxmem={(config.ram + config.more) >> 20}M"
        size += f",slots={config.slots}" if config.slots else ""
    if config.low_ram is not None:
        machine += f",max-ram-below-4g={config.low_ram}"
    words = [*qemu.command(arch), "-nodefaults", "-display", "none", "-m", size]
    for index, much in enumerate(config.nodes or (config.ram,)):
        words += ["-object", f"memory-backend-ram,id=m{index},size={much},reserve=off"]
    for index in range(len(config.nodes)):
        words += ["-numa", f"node,nodeid={index},memdev=m{index},cpus={index}"]
    machine += "" if config.nodes else ",memory-backend=m0"
    words += ["-smp", str(config.cpus)] if config.cpus > 1 else []
    if arch == "aarch64":
        words += ["-cpu", "max"]
    if config.pc:
        words += ["-cpu", f"{config.cpu},phys-bits={config.bits}"]
    if config.pci64 is not None and config.machine == "virt":
        window = f"highmem-mmio-size={config.pci64}" if config.pci64 else "highmem-mmio=off"
        machine += f",{window}"
    elif config.pci64 is not None:
        host = "q35-pcihost" if config.machine.startswith("q35") else "i440FX-pcihost"
        words += ["-global", f"{host}.pci-hole64-size={config.pci64}"]
    for index in range(len(config.ports)):
        words += ["-device", f"pcie-root-port,id=port{index},chassis={index + 1}"]
    for bar in sorted(bars_of(config), key=lambda bar: bar.port is not None):
        words += ["-device", f"{bar.options},id={bar.device}"]
    if config.window is not None:
        words += ["-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={config.window}"]
    files: list[Path] = []
    drive = "if=pflash,format=raw"
    if config.firmware == "ovmf":
        code, empty = qemu.ovmf_files
        files.append(temporary(empty))
        words += ["-drive", f"{drive},unit=0,readonly=on,file={code}"]
        words += ["-drive", f"{drive},unit=1,file={files[0]}"]
    elif config.firmware is None:
        words += ["-S"]
        if has_fw_cfg(config):
            words += [word for device in DMA for word in ("-device", device)]
    if config.variant == "flash":
        files.append(_flash())
        machine += f",max-fw-size={_LARGEST_FLASH}"
        words += ["-drive", f"{drive},unit=0,file={files[-1]}"]
    elif config.variant:
        machine += f",{config.variant}"
    return [*words, "-M", machine], files


def _flash() -> Path:
    """Make an empty flash as large as a PC takes it; it has no code, and none is run."""
    with tempfile.NamedTemporaryFile(prefix="flash-", suffix=".fd", delete=False) as file:
        file.truncate(_LARGEST_FLASH)
    return Path(file.name)


def has_fw_cfg(config: Config) -> bool:
    """Tell whether fw_cfg's files can be read: on a PC, while it stands still."""
    return config.firmware is None and config.machine.startswith(("q35", "i440fx"))
