# SPDX-License-Identifier: Apache-2.0
"""Where guest memory may go on a host, where it goes, and why it cannot go elsewhere.

    >>> import vmm_iova as vi
    >>> usable = vi.load_host("amd-epyc-1tb").usable()
    >>> layout = vi.plan(vi.Guest(machine="q35", ram="1.5TiB"), usable)
    >>> [str(piece.gpa) for piece in layout.ram]
    ['0x0-0x7fffffff', '0x100000000-0xfcffffffff', '0x10000000000-0x1837fffffff']

Planning touches no device and needs no root. Everything that is returned is immutable;
`IovaAllocator` is the only object with a state.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm_iova.allocator import Allocation, IovaAllocator
    from vmm_iova.allocator.engine import engine_name
    from vmm_iova.diagnosis.check import Reason, Verdict, check
    from vmm_iova.diagnosis.diagnose import diagnose, explain
    from vmm_iova.diagnosis.findings import Diagnosis
    from vmm_iova.errors import (
        ApertureError,
        CapabilityError,
        ClosedError,
        DeviceOpenError,
        DmaError,
        EngineError,
        EvidenceError,
        HostDataError,
        HostUnavailableError,
        InvariantError,
        IovaError,
        LimitError,
        MappingError,
        MisalignedError,
        NarrowError,
        NoSpaceError,
        NotAllocatedError,
        OccupiedError,
        PartialUnmapError,
        PlacementError,
        PlanError,
        PrecheckError,
        RangeOverflowError,
        RequestError,
        ReservedError,
        SizeMismatchError,
        StraddleError,
        UndoError,
        UnknownNameError,
    )
    from vmm_iova.host.facts import RegionKind, ReservedRegion
    from vmm_iova.host.host import Host
    from vmm_iova.host.judge import judge
    from vmm_iova.host.load import bundled_hosts, load_host
    from vmm_iova.host.registers import Width
    from vmm_iova.host.usable import Cause, CauseKind, Usable, UsableRange
    from vmm_iova.machines.catalogue import load_machine, machine_names
    from vmm_iova.machines.model import FixedItem, Machine
    from vmm_iova.planning.budget import Budget, budget, compare_costs
    from vmm_iova.planning.layout import GuestReserved, Item, ItemKind, Layout
    from vmm_iova.planning.memory_maps import device_tree, e820, exclude
    from vmm_iova.planning.plan import plan
    from vmm_iova.planning.request import Bar, Guest, Node, Room
    from vmm_iova.ranges import AddrRange, MappableRanges, RangeSet
    from vmm_iova.units import format_size, parse_address, parse_range, parse_size

__version__ = "0.1.0"

__all__ = [
    "AddrRange",
    "Allocation",
    "ApertureError",
    "Bar",
    "Budget",
    "CapabilityError",
    "Cause",
    "CauseKind",
    "ClosedError",
    "DeviceOpenError",
    "Diagnosis",
    "DmaError",
    "EngineError",
    "EvidenceError",
    "FixedItem",
    "Guest",
    "GuestReserved",
    "Host",
    "HostDataError",
    "HostUnavailableError",
    "InvariantError",
    "IovaAllocator",
    "IovaError",
    "Item",
    "ItemKind",
    "Layout",
    "LimitError",
    "Machine",
    "MappableRanges",
    "MappingError",
    "MisalignedError",
    "NarrowError",
    "NoSpaceError",
    "Node",
    "NotAllocatedError",
    "OccupiedError",
    "PartialUnmapError",
    "PlacementError",
    "PlanError",
    "PrecheckError",
    "RangeOverflowError",
    "RangeSet",
    "Reason",
    "RegionKind",
    "RequestError",
    "ReservedError",
    "ReservedRegion",
    "Room",
    "SizeMismatchError",
    "StraddleError",
    "UndoError",
    "UnknownNameError",
    "Usable",
    "UsableRange",
    "Verdict",
    "Width",
    "budget",
    "bundled_hosts",
    "check",
    "compare_costs",
    "device_tree",
    "diagnose",
    "e820",
    "engine_name",
    "exclude",
    "explain",
    "format_size",
    "judge",
    "load_host",
    "load_machine",
    "machine_names",
    "parse_address",
    "parse_range",
    "parse_size",
    "plan",
]


_HOMES = {
    "allocator": "Allocation IovaAllocator",
    "allocator.engine": "engine_name",
    "errors": (
        "ApertureError CapabilityError ClosedError DeviceOpenError DmaError EngineError "
        "EvidenceError HostDataError HostUnavailableError InvariantError IovaError "
        "LimitError MappingError MisalignedError NarrowError NoSpaceError "
        "NotAllocatedError OccupiedError PartialUnmapError PlacementError PlanError "
        "PrecheckError RangeOverflowError RequestError ReservedError SizeMismatchError "
        "StraddleError UndoError UnknownNameError"
    ),
    "planning.budget": "Budget budget compare_costs",
    "diagnosis.diagnose": "diagnose explain",
    "diagnosis.findings": "Diagnosis",
    "diagnosis.check": "Reason Verdict check",
    "planning.layout": "GuestReserved Item ItemKind Layout",
    "machines.catalogue": "load_machine machine_names",
    "machines.model": "FixedItem Machine",
    "planning.plan": "plan",
    "planning.request": "Bar Guest Node Room",
    "planning.memory_maps": "device_tree e820 exclude",
    "host.judge": "judge",
    "host.load": "bundled_hosts load_host",
    "host.facts": "RegionKind ReservedRegion",
    "host.host": "Host",
    "host.usable": "Cause CauseKind Usable UsableRange",
    "host.registers": "Width",
    "ranges": "AddrRange MappableRanges RangeSet",
    "units": "format_size parse_address parse_range parse_size",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Load a name when it is first asked for, so that a program pays for what it uses."""
    if name not in _HOME:
        raise AttributeError(f"module 'vmm_iova' has no attribute {name!r}")
    found: object = getattr(import_module(f"vmm_iova.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
