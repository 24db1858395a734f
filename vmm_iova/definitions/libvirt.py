# SPDX-License-Identifier: Apache-2.0
"""libvirt's domain XML, as the options that libvirt gives QEMU.

Source: libvirt docs/formatdomain.rst and src/qemu/qemu_command.c (12.0); what a newer element does
is counted where it moves memory, and named where it might.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.definitions.definition import AssignedDevice, Definition
from vmm_iova.definitions.options import Options
from vmm_iova.definitions.qemu import definition_of
from vmm_iova.definitions.xml import read_xml
from vmm_iova.errors import HostDataError
from vmm_iova.plain import one_line
from vmm_iova.planning.guest import Reading
from vmm_iova.readers.qemu import options_of
from vmm_iova.record import replace
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.definitions.xml import Element
    from vmm_iova.readers.qemu import Option

HANDED_ON = "http://libvirt.org/schemas/domain/qemu/1.0"
"""Namespace of what libvirt hands on to QEMU as it stands."""

_UNITS = {
    "b": 1,
    "bytes": 1,
    "kb": 10**3,
    "k": 1 << 10,
    "kib": 1 << 10,
    "mb": 10**6,
    "m": 1 << 20,
    "mib": 1 << 20,
    "gb": 10**9,
    "g": 1 << 30,
    "gib": 1 << 30,
    "tb": 10**12,
    "t": 1 << 40,
    "tib": 1 << 40,
}
"""Units of a size (src/util/virutil.c, virScaleInteger())."""

_DOMAIN_WORDS = (
    "name uuid title description metadata genid memory maxMemory currentMemory memoryBacking "
    "launchSecurity memtune vcpu vcpus iothreads iothreadids defaultiothread cputune numatune "
    "resource sysinfo "
    "os bootloader bootloader_args features cpu clock on_poweroff on_reboot on_crash "
    "on_lockfailure pm perf devices seclabel idmap blkiotune keywrap"
)
_DOMAIN = frozenset(_DOMAIN_WORDS.split())
_DEVICES_WORDS = (
    "emulator disk controller lease filesystem interface input graphics sound audio video hostdev "
    "redirdev redirfilter smartcard hub watchdog memballoon rng tpm nvram panic shmem memory iommu "
    "vsock crypto serial parallel console channel pstore"
)
_DEVICES = frozenset(_DEVICES_WORDS.split())
_ADDED = ("interface", "hostdev", "iommu", "memory", "shmem")


def read_libvirt(text: str, source: str) -> Definition:
    """Read a domain.

    Args:
        text: what `virsh dumpxml` prints, with line feeds as its only line ends.
        source: name for messages.

    Raises:
        HostDataError: it is no domain, or a part that matters is malformed.
        RequestError: it has what no model here expresses.

    Complexity: O(size).
    """
    domain = domain_of(read_xml(text, source), source)
    hypervisor = domain.get("type")
    if hypervisor not in ("kvm", "qemu", "hvf", ""):
        raise HostDataError(
            f"{source}: a domain of type {shorten(hypervisor, 20)!r} is not one of QEMU's",
            source=source,
            text=hypervisor,
            hint="domains of type kvm and qemu are read",
        )
    options = Options()
    options.flags["accel"] = "tcg" if hypervisor == "qemu" else "kvm"
    options.add(_options(domain, options, source), source)
    handed = list(_handed_on(domain, options))
    options.add(handed, source)
    _unread(domain, options)
    name = domain.find("name")
    made = definition_of(
        options,
        kind="libvirt",
        name=None if name is None else one_line(name.text),
        text=text,
        source=source,
    )
    given = [_assigned(item) for item in _given(domain)]
    others = [item for item in made.devices if item.name not in {d.name for d in given}]
    devices = (*given, *others)
    readings = (
        replace(item, guest=replace(item.guest, devices=max(1, len(devices))))
        for item in _by_model(made.readings, options)
    )
    limit = _hard_limit(domain, source)
    return replace(made, devices=devices, hard_limit=limit).with_guests(readings)


def _by_model(readings: tuple[Reading, ...], options: Options) -> tuple[Reading, ...]:
    """host-model is a named model: of 40 address bits, unless this libvirt adds the host's."""
    if options.cpu != "host-model" or not options.kvm or readings[-1].guest.phys_bits is None:
        return readings
    newest = replace(readings[-1].guest, phys_bits=None)
    named = (
        Reading(", ".join(filter(None, (item.text, "host-model of 40 address bits"))), item.guest)
        for item in readings
    )
    return (*named, Reading("a libvirt whose host-model has the host's address bits", newest))


