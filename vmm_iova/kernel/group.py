# SPDX-License-Identifier: Apache-2.0
"""A VFIO group: the file through which a container gets its devices.

Source of what is said here: drivers/vfio/group.c of Linux 4.4 to 7.3.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.errors import DmaError
from vmm_iova.kernel import uapi
from vmm_iova.kernel.handle import ATTACH_HINTS, Handle
from vmm_iova.kernel.syscalls import hold

if TYPE_CHECKING:
    from vmm_iova.kernel.syscalls import Kernel


class VfioGroup(Handle):
    """An open group.

    Args:
        kernel: where the calls go.
        number: of the group.
        path: its node.

    Raises:
        DmaError: the node cannot be opened; `EBUSY` it is open elsewhere.

    Synchronization: external.
    """

    def __init__(self, kernel: Kernel, number: int, path: str) -> None:
        self.number = number
        super().__init__(kernel, path, f"group {number}", None)

    def _flags(self) -> int:
        status = uapi.GROUP_STATUS.pack(argsz=uapi.GROUP_STATUS.size)
        self.call("VFIO_GROUP_GET_STATUS", uapi.GROUP_GET_STATUS, status)
        return uapi.GROUP_STATUS.read(status)["flags"]

    @property
    def joined(self) -> bool:
        """Whether it is in a container, as the kernel says."""
        return not self.closed and bool(self._flags() & uapi.GROUP_CONTAINER_SET)

    def join(self, container: int) -> None:
        """Put it into the container with this descriptor.

        Raises:
            DmaError: `EINVAL` not viable, a live mapping in the way, or a direct region; `EPERM`.
        """
        if not self._flags() & uapi.GROUP_VIABLE:
            raise DmaError(
                f"group {self.number} is not viable: another of its devices has a host driver",
                errno=errno.EINVAL,
                ioctl="VFIO_GROUP_GET_STATUS",
                hint=say.BIND_GROUP,
            )
        self.call(
            "VFIO_GROUP_SET_CONTAINER",
            uapi.GROUP_SET_CONTAINER,
            bytearray(struct.pack("=i", container)),
            message=f"group {self.number} cannot be attached",
            hints=ATTACH_HINTS,
        )

    def leave(self) -> None:
        """Take it out of its container.

        Raises:
            DmaError: `EBUSY` a device of it is open.
        """
        self.call(
            "VFIO_GROUP_UNSET_CONTAINER",
            uapi.GROUP_UNSET_CONTAINER,
            message=f"group {self.number} cannot be detached",
            hints={errno.EBUSY: "close its devices first"},
        )

    def open_device(self, box: dict[str, int], bdf: str) -> None:
        """Open a device, and put its descriptor into `box`.

        Raises:
            DmaError: `ENODEV` the group has no such device or it is not bound to VFIO; `EINVAL`.
        """
        name = bytearray(bdf.encode("ascii") + b"\0")
        fds: list[int] = []
        try:
            hold(fds, self._kernel.ioctl, self.fd, uapi.GROUP_GET_DEVICE_FD, name)
        except OSError as exc:
            raise DmaError(
                f"group {self.number} does not give out {bdf}: {exc.strerror}",
                errno=exc.errno or 0,
                ioctl="VFIO_GROUP_GET_DEVICE_FD",
            ) from exc
        finally:
            # An interrupt that comes now finds it in the box, or not open.
            for fd in fds:
                box[bdf] = fd
