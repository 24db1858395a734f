# SPDX-License-Identifier: Apache-2.0
"""A change as libvirt's domain XML: of a domain that was given, or as elements alone.

Source: libvirt docs/formatdomain.rst; what comes out validates against src/conf/schemas/domain.rng
(`lab/checks/test_libvirt_schema.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.definitions.edit import Edits
from vmm_iova.definitions.libvirt import HANDED_ON, amount_in, domain_of, size_in
from vmm_iova.definitions.write_qemu import (
    ONE,
    cpu_with_bits,
    machine_type,
    nodes_of,
    pc_options,
    ram_of,
)
from vmm_iova.definitions.xml import read_xml, start_tag
from vmm_iova.ranges import BASE_PAGE
from vmm_iova.readers.qemu import paired
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.definitions.change import Change
    from vmm_iova.definitions.xml import Element
    from vmm_iova.planning.guest import Guest


def changed_domain(text: str, change: Change, source: str) -> str:
    """Return a domain with a change made.

    Args:
        text: the domain, as it was read.
        change: what must differ.
        source: name for messages.
    """
    domain = domain_of(read_xml(text, source), source)
    edits, guest = Edits(text), change.guest
    handed = _Handed(domain, edits)
    if change.levers.keys() & {"ram", "nodes"}:
        _ram(domain, edits, guest)
    if change.levers.keys() & {"maxmem", "slots"}:
        _maxmem(domain, edits, guest)
    if change.levers.keys() & {"page_size", "nodes"}:
        _pages(domain, edits, guest)
    if "phys_bits" in change.levers and guest.phys_bits is not None:
        _bits(domain, edits, guest.phys_bits, handed)
    driver = {}
    if change.levers.get("viommu_bits"):
        driver["aw_bits"] = str(guest.viommu_bits)
    if change.caching_mode:
        driver["caching_mode"] = "on"
    if driver:
        _iommu(domain, edits, handed, driver)
    if change.hard_limit is not None:
        _hard_limit(domain, edits, change.hard_limit)
    for name, value in pc_options(change):
        if "pci-hole64-size" in value and _hole(domain, edits, guest):
            continue
        handed.put(name, value)
    handed.write()
    return edits.done()


def with_options(text: str, options: Iterable[tuple[str, str]], source: str) -> str:
    """Return a domain that hands these options on to QEMU, behind its own."""
    domain = domain_of(read_xml(text, source), source)
    edits = Edits(text)
    handed = _Handed(domain, edits)
    for name, value in options:
        handed.put(name, value)
    handed.write()
    return edits.done()


def elements(change: Change) -> str:
    """Return the elements that a domain needs for a change, where none was given."""
    guest, lines = change.guest, []
    if "machine" in change.levers:
        machine = machine_type(guest).partition(",")[0]
        lines += _nested("os", [f"<type machine='{machine}'>hvm</type>"])
    if change.levers.keys() & {"ram", "nodes", "maxmem"}:
        lines.append(f"<memory unit='KiB'>{ram_of(guest) >> 10}</memory>")
    if guest.maxmem is not None:
        lines.append(_maxmem_line(guest))
    if guest.page_size is not None or any(pages for *_, pages in nodes_of(guest)):
        lines += _nested("memoryBacking", _pages_lines(guest))
    cpu = []
    if guest.phys_bits is not None:
        cpu.append(_bits_line("host-passthrough", guest.phys_bits))
    nodes = list(nodes_of(guest))
    if nodes:
        cells = [_cell(name, size) for name, size, _ in nodes]
        cpu += _nested("numa", cells)
    if cpu:
        opened, *rest = _nested("cpu", cpu)
        lines += [opened.replace("<cpu>", "<cpu mode='host-passthrough'>"), *rest]
    if guest.pci64 is not None:
        lines.append(_hole_controller(guest))
    other = [item for item in pc_options(change) if "pci-hole64-size" not in item[1]]
    if other:
        args = [f"<qemu:arg value='{word}'/>" for pair in other for word in _words(*pair)]
        lines += _nested("qemu:commandline", args)
        lines.append(f"<!-- and xmlns:qemu='{HANDED_ON}' in <domain> -->")
    return "\n".join(lines) + "\n"


def _nested(name: str, lines: Iterable[str]) -> list[str]:
    return [f"<{name}>", *(f"  {line}" for line in lines), f"</{name}>"]


def _words(name: str, value: str) -> tuple[str, str]:
    return f"-{name}", value


# -- what is handed on to QEMU ---------------------------------------------------------------------


class _Handed:
    """The arguments of <qemu:commandline>, those of one kind in each other's place."""

    def __init__(self, domain: Element, edits: Edits) -> None:
        self._domain, self._edits = domain, edits
        prefixes = (key[6:] for key, value in domain.attributes.items() if value == HANDED_ON)
        self._prefix = next(prefixes, None)
        prefix = self._prefix or "qemu"
        self._line = None if self._prefix is None else domain.find(f"{prefix}:commandline")
        self._args = list(self._line.every(f"{prefix}:arg")) if self._line is not None else []
        self._new: list[str] = []

    def find(self, option: str, start: str = "") -> Element | None:
        """Return the argument that is the value of an option, the last one of its kind."""
        found = None
        for name, value, at in paired([arg.get("value") for arg in self._args]):
            if at is not None and name == option and value.startswith(start):
                found = self._args[at]
        return found

    def put(self, option: str, value: str) -> None:
        """Set an option: in the place of its like, or behind all."""
        known = self.find(option, "" if option in ONE else value.rpartition("=")[0])
        if known is not None:
            self._edits.set_attributes(known, value=value)
        else:
            self._new += [f"-{option}", value]

    def write(self) -> None:
        """Add what is new."""
        if not self._new:
            return
        prefix = self._prefix or "qemu"
        args = [f"<{prefix}:arg value='{word}'/>" for word in self._new]
        if self._prefix is None:
            self._edits.set_attributes(self._domain, **{f"xmlns:{prefix}": HANDED_ON})
        if self._line is not None:
            self._edits.add(self._line, args)
        else:
            self._edits.add(self._domain, _nested(f"{prefix}:commandline", args))


