# SPDX-License-Identifier: Apache-2.0
"""The words of a diagnosis: what a program did, why it was refused, how sure that is."""

from __future__ import annotations

import enum

from vmm_iova.record import record


class Certainty(enum.StrEnum):
    """How sure a cause is."""

    CERTAIN = "certain"
    """A fact of the host, of the report, or of the numbers settles it."""
    LIKELY = "likely"
    """What reports of this kind turn out to be."""
    POSSIBLE = "possible"
    """The call and its errno can mean it."""

    @property
    def rank(self) -> int:
        """The surest first."""
        return list(Certainty).index(self)


class Op(enum.StrEnum):
    """What a program may have been doing."""

    MAP = "map"
    UNMAP = "unmap"
    SET_IOMMU = "set-iommu"
    """Choosing the type of a container's IOMMU, VFIO_SET_IOMMU."""
    ATTACH = "attach"
    """A group into a container, or a device to an IOAS."""
    BIND = "bind"
    """A device to an iommufd."""
    GET_DEVICE = "get-device"
    """A device of a group, VFIO_GROUP_GET_DEVICE_FD."""
    OPEN = "open"
    """A node of /dev."""
    PROBE = "probe"
    """vfio-pci taking the device."""
    FAULT = "fault"
    """A device's own access."""
    MEMSLOT = "memslot"
    """KVM's map call."""
    BAR = "bar"
    """Finding a place for a BAR."""
    START = "start"
    """What comes before any of them."""
    SETUP = "setup"
    """One of them, which the line does not name."""


class Api(enum.StrEnum):
    """Kernel interfaces: a VFIO container, or an iommufd."""

    TYPE1 = "type1"
    IOMMUFD = "iommufd"


class Part(enum.StrEnum):
    """What was to be mapped."""

    RAM = "ram"
    BAR = "bar"


class Why(enum.Enum):
    """A cause of a refusal; the value says it in a clause."""

    WIDTH = "beyond the address width of the IOMMU"
    HOLE = "over a reserved region"
    OUTSIDE = "outside of the usable IOVAs"
    SEAM = "across a seam between two ranges"
    CPU_BITS = "beyond the physical address bits of the CPU"
    SLOT_SIZE = "more than one memory slot takes"
    ALIGNMENT = "not whole pages"
    WRAP = "beyond 2^64"
    ORDER = "called before the IOMMU type was set"
    FLAGS = "a flag or a size that the call does not take"
    OVERLAP = "mapped already"
    ENTRIES = "too many mappings"
    MEMLOCK = "locked-memory limit"
    HVA = "memory that cannot be pinned"
    BAR = "device memory, which iommufd does not map by address"
    PEER = "a BAR that the IOMMU does not map, for peer-to-peer DMA"
    DIRECT = "firmware demands a 1:1 mapping"
    ISOLATION = "interrupts are not isolated"
    LIVE_MAPS = "mappings in the way of an attach"
    NOT_VIABLE = "another device of the group has a host driver"
    BUSY = "in use"
    ABSENT = "not there"
    UNBOUND = "not bound to a VFIO driver"
    UNMATCHED = "a driver that was not told to take the device"
    NO_GROUP = "no IOMMU group"
    NO_CDEV = "no VFIO node of the device's own"
    SHARED_GROUP = "one group in two address spaces"
    COHERENCY = "the IOMMU cannot enforce cache coherency"
    NOT_MAPPED = "nothing mapped there"
    CUT = "the range cuts through a mapping"
    ROOM = "no free IOVA of that size"
    PERMISSION = "not allowed to open it"
    NO_DOMAIN = "no IOMMU driver for the device's bus"
    FOREIGN_FILE = "a file that does not know the call"
    MEDIATED = "the driver of a mediated device refused"
    MEDIATED_GROUP = "a mediated device without a group"
    UNMAPPED_DMA = "the device reached for an address that is not mapped"
    REQUESTER = "the IOMMU knows no such device"
    GRAPHICS = "integrated graphics reached for its stolen memory"
    INVALID_REQUEST = "a request that the IOMMU does not take"
    HARDWARE = "the IOMMU or a device does not answer"
    UNTRANSLATED = "the host does not translate for the device"
    NO_SPACE = "a BAR found no room in a PCI window"
    BAR_MOVED = "a guest moved a BAR where its bus has no room"
    BAR_HELD = "the host's console holds the BAR"
    GUEST_BITS = "too few address bits for the guest"
    BACKING = "no memory to back the guest's RAM"
    RLIMIT = "the limit of locked memory may not be raised"
    NO_IOMMU = "no IOMMU in use"
    VIOMMU_WIDTH = "the guest's IOMMU is wider than the host's"
    VIOMMU_NOTIFY = "the guest's IOMMU does not tell what it maps"
    VIOMMU_PAGES = "the guest's IOMMU has smaller pages than the host's"
    NO_VIOMMU = "the guest has no IOMMU of its own"
    ACS = "a switch without ACS"
    IOVA_MODE = "virtual addresses cannot be IOVAs here"
    BOUNCE = "bounce buffers of the host"
    TOOLSTACK = "Xen's toolstack, which does not tell why"
    MEDIATED_ROOM = "no room for another mediated device"
    VFIO_USER = "a vfio-user server's own table of regions"
    VIOMMU_MISS = "an address that the guest's IOMMU does not translate"
    UNWOUND = "an errno that is not the ioctl's"
    GUEST_DRIVER = "the guest's own driver gave up on its device"
    OTHER = "not about DMA addresses"


