# SPDX-License-Identifier: Apache-2.0
"""What is asked of every host of a fleet. It pickles: workers get it."""

from __future__ import annotations

import contextlib
import pickle
from typing import TYPE_CHECKING, Any

from vmm_iova.errors import MisalignedError, PlacementError, PlanError, RequestError
from vmm_iova.host.evidence import stated_evidence
from vmm_iova.host.host import Host
from vmm_iova.patterns import regex
from vmm_iova.planning.plan import Guest, OnHole, Prefer, plan
from vmm_iova.planning.request import machine_of
from vmm_iova.ranges import check_granule
from vmm_iova.record import record, replace

if TYPE_CHECKING:
    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.guest import Reading
    from vmm_iova.planning.layout import Layout
    from vmm_iova.ranges import AddrRange, RangeSet

_CLASS = regex(r"(0x)?([0-9a-fA-F]{2}){1,3}")


@record
class FleetRequest:
    """What is asked of every host of a fleet.

    Attributes:
        guest: what is wanted; its machine may be a name, a file, a `Machine`, or None for the
            usual one of each host's architecture.
        on_hole: as in `vmm_iova.plan`.
        prefer: as in `vmm_iova.plan`.
        keep: a saved layout, as JSON, that a host must be able to have as it is.
        groups: IOMMU groups that are needed on each host; None for those that can be assigned.
        devices: devices by name that are needed on each host.
        pci_class: hex digits that the class of a needed device begins with (`"0302"` for 3D
            controllers), or None.
        also_fit: IOMMU groups of each host that come later: the layout holds for them, too.
        aperture: as in `Host.usable`; narrows, and counts where a host has no evidence.
        granule: as in `Host.usable`.
        strict: as in `Host.usable`.
        readings: guests of other releases that may be meant (of a `Definition`); they must fit.
    """

    guest: Guest
    on_hole: OnHole = "auto"
    prefer: Prefer = "lowest"
    keep: dict[str, Any] | None = None
    groups: tuple[str, ...] | None = None
    devices: tuple[str, ...] | None = None
    pci_class: str | None = None
    also_fit: tuple[str, ...] | None = None
    aperture: int | str | AddrRange | RangeSet | None = None
    granule: int | None = None
    strict: bool = False
    readings: tuple[Reading, ...] = ()

    def resolved(self) -> FleetRequest:
        """Return the same, tried on a host that allows everything, and with its machine loaded.

        What makes no sense is said before the first host is judged; and a worker elsewhere may not
        have the file of the machine.

        Raises:
            RequestError: it makes no sense on any host.
            UnknownNameError: there is no such machine.
            HostDataError: the file of the machine, or the saved layout, is malformed.
        """
        loaded = self
        if self.guest.machine is not None:
            loaded = replace(self, guest=replace(self.guest, machine=machine_of(self.guest, None)))
        for name in ("groups", "devices", "also_fit"):
            if getattr(self, name) == ():
                raise RequestError(f"{name} names none", field=name, value=())
        if self.pci_class is not None and not _CLASS.fullmatch(self.pci_class):
            raise RequestError(
                f"class {self.pci_class!r} is not 2, 4 or 6 hex digits",
                field="pci_class",
                value=self.pci_class,
                hint="as lspci -n prints it: 02 for network, 0302 for 3D controllers",
            )
        if self.aperture is not None:
            stated_evidence(self.aperture)
        if self.granule is not None:
            check_granule(self.granule)
        with contextlib.suppress(PlacementError, MisalignedError):
            loaded.plan(Host("any host", page_size=4096).usable(aperture=64))
        return loaded

    def plan(self, usable: Usable) -> Layout:
        """Plan the guest.

        Raises:
            PlanError: it cannot be placed, or the saved layout cannot be kept.
            IovaError: as `vmm_iova.plan`.
        """
        for reading in self.readings:
            try:
                plan(reading.guest, usable, self.on_hole, prefer=self.prefer)
            except PlanError as error:
                raise PlanError(
                    f"with {reading.text}: {error.message}",
                    reasons=error.reasons,
                    fixes=error.fixes,
                    detail=error.detail,
                ) from error
        layout = plan(self.guest, usable, self.on_hole, prefer=self.prefer, keep=self.keep)
        if layout.changes:
            first, *more = layout.changes
            others = f" (and {len(more)} more changes)" if more else ""
            raise PlanError(f"the saved layout cannot be kept: {first}{others}")
        return layout


def written(request: FleetRequest) -> bytes:
    """Return all of a request as bytes: its repr leaves out what is long."""
    global _WRITTEN
    known, content = _WRITTEN
    if known is not request:
        content = pickle.dumps(request)
        _WRITTEN = request, content
    return content


_WRITTEN: tuple[FleetRequest | None, bytes] = None, b""