# -- one kind of change each -----------------------------------------------------------------------


def _ram(domain: Element, edits: Edits, guest: Guest) -> None:
    size = ram_of(guest)
    # <memory> counts the modules in that are listed among the devices.
    size += sum(size_in(item, "") for item in domain.every("devices", "memory", "target", "size"))
    for element in (domain.find("memory"), domain.find("currentMemory")):
        if element is not None:
            number, unit = amount_in(size, element.get("unit", "KiB"))
            edits.set_text(element, number)
            if unit != element.get("unit", "KiB"):
                edits.set_attributes(element, unit=unit)
    numa = domain.find("cpu", "numa")
    if numa is not None:
        _cells(numa, edits, guest)


def _cells(numa: Element, edits: Edits, guest: Guest) -> None:
    wanted = {name: size for name, size, _ in nodes_of(guest)}
    cells = list(numa.every("cell"))
    whole = ram_of(guest)
    for index, cell in enumerate(cells):
        name = cell.get("id", str(index))
        size = wanted.get(name)
        if size is None:  # the nodes went: all is shared out as evenly as whole MiB allow
            each = whole // len(cells) >> 20 << 20
            size = each if index else whole - each * (len(cells) - 1)
        number, unit = amount_in(size, cell.get("unit", "KiB"))
        edits.set_attributes(cell, memory=number, unit=unit)


def _cell(name: str, size: int) -> str:
    return f"<cell id='{name}' cpus='...' memory='{size >> 10}' unit='KiB'/>"


def _maxmem_line(guest: Guest, unit: str = "KiB") -> str:
    number, unit = amount_in(parse_size(guest.maxmem or 0), unit)
    return f"<maxMemory slots='{guest.slots}' unit='{unit}'>{number}</maxMemory>"


def _maxmem(domain: Element, edits: Edits, guest: Guest) -> None:
    known = domain.find("maxMemory")
    if guest.maxmem is None:
        if known is not None:
            edits.replace(known, ["<!-- maxMemory: taken out -->"])
        return
    if known is not None:
        edits.replace(known, [_maxmem_line(guest, known.get("unit", "KiB"))])
    else:
        edits.add(domain, [_maxmem_line(guest)], domain.find("memory"))


def _pages_lines(guest: Guest) -> list[str]:
    nodes = list(nodes_of(guest))
    if not nodes:
        size = parse_size(guest.page_size or BASE_PAGE)
        return _nested("hugepages", [f"<page size='{size >> 10}' unit='KiB'/>"])
    pages = [
        f"<page size='{size >> 10}' unit='KiB' nodeset='{name}'/>"
        for name, _, size in nodes
        if size is not None and size > BASE_PAGE
    ]
    return _nested("hugepages", pages) if pages else []


