# SPDX-License-Identifier: Apache-2.0
"""What the kernel means by an errno: for each call and errno, the causes that it can have.

The tables follow the order of the kernel's own checks, which differs between type1 and iommufd:
type1 looks for an overlap first and for a hole later, iommufd the other way round.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass

SLOT_MAX = ((1 << 31) - 1) << 12
"""Most bytes of one KVM memory slot: KVM_MEM_MAX_NR_PAGES (virt/kvm/kvm_main.c) of 4 KiB."""

OPS = (
    "map",
    "unmap",
    "set-iommu",
    "attach",
    "bind",
    "open",
    "fault",
    "memslot",
    "start",
    "setup",
)
"""What a program may have been doing.

`set-iommu` includes putting a group into a container, `memslot` is KVM's own map call, `start` is
what comes before any of them, and `setup` is one of them that the line does not name.
"""

APIS = ("type1", "iommufd")
"""Kernel interfaces: a VFIO container, or an iommufd."""


class Why(enum.Enum):
    """A cause of a refusal."""

    WIDTH = "beyond the width of the IOMMU"
    HOLE = "a reserved region"
    SEAM = "a seam between two ranges"
    CPU_BITS = "beyond the physical address bits of the CPU"
    SLOT_SIZE = "more than one memory slot takes"
    ALIGNMENT = "not whole pages"
    WRAP = "beyond 2^64"
    ORDER = "called before the IOMMU type was set"
    FLAGS = "a flag or a size that the call does not take"
    OVERLAP = "mapped already"
    ENTRIES = "too many mappings"
    MEMLOCK = "locked memory limit"
    HVA = "memory that cannot be pinned"
    BAR = "device memory, which iommufd does not map by address"
    DIRECT = "firmware demands a 1:1 mapping"
    ISOLATION = "interrupts are not isolated"
    LIVE_MAPS = "mappings in the way of an attach"
    NOT_VIABLE = "another device of the group has a host driver"
    BUSY = "in use"
    ABSENT = "not there"
    COHERENCY = "the IOMMU cannot enforce cache coherency"
    NOT_MAPPED = "nothing mapped there"
    CUT = "the range cuts through a mapping"
    ROOM = "no free IOVA of that size"
    PERMISSION = "not allowed to open it"
    UNMAPPED_DMA = "the device reached for an IOVA that is not mapped"
    REQUESTER = "the IOMMU knows no such device"
    GUEST_BITS = "too few address bits for the guest"
    BACKING = "no memory to back the guest's RAM"
    RLIMIT = "the limit of locked memory may not be raised"
    NO_IOMMU = "no IOMMU"
    VIOMMU_WIDTH = "the guest's IOMMU is wider than the host's"
    VIOMMU_NOTIFY = "the guest's IOMMU does not tell what it maps"
    VIOMMU_PAGES = "the guest's IOMMU has smaller pages than the host's"
    IOVA_MODE = "virtual addresses cannot be IOVAs here"


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that an errno of a call can mean.

    Attributes:
        why: the cause.
        text: one clause that says what the kernel checked.
    """

    why: Why
    text: str


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of a cause, whatever the host.

    Attributes:
        since: since when kernels refuse for it.
        source: where that is written.
    """

    since: str
    source: str


_Table = dict[str, tuple[Rule, ...]]

_HVA = (
    "the pages at the address cannot be had: nothing is mapped there, it is read-only, or what "
    "backs it (hugepages, /dev/shm, a file) has run out"
)

_TYPE1_MAP: _Table = {
    "EINVAL": (
        Rule(Why.ORDER, "before VFIO_SET_IOMMU every map is refused, whatever its address"),
        Rule(Why.FLAGS, "size 0, an unknown flag, or neither READ nor WRITE"),
        Rule(Why.WRAP, "IOVA or address plus size passes 2^64 (EOVERFLOW since Linux 6.18)"),
        Rule(Why.ALIGNMENT, "IOVA, address or size is not a multiple of the smallest IOMMU page"),
        Rule(Why.HOLE, "the range is not wholly inside one range of the kernel's list"),
        Rule(Why.WIDTH, "the range is not wholly inside one range of the kernel's list"),
    ),
    "EOVERFLOW": (Rule(Why.WRAP, "IOVA or address plus size passes 2^64"),),
    "EEXIST": (Rule(Why.OVERLAP, "part of the range is mapped already in this container"),),
    "ENOSPC": (Rule(Why.ENTRIES, "dma_entry_limit mappings exist in this container"),),
    "ENOMEM": (
        Rule(Why.MEMLOCK, "pinning would pass RLIMIT_MEMLOCK and there is no CAP_IPC_LOCK"),
    ),
    "EFAULT": (
        Rule(Why.HVA, _HVA),
        Rule(Why.WIDTH, "the driver found the IOVA beyond its width after the list had let it by"),
    ),
}
_IOMMUFD_MAP: _Table = {
    "EOPNOTSUPP": (Rule(Why.FLAGS, "an unknown flag or a reserved field that is not 0"),),
    "EOVERFLOW": (Rule(Why.WRAP, "IOVA or address plus length passes 2^64"),),
    "EINVAL": (
        Rule(Why.FLAGS, "length 0, or neither READABLE nor WRITEABLE (Linux 6.12)"),
        Rule(Why.ALIGNMENT, "IOVA or length is not a multiple of the IOAS's alignment"),
        Rule(Why.HOLE, "the range touches a reserved part of the IOAS"),
        Rule(Why.WIDTH, "the range touches a reserved part of the IOAS"),
    ),
    "ENOENT": (Rule(Why.ABSENT, "no IOAS has that id"),),
    "EEXIST": (Rule(Why.OVERLAP, "part of the range is mapped already in this IOAS"),),
    "ENOSPC": (Rule(Why.ROOM, "no free IOVA of that size and alignment"),),
    "ENOMEM": (
        Rule(Why.MEMLOCK, "the user's or the process's limit of locked memory, or the cgroup's"),
    ),
    "EFAULT": (
        Rule(Why.BAR, "the address is a device BAR (VM_PFNMAP), which iommufd does not pin"),
        Rule(Why.HVA, _HVA),
    ),
    "EBADF": (Rule(Why.ABSENT, "MAP_FILE: no such file descriptor"),),
}
_TYPE1_UNMAP: _Table = {
    "EINVAL": (
        Rule(Why.CUT, "an end of the range lies inside a mapping; nothing was unmapped"),
        Rule(Why.ALIGNMENT, "IOVA or size is not a multiple of the smallest IOMMU page"),
        Rule(Why.WRAP, "IOVA plus size passes 2^64 (EOVERFLOW since Linux 6.18)"),
        Rule(Why.FLAGS, "size 0 without the ALL flag, or an unknown flag"),
    ),
    "EOVERFLOW": (Rule(Why.WRAP, "IOVA plus size passes 2^64"),),
    "EBUSY": (Rule(Why.BUSY, "VADDR flag while a mediated device is attached"),),
}
_IOMMUFD_UNMAP: _Table = {
    "ENOENT": (
        Rule(Why.NOT_MAPPED, "nothing is mapped in the range"),
        Rule(Why.CUT, "an end of the range lies inside a mapping; lower ones may be gone"),
    ),
    "EINVAL": (Rule(Why.FLAGS, "length 0"),),
    "EOVERFLOW": (Rule(Why.WRAP, "IOVA plus length passes 2^64"),),
    "EBUSY": (Rule(Why.BUSY, "a map or unmap of the same range is under way"),),
}
_ATTACH: _Table = {
    "EINVAL": (
        Rule(Why.DIRECT, "a device of the group has a direct region, so it cannot be claimed"),
        Rule(Why.LIVE_MAPS, "the group's aperture or regions conflict with live mappings"),
        Rule(Why.ORDER, "VFIO_SET_IOMMU without a group, or a second time"),
    ),
    "EPERM": (
        Rule(Why.ISOLATION, "the platform cannot isolate MSIs and allow_unsafe_interrupts is N"),
        Rule(Why.DIRECT, "VT-d before Linux 6.8 refuses a device with an RMRR in this way"),
    ),
    "EADDRINUSE": (
        Rule(Why.LIVE_MAPS, "a mapping or ALLOW range lies where the device has a hole"),
    ),
    "EBUSY": (Rule(Why.BUSY, "a device of the group has a host driver, or is open elsewhere"),),
    "ENODEV": (Rule(Why.ABSENT, "no IOMMU backend of that type, or the group is gone"),),
    "ENOENT": (Rule(Why.ABSENT, "no IOAS or HWPT has that id"),),
    "EBADF": (Rule(Why.ABSENT, "the descriptor is no container"),),
}
_BIND: _Table = {
    "EINVAL": (
        Rule(Why.DIRECT, "the device has a direct region, so it cannot be claimed"),
        Rule(Why.COHERENCY, "the IOMMU does not enforce cache coherency"),
        Rule(Why.ORDER, "bound already, or the descriptor is no iommufd"),
    ),
    "EPERM": (
        Rule(Why.ISOLATION, "the platform cannot isolate MSIs and allow_unsafe_interrupts is N"),
    ),
    "EBUSY": (Rule(Why.BUSY, "the device's group is open by the legacy interface"),),
    "EBADF": (Rule(Why.ABSENT, "the descriptor is no iommufd"),),
}
_OPEN: _Table = {
    "EBUSY": (Rule(Why.BUSY, "the group, or its device's own node, is open already"),),
    "EPERM": (
        Rule(
            Why.PERMISSION,
            "a device cgroup (container, libvirt) keeps the node away, or the group is a no-IOMMU "
            "one and CAP_SYS_RAWIO is missing",
        ),
    ),
    "EINVAL": (Rule(Why.ORDER, "VFIO_GROUP_GET_DEVICE_FD of a group that is in no container"),),
    "EACCES": (Rule(Why.PERMISSION, "the node belongs to another user"),),
    "ENODEV": (Rule(Why.ABSENT, "no device of the group is bound to a VFIO driver"),),
    "ENOENT": (
        Rule(
            Why.ABSENT,
            "there is no such node: no device of the group is bound to a VFIO driver, or the "
            "module (vfio, iommufd) is not loaded",
        ),
    ),
}
_FAULT: _Table = {
    "": (
        Rule(Why.HOLE, "the address is in a hole of the host, where nothing can be mapped"),
        Rule(Why.WIDTH, "the address is beyond the width of the IOMMU"),
        Rule(Why.UNMAPPED_DMA, "the IOMMU found no mapping, or not with that access"),
        Rule(Why.REQUESTER, "the requester's id has no context entry: it is in no domain"),
    )
}
_MEMSLOT: _Table = {
    "EINVAL": (
        Rule(Why.CPU_BITS, "the slot ends beyond the physical address bits of the host's CPU"),
        Rule(Why.ALIGNMENT, "guest address, size or address is not whole pages of the host"),
        Rule(Why.WRAP, "guest address plus size passes 2^64"),
        Rule(Why.SLOT_SIZE, "the slot has more than 2^31-1 pages of 4 KiB, so 8 TiB or more"),
    ),
    "EFAULT": (Rule(Why.CPU_BITS, "arm64: the slot ends beyond the IPA size of the guest"),),
    "EEXIST": (Rule(Why.OVERLAP, "another slot has part of these guest addresses"),),
    "ENOMEM": (Rule(Why.BACKING, "the kernel had no memory for the slot"),),
}
_START: _Table = {
    "": (
        Rule(Why.GUEST_BITS, "RAM and the 64-bit PCI window end beyond the guest's addresses"),
        Rule(Why.BACKING, "memory or hugepages for the guest's RAM are missing"),
        Rule(Why.RLIMIT, "raising RLIMIT_MEMLOCK needs CAP_SYS_RESOURCE"),
        Rule(Why.NO_IOMMU, "the IOMMU is off in the firmware or in the kernel"),
        Rule(Why.VIOMMU_WIDTH, "the guest's IOMMU has more address bits than the host's"),
        Rule(Why.VIOMMU_NOTIFY, "VFIO must be told of every map of the guest's IOMMU"),
        Rule(Why.VIOMMU_PAGES, "the guest's IOMMU has smaller pages than the host's"),
        Rule(Why.IOVA_MODE, "the IOMMU, or the driver, cannot take virtual addresses as IOVAs"),
        Rule(Why.ALIGNMENT, "part of it is not whole pages of the host, so it is not mapped"),
    )
}


def _merged(*tables: _Table) -> _Table:
    found: _Table = {}
    for table in tables:
        for name, rules in table.items():
            found[name] = (*found.get(name, ()), *rules)
    return found


TABLES: dict[tuple[str, str], _Table] = {
    ("map", "type1"): _TYPE1_MAP,
    ("map", "iommufd"): _IOMMUFD_MAP,
    ("unmap", "type1"): _TYPE1_UNMAP,
    ("unmap", "iommufd"): _IOMMUFD_UNMAP,
    ("set-iommu", "type1"): _ATTACH,
    ("attach", "type1"): _ATTACH,
    ("attach", "iommufd"): _ATTACH,
    ("bind", "iommufd"): _BIND,
    ("open", "type1"): _OPEN,
    ("open", "iommufd"): _OPEN,
    ("fault", "type1"): _FAULT,
    ("memslot", "type1"): _MEMSLOT,
    ("start", "type1"): _START,
    ("setup", "type1"): _merged(_TYPE1_MAP, _ATTACH, _OPEN),
    ("setup", "iommufd"): _merged(_IOMMUFD_MAP, _ATTACH, _BIND, _OPEN),
}
"""(call, interface) -> errno -> rules, in the order of the kernel's checks.

