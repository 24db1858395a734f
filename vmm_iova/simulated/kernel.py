# SPDX-License-Identifier: Apache-2.0
"""A kernel in memory: VFIO type1 and iommufd down to the ioctl, with faults to order.

It implements `syscalls.Kernel`, so that `type1`, `iommufd`, `device` and `mapping` run on it
unchanged. `plan --dry-run` and users' own tests run against it, and the lab holds it to real
kernels: the same random sequences run on both and every answer is compared. Where they differ,
this is wrong.

Pointers inside structures are addresses of this process, as with the real kernel; only memory that
is mapped for DMA need not exist, unless `device_read` or `device_write` is used.
"""

from __future__ import annotations

import errno
import itertools
import struct
from typing import TYPE_CHECKING, Self

from vmm_iova.host.facts import Limits
from vmm_iova.kernel import uapi
from vmm_iova.kernel.syscalls import Kernel, LockBudget, ioctl_one_by_one
from vmm_iova.ranges import BASE_PAGE, MIB, AddrRange, RangeSet
from vmm_iova.simulated.devices import SimDevices
from vmm_iova.simulated.faults import Fault, due
from vmm_iova.simulated.files import DeviceFile, GroupFile, device_call, do_dma
from vmm_iova.simulated.host import groups_of, host_of, release_of, with_a_device
from vmm_iova.simulated.iommufd import SimIommufd
from vmm_iova.simulated.model import SimGroup, SimMemory, SimSettings, refuse
from vmm_iova.simulated.objects import SimDevice
from vmm_iova.simulated.sysfs import NodeKind, SimSysfs
from vmm_iova.simulated.type1 import SimContainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vmm_iova.host.evidence import Aperture
    from vmm_iova.host.host import Host
    from vmm_iova.kernel.syscalls import RegisterWindow
    from vmm_iova.simulated.devices import DeviceKind
    from vmm_iova.simulated.model import SimArea
    from vmm_iova.simulated.pci import SimPci


_File = SimContainer | SimIommufd | GroupFile | DeviceFile


