# SPDX-License-Identifier: Apache-2.0
"""Snapshots: the facts of a host as JSON, to plan for it elsewhere.

Addresses, sizes and registers are hex strings, because JSON numbers above 2^53 do not survive
JavaScript and `jq`. The schema is versioned: within a version, fields are only added; a newer
version is refused. `snapshot.schema.json` beside this file describes it for other programs.
"""

from __future__ import annotations

import json
from typing import Any, get_args

from vmm_iova.errors import HostDataError, RequestError
from vmm_iova.host.bars import BarKind, DeviceBar
from vmm_iova.host.facts import (
    Device,
    DmaWindow,
    EmptyRegion,
    Group,
    InfoKind,
    IommuInfo,
    IommuUnit,
    KernelRanges,
    Limits,
    Note,
    Platform,
    RangesFrom,
    RegionKind,
    ReservedRegion,
    StatedWidth,
)
from vmm_iova.host.host import Host
from vmm_iova.host.node import File, Node
from vmm_iova.host.state import DeviceNode, Memory, PagePool, State
from vmm_iova.plain import parse_json
from vmm_iova.ranges import AddrRange, MappableRanges
from vmm_iova.record import replace

SCHEMA_NAME = "vmm-iova-host"
SCHEMA_VERSION = 2
"""Of what is written. Version 1 had no BARs and no state: read, its host states none."""
_OLDEST = 1


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def _span(item: AddrRange) -> dict[str, str]:
    return {"start": f"{item.start:#x}", "last": f"{item.last:#x}"}


def _region(item: ReservedRegion) -> dict[str, Any]:
    return {**_span(item.range), "type": item.word, "source": str(item.source)}


def dump_snapshot(host: Host, generator: str) -> str:
    """Write a host as a snapshot: JSON, stable order, one newline at the end.

    Args:
        host: the facts.
        generator: name and version of the program that writes it.
    """
    data = {
        "schema": {"name": SCHEMA_NAME, "version": SCHEMA_VERSION},
        "generator": generator,
        **snapshot_data(host),
    }
    return json.dumps(data, indent=1, ensure_ascii=True) + "\n"


def snapshot_data(host: Host) -> dict[str, Any]:
    """Return the facts of a host as plain data, without the head of a snapshot file."""
    return {
        "name": host.name,
        "origin": host.origin,
        "arch": host.arch,
        "release": host.release,
        "page_size": _hex(host.page_size),
        "groups": [_group(group) for group in host.groups],
        "devices": [
            {
                "name": item.name,
                "group": item.group,
                "iommu": item.iommu,
                "dma_mask_bits": item.dma_mask_bits,
                "driver": item.driver,
                "class": _hex(item.pci_class),
                "bars": None if item.bars is None else [_bar(bar) for bar in item.bars],
            }
            for item in host.devices
        ],
        "iommus": [
            {
                "name": item.name,
                "cap": _hex(item.cap),
                "ecap": _hex(item.ecap),
                "features": item.features,
                "source": str(item.source),
            }
            for item in host.units
        ],
        "iova_ranges": [
            {
                "api": item.api,
                "groups": None if item.groups is None else list(item.groups),
                "granule": _hex(item.granule),
                "page_sizes": _hex(item.page_sizes),
                "ranges": [_span(span) for span in item.ranges],
                "source": str(item.source),
            }
            for item in host.kernel_ranges
        ],
        "dma_windows": [
            {"device": item.device, **_span(item.range), "source": str(item.source)}
            for item in host.windows
        ],
        "widths": [{"bits": item.bits, "source": str(item.source)} for item in host.widths],
        "log_regions": [_region(item) for item in host.log_regions],
        "limits": {
            "dma_entries": host.limits.dma_entries,
            "memlock": "unlimited" if host.limits.memlock == -1 else _hex(host.limits.memlock),
        },
        "cpu": None
        if host.cpu_bits is None
        else {"address_bits": host.cpu_bits, "source": host.cpu_source},
        "platform": {
            "vendor": host.platform.vendor,
            "guest": host.platform.guest,
        },
        "iommu_info": [
            {
                "device": item.device,
                "kind": item.kind,
                "registers": {name: f"{value:#x}" for name, value in item.registers},
                "capabilities": f"{item.capabilities:#x}",
                "pasid_bits": item.pasid_bits,
                "source": str(item.source),
            }
            for item in host.iommu_info
        ],
        "state": _state(host.state),
        "sysfs": host.sysfs,
        "notes": [{"text": note.text, "warning": note.warning} for note in host.notes],
    }


