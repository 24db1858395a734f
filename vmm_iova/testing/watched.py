# SPDX-License-Identifier: Apache-2.0
"""A simulated kernel that remembers who asked for what, so that a test can say what it left."""

from __future__ import annotations

import struct
from inspect import signature
from typing import TYPE_CHECKING, Any

from vmm_iova.errors import RequestError
from vmm_iova.host.load import load_host
from vmm_iova.kernel import uapi
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.kernel.book import caller
from vmm_iova.simulated import SimGroup, SimulatedKernel

if TYPE_CHECKING:
    from vmm_iova.host.evidence import Aperture
    from vmm_iova.host.host import Host

DEVICE = "0000:01:00.0"
"""The device of a kernel that was not made of a host."""

_IOVA_AT = {
    uapi.IOMMU_MAP_DMA: uapi.DMA_MAP.offsets["iova"][0],
    abi.IOAS_MAP: abi.MAP_ARG.offsets["iova"][0],
    abi.IOAS_MAP_FILE: abi.MAP_FILE_ARG.offsets["iova"][0],
    abi.IOAS_COPY: abi.COPY_ARG.offsets["dst_iova"][0],
}


class WatchedKernel(SimulatedKernel):
    """A `SimulatedKernel` with the places that opened its files and made its mappings.

    Synchronization: external.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.told: list[str] = []
        """What was left behind, found by those who use this kernel."""
        self._opened: dict[int, str] = {}
        self._made: dict[int, str] = {}

    def open(self, path: str) -> int:
        """Open a node, and note who does."""
        fd = super().open(path)
        self._opened[fd] = f"{path} is open, by {_place()}"
        return fd

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        super().close(fd)
        self._opened.pop(fd, None)

    def ioctl(self, fd: int, request: int, arg: int | bytes | bytearray = 0) -> int:
        """Answer an ioctl; of one that maps or opens, note who asks."""
        answer = super().ioctl(fd, request, arg)
        if request == uapi.GROUP_GET_DEVICE_FD and isinstance(arg, bytes | bytearray):
            name = bytes(arg).rstrip(b"\0").decode("ascii")
            self._opened[answer] = f"device {name} is open, by {_place()}"
        elif request in _IOVA_AT and isinstance(arg, bytearray):
            iova: int = struct.unpack_from("=Q", arg, _IOVA_AT[request])[0]
            self._made[iova] = _place()
        return answer

    def own(self) -> None:
        """Take what is open now for the fixtures' own: it is no leak of the test."""
        self._opened.clear()

    def left(self) -> list[str]:
        """Return what is still in use, one sentence each."""
        left = [
            f"{where.start:#x}-{where.last:#x} is mapped, by {self._made.get(where.start, '?')}"
            for areas in self._spaces()
            for where in areas
        ]
        left += self._opened.values()
        left += [
            f"{item.windows} mappings of the registers of {bdf} are left"
            for bdf, item in self._devices
            if item.windows
        ]
        if self.memory.locked:
            left.append(f"{self.memory.locked:#x} bytes are locked")
        return left

    def close_all(self) -> None:
        """Close every file, so that nothing of this test meets the next."""
        for fd in list(self._opened):
            self.close(fd)


def _place() -> str:
    return "{}:{}".format(*caller())


def make_kernel(
    host: str | Host | None = None,
    aperture: Aperture | None = None,
    groups: list[SimGroup] | None = None,
    **options: Any,
) -> WatchedKernel:
    """Make the kernel that a marker describes.

    Raises:
        RequestError: it has an option that there is not.
    """
    maker = SimulatedKernel.__init__ if host is None else SimulatedKernel.from_host
    known = sorted({"host", "aperture", "groups", "via", *signature(maker).parameters} - {"self"})
    for name in options:
        if name not in known:
            raise RequestError(
                f"the marker vmm_kernel has no option {name}; it has {', '.join(known)}",
                field=name,
                value=options[name],
            )
    if host is not None:
        facts = load_host(host) if isinstance(host, str) else host
        return WatchedKernel.from_host(facts, aperture=aperture, **options)
    return WatchedKernel(groups or [SimGroup(1, (DEVICE,))], **options)
