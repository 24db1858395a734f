"""The attach rehearsal on the kernel of this guest: it says what the kernel then does.

The facts of the newcomer are sysfs's and its registers', as a VMM has them before the attach.
"""

from __future__ import annotations

import errno
import mmap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from vmm_iova import AddrRange, load_host
from vmm_iova.errors import DmaError
from vmm_iova.kernel import find_device
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import Iommufd, VfioCdev
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.mapping import Rehearsal, rehearse_attach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Space = Type1Container | Ioas
MSI = AddrRange(0xFEE0_0000, 0xFEEF_FFFF)
PCI = Path("/sys/bus/pci")
PAIR = ("0000:00:15.0", "0000:00:15.1")


@pytest.fixture(params=["type1", "iommufd"])
def via(request: pytest.FixtureRequest, lab: dict[str, Any]) -> str:
    way: str = request.param
    if way == "iommufd" and lab["guest"] != "iommufd":
        pytest.skip("only the guest with the built kernel has iommufd")
    return way


@pytest.fixture
def buffer() -> Iterator[int]:
    import ctypes

    memory = mmap.mmap(-1, 0x10_0000)
    pin = (ctypes.c_char * 0x10_0000).from_buffer(memory)
    yield ctypes.addressof(pin)
    del pin
    memory.close()


def empty(via: str) -> Space:
    return Type1Container() if via == "type1" else Ioas(Iommufd(), owns=True)


def attach(space: Space, bdf: str) -> None:
    site = find_device(bdf)
    assert site.group is not None
    if isinstance(space, Type1Container):
        space.add_group(site.group)
        return
    assert site.cdev is not None
    device = VfioCdev(space.iommufd.kernel, site.cdev)
    try:
        device.bind(space.iommufd)
        space.attach(bdf, device)
    except BaseException:
        device.close()
        raise


def both(space: Space, bdf: str, aperture: str | None = None) -> tuple[Rehearsal, int | None]:
    """Rehearse, then attach; say what the kernel answered."""
    usable = load_host().usable(devices=[bdf], aperture=aperture)
    answer = rehearse_attach(space, usable)
    try:
        attach(space, bdf)
    except DmaError as error:
        return answer, error.errno
    if answer.would_attach:
        assert answer.ranges == space.facts().ranges
    return answer, None


def close(space: Space) -> None:
    if len(space.live):
        space.unmap_all()
    space.close()


def bdfs(lab: dict[str, Any]) -> list[str]:
    return [each["bdf"] for each in lab["devices"]]


@pytest.mark.guests("vtd", "vtd39", "iommufd", "amd")
@pytest.mark.proves("attach rehearsal: what it takes, the kernel takes, with the ranges it told")
def test_free_way_is_taken_by_the_kernel(lab: dict[str, Any], via: str, buffer: int) -> None:
    space = empty(via)
    try:
        for index, bdf in enumerate(bdfs(lab)[:3]):
            aperture = (
                "64" if lab["guest"] == "amd" else None
            )  # sysfs of QEMU's AMD-Vi has no width
            answer, number = both(space, bdf, aperture)
            assert (answer.would_attach, number) == (True, None), answer.refusals
            space.map(0x10_0000 * (index + 1), buffer, 0x1000)
    finally:
        close(space)


@pytest.mark.guests("iommufd")
@pytest.mark.proves("attach rehearsal: EADDRINUSE of iommufd for mappings, allow lists, alignment")
@pytest.mark.parametrize(
    "prepare",
    [
        lambda space, hva: space.map(MSI.start, hva, 0x1000),
        lambda space, hva: space.map(1 << 50, hva, 0x1000),
        lambda space, hva: space.map(0x1200, hva + 0x200, 0x400),
        lambda space, hva: space.allow([AddrRange(MSI.start - 0x1000, MSI.start)]),
        lambda space, hva: space.allow([AddrRange(0x1000, 1 << 50)]),
    ],
    ids=["mapping-in-a-region", "mapping-beyond", "unaligned", "allowed-region", "allowed-beyond"],
)
def test_what_is_in_the_way_of_iommufd_is_refused_as_told(
    lab: dict[str, Any], buffer: int, prepare: Callable[[Ioas, int], object]
) -> None:
    space = empty("iommufd")
    assert isinstance(space, Ioas)
    try:
        prepare(space, buffer)
        answer, number = both(space, bdfs(lab)[0])
        assert (answer.errno, number) == (errno.EADDRINUSE, errno.EADDRINUSE), answer.refusals
    finally:
        close(space)


