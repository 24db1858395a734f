# SPDX-License-Identifier: Apache-2.0
"""The package's own kernel wing on the kernel of this guest: spaces, limits, DMA, refusals."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lab import raw, virtio
from lab.child import in_child
from vmm_iova import AddrRange, IovaAllocator, RangeSet
from vmm_iova.errors import (
    ApertureError,
    DeviceOpenError,
    DmaError,
    LimitError,
    MappingError,
    PrecheckError,
    ReservedError,
)
from vmm_iova.kernel import device_facts, open_space
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.syscalls import LINUX
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.mapping import DynamicMaps, GuestMemory, Piece, map_pieces, precheck, prefault

if TYPE_CHECKING:
    from collections.abc import Iterator

X86 = ("vtd", "vtd39", "amd", "iommufd")
MIB = 1 << 20
LIMIT = Path("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit")


def bdfs(lab: dict[str, Any], *kinds: str) -> list[str]:
    return [each["bdf"] for each in lab["devices"] if not kinds or each["kind"] in kinds]


@pytest.fixture(params=["type1", "iommufd"])
def via(request: pytest.FixtureRequest, lab: dict[str, Any]) -> str:
    way: str = request.param
    if way == "iommufd" and lab["guest"] != "iommufd":
        pytest.skip("only the guest with the built kernel has iommufd")
    return way


@pytest.fixture
def base(lab: dict[str, Any]) -> int:
    """An address that every guest can map."""
    return 0x1_0000_0000 if lab["guest"] == "s390x" else 0x10_0000


@contextmanager
def parameter(path: Path, value: str) -> Iterator[None]:
    before = path.read_text().strip()
    path.write_text(value)
    try:
        yield
    finally:
        path.write_text(before)


def drop_ipc_lock() -> None:
    """Give up CAP_IPC_LOCK (14) for good; ABI: include/uapi/linux/capability.h, version 3."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    data[0] &= ~(1 << 14)
    data[1] &= ~(1 << 14)
    assert libc.capset(header, data) == 0


@pytest.mark.proves("the package reads the ranges that the lab reads by itself")
def test_ranges_are_those_that_raw_ioctls_give(lab: dict[str, Any], facts: dict[str, Any]) -> None:
    for bdf in bdfs(lab):
        told = facts["kernel"]["type1"][bdf]
        with open_space([bdf], via="type1") as space:
            known = space.facts()
        assert known.ranges is not None
        assert [[hex(r.start), hex(r.last)] for r in known.ranges] == told["ranges"]
        assert (hex(known.page_sizes), known.entries_left) == (
            told["iova_pgsizes"],
            told["dma_avail"],
        )


def test_native_container_is_not_taken_for_an_iommufd(lab: dict[str, Any]) -> None:
    with Type1Container() as container:
        assert not container.compat


@pytest.mark.guests(*X86)
@pytest.mark.proves("planned memory mapped whole; edu copies both ways in two groups")
def test_edu_moves_bytes_through_mapped_guest_memory(lab: dict[str, Any], via: str) -> None:
    spans = [
        (AddrRange.from_size(0x10_0000, 4 * MIB), "low"),
        (AddrRange.from_size(1 << 38, 2 * MIB), "high"),
    ]
    both = bdfs(lab, "edu")
    with open_space(both, via=via) as space, GuestMemory(spans) as memory:
        prefault(memory.pieces, threads=2)
        with map_pieces(space, memory.pieces):
            for bdf in both:
                sent = os.urandom(1024)
                memory.write(0x10_0000 + 4 * MIB - 1024, sent)
                raw.enable(space.device_fd(bdf))
                raw.edu_copy(space.device_fd(bdf), 0x10_0000 + 4 * MIB - 1024, 1024, to_device=True)
                raw.edu_copy(space.device_fd(bdf), (1 << 38) + 4096, 1024, to_device=False)

                assert memory.read((1 << 38) + 4096, 1024) == sent
        assert not space.live