def _bar(bar: DeviceBar) -> dict[str, Any]:
    return {
        "kind": bar.kind.value,
        "index": bar.index,
        "size": _hex(bar.size),
        "bits": bar.bits,
        "prefetchable": bar.prefetchable,
        "assigned": bar.assigned,
        "sizes": [f"{size:#x}" for size in bar.sizes],
    }


def _state(state: State) -> dict[str, Any]:
    memory, pools, nodes = state.memory, state.huge_pages, state.nodes
    return {
        "memory": memory and {"total": f"{memory.total:#x}", "available": f"{memory.available:#x}"},
        "huge_pages": None
        if pools is None
        else [
            {"page_size": f"{pool.page_size:#x}", "total": pool.total, "free": pool.free}
            for pool in pools
        ],
        "nodes": None
        if nodes is None
        else [{"path": node.path, "usable": node.usable} for node in nodes],
        "remaps_interrupts": state.remaps_interrupts,
        "unsafe_interrupts": state.unsafe_interrupts,
        "unsafe_iommufd": state.unsafe_iommufd,
        "may_lock": state.may_lock,
    }


def _group(group: Group) -> dict[str, Any]:
    regions = group.regions
    return {
        "id": group.id,
        "type": group.type,
        "devices": list(group.devices),
        "reserved_regions": None if regions is None else [_region(item) for item in regions],
        "empty_regions": [
            {"start": f"{item.start:#x}", "type": item.word, "source": str(item.source)}
            for item in group.empty_regions
        ],
        "unreadable": group.unreadable,
        "damaged": group.damaged,
        "translated": group.translated,
    }


def load_snapshot(text: str, name: str) -> Host:
    """Read a snapshot.

    Args:
        text: its JSON.
        name: file name for messages.

    Raises:
        HostDataError: not JSON, not a snapshot, of a newer schema, or a field is wrong; the
            message names the field by its path.

    Complexity: O(size).
    """
    return read_snapshot(parse_json(text, name), name)


def read_snapshot(data: Any, name: str) -> Host:
    """Read a snapshot whose JSON is parsed already; otherwise as `load_snapshot`."""
    root = Node(data, File(name))
    schema = root.child("schema")
    if schema.field("name", str) != SCHEMA_NAME:
        raise schema.wrong("name", f"should be {SCHEMA_NAME!r}: this is no snapshot of a host")
    version = schema.field("version", int)
    if not _OLDEST <= version <= SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        raise HostDataError(
            f"{name}: snapshot schema {version} is {'newer' if newer else 'older'} than "
            f"{SCHEMA_VERSION if newer else _OLDEST}, which this program reads",
            source=name,
            hint="update vmm-iova" if newer else "capture the host again",
        )
    return _host(root, name, version)


def _host(root: Node, name: str, version: int) -> Host:
    limits = root.child("limits")
    memlock = limits.optional("memlock", str)
    cpu = root.child("cpu") if root.data.get("cpu") is not None else None
    return Host(
        name=root.optional("name", str) or name,
        origin=root.optional("origin", str) or f"snapshot {name}",
        arch=root.optional("arch", str),
        release=root.optional("release", str),
        page_size=root.power_of_two("page_size"),
        groups=root.each("groups", _read_group),
        devices=root.each("devices", _read_device if version < 2 else _read_device_bars),
        units=root.each("iommus", _read_unit),
        kernel_ranges=tuple(_read_ranges(node) for node in root.children("iova_ranges")),
        windows=tuple(
            DmaWindow(node.field("device", str), node.span(), node.source())
            for node in root.children("dma_windows")
        ),
        widths=tuple(
            StatedWidth(node.bits("bits"), node.source()) for node in root.children("widths")
        ),
        log_regions=tuple(_read_region(node, None) for node in root.children("log_regions")),
        limits=Limits(
            limits.optional("dma_entries", int),
            -1 if memlock == "unlimited" else limits.number("memlock"),
        ),
        sysfs=root.optional("sysfs", bool) is True,
        notes=tuple(
            Note(node.field("text", str), node.optional("warning", bool) is not False)
            for node in root.children("notes")
        ),
        cpu_bits=None if cpu is None else cpu.bits("address_bits"),
        cpu_source="/proc/cpuinfo" if cpu is None else cpu.field("source", str),
        state=State() if version < 2 else _read_state(root),
        platform=_read_platform(root),
        iommu_info=tuple(
            _read_info(node)
            for node in (root.children("iommu_info") if "iommu_info" in root.data else ())
        ),
    )


