# SPDX-License-Identifier: Apache-2.0
"""The objects of a simulated iommufd, and how devices attach to them.

Source: drivers/iommu/iommufd/{main,device}.c of Linux 6.6 to 7.3.
"""

from __future__ import annotations

import errno

from vmm_iova.simulated.ioas import SimHwpt, SimIoas
from vmm_iova.simulated.model import SimGroup, refuse


class SimDevice:
    """A device that is bound to an iommufd."""

    def __init__(self, bdf: str, group: SimGroup) -> None:
        self.bdf = bdf
        self.group = group
        self.table: SimHwpt | None = None


SimObject = SimIoas | SimHwpt | SimDevice


class SimObjects:
    """Objects by id, and the attachments between them."""

    def __init__(self) -> None:
        self._by_id: dict[int, SimObject] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __repr__(self) -> str:
        return repr(self._by_id)

    def add(self, item: SimObject) -> int:
        """Give an object the lowest free id, from 1."""
        number = next(n for n in range(1, len(self) + 2) if n not in self._by_id)
        self._by_id[number] = item
        return number

    def get(self, number: int) -> SimObject | None:
        """Return the object of an id, or None."""
        return self._by_id.get(number)

    def forget(self, item: object) -> None:
        """Take an object out."""
        self._by_id = {key: value for key, value in self._by_id.items() if value is not item}

    def clear(self) -> None:
        """Take all out."""
        self._by_id.clear()

    def id_of(self, item: object) -> int:
        """Return the id of an object."""
        return next(key for key, value in self._by_id.items() if value is item)

    def address_spaces(self) -> list[SimIoas]:
        """Return the IOASes."""
        return [item for item in self._by_id.values() if isinstance(item, SimIoas)]

    def ioas(self, number: int) -> SimIoas:
        """Return an IOAS, or refuse with ENOENT."""
        item = self.get(number)
        if not isinstance(item, SimIoas):
            raise refuse(errno.ENOENT)
        return item

    def table(self, number: int) -> SimHwpt:
        """Return a page table, or refuse with ENOENT."""
        item = self.get(number)
        if not isinstance(item, SimHwpt):
            raise refuse(errno.ENOENT)
        return item

    def device(self, number: int) -> SimDevice:
        """Return a bound device, or refuse with ENOENT."""
        item = self.get(number)
        if not isinstance(item, SimDevice):
            raise refuse(errno.ENOENT)
        return item

    def attach(self, device: SimDevice, number: int) -> int:
        """iommufd_device_attach: an IOAS gets a table by itself; a second attach replaces."""
        target = self.get(number)
        if isinstance(target, SimIoas):
            table = self._auto_table(target, device)
        elif isinstance(target, SimHwpt):
            table = target
            if table is not device.table:
                if not table.fits(device.group):
                    raise refuse(errno.EINVAL)
                self._enforce(table.ioas, device)
        else:
            raise refuse(errno.ENOENT if target is None else errno.EINVAL)
        if table is not device.table:
            old = device.table
            device.table = table
            table.users.append(device.bdf)
            if old is not None:
                self._let_go(old, device, keep_regions=old.ioas is table.ioas)
        return self.id_of(table)

    def _auto_table(self, ioas: SimIoas, device: SimDevice) -> SimHwpt:
        for table in ioas.domains:
            if table.auto and table.fits(device.group):
                if table is not device.table:
                    self._enforce(ioas, device)
                return table
        table = SimHwpt(ioas, device.group, auto=True, dirty=False)
        # A first attach reserves what the device wants before the table is made; replacing makes
        # the table first (iommufd_device_auto_get_domain: immediate_attach).
        if device.table is None:
            self._enforce(ioas, device)
        try:
            ioas.add_domain(table)
        except OSError:
            if device.table is None:
                ioas.release(device)
            raise
        if device.table is not None:
            try:
                self._enforce(ioas, device)
            except OSError:
                ioas.remove_domain(table)
                raise
        self.add(table)
        return table

    def _enforce(self, ioas: SimIoas, device: SimDevice) -> None:
        """iopt_table_enforce_dev_resv_regions."""
        if any(owner is device for _, owner in ioas.reserved):
            return
        try:
            for where in device.group.held_back():
                ioas.reserve(where, device)
        except OSError:
            ioas.release(device)
            raise

    def _let_go(self, table: SimHwpt, device: SimDevice, *, keep_regions: bool = False) -> None:
        table.users.remove(device.bdf)
        if not keep_regions:
            table.ioas.release(device)
        if table.auto and not table.users:
            table.ioas.remove_domain(table)
            self.forget(table)

    def detach(self, device: SimDevice) -> None:
        """iommufd_device_detach; nothing happens when it is not attached."""
        table, device.table = device.table, None
        if table is not None:
            self._let_go(table, device)
