# SPDX-License-Identifier: Apache-2.0
"""The simulated kernel held to a real one: the same calls on both, every answer compared.

A world opens the same files on a kernel and makes calls at the level of the ioctl. Two worlds, one
on the real kernel and one on `vmm_iova.simulated.kernel`, get the same random sequence; an answer
is the errno, the value, and every byte that the kernel wrote. Where they differ, the simulation is
wrong.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm_iova.kernel import uapi
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.kernel.syscalls import UserBuffer
from vmm_iova.ranges import AddrRange, RangeSet

from lab.calls import Answer, Op
from lab.device_calls import DeviceCalls

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from vmm_iova.kernel.syscalls import Kernel

TOP = (1 << 64) - 1
MASK = TOP


class Arena:
    """Memory whose state is known: writable pages, read-only pages, and none at all."""

    def __init__(self, page: int) -> None:
        self.page = page
        self.memory = mmap.mmap(-1, 256 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for first, count, protection in ((128, 16, mmap.PROT_READ), (144, 112, 0)):
            where = ctypes.c_void_p(self.base + first * page)
            if libc.mprotect(where, ctypes.c_size_t(count * page), protection):
                raise OSError(ctypes.get_errno(), "mprotect")
        writable = AddrRange.from_size(self.base, 128 * page)
        self.read_only = RangeSet([AddrRange.from_size(self.base + 128 * page, 16 * page)])
        self.absent = ~(RangeSet([writable]) | self.read_only)


@dataclass
class Pools:
    """Numbers that are worth trying, and those that were tried just now."""

    page: int
    arena: Arena
    edges: Sequence[int]
    # Before 6.18 a mapping that ends at 2^64 is put at a wrong place of the kernel's tree, and from
    # then on others are not found: nothing that a simulation should learn.
    spare_the_top: bool = False
    recent: list[tuple[int, int]] = field(default_factory=list)

    def iova(self, rng: random.Random) -> int:
        """An address: mostly in a small window, so that calls meet each other."""
        kind = rng.random()
        if self.recent and kind < 0.45:
            start, size = rng.choice(self.recent)
            return (start + rng.choice((0, 0, 0, 0, size, -self.page, self.page))) & MASK
        if kind < 0.75:
            return self.edges[0] + rng.randrange(64) * self.page
        if kind < 0.93:
            return (rng.choice(self.edges) + rng.randrange(-3, 4) * self.page) & MASK
        if kind < 0.96:
            return (rng.randrange(64) * self.page + rng.choice((1, 0x800, 0x10, 0xFFF))) & MASK
        return rng.choice((0, 1 << 63, TOP, TOP - self.page + 1, (1 << 63) - self.page))

    def size(self, rng: random.Random) -> int:
        """A size: mostly a few pages."""
        kind = rng.random()
        if self.recent and kind < 0.3:
            return rng.choice(self.recent)[1]
        if kind < 0.85:
            return rng.choice((1, 1, 1, 2, 3, 4, 8, 16, 40, 130)) * self.page
        if kind < 0.93:
            return rng.choice((0, 1, 0x800, self.page - 1, self.page + 0x10))
        return rng.choice((1 << 21, 1 << 30, 1 << 39, 1 << 49, 1 << 63, TOP, TOP - self.page + 1))

    def hva(self, rng: random.Random) -> int:
        """Memory: mostly there, mostly aligned."""
        kind = rng.random()
        if kind < 0.8:
            return self.arena.base + rng.randrange(128) * self.page
        if kind < 0.88:
            return self.arena.base + rng.randrange(128, 256) * self.page
        if kind < 0.96:
            return self.arena.base + rng.randrange(100) * self.page + rng.choice((1, 0x800, 0x10))
        return rng.choice((0, TOP, TOP - self.page + 1))

    def note(self, iova: int, size: int) -> None:
        """Remember what was tried, so that it is met again."""
        self.recent.append((iova, size))
        del self.recent[:-24]


class World:
    """Calls on one kernel; what is read back is part of the answer."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.opened: list[int] = []
        self.device: DeviceCalls | None = None

    def open(self, path: str) -> int:
        """Open a node, to be closed with the world."""
        fd = self.kernel.open(path)
        self.opened.append(fd)
        return fd

    def call(self, fd: int, request: int, arg: int | bytes | bytearray = 0) -> Answer:
        """Make a call; a refused one wrote nothing that counts, unless it says EMSGSIZE."""
        try:
            value = self.kernel.ioctl(
                fd, request, bytearray(arg) if isinstance(arg, bytes) else arg
            )
        except OSError as error:
            data = bytes(arg) if error.errno == 90 and isinstance(arg, bytearray) else b""
            return Answer(error.errno or 0, 0, data)
        return Answer(0, value, bytes(arg) if isinstance(arg, bytearray) else b"")

    def do(self, op: Op) -> Answer:
        """Make the call that `op` names."""
        of_device = self.device is not None and hasattr(self.device, "op_" + op.name)
        where = self.device if of_device else self
        answer: Answer = getattr(where, "op_" + op.name)(*op.args)
        return answer

    def state(self) -> str:
        """Say what the simulation has mapped, for the report of a divergence."""
        told = getattr(self.kernel, "describe", None)
        return str(told()) if told is not None else ""

    def close(self) -> None:
        """Close everything, the last first."""
        if self.device is not None:
            self.device.close()
        for fd in reversed(self.opened):
            self.kernel.close(fd)
        self.opened.clear()


