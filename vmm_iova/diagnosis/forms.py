# SPDX-License-Identifier: Apache-2.0
"""The forms in which programs and the kernel print that a call failed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmm_iova.diagnosis.causes import Why

HEX = r"0x[0-9a-fA-F]+"
"""A number in hex, as a pattern."""

_ANY = r"0x[0-9a-fA-F.\u2026]*"  # people shorten pointers: 0x...


@dataclass(frozen=True, slots=True)
class Form:
    """One form that programs print.

    Attributes:
        pattern: with groups `iova`, `size`, `hva`, `last` where the form has them.
        op: what failed.
        api: interface, or None.
        program: who prints it, or None.
        part: what was to be mapped, or None.
        errno: the errno that it implies, where it prints none.
        sign: what the words settle, or None.
        echo: True if it only repeats, without numbers, that another call failed.
    """

    pattern: re.Pattern[str]
    op: str
    api: str | None = None
    program: str | None = None
    part: str | None = None
    errno: str | None = None
    sign: Why | None = None
    echo: bool = False


def _form(pattern: str, op: str, api: str | None = None, **more: object) -> Form:
    return Form(re.compile(pattern), op, api, **more)  # type: ignore[arg-type]


FORMS = (
    # The kernel's log (drivers/iommu, drivers/vfio).
    _form(
        r"iommu width \((?P<bits>\d+)\) is not sufficient for the mapped address "
        r"\((?P<iova>[0-9a-f]+)\)",
        "map",
        "type1",
        program="kernel",
        errno="EFAULT",
        sign=Why.WIDTH,
    ),
    _form(
        r"vfio_pin_page\w*: (?:\S+ )?RLIMIT_MEMLOCK \((?P<limit>\d+)\) exceeded",
        "map",
        "type1",
        program="kernel",
        errno="ENOMEM",
        sign=Why.MEMLOCK,
    ),
    _form(
        r"RLIMIT_MEMLOCK(?: \((?P<limit>\d+)\))? exceeded",
        "map",
        None,
        program="kernel",
        errno="ENOMEM",
        sign=Why.MEMLOCK,
    ),
    _form(
        r"Firmware has requested this device have a 1:1 IOMMU mapping",
        "attach",
        program="kernel",
        errno="EINVAL",
        sign=Why.DIRECT,
    ),
    _form(
        r"ineligible for IOMMU domain attach due to platform RMRR",
        "attach",
        program="kernel",
        errno="EPERM",
        sign=Why.DIRECT,
    ),
    _form(
        r"No interrupt remapping support|MSI interrupts are not secure",
        "attach",
        program="kernel",
        errno="EPERM",
        sign=Why.ISOLATION,
    ),
    _form(
        r"DMAR: ?\[.*?\].*?fault addr (?:0x)?(?P<iova_hex>[0-9a-f]+).*?"
        r"(?:Present bit in (?:root|context) entry is clear|Invalid context entry)",
        "fault",
        "type1",
        program="kernel",
        sign=Why.REQUESTER,
    ),
    _form(
        r"DMAR: ?\[.*?\].*?fault addr (?:0x)?(?P<iova_hex>[0-9a-f]+)",
        "fault",
        "type1",
        program="kernel",
    ),
    _form(r"IO_PAGE_FAULT .*?address=(?P<iova>0x[0-9a-f]+)", "fault", "type1", program="kernel"),
    _form(r"arm-smmu.*?(?:iova=|iova: ?)(?P<iova>0x[0-9a-f]+)", "fault", "type1", program="kernel"),
    # arm-smmu-v3 before Linux 6.15: four words follow, a line each, the third is the address.
    _form(r"arm-smmu-v3.*: event 0x1[0-3] received", "fault", "type1", program="kernel"),
    _form(
        r"Fault \d+ .*devid: \S+ iotval: (?P<iova_hex>[0-9a-f]+) iotval2: [0-9a-f]+",
        "fault",
        "type1",
        program="kernel",
    ),
    # KVM's own map call, as QEMU (accel/kvm/kvm-all.c), Cloud Hypervisor and Firecracker say it.
    _form(
        r"KVM_SET_USER_MEMORY_REGION2? failed, slot=\d+, "
        rf"start=(?P<iova>{HEX}), size=(?P<size>{HEX})",
        "memslot",
        program="QEMU",
    ),
    _form(
        r"KVM_SET_USER_MEMORY_REGION2? failed|CreateUserMemory(?:Region)?\(|"
        r"[Ff]ailed to set KVM user memory region|Failed to create user memory region",
        "memslot",
    ),
    # QEMU (hw/vfio/container.c, listener.c, iommufd.c; backends/iommufd.c).
    _form(
        rf"vfio(?:_container|_legacy)?_dma_(?P<op>map|unmap)\({_ANY}, ?(?P<iova>{HEX}), ?"
        rf"(?P<size>{HEX})(?:, ?(?P<hva>{_ANY}))?\)",
        "map",
        program="QEMU",
    ),
    # QEMU's own NVMe driver (util/vfio-helpers.c): address in the process, and size.
    _form(rf"qemu_vfio_dma_map\((?P<hva>{HEX}), (?P<size>\d+)\) failed", "map", "type1"),
    _form(
        rf"received unaligned region \S+ iova=(?P<iova>{HEX})",
        "start",
        program="QEMU",
        sign=Why.ALIGNMENT,
    ),
    _form(
        rf"can't map guest IOVA region (?P<iova>{HEX})\.\.(?P<last>{HEX})",
        "map",
        "type1",
        program="QEMU",
        errno="EINVAL",
    ),
    _form(r"IOMMU_IOAS_MAP(?:_FILE)? failed", "map", "iommufd"),
    _form(r"IOMMU_IOAS_UNMAP failed", "unmap", "iommufd"),
    _form(r"VFIO_MAP_DMA(?: failed)?:", "map", "type1"),
    _form(r"VFIO_UNMAP_DMA(?: failed)?:", "unmap", "type1"),
    _form(r"group \d+ is not viable|VFIO group is not viable", "open", sign=Why.NOT_VIABLE),
    _form(r"[Ff]ailed to set (?:group container|iommu for container)", "set-iommu", "type1"),
    _form(r"error getting device from group \d+", "open", "type1", program="QEMU"),
    _form(r"error bind device fd=-?\d+ to iommufd", "bind", "iommufd", program="QEMU"),
    _form(r"error attach .* to id=\d+", "attach", "iommufd", program="QEMU"),
    _form(r"running out of DMA mappings", "map", "type1", program="QEMU", sign=Why.ENTRIES),
    _form(
        rf"Address space limit (?P<top>{HEX}) < (?P<last>{HEX}).*phys-bits too low",
        "start",
        program="QEMU",
        sign=Why.GUEST_BITS,
    ),
    _form(
        r"cannot set up guest memory|unable to map backing store for guest RAM",
        "start",
        program="QEMU",
        sign=Why.BACKING,
    ),
    _form(r"aw-bits \d+ > host aw-bits", "start", program="QEMU", sign=Why.VIOMMU_WIDTH),
    _form(
        r"requires caching mode|without enabling caching-mode|requires iommu MAP notifier",
        "start",
        program="QEMU",
        sign=Why.VIOMMU_NOTIFY,
    ),
    _form(
        rf"does not support frozen granule|page mask {HEX} is incompatible with mask {HEX}",
        "start",
        program="QEMU",
        sign=Why.VIOMMU_PAGES,
    ),
    _form(r"no iommu_group found|[Nn]o available IOMMU models", "start", sign=Why.NO_IOMMU),
    # libvirt (src/util/virprocess.c, src/qemu), Proxmox (PVE/QemuServer/PCI.pm).
    _form(
        r"cannot limit locked memory of process \d+ to (?P<size>\d+)",
        "start",
        program="libvirt",
        sign=Why.RLIMIT,
    ),
    _form(
        r"host doesn't support (?:VFIO PCI )?passthrough|host doesn't support VFIO|"
        r"cannot prepare PCI pass-?through, IOMMU not present",
        "start",
        sign=Why.NO_IOMMU,
    ),
    # rust-vmm vfio-ioctls: Cloud Hypervisor, crosvm, Kata, Dragonball.
    _form(r"IommuDmaMap\b|failed to add guest memory map into iommu table", "map", "type1"),
    _form(r"IommuDmaUnmap\b|failed to remove guest memory map from iommu table", "unmap", "type1"),
    _form(r"failed to map an IOVA range to the IOAS", "map", "iommufd"),
    _form(r"failed to unmap an IOVA range from the IOAS", "unmap", "iommufd"),
    _form(r"ContainerSetIOMMU|failed to set container's IOMMU driver", "set-iommu", "type1"),
    _form(r"GroupSetContainer|failed to add (?:the )?group into vfio container", "attach", "type1"),
    _form(r"GroupViable|group is inviable", "open", sign=Why.NOT_VIABLE),
    # Firecracker.
    _form(
        rf"[Ff]ailed to map guest memory \[(?P<iova>{HEX}), (?P<last>{HEX})\] for DMA",
        "map",
        "type1",
        program="Firecracker",
        part="ram",
    ),
    _form(r"[Ff]ailed to map guest memory into IOMMU", "map", "type1", part="ram"),
    # kvmtool (vfio/core.c, kvm.c).
    _form(
        rf"[Ff]ailed to map (?P<iova>{HEX}) -> (?P<hva>{HEX}) \((?P<size>\d+)\) for DMA",
        "map",
        "type1",
        program="kvmtool",
        part="ram",
    ),
    _form(
        r"RAM region \[(?P<iova_hex>[0-9a-f]+)-(?P<last_hex>[0-9a-f]+)\] "
        r"would overlap RESERVED region",
        "map",
        "type1",
        program="kvmtool",
        part="ram",
        errno="EINVAL",
        sign=Why.HOLE,
    ),
    _form(
        r"RESERVED region \[[0-9a-f]+-[0-9a-f]+\] would overlap RAM region "
        r"\[(?P<iova_hex>[0-9a-f]+)-(?P<last_hex>[0-9a-f]+)\]",
        "map",
        "type1",
        program="kvmtool",
        part="ram",
        errno="EINVAL",
        sign=Why.HOLE,
    ),
    # DPDK (lib/eal/linux/eal_vfio.c, common/eal_common_memory.c) and SPDK (env_dpdk/memory.c).
    _form(
        r"Expecting 'PA' IOVA mode but current mode is 'VA'",
        "start",
        program="DPDK",
        sign=Why.IOVA_MODE,
    ),
    _form(
        r"[Mm]emseg iova (?P<iova_hex>[0-9a-f]+), len (?P<size_hex>[0-9a-f]{1,16}), out of range",
        "map",
        "type1",
        program="DPDK",
        errno="EINVAL",
    ),
    _form(
        r"Unexpected size \d+ of DMA remapping cleared",
        "unmap",
        "type1",
        program="DPDK",
        sign=Why.NOT_MAPPED,
    ),
    _form(r"VFIO support not initialized", "map", "type1", program="DPDK", sign=Why.ORDER),
    _form(r"Couldn't map new region for DMA", "map", "type1", program="DPDK"),
    _form(r"[Cc]annot set up DMA remapping|DMA remapping failed", "map", "type1", program="DPDK"),
    _form(r"[Cc]annot clear DMA remapping", "unmap", "type1", program="DPDK"),
    _form(r"[Cc]annot set up DMA mapping", "map", "type1", program="SPDK"),
    _form(r"[Cc]annot clear DMA mapping", "unmap", "type1", program="SPDK"),
    # libvfn, libevpl, OpenVMM, strace, and programs that name the ioctl.
    _form(r"failed to map dma\b", "map", None, program="libvfn"),
    _form(r"[Ff]ailed to MAP DMA memory", "map", "type1", program="libevpl"),
    _form(r"iommufd IOAS DMA map failed", "map", "iommufd", program="OpenVMM", part="ram"),
    _form(r"VFIO_IOMMU_MAP_DMA\b", "map", "type1"),
    _form(r"KVM_SET_USER_MEMORY_REGION\b", "memslot"),
    _form(r"VFIO_IOMMU_UNMAP_DMA\b", "unmap", "type1"),
    _form(r"IOMMU_IOAS_MAP(?:_FILE)?\b", "map", "iommufd"),
    _form(r"IOMMU_IOAS_UNMAP\b", "unmap", "iommufd"),
    _form(r"VFIO_SET_IOMMU\b", "set-iommu", "type1"),
    _form(r"VFIO_GROUP_SET_CONTAINER\b", "attach", "type1"),
    _form(r"VFIO_DEVICE_ATTACH_IOMMUFD_PT\b", "attach", "iommufd"),
    _form(r"VFIO_DEVICE_BIND_IOMMUFD\b", "bind", "iommufd"),
    _form(r"(?:open|opening) '?(?:\S*/)?dev/(?:vfio/\S+|iommu\b)", "open"),
    _form(r"couldn't open directory \S*vfio-dev", "open", "iommufd", program="QEMU"),
    # What a program says when one of the calls above failed.
    _form(r"memory listener initialization failed", "map", program="QEMU", part="ram", echo=True),
    _form(r"DMA mapping failed, unable to continue", "map", program="QEMU", echo=True),
    _form(r"[Ff]ailed to set ?up container", "setup", program="QEMU", echo=True),
    _form(
        r"(?i:\bvfio\b|iommufd|/dev/vfio|vfio-pci).*?"
        r"(?i:fail|error|cannot|can't|could ?n[o']t|unable)",
        "setup",
        echo=True,
    ),
)
"""Each form with where it was seen. The first that matches a line counts."""
