# SPDX-License-Identifier: Apache-2.0
"""A change as options of QEMU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.errors import RequestError
from vmm_iova.readers.qemu import device, keys
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.definitions.change import Change
    from vmm_iova.planning.guest import Guest
    from vmm_iova.readers.qemu import Option

_TYPES = {
    "q35": "q35",
    "q35-7.0": "pc-q35-7.0",
    "i440fx": "pc",
    "i440fx-7.0": "pc-i440fx-7.0",
    "virt": "virt",
    "virt-gicv2": "virt,gic-version=2",
    "virt-lowmem": "virt,highmem=off",
    "riscv-virt": "virt",
    "s390x": "s390-ccw-virtio",
    "microvm": "microvm",
}
"""QEMU's machine type of each model that is QEMU's."""

ONE = ("cpu", "m")
"""Options of which the last one counts: a second one takes the place of the first."""

_HOSTS = {"q35": "q35-pcihost", "i440fx": "i440FX-pcihost"}


def options_for(
    change: Change, cpu: str | None, own: Sequence[Option] = ()
) -> Iterator[tuple[str, str]]:
    """Yield the options that make a change: name and value, each to go in the place of its like.

    Args:
        change: what must differ.
        cpu: -cpu as it is, or None for `host`.
        own: the options that there are, whose memory backends keep what else they have.

    Raises:
        RequestError: the machine is not one of QEMU's.
    """
    guest, levers = change.guest, change.levers
    if "machine" in levers:
        yield "machine", machine_type(guest)
    if levers.keys() & {"ram", "nodes", "maxmem", "slots"}:
        yield "m", memory_value(guest)
    if levers.keys() & {"page_size", "nodes", "ram"}:
        backends = list(_own_backing(guest, own))
        if backends or "ram" not in levers or levers.keys() & {"page_size", "nodes"}:
            yield from backends or _backing(guest)
    if "machine" in levers and "phys_bits" not in levers and str(guest.machine) != "s390x":
        yield "cpu", cpu or "host"
    if "phys_bits" in levers and guest.phys_bits is not None:
        yield "cpu", cpu_with_bits(cpu or "host", guest.phys_bits)
    yield from pc_options(change)
    if change.levers.get("viommu_bits"):
        yield "global", f"intel-iommu.aw-bits={guest.viommu_bits}"
    if change.caching_mode:
        yield "global", "intel-iommu.caching-mode=on"


def pc_options(change: Change) -> Iterator[tuple[str, str]]:
    """Yield those that a manager has no words of its own for."""
    guest, levers = change.guest, change.levers
    if levers.get("max_ram_below_4g"):
        yield "machine", f"max-ram-below-4g={parse_size(guest.max_ram_below_4g or 0)}"
    if "pci64" in levers and guest.pci64 is not None:
        host = _HOSTS[str(guest.machine).partition("-")[0]]
        size = 0 if guest.pci64 in (0, "0") else parse_size(guest.pci64)
        yield "global", f"{host}.pci-hole64-size={_short(size)}"
    if levers.get("ovmf_window"):
        mib = parse_size(guest.ovmf_window or 0) >> 20
        yield "fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={mib}"


def machine_type(guest: Guest) -> str:
    """Return QEMU's name for the machine of a guest.

    Raises:
        RequestError: it is not one of QEMU's.
    """
    name = str(guest.machine)
    found = _TYPES.get(name)
    if found is None:
        raise RequestError(
            f"machine {name} is not one of QEMU's, so its options are not known",
            field="format",
            value=name,
            hint=f"one of {', '.join(_TYPES)}",
        )
    return found


def cpu_with_bits(cpu: str, bits: int) -> str:
    """Return -cpu with so many address bits.

    `host` obeys host-phys-bits-limit alone, and a model phys-bits alone (tried on QEMU 7.2.22,
    10.0.13 and 11.1.3).
    """
    model, *rest = cpu.replace(",,", "\0").split(",")  # two commas are one that separates nothing
    kept = [item for item in rest if item and item.partition("=")[0] not in _BITS]
    named = "host-phys-bits-limit" if keys(model, "m").get("m") in ("host", "max") else "phys-bits"
    return ",".join([model, *kept, f"{named}={bits}"]).replace("\0", ",,")


_BITS = ("host-phys-bits-limit", "phys-bits", "host-phys-bits")


def memory_value(guest: Guest) -> str:
    """Return the value of -m."""
    parts = [f"size={_short(ram_of(guest))}"]
    if guest.maxmem is not None:
        parts += [f"slots={guest.slots}", f"maxmem={_short(parse_size(guest.maxmem))}"]
    return ",".join(parts)


def ram_of(guest: Guest) -> int:
    """Return the bytes of RAM of a guest."""
    if guest.ram is not None:
        return parse_size(guest.ram)
    return sum(size for _, size, _ in nodes_of(guest))


def nodes_of(guest: Guest) -> Iterator[tuple[str, int, int | None]]:
    """Yield name, bytes and page size of each node."""
    default = None if guest.page_size is None else parse_size(guest.page_size)
    for index, item in enumerate(guest.nodes):
        if isinstance(item, (str, int)):
            yield str(index), parse_size(item), default
            continue
        pages = default if item.page_size is None else parse_size(item.page_size)
        yield item.name or str(index), parse_size(item.size), pages


def _backing(guest: Guest) -> Iterator[tuple[str, str]]:
    nodes = list(nodes_of(guest))
    if not nodes:
        pages = None if guest.page_size is None else parse_size(guest.page_size)
        yield "object", _memfd("ram", ram_of(guest), pages)
        yield "machine", "memory-backend=ram"
        return
    for name, size, pages in nodes:
        yield "object", _memfd(f"ram{name}", size, pages)
        yield "numa", f"node,nodeid={name},memdev=ram{name}"


def _own_backing(guest: Guest, own: Sequence[Option]) -> Iterator[tuple[str, str]]:
    """The backends that there are, with other sizes and pages."""
    made = [device(value, "qom-type") for name, value in own if name == "object"]
    objects = {item["id"]: item for item in made if item.get("id")}
    if not guest.nodes:
        pages = None if guest.page_size is None else parse_size(guest.page_size)
        named = [keys(value, "type") for name, value in own if name in ("machine", "M")]
        ident = next((i["memory-backend"] for i in reversed(named) if "memory-backend" in i), "")
        if ident in objects:
            yield "object", _resized(objects[ident], ram_of(guest), pages)
        return
    wanted = {name: (size, pages) for name, size, pages in nodes_of(guest)}
    values = [value for name, value in own if name == "numa"]
    nodes = [node for value in values if (node := keys(value, "type")).get("type") == "node"]
    for index, node in enumerate(nodes):
        size, pages = wanted.get(node.get("nodeid", str(index)), (0, None))
        if size and node.get("memdev") in objects:
            yield "object", _resized(objects[node["memdev"]], size, pages)
        elif size and "mem" in node:
            yield "numa", ",".join(_words({**node, "mem": _short(size)}, "type"))


def _resized(backend: dict[str, str], size: int, pages: int | None) -> str:
    huge = pages is not None and pages > 4096
    if huge and backend.get("qom-type") != "memory-backend-file":
        return _memfd(backend["id"], size, pages)
    return ",".join(_words({**backend, "size": _short(size)}, "qom-type"))


def _words(values: dict[str, str], first: str) -> Iterator[str]:
    yield values.get(first, "")
    for name, value in values.items():
        if name != first and not value.startswith(("[", "{")):  # of JSON; a path has neither
            yield f"{name}={value}"


def _memfd(name: str, size: int, pages: int | None) -> str:
    huge = f",hugetlb=on,hugetlbsize={_short(pages)}" if pages is not None and pages > 4096 else ""
    return f"memory-backend-memfd,id={name},size={_short(size)}{huge}"


def _short(size: int) -> str:
    """A size as QEMU takes it: whole, in the largest unit."""
    for power, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if size and not size % (1 << power):
            return f"{size >> power}{unit}"
    return str(size)