@pytest.mark.proves("a virtio disk writes into a buffer mapped on the way")
def test_disk_reads_into_a_dynamically_mapped_buffer(lab: dict[str, Any], via: str) -> None:
    (bdf,) = bdfs(lab, "blk")
    memory = raw.buffer(virtio.SIZE)
    with open_space([bdf], via=via) as space:
        known = space.facts()
        allocator = IovaAllocator(known.ranges, granule=known.granule)
        maps = DynamicMaps(allocator, space)
        iova = maps.map(memory, tag="queue")
        disk = virtio.Disk(space.device_fd(bdf), memory, iova)

        assert disk.read(7, virtio.SECTOR) == 0
        start = virtio.DATA
        assert memory[start : start + virtio.SECTOR] == bytes([7]) * virtio.SECTOR
        assert space.live.translate(iova + 5, 10)[1] == 10
        assert maps.unmap(iova) == virtio.SIZE
        assert allocator.allocated_bytes == 0


@pytest.mark.guests(*X86)
def test_huge_pages_carry_dma(lab: dict[str, Any], via: str) -> None:
    spans = [(AddrRange.from_size(1 << 32, 4 * MIB), "ram")]
    (bdf, *_) = bdfs(lab, "edu")
    with open_space([bdf], via=via) as space:
        page = space.facts().largest_page
        with GuestMemory(spans, backing="hugetlb-2m", largest_page=page) as memory:
            assert memory.pieces[0].hva % (2 * MIB) == 0
            prefault(memory.pieces)
            with map_pieces(space, memory.pieces):
                memory.write(1 << 32, b"huge")
                raw.enable(space.device_fd(bdf))
                raw.edu_copy(space.device_fd(bdf), 1 << 32, 64, to_device=True)
                raw.edu_copy(space.device_fd(bdf), (1 << 32) + 3 * MIB, 64, to_device=False)

                assert memory.read((1 << 32) + 3 * MIB, 4) == b"huge"


@pytest.mark.guests("amd")
@pytest.mark.proves("the HyperTransport hole is refused and named before the ioctl")
def test_hypertransport_hole_is_refused_and_named(lab: dict[str, Any]) -> None:
    memory = raw.buffer(16 * 4096)
    hva = raw.address(memory)
    with open_space(bdfs(lab, "edu"), via="type1") as space:
        piece = Piece(0xFCFF_FFF000, 0x2000, hva, "ram0")

        with pytest.raises(PrecheckError) as caught:
            map_pieces(space, [piece])
        (problem,) = caught.value.problems
        assert isinstance(problem, ReservedError)
        assert problem.region == AddrRange(0xFD_0000_0000, 0xFF_FFFF_FFFF)
        with pytest.raises(MappingError) as kernel:
            map_pieces(space, [piece], check=False)
        assert kernel.value.errno == errno.EINVAL
        around = [Piece(0xFC_FFFF_F000, 0x1000, hva), Piece(0x100_0000_0000, 0x1000, hva)]
        with map_pieces(space, around):
            assert len(space.live) == 2


@pytest.mark.guests("amd")
@pytest.mark.proves("want of interrupt remapping is explained with its parameter")
def test_missing_interrupt_remapping_is_explained(lab: dict[str, Any]) -> None:
    path = Path(lab["unsafe_interrupts"]["parameters"]["type1"]["path"])
    with parameter(path, "N"), pytest.raises(DeviceOpenError) as caught:
        open_space(bdfs(lab, "edu"), via="type1")

    assert (caught.value.problem, caught.value.errno) == ("unsafe-interrupts", errno.EPERM)
    assert "allow_unsafe_interrupts is N" in caught.value.message


def test_device_that_is_held_elsewhere_is_busy(lab: dict[str, Any], via: str) -> None:
    bdf = bdfs(lab)[0]
    with open_space([bdf], via="type1"):
        with pytest.raises(DeviceOpenError) as caught:
            open_space([bdf], via=via)

        assert (caught.value.problem, caught.value.errno) == ("busy", errno.EBUSY)


@pytest.mark.guests(*X86)
def test_device_of_another_driver_is_named(lab: dict[str, Any]) -> None:
    bridge = next(
        path.name
        for path in Path("/sys/bus/pci/devices").iterdir()
        if path.name not in bdfs(lab) and (path / "iommu_group").exists()
    )
    with pytest.raises(DeviceOpenError) as caught:
        open_space([bridge])

    assert caught.value.problem == "wrong-driver"