def _read_platform(root: Node) -> Platform:
    """Read the platform, which older snapshots do not have."""
    if root.data.get("platform") is None:
        return Platform()
    node = root.child("platform")
    return Platform(vendor=node.optional("vendor", str), guest=node.optional("guest", bool))


def _read_info(node: Node) -> IommuInfo:
    registers = node.child("registers")
    return IommuInfo(
        node.field("device", str),
        node.word("kind", get_args(InfoKind)),
        tuple((name, registers.address(name)) for name in registers.data),
        node.address("capabilities"),
        node.field("pasid_bits", int),
        node.source(),
    )


def _read_device(node: Node) -> Device:
    return Device(
        node.field("name", str),
        node.optional("group", str),
        node.optional("iommu", str),
        node.optional("dma_mask_bits", int),
        node.optional("driver", str),
        node.number("class"),
    )


def _read_device_bars(node: Node) -> Device:
    return replace(_read_device(node), bars=_read_bars(node))


def _read_unit(node: Node) -> IommuUnit:
    return IommuUnit(
        node.field("name", str),
        node.number("cap"),
        node.number("ecap"),
        node.optional("features", str),
        node.source(),
    )


def _read_bars(device: Node) -> tuple[DeviceBar, ...] | None:
    if device.data.get("bars") is None:
        return None
    return tuple(_read_bar(node) for node in device.children("bars"))


_BAR_KINDS = {item.value: item for item in BarKind}


def _read_bar(node: Node) -> DeviceBar:
    kind, bits = node.field("kind", str), node.field("bits", int)
    if kind not in _BAR_KINDS:
        raise node.wrong("kind", f"{kind!r} is none of {', '.join(_BAR_KINDS)}")
    if bits not in (32, 64):
        raise node.wrong("bits", f"{bits} is neither 32 nor 64")
    return DeviceBar(
        node.count("index"),
        node.number("size"),
        64 if bits == 64 else 32,
        node.optional("prefetchable", bool) is True,
        _BAR_KINDS[kind],
        node.optional("assigned", bool) is not False,
        tuple(node.numbers("sizes")),
    )


def _read_state(root: Node) -> State:
    if root.data.get("state") is None:
        return State()
    node = root.child("state")
    memory = node.child("memory") if node.data.get("memory") is not None else None
    pools, nodes = (node.data.get(key) is not None for key in ("huge_pages", "nodes"))
    return State(
        None if memory is None else Memory(memory.address("total"), memory.address("available")),
        tuple(
            PagePool(item.address("page_size"), item.count("total"), item.count("free"))
            for item in node.children("huge_pages")
        )
        if pools
        else None,
        tuple(
            DeviceNode(item.field("path", str), item.field("usable", bool))
            for item in node.children("nodes")
        )
        if nodes
        else None,
        node.optional("remaps_interrupts", bool),
        node.optional("unsafe_interrupts", bool),
        node.optional("unsafe_iommufd", bool),
        node.optional("may_lock", bool),
    )


def _read_group(node: Node) -> Group:
    group = node.field("id", str)
    listed = node.value("reserved_regions") is not None
    regions = tuple([_read_region(item, group) for item in node.children("reserved_regions")])
    return Group(
        group,
        tuple(node.strings("devices")),
        regions if listed else None,
        tuple(
            [
                EmptyRegion(item.address("start"), *item.kind(), item.source(), group)
                for item in node.children("empty_regions")
            ]
        ),
        node.optional("unreadable", str),
        node.optional("damaged", str),
        node.optional("type", str),
        node.optional("translated", bool) is not False,
    )


def _read_region(node: Node, group: str | None) -> ReservedRegion:
    kind, word = node.kind()
    if group is None:
        kind = RegionKind.FIRMWARE
    return ReservedRegion(node.span(), kind, word, node.source(), group)


def _read_ranges(node: Node) -> KernelRanges:
    spans = [item.span() for item in node.children("ranges")]
    try:
        ranges = MappableRanges(spans)
    except RequestError as error:
        raise node.wrong("ranges", error.message) from error
    groups = node.value("groups")
    return KernelRanges(
        ranges,
        node.word("api", get_args(RangesFrom)),
        node.source(),
        None if groups is None else tuple(node.strings("groups")),
        node.power_of_two("granule"),
        node.number("page_sizes"),
    )