def _pages(domain: Element, edits: Edits, guest: Guest) -> None:
    lines = _pages_lines(guest)
    backing = domain.find("memoryBacking")
    known = domain.find("memoryBacking", "hugepages")
    if guest.page_size is None and not any(pages for *_, pages in nodes_of(guest)):
        if known is not None:
            edits.replace(known, ["<!-- hugepages: taken out -->"])
    elif known is not None:
        edits.replace(known, lines)
    elif backing is not None:
        edits.add(backing, lines)
    else:
        after = domain.find("currentMemory") or domain.find("memory")
        edits.add(domain, _nested("memoryBacking", lines), after)


def _bits_line(mode: str, bits: int) -> str:
    """Only host-passthrough and maximum take the host's with a limit (qemu_validate.c)."""
    if mode in ("host-passthrough", "maximum"):
        return f"<maxphysaddr mode='passthrough' limit='{bits}'/>"
    return f"<maxphysaddr mode='emulate' bits='{bits}'/>"


def _bits(domain: Element, edits: Edits, bits: int, handed: _Handed) -> None:
    by_hand = handed.find("cpu")
    by_global = handed.find("global", "host-x86_64-cpu.host-phys-bits-limit=")
    if by_hand is not None:
        edits.set_attributes(by_hand, value=cpu_with_bits(by_hand.get("value"), bits))
        return
    if by_global is not None:
        handed.put("global", f"host-x86_64-cpu.host-phys-bits-limit={bits}")
        return
    cpu = domain.find("cpu")
    if cpu is None:
        line = [_bits_line("custom", bits)]
        model = "<model fallback='allow'>qemu64</model>"
        opened, *rest = _nested("cpu", [model, *line])
        full = [opened.replace("<cpu>", "<cpu mode='custom' match='exact'>"), *rest]
        edits.add(domain, full, domain.find("os"))
        return
    mode = cpu.get("mode", "custom")
    known = cpu.find("maxphysaddr")
    if known is not None:
        edits.replace(known, [_bits_line(mode, bits)])
        return
    # The schema has <maxphysaddr> behind <model>, <vendor>, <topology> and <cache> in any order.
    edits.add(cpu, [_bits_line(mode, bits)])


def _iommu(domain: Element, edits: Edits, handed: _Handed, driver: dict[str, str]) -> None:
    iommu = next((i for i in domain.every("devices", "iommu") if i.get("model") == "intel"), None)
    if iommu is None:  # it came by <qemu:commandline>
        for name, value in driver.items():
            handed.put("global", f"intel-iommu.{name.replace('_', '-')}={value}")
        return
    known = iommu.find("driver")
    if known is not None:
        edits.set_attributes(known, **driver)
    else:
        edits.add(iommu, [start_tag("driver", driver, empty=True)])


def _hard_limit(domain: Element, edits: Edits, size: int) -> None:
    line = f"<hard_limit unit='KiB'>{-(-size // 1024)}</hard_limit>"
    known = domain.find("memtune", "hard_limit")
    if known is not None:
        edits.replace(known, [line])


def _hole_controller(guest: Guest) -> str:
    model = "pcie-root" if str(guest.machine).startswith("q35") else "pci-root"
    return f"<controller type='pci' index='0' model='{model}'>{_hole_line(guest)}</controller>"


def _hole_line(guest: Guest) -> str:
    size = 0 if guest.pci64 in (0, "0", None) else parse_size(guest.pci64)
    return f"<pcihole64 unit='KiB'>{size >> 10}</pcihole64>"


def _hole(domain: Element, edits: Edits, guest: Guest) -> bool:
    """Set the size of the 64-bit window on the root; False where there are no devices."""
    devices = domain.find("devices")
    if devices is None:
        return False
    for controller in domain.every("devices", "controller"):
        if controller.get("model") in ("pcie-root", "pci-root"):
            known = controller.find("pcihole64")
            if known is not None:
                edits.replace(known, [_hole_line(guest)])
            else:
                edits.add(controller, [_hole_line(guest)])
            return True
    edits.add(devices, [_hole_controller(guest)])
    return True