@pytest.mark.proves("entry limit: told before, and rolled back when it is met")
def test_entry_limit_is_told_and_met(lab: dict[str, Any], base: int) -> None:
    hva = raw.address(memory := raw.buffer(8 * 4096))
    pieces = [Piece(base + n * 0x2000, 0x1000, hva, n) for n in range(5)]
    with parameter(LIMIT, "3"), open_space(bdfs(lab)[:1], via="type1") as space:
        (problem,) = precheck(space, pieces)
        assert isinstance(problem, LimitError)
        assert (problem.needed, problem.available) == (5, 3)

        with pytest.raises(MappingError) as caught:
            map_pieces(space, pieces, check=False)

        assert (caught.value.errno, caught.value.index, caught.value.left) == (errno.ENOSPC, 3, ())
        assert space.facts().entries_left == 3
    assert len(memory) == 8 * 4096


@pytest.mark.proves("the locked-memory limit that is named does exactly")
def test_memlock_limit_that_is_named_does_exactly(lab: dict[str, Any], base: int) -> None:
    bdf = bdfs(lab)[0]

    def work() -> object:
        drop_ipc_lock()
        memory = raw.buffer(64 * 4096)
        pieces = [Piece(base, 64 * 4096, raw.address(memory), "ram")]
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * 4096, 1 << 30))
        with open_space([bdf], via="type1") as space:
            (problem,) = precheck(space, pieces)
            assert isinstance(problem, LimitError)
            told = []
            for limit in (problem.needed - 4096, problem.needed):
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, 1 << 30))
                try:
                    with map_pieces(space, pieces, check=False):
                        told.append([0, LINUX.lock_budget().locked])
                except MappingError as error:
                    told.append([error.errno, LINUX.lock_budget().locked])
        return [problem.needed, *told, LINUX.lock_budget().locked]

    needed, below, exact, after = in_child(work)

    assert needed == 64 * 4096
    assert below == [errno.ENOMEM, 0]
    assert exact == [0, 64 * 4096]
    assert after == 0


@pytest.mark.proves("200 pieces: a refusal at every step leaves nothing and names the piece")
def test_refusal_at_every_step_leaves_nothing(lab: dict[str, Any], base: int, via: str) -> None:
    count, page = 200, 4096
    memory = mmap.mmap(-1, (count + 1) * page)
    hva = raw.address(memory)
    gone = ctypes.c_void_p(hva + count * page)
    assert ctypes.CDLL(None).mprotect(gone, ctypes.c_size_t(page), 0) == 0
    with open_space(bdfs(lab)[:1], via=via) as space:
        before = (space.facts(), LINUX.lock_budget())
        for step in range(count):
            pieces = [
                Piece(base + n * 2 * page, page, hva + (count if n == step else n) * page, f"p{n}")
                for n in range(count)
            ]
            with pytest.raises(MappingError) as caught:
                map_pieces(space, pieces, check=False)
            error = caught.value
            assert (error.errno, error.index, error.tag, error.left) == (
                errno.EFAULT,
                step,
                f"p{step}",
                (),
            )
        assert (space.facts(), LINUX.lock_budget()) == before
        assert space.unmap_all() == 0


@pytest.mark.proves("kill -9 in the middle of mapping: the next process maps at once")
def test_killed_in_the_middle_leaves_the_kernel_clean(
    lab: dict[str, Any], base: int, via: str
) -> None:
    bdf, page = bdfs(lab)[0], 4096
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        memory = raw.buffer(512 * page)
        hva = raw.address(memory)
        pieces = [Piece(base + n * 2 * page, page, hva + n % 512 * page) for n in range(1024)]
        space = open_space([bdf], via=via)
        while True:
            mapped = map_pieces(
                space,
                pieces,
                progress=lambda done, total: os.write(writer, b"+") if done == total // 2 else None,
            )
            mapped.unmap()
    assert os.read(reader, 1) == b"+"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)

    memory = raw.buffer(512 * page)
    start = time.monotonic()
    with open_space([bdf], via=via) as space:
        assert space.facts().entries_left in (None, 65535)
        pieces = [
            Piece(base + n * 2 * page, page, raw.address(memory) + n * page) for n in range(512)
        ]
        with map_pieces(space, pieces):
            assert len(space.live) == 512
    assert time.monotonic() - start < 60


