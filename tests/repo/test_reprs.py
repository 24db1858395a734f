# SPDX-License-Identifier: Apache-2.0
"""Every public object says in one short line what it is, with addresses and sizes in hex."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import typing
from importlib import import_module
from typing import Any

import vmm_iova as vi
from vmm_iova.kernel import LINUX, Iommufd, VfioCdev, Windows, open_space
from vmm_iova.mapping import DynamicMaps, GuestMemory, TerminalProgress, map_pieces
from vmm_iova.record import MOST
from vmm_iova.simulated import SimGroup, SimulatedKernel

DOORS = tuple(f"vmm_iova{door}" for door in ("", ".fleet", ".kernel", ".mapping", ".simulated"))
ADDRESS = 0xFEDC_BA98_7654_3000


def _classes() -> dict[str, type]:
    """Every public class that there are objects of: no protocols, enumerations and errors."""
    kinds = {}
    for door in DOORS:
        module = import_module(door)
        for name in module.__all__:
            kind = getattr(module, name)
            if (
                inspect.isclass(kind)
                and not issubclass(kind, enum.Enum | BaseException)
                and not getattr(kind, "_is_protocol", False)
            ):
                kinds[f"{door}.{name}"] = kind
    return kinds


CLASSES = _classes()
RECORDS = {
    name: kind
    for name, kind in CLASSES.items()
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")
}
OTHERS = sorted(CLASSES.keys() - RECORDS.keys())


def _stuffed(hint: str) -> Any:
    """Something long of about this type."""
    if hint.startswith("int"):
        return ADDRESS
    if hint.startswith("bool"):
        return True
    if hint.startswith("str"):
        return "a long name " * 40
    if hint.startswith("tuple"):
        return (ADDRESS,) * 1000
    if "AddrRange" in hint:
        return vi.AddrRange(0, ADDRESS)
    return vi.RangeSet([vi.AddrRange(at << 20, at << 20 | 0xFFF) for at in range(1000)])


def test_record_full_of_long_things_is_one_short_line_in_hex() -> None:
    for name, kind in RECORDS.items():
        _check_repr_when_full(name, kind)


def _check_repr_when_full(name: str, kind: Any) -> None:
    if hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind).values()
        item = kind(*(_stuffed(getattr(hint, "__name__", str(hint))) for hint in hints))
    else:
        item = object.__new__(kind)
        for field in dataclasses.fields(kind):
            object.__setattr__(item, field.name, _stuffed(str(field.type)))

    text = repr(item)

    assert len(text) <= MOST, name
    assert "\n" not in text, name
    assert text.startswith((f"{kind.__name__}(", f"<{kind.__name__}")), name
    assert not re.search(r"(?<![0-9a-fx])\d{5,}", text)


def _objects() -> list[Any]:
    kernel = SimulatedKernel([SimGroup(1, ("0000:01:00.0",))])
    seen: list[Any] = [
        kernel,
        kernel.device("0000:01:00.0"),
        LINUX,
        TerminalProgress("mapping" * 100),
    ]
    for via in ("type1", "iommufd"):
        with open_space(kernel.devices(), kernel=kernel, via=via) as space:
            usable = vi.load_host(kernel=kernel).usable(devices=kernel.devices(), aperture=48)
            device = space.device("0000:01:00.0")
            device.enable()
            allocator = vi.IovaAllocator(usable)
            spans = [(vi.AddrRange(0x1000_0000, 0x100F_FFFF), "ram")]
            with (
                DynamicMaps(allocator, space) as maps,
                maps.allocate(1 << 20) as buffer,
                buffer.pool().allocate(64) as part,
                device.interrupts("msi") as events,
                GuestMemory(spans) as memory,
                allocator.transaction() as transaction,
            ):
                mapped = map_pieces(space, memory.pieces)
                device.region(0).read(0)
                found = [
                    Windows(kernel),
                    space,
                    space.live,
                    device,
                    device.region(0),
                    *events,
                    maps,
                    buffer,
                ]
                found += [buffer.pool(), part, memory, allocator, transaction, mapped]
                seen += [*found, usable.ranges, vi.RangeSet(usable.ranges)]
                texts = {item: repr(item) for item in map(_Same, seen)}
                mapped.unmap()
            seen = [*texts]
    with Iommufd(kernel) as iommufd, VfioCdev(kernel, "/dev/vfio/devices/vfio0") as cdev:
        seen += [_Same(iommufd), _Same(cdev)]
        for item in seen[-2:]:
            repr(item)
    return seen


class _Same:
    """An object, whether or not it can be hashed, and its repr while it was in use."""

    def __init__(self, item: Any) -> None:
        self.item = item.item if isinstance(item, _Same) else item
        self.text: str = item.text if isinstance(item, _Same) else repr(item)

    def __repr__(self) -> str:
        return self.text


def test_objects_in_use_say_short_what_they_are() -> None:
    seen = {type(each.item): each.text for each in _objects()}

    missing = [name for name in OTHERS if not any(issubclass(k, CLASSES[name]) for k in seen)]
    assert missing == []
    for kind, text in seen.items():
        assert len(text) <= MOST, text
        assert " object at 0x" not in text, text
        assert kind.__name__ in text
        assert not re.search(r"(?<![0-9a-fx:])\d{5,}", text), text


def test_numbers_of_a_plan_are_in_hex_and_short() -> None:
    layout = vi.plan(vi.Guest("q35", "1.5TiB"), vi.load_host("amd-epyc-1tb").usable())

    assert repr(layout).startswith("Layout(machine=Machine('q35'), ram_bytes=0x18000000000")
    assert len(repr(layout)) <= MOST
    assert "gpa=AddrRange(0x0, 0x7fffffff)" in repr(layout.ram[0])


def test_default_attributes_are_left_out() -> None:
    assert repr(vi.Bar("bar", 0x1000)) == "Bar(name='bar', size=0x1000)"
