# SPDX-License-Identifier: Apache-2.0
"""An open file of the kernel: closed once, in `with` or without, and its refusals explained."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Self

from vmm_iova import remedies as say
from vmm_iova.errors import ClosedError, DmaError
from vmm_iova.kernel.book import caller
from vmm_iova.kernel.syscalls import hold

if TYPE_CHECKING:
    from vmm_iova.kernel.syscalls import Kernel, LockBudget
    from vmm_iova.ranges import Hva, Iova


class Handle:
    """Base of everything that holds a descriptor.

    Args:
        kernel: where the calls go.
        path: node to open.
        what: its name in messages.
        hint: what to do when the node cannot be opened, or None.

    Raises:
        DmaError: the node cannot be opened.

    Synchronization: external.
    """

    def __init__(self, kernel: Kernel, path: str, what: str, hint: str | None) -> None:
        self._fds: list[int] = []  # one, or none: closed
        self._kernel = kernel
        self._what = what
        self._place = "{}:{}".format(*caller())
        try:
            hold(self._fds, kernel.open, path)
        except OSError as exc:
            raise DmaError(
                f"{path} cannot be opened: {exc.strerror}",
                errno=exc.errno or 0,
                ioctl="open",
                hint=hint,
            ) from exc

    def __del__(self) -> None:
        if getattr(self, "_fds", None):
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {'open' if self._fds else 'closed'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """The descriptor.

        Raises:
            ClosedError: it is closed.
        """
        try:
            return self._fds[0]
        except IndexError:
            raise ClosedError(f"the {self._what} opened at {self._place} is closed") from None

    @property
    def kernel(self) -> Kernel:
        """Where the calls go."""
        return self._kernel

    def lock_budget(self) -> LockBudget:
        """Return how much memory this process may lock."""
        return self._kernel.lock_budget()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._fds

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._fds:
            # No signal is looked for from here to the call, nor in it: it is known, or closed.
            fd = self._fds[0]
            del self._fds[0]
            self._kernel.close(fd)

    def ioctl(self, request: int, arg: int | bytearray) -> int:
        """Make an ioctl on this file; a refusal is a plain OSError."""
        # PERF: `fd` says what is wrong when there is none; a property takes longer than its list.
        return self._kernel.ioctl(self._fds[0] if self._fds else self.fd, request, arg)

    def call_many(self, request: int, records: bytearray, stride: int) -> tuple[int, int]:
        """Make an ioctl for each record; return how many were taken, and the errno of the next."""
        return self._kernel.ioctl_many(self.fd, request, records, stride)

    def call(
        self,
        name: str,
        request: int,
        arg: int | bytearray = 0,
        *,
        message: str | None = None,
        hints: dict[int, str] | None = None,
        iova: Iova | None = None,
        length: int | None = None,
        hva: Hva | None = None,
    ) -> int:
        """Make an ioctl on this file.

        Args:
            name: of the request, for the error.
            request: its number.
            arg: structure, in and out, or a value.
            message: what was wanted, for the error.
            hints: next steps by errno.
            iova: what the call is about, bytes.
            length: the same, bytes.
            hva: the same.

        Raises:
            DmaError: the kernel refused.
            ClosedError: this file is closed.
        """
        try:
            return self._kernel.ioctl(self.fd, request, arg)
        except OSError as exc:
            number = exc.errno or 0
            raise DmaError(
                f"{message or name + ' was refused'}: {exc.strerror}",
                errno=number,
                ioctl=name,
                iova=iova,
                length=length,
                hva=hva,
                hint=(hints or {}).get(number),
            ) from exc


ATTACH_HINTS: dict[int, str] = {
    errno.EPERM: say.REMAP_OR_UNSAFE.format(module="vfio_iommu_type1"),
    errno.EINVAL: f"{say.REHEARSE}, {say.OR_DIRECT}",
    errno.EBUSY: say.IS_OPEN,
    errno.ENODEV: say.LOAD_TYPE1,
}

TYPE1_MAP_HINTS: dict[int, str] = {
    errno.EEXIST: say.UNMAP_FIRST,
    errno.ENOSPC: say.ENTRIES_HINT,
    errno.ENOMEM: say.LOCK_RAISE,
    errno.EFAULT: say.BACKING_OR_BEYOND,
    errno.EINVAL: say.GRANULE_OR_RANGE,
}

IOMMUFD_MAP_HINTS: dict[int, str] = {
    errno.EEXIST: say.UNMAP_FIRST,
    errno.ENOMEM: say.LOCK_RAISE,
    errno.EFAULT: say.BACKING_OR_BAR,
    errno.EINVAL: say.ALIGN_OR_RANGE,
    errno.ENOSPC: say.NO_ROOM,
}
