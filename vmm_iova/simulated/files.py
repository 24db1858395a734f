# SPDX-License-Identifier: Apache-2.0
"""Open files of groups and devices of the simulated kernel."""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import TYPE_CHECKING

from vmm_iova.kernel import uapi
from vmm_iova.simulated.model import refuse
from vmm_iova.simulated.type1 import SimContainer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.simulated.ioas import SimIoas
    from vmm_iova.simulated.iommufd import SimIommufd
    from vmm_iova.simulated.model import SimGroup
    from vmm_iova.simulated.objects import SimDevice
    from vmm_iova.simulated.pci import SimPci


class GroupFile:
    """An open group, and the container that it is in."""

    def __init__(self, group: SimGroup) -> None:
        self.group = group
        self.container: SimContainer | SimIommufd | None = None
        self.devices = 0


class DeviceFile:
    """A device, had through its group or through its own node."""

    def __init__(self, bdf: str, group: SimGroup, parent: GroupFile | None, pci: SimPci) -> None:
        self.bdf = bdf
        self.group = group
        self.parent = parent
        self.pci = pci
        self.bound: tuple[SimIommufd, SimDevice] | None = None


def device_info(item: DeviceFile, arg: bytearray) -> int:
    """Answer VFIO_DEVICE_GET_INFO."""
    argsz = struct.unpack_from("=I", arg)[0]
    if argsz < uapi.DEVICE_INFO.minimum:
        raise refuse(errno.EINVAL)
    group, chain = item.group, b""
    flags = uapi.DEVICE_FLAG_PCI | (uapi.DEVICE_FLAG_RESET if item.pci.resets else 0)
    if group.zpci:
        chain = uapi.ZPCI_BASE.codec.pack(
            1, 1, 0, group.zpci.start, group.zpci.last, 0, 0, 64, 0, 0
        )
        flags |= uapi.DEVICE_FLAG_CAPS
    total, offset = argsz, 0
    if chain and argsz < 24 + len(chain):
        total = 24 + len(chain)
    elif chain:
        offset = 24
        arg[24 : 24 + len(chain)] = chain
    head = struct.pack("=IIIIII", total, flags, 9, 5, offset, 0)
    arg[: min(argsz, 24)] = head[: min(argsz, 24)]
    return 0


def device_call(item: DeviceFile, request: int, arg: int | bytes | bytearray) -> int | None:
    """Answer a call that is about the device alone; None for any other."""
    if request == uapi.DEVICE_RESET:
        item.pci.reset()
        return 0
    if not isinstance(arg, bytearray):
        return None
    if request == uapi.DEVICE_GET_INFO:
        return device_info(item, arg)
    handler = {
        uapi.DEVICE_GET_REGION_INFO: item.pci.region_info,
        uapi.DEVICE_GET_IRQ_INFO: item.pci.irq_info,
        uapi.DEVICE_SET_IRQS: item.pci.set_irqs,
    }.get(request)
    return None if handler is None else handler(arg)


def do_dma(
    files: Iterable[object], page: int, bdf: str, iova: int, size: int, data: bytes | None
) -> bytes:
    """Let a device read memory at an IOVA, or write it if there is `data`.

    Raises:
        OSError: `EFAULT`, where a real IOMMU would log a fault.
    """
    mine = [item for item in files if isinstance(item, DeviceFile) and item.bdf == bdf]
    tables = [item.bound[1].table for item in mine if item.bound and item.bound[1].table]
    seen: list[SimContainer | SimIoas] = [
        item.parent.container
        for item in mine
        if item.parent and isinstance(item.parent.container, SimContainer)
    ]
    seen += [table.ioas for table in tables]
    read = bytearray()
    at = iova
    while at < iova + size:
        area = next((hit for space in seen if (hit := space.areas.first(at, at))), None)
        if area is None or not (area.read if data is None else area.write):
            raise refuse(errno.EFAULT)
        step = min(iova + size, area.last + 1) - at
        where = area.hva + (at - area.start)
        if data is None:
            read += ctypes.string_at(where, step)
        else:
            ctypes.memmove(where, data[at - iova : at - iova + step], step)
            for table in tables:
                if table.tracking:
                    table.written.update(range(at & -page, at + step, page))
        at += step
    return bytes(read)