def domain_of(root: Element, source: str) -> Element:
    """Return the domain of a document: its root, or what a saved state or snapshot holds.

    Raises:
        HostDataError: there is none.
    """
    if root.name == "domain":
        return root
    inner = root.find("domain")
    if inner is None:
        raise HostDataError(
            f"{source}: <{shorten(one_line(root.name), 30)}> is no domain of libvirt",
            source=source,
            hint="virsh dumpxml NAME prints one",
        )
    return inner


def size_in(element: Element, source: str, default: str = "KiB") -> int:
    """Return the bytes that an element states.

    Raises:
        HostDataError: it is no size.
    """
    unit = _UNITS.get(element.get("unit", default).lower())
    if unit is None or not re.fullmatch(r"[0-9]{1,19}", element.text):
        shown = f"{element.text} {element.get('unit')}".strip()
        raise HostDataError(
            f"{source}: <{element.name}> {shorten(one_line(shown), 40)!r} is no size",
            source=source,
            text=element.text,
        )
    return int(element.text) * unit


def amount_in(size: int, unit: str) -> tuple[str, str]:
    """Return a size as a number and its unit: the one that stands there, or else KiB."""
    factor = _UNITS.get(unit.lower(), 1024)
    if size % factor:
        unit, factor = "KiB", 1024
    return str(size // factor), unit


# -- as options ------------------------------------------------------------------------------------


def _options(domain: Element, options: Options, source: str) -> Iterator[Option]:
    kind = domain.find("os", "type")
    if kind is not None:
        options.arch = kind.get("arch") or None
        if kind.get("machine"):
            yield "machine", f"type={kind.get('machine')}"
    gic = domain.find("features", "gic")
    if gic is not None and gic.get("version"):
        yield "machine", f"gic-version={gic.get('version')}"
    if domain.find("launchSecurity") is not None:
        yield "machine", "confidential-guest-support=lsec0"
    yield from _firmware(domain)
    yield from _memory(domain, options, source)
    yield "cpu", _cpu(domain)
    for name, prop in (("pcie-root", "q35-pcihost"), ("pci-root", "i440FX-pcihost")):
        for controller in domain.every("devices", "controller"):
            hole = controller.find("pcihole64")
            if hole is not None and controller.get("model") == name:
                yield "global", f"{prop}.pci-hole64-size={size_in(hole, source)}"
    yield from _iommu(domain)
    yield from _shared(domain, source)
    yield from _root_ports(domain)
    for index, item in enumerate(_given(domain)):
        given = _assigned(item)
        if given.kind == "pci":  # libvirt's alias is the id, by which -set finds it
            where = _bus(item, options)
            yield "device", f"vfio-pci,host={given.name},id=hostdev{index},bus={where}"


def _root_ports(domain: Element) -> Iterator[Option]:
    """The root ports that it lists; libvirt's own are not all there before it has defined it."""
    for controller in domain.every("devices", "controller"):
        place = controller.find("address")
        if controller.get("model") == "pcie-root-port" and place is not None:
            bus, slot, function = (_number(place.get(key)) for key in ("bus", "slot", "function"))
            index = _number(controller.get("index"))
            if bus == 0 and None not in (index, slot):
                yield "device", f"pcie-root-port,id=pci.{index},addr={slot:x}.{function or 0:x}"


def _number(text: str) -> int | None:
    """A number of a PCI address, as libvirt writes it: 0x0a, or 10."""
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,4}", text):
        return int(text, 16)
    return int(text) if re.fullmatch(r"[0-9]{1,4}", text) else None


def _bus(item: Element, options: Options) -> str:
    """The guest's bus; where none is stated, libvirt gives each device a port of its own."""
    if not re.match(r"pc-q35|q35|virt", options.machine.get("type", "")):
        return "pci.0"
    place = item.find("address")
    number = _number("" if place is None else place.get("bus"))
    return "pcie.0" if number == 0 else f"pci.{'next' if number is None else number}"


def _firmware(domain: Element) -> Iterator[Option]:
    loader = domain.find("os", "loader")
    system = domain.find("os")
    efi = system is not None and system.get("firmware") == "efi"
    if efi or (loader is not None and loader.get("type") == "pflash"):
        yield "machine", "pflash0=libvirt-pflash0-format"
    elif loader is not None and loader.text:
        yield "bios", loader.text