@record
class Fact:
    """What is known of a cause, whatever the host.

    Attributes:
        since: since when kernels refuse for it.
        source: where that is written.
    """

    since: str
    source: str


FACTS: dict[Why, Fact] = {
    Why.WIDTH: Fact(
        "type1 refuses with EINVAL since Linux 5.4 (VT-d by its real width since 5.10: 5.4 lists "
        "57 bits on any hardware and the map fails with EFAULT); iommufd since 6.2",
        "vfio_iommu_iova_dma_valid in drivers/vfio/vfio_iommu_type1.c; drivers/iommu/intel/iommu.c",
    ),
    Why.HOLE: Fact(
        "type1 refuses with EINVAL since Linux 5.4 (older ones map it, and DMA fails later); "
        "iommufd since 6.2",
        "vfio_iommu_iova_dma_valid in drivers/vfio/vfio_iommu_type1.c",
    ),
    Why.SEAM: Fact("type1 since Linux 5.4", "vfio_iommu_iova_dma_valid"),
    Why.CPU_BITS: Fact(
        "KVM refuses the memory slot: x86 since Linux 5.18 (older ones take it, and the guest "
        "fails there), arm64 on every kernel",
        "kvm_arch_prepare_memory_region, kvm_mmu_max_gfn; commit 86931ff7207b (5.18-rc5)",
    ),
    Why.SLOT_SIZE: Fact("every kernel", "KVM_MEM_MAX_NR_PAGES in virt/kvm/kvm_main.c"),
    Why.ALIGNMENT: Fact("every kernel", "vfio_dma_do_map; drivers/iommu/iommufd/ioas.c"),
    Why.WRAP: Fact(
        "every kernel; type1 says EINVAL before Linux 6.18 and EOVERFLOW since", "vfio_dma_do_map"
    ),
    Why.ORDER: Fact("every kernel", "drivers/vfio/container.c"),
    Why.FLAGS: Fact("every kernel", "vfio_iommu_type1_map_dma; drivers/iommu/iommufd/ioas.c"),
    Why.OVERLAP: Fact("every kernel", "vfio_dma_do_map; drivers/iommu/iommufd/io_pagetable.c"),
    Why.ENTRIES: Fact(
        "type1 since Linux 5.1 and, as a security fix, many older ones; iommufd has no such limit",
        "dma_entry_limit of vfio_iommu_type1, commit 492855939bdb",
    ),
    Why.MEMLOCK: Fact(
        "every kernel; type1 counts once for each container", "vfio_pin_pages_remote"
    ),
    Why.HVA: Fact("every kernel", "drivers/vfio/vfio_iommu_type1.c; drivers/iommu/iommufd/pages.c"),
    Why.BAR: Fact(
        "iommufd since Linux 6.2 (type1 maps BARs); since 6.19 MAP_FILE takes a VFIO dma-buf",
        "drivers/iommu/iommufd/pages.c",
    ),
    Why.DIRECT: Fact(
        "every IOMMU driver since Linux 6.8 with EINVAL (not yet in 6.5); before that VT-d alone, "
        "with EPERM",
        "require_direct in drivers/iommu/iommu.c, commit a48ce36e2786",
    ),
    Why.ISOLATION: Fact(
        "every kernel", "allow_unsafe_interrupts of vfio_iommu_type1 and of iommufd"
    ),
    Why.LIVE_MAPS: Fact("type1 since Linux 5.4, iommufd since 6.2", "vfio_iommu_resv_conflict"),
    Why.NOT_VIABLE: Fact("every kernel", "VFIO_GROUP_FLAGS_VIABLE of VFIO_GROUP_GET_STATUS"),
    Why.BUSY: Fact("every kernel", "drivers/vfio/group.c; drivers/vfio/device_cdev.c"),
    Why.ABSENT: Fact("every kernel", "drivers/vfio/container.c; drivers/iommu/iommufd/main.c"),
    Why.COHERENCY: Fact("since there is VFIO_DEVICE_BIND_IOMMUFD, Linux 6.6", "device_cdev.c"),
    Why.NOT_MAPPED: Fact(
        "iommufd since Linux 6.2; type1, and its compatibility interface since 6.18, say success "
        "with size 0",
        "commit afb47765f923",
    ),
    Why.CUT: Fact("type1 v2, and iommufd since Linux 6.2", "vfio_dma_do_unmap"),
    Why.ROOM: Fact("iommufd since Linux 6.2", "iopt_alloc_iova"),
    Why.PERMISSION: Fact("every kernel", "drivers/vfio/group.c"),
    Why.UNMAPPED_DMA: Fact("the hardware", "fault reports of DMAR, AMD-Vi and SMMU"),
    Why.REQUESTER: Fact("the hardware", "fault reasons 1 to 3 of drivers/iommu/intel/dmar.c"),
    Why.GUEST_BITS: Fact("QEMU 7.1 and later refuse to start", "hw/i386/pc.c, pc_memory_init"),
    Why.BACKING: Fact("every kernel", "mmap, hugetlbfs"),
    Why.RLIMIT: Fact("every kernel", "prlimit(2): a hard limit is raised with CAP_SYS_RESOURCE"),
    Why.NO_IOMMU: Fact("every kernel", "/sys/kernel/iommu_groups is empty without one"),
    Why.VIOMMU_WIDTH: Fact("QEMU 9.1 and later compare the two", "hw/i386/intel_iommu.c"),
    Why.VIOMMU_NOTIFY: Fact("every QEMU", "memory_region_register_iommu_notifier"),
    Why.VIOMMU_PAGES: Fact("every QEMU; 9.0 made the host's page the default", "virtio-iommu.c"),
    Why.IOVA_MODE: Fact("DPDK 17.11 and later", "rte_eal_iova_mode, pci_device_iommu_support_va"),
    Why.OUTSIDE: Fact(
        "QEMU 3.0 to 9.0 look themselves, since 9.1 the kernel's answer is taken",
        "hw/vfio/container.c, vfio_find_hostwin",
    ),
    Why.PEER: Fact("every QEMU", "hw/vfio/listener.c: a failed map of a RAM device is a warning"),
    Why.UNBOUND: Fact("every kernel", "drivers/vfio/group.c"),
    Why.UNMATCHED: Fact("every kernel", "drivers/base/bus.c, bind_store"),
    Why.NO_GROUP: Fact(
        "every kernel without no-IOMMU mode", "drivers/vfio/group.c, vfio_group_find_or_alloc"
    ),
    Why.NO_CDEV: Fact("Linux 6.6 with CONFIG_VFIO_DEVICE_CDEV", "drivers/vfio/device_cdev.c"),
    Why.SHARED_GROUP: Fact("every QEMU", "hw/vfio/container.c, vfio_get_group"),
    Why.NO_DOMAIN: Fact("every kernel", "vfio_iommu_type1_attach_group, iommu_domain_alloc"),
    Why.FOREIGN_FILE: Fact("every kernel", "drivers/vfio/group.c; drivers/vfio/container.c"),
    Why.MEDIATED: Fact(
        "Linux 4.10 and later", "drivers/vfio/vfio_iommu_type1.c, notifier of DMA maps"
    ),
    Why.MEDIATED_GROUP: Fact("Linux 4.10 and later", "drivers/vfio/mdev"),
    Why.GRAPHICS: Fact(
        "the hardware", "Intel's integrated graphics scans out of its stolen memory (RMRR)"
    ),
    Why.INVALID_REQUEST: Fact("the hardware", "AMD I/O virtualization specification, 2.5.8"),
    Why.HARDWARE: Fact("the hardware", "drivers/iommu/amd/iommu.c; drivers/iommu/intel/dmar.c"),
    Why.UNTRANSLATED: Fact("arm64, Linux 4.5 to 4.20", "arch/arm64/mm/dma-mapping.c"),
    Why.NO_SPACE: Fact("every kernel, of host or guest", "drivers/pci/setup-res.c"),
    Why.BAR_MOVED: Fact("Cloud Hypervisor", "pci/src/bus.rs"),
    Why.BAR_HELD: Fact("every kernel", "vfio_pci_core.c; drivers/firmware/sysfb.c"),
    Why.NO_VIOMMU: Fact("Cloud Hypervisor", "vmm/src/device_manager.rs, MissingVirtualIommu"),
    Why.ACS: Fact("every libvirt", "src/util/virpci.c, virPCIDeviceIsAssignable"),
    Why.UNWOUND: Fact("QEMU before 9.1", "hw/vfio/container.c, vfio_legacy_dma_map"),
    Why.BOUNCE: Fact("every kernel", "kernel/dma/swiotlb.c, kernel/dma/direct.c"),
    Why.TOOLSTACK: Fact("Xen", "tools/libs/light/libxl_pci.c"),
    Why.MEDIATED_ROOM: Fact(
        "Linux 4.10 and later", "drivers/vfio/mdev; available_instances in sysfs"
    ),
    Why.VFIO_USER: Fact("libvfio-user", "lib/dma.c, dma_controller_add_region"),
    Why.VIOMMU_MISS: Fact("Cloud Hypervisor", "virtio-devices/src/iommu.rs"),
    Why.GUEST_DRIVER: Fact(
        "every Windows", "Code 43 of the device manager, CM_PROB_FAILED_POST_START"
    ),
    Why.OTHER: Fact("every kernel", "drivers/vfio/pci"),
}
"""What is known of each cause."""