@pytest.mark.guests("iommufd")
@pytest.mark.proves("attach rehearsal: an allow list that meets no new region is taken")
def test_allow_list_beside_the_regions_is_taken(lab: dict[str, Any]) -> None:
    space = empty("iommufd")
    assert isinstance(space, Ioas)
    try:
        space.allow([AddrRange(0x1000, MSI.start - 1)])
        answer, number = both(space, bdfs(lab)[0])
        assert (answer.would_attach, number) == (True, None)
    finally:
        close(space)


@contextmanager
def bound(bdf: str) -> Iterator[None]:
    """Give a device of the pair to vfio-pci, and its own driver back."""
    override = PCI / "devices" / bdf / "driver_override"
    driver = PCI / "devices" / bdf / "driver"
    if driver.exists():
        (driver / "unbind").write_text(bdf)
    override.write_text("vfio-pci")
    (PCI / "drivers_probe").write_text(bdf)
    try:
        yield
    finally:
        (PCI / "drivers/vfio-pci/unbind").write_text(bdf)
        override.write_text("\n")
        (PCI / "drivers_probe").write_text(bdf)


@pytest.mark.guests("vtd", "iommufd")
@pytest.mark.proves("attach rehearsal: a group with a host driver in it is refused, and then taken")
def test_member_with_a_host_driver_is_refused_as_told(lab: dict[str, Any], via: str) -> None:
    assert find_device(PAIR[0]).group == find_device(PAIR[1]).group
    assert find_device(PAIR[1]).driver == "virtio-pci"
    with bound(PAIR[0]):
        space = empty(via)
        try:
            answer, number = both(space, PAIR[0])
            assert answer.errno == number == (errno.EINVAL if via == "type1" else errno.EPERM)
            assert f"{PAIR[1]} has driver virtio-pci" in answer.refusals[0].text
        finally:
            close(space)
        with bound(PAIR[1]):
            space = empty(via)
            try:
                answer, number = both(space, PAIR[0])
                assert (answer.would_attach, number) == (True, None), answer.refusals
            finally:
                close(space)


@contextmanager
def unsafe(value: str) -> Iterator[None]:
    path = Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")
    before = path.read_text().strip()
    path.write_text(value)
    try:
        yield
    finally:
        path.write_text(before)


@pytest.mark.guests("amd")
@pytest.mark.proves(
    "attach rehearsal: interrupts that are not remapped are refused, unless allowed"
)
@pytest.mark.parametrize("value", ["N", "Y"])
def test_interrupts_that_are_not_remapped_are_refused_as_told(
    lab: dict[str, Any], value: str
) -> None:
    assert load_host().state.remaps_interrupts is False
    with unsafe(value):
        space = empty("type1")
        try:
            answer, number = both(space, bdfs(lab)[0], "64")
            assert answer.errno == number == (errno.EPERM if value == "N" else None)
        finally:
            close(space)


@pytest.mark.guests("vtd", "vtd39", "iommufd")
@pytest.mark.proves("facts: sysfs tells that interrupts are remapped, and that this is a VM")
def test_platform_of_this_machine_is_known(lab: dict[str, Any]) -> None:
    host = load_host()
    assert (host.state.remaps_interrupts, host.platform.guest) == (True, True)
    assert host.state.unsafe_interrupts is not None