def _memory(domain: Element, options: Options, source: str) -> Iterator[Option]:
    """-m, -object and -numa; modules that are listed count in <memory>, and are no RAM at start.

    Where there are cells, libvirt takes their sum for <memory> (virDomainDefPostParseMemory()).
    """
    total = domain.find("memory")
    cells = list(domain.every("cpu", "numa", "cell"))
    modules = sum(
        size_in(size, source)
        for size in domain.every("devices", "memory", "target", "size")
        if size is not None
    )
    in_cells = sum(_cell_size(cell, source) for cell in cells)
    if total is not None or in_cells:
        size = in_cells or (0 if total is None else size_in(total, source) - modules)
        if size <= 0:
            raise HostDataError(
                f"{source}: <memory> is less than its modules, {modules:#x} bytes",
                source=source,
                text="" if total is None else total.text,
            )
        most = domain.find("maxMemory")
        more = ""
        if most is not None:
            more = f",slots={most.get('slots', '0')},maxmem={size_in(most, source) >> 10}K"
        yield "m", f"size={size >> 10}K{more}"
    pages = list(domain.every("memoryBacking", "hugepages"))
    listed = [item for one in pages for item in one.every("page")]
    everywhere = ("", "0") if not cells else ("",)
    default = next(
        (_page(page, source) for page in listed if page.get("nodeset") in everywhere), None
    )
    if pages and not listed:
        default = 2 << 20  # the kernel's default on x86
    for index, cell in enumerate(cells):
        number = cell.get("id", str(index))
        own = next((p for p in listed if _in_set(number, p.get("nodeset"))), None)
        page = default if own is None else _page(own, source)
        size = _cell_size(cell, source)
        yield "object", _backend(f"ram-node{number}", size, page)
        yield "numa", f"node,nodeid={number},memdev=ram-node{number}"
    if not cells and default is not None and total is not None:
        yield "object", _backend("pc.ram", size_in(total, source) - modules, default)
        yield "machine", "memory-backend=pc.ram"
    if domain.find("memoryBacking", "locked") is not None:
        yield "overcommit", "mem-lock=on"


def _backend(name: str, size: int, page: int | None) -> str:
    huge = f",hugetlb=on,hugetlbsize={page}" if page is not None else ""
    return f"memory-backend-memfd,id={name},size={size}{huge}"


def _cell_size(cell: Element, source: str) -> int:
    made = replace_text(cell, cell.get("memory"))
    return size_in(made, source)


def replace_text(element: Element, text: str) -> Element:
    """Return an element with a size that an attribute of it states."""
    return replace(element, words=[text])


def _page(page: Element, source: str) -> int | None:
    """Bytes of a huge page; None for the 4 KiB that libvirt lets one write there, too."""
    size = size_in(replace_text(page, page.get("size")), source)
    return size if size > 4096 else None


def _in_set(number: str, nodes: str) -> bool:
    """Tell whether a node is in a list such as `0-2,^1,4`."""
    found = False
    for part in nodes.split(","):
        first, dash, last = part.strip().lstrip("^").partition("-")
        if not (number.isdecimal() and first.isdecimal()):
            continue
        inside = int(first) <= int(number) <= int(last if dash and last.isdecimal() else first)
        if inside:
            found = not part.strip().startswith("^")
    return found


def _cpu(domain: Element) -> str:
    """-cpu: host-model is a named model, whose address bits are 40 unless they are stated."""
    cpu = domain.find("cpu")
    if cpu is None:
        return "qemu64"
    mode = cpu.get("mode") or ("custom" if cpu.find("model") is not None else "")
    model = cpu.find("model")
    named = model.text if model is not None and model.text else "qemu64"
    text = {"host-passthrough": "host", "maximum": "max", "host-model": "host-model"}.get(
        mode, named
    )
    bits = cpu.find("maxphysaddr")
    if bits is None:
        return text
    if bits.get("mode") == "passthrough":
        limit = bits.get("limit")
        return f"{text},host-phys-bits=on" + (f",host-phys-bits-limit={limit}" if limit else "")
    stated = bits.get("bits")
    return f"{text},host-phys-bits=off,phys-bits={stated}" if stated else text