@pytest.mark.guests("s390x")
@pytest.mark.proves("s390x: the aperture from sysfs, from VFIO and from zPCI agree")
def test_aperture_from_three_sources_agrees(lab: dict[str, Any]) -> None:
    (bdf,) = bdfs(lab, "rng")
    group = next(each["group"] for each in lab["devices"] if each["bdf"] == bdf)
    with open_space([bdf], via="type1") as space:
        told = space.facts().ranges
        device = device_facts(space.device_fd(bdf)).zpci
        path = Path(f"/sys/kernel/iommu_groups/{group}/reserved_regions")
        lines = [line.split() for line in path.read_text().splitlines()]
        held = RangeSet(AddrRange(int(low, 16), int(high, 16)) for low, high, _ in lines)

        assert told is not None
        assert device is not None
        assert list(told) == [device.dma]
        assert RangeSet(told) <= ~held
        below = Piece(device.dma.start - 0x1000, 0x1000, 0, "low")
        (problem,) = precheck(space, [below])
        assert isinstance(problem, ApertureError)
        with pytest.raises(DmaError) as caught:
            space.map(device.dma.start - 0x1000, raw.address(raw.buffer(4096)), 0x1000)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.guests("arm64")
@pytest.mark.proves("arm64: the software MSI window is refused and named")
def test_software_msi_window_is_refused(lab: dict[str, Any]) -> None:
    with open_space(bdfs(lab)[:1]) as space:
        (problem,) = precheck(space, [Piece(0x800_0000, 0x1000, 0, "low")])

    assert isinstance(problem, ReservedError)
    assert problem.region == AddrRange(0x800_0000, 0x80F_FFFF)


@pytest.mark.guests(*X86)
def test_dirty_tracking_of_type1_names_all_pinned_pages(lab: dict[str, Any]) -> None:
    memory = raw.buffer(16 * 4096)
    with Type1Container() as container:
        container.add_group(int(lab["devices"][0]["group"]))
        container.map(0x10_0000, raw.address(memory), 16 * 4096)
        container.start_dirty()

        assert container.read_dirty(0x10_0000, 16 * 4096)[:2] == b"\xff\xff"


@pytest.mark.guests("iommufd")
@pytest.mark.proves("iommufd: placement, copies, files, the allow list, compat mode")
def test_iommufd_does_what_its_space_promises(lab: dict[str, Any]) -> None:
    memory = raw.buffer(16 * 4096)
    hva = raw.address(memory)
    with open_space(bdfs(lab, "edu"), via="iommufd") as space:
        assert isinstance(space, Ioas)
        assert space.facts().final
        placed = space.map_anywhere(hva, 4 * 4096)
        assert placed > 0
        fd = os.memfd_create("lab")
        os.ftruncate(fd, 8192)
        assert space.map_file(fd, 4096, 4096, 0x4000_0000) == 0x4000_0000
        os.close(fd)
        with Ioas(space.iommufd) as other:
            other.copy_from(space, placed, 4 * 4096, 0x5000_0000)
            assert other.unmap(0x5000_0000, 4 * 4096) == 4 * 4096
        space.allow([AddrRange(0x6000_0000, 0x6FFF_FFFF)])
        assert space.map_anywhere(hva, 4096) in AddrRange(0x6000_0000, 0x6FFF_FFFF)
        space.iommufd.set_compat_ioas(space.id)
        assert not space.iommufd.hw_info(space.devices[bdfs(lab, "edu")[0]].device_id).tracks_dirty
        with pytest.raises(DmaError) as caught:
            space.start_dirty()
        assert caught.value.errno == errno.EOPNOTSUPP
        assert space.unmap_all() == 6 * 4096


@pytest.mark.guests("iommufd")
@pytest.mark.proves("an iommufd in the place of a container is told apart, and works")
def test_container_calls_on_an_iommufd(lab: dict[str, Any]) -> None:
    device = lab["devices"][0]
    memory = raw.buffer(4 * 4096)
    with Type1Container(path="/dev/iommu") as container:
        assert container.compat
        assert not container.add_group(int(device["group"])).final
        container.open_device(device["bdf"], int(device["group"]))
        known = container.facts()
        assert known.final
        assert known.ranges is not None
        assert known.ranges[0] == AddrRange(0, 0xFEDF_FFFF)
        assert known.entries_left is None
        container.map(0x10_0000, raw.address(memory), 4 * 4096)
        assert container.unmap(0x10_0000, 4 * 4096) == 4 * 4096
        container.map(0x10_0000, raw.address(memory), 4 * 4096)
        assert container.unmap_all() == 4 * 4096
