# SPDX-License-Identifier: Apache-2.0
"""The devices of a simulated kernel by their BDF; they outlive the files that open them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from vmm_iova.errors import RequestError, UnknownNameError
from vmm_iova.simulated.edu import SimEdu
from vmm_iova.simulated.nvme import SimNvme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vmm_iova.simulated.pci import Dma, SimPci

DeviceKind = Literal["edu", "nvme"]
"""What is behind a device: QEMU's `edu`, which copies, or a disk."""

KINDS: dict[DeviceKind, Callable[[Dma], SimPci]] = {"edu": SimEdu, "nvme": SimNvme}


class SimDevices:
    """Devices, each made when it is first asked for.

    Args:
        names: gives the BDFs that there are now; devices can be plugged in.
        kinds: what those are that are no `edu`.
        dma: moves memory for a device: BDF, IOVA, bytes, and what is written.
        release: of the kernel.

    Raises:
        RequestError: a kind or a device that there is not.
    """

    def __init__(
        self,
        names: Callable[[], tuple[str, ...]],
        kinds: Mapping[str, DeviceKind],
        dma: Callable[[str, int, int, bytes | None], bytes],
        release: tuple[int, int],
    ) -> None:
        self._names = names
        self._kinds = dict(kinds)
        self._dma = dma
        self._release = release
        self._made: dict[str, SimPci] = {}
        known = names()
        for bdf, kind in kinds.items():
            if bdf not in known or kind not in KINDS:
                text = f"{bdf} cannot be a {kind!r}; there are {', '.join(KINDS)}"
                if bdf not in known:
                    text = f"there is no device {bdf}; there are {', '.join(known) or 'none'}"
                raise RequestError(text, field="kinds", value=dict(kinds))

    def __iter__(self) -> Iterator[tuple[str, SimPci]]:
        return iter(self._made.items())

    def get(self, bdf: str) -> SimPci:
        """Return a device.

        Raises:
            UnknownNameError: there is no such device.
        """
        known = self._names()
        if bdf not in known:
            raise UnknownNameError(
                f"there is no device {bdf}", kind="device", name=bdf, known=list(known)
            )
        if bdf not in self._made:
            made = KINDS[self._kinds.get(bdf, "edu")](partial(self._dma, bdf))
            made.widest = 8 if self._release >= (6, 11) else 4
            # KERNEL: "vfio: Remove the pcie check for VFIO_PCI_ERR_IRQ_INDEX" of March 2026; 7.3
            # has it, 6.12 does not.
            made.reports_errors |= self._release >= (7, 1)
            self._made[bdf] = made
        return self._made[bdf]