class Type1World(World):
    """A container with one group in it for good, and a second that comes and goes."""

    def __init__(self, kernel: Kernel, groups: Sequence[int], version: int) -> None:
        super().__init__(kernel)
        self.container = self.open("/dev/vfio/vfio")
        self.groups = [self.open(f"/dev/vfio/{number}") for number in groups]
        kernel.ioctl(
            self.groups[0], uapi.GROUP_SET_CONTAINER, bytearray(struct.pack("=i", self.container))
        )
        kernel.ioctl(self.container, uapi.SET_IOMMU, version)

    def open_device(self, bdf: str) -> None:
        """Open a device of the first group, for calls on it."""
        name = bytearray(bdf.encode() + b"\0")
        fd = self.kernel.ioctl(self.groups[0], uapi.GROUP_GET_DEVICE_FD, name)
        self.opened.append(fd)
        self.device = DeviceCalls(self.kernel, fd)

    def op_map(self, iova: int, hva: int, size: int, flags: int, argsz: int) -> Answer:
        """Map."""
        arg = uapi.DMA_MAP.pack(argsz=argsz, flags=flags, vaddr=hva, iova=iova, size=size)
        return self.call(self.container, uapi.IOMMU_MAP_DMA, arg)

    def op_unmap(self, iova: int, size: int, flags: int, argsz: int) -> Answer:
        """Unmap."""
        arg = uapi.DMA_UNMAP.pack(48, argsz=argsz, flags=flags, iova=iova, size=size)
        return self.call(self.container, uapi.IOMMU_UNMAP_DMA, arg)

    def op_info(self, argsz: int) -> Answer:
        """Ask for ranges and capabilities."""
        arg = bytearray(max(argsz, 24))
        struct.pack_into("=I", arg, 0, argsz)
        return self.call(self.container, uapi.IOMMU_GET_INFO, arg)

    def op_extension(self, number: int) -> Answer:
        """Ask for an extension."""
        return self.call(self.container, uapi.CHECK_EXTENSION, number)

    def op_set_iommu(self, number: int) -> Answer:
        """Choose a backend, once more."""
        return self.call(self.container, uapi.SET_IOMMU, number)

    def op_join(self) -> Answer:
        """Let the second group in."""
        pointer = struct.pack("=i", self.container)
        return self.call(self.groups[1], uapi.GROUP_SET_CONTAINER, pointer)

    def op_leave(self) -> Answer:
        """Let it go."""
        return self.call(self.groups[1], uapi.GROUP_UNSET_CONTAINER)

    def op_status(self, which: int) -> Answer:
        """Ask for a group's state."""
        status = uapi.GROUP_STATUS.pack(argsz=8)
        return self.call(self.groups[which], uapi.GROUP_GET_STATUS, status)

    def op_unknown(self, number: int) -> Answer:
        """Make a call that does not exist."""
        return self.call(self.container, uapi.request(number), bytearray(64))

    def op_tracking(self, flags: int, argsz: int) -> Answer:
        """Begin or end dirty tracking."""
        arg = uapi.DIRTY.pack(64, argsz=argsz, flags=flags)
        return self.call(self.container, uapi.IOMMU_DIRTY_PAGES, arg)

    def op_dirty(self, iova: int, size: int, page: int) -> Answer:
        """Read a bitmap; what it says is the answer."""
        bitmap = UserBuffer(max(min(size // max(page, 1), 1 << 20) // 8, 8) + 8 & ~7)
        head = uapi.DIRTY.pack(argsz=48, flags=uapi.DIRTY_GET)
        tail = uapi.DIRTY_RANGE.pack(
            iova=iova, size=size, pgsize=page, bitmap_size=bitmap.size, data=bitmap.address
        )
        answer = self.call(self.container, uapi.IOMMU_DIRTY_PAGES, head + tail)
        # What lies behind the range is left over from readings at other offsets, and means nothing.
        bits = uapi.read_bits(bitmap.content()) & (1 << min(size // max(page, 1), 1 << 20)) - 1
        return Answer(answer.errno, answer.value, uapi.write_bits(bits, bitmap.size))


def type1_ops(rng: random.Random, pools: Pools, count: int) -> list[Op]:
    """Make a sequence of calls on a container."""
    ops: list[Op] = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.46:
            iova, size = pools.iova(rng), pools.size(rng)
            if pools.spare_the_top and iova + size == TOP + 1:
                iova -= pools.page
            flags = rng.choice((3, 3, 3, 3, 3, 1, 1, 0, 8) if rng.random() < 0.5 else (3,))
            argsz = 32 if rng.random() < 0.98 else rng.choice((0, 24, 31, 40))
            ops.append(Op("map", (iova, pools.hva(rng), size, flags, argsz)))
            pools.note(iova, size)
        elif kind < 0.82:
            iova, size = pools.iova(rng), pools.size(rng)
            if pools.recent and rng.random() < 0.6:
                iova, size = rng.choice(pools.recent)
            argsz = 24 if rng.random() < 0.98 else rng.choice((0, 16, 23, 48))
            flags = 0 if rng.random() < 0.97 else rng.choice((2, 2, 8, 16))
            if flags == 2 and rng.random() < 0.7:
                iova = size = 0
            ops.append(Op("unmap", (iova, size, flags, argsz)))
        elif kind < 0.88:
            ops.append(Op("info", (rng.choice((0, 8, 15, 16, 20, 24, 56, 100, 120, 300)),)))
        elif kind < 0.90:
            ops.append(Op("extension", (rng.randrange(12),)))
        elif kind < 0.91:
            ops.append(Op("set_iommu", (rng.choice((1, 3, 8, 99)),)))
        elif kind < 0.935:
            ops.append(Op(rng.choice(("join", "leave"))))
        elif kind < 0.95:
            ops.append(Op("status", (rng.randrange(2),)))
        elif kind < 0.955:
            ops.append(Op("unknown", (rng.choice((115, 119, 121, 130)),)))
        elif kind < 0.975:
            argsz = rng.choice((8, 8, 8, 8, 7, 48))
            ops.append(Op("tracking", (rng.choice((1, 1, 2, 0, 3, 8)), argsz)))
        else:
            iova, size = rng.choice(pools.recent) if pools.recent else (0, pools.page)
            page = pools.page if rng.random() < 0.9 else rng.choice((1, pools.page * 2, 1 << 21))
            ops.append(Op("dirty", (iova, size, page)))
    return ops


class IommufdWorld(World):
    """An iommufd, and two devices of their own groups bound to it."""

    def __init__(self, kernel: Kernel, nodes: Sequence[str]) -> None:
        super().__init__(kernel)
        self.fd = self.open("/dev/iommu")
        self.devices = [self.open(node) for node in nodes]
        self.device = DeviceCalls(kernel, self.devices[0])

    def _command(self, request: int, size: int = 0, /, **values: int) -> Answer:
        record = abi.COMMANDS[request]
        return self.call(self.fd, request, record.pack(size=size or record.size, **values))

    def op_bind(self, which: int) -> Answer:
        """Bind a device."""
        arg = uapi.BIND.pack(argsz=16, iommufd=self.fd)
        answer = self.call(self.devices[which], uapi.DEVICE_BIND_IOMMUFD, arg)
        # The descriptor's number is not the kernel's to choose.
        return Answer(answer.errno, answer.value, answer.data[12:16])

    def op_attach(self, which: int, pt_id: int) -> Answer:
        """Attach a device."""
        arg = uapi.ATTACH.pack(argsz=12, pt_id=pt_id)
        return self.call(self.devices[which], uapi.DEVICE_ATTACH_IOMMUFD_PT, arg)

    def op_detach(self, which: int) -> Answer:
        """Detach it."""
        return self.call(
            self.devices[which], uapi.DEVICE_DETACH_IOMMUFD_PT, uapi.DETACH.pack(argsz=8)
        )

    def op_alloc(self, flags: int) -> Answer:
        """Make an IOAS."""
        return self._command(abi.IOAS_ALLOC, flags=flags)

    def op_destroy(self, number: int) -> Answer:
        """Destroy an object."""
        return self._command(abi.DESTROY, id=number)

    def op_map(self, ioas: int, flags: int, hva: int, size: int, iova: int) -> Answer:
        """Map."""
        return self._command(
            abi.IOAS_MAP, flags=flags, ioas_id=ioas, user_va=hva, length=size, iova=iova
        )

    def op_unmap(self, ioas: int, iova: int, size: int) -> Answer:
        """Unmap."""
        return self._command(abi.IOAS_UNMAP, ioas_id=ioas, iova=iova, length=size)

    def op_copy(
        self, dst: int, src: int, flags: int, size: int, dst_iova: int, src_iova: int
    ) -> Answer:
        """Map what another IOAS has."""
        return self._command(
            abi.IOAS_COPY,
            flags=flags,
            dst_ioas_id=dst,
            src_ioas_id=src,
            length=size,
            dst_iova=dst_iova,
            src_iova=src_iova,
        )

    def op_ranges(self, ioas: int, room: int) -> Answer:
        """Ask for ranges; they are the answer."""
        buffer = UserBuffer(max(room, 1) * 16)
        record = abi.RANGES_ARG
        arg = record.pack(size=32, ioas_id=ioas, num_iovas=room, allowed_iovas=buffer.address)
        answer = self.call(self.fd, abi.IOAS_IOVA_RANGES, arg)
        told = answer.data[8:12] + answer.data[24:32]
        return Answer(answer.errno, answer.value, told + buffer.content())

    def op_allow(self, ioas: int, *pairs: int) -> Answer:
        """Set the allow list."""
        buffer = UserBuffer(max(len(pairs), 2) * 8)
        buffer.write(struct.pack(f"={len(pairs)}Q", *pairs))
        answer = self._command(
            abi.IOAS_ALLOW_IOVAS,
            ioas_id=ioas,
            num_iovas=len(pairs) // 2,
            allowed_iovas=buffer.address,
        )
        return Answer(answer.errno, answer.value)

    def op_option(self, option: int, op: int, number: int, value: int) -> Answer:
        """Get or set an option."""
        return self._command(abi.OPTION, option_id=option, op=op, object_id=number, val64=value)

    def op_table(self, device: int, ioas: int, flags: int) -> Answer:
        """Make a page table."""
        return self._command(abi.HWPT_ALLOC, dev_id=device, pt_id=ioas, flags=flags)

    def op_vfio_ioas(self, op: int, number: int) -> Answer:
        """Choose the IOAS for compat calls."""
        return self._command(abi.VFIO_IOAS, ioas_id=number, op=op)

    def op_compat_map(self, iova: int, hva: int, size: int, flags: int) -> Answer:
        """Map as a container does."""
        arg = uapi.DMA_MAP.pack(argsz=32, flags=flags, vaddr=hva, iova=iova, size=size)
        return self.call(self.fd, uapi.IOMMU_MAP_DMA, arg)

    def op_compat_unmap(self, iova: int, size: int, flags: int) -> Answer:
        """Unmap as a container does."""
        arg = uapi.DMA_UNMAP.pack(argsz=24, flags=flags, iova=iova, size=size)
        return self.call(self.fd, uapi.IOMMU_UNMAP_DMA, arg)

    def op_compat_info(self, argsz: int) -> Answer:
        """Ask as a container does."""
        arg = bytearray(max(argsz, 24))
        struct.pack_into("=I", arg, 0, argsz)
        answer = self.call(self.fd, uapi.IOMMU_GET_INFO, arg)
        # Of a chain that does not fit, the kernel may leave parts behind: no one may read them.
        told = struct.unpack_from("=I", answer.data)[0] if answer.data else 0
        whole = not answer.errno and told <= argsz
        return Answer(answer.errno, 0, answer.data if whole else answer.data[:24])

    def op_short(self, request: int, size: int) -> Answer:
        """Make a call of a wrong size."""
        arg = bytearray(128)
        struct.pack_into("=I", arg, 0, size)
        arg[96] = 1
        answer = self.call(self.fd, request, arg)
        return Answer(answer.errno, answer.value)


def iommufd_ops(rng: random.Random, pools: Pools, count: int) -> list[Op]:
    """Make a sequence of calls on an iommufd. The ids are guesses: both kernels give the lowest."""
    ops = [Op("alloc", (0,)), Op("bind", (0,)), Op("bind", (1,)), Op("attach", (0, 1))]

    def ioas() -> int:
        return rng.choice((1, 1, 1, 1, 1, 1, 4, 5, 2, 6, 0, 7, 99))

    for _ in range(count):
        kind = rng.random()
        iova, size = pools.iova(rng), pools.size(rng)
        if kind < 0.28:
            flags = rng.choice((7, 7, 7, 5, 3, 1, 15)) if rng.random() < 0.3 else 7
            ops.append(Op("map", (ioas(), flags, pools.hva(rng), size, iova)))
            pools.note(iova, size)
        elif kind < 0.40:
            # Automatic placement looks at iova too, although it does not use it.
            where = 0 if rng.random() < 0.9 else iova
            ops.append(Op("map", (ioas(), rng.choice((6, 6, 6, 4)), pools.hva(rng), size, where)))
        elif kind < 0.66:
            if pools.recent and rng.random() < 0.6:
                iova, size = rng.choice(pools.recent)
            if rng.random() < 0.03:
                iova, size = 0, TOP
            ops.append(Op("unmap", (ioas(), iova, size)))
        elif kind < 0.70:
            start, length = rng.choice(pools.recent) if pools.recent else (0, pools.page)
            flags = rng.choice((7, 7, 6, 5, 1, 8))
            ops.append(Op("copy", (ioas(), ioas(), flags, length, iova, start)))
        elif kind < 0.76:
            ops.append(Op("ranges", (ioas(), rng.choice((0, 1, 2, 3, 8)))))
        elif kind < 0.79:
            ops.append(_allow(rng, pools, ioas()))
        elif kind < 0.83:
            option = rng.choice((0, 1, 1, 1, 2))
            op = rng.choice((0, 1, 2) if rng.random() < 0.2 else (0, 1))
            number = 0 if option == 0 and rng.random() < 0.8 else ioas()
            ops.append(Op("option", (option, op, number, rng.choice((0, 1, 1, 2)))))
        elif kind < 0.87:
            ops.append(Op("attach", (rng.randrange(2), ioas())))
        elif kind < 0.89:
            ops.append(Op("detach", (rng.randrange(2),)))
        elif kind < 0.91:
            ops.append(Op("alloc", (rng.choice((0, 0, 0, 1)),)))
        elif kind < 0.925:
            ops.append(Op("destroy", (rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 99)),)))
        elif kind < 0.93:
            ops.append(Op("table", (rng.choice((2, 3, 1, 9)), ioas(), rng.choice((0, 0, 2, 64)))))
        elif kind < 0.945:
            ops.append(Op("vfio_ioas", (rng.choice((0, 1, 1, 2, 3)), ioas())))
        elif kind < 0.985:
            ops.append(_compat(rng, pools, iova, size))
        else:
            request = rng.choice(sorted(abi.COMMANDS))
            record = abi.COMMANDS[request]
            bad = rng.choice((0, record.minimum - 4, 100))
            ops.append(Op("short", (request, bad)))
    return ops


def _allow(rng: random.Random, pools: Pools, ioas: int) -> Op:
    pairs: list[int] = []
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        start = pools.iova(rng)
        pairs += [start, (start + rng.choice((-1, 0, 0xFFF, 0xFFFF, 1 << 24))) & MASK]
    return Op("allow", (ioas, *pairs))


def _compat(rng: random.Random, pools: Pools, iova: int, size: int) -> Op:
    kind = rng.random()
    if kind < 0.4:
        return Op("compat_map", (iova, pools.hva(rng), size, rng.choice((3, 3, 1, 8))))
    if kind < 0.7:
        flags = 0 if rng.random() < 0.9 else rng.choice((2, 1))
        return Op("compat_unmap", (iova, size, flags))
    return Op("compat_info", (rng.choice((0, 16, 24, 40, 72, 88, 200)),))


def mixed(rng: random.Random, calls: list[Op], others: list[Op], first: int = 0) -> list[Op]:
    """Put two sequences together, each in its order; `first` calls come before all others."""
    head, rest = calls[:first], calls[first:]
    places = [True] * len(rest) + [False] * len(others)
    rng.shuffle(places)
    left, right = iter(rest), iter(others)
    return head + [next(left) if mine else next(right) for mine in places]


class DivergenceError(AssertionError):
    """The simulated kernel answered something else than the real one."""


def _leftover(op: Op, told: Answer, ours: Answer) -> bool:
    """Whether a bitmap differs only by bits of pages that are not mapped.

    The kernel leaves bits of a reading at another offset there; the simulation, where every mapped
    page is dirty, has none.
    """
    if op.name != "dirty" or told.errno or ours.errno:
        return False
    return not uapi.read_bits(ours.data) & ~uapi.read_bits(told.data)


def compare(real: World, simulated: World, ops: Sequence[Op], seed: int) -> dict[str, int]:
    """Make the calls on both; return how often each was taken and refused."""
    seen: dict[str, int] = {}
    for index, op in enumerate(ops):
        told, ours = real.do(op), simulated.do(op)
        raised = ""
        if real.device is not None and simulated.device is not None:
            raised = "" if real.device.keeps_up(simulated.device) else " and an interrupt is raised"
        if raised or (told != ours and not _leftover(op, told, ours)):
            before = "\n".join(f"  {each}" for each in ops[max(index - 12, 0) : index])
            raise DivergenceError(
                f"seed {seed}, call {index}: {op}\n real:      {told}\n simulated: {ours}{raised}\n"
                f"after\n{before}\nsimulated state: {simulated.state()}"
            )
        key = f"{op.name} {'refused ' + str(told.errno) if told.errno else 'taken'}"
        seen[key] = seen.get(key, 0) + 1
    return seen
