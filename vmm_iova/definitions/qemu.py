# SPDX-License-Identifier: Apache-2.0
"""QEMU's options, counted as QEMU counts them, and the guests that they make.

Source: qemu-options.hx and system/vl.c, QEMU 7.2 to 11.1. libvirt's and Proxmox's definitions come
through here as the options that these programs write, with those behind them that they hand on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.definitions.definition import AssignedDevice, Definition, Fault
from vmm_iova.definitions.options import OVMF
from vmm_iova.definitions.qemu_cpu import cpu_of
from vmm_iova.definitions.qemu_machine import machines_of
from vmm_iova.definitions.qemu_memory import memory_of
from vmm_iova.patterns import regex
from vmm_iova.plain import one_line
from vmm_iova.planning.guest import Bar, Guest, Reading
from vmm_iova.ranges import BASE_PAGE
from vmm_iova.readers.qemu import size_of
from vmm_iova.record import replace
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.definitions.definition import Kind
    from vmm_iova.definitions.options import Options
    from vmm_iova.definitions.qemu_machine import MachineReading

_BDF = regex(r"(?:([0-9a-fA-F]{4}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.([0-7]))?")
_IN_SYSFS = regex(r"/([0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])/?$")
_UUID = regex(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VFIO = ("vfio-pci", "vfio-pci-nohotplug", "vfio-ccw", "vfio-ap", "vfio-platform")
_IVSHMEM = ("ivshmem-plain", "ivshmem-doorbell", "ivshmem")


def definition_of(
    options: Options, *, kind: Kind, name: str | None, text: str, source: str
) -> Definition:
    """Make a definition of QEMU's options.

    Args:
        options: all of them.
        kind: whose format they came in.
        name: of the VM.
        text: the definition.
        source: what it was called.

    Raises:
        HostDataError: it states no RAM, or a size that is none.
        RequestError: the machine has a property that moves memory in ways that no model expresses.
    """
    memory = memory_of(options, source)
    devices = tuple(_assigned(options))
    cpu = cpu_of(options)
    guest = Guest(
        ram=None if memory.nodes else memory.ram,
        nodes=memory.nodes,
        page_size=memory.page_size,
        maxmem=memory.maxmem,
        slots=memory.slots if memory.maxmem is not None else 0,
        viommu=_viommu(options) is not None,
        devices=max(1, len(devices)),
    )
    readings = []
    machines = machines_of(options, source)
    for machine in machines:
        made = replace(guest, machine=machine.name)
        if machine.arch == "x86_64":
            made = replace(made, phys_bits=cpu.bits, cpu=cpu.vendor)
        if machine.arch != "s390x":  # whose devices see no guest addresses
            made = replace(made, bars=tuple(_shared_memory(options)))
        if machine.name.startswith(("q35", "i440fx")):
            made = _of_pc(made, machine, options)
        readings.append(Reading(machine.text, made))
    return Definition(
        kind,
        name,
        machines[-1].arch,
        tuple(readings),
        devices,
        root_ports=_behind_ports(options),
        ports=tuple(map(tuple, _ports(options))) if machines[-1].name.startswith("q35") else (),
        cpu=options.cpu,
        iommufd=any("iommufd" in item for item in options.devices),
        locked=_locked(options),
        faults=tuple(_faults(options)),
        unread=tuple(options.unread),
        text=text,
        source=source,
    ).with_guests(readings)


def _of_pc(guest: Guest, machine: MachineReading, options: Options) -> Guest:
    """Return the guest with what only a PC has."""
    ovmf = _has_ovmf(options)
    return replace(
        guest,
        pci64=_pci64(options),
        max_ram_below_4g=_low_ram(options),
        firmware="ovmf" if ovmf else None,
        ovmf_window=_ovmf_window(options) if ovmf else None,
        viommu_bits=_viommu_bits(options, machine.default_viommu_bits),
    )


# -- parts -----------------------------------------------------------------------------------------


def _assigned(options: Options) -> Iterator[AssignedDevice]:
    for item in options.devices:
        driver = item.get("driver", "")
        if driver not in _VFIO:
            continue
        where = item.get("host") or item.get("sysfsdev") or ""
        rom = item.get("rombar", "1") not in ("0", "off")
        name = bdf_of(where)
        if name is not None and driver.startswith("vfio-pci"):
            yield AssignedDevice(name, rom=rom)
        elif _UUID.search(where):
            yield AssignedDevice(_UUID.findall(where)[-1], "mdev")
        else:
            named = where or item.get("id") or driver
            yield AssignedDevice(shorten(one_line(named), 60), "other")


def _behind_ports(options: Options) -> bool:
    """Tell whether devices of the host stand behind bridges: their bus is none of the roots."""
    given = [item for item in options.devices if item.get("driver", "").startswith("vfio-pci")]
    return any(item.get("bus", "pcie.0") not in ("pcie.0", "pci.0") for item in given)


_ROOT_PORTS = ("pcie-root-port", "ioh3420")
_ADDRESS = regex(r"(?:0x)?([0-9a-f]{1,2})(?:\.(?:0x)?([0-7]))?", re.IGNORECASE)


def _ports(options: Options) -> list[list[str]]:
    """List the devices of the host behind each root port; nothing where one is behind more.

    A port without an address gets the next that is free, so that those stand as they are listed.
    """
    found: list[tuple[tuple[int, int] | None, str]] = []
    for item in options.devices:
        if item.get("driver") in _ROOT_PORTS and item.get("bus", "pcie.0") == "pcie.0":
            match = _ADDRESS.fullmatch(item.get("addr", ""))
            place = (int(match[1], 16), int(match[2] or "0")) if match else None
            found.append((place, item.get("id", "")))
    if all(place for place, _ in found):
        found.sort(key=lambda port: port[0] or (0, 0))
    behind: dict[str, list[str]] = {name or f"port {n}": [] for n, (_, name) in enumerate(found)}
    for item in options.devices:
        name, bus = bdf_of(item.get("host") or item.get("sysfsdev") or ""), item.get("bus")
        if not item.get("driver", "").startswith("vfio-pci") or bus in (None, "pcie.0"):
            continue
        if name is None or bus not in behind:
            return []
        behind[bus].append(name)
    return list(behind.values())


def bdf_of(text: str) -> str | None:
    """Return a PCI address with its domain; None for what is none."""
    match = _BDF.fullmatch(text)
    if match is None:
        in_sysfs = _IN_SYSFS.search(text)
        return in_sysfs[1].lower() if in_sysfs else None
    function = "" if match[4] is None else f".{match[4]}"
    return f"{match[1] or '0000'}:{match[2]}:{match[3]}{function}".lower()


def _has_ovmf(options: Options) -> bool:
    pflash = (options.machine.get(f"pflash{n}") for n in (0, 1))
    return any(OVMF.search(item) for item in options.firmware) or any(pflash)


def _ovmf_window(options: Options) -> int | None:
    text = options.fw_cfg.get("opt/ovmf/X-PciMmio64Mb", "")
    return int(text) << 20 if text.isascii() and text.isdecimal() and len(text) < 9 else None


def _low_ram(options: Options) -> int | None:
    return size_of(options.machine.get("max-ram-below-4g"), 1)


def _pci64(options: Options) -> int | str | None:
    """The size of the 64-bit PCI window, where a property states it."""
    hosts = ("q35-pcihost", "i440FX-pcihost", "mch")
    for driver, name, value in reversed(options.globals):
        if driver in hosts and name == "pci-hole64-size":
            return 0 if value in ("0", "0G", "0M", "0K") else size_of(value, 1)
    return None


def _shared_memory(options: Options) -> Iterator[Bar]:
    """BARs of emulated devices that are as large as memory: ivshmem, as Looking Glass has it."""
    for item in options.devices:
        if item.get("driver") not in _IVSHMEM:
            continue
        backend = options.objects.get(item.get("memdev", ""), {})
        size = size_of(backend.get("size") or item.get("size"), 1)
        if size is not None and size >= BASE_PAGE and not size & (size - 1):
            name = f"ivshmem {item.get('id') or item.get('memdev') or size}"
            # It is RAM to VFIO: a failed map of it ends QEMU, and does not only warn.
            yield Bar(name, size, required=True)


def _viommu(options: Options) -> str | None:
    """The driver of the guest's own IOMMU, whichever of three ways it was asked for."""
    drivers = ("intel-iommu", "amd-iommu", "virtio-iommu-pci", "virtio-iommu", "arm-smmuv3")
    found = (item["driver"] for item in options.devices if item.get("driver") in drivers)
    named = options.machine.get("iommu", "")
    return next(found, {"smmuv3": "arm-smmuv3", "intel": "intel-iommu"}.get(named))