Source: drivers/vfio/vfio_iommu_type1.c, vfio_dma_do_map, vfio_dma_do_unmap and attach_group;
drivers/vfio/container.c; drivers/iommu/iommufd/ioas.c, io_pagetable.c and device.c;
drivers/vfio/device_cdev.c; arch/x86/kvm/x86.c and arch/arm64/kvm/mmu.c,
kvm_arch_prepare_memory_region (Linux 7.3, and the older ones that `since` names).
"""

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
}
"""What is known of each cause."""


def errno_name(number: int) -> str:
    """Return the name of a Linux errno, or the number as text."""
    return _LINUX.get(abs(number)) or errno.errorcode.get(abs(number), str(abs(number)))


# The numbers of Linux on x86, arm64, s390 and riscv (include/uapi/asm-generic/errno-base.h and
# errno.h): a report is explained on any laptop, whose own numbers may differ.
_LINUX = {
    1: "EPERM",
    2: "ENOENT",
    5: "EIO",
    7: "E2BIG",
    9: "EBADF",
    11: "EAGAIN",
    12: "ENOMEM",
    13: "EACCES",
    14: "EFAULT",
    16: "EBUSY",
    17: "EEXIST",
    19: "ENODEV",
    22: "EINVAL",
    25: "ENOTTY",
    28: "ENOSPC",
    75: "EOVERFLOW",
    77: "EBADFD",
    90: "EMSGSIZE",
    95: "EOPNOTSUPP",
    98: "EADDRINUSE",
}
_WORDS = {
    "operation not permitted": "EPERM",
    "no such file or directory": "ENOENT",
    "input/output error": "EIO",
    "bad file descriptor": "EBADF",
    "cannot allocate memory": "ENOMEM",
    "out of memory": "ENOMEM",
    "permission denied": "EACCES",
    "bad address": "EFAULT",
    "device or resource busy": "EBUSY",
    "resource busy": "EBUSY",
    "file exists": "EEXIST",
    "no such device": "ENODEV",
    "invalid argument": "EINVAL",
    "inappropriate ioctl for device": "ENOTTY",
    "no space left on device": "ENOSPC",
    "value too large for defined data type": "EOVERFLOW",
    "operation not supported": "EOPNOTSUPP",
    "address already in use": "EADDRINUSE",
}
NAMES = frozenset(_LINUX.values())
"""Names of errnos that these calls return."""


def errno_of_words(text: str) -> str | None:
    """Return the errno whose words (as strerror has them) stand in a text, or None."""
    lower = text.lower()
    return next((name for words, name in _WORDS.items() if words in lower), None)


def rules_for(op: str, api: str | None, name: str | None) -> tuple[Rule, ...]:
    """Return what an errno of a call can mean; for an unknown interface or errno, all of them.

    Complexity: O(rules).
    """
    found: dict[tuple[Why, str], Rule] = {}
    for (call, interface), table in TABLES.items():
        if call != op or (api is not None and interface != api):
            continue
        for errno_, rules in table.items():
            if name is None or errno_ in (name, ""):
                found.update({(rule.why, rule.text): rule for rule in rules})
    return tuple(found.values())
