# SPDX-License-Identifier: Apache-2.0
"""iommufd's protocol, options, devices and compatibility mode, on the simulated kernel."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.kit.kernels import NIC, NIC_GROUP, attach, refusal
from vmm_iova.errors import (
    DeviceOpenError,
)
from vmm_iova.host.registers import info_features
from vmm_iova.host.snapshot import dump_snapshot, load_snapshot
from vmm_iova.kernel import caps, uapi
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.kernel.device import open_space
from vmm_iova.kernel.facts import with_kernel_facts
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import Iommufd, VfioCdev
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.simulated import SimGroup, SimulatedKernel

HVA = 0x7F00_0000_0000
TOP = 2**64 - 1
COMMANDS = sorted(abi.COMMANDS)


class TestProtocol:
    @pytest.fixture
    def fd(self, sim: SimulatedKernel) -> int:
        return sim.open("/dev/iommu")

    @pytest.mark.parametrize("request_number", COMMANDS)
    def test_size_below_the_minimum_raises_einval(
        self, sim: SimulatedKernel, fd: int, request_number: int
    ) -> None:
        short = abi.COMMANDS[request_number].minimum - 4

        with pytest.raises(OSError, match="Invalid") as caught:
            sim.ioctl(fd, request_number, bytearray(struct.pack("=I", short)) + bytearray(64))

        assert caught.value.errno == errno.EINVAL

    def test_tail_of_zeros_is_accepted(self, sim: SimulatedKernel, fd: int) -> None:
        arg = abi.IOAS_ALLOC_ARG.pack(20, size=20)

        assert sim.ioctl(fd, abi.IOAS_ALLOC, arg) == 0

    def test_tail_that_is_not_zero_raises_e2big(self, sim: SimulatedKernel, fd: int) -> None:
        arg = abi.IOAS_ALLOC_ARG.pack(20, size=20)
        arg[19] = 1

        with pytest.raises(OSError, match="too long") as caught:
            sim.ioctl(fd, abi.IOAS_ALLOC, arg)

        assert caught.value.errno == errno.E2BIG

    @pytest.mark.parametrize(
        ("request_number", "fields"),
        [
            (abi.IOAS_ALLOC, {"flags": 1}),
            (abi.IOAS_MAP, {"flags": 8}),
            (abi.IOAS_MAP, {"_reserved": 1}),
            (abi.IOAS_ALLOW_IOVAS, {"_reserved": 1}),
            (abi.IOAS_IOVA_RANGES, {"_reserved": 1}),
            (abi.IOAS_COPY, {"flags": 8}),
            (abi.OPTION, {"option_id": 99}),
            (abi.OPTION, {"_reserved": 1}),
            (abi.OPTION, {"object_id": 1}),
            (abi.OPTION, {"op": 2}),
            (abi.VFIO_IOAS, {"op": 7}),
            (abi.HWPT_ALLOC, {"_reserved": 1}),
            (abi.GET_HW_INFO, {"flags": 1 << 31}),
            (abi.HWPT_SET_DIRTY_TRACKING, {"flags": 2}),
            (abi.HWPT_GET_DIRTY_BITMAP, {"flags": 2}),
            (abi.IOAS_MAP_FILE, {"flags": 8}),
        ],
    )
    def test_unknown_flag_or_reserved_field_raises_eopnotsupp(
        self, sim: SimulatedKernel, fd: int, request_number: int, fields: dict[str, int]
    ) -> None:
        record = abi.COMMANDS[request_number]

        with pytest.raises(OSError, match="not supported") as caught:
            sim.ioctl(fd, request_number, record.pack(size=record.size, **fields))

        assert caught.value.errno == errno.EOPNOTSUPP

    def test_unknown_command_raises_enotty(self, sim: SimulatedKernel, fd: int) -> None:
        with pytest.raises(OSError, match="Inappropriate"):
            sim.ioctl(fd, uapi.request(0xFF), bytearray(8))

    def test_command_of_a_later_release_raises_enotty(self) -> None:
        sim = SimulatedKernel([NIC_GROUP], release=(6, 12))
        with Ioas(Iommufd(sim), owns=True) as space, refusal(errno.ENOTTY):
            space.map_file(3, 0, 4096)

    def test_destroy_of_object_zero_raises_enoent(self, fresh: Ioas) -> None:
        with refusal(errno.ENOENT):
            fresh.iommufd.destroy(0)

    def test_destroy_of_an_ioas_in_use_raises_ebusy(self, ioas: Ioas) -> None:
        with refusal(errno.EBUSY):
            ioas.iommufd.destroy(ioas.id)

    def test_open_without_iommufd_raises_enoent(self) -> None:
        with refusal(errno.ENOENT):
            Iommufd(SimulatedKernel([], iommufd=False))


class TestOptions:
    def test_huge_pages_off_raises_the_alignment(self, fresh: Ioas) -> None:
        fresh.iommufd.set_option(abi.OPTION_HUGE_PAGES, 0, fresh.id)

        assert fresh.facts().granule == 4096
        assert fresh.iommufd.get_option(abi.OPTION_HUGE_PAGES, fresh.id) == 0

    def test_huge_pages_off_under_mappings_raises_einval(self, ioas: Ioas) -> None:
        ioas.map(0, HVA, 0x1000)

        with refusal(errno.EINVAL):
            ioas.iommufd.set_option(abi.OPTION_HUGE_PAGES, 0, ioas.id)

    def test_huge_pages_off_over_misaligned_mappings_raises_eaddrinuse(self, fresh: Ioas) -> None:
        fresh.map(1, HVA + 1, 1)

        with refusal(errno.EADDRINUSE):
            fresh.iommufd.set_option(abi.OPTION_HUGE_PAGES, 0, fresh.id)

    def test_huge_pages_of_no_ioas_raises_enoent(self, fresh: Ioas) -> None:
        with refusal(errno.ENOENT):
            fresh.iommufd.get_option(abi.OPTION_HUGE_PAGES, 99)

    def test_huge_pages_two_raises_einval(self, fresh: Ioas) -> None:
        with refusal(errno.EINVAL):
            fresh.iommufd.set_option(abi.OPTION_HUGE_PAGES, 2, fresh.id)

    def test_rlimit_mode_with_objects_raises_ebusy(self, fresh: Ioas) -> None:
        with refusal(errno.EBUSY):
            fresh.iommufd.set_option(abi.OPTION_RLIMIT_MODE, 1)

    def test_rlimit_mode_without_objects_is_set(self, sim: SimulatedKernel) -> None:
        with Iommufd(sim) as iommufd:
            iommufd.set_option(abi.OPTION_RLIMIT_MODE, 1)

            assert iommufd.get_option(abi.OPTION_RLIMIT_MODE) == 1

    def test_rlimit_mode_without_privilege_raises_eperm(self) -> None:
        with Iommufd(SimulatedKernel([], memlock=1 << 20)) as iommufd, refusal(errno.EPERM):
            iommufd.set_option(abi.OPTION_RLIMIT_MODE, 1)


class TestDevices:
    def test_bind_while_the_group_is_open_raises_ebusy(self, sim: SimulatedKernel) -> None:
        with Type1Container(sim) as container, Iommufd(sim) as iommufd:
            container.add_group(4)
            with VfioCdev(sim, "/dev/vfio/devices/vfio0") as device, refusal(errno.EBUSY):
                device.bind(iommufd)

    def test_bind_twice_raises_einval(self, sim: SimulatedKernel, ioas: Ioas) -> None:
        with refusal(errno.EINVAL):
            ioas.devices[NIC].bind(ioas.iommufd)

    def test_bind_without_interrupt_remapping_raises_eperm(self) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC,), isolated_msi=False)])
        with Ioas(Iommufd(sim), owns=True) as space, refusal(errno.EPERM) as caught:
            attach(space, sim, 0)

        assert "allow_unsafe_interrupts" in (caught.value.hint or "")

    def test_attach_to_no_object_raises_enoent(self, ioas: Ioas) -> None:
        with refusal(errno.ENOENT):
            ioas.devices[NIC].attach(99)

    def test_attach_before_bind_raises_einval(self, sim: SimulatedKernel, fresh: Ioas) -> None:
        with VfioCdev(sim, "/dev/vfio/devices/vfio0") as device, refusal(errno.EINVAL):
            device.attach(fresh.id)

    def test_second_attach_replaces(self, sim: SimulatedKernel, ioas: Ioas) -> None:
        with Ioas(ioas.iommufd) as other:
            ioas.devices[NIC].attach(other.id)

            assert ioas.facts().granule == 1
            assert other.facts().granule == 4096
            ioas.devices[NIC].attach(ioas.id)

    def test_detach_twice_succeeds(self, ioas: Ioas) -> None:
        ioas.devices[NIC].detach()
        ioas.devices[NIC].detach()

        assert ioas.facts().granule == 1

    def test_hw_info_of_no_device_raises_enoent(self, fresh: Ioas) -> None:
        with refusal(errno.ENOENT):
            fresh.iommufd.hw_info(77)

    def test_hw_info_tells_whether_it_tracks(self) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC,), tracks_dirty=True)])
        with Ioas(Iommufd(sim), owns=True) as space:
            device = attach(space, sim, 0)

            assert space.iommufd.hw_info(device.device_id).tracks_dirty


VTD = abi.VTD_INFO.pack(cap_reg=0xD2008C222F0286, ecap_reg=0xF00F4A)
SMMU = abi.SMMU_INFO.pack(idr0=0x0D0C1A8A, idr1=0x0E739D10, idr3=0x1404, idr5=0x54)
AMD = abi.AMD_INFO.pack(efr=0x10_0007_F77E_F22A, efr2=0x800)


class TestHardwareFacts:
    @pytest.mark.parametrize(
        ("number", "data", "kind", "register", "words"),
        [
            (abi.HW_INFO_INTEL_VTD, VTD, "intel", ("cap", 0xD2008C222F0286), "caching mode"),
            (abi.HW_INFO_ARM_SMMUV3, SMMU, "smmuv3", ("idr5", 0x54), "granules of 4, 64 KiB"),
            (abi.HW_INFO_AMD, AMD, "amd", ("efr2", 0x800), "dirty tracking"),
        ],
    )
    def test_registers_of_each_vendor_are_facts_with_what_they_mean(
        self, number: int, data: bytes, kind: str, register: tuple[str, int], words: str
    ) -> None:
        group = SimGroup(4, (NIC,), hw_info=(number, bytes(data)), pasid_bits=20)
        sim = SimulatedKernel([group])
        with open_space([NIC], kernel=sim, via="iommufd") as space:
            host = with_kernel_facts(sim.host(), space)
        (info,) = host.iommu_info
        assert (info.device, info.kind, info.pasid_bits) == (NIC, kind, 20)
        assert register in info.registers
        assert any(words in text for text in info_features(info)), info_features(info)
        assert load_snapshot(dump_snapshot(host, "test"), "x").iommu_info == host.iommu_info

    def test_type_that_is_not_known_has_no_registers_and_no_words(self) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC,), hw_info=(99, bytes(64)))])
        with open_space([NIC], kernel=sim, via="iommufd") as space:
            (info,) = with_kernel_facts(sim.host(), space).iommu_info
        assert (info.kind, info.registers, info_features(info)) == ("unknown", (), ())

    def test_answer_shorter_than_its_structure_is_not_decoded(self) -> None:
        short = (abi.HW_INFO_INTEL_VTD, bytes(VTD[:12]))
        sim = SimulatedKernel([SimGroup(4, (NIC,), hw_info=short)])
        with open_space([NIC], kernel=sim, via="iommufd") as space:
            (info,) = with_kernel_facts(sim.host(), space).iommu_info
        assert info.registers == ()

    def test_kernel_before_6_6_has_no_such_call_and_no_such_fact(self) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC,))])
        sim.inject(errno.ENOTTY, request=abi.GET_HW_INFO)
        with open_space([NIC], kernel=sim, via="iommufd") as space:
            assert with_kernel_facts(sim.host(), space).iommu_info == ()

    def test_other_refusal_is_an_error(self) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC,))])
        sim.inject(errno.EIO, request=abi.GET_HW_INFO)
        with open_space([NIC], kernel=sim, via="iommufd") as space, refusal(errno.EIO):
            with_kernel_facts(sim.host(), space)

    def test_container_tells_nothing_of_the_hardware(self) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC,))])
        with open_space([NIC], kernel=sim, via="type1") as space:
            assert with_kernel_facts(sim.host(), space).iommu_info == ()


class TestCompat:
    @pytest.fixture
    def compat(self, sim: SimulatedKernel, ioas: Ioas) -> int:
        ioas.iommufd.set_compat_ioas(ioas.id)
        return ioas.iommufd.fd

    def test_info_gives_the_same_ranges(
        self, sim: SimulatedKernel, ioas: Ioas, compat: int
    ) -> None:

        answer = uapi.grow_by_argsz(
            lambda buffer: sim.ioctl(compat, uapi.IOMMU_GET_INFO, buffer), uapi.TYPE1_INFO
        )

        assert caps.read_type1_info(answer).ranges == ioas.facts().ranges

    def test_info_without_an_ioas_raises_enodev(self, sim: SimulatedKernel, ioas: Ioas) -> None:
        with pytest.raises(OSError, match="No such device"):
            sim.ioctl(ioas.iommufd.fd, uapi.IOMMU_GET_INFO, uapi.TYPE1_INFO.pack(argsz=24))

    def test_unmap_cutting_a_mapping_raises_enoent_instead_of_einval(
        self, sim: SimulatedKernel, compat: int
    ) -> None:
        arg = uapi.DMA_MAP.pack(argsz=32, flags=3, vaddr=HVA, iova=0, size=0x2000)
        sim.ioctl(compat, uapi.IOMMU_MAP_DMA, arg)

        with pytest.raises(FileNotFoundError):
            sim.ioctl(compat, uapi.IOMMU_UNMAP_DMA, uapi.DMA_UNMAP.pack(argsz=24, size=0x1000))

    def test_dirty_pages_raises_enotty(self, sim: SimulatedKernel, compat: int) -> None:
        with pytest.raises(OSError, match="Inappropriate"):
            sim.ioctl(compat, uapi.IOMMU_DIRTY_PAGES, uapi.DIRTY.pack(argsz=8, flags=1))


class TestContainerOnIommufd:
    """/dev/vfio/vfio can be an iommufd: the container's code drives it and knows it."""

    @pytest.fixture
    def sim(self) -> SimulatedKernel:
        return SimulatedKernel([NIC_GROUP], compat_container=True)

    def test_ranges_are_final_when_the_device_is_open(self, sim: SimulatedKernel) -> None:
        with Type1Container(sim) as container:
            before = container.add_group(4)
            container.open_device(NIC, 4)
            after = container.facts()

        assert (before.final, after.final) == (False, True)
        assert after.ranges is not None
        assert after.ranges[0].last == 0xFEDF_FFFF
        assert after.entries_left is None

    def test_open_space_maps_and_unmaps_as_with_a_container(self, sim: SimulatedKernel) -> None:
        with open_space([NIC], kernel=sim, via="type1") as space:
            space.map(0x1000, HVA, 0x2000)
            assert space.unmap(0x1000, 0x2000) == 0x2000
            space.map(0x1000, HVA, 0x2000)
            assert space.unmap_all() == 0x2000
        assert (sim.open_files(), len(sim.mapped())) == (0, 0)

    def test_no_interrupt_remapping_is_met_when_the_device_is_opened(self) -> None:
        group = SimGroup(4, (NIC,), isolated_msi=False)
        sim = SimulatedKernel([group], compat_container=True)

        with pytest.raises(DeviceOpenError) as caught:
            open_space([NIC], kernel=sim, via="type1")

        assert caught.value.problem == "unsafe-interrupts"