def _viommu_device(options: Options) -> dict[str, str]:
    return next((item for item in options.devices if item.get("driver") == "intel-iommu"), {})


def _viommu_bits(options: Options, default: int | None) -> int | None:
    """Width of an Intel IOMMU; virtio-iommu takes the host's, and the others are not compared."""
    if _viommu(options) != "intel-iommu":
        return None
    stated = _viommu_device(options).get("aw-bits", "")
    for driver, name, value in options.globals:
        if driver == "intel-iommu" and name == "aw-bits":
            stated = stated or value
    return int(stated) if stated.isascii() and stated.isdecimal() else default


def _locked(options: Options) -> bool:
    words = options.flags.get("overcommit", "") + options.flags.get("realtime", "")
    return "mem-lock=on" in words or "mlock=on" in words


def _faults(options: Options) -> Iterator[Fault]:
    """What QEMU refuses on every host (hw/i386/intel_iommu.c, vtd_iommu_notify_flag_changed())."""
    given = any(item.get("driver", "").startswith("vfio-pci") for item in options.devices)
    if not given or _viommu(options) != "intel-iommu":
        return
    if re.match(r"pc(?!-q35)", options.machine.get("type", "pc")):
        yield Fault("its machine has no place for an intel-iommu, which q35 has", "-machine q35")
    item = _viommu_device(options)
    if item.get("caching-mode", "off") in ("off", "no", "false") and "x-flts" not in item:
        yield Fault(
            "its intel-iommu lacks caching-mode, so QEMU adds no device behind it",
            "-device intel-iommu,caching-mode=on",
            "caching-mode",
        )