class SimulatedKernel:
    """A host with an IOMMU.

    Args:
        groups: what there is.
        release: of the kernel whose answers it gives, from (4, 4) to (7, 3).
        page: bytes of the process's pages.
        dma_entry_limit: parameter of vfio_iommu_type1, sampled when a container gets its backend.
        memlock: RLIMIT_MEMLOCK in bytes, or None for CAP_IPC_LOCK.
        allow_unsafe_interrupts: parameter of vfio_iommu_type1 and iommufd.
        iommufd: whether it was configured; also needs release 6.2.
        cdev: whether devices have nodes of their own; also needs 6.6.
        compat_container: whether /dev/vfio/vfio is an iommufd.
        max_auto_alignment: bytes; largest alignment of automatic placement (the huge page, or the
            page where the kernel has no transparent huge pages).
        kinds: what a device is by its BDF, `edu` (as all others are) or `nvme`.

    Attributes:
        settings: the arguments, as its parts see them.
        memory: of the process, and what of it is locked.
        sysfs: files, links and nodes.
        faults: what will go wrong.
        calls: ioctls so far.

    Synchronization: external.
    """

    def __init__(
        self,
        groups: Iterable[SimGroup],
        *,
        release: tuple[int, int] = (7, 3),
        page: int = BASE_PAGE,
        dma_entry_limit: int = 65535,
        memlock: int | None = None,
        allow_unsafe_interrupts: bool = False,
        iommufd: bool = True,
        cdev: bool = True,
        compat_container: bool = False,
        max_auto_alignment: int = 2 * MIB,
        kinds: Mapping[str, DeviceKind] | None = None,
    ) -> None:
        self.settings = SimSettings(
            release, dma_entry_limit, allow_unsafe_interrupts, compat_container, max_auto_alignment
        )
        self.memory = SimMemory(page, memlock)
        self.sysfs = SimSysfs(
            groups,
            has_iommufd=iommufd and release >= (6, 2),
            has_cdev=cdev and iommufd and release >= (6, 6),
        )
        self.faults: list[Fault] = []
        self._host: Host | None = None
        self._devices = SimDevices(self.devices, kinds or {}, self._dma, release)
        self.calls = 0
        self._files: dict[int, _File] = {}
        # Above every descriptor that a process can have, so that none is mistaken for a real one.
        self._next = itertools.count(1 << 24)

    @classmethod
    def from_host(
        cls,
        host: Host,
        *,
        aperture: Aperture | None = None,
        release: tuple[int, int] | None = None,
        iommufd: bool = True,
        compat_container: bool = False,
        kinds: Mapping[str, DeviceKind] | None = None,
    ) -> Self:
        """Make the kernel of a host: its groups, reserved regions, page and limits.

        Every PCI device is bound to vfio-pci, as it will be when it is used; facts that name none
        get one, `0000:00:01.0`. A group of which nothing says what it can map is left out.

        Args:
            host: from `vmm_iova.load_host`: a bundled host, a snapshot, a paste.
            aperture: what the IOMMU translates, where the facts do not say it; as in `Host.usable`.
            release: of the kernel; default the host's own, as far as the simulation knows it.
            iommufd: whether it was configured.
            compat_container: whether /dev/vfio/vfio is an iommufd.
            kinds: what a device is, as for the class.

        Raises:
            EvidenceError: of no group is known what may be mapped.
        """
        memlock, entries = host.limits.memlock, host.limits.dma_entries
        host = with_a_device(host)
        groups = groups_of(host, aperture)
        # Where no source states the page, it is one that every granule of the judge fits.
        granules = [group.page_sizes & -group.page_sizes for group in groups]
        kernel = cls(
            groups,
            release=release_of(host, (7, 3)) if release is None else release,
            page=host.page_size or max(granules, default=BASE_PAGE),
            dma_entry_limit=65535 if entries is None else entries,
            memlock=None if memlock is None or memlock < 0 else memlock,
            iommufd=iommufd,
            compat_container=compat_container,
            kinds=kinds,
        )
        kernel._host = host
        return kernel

    def __repr__(self) -> str:
        major, minor = self.settings.release
        return (
            f"<{type(self).__name__} {major}.{minor}, {len(self.devices())} devices, "
            f"{self.open_files()} open files>"
        )

    def devices(self) -> tuple[str, ...]:
        """Return the BDFs of all devices, ascending."""
        return tuple(sorted(bdf for group in self.sysfs.groups.values() for bdf in group.devices))

    def host(self) -> Host:
        """Return the facts of this host: those that it was made of, or what its sysfs says."""
        if self._host:
            return self._host
        limit = self.memory.limit
        limits = Limits(self.settings.dma_entry_limit, -1 if limit is None else limit)
        return host_of(
            self.sysfs.groups.values(),
            self.memory.page,
            limits,
            foreign=self.sysfs.foreign_drivers,
            unsafe_interrupts=self.settings.allow_unsafe_interrupts,
        )

    def inject(self, number: int, *, request: int | None = None, after: int = 0) -> None:
        """Let one ioctl fail.

        Args:
            number: errno that it answers.
            request: only calls of this kind count, or None.
            after: how many of them go well first.
        """
        self.faults.append(Fault(after, request, number))

    def falsify(self, change: Callable[[bytearray], None], *, request: int, after: int = 0) -> None:
        """Let one ioctl be done, and `change` what it answers."""
        self.faults.append(Fault(after, request, 0, change))

    def open(self, path: str) -> int:
        """Open a node."""
        node = self.sysfs.node(path)
        file: _File
        if isinstance(node, SimGroup):
            file = self._open_group(node)
        elif isinstance(node, tuple):
            file = DeviceFile(*node, None, self._devices.get(node[0]))
        elif node is NodeKind.CONTAINER and not self.settings.compat_container:
            file = SimContainer(self.settings, self.memory)
        else:
            file = SimIommufd(self.settings, self.memory)
        fd = next(self._next)
        self._files[fd] = file
        return fd

    def _open_group(self, group: SimGroup) -> GroupFile:
        for other in self._files.values():
            busy = isinstance(other, GroupFile) and other.group is group
            bound = isinstance(other, DeviceFile) and other.bound and other.group is group
            if busy or bound:
                raise refuse(errno.EBUSY)
        return GroupFile(group)

    def close(self, fd: int) -> None:
        """Close a descriptor; what hangs on it goes as with the real kernel."""
        item = self._files.pop(fd, None)
        if item is None:
            raise refuse(errno.EBADF)
        if isinstance(item, DeviceFile):
            if item.bound:
                iommufd, device = item.bound
                iommufd.objects.detach(device)
                iommufd.objects.forget(device)
                self._retire(iommufd)
            if item.parent:
                item.parent.devices -= 1
                self._leave_if_unused(item.parent)
            if not any(
                isinstance(o, DeviceFile) and o.pci is item.pci for o in self._files.values()
            ):
                item.pci.close()
        elif isinstance(item, GroupFile):
            self._leave_if_unused(item)
        elif isinstance(item, SimIommufd):
            self._retire(item)

    def _leave_if_unused(self, item: GroupFile) -> None:
        # An open device keeps its group in the container although the group's file is closed.
        if item.devices or item in self._files.values() or item.container is None:
            return
        container, item.container = item.container, None
        if isinstance(container, SimContainer):
            container.leave(item.group)

    def _retire(self, iommufd: SimIommufd) -> None:
        """Free an iommufd when neither its file nor a bound device is left."""
        held = any(
            isinstance(other, DeviceFile) and other.bound and other.bound[0] is iommufd
            for other in self._files.values()
        )
        if not held and iommufd not in self._files.values():
            iommufd.release_all()

    def ioctl(self, fd: int, request: int, arg: int | bytes | bytearray = 0) -> int:
        """Answer an ioctl, or let it fail as ordered."""
        item = self._files.get(fd)
        if item is None:
            raise refuse(errno.EBADF)
        self.calls += 1
        fault = due(self.faults, request)
        if fault is not None and fault.errno:
            raise refuse(fault.errno)
        if isinstance(item, GroupFile):
            answer = self._group_ioctl(item, request, arg)
        elif isinstance(item, DeviceFile):
            answer = self._device_ioctl(item, request, arg)
        else:
            answer = item.ioctl(request, arg)
        if fault is not None and fault.change is not None and isinstance(arg, bytearray):
            fault.change(arg)
        return answer

    def device(self, bdf: str) -> SimPci:
        """Return the device itself, as a test bench has it: `signal`, `sparse`, `resets`.

        Raises:
            UnknownNameError: there is no such device.
        """
        return self._devices.get(bdf)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read registers of a device."""
        return self._device_file(fd).pci.pread(size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Write registers of a device; return the bytes."""
        return self._device_file(fd).pci.pwrite(data, offset)

    def map_registers(self, fd: int, size: int, offset: int) -> RegisterWindow:
        """Map registers of a device."""
        return self._device_file(fd).pci.map_registers(size, offset)

    def _device_file(self, fd: int) -> DeviceFile:
        item = self._files.get(fd)
        if not isinstance(item, DeviceFile):
            raise refuse(errno.EBADF if item is None else errno.EINVAL)
        if item.parent is None and item.bound is None:
            raise refuse(errno.EINVAL)
        return item

    def ioctl_many(self, fd: int, request: int, records: bytearray, stride: int) -> tuple[int, int]:
        """Answer many ioctls; faults count each."""
        return ioctl_one_by_one(self, fd, request, records, stride)

    def _group_ioctl(self, item: GroupFile, request: int, arg: int | bytes | bytearray) -> int:
        if request == uapi.GROUP_GET_STATUS and isinstance(arg, bytearray):
            if struct.unpack_from("=I", arg)[0] < uapi.GROUP_STATUS.size:
                raise refuse(errno.EINVAL)
            flags = uapi.GROUP_VIABLE if self.sysfs.viable(item.group) else 0
            flags |= uapi.GROUP_CONTAINER_SET if item.container else 0
            struct.pack_into("=I", arg, 4, flags)
            return 0
        if request == uapi.GROUP_SET_CONTAINER and isinstance(arg, bytes | bytearray):
            return self._set_container(item, struct.unpack("=i", arg)[0])
        if request == uapi.GROUP_UNSET_CONTAINER:
            if item.container is None:
                raise refuse(errno.EINVAL)
            if item.devices:
                raise refuse(errno.EBUSY)
            if isinstance(item.container, SimContainer):
                item.container.leave(item.group)
            item.container = None
            return 0
        if request == uapi.GROUP_GET_DEVICE_FD and isinstance(arg, bytes | bytearray):
            bdf = arg.rstrip(b"\0").decode("ascii")
            if bdf not in item.group.devices:
                raise refuse(errno.ENODEV)
            return self._open_device(item, bdf)
        raise refuse(errno.ENOTTY)

    def _open_device(self, item: GroupFile, bdf: str) -> int:
        """Open a device through its group; behind an iommufd it is attached at that moment."""
        file = DeviceFile(bdf, item.group, item, self._devices.get(bdf))
        container = item.container
        if isinstance(container, SimIommufd):
            file.bound = (container, self._claim(container, bdf, item.group))
            try:
                container.objects.attach(file.bound[1], container.compat.id())
            except OSError:
                container.objects.forget(file.bound[1])
                raise
        elif container is None or not container.type:
            raise refuse(errno.EINVAL)
        fd = next(self._next)
        self._files[fd] = file
        item.devices += 1
        return fd

    def _claim(self, iommufd: SimIommufd, bdf: str, group: SimGroup) -> SimDevice:
        """iommufd_device_bind: interrupts, who owns the group, then direct regions."""
        if not group.isolated_msi and not self.settings.allow_unsafe_interrupts:
            raise refuse(errno.EPERM)
        if not self.sysfs.viable(group):
            raise refuse(errno.EPERM)
        if group.direct:
            raise refuse(errno.EINVAL)
        device = SimDevice(bdf, group)
        iommufd.objects.add(device)
        return device

    def _set_container(self, item: GroupFile, fd: int) -> int:
        if item.container is not None:
            raise refuse(errno.EINVAL)
        container = self._files.get(fd)
        if container is None:
            raise refuse(
                errno.EBADF if fd >= 0 or self.settings.release >= (6, 2) else errno.EINVAL
            )
        if isinstance(container, SimIommufd):
            container.compat.create()
            item.container = container
            return 0
        if not isinstance(container, SimContainer):
            raise refuse(errno.EBADFD if self.settings.release >= (6, 2) else errno.EINVAL)
        # KERNEL: since about 6.6 a direct region keeps the whole device from user space.
        if item.group.direct and self.settings.release >= (6, 6):
            raise refuse(errno.EINVAL)
        container.join(item.group)
        item.container = container
        return 0

    def _device_ioctl(self, item: DeviceFile, request: int, arg: int | bytes | bytearray) -> int:
        if request == uapi.DEVICE_BIND_IOMMUFD and isinstance(arg, bytearray):
            return self._bind(item, arg)
        if item.parent is None and item.bound is None:
            raise refuse(errno.EINVAL)
        answer = device_call(item, request, arg)
        if answer is not None:
            return answer
        if item.bound is None or not isinstance(arg, bytearray):
            raise refuse(errno.ENOTTY)
        iommufd, device = item.bound
        argsz, flags = struct.unpack_from("=II", arg)
        if request == uapi.DEVICE_ATTACH_IOMMUFD_PT:
            if argsz < uapi.ATTACH.minimum or flags:
                raise refuse(errno.EINVAL)
            table = iommufd.objects.attach(device, struct.unpack_from("=I", arg, 8)[0])
            struct.pack_into("=I", arg, 8, table)
            return 0
        if request == uapi.DEVICE_DETACH_IOMMUFD_PT:
            if argsz < uapi.DETACH.minimum or flags:
                raise refuse(errno.EINVAL)
            iommufd.objects.detach(device)
            return 0
        raise refuse(errno.ENOTTY)

    def _bind(self, item: DeviceFile, arg: bytearray) -> int:
        argsz, flags, fd = struct.unpack_from("=IIi", arg)
        if argsz < uapi.BIND.minimum or flags or fd < 0 or item.parent or item.bound:
            raise refuse(errno.EINVAL)
        others = [other for other in self._files.values() if other is not item]
        if any(isinstance(other, GroupFile) and other.group is item.group for other in others):
            raise refuse(errno.EBUSY)
        iommufd = self._files.get(fd)
        if not isinstance(iommufd, SimIommufd):
            raise refuse(errno.EBADF)
        if any(
            isinstance(other, DeviceFile) and other.bound and other.bdf == item.bdf
            for other in others
        ):
            raise refuse(errno.EINVAL)
        device = self._claim(iommufd, item.bdf, item.group)
        item.bound = (iommufd, device)
        struct.pack_into("=I", arg, 12, iommufd.objects.id_of(device))
        return 0

    def read_text(self, path: str) -> str:
        """Return the content of a file."""
        return self.sysfs.read_text(path)

    def list_dir(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        return self.sysfs.list_dir(path)

    def read_link(self, path: str) -> str:
        """Return where a link points."""
        return self.sysfs.read_link(path)

    def exists(self, path: str) -> bool:
        """Tell whether there is something at `path`."""
        return self.sysfs.exists(path)

    # For tests: what is the case, and DMA.

    def lock_budget(self) -> LockBudget:
        """Return how much memory may be locked."""
        return LockBudget(self.memory.limit, self.memory.locked)

    def mapped(self) -> RangeSet:
        """Return every IOVA that is mapped in any container or IOAS that is open."""
        areas = (area for space in self._spaces() for area in space)
        return RangeSet(AddrRange(area.start, area.last) for area in areas)

    def _spaces(self) -> list[Iterable[SimArea]]:
        books: list[Iterable[SimArea]] = []
        for item in self._files.values():
            if isinstance(item, SimContainer):
                books.append(item.areas)
            elif isinstance(item, SimIommufd):
                books.extend(space.areas for space in item.objects.address_spaces())
        return books

    def describe(self) -> str:
        """Say in one text what every open file holds, for reports."""
        return "\n".join(f"{fd}: {item!r}" for fd, item in self._files.items())

    def open_files(self) -> int:
        """Return how many descriptors are open."""
        return len(self._files)

    def device_write(self, bdf: str, iova: int, data: bytes) -> None:
        """Let a device write memory by DMA.

        Raises:
            OSError: `EFAULT`, where a real IOMMU would log a fault and drop the write.
        """
        self._dma(bdf, iova, len(data), data)

    def device_read(self, bdf: str, iova: int, size: int) -> bytes:
        """Let a device read memory by DMA; raises as `device_write`."""
        return self._dma(bdf, iova, size, None)

    def _dma(self, bdf: str, iova: int, size: int, data: bytes | None) -> bytes:
        return do_dma(self._files.values(), self.memory.page, bdf, iova, size, data)


_KERNEL: type[Kernel] = SimulatedKernel  # mypy: whatever drives a real kernel drives this one
