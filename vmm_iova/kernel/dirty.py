# SPDX-License-Identifier: Apache-2.0
"""Pages that devices of an IOAS have written: the page tables that track them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm_iova.errors import DmaError
from vmm_iova.kernel import uapi

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.kernel.iommufd import Iommufd
    from vmm_iova.ranges import Iova


class DirtyTables:
    """Page tables that track writes, by device.

    Args:
        iommufd: whose objects they are.

    Synchronization: external.
    """

    def __init__(self, iommufd: Iommufd) -> None:
        self._iommufd = iommufd
        self.by_device: dict[str, int] = {}

    def check(self, devices: Iterable[str]) -> None:
        """Refuse where a device writes unseen: what it wrote would be lost in a migration.

        Raises:
            DmaError: `EINVAL` a device is attached without, `EOPNOTSUPP` none is attached with it.
        """
        unseen = [name for name in devices if name not in self.by_device]
        if unseen or not self.by_device:
            what = f"{', '.join(unseen)} was attached without" if unseen else "no device has"
            raise DmaError(
                f"written pages cannot be tracked: {what} dirty tracking",
                errno=errno.EINVAL if self.by_device else errno.EOPNOTSUPP,
                ioctl="IOMMU_HWPT_SET_DIRTY_TRACKING",
                hint="attach every device with dirty=True, where its IOMMU can track",
            )

    def drop(self, device: str) -> None:
        """Destroy the table of a device, if it has one and it is still there."""
        table = self.by_device.get(device)
        if table is not None:
            try:
                self._iommufd.destroy(table)
            except DmaError as exc:
                if exc.errno != errno.ENOENT:
                    raise
            self.by_device.pop(device, None)

    def start(self) -> None:
        """Begin to track on all, or on none.

        Raises:
            DmaError: the kernel refused; nothing tracks.
        """
        begun: list[int] = []
        try:
            for table in self.by_device.values():
                self._iommufd.set_dirty(table, enable=True)
                begun.append(table)
        except DmaError:
            for table in reversed(begun):
                self._iommufd.set_dirty(table, enable=False)
            raise

    def stop(self) -> None:
        """End tracking."""
        for table in self.by_device.values():
            self._iommufd.set_dirty(table, enable=False)

    def read(self, iova: Iova, size: int, granule: int) -> bytes:
        """Return the bitmap of pages that any device wrote; see `Ioas.read_dirty`."""
        merged = length = 0
        for table in self.by_device.values():
            bitmap = self._iommufd.read_dirty(table, iova, size, granule)
            merged |= uapi.read_bits(bitmap)
            length = len(bitmap)
        return uapi.write_bits(merged, length)
