# SPDX-License-Identifier: Apache-2.0
"""What the kernel means by an errno: for each call and errno, the causes that it can have.

The tables follow the order of the kernel's own checks, which differs between type1 and iommufd:
type1 looks for an overlap first and for a hole later, iommufd the other way round.
"""

from __future__ import annotations

from vmm_iova.diagnosis.why import Api, Op, Why
from vmm_iova.record import record

SLOT_MAX = ((1 << 31) - 1) << 12
"""Most bytes of one KVM memory slot: KVM_MEM_MAX_NR_PAGES (virt/kvm/kvm_main.c) of 4 KiB."""


@record
class Rule:
    """One thing that an errno of a call can mean.

    Attributes:
        why: the cause.
        text: one clause that says what the kernel checked.
    """

    why: Why
    text: str


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
_ISOLATION = Rule(
    Why.ISOLATION, "the platform cannot isolate MSIs and allow_unsafe_interrupts is N"
)
_RMRR = Rule(Why.DIRECT, "VT-d before Linux 6.8 refuses a device with an RMRR in this way")
_TYPE1_ATTACH: _Table = {
    "EINVAL": (
        Rule(Why.DIRECT, "a device of the group has a direct region, so it cannot be claimed"),
        Rule(Why.LIVE_MAPS, "the group's aperture or regions conflict with live mappings"),
        Rule(Why.ORDER, "the group is in a container already"),
    ),
    "EPERM": (_ISOLATION, _RMRR),
    "EBUSY": (Rule(Why.NOT_VIABLE, "a device of the group has a host driver"),),
    "ENODEV": (Rule(Why.ABSENT, "the group is gone"),),
    "EBADF": (Rule(Why.ABSENT, "the descriptor is no container"),),
    "ENOTTY": (
        Rule(Why.FOREIGN_FILE, "the file is no VFIO group, or the kernel has no VFIO groups"),
    ),
}
_TYPE1_SET: _Table = {
    "EINVAL": (
        Rule(Why.DIRECT, "a device of the group has a direct region, so it cannot be claimed"),
        Rule(Why.ORDER, "no group is in the container, or the type is set already"),
    ),
    "EPERM": (_ISOLATION, _RMRR),
    "EBUSY": (Rule(Why.BUSY, "a device of the group is used by a host driver"),),
    "ENODEV": (Rule(Why.ABSENT, "no IOMMU backend of that type: vfio_iommu_type1 is not loaded"),),
    "EIO": (
        Rule(
            Why.NO_DOMAIN,
            "no domain could be made for the device's bus: its IOMMU is off, or a mediated "
            "device's module is not loaded",
        ),
    ),
    "ENOTTY": (Rule(Why.FOREIGN_FILE, "the file is no VFIO container"),),
}
_IOMMUFD_ATTACH: _Table = {
    "EINVAL": (
        Rule(Why.DIRECT, "the device has a direct region, so it cannot be claimed"),
        Rule(Why.LIVE_MAPS, "the device's IOMMU does not take the page table of the others"),
    ),
    "EPERM": (_ISOLATION,),
    "EADDRINUSE": (
        Rule(Why.LIVE_MAPS, "a mapping or ALLOW range lies where the device has a hole"),
    ),
    "EBUSY": (Rule(Why.BUSY, "the device is attached to something else"),),
    "ENOENT": (Rule(Why.ABSENT, "no IOAS or HWPT has that id"),),
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
_GET_DEVICE: _Table = {
    "EINVAL": (Rule(Why.ORDER, "the group is in no container, or its IOMMU type is not set"),),
    "ENODEV": (Rule(Why.UNBOUND, "no device of that name in the group is bound to VFIO"),),
    "EBUSY": (Rule(Why.BUSY, "the device is open already"),),
    "EPERM": (Rule(Why.PERMISSION, "a no-IOMMU group needs CAP_SYS_RAWIO"),),
    "EIO": (Rule(Why.MEDIATED, "the device's own driver failed to open it"),),
    "ENOTTY": (
        Rule(Why.MEDIATED, "the device's own driver answered its opening so"),
        Rule(Why.FOREIGN_FILE, "the file is no VFIO group"),
    ),
}
_PROBE: _Table = {
    "EINVAL": (Rule(Why.NO_GROUP, "the device is in no IOMMU group, and vfio-pci takes no other"),),
    "ENODEV": (
        Rule(Why.NO_GROUP, "the device is in no IOMMU group, and vfio-pci takes no other"),
        Rule(
            Why.UNMATCHED,
            "vfio-pci was told of no such device (driver_override or new_id), or the address is "
            "wrong",
        ),
    ),
    "EBUSY": (Rule(Why.NOT_VIABLE, "a host driver still has the device, or another of its group"),),
    "EPERM": (Rule(Why.PERMISSION, "the kernel is locked down, or the user is not root"),),
}
_BAR: _Table = {
    "": (
        Rule(Why.NO_SPACE, "no window of the bridge, or of the host bridge, has room for the BAR"),
        Rule(Why.BAR_MOVED, "the address that the guest wrote lies outside of the window"),
    )
}
_FAULT: _Table = {
    "": (
        Rule(Why.HOLE, "the address is in a hole of the host, where nothing can be mapped"),
        Rule(Why.WIDTH, "the address is beyond the width of the IOMMU"),
        Rule(Why.UNMAPPED_DMA, "the IOMMU found no mapping, or not with that access"),
        Rule(Why.REQUESTER, "the requester's id has no context entry: it is in no domain"),
        Rule(Why.GRAPHICS, "the address is the graphics' own stolen memory"),
        Rule(Why.INVALID_REQUEST, "the address or the kind of access is not one for translation"),
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
        Rule(
            Why.NO_IOMMU,
            "the IOMMU is off in the firmware or in the kernel, or the machine has none",
        ),
        Rule(Why.NO_GROUP, "the device is in no IOMMU group"),
        Rule(Why.MEDIATED_GROUP, "the mediated device was not made, or its module is not loaded"),
        Rule(Why.OUTSIDE, "QEMU itself found the range in none of the kernel's usable ranges"),
        Rule(Why.SHARED_GROUP, "QEMU gives a group to one address space only"),
        Rule(Why.NO_VIOMMU, "the device asks for an IOMMU in the guest, which has none"),
        Rule(Why.ACS, "libvirt assigns no device behind a switch that does not isolate"),
        Rule(Why.HARDWARE, "a command to the IOMMU or to a device was not answered"),
        Rule(Why.UNTRANSLATED, "the kernel could not set the IOMMU up for the device"),
        Rule(Why.BOUNCE, "the driver's device does not reach its memory, and copies found no room"),
        Rule(Why.TOOLSTACK, "libxl tells only that adding the device failed"),
        Rule(Why.MEDIATED_ROOM, "the driver has no instance of that type left"),
        Rule(Why.VFIO_USER, "the region overlaps one that the server has, or is one too many"),
        Rule(Why.VIOMMU_MISS, "the VMM looked the address up, and found nothing"),
        Rule(
            Why.GUEST_DRIVER,
            "the driver in the guest reports its failure to the guest, and the host is not told",
        ),
        Rule(Why.OTHER, "it is about the device, not about addresses"),
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


TABLES: dict[tuple[str, str], _Table] = {  # StrEnums are equal to their values
    ("map", "type1"): _TYPE1_MAP,
    ("map", "iommufd"): _IOMMUFD_MAP,
    ("unmap", "type1"): _TYPE1_UNMAP,
    ("unmap", "iommufd"): _IOMMUFD_UNMAP,
    ("set-iommu", "type1"): _TYPE1_SET,
    ("attach", "type1"): _TYPE1_ATTACH,
    ("attach", "iommufd"): _IOMMUFD_ATTACH,
    ("bind", "iommufd"): _BIND,
    ("get-device", "type1"): _GET_DEVICE,
    ("open", "type1"): _OPEN,
    ("open", "iommufd"): _OPEN,
    ("probe", "type1"): _PROBE,
    ("fault", "type1"): _FAULT,
    ("memslot", "type1"): _MEMSLOT,
    ("bar", "type1"): _BAR,
    ("start", "type1"): _START,
    ("setup", "type1"): _merged(_TYPE1_ATTACH, _TYPE1_SET, _GET_DEVICE, _OPEN),
    ("setup", "iommufd"): _merged(_IOMMUFD_ATTACH, _BIND, _OPEN),
}
"""(call, interface) -> errno -> rules, in the order of the kernel's checks.

Source: drivers/vfio/vfio_iommu_type1.c, vfio_dma_do_map, vfio_dma_do_unmap and attach_group;
drivers/vfio/container.c; drivers/iommu/iommufd/ioas.c, io_pagetable.c and device.c;
drivers/vfio/device_cdev.c; arch/x86/kvm/x86.c and arch/arm64/kvm/mmu.c,
kvm_arch_prepare_memory_region (Linux 7.3, and the older ones that `since` names).
"""


def rules_for(op: Op, api: Api | None, name: str | None) -> tuple[Rule, ...]:
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
