# SPDX-License-Identifier: Apache-2.0
"""Snapshots: the facts of a host as JSON, to plan for it elsewhere.

Addresses, sizes and registers are hex strings, because JSON numbers above 2^53 do not survive
JavaScript and `jq`. The schema is versioned: within a version, fields are only added; a newer
version is refused. `snapshot.schema.json` beside this file describes it for other programs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from vmm_iova.errors import HostDataError, RequestError
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
    Source,
    StatedWidth,
)
from vmm_iova.host.host import Host
from vmm_iova.host.regions import region_kind
from vmm_iova.plain import parse_json, whole_number
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA_NAME = "vmm-iova-host"
SCHEMA_VERSION = 1

_HEX = re.compile(r"0x[0-9a-fA-F]{1,17}")
_T = TypeVar("_T")


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
            "isolated_msi": host.platform.isolated_msi,
            "unsafe_interrupts": None
            if host.platform.unsafe_interrupts is None
            else list(host.platform.unsafe_interrupts),
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
        "sysfs": host.sysfs,
        "notes": [{"text": note.text, "warning": note.warning} for note in host.notes],
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
    root = _Node(parse_json(text, name), name, "")
    schema = root.child("schema")
    if schema.field("name", str) != SCHEMA_NAME:
        raise schema.wrong("name", f"should be {SCHEMA_NAME!r}: this is no snapshot of a host")
    version = schema.field("version", int)
    if version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        raise HostDataError(
            f"{name}: snapshot schema {version} is {'newer' if newer else 'older'} than "
            f"{SCHEMA_VERSION}, which this program reads",
            source=name,
            hint="update vmm-iova" if newer else "capture the host again",
        )
    return _host(root, name)


def _host(root: _Node, name: str) -> Host:
    limits = root.child("limits")
    memlock = limits.optional("memlock", str)
    cpu = root.child("cpu") if root.data.get("cpu") is not None else None
    return Host(
        name=root.optional("name", str) or name,
        origin=root.optional("origin", str) or f"snapshot {name}",
        arch=root.optional("arch", str),
        release=root.optional("release", str),
        page_size=root.power_of_two("page_size"),
        groups=tuple(_read_group(node) for node in root.children("groups")),
        devices=tuple(
            Device(
                node.field("name", str),
                node.optional("group", str),
                node.optional("iommu", str),
                node.optional("dma_mask_bits", int),
                node.optional("driver", str),
                node.number("class"),
            )
            for node in root.children("devices")
        ),
        units=tuple(
            IommuUnit(
                node.field("name", str),
                node.number("cap"),
                node.number("ecap"),
                node.optional("features", str),
                node.source(),
            )
            for node in root.children("iommus")
        ),
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
        platform=_read_platform(root),
        iommu_info=tuple(
            _read_info(node)
            for node in (root.children("iommu_info") if "iommu_info" in root.data else ())
        ),
    )


def _read_platform(root: _Node) -> Platform:
    """Read the platform, which older snapshots do not have."""
    if root.data.get("platform") is None:
        return Platform()
    node = root.child("platform")
    unsafe = node.data.get("unsafe_interrupts") is not None
    return Platform(
        vendor=node.optional("vendor", str),
        guest=node.optional("guest", bool),
        isolated_msi=node.optional("isolated_msi", bool),
        unsafe_interrupts=tuple(node.strings("unsafe_interrupts")) if unsafe else None,
    )


def _read_info(node: _Node) -> IommuInfo:
    registers = node.child("registers")
    return IommuInfo(
        node.field("device", str),
        node.word("kind", get_args(InfoKind)),
        tuple((name, registers.address(name)) for name in registers.data),
        node.address("capabilities"),
        node.field("pasid_bits", int),
        node.source(),
    )


def _read_group(node: _Node) -> Group:
    group = node.field("id", str)
    listed = node.value("reserved_regions") is not None
    regions = tuple(_read_region(item, group) for item in node.children("reserved_regions"))
    return Group(
        group,
        devices=tuple(node.strings("devices")),
        regions=regions if listed else None,
        empty_regions=tuple(
            EmptyRegion(item.address("start"), *item.kind(), item.source(), group)
            for item in node.children("empty_regions")
        ),
        unreadable=node.optional("unreadable", str),
        damaged=node.optional("damaged", str),
        type=node.optional("type", str),
        translated=node.optional("translated", bool) is not False,
    )


def _read_region(node: _Node, group: str | None) -> ReservedRegion:
    kind, word = node.kind()
    if group is None:
        kind = RegionKind.FIRMWARE
    return ReservedRegion(node.span(), kind, word, node.source(), group)


def _read_ranges(node: _Node) -> KernelRanges:
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


@dataclass(frozen=True, slots=True)
class _Node:
    """An object of the JSON tree that knows its path, so that every error can name it."""

    data: Any
    file: str
    path: str

    def __post_init__(self) -> None:
        if not isinstance(self.data, dict):
            where = self.path or "the root"
            raise HostDataError(
                f"{self.file}: {where} should be an object, not {_type(self.data)}",
                source=self.file,
            )

    def wrong(self, key: str, what: str) -> HostDataError:
        path = f"{self.path}.{key}" if self.path else key
        return HostDataError(f"{self.file}: {path} {what}", source=self.file, text=path)

    def value(self, key: str) -> Any:
        if key not in self.data:
            raise self.wrong(key, "is missing")
        return self.data[key]

    def field(self, key: str, kind: type[_T]) -> _T:
        value = self.optional(key, kind)
        if value is None:
            raise self.wrong(key, "is missing")
        return value

    def optional(self, key: str, kind: type[_T]) -> _T | None:
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(key, f"should be {_NAMES[kind]}, not {_type(value)}")
        return value

    def _sequence(self, key: str) -> list[Any]:
        self.value(key)  # a list that is not there is not an empty one
        return self.optional(key, list) or []

    def strings(self, key: str) -> Iterable[str]:
        for index, item in enumerate(self._sequence(key)):
            if not isinstance(item, str):
                raise self.wrong(f"{key}[{index}]", f"should be text, not {_type(item)}")
            yield item

    def child(self, key: str) -> _Node:
        return _Node(self.field(key, dict), self.file, f"{self.path}.{key}".lstrip("."))

    def children(self, key: str) -> Iterable[_Node]:
        prefix = f"{self.path}.{key}".lstrip(".")
        for index, item in enumerate(self._sequence(key)):
            yield _Node(item, self.file, f"{prefix}[{index}]")

    def number(self, key: str) -> int | None:
        text = self.optional(key, str)
        if text is None:
            return None
        if not _HEX.fullmatch(text) or int(text, 16) > ADDRESS_LAST:
            raise self.wrong(key, f"{shorten(text)!r} is not a hex number up to 2^64-1")
        return int(text, 16)

    def address(self, key: str) -> int:
        value = self.number(key)
        if value is None:
            raise self.wrong(key, "is missing")
        return value

    def power_of_two(self, key: str) -> int | None:
        value = self.number(key)
        if value is not None and (value == 0 or value & (value - 1)):
            raise self.wrong(key, f"{value:#x} is not a power of two")
        return value

    def kind(self) -> tuple[RegionKind, str]:
        word = self.field("type", str)
        if not word.strip():
            raise self.wrong("type", "is empty")
        return region_kind(word)

    def word(self, key: str, known: tuple[Any, ...]) -> Any:
        value = self.field(key, str)
        if value not in known:
            raise self.wrong(key, f"{shorten(value)!r} is none of {', '.join(known)}")
        return value

    def bits(self, key: str) -> int:
        value = self.field(key, int)
        if not 1 <= value <= 64:
            raise self.wrong(key, f"{value} is not a width from 1 to 64 bits")
        return value

    def span(self) -> AddrRange:
        start, last = self.address("start"), self.address("last")
        if last < start:
            raise self.wrong("last", f"{last:#x} is below start {start:#x}")
        return AddrRange(start, last)

    def source(self) -> Source:
        text = self.optional("source", str) or f"{self.file} {self.path}"
        name, colon, line = text.rpartition(":")
        number = whole_number(line) if colon else None
        return Source(name, number) if number is not None and str(number) == line else Source(text)


_NAMES: dict[type, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _type(value: object) -> str:
    return _NAMES.get(type(value), "null" if value is None else type(value).__name__)
