# SPDX-License-Identifier: Apache-2.0
"""Devices by BDF: every reason why one cannot be had."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pickle
import termios
from typing import TYPE_CHECKING

import pytest

from tests.kit.kernels import GPU, NIC, NIC_GROUP
from vmm_iova import AddrRange
from vmm_iova.errors import DeviceOpenError, DmaError, RequestError
from vmm_iova.kernel import device_facts, syscalls, uapi
from vmm_iova.kernel.device import DeviceSite, find_device, open_space
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.syscalls import LinuxKernel
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.simulated import SimGroup, SimulatedKernel

if TYPE_CHECKING:
    from pathlib import Path

HVA = 0x7F00_0000_0000


class TestOpenSpace:
    def test_auto_takes_iommufd_when_there_are_cdevs(self, sim: SimulatedKernel) -> None:
        with open_space([NIC, GPU], kernel=sim) as space:
            assert isinstance(space, Ioas)
            assert space.facts().final
            assert space.device_fd(NIC) != space.device_fd(GPU)

    @pytest.mark.parametrize("release", [(6, 1), (6, 5)])
    def test_auto_takes_type1_on_kernels_without_cdevs(self, release: tuple[int, int]) -> None:
        sim = SimulatedKernel([NIC_GROUP], release=release)

        with open_space([NIC], kernel=sim) as space:
            assert isinstance(space, Type1Container)

    def test_auto_falls_back_to_type1_when_the_cdev_is_forbidden(
        self, sim: SimulatedKernel
    ) -> None:
        sim.sysfs.forbidden["/dev/vfio/devices/vfio0"] = errno.EACCES

        with open_space([NIC], kernel=sim) as space:
            assert isinstance(space, Type1Container)

    @pytest.mark.parametrize("via", ["iommufd", "type1"])
    def test_two_devices_see_the_narrower_range(self, sim: SimulatedKernel, via: str) -> None:
        with open_space([NIC, GPU], kernel=sim, via=via) as space:
            ranges = space.facts().ranges

        assert ranges is not None
        assert ranges[-1] == AddrRange(0xFEF0_0000, (1 << 39) - 1)

    def test_two_devices_of_one_group_share_it(self) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC, GPU))])

        with open_space([NIC, GPU], kernel=sim, via="type1") as space:
            assert isinstance(space, Type1Container)
            assert space.groups == (4,)

    @pytest.mark.parametrize("via", ["iommufd", "type1"])
    def test_bytes_arrive_by_dma(self, sim: SimulatedKernel, via: str) -> None:

        memory = (ctypes.c_char * 8192)()
        hva = (ctypes.addressof(memory) + 4095) & -4096
        with open_space([NIC], kernel=sim, via=via) as space:
            space.map(0x10_0000, hva, 4096)

            sim.device_write(NIC, 0x10_0010, b"hello")

            assert sim.device_read(NIC, 0x10_0010, 5) == b"hello"
            assert ctypes.string_at(hva + 0x10, 5) == b"hello"
            with pytest.raises(OSError, match="Bad address"):
                sim.device_write(NIC, 0x10_0FFF, b"no")

    def test_domain_may_be_left_out(self, sim: SimulatedKernel) -> None:
        with open_space(["00:04.0"], kernel=sim) as space:
            assert space.device_fd(NIC)

    def test_no_device_raises_request_error(self, sim: SimulatedKernel) -> None:
        with pytest.raises(RequestError, match="no device"):
            open_space([], kernel=sim)

    def test_unknown_way_raises_request_error(self, sim: SimulatedKernel) -> None:
        with pytest.raises(RequestError, match="spapr"):
            open_space([NIC], kernel=sim, via="spapr")

    @pytest.mark.parametrize("via", ["iommufd", "type1"])
    def test_refusal_at_any_call_leaves_nothing_open(self, sim: SimulatedKernel, via: str) -> None:
        with open_space([NIC, GPU], kernel=sim, via=via):
            steps = sim.calls
        for step in range(steps):
            sim.inject(errno.EIO, after=step)
            with contextlib.suppress(DmaError):
                open_space([NIC, GPU], kernel=sim, via=via).close()
            sim.faults.clear()
            assert sim.open_files() == 0


def refused(sim: SimulatedKernel, via: str = "type1", bdf: str = NIC) -> DeviceOpenError:
    with pytest.raises(DeviceOpenError) as caught:
        open_space([bdf], kernel=sim, via=via)
    assert sim.open_files() == 0
    return caught.value


class TestReasons:
    def test_absent_device(self, sim: SimulatedKernel) -> None:
        assert refused(sim, bdf="0000:77:00.0").problem == "absent"

    def test_device_behind_no_iommu(self, sim: SimulatedKernel) -> None:
        del sim.sysfs.links[f"/sys/bus/pci/devices/{NIC}/iommu_group"]

        error = refused(sim)

        assert (error.problem, error.group) == ("no-iommu", None)
        assert "intel_iommu=on" in (error.hint or "")

    @pytest.mark.parametrize(("driver", "words"), [("nvme", "driver nvme"), (None, "no driver")])
    def test_device_of_another_driver_names_it(self, driver: str | None, words: str) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC,), driver=driver)])

        error = refused(sim)

        assert error.problem == "wrong-driver"
        assert words in error.message

    @pytest.mark.parametrize(
        ("via", "node"),
        [("type1", "/dev/vfio/4"), ("iommufd", "/dev/vfio/devices/vfio0")],
    )
    @pytest.mark.parametrize(
        ("number", "problem"),
        [(errno.EACCES, "unreadable"), (errno.ENOENT, "no-node"), (errno.EBUSY, "busy")],
    )
    def test_node_that_cannot_be_opened(
        self, sim: SimulatedKernel, via: str, node: str, number: int, problem: str
    ) -> None:
        sim.sysfs.forbidden[node] = number

        error = refused(sim, via)

        assert (error.problem, error.errno) == (problem, number)
        assert node in error.message

    @pytest.mark.parametrize(
        ("via", "node"), [("type1", "/dev/vfio/vfio"), ("iommufd", "/dev/iommu")]
    )
    def test_file_that_cannot_be_opened(self, sim: SimulatedKernel, via: str, node: str) -> None:
        sim.sysfs.forbidden[node] = errno.EACCES

        error = refused(sim, via)

        assert error.problem == "unreadable"
        assert node in error.message

    @pytest.mark.parametrize(
        ("via", "module"), [("type1", "vfio_iommu_type1"), ("iommufd", "iommufd")]
    )
    def test_no_interrupt_remapping_names_the_modules_parameter(
        self, via: str, module: str
    ) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC,), isolated_msi=False)])
        sim.sysfs.files[f"/sys/module/{module}/parameters/allow_unsafe_interrupts"] = "N\n"

        error = refused(sim, via)

        assert (error.problem, error.errno) == ("unsafe-interrupts", errno.EPERM)
        assert f"{module}'s parameter allow_unsafe_interrupts is N" in error.message

    @pytest.mark.parametrize("via", ["iommufd", "type1"])
    def test_direct_region_is_named(self, via: str) -> None:
        direct = (AddrRange(0x7B80_0000, 0x7FFF_FFFF), "direct")
        sim = SimulatedKernel([SimGroup(4, (NIC,), reserved=(direct,))])

        error = refused(sim, via)

        assert error.problem == "direct-region"
        assert "0x000000007b800000" in error.message

    def test_group_with_a_host_driver_names_the_other_device(self) -> None:
        sim = SimulatedKernel([SimGroup(4, (NIC, GPU))])
        sim.sysfs.bind_foreign(GPU, "i915")

        error = refused(sim)

        assert error.problem == "not-viable"
        assert f"{GPU} has driver i915" in error.message

    def test_group_open_elsewhere_is_busy(self, sim: SimulatedKernel) -> None:
        with open_space([NIC], kernel=sim, via="type1"):
            with pytest.raises(DeviceOpenError) as caught:
                open_space([NIC], kernel=sim, via="type1")

            assert caught.value.problem == "busy"

    def test_device_without_cdev_asked_for_iommufd_says_what_it_takes(self) -> None:
        sim = SimulatedKernel([NIC_GROUP], release=(6, 5))

        error = refused(sim, "iommufd")

        assert error.problem == "no-node"
        assert "6.6" in (error.hint or "")

    def test_auto_tells_both_reasons(self, sim: SimulatedKernel) -> None:
        sim.sysfs.forbidden["/dev/vfio/devices/vfio0"] = errno.EACCES
        sim.sysfs.forbidden["/dev/vfio/4"] = errno.EBUSY

        error = refused(sim, "auto")

        assert "/dev/vfio/devices/vfio0" in (error.detail or "")
        assert "/dev/vfio/4" in (error.detail or "")

    def test_anything_else_is_refused_with_the_kernels_errno(self, sim: SimulatedKernel) -> None:
        sim.inject(errno.EIO, request=uapi.SET_IOMMU)

        error = refused(sim)

        assert (error.problem, error.errno, error.ioctl) == (
            "refused",
            errno.EIO,
            "VFIO_SET_IOMMU",
        )

    def test_reason_survives_pickling(self, sim: SimulatedKernel) -> None:
        sim.sysfs.forbidden["/dev/vfio/4"] = errno.EACCES
        error = refused(sim)

        again = pickle.loads(pickle.dumps(error))

        assert (again.problem, again.errno, again.group, str(again)) == (
            error.problem,
            error.errno,
            4,
            str(error),
        )


class TestFacts:
    def test_zpci_window_is_told_by_the_device(self) -> None:
        window = AddrRange(1 << 32, 0x1_3FFF_FFFF)
        group = SimGroup(0, (NIC,), aperture=window, reserved=(), page_sizes=0x1000, zpci=window)
        sim = SimulatedKernel([group], release=(5, 10))

        with open_space([NIC], kernel=sim) as space:
            facts = device_facts(space.device_fd(NIC), sim)
            ranges = space.facts().ranges

        assert facts.zpci is not None
        assert ranges is not None
        assert list(ranges) == [facts.zpci.dma]

    def test_device_without_zpci_tells_none(self, sim: SimulatedKernel) -> None:
        with open_space([NIC], kernel=sim) as space:
            assert device_facts(space.device_fd(NIC), sim).zpci is None


class TestSysroot:
    def test_copied_tree_is_read(self, tmp_path: Path) -> None:
        device = tmp_path / "sys/bus/pci/devices" / NIC
        group = tmp_path / "sys/kernel/iommu_groups/9"
        (group / "devices" / NIC).mkdir(parents=True)
        device.mkdir(parents=True)
        (device / "iommu_group").symlink_to("../../../../kernel/iommu_groups/9")
        (device / "driver").symlink_to("../../../../bus/pci/drivers/vfio-pci")
        (device / "vfio-dev/vfio3").mkdir(parents=True)
        (device / "vfio-dev/vfio3/dev").write_text("511:3\n")
        (group / "reserved_regions").write_text(
            "0x0000000000000000 0x0000000000ffffff direct-relaxable\n"
            "0x000000007b800000 0x000000007fffffff direct\n"
        )

        site = find_device(NIC, LinuxKernel(tmp_path))

        assert site == DeviceSite(
            NIC,
            "vfio-pci",
            9,
            ((NIC, "vfio-pci"),),
            ("0x000000007b800000 0x000000007fffffff direct",),
            "/dev/vfio/devices/vfio3",
            "/dev/vfio/9",
        )

    def test_real_kernel_opens_and_closes(self, tmp_path: Path) -> None:
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev/node").write_text("x")
        kernel = LinuxKernel(tmp_path)

        fd = kernel.open("/dev/node")
        with pytest.raises(OSError, match="Inappropriate") as caught:
            kernel.ioctl(fd, uapi.GET_API_VERSION)
        kernel.close(fd)

        assert caught.value.errno == errno.ENOTTY
        assert kernel.list_dir("/dev") == ["node"]
        assert kernel.read_text("/dev/node") == "x"

    def test_ioctl_with_a_buffer_gives_the_kernels_value(self) -> None:
        """GROUP_GET_DEVICE_FD takes a name and returns a descriptor; fcntl would give the name."""
        kernel = LinuxKernel()
        reader, writer = os.pipe()
        os.write(writer, b"abc")

        answer = kernel.ioctl(reader, termios.FIONREAD, bytearray(4))

        assert answer == 0
        os.close(reader)
        os.close(writer)

    @pytest.mark.parametrize("compiled", [True, False])
    def test_many_ioctls_stop_at_the_first_refusal(
        self, compiled: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if compiled and syscalls._ioctl is None:
            pytest.skip("the extension was not built")
        if not compiled:
            monkeypatch.setattr(syscalls, "_ioctl", None)
        reader, writer = os.pipe()
        os.write(writer, b"abc")
        records = bytearray(12)

        taken = LinuxKernel().ioctl_many(reader, termios.FIONREAD, records, 4)
        refused = LinuxKernel().ioctl_many(reader, uapi.GET_API_VERSION, bytearray(8), 4)

        assert (taken, refused) == ((3, 0), (0, errno.ENOTTY))
        assert list(memoryview(records).cast("i")) == [3, 3, 3]
        os.close(reader)
        os.close(writer)

    def test_many_ioctls_of_part_records_raise(self) -> None:
        if syscalls._ioctl is None:
            pytest.skip("the extension was not built")

        with pytest.raises(ValueError, match="strides"):
            syscalls._ioctl.ioctl_many(0, 0, bytearray(5), 4)
