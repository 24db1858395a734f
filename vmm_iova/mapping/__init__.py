# SPDX-License-Identifier: Apache-2.0
"""A layout and its memory made real: all of it, or none.

`map_pieces` maps a list and takes everything back when one piece is refused; `GuestMemory` is
memory that large IOMMU pages can map; `DynamicMaps` joins an allocator and an address space;
`rehearse_attach` answers before an attach what the kernel answers with a bare errno after it.
"""

from vmm_iova.host.attach import AttachRefusal
from vmm_iova.mapping.buffer import DmaBuffer, DmaPart, DmaPool
from vmm_iova.mapping.dirty import fewest_ranges, written_ranges
from vmm_iova.mapping.dlpack import Tensor
from vmm_iova.mapping.dryrun import DryRun, dry_run
from vmm_iova.mapping.dynamic import Allocator, DynamicMaps, Page, Policy
from vmm_iova.mapping.mapped import Mapped, map_pieces
from vmm_iova.mapping.memory import Backing, GuestMemory
from vmm_iova.mapping.piece import Buffer, Piece
from vmm_iova.mapping.populate import prefault
from vmm_iova.mapping.precheck import Judge, precheck
from vmm_iova.mapping.rehearsal import Allocations, Owned, Rehearsal, rehearse_attach
from vmm_iova.progress import TerminalProgress

__all__ = [
    "Allocations",
    "Allocator",
    "AttachRefusal",
    "Backing",
    "Buffer",
    "DmaBuffer",
    "DmaPart",
    "DmaPool",
    "DryRun",
    "DynamicMaps",
    "GuestMemory",
    "Judge",
    "Mapped",
    "Owned",
    "Page",
    "Piece",
    "Policy",
    "Rehearsal",
    "Tensor",
    "TerminalProgress",
    "dry_run",
    "fewest_ranges",
    "map_pieces",
    "precheck",
    "prefault",
    "rehearse_attach",
    "written_ranges",
]
