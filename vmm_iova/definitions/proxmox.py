# SPDX-License-Identifier: Apache-2.0
"""Proxmox VE's configuration of a VM, as the options that qemu-server gives QEMU.

Source: pve-docs qm.conf(5); qemu-server PVE/QemuServer.pm, config_to_command(), PVE/QemuServer/
Memory.pm, get_max_mem() and config(), PVE/QemuServer/PCI.pm (9.0).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.definitions.definition import AssignedDevice, Definition
from vmm_iova.definitions.options import Options
from vmm_iova.definitions.qemu import bdf_of, definition_of
from vmm_iova.errors import HostDataError
from vmm_iova.patterns import regex
from vmm_iova.plain import one_line
from vmm_iova.readers.qemu import keys, options_of
from vmm_iova.readers.shell import split_words
from vmm_iova.record import replace
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.readers.qemu import Option

LINE = regex(r"^(?P<key>[a-z][a-z_-]*\d{0,3}):(?P<value>.*)$", re.MULTILINE)
"""A line of the configuration."""

TELLING = regex(
    r"^(?:hostpci\d+|memory|cores|sockets|scsihw|ostype|bios|boot|efidisk0|vmgenid|smbios1|net\d+|"
    r"args|numa|machine|cpu):[ \t]",
    re.MULTILINE,
)
"""Lines that tell such a configuration from other texts."""

_SECTION = regex(r"^\[([^\]\n]{1,80})\]\s*$", re.MULTILINE)
_QUIET = regex(
    r"acpi|affinity|agent|allow_ksm|amd[_-]sev|arch|args|audio0|autostart|balloon|bios|boot|bootdisk|cdrom|"
    r"cicustom|cipassword|citype|ciupgrade|ciuser|cores|cpu|cpulimit|cpuunits|description|digest|"
    r"efidisk0|freeze|hookscript|hostpci\d+|hotplug|hugepages|ide\d|import_working_storage|"
    r"intel[_-]tdx|ipconfig\d+|ivshmem|keephugepages|keyboard|kvm|localtime|lock|machine|memory|meta|"
    r"migrate_downtime|migrate_speed|name|nameserver|net\d+|numa|numa\d+|onboot|ostype|parallel\d|"
    r"parent|protection|reboot|rng0|running_nets_host_mtu|runningcpu|runningmachine|sata\d|"
    r"scsi\d+|scsihw|searchdomain|serial\d|shares|smbios1|smp|snaptime|sockets|spice_enhancements|"
    r"sshkeys|startdate|startup|tablet|tags|tdf|template|tpmstate0|unused\d+|usb\d+|vcpus|vga|"
    r"virtio\d+|virtiofs\d+|vmgenid|vmid|vmstate|vmstatestorage|watchdog"
)
_MOST_MEM = 4 << 20  # Memory.pm, $MAX_MEM, in MiB
_SLOTS = 255


def read_proxmox(text: str, source: str) -> Definition:
    """Read `ID.conf`, or what `qm config ID` prints.

    Snapshots that stand behind the configuration are left out.

    Raises:
        HostDataError: a part that matters is malformed.
        RequestError: it has what no model here expresses.

    Complexity: O(size).
    """
    own = own_part(text)
    config = {match["key"]: match["value"].strip() for match in LINE.finditer(own)}
    options = Options(arch=config.get("arch", "x86_64"))
    options.flags["accel"] = "tcg" if config.get("kvm") == "0" else "kvm"
    _release(config, options)
    options.add(_options(config, options, source), source)
    options.add(options_of(split_words(config.get("args", ""))), source)
    for key, value in config.items():
        if not _QUIET.fullmatch(key):
            options.unread[f"{key}: {shorten(one_line(value), 40)}"] = None
    devices = list(_devices(config))
    made = definition_of(
        options,
        kind="proxmox",
        name=one_line(config["name"]) if "name" in config else None,
        text=text,
        source=source,
    )
    others = [item for item in made.devices if item.name not in {d.name for d in devices}]
    every = (*devices, *others)
    readings = tuple(
        replace(item, guest=replace(item.guest, devices=max(1, len(every))))
        for item in made.readings
    )
    return replace(made, devices=every, readings=readings)


def own_part(text: str) -> str:
    """Return the configuration itself: what stands before the first section, a snapshot."""
    section = _SECTION.search(text)
    return text[: section.start()] if section else text


def _release(config: dict[str, str], options: Options) -> None:
    """The VM was made with some release, and runs with that one or a newer one."""
    made = re.search(r"creation-qemu=(\d{1,2})\.(\d{1,2})", config.get("meta", ""))
    running = re.search(r"-(\d{1,2})\.(\d{1,2})", config.get("runningmachine", ""))
    found = [(int(item[1]), int(item[2])) for item in (made, running) if item]
    if found:
        options.releases = (max(found), None)


def _options(config: dict[str, str], options: Options, source: str) -> Iterator[Option]:
    machine = keys(config.get("machine", "pc"), "type")
    yield "machine", f"type={machine.get('type') or 'pc'}"
    if config.keys() & {"amd_sev", "amd-sev", "intel_tdx", "intel-tdx"}:
        yield "machine", "confidential-guest-support=sev0"
    viommu = machine.get("viommu")
    if viommu == "intel":
        bits = f",aw-bits={machine['aw-bits']}" if "aw-bits" in machine else ""
        yield "device", f"intel-iommu,intremap=on,caching-mode=on{bits}"
    elif viommu == "virtio":
        yield "device", "virtio-iommu-pci"
    if config.get("bios") == "ovmf":
        yield "machine", "pflash0=pflash0"
    ports = {
        bdf_of(part)
        for key, value in config.items()
        if re.fullmatch(r"hostpci\d+", key) and "pcie=1" in value.split(",")
        for part in re.split(r"[;,]", keys(value, "host").get("host", ""))
    }
    for index, given in enumerate(_devices(config)):
        if given.kind == "pci":
            bus = ",bus=ich9-pcie-port-1" if given.name in ports else ""
            yield "device", f"vfio-pci,host={given.name},id=hostpci{index}{bus}"
    yield from _cpu(config, options)
    yield from _memory(config, options, source)
    if "ivshmem" in config:
        size = keys(config["ivshmem"], "size").get("size", "")
        if size.isascii() and size.isdecimal():
            yield "object", f"memory-backend-file,id=ivshmem,size={int(size) << 20}"
            yield "device", "ivshmem-plain,memdev=ivshmem"


def _cpu(config: dict[str, str], options: Options) -> Iterator[Option]:
    """-cpu: qemu-server hands phys-bits on as it is, which `host` does not obey."""
    cpu = keys(config.get("cpu", "kvm64"), "cputype")
    model = cpu.get("cputype", "kvm64")
    if model.startswith("custom-"):
        options.unread[f"cpu: {model}: what cpu-models.conf says of it"] = None
        model = "kvm64"
    bits = cpu.get("phys-bits", "")
    more = ""
    if bits == "host":
        more = ",host-phys-bits=true"
    elif bits:
        more = f",phys-bits={bits}"
    yield "cpu", f"{model}{more}"


def _memory(config: dict[str, str], options: Options, source: str) -> Iterator[Option]:
    text = keys(config.get("memory", "512"), "current").get("current", "512")
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise HostDataError(
            f"{source}: memory {shorten(one_line(text), 40)!r} is no number of MiB",
            source=source,
            text=text,
        )
    ram, pages = int(text), _pages(config)
    numa = config.get("numa") == "1" or bool(pages)
    if "memory" in re.split(r"[,;\s]+", config.get("hotplug", "")) and numa:
        most = _max_mem(config)
        if most is None:
            options.unread[
                "hotplug: memory: how far it may grow depends on the host's address bits; "
                "--maxmem says it"
            ] = None
        else:
            options.unread["hotplug: memory: what of it comes as modules, above 1 GiB"] = None
            yield "m", f"size={ram}M,slots={_SLOTS},maxmem={max(most, ram)}M"
            ram = 0
    if ram:
        yield "m", f"size={ram}M"
    nodes = [(key, keys(value)) for key, value in config.items() if re.fullmatch(r"numa\d+", key)]
    stated = [(key, node) for key, node in nodes if node.get("memory", "").isdecimal()]
    for key, node in stated if numa else ():
        number = key.removeprefix("numa")
        yield "object", _backend(f"ram-node{number}", int(node["memory"]), pages)
        yield "numa", f"node,nodeid={number},memdev=ram-node{number}"
    if pages and not stated:
        yield "object", _backend("ram", int(text), pages)
        yield "machine", "memory-backend=ram"


def _backend(name: str, mib: int, pages: int | None) -> str:
    huge = f",hugetlb=on,hugetlbsize={pages}" if pages else ""
    return f"memory-backend-memfd,id={name},size={mib}M{huge}"


def _pages(config: dict[str, str]) -> int | None:
    """Size of huge pages: `any` takes the largest that the memory is a multiple of."""
    named = config.get("hugepages")
    if named is None or named == "any":
        return None if named is None else 2 << 20
    return int(named) << 20 if named in ("2", "1024") else None


def _max_mem(config: dict[str, str]) -> int | None:
    """MiB that memory may grow to, by the guest's address bits; None where the host's count."""
    cpu = keys(config.get("cpu", "kvm64"), "cputype")
    bits = cpu.get("phys-bits", "")
    if bits == "host" or (not bits and cpu.get("cputype") in ("host", "max")):
        return None
    number = int(bits) if bits.isascii() and bits.isdecimal() and len(bits) < 3 else 40
    return min(1 << max((number & ~1) - 21, 0), _MOST_MEM)


def _devices(config: dict[str, str]) -> Iterator[AssignedDevice]:
    for key in sorted(config, key=lambda name: (len(name), name)):
        if not re.fullmatch(r"hostpci\d+", key):
            continue
        given = keys(config[key], "host")
        rom = given.get("rombar", "1") != "0"
        if "mdev" in given:
            yield AssignedDevice(one_line(f"{given['mdev']} of {given.get('host')}"), "mdev", True)
            continue
        if "mapping" in given or not given.get("host"):
            named = one_line(given.get("mapping", key))
            yield AssignedDevice(f"mapping {named}", "other", True, rom)
            continue
        for part in re.split(r"[;,]", given["host"]):
            name = bdf_of(part)
            if name is None:
                yield AssignedDevice(shorten(one_line(part), 40), "other", True, rom)
            else:
                yield AssignedDevice(name, "pci", True, rom)