def _iommu(domain: Element) -> Iterator[Option]:
    for item in domain.every("devices", "iommu"):
        model, driver = item.get("model"), item.find("driver")
        keys = driver.attributes if driver is not None else {}
        if model == "intel":
            names = {"aw_bits": "aw-bits", "caching_mode": "caching-mode", "intremap": "intremap"}
            shown = "".join(f",{new}={keys[old]}" for old, new in names.items() if old in keys)
            yield "device", f"intel-iommu{shown}"
        elif model == "smmuv3":
            yield "machine", "iommu=smmuv3"
        elif model == "virtio":
            yield "device", "virtio-iommu-pci"
        elif model == "amd":
            yield "device", "amd-iommu"


def _shared(domain: Element, source: str) -> Iterator[Option]:
    for index, item in enumerate(domain.every("devices", "shmem")):
        model, size = item.find("model"), item.find("size")
        kind = model.get("type") if model is not None else "ivshmem-plain"
        if size is not None and kind.startswith("ivshmem"):
            where = f"shmmem-{index}"
            yield "object", f"memory-backend-file,id={where},size={size_in(size, source)}"
            yield "device", f"ivshmem-plain,id={one_line(item.get('name'))},memdev={where}"


# -- devices of the host, what is handed on, what is not understood --------------------------------


def _given(domain: Element) -> Iterator[Element]:
    for item in domain.every("devices", "hostdev"):
        if item.get("type") in ("pci", "mdev"):
            yield item
    for item in domain.every("devices", "interface"):
        if item.get("type") == "hostdev":
            yield item


def _assigned(item: Element) -> AssignedDevice:
    address = item.find("source", "address")
    managed, rom = item.get("managed") == "yes", item.find("rom")
    shows_rom = rom is None or "off" not in (rom.get("bar"), rom.get("enabled"))
    if address is None:
        return AssignedDevice("?", "other", managed, shows_rom)
    if address.get("uuid"):
        return AssignedDevice(address.get("uuid"), "mdev", managed, shows_rom)
    numbers = [address.get(key, "0") for key in ("domain", "bus", "slot", "function")]
    try:
        domain, bus, slot, function = (int(number, 0) for number in numbers)
    except ValueError:
        return AssignedDevice(shorten(one_line(":".join(numbers)), 40), "other", managed, shows_rom)
    name = f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
    return AssignedDevice(name, "pci", managed, shows_rom)


def _handed_on(domain: Element, options: Options) -> Iterator[Option]:
    prefixes = [
        key.removeprefix("xmlns:") for key, value in domain.attributes.items() if value == HANDED_ON
    ]
    for child in domain.children:
        prefix, colon, local = child.name.partition(":")
        if not colon or local not in ("commandline", "override"):
            continue
        if prefix not in prefixes:
            if prefix == "qemu":
                text = f"<{child.name}> without xmlns:qemu: libvirt drops it"
                options.unread[text] = None
            continue
        if local == "commandline":
            words = [arg.get("value") for arg in child.every(f"{prefix}:arg")]
            yield from options_of(words)
        else:
            yield from _overridden(child, prefix)


def _overridden(child: Element, prefix: str) -> Iterator[Option]:
    """<qemu:override> sets properties of a device by its alias (libvirt 8.2)."""
    for item in child.every(f"{prefix}:device"):
        for made in item.every(f"{prefix}:frontend", f"{prefix}:property"):
            yield "set", f"device.{item.get('alias')}.{made.get('name')}={made.get('value')}"


def _hard_limit(domain: Element, source: str) -> int | None:
    limit = domain.find("memtune", "hard_limit")
    return None if limit is None else size_in(limit, source)


def _unread(domain: Element, options: Options) -> None:
    """List what was not understood, each kind once."""
    for child in domain.children:
        if ":" not in child.name and child.name not in _DOMAIN:
            options.unread[f"<{shorten(one_line(child.name), 40)}>"] = None
    devices = domain.find("devices")
    for child in devices.children if devices is not None else ():
        if child.name not in _DEVICES:
            options.unread[f"<{shorten(one_line(child.name), 40)}> in <devices>"] = None
    for item in domain.every("devices", "memory"):
        model = item.get("model")
        if model not in ("dimm", "virtio-mem"):
            options.unread[f"<memory model='{shorten(one_line(model), 20)}'>: its place"] = None
    for item in domain.every("devices", "interface"):
        if item.get("type") == "network" and item.find("driver") is not None:
            driver = item.find("driver")
            if driver is not None and driver.get("name") == "vfio":
                options.unread["<interface type='network'>: which device it takes"] = None
