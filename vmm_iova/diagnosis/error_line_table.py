# SPDX-License-Identifier: Apache-2.0
"""The forms in which programs and the kernel print that something failed: one table.

Each form is the line as the program prints it, in the language of `error_line_matcher`; it is
compiled when the first text is read. To teach the program a line, add it here: where it is printed
stands beside.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from vmm_iova.diagnosis.error_line_matcher import Match, Template
from vmm_iova.diagnosis.why import Api, Op, Part, Why
from vmm_iova.record import record

if TYPE_CHECKING:
    from vmm_iova.diagnosis.error_line_matcher import Tally


@record
class Form:
    """One thing that programs print.

    Attributes:
        templates: the line, and other ways to say the same; places are `iova`, `size`, `hva`,
            `last` of a range, `addr` of a fault, `dev`, `group`, `node`, `errno_`, and `bits`,
            `limit`, `bar`.
        op: what failed.
        api: interface, or None.
        program: who prints it, or None.
        part: what was to be mapped, or None.
        errno: the errno that it implies, where it prints none.
        sign: what the words settle, or None.
        echo: True if it only repeats, without numbers, that another call failed.
        warning: True if whoever prints it goes on: nothing has failed for good.
        node: the node that it is about, where the line does not name it.
        likely: True if the words settle less than their sign: it is likely, not certain.
    """

    templates: tuple[str, ...]
    op: Op
    api: Api | None = None
    program: str | None = None
    part: Part | None = None
    errno: str | None = None
    sign: Why | None = None
    echo: bool = False
    warning: bool = False
    node: str | None = None
    likely: bool = False


def _form(
    *templates: str,
    op: Op,
    api: Api | None = None,
    program: str | None = None,
    part: Part | None = None,
    errno: str | None = None,
    sign: Why | None = None,
    echo: bool = False,
    warning: bool = False,
    node: str | None = None,
    likely: bool = False,
) -> Form:
    return Form(templates, op, api, program, part, errno, sign, echo, warning, node, likely)


_TYPE1, _IOMMUFD = Api.TYPE1, Api.IOMMUFD
_KERNEL, _QEMU, _CH, _DPDK, _SPDK = "kernel", "QEMU", "Cloud Hypervisor", "DPDK", "SPDK"
_XEN = "Xen"

# fmt: off
FORMS = (
    # The kernel's log: drivers/iommu, drivers/vfio.
    _form("iommu width ({bits:d}) is not sufficient for the mapped address ({iova:x})", op=Op.MAP,
          api=_TYPE1, program=_KERNEL, errno="EFAULT", sign=Why.WIDTH),
    _form("rlimit_memlock ({limit:d}) exceeded", "rlimit_memlock exceeded", op=Op.MAP, api=_TYPE1,
          program=_KERNEL, errno="ENOMEM", sign=Why.MEMLOCK),
    _form("firmware has requested this device have a 1:1 iommu mapping", op=Op.ATTACH,
          program=_KERNEL, errno="EINVAL", sign=Why.DIRECT),
    _form("ineligible for iommu domain attach due to platform rmrr", op=Op.ATTACH,
          program=_KERNEL, errno="EPERM", sign=Why.DIRECT),
    _form("no interrupt remapping support", "no interrupt remapping for this platform",
          "msi interrupts are not secure", op=Op.ATTACH, program=_KERNEL, errno="EPERM",
          sign=Why.ISOLATION),
    # Faults: dmar.c, amd/iommu.c, arm-smmu*.c, riscv/iommu.c; Xen's own VT-d driver.
    _form("dmar ... fault addr {addr:x} ... present bit in root entry is clear",
          "dmar ... fault addr {addr:x} ... present bit in context entry is clear",
          "dmar ... fault addr {addr:x} ... invalid context entry", op=Op.FAULT, program=_KERNEL,
          sign=Why.REQUESTER),
    _form("dmar ... fault addr {addr:x}", "dmar ... request device ... fault addr", op=Op.FAULT,
          program=_KERNEL),
    _form("invalid_device_request ... address={addr}", op=Op.FAULT, program=_KERNEL,
          sign=Why.INVALID_REQUEST),
    _form("io_page_fault ... address={addr}", op=Op.FAULT, program=_KERNEL),
    _form("illegal_dev_table_entry ... address={addr}", op=Op.FAULT, program=_KERNEL,
          sign=Why.REQUESTER),
    _form("amd-vi: completion-wait loop timed out", "iotlb_inv_timeout", "command_hardware_error",
          "dev_tab_hardware_error", "page_tab_hardware_error",
          "dmar ... invalidation time-out error", op=Op.START, program=_KERNEL,
          sign=Why.HARDWARE),
    _form("arm-smmu ... c_bad_streamid", "arm-smmu ... f_stream_disabled",
          "arm-smmu ... blocked unknown stream id", "arm-smmu ... event 0x02 received",
          "arm-smmu ... event 0x06 received", op=Op.FAULT, program=_KERNEL, sign=Why.REQUESTER),
    _form("arm-smmu ... iova={addr}", "arm-smmu ... iova: {addr}", op=Op.FAULT, program=_KERNEL),
    # arm-smmu-v3 before Linux 6.15: four words follow, a line each, the third is the address.
    _form("arm-smmu-v3 ... event 0x10 received", "arm-smmu-v3 ... event 0x11 received",
          "arm-smmu-v3 ... event 0x12 received", "arm-smmu-v3 ... event 0x13 received",
          op=Op.FAULT, program=_KERNEL),
    _form("fault {n:d} ... devid: {w:w} iotval: {addr:x} iotval2:", op=Op.FAULT, program=_KERNEL),
    _form("failed to set up iommu for device {dev}; retaining platform dma ops", op=Op.START,
          program=_KERNEL, sign=Why.UNTRANSLATED),
    # VFIO's own drivers and sysfs.
    _form("vfio-pci {dev}: probe with driver vfio-pci failed with error -{errno_:d}",
          "vfio-pci: probe of {dev} failed with error -{errno_:d}",
          "vfio-pci {dev}: probe of {w:w} failed with error -{errno_:d}", op=Op.PROBE,
          program=_KERNEL),
    _form("failed to register vfio group", "device is not in an iommu group", op=Op.PROBE,
          program=_KERNEL, errno="EINVAL", sign=Why.NO_GROUP),
    _form("drivers/vfio-pci/bind", "drivers/vfio-pci/new_id", "error writing to bind file",
          "write error: no such device", "echo: write error: invalid argument", op=Op.PROBE),
    _form("notifier failed for iova={iova:x} vaddr={hva:x} size={size:x}", op=Op.MAP, api=_TYPE1,
          program=_KERNEL, sign=Why.MEDIATED),
    _form("can't reserve [mem", "bar {bar:d} [mem ... can't reserve", op=Op.OPEN, program=_KERNEL,
          sign=Why.BAR_HELD, warning=True),
    # BARs that found no place: drivers/pci/setup-res.c of host or guest, NVIDIA's driver.
    _form("bar {bar:d}: no space for [mem size {size}",
          "bar {bar:d}: failed to assign [mem size {size}",
          "bar {bar:d} [mem size {size} ... can't assign; no space",
          "bar {bar:d} [mem size {size} ... failed to assign", "no space for [mem size {size}",
          "failed to assign [mem size {size}",
          "bridge window [mem size {size} ... can't assign; no space", op=Op.BAR, program=_KERNEL,
          part=Part.BAR, sign=Why.NO_SPACE),
    _form("nvrm: bar{bar:d} is 0m @ 0x0 (pci:{dev}", "nvrm: bar{bar:d} is 0m @ 0x0",
          "this pci i/o region assigned to your nvidia device is invalid", op=Op.BAR,
          program=_KERNEL, part=Part.BAR, sign=Why.NO_SPACE),
    # Windows' device manager: CM_PROB_NORMAL_CONFLICT, CM_PROB_FAILED_POST_START.
    _form("cannot find enough free resources that it can use", "(code 12)", op=Op.BAR,
          part=Part.BAR, sign=Why.NO_SPACE, likely=True),
    _form("(code 43)", "windows ... code 43", "nvidia ... code 43", "gpu ... code 43",
          "device manager ... code 43", op=Op.START, sign=Why.GUEST_DRIVER, likely=True),
    _form("failed moving device bar: failed allocating new mmio range: {iova}->{to}({size})",
          "failed moving device bar",
          op=Op.BAR, program=_CH, part=Part.BAR, sign=Why.BAR_MOVED),
    # KVM's own map call, as QEMU (accel/kvm/kvm-all.c), Cloud Hypervisor and Firecracker say it.
    _form("kvm_set_user_memory_region failed, slot={n:d}, start={iova}, size={size}",
          "kvm_set_user_memory_region2 failed, slot={n:d}, start={iova}, size={size}",
          op=Op.MEMSLOT, program=_QEMU),
    _form("kvm_set_user_memory_region failed", "kvm_set_user_memory_region2 failed",
          "createusermemory(", "createusermemoryregion(", "failed to set kvm user memory region",
          "failed to create user memory region", op=Op.MEMSLOT),
    # QEMU: hw/vfio/container.c, listener.c, iommufd.c, pci.c; backends/iommufd.c.
    # util/vfio-helpers.c, its own NVMe driver: address in the process, and size.
    _form("qemu_vfio_dma_map ({hva}, {size:d}) failed", op=Op.MAP, api=_TYPE1, program=_QEMU),
    _form("vfio_container_dma_map ({ptr:p}, {iova}, {size}, {hva})",
          "vfio_legacy_dma_map ({ptr:p}, {iova}, {size}, {hva})",
          "vfio_dma_map ({ptr:p}, {iova}, {size}, {hva})",
          "vfio_container_dma_map ({ptr:p}, {iova}, {size}",
          "vfio_dma_map ({ptr:p}, {iova}, {size}", op=Op.MAP, program=_QEMU),
    _form("vfio_container_dma_unmap ({ptr:p}, {iova}, {size})",
          "vfio_legacy_dma_unmap ({ptr:p}, {iova}, {size})",
          "vfio_dma_unmap ({ptr:p}, {iova}, {size})", op=Op.UNMAP, program=_QEMU),
    _form("pci peer-to-peer transactions on bars are not supported", op=Op.MAP, program=_QEMU,
          part=Part.BAR, sign=Why.PEER, warning=True),
    _form("received unaligned region {w:w} iova={iova}", "received unaligned region",
          "region {iova}..{last} is not aligned to {n} and cannot be mapped for dma", op=Op.START,
          program=_QEMU, sign=Why.ALIGNMENT, warning=True),
    _form("can't map guest iova region {iova}..{last}",
          "can't map guest iova region {iova} - {last}", "can't map guest iova region",
          op=Op.START, program=_QEMU, sign=Why.OUTSIDE),
    _form("group {group:d} used in multiple address spaces", op=Op.START, program=_QEMU,
          sign=Why.SHARED_GROUP),
    _form("pci bar?", op=Op.MAP, api=_IOMMUFD, part=Part.BAR, errno="EFAULT", sign=Why.BAR),
    _form("iommu_ioas_map failed", "iommu_ioas_map_file failed", op=Op.MAP, api=_IOMMUFD),
    _form("iommu_ioas_unmap failed", op=Op.UNMAP, api=_IOMMUFD),
    _form("vfio_map_dma failed", "vfio_map_dma:", op=Op.MAP, api=_TYPE1),
    _form("vfio_unmap_dma failed", "vfio_unmap_dma:", op=Op.UNMAP, api=_TYPE1),
    _form("group {group:d} is not viable", "vfio group is not viable", "groupviable",
          "group is inviable", "group {group:d} has devices not bound to vfio", op=Op.OPEN,
          sign=Why.NOT_VIABLE),
    # DPDK, lib/eal/linux/eal_vfio.c
    _form("cannot add vfio group to container, error {errno_:d}",
          "cannot add vfio group to container", op=Op.ATTACH, api=_TYPE1, program=_DPDK),
    _form("failed to select iommu type, error {errno_:d}",
          "cannot set iommu type, error {errno_:d}",
          "set iommu type {n:d} ({w:w}) failed, error {errno_:d}", op=Op.SET_IOMMU, api=_TYPE1,
          program=_DPDK),
    _form("failed to set iommu for container", op=Op.SET_IOMMU, api=_TYPE1),
    _form("failed to set group container", op=Op.ATTACH, api=_TYPE1, program=_QEMU),
    _form("error getting device from group {group:d}", op=Op.GET_DEVICE, api=_TYPE1,
          program=_QEMU),
    _form("error bind device fd={w:w} to iommufd", op=Op.BIND, api=_IOMMUFD, program=_QEMU),
    _form("error attach {dev} ({n:w}) to id=", op=Op.ATTACH, api=_IOMMUFD, program=_QEMU),
    _form("running out of dma mappings", op=Op.MAP, api=_TYPE1, program=_QEMU, sign=Why.ENTRIES,
          warning=True),
    _form("address space limit {top} < {last} ... phys-bits too low", op=Op.START, program=_QEMU,
          sign=Why.GUEST_BITS),
    _form("cannot set up guest memory", "unable to map backing store for guest ram", op=Op.START,
          program=_QEMU, sign=Why.BACKING),
    _form("aw-bits {n:d} > host aw-bits", op=Op.START, program=_QEMU, sign=Why.VIOMMU_WIDTH),
    _form("requires caching mode", "without enabling caching-mode", "requires iommu map notifier",
          "which is currently not supported by this iommu", op=Op.START, program=_QEMU,
          sign=Why.VIOMMU_NOTIFY),
    _form("does not support frozen granule", "page mask {n} is incompatible with mask",
          op=Op.START, program=_QEMU, sign=Why.VIOMMU_PAGES),
    _form("/mdev/devices/ ... iommu_group", op=Op.START, sign=Why.MEDIATED_GROUP),
    _form("no iommu_group found", "no available iommu models", "vfionoiommugroup",
          "vfio no iommu group", "host doesn't support passthrough", "host doesn't support vfio",
          "cannot prepare pci pass-through, iommu not present",
          "cannot prepare pci passthrough, iommu not present", "no iommu detected", op=Op.START,
          sign=Why.NO_IOMMU),
    _form("/dev/vfio/devices/ ... no such file", "couldn't open directory ... vfio-dev",
          "no vfio-dev", op=Op.OPEN, api=_IOMMUFD, errno="ENOENT", sign=Why.NO_CDEV),
    # The folder of a device below its driver is not there either while it is not bound to it.
    _form("/drivers/vfio-pci/{dev}/iommu_group ... no such file", op=Op.OPEN, sign=Why.UNBOUND,
          likely=True),
    _form("iommu_group ... no such file or directory", "iommu_group is not a symlink",
          "failed to read iommu group", "failed to get iommu group", "no iommu group",
          op=Op.START, sign=Why.NO_GROUP),
    # libvirt: src/util/virprocess.c, virpci.c, virhostdev.c; Proxmox: PVE/QemuServer/PCI.pm.
    _form("cannot limit locked memory of process {n:d} to {size:d}",
          "cannot limit locked memory of process to {size:d}", "cannot limit locked memory",
          op=Op.START, program="libvirt", sign=Why.RLIMIT),
    _form("lacking acs and cannot be assigned", op=Op.START, program="libvirt", sign=Why.ACS),
    _form("is in use by driver qemu, domain", "is already in use by domain", op=Op.OPEN,
          sign=Why.BUSY),
    _form("is not bound to vfio-pci", "not managed by vfio driver, skipping",
          "device is not bound to a vfio driver", op=Op.OPEN, sign=Why.UNBOUND),
    # rust-vmm vfio-ioctls: Cloud Hypervisor, crosvm, Kata, Dragonball.
    _form("iommudmamap", "failed to add guest memory map into iommu table", op=Op.MAP,
          api=_TYPE1),
    _form("failed to remove all guest memory regions from iommu table", op=Op.UNMAP, api=_TYPE1,
          program=_CH, warning=True),
    _form("iommudmaunmap", "failed to remove guest memory map from iommu table", op=Op.UNMAP,
          api=_TYPE1),
    # crosvm and other Rust programs: the errno in words, then keys.
    _form("failed to map: ... iova", "failed to map iova", "failed to dma map iova", op=Op.MAP),
    _form("failed to map an iova range to the ioas", op=Op.MAP, api=_IOMMUFD),
    _form("failed to unmap an iova range from the ioas", op=Op.UNMAP, api=_IOMMUFD),
    _form("containersetiommu", "failed to set container's iommu driver", op=Op.SET_IOMMU,
          api=_TYPE1),
    _form("groupsetcontainer", "failed to add the group into vfio container",
          "failed to add group into vfio container", op=Op.ATTACH, api=_TYPE1),
    _form("missingvirtualiommu", op=Op.START, program=_CH, sign=Why.NO_VIOMMU),
    # Firecracker.
    _form("failed to map guest memory [{iova}, {last}] for dma", op=Op.MAP, api=_TYPE1,
          program="Firecracker", part=Part.RAM),
    _form("failed to map guest memory into iommu", op=Op.MAP, api=_TYPE1, part=Part.RAM),
    # kvmtool (vfio/core.c, kvm.c).
    _form("failed to map {iova} -> {hva} ({size:d}) for dma", op=Op.MAP, api=_TYPE1,
          program="kvmtool", part=Part.RAM),
    _form("ram region [{iova:x}-{last:x}] would overlap reserved region",
          "would overlap ram region [{iova:x}-{last:x}]", op=Op.MAP, api=_TYPE1,
          program="kvmtool", part=Part.RAM, errno="EINVAL", sign=Why.HOLE),
    # DPDK: lib/eal/linux/eal_vfio.c, common/eal_common_memory.c; SPDK: env_dpdk/memory.c.
    _form("expecting 'pa' iova mode but current mode is 'va'", op=Op.START, program=_DPDK,
          sign=Why.IOVA_MODE),
    _form("memseg iova {iova:x}, len {size:x}, out of range", op=Op.MAP, api=_TYPE1,
          program=_DPDK, errno="EINVAL"),
    _form("unexpected size {n:d} of dma remapping cleared", op=Op.UNMAP, api=_TYPE1,
          program=_DPDK, sign=Why.NOT_MAPPED),
    _form("vfio support not initialized", op=Op.MAP, api=_TYPE1, program=_DPDK, sign=Why.ORDER),
    _form("couldn't map new region for dma", op=Op.MAP, api=_TYPE1, program=_DPDK),
    _form("dma_map vaddr: {hva}, iova: {iova}, size: {size}, ret", op=Op.MAP, api=_TYPE1,
          program=_DPDK),
    _form("dma_unmap iova: {iova}, size: {n}, ret", op=Op.UNMAP, api=_TYPE1, program=_DPDK),
    _form("map region region vaddr={hva} phys_addr={iova} len={size}",
          "map region vaddr={hva} phys_addr={iova} len={size}",
          "vaddr={hva} phys_addr={iova} len={size}", op=Op.MAP, api=_TYPE1, program=_SPDK),
    _form("cannot open vfio container, error {errno_:d}", op=Op.OPEN, program=_DPDK,
          node="/dev/vfio/vfio"),
    _form("cannot set up dma remapping", "dma remapping failed", op=Op.MAP, api=_TYPE1,
          program=_DPDK),
    _form("cannot clear dma remapping", op=Op.UNMAP, api=_TYPE1, program=_DPDK),
    _form("cannot set up dma mapping", op=Op.MAP, api=_TYPE1, program=_SPDK),
    _form("cannot clear dma mapping", op=Op.UNMAP, api=_TYPE1, program=_SPDK),
    # libvfn, libevpl, OpenVMM, strace, and programs that name the ioctl.
    _form("failed to map dma memory", op=Op.MAP, api=_TYPE1, program="libevpl"),
    _form("failed to map dma", op=Op.MAP, program="libvfn"),
    _form("iommufd ioas dma map failed", op=Op.MAP, api=_IOMMUFD, program="OpenVMM",
          part=Part.RAM),
    _form("vfio_iommu_map_dma", op=Op.MAP, api=_TYPE1),
    _form("kvm_set_user_memory_region", op=Op.MEMSLOT),
    _form("vfio_iommu_unmap_dma", op=Op.UNMAP, api=_TYPE1),
    _form("iommu_ioas_map", op=Op.MAP, api=_IOMMUFD),
    _form("iommu_ioas_unmap", op=Op.UNMAP, api=_IOMMUFD),
    _form("vfio_set_iommu", op=Op.SET_IOMMU, api=_TYPE1),
    _form("vfio_group_set_container", op=Op.ATTACH, api=_TYPE1),
    _form("vfio_group_get_device_fd", op=Op.GET_DEVICE, api=_TYPE1),
    _form("vfio_device_attach_iommufd_pt", op=Op.ATTACH, api=_IOMMUFD),
    _form("vfio_device_bind_iommufd", op=Op.BIND, api=_IOMMUFD),
    _form("open /dev/vfio/{node:w}", "opening /dev/vfio/{node:w}",
          "open '/dev/vfio/{node:w}", "open '/dev/iommu", "open /dev/iommu", "opening /dev/iommu",
          "open vfio device /dev/vfio/{node:w}", op=Op.OPEN),
    # What a program says when one of the calls above failed.
    _form("failed to open vfio group {group:d}", op=Op.OPEN, program=_DPDK, echo=True),
    _form("memory listener initialization failed", op=Op.MAP, program=_QEMU, part=Part.RAM,
          echo=True),
    _form("dma mapping failed, unable to continue", op=Op.MAP, program=_QEMU, echo=True),
    _form("failed to set up container", "failed to setup container", op=Op.SETUP, program=_QEMU,
          echo=True),
    # Xen's toolstack, tools/libs/light/libxl_pci.c.
    _form("pci device {dev} cannot be assigned - no iommu?", op=Op.START, program=_XEN,
          sign=Why.NO_IOMMU),
    _form("libxl__device_pci_add failed for pci device", "libxl_device_pci_add failed",
          "qemu refused to add device: {dev}", "unable to add pci devices", op=Op.START,
          program=_XEN, sign=Why.TOOLSTACK),
    # kernel/dma/swiotlb.c, kernel/dma/direct.c; before Linux 4.17 lib/swiotlb.c.
    _form("swiotlb buffer is full", "out of sw-iommu space for", "overflow ... of dma mask",
          op=Op.START, program=_KERNEL, sign=Why.BOUNCE),
    _form("mdev_supported_types ... no space left on device", op=Op.START,
          sign=Why.MEDIATED_ROOM),
    # libvfio-user lib/dma.c; Cloud Hypervisor virtio-devices/src/iommu.rs.
    _form("failed to add dma region [{iova}, {last})", op=Op.START, program="libvfio-user",
          sign=Why.VFIO_USER),
    _form("failed to translate gva addr {iova}", op=Op.START, program=_CH, sign=Why.VIOMMU_MISS),
    # About VFIO or an IOMMU, and not about DMA addresses.
    _form("no available reset mechanism", "not ready ... after flr",
          "not ready ... after bus reset", "stuck in d3", "invalid pci rom header signature",
          "unable to change power state", "reset recovery - restoring bars",
          "failed to set up trigger eventfd", "is this a qualified pci rom",
          "inappropriate ioctl for device ... /reset",
          "/reset' ... inappropriate ioctl for device", "doesn't support reset from sysfs",
          "failed to mmap {dev} bar {bar:d}. performance may be slow", op=Op.START,
          sign=Why.OTHER, warning=True),
)
"""Each form with where it was seen. The first that is found in a line counts."""
# fmt: on

ANY_VFIO = Form(("vfio", "iommufd"), Op.SETUP, echo=True)
"""A line of a program that no form knows, but which is about VFIO and names an errno."""


@cache
def _compiled() -> dict[str, list[tuple[int, Form, Template]]]:
    """The table by the word that a template begins with, which most lines do not have."""
    found: dict[str, list[tuple[int, Form, Template]]] = {}
    for rank, form in enumerate(FORMS):
        for template in map(Template, form.templates):
            found.setdefault(template.head, []).append((rank, form, template))
    return found


def read_line(
    line: str, tally: Tally | None = None
) -> tuple[tuple[Form, Template, Match] | None, list[Why]]:
    """Find the first form that a line has, and every cause that its words settle.

    Args:
        line: from `templates.fold`.
        tally: counts what is looked at.

    Complexity: O(length x forms).
    """
    table = _compiled()
    if tally is not None:
        tally.characters += len(line) * len(table)
    likely = [item for head, items in table.items() if head in line for item in items]
    likely.sort(key=lambda item: item[0])  # stable: templates stay in their order
    first: tuple[Form, Template, Match] | None = None
    signs: dict[Why, None] = {}
    for _, form, template in likely:
        if first is not None and (form.sign is None or form.sign in signs):
            continue
        match = template.search(line, 0, tally)
        if match is None:
            continue
        first = first or (form, template, match)
        if form.sign is not None:
            signs[form.sign] = None
    return first, list(signs)
