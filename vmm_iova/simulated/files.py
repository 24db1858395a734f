# SPDX-License-Identifier: Apache-2.0
"""Open files of groups and devices of the simulated kernel."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from vmm_iova.kernel import uapi
from vmm_iova.simulated.model import refuse

if TYPE_CHECKING:
    from vmm_iova.simulated.iommufd import SimIommufd
    from vmm_iova.simulated.model import SimGroup
    from vmm_iova.simulated.objects import SimDevice
    from vmm_iova.simulated.type1 import SimContainer


class GroupFile:
    """An open group, and the container that it is in."""

    def __init__(self, group: SimGroup) -> None:
        self.group = group
        self.container: SimContainer | SimIommufd | None = None
        self.devices = 0


class DeviceFile:
    """A device, had through its group or through its own node."""

    def __init__(self, bdf: str, group: SimGroup, parent: GroupFile | None) -> None:
        self.bdf = bdf
        self.group = group
        self.parent = parent
        self.bound: tuple[SimIommufd, SimDevice] | None = None


def device_info(group: SimGroup, arg: bytearray) -> int:
    """Answer VFIO_DEVICE_GET_INFO."""
    argsz = struct.unpack_from("=I", arg)[0]
    if argsz < uapi.DEVICE_INFO.minimum:
        raise refuse(errno.EINVAL)
    flags, chain = uapi.DEVICE_FLAG_RESET | uapi.DEVICE_FLAG_PCI, b""
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
