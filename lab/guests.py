# SPDX-License-Identifier: Apache-2.0
"""The guests: which machine, which kernel, which devices are handed to the tests."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

from lab.built import BuiltKernel
from lab.debian import Apt
from lab.kernels import DebianKernel
from lab.say import LabError

X86 = DebianKernel(Apt("amd64", ("trixie",)), "linux-image-amd64")
ARM = DebianKernel(Apt("arm64", ("trixie",)), "linux-image-arm64")
# No released Debian has a current kernel for s390x in reach of every mirror; unstable has.
S390 = DebianKernel(Apt("s390x", ("sid",)), "linux-image-s390x")

SHARE = ("9p", "9pnet_virtio", "overlay")
VFIO = ("vfio", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci")
# The drivers that own the devices before VFIO gets them, as on a real host.
OWNERS = ("?virtio_pci", "?virtio_rng", "?virtio_blk")
# Pointer authentication by its real cipher takes most of the time of an emulated machine.
ARM_CPU = "max,pauth-impdef=on"
EDU = "edu,dma_mask=0xffffffffffffffff"
VIRTIO = "disable-legacy=on,iommu_platform=on"


@dataclass(frozen=True)
class Guest:
    """One row of the lab's table."""

    name: str
    title: str
    arch: str
    kernel: DebianKernel | BuiltKernel
    machine: tuple[str, ...]
    devices: tuple[str, ...]
    append: str = ""
    debian_arch: str = "amd64"
    memory: str = "2G"
    bus: str = "pci"
    modules: tuple[str, ...] = field(default=SHARE + VFIO + OWNERS)
    console: str = "ttyS0"
    seconds: int = 900

    @property
    def foreign(self) -> bool:
        """Tell whether the guest cannot run this machine's programs and needs a root of its own."""
        return self.arch != platform.machine()


_PC_DEVICES = ("0000:00:10.0", "0000:00:11.0", "0000:00:12.0", "0000:00:13.0", "0000:00:14.0")
_PC = (
    *("-device", f"{EDU},addr=0x10"),
    *("-device", f"{EDU},addr=0x11"),
    *("-device", f"virtio-rng-pci,{VIRTIO},addr=0x12"),
    *("-device", f"virtio-blk-pci,{VIRTIO},addr=0x13,drive=scratch"),
    *("-device", "nvme,serial=lab,addr=0x14,drive=disk"),
)
# Two functions of one slot, which share a group; they keep their drivers but in one test.
_PAIR = (
    *("-device", f"{EDU},addr=0x15.0,multifunction=on"),
    *("-device", f"virtio-rng-pci,{VIRTIO},addr=0x15.1"),
)
_VTD = "intel-iommu,intremap=on,caching-mode=on"

GUESTS: tuple[Guest, ...] = (
    Guest(
        name="vtd",
        title="x86-64, VT-d, 48 bits",
        arch="x86_64",
        kernel=X86,
        machine=("-M", "q35", "-cpu", "max", "-device", f"{_VTD},aw-bits=48", *_PC, *_PAIR),
        devices=_PC_DEVICES,
        append="intel_iommu=on",
    ),
    Guest(
        name="vtd39",
        title="x86-64, VT-d, 39 bits",
        arch="x86_64",
        kernel=X86,
        machine=("-M", "q35", "-cpu", "max", "-device", f"{_VTD},aw-bits=39", *_PC, *_PAIR),
        devices=_PC_DEVICES,
        append="intel_iommu=on",
    ),
    Guest(
        name="amd",
        title="x86-64, AMD-Vi",
        arch="x86_64",
        kernel=X86,
        machine=("-M", "q35", "-cpu", "EPYC", "-device", "amd-iommu,intremap=off", *_PC),
        devices=_PC_DEVICES,
    ),
    Guest(
        name="iommufd",
        title="x86-64, VT-d, iommufd and KVM",
        arch="x86_64",
        kernel=BuiltKernel(),
        machine=("-M", "q35", "-cpu", "max", "-device", f"{_VTD},aw-bits=48", *_PC, *_PAIR),
        devices=_PC_DEVICES,
        append="intel_iommu=on",
    ),
    Guest(
        name="arm64",
        title="arm64, SMMUv3",
        arch="aarch64",
        debian_arch="arm64",
        kernel=ARM,
        machine=(
            *("-M", "virt,iommu=smmuv3,gic-version=3", "-cpu", ARM_CPU),
            *("-device", f"virtio-rng-pci,{VIRTIO},addr=0x10"),
            *("-device", f"virtio-blk-pci,{VIRTIO},addr=0x11,drive=scratch"),
        ),
        devices=("0000:00:10.0", "0000:00:11.0"),
        memory="1G",
        console="ttyAMA0",
    ),
    Guest(
        name="s390x",
        title="s390x, zPCI, big-endian",
        arch="s390x",
        debian_arch="s390x",
        kernel=S390,
        machine=(
            *("-M", "s390-ccw-virtio", "-cpu", "max"),
            *("-device", "zpci,uid=1,fid=1,target=rng0,id=z0"),
            *("-device", f"virtio-rng-pci,id=rng0,{VIRTIO}"),
            *("-device", "zpci,uid=2,fid=2,target=blk0,id=z1"),
            *("-device", f"virtio-blk-pci,id=blk0,{VIRTIO},drive=scratch"),
        ),
        devices=("0001:00:00.0", "0002:00:00.0"),
        memory="1G",
        bus="ccw",
        modules=(*SHARE, "irqbypass", *VFIO, *OWNERS),
        console="ttysclp0",
    ),
)


def named(names: list[str]) -> list[Guest]:
    """Return the guests of these names, in the table's order; all of them for an empty list."""
    known = {guest.name: guest for guest in GUESTS}
    for name in names:
        if name not in known:
            raise LabError(f"there is no guest {name}; there are {', '.join(known)}")
    return [guest for guest in GUESTS if not names or guest.name in names]
