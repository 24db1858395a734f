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

from typing import TYPE_CHECKING

from vmm_iova.engine import engine_name
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
from vmm_iova.guest.budget import Budget, budget, compare_costs
from vmm_iova.guest.diagnose import Diagnosis, diagnose, explain
from vmm_iova.guest.explain import Reason, Verdict, check
from vmm_iova.guest.layout import GuestReserved, Item, ItemKind, Layout
from vmm_iova.guest.machine import FixedItem, Machine, load_machine, machine_names
from vmm_iova.guest.plan import plan
from vmm_iova.guest.request import Bar, Guest, Node, Room
from vmm_iova.guest.told import device_tree, e820, exclude
from vmm_iova.host.judge import judge
from vmm_iova.host.load import bundled_hosts, load_host
from vmm_iova.host.model import Host, RegionKind, ReservedRegion
from vmm_iova.host.usable import Cause, CauseKind, Usable, UsableRange
from vmm_iova.host.width import Width
from vmm_iova.ranges import AddrRange, MappableRanges, RangeSet
from vmm_iova.units import format_size, parse_address, parse_range, parse_size

if TYPE_CHECKING:
    from vmm_iova.allocator import Allocation, IovaAllocator

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


def __getattr__(name: str) -> object:
    """Load the engine when the allocator is first asked for: a plan seldom needs it."""
    if name in ("Allocation", "IovaAllocator"):
        from vmm_iova import allocator

        return getattr(allocator, name)
    raise AttributeError(f"module 'vmm_iova' has no attribute {name!r}")
