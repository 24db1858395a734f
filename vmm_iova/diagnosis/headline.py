# SPDX-License-Identifier: Apache-2.0
"""The verdict in one sentence: the thing, what is wrong with it, and the numbers that matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.diagnosis.meaning import PLAIN
from vmm_iova.diagnosis.why import Certainty, Op, Part, Why
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.diagnosis.case import Case
    from vmm_iova.diagnosis.findings import Finding


def headline(case: Case, findings: Sequence[Finding], *, harmless: bool) -> str:
    """Say what is wrong."""
    call = case.failure
    sure = [item for item in findings if item.certainty is not Certainty.POSSIBLE]
    if harmless and call.op is Op.MAP and call.sign is not Why.ENTRIES:
        return _warned(case, sure or findings)
    if not findings or (not sure and len(findings) > 1):
        return _open(case, len(findings))
    first = findings[0]
    return f"{_of(first.why, case, first)}{_aside(case)}"


def _warned(case: Case, findings: Sequence[Finding]) -> str:
    """A BAR that is not mapped: QEMU warns, and the guest does without peer-to-peer DMA."""
    why = findings[0].why if findings else None
    if why is Why.BAR:
        known = case.failure.api is not None
        return (
            f"iommufd{'' if known else ', which is likely in use here,'} cannot pin the pages of "
            f"{_what(case)}; QEMU only warns, and the guest starts without peer-to-peer DMA to it"
        )
    because = ""
    if why is Why.WIDTH and findings[0].certainty is not Certainty.POSSIBLE:
        because = "; it lies beyond the IOMMU's address width"
    elif why is Why.HVA:
        because = "; the kernel did not get at its pages"
    return (
        f"QEMU only warns that it cannot map {_what(case)} for peer-to-peer DMA, which is not "
        f"why a guest fails{because}"
    )


def _board(case: Case) -> str:
    """Why there is no group, as far as the report tells."""
    if case.clues.board is not None:
        return f": {case.clues.board} has no IOMMU for its PCIe"
    known = case.platform.vendor is not None or case.platform.guest or case.failure.program == "Xen"
    return "" if known else ": the IOMMU is off, or there is none in front of it"


def _times(case: Case) -> str:
    qemu = case.clues.qemu
    if qemu is None or qemu.containers < 2:
        return ""
    return f", which each of its {qemu.containers} devices locks whole"


def _aside(case: Case) -> str:
    """Of a BAR QEMU only warns, so that the line is not why a guest fails."""
    call = case.failure
    idle = call.program == "QEMU" and call.part is Part.BAR and call.op is Op.MAP
    return "; of a BAR QEMU only warns" if idle and not case.clues.fatal else ""


def _of(why: Why, case: Case, finding: Finding) -> str:
    call = case.failure
    numbers = {
        "what": _what(case),
        "dev": _device(case),
        "addr": "an address" if call.iova is None else f"{call.iova:#x}",
        "width": f" of {case.bits} bits"
        if finding.certainty is Certainty.CERTAIN and case.bits
        else "",
        "cpu": f" ({case.clues.cpu_bits})" if case.clues.cpu_bits else "",
        "size": f" of {show_size(call.size)}" if call.size else "",
        "bar": _bar(case),
        "group": f"group {call.group}" if call.group else "the group",
        "node": call.node or "the node",
        "hole": _hole(finding),
        "times": _times(case),
        "board": _board(case),
        "off": _board(case).partition(": the IOMMU")[0],
        "limit": f" ({show_size(case.clues.memlock)})" if case.clues.memlock is not None else "",
    }
    if call.op is Op.FAULT and why in _FAULTS:
        return _FAULTS[why].format(**numbers)
    return _HEADLINES[why].format(**numbers)


def _open(case: Case, causes: int) -> str:
    """No cause is more likely than another."""
    call = case.failure
    errno = call.errno or "no errno"
    if call.op is Op.SETUP:
        return f"the line tells that VFIO failed ({errno}), and not which call it was"
    if not causes and case.usable is not None and case.verdict is not None and case.verdict.ok:
        return (
            f"{errno} of {_what(case)} is not explained: by {case.usable.host} all of it may be "
            f"mapped{_aside(case)}"
        )
    count = f", for one of {causes} reasons" if causes else ""
    if call.errno is None:
        return f"{call.op} of {_what(case)} failed{count}: the line names no errno"
    plain = PLAIN.get(call.errno, "the call was refused")
    return f"{errno} of {_what(case)}: {plain}{count}"


def _what(case: Case) -> str:
    call = case.failure
    bar = call.part is Part.BAR or case.clues.peer
    if call.op is Op.MEMSLOT and call.part is None and call.range is not None:
        return f"the memory slot {call.range} ({show_size(call.range.size)})"
    if call.range is not None:
        size = show_size(call.range.size)
        if bar:
            return f"the device BAR at {call.range.start:#x} ({size})"
        noun = "RAM at" if call.part is Part.RAM else "the range"
        return f"{noun} {call.range} ({size})"
    if call.iova is not None and call.op is not Op.START:
        noun = "the device BAR" if bar else "RAM" if call.part is Part.RAM else "the range"
        return f"{noun} at {call.iova:#x}"
    if call.op in (Op.MAP, Op.UNMAP):
        size = f" of {show_size(call.size)}" if call.size else ""
        noun = "a device BAR" if bar else "guest RAM" if call.part is Part.RAM else f"the {call.op}"
        return f"{noun}{size}"
    return _NOUNS[call.op]


_NOUNS = {
    Op.MAP: "the map",
    Op.UNMAP: "the unmap",
    Op.SET_IOMMU: "setting the container's IOMMU type",
    Op.ATTACH: "the attach",
    Op.BIND: "the bind to iommufd",
    Op.GET_DEVICE: "opening the device of the group",
    Op.OPEN: "opening the node",
    Op.PROBE: "binding to vfio-pci",
    Op.FAULT: "the access",
    Op.MEMSLOT: "the memory slot",
    Op.BAR: "the BAR",
    Op.START: "part of the guest",
    Op.SETUP: "the setup",
}


def _device(case: Case) -> str:
    if case.failure.device is not None:
        return case.failure.device
    named = case.clues.devices
    return named[0] if len(named) == 1 else "the device"


def _bar(case: Case) -> str:
    call = case.failure
    size = f" ({show_size(call.size)})" if call.size else ""
    return f"a BAR{size} of {_device(case)}"


def _hole(finding: Finding) -> str:
    """The hole as the finding names it: up to where its source begins."""
    text = finding.text.removeprefix("it overlaps ")
    return text.partition("; ")[0]


_HEADLINES = {
    Why.WIDTH: "{what} lies beyond the IOMMU's address width{width}",
    Why.HOLE: "{what} overlaps {hole}",
    Why.OUTSIDE: "{what} is not inside one of the kernel's usable IOVA ranges",
    Why.SEAM: "{what} crosses a seam of the kernel's ranges, which no single map may",
    Why.CPU_BITS: "{what} lies beyond the physical address bits of the CPU{cpu}: KVM refuses it",
    Why.SLOT_SIZE: "{what} is more than one memory slot of KVM takes (8 TiB)",
    Why.ALIGNMENT: "{what} is not whole pages of the host",
    Why.WRAP: "{what} reaches beyond 2^64",
    Why.ORDER: "the call came too early: the container's IOMMU type was not set",
    Why.FLAGS: "the call has a flag or a size that the kernel does not take",
    Why.OVERLAP: "{what} is mapped already",
    Why.ENTRIES: "the container has no map call left (dma_entry_limit)",
    Why.MEMLOCK: "the locked-memory limit (RLIMIT_MEMLOCK){limit} is too low for the guest's RAM"
    "{times}",
    Why.HVA: "the memory behind {what} cannot be pinned: it is missing, read-only, or has run out",
    Why.BAR: "iommufd cannot pin the pages of {what}, which are device memory",
    Why.PEER: "QEMU could not map a BAR of {dev} for peer-to-peer DMA, and goes on",
    Why.DIRECT: "firmware demands a 1:1 mapping for {dev}, so the kernel does not hand it out",
    Why.ISOLATION: "the host does not isolate the interrupts of {dev} (no interrupt remapping)",
    Why.LIVE_MAPS: "something is mapped where the new device cannot have it",
    Why.NOT_VIABLE: "another device of {group} still has a driver of the host",
    Why.BUSY: "{node} is in use by another program",
    Why.ABSENT: "{node} does not exist: no device is bound to VFIO, or a module is not loaded",
    Why.UNBOUND: "{dev} is not bound to vfio-pci",
    Why.UNMATCHED: "vfio-pci was not told to take {dev}",
    Why.NO_GROUP: "{dev} is in no IOMMU group, so VFIO cannot take it{board}",
    Why.NO_CDEV: "there is no VFIO node of the device's own: the host's kernel lacks "
    "CONFIG_VFIO_DEVICE_CDEV, or the container was not given the node",
    Why.SHARED_GROUP: "devices of {group} are in two address spaces of the guest, and a group can "
    "be in only one",
    Why.COHERENCY: "the IOMMU cannot enforce cache coherency for {dev}",
    Why.NOT_MAPPED: "nothing is mapped at {what}",
    Why.CUT: "the unmap cuts through a mapping",
    Why.ROOM: "no free IOVA of that size and alignment is left",
    Why.PERMISSION: "the program may not open {node}",
    Why.NO_DOMAIN: "no IOMMU translates for the device: it is off, or its module is not loaded",
    Why.FOREIGN_FILE: "the file is not the VFIO file that the call is for",
    Why.MEDIATED: "the driver of the mediated device refused {what}",
    Why.MEDIATED_GROUP: "the mediated device has no IOMMU group: it was not made, or its module is "
    "not loaded",
    Why.UNMAPPED_DMA: "{dev} reached for {addr}, which is not mapped for it",
    Why.REQUESTER: "the IOMMU knows no device {dev}: it is in no domain",
    Why.GRAPHICS: "the graphics {dev} reached for {addr}, its own stolen memory",
    Why.INVALID_REQUEST: "{dev} made a request at {addr} that the IOMMU does not take",
    Why.HARDWARE: "the IOMMU waits in vain for a command: a device or the IOMMU itself hangs",
    Why.UNTRANSLATED: "the kernel could not set the IOMMU up for {dev}: nothing translates for it",
    Why.NO_SPACE: "{bar} found no room in the PCI window",
    Why.BAR_MOVED: "not about DMA: Cloud Hypervisor could not move {bar}, which the guest was only "
    "sizing, or put outside of its PCI window",
    Why.BAR_HELD: "the host's console still holds a BAR of {dev}",
    Why.GUEST_BITS: "the guest has too few address bits for its RAM and PCI window",
    Why.BACKING: "there is not enough memory for the guest's RAM",
    Why.RLIMIT: "libvirt may not raise QEMU's locked-memory limit",
    Why.NO_IOMMU: "no IOMMU is in use on this host{off}",
    Why.VIOMMU_WIDTH: "the guest's IOMMU has more address bits than the host's",
    Why.VIOMMU_NOTIFY: "the guest's IOMMU does not tell VFIO what it maps",
    Why.VIOMMU_PAGES: "the guest's IOMMU has smaller pages than the host's",
    Why.NO_VIOMMU: "the device asks for an IOMMU in the guest, which has none",
    Why.ACS: "{dev} is behind a switch that does not isolate (no ACS)",
    Why.IOVA_MODE: "virtual addresses cannot be IOVAs here",
    Why.UNWOUND: "the errno of the line is not the ioctl's: a VFIO map does not answer ENOENT",
    Why.BOUNCE: "not about VFIO: the host's own driver of {dev} found no room in the bounce "
    "buffers (swiotlb), or memory out of the device's reach",
    Why.TOOLSTACK: "Xen's toolstack could not give {dev} to the guest, and the line does not tell "
    "why",
    Why.MEDIATED_ROOM: "not about DMA addresses: no more mediated devices of this type can be made",
    Why.VFIO_USER: "the vfio-user server did not take {what} into its own table: no IOMMU is "
    "concerned",
    Why.VIOMMU_MISS: "the guest's own IOMMU has no mapping for an address that a device of the "
    "guest uses",
    Why.GUEST_DRIVER: "the guest's own driver gave up on its device (Code 43); no failed call of "
    "the host is told",
    Why.OTHER: "not about DMA addresses: it is the device, its reset, or its ROM",
}
_FAULTS = {
    Why.HOLE: "{dev} reached for {addr}, in {hole}, where nothing can be mapped",
    Why.WIDTH: "{dev} reached for {addr}, beyond the address width of the IOMMU",
}
