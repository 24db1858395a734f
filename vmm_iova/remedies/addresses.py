# SPDX-License-Identifier: Apache-2.0
"""Widths, places, calls and memory."""

from __future__ import annotations

from vmm_iova.remedies.wording import LAB, QEMUS, SHELL, Remedy

# -- address widths --------------------------------------------------------------------------------

FEWER_BITS = Remedy(
    "{purpose}limit the guest to {bits} physical address bits{instead}",
    ways=(
        ("QEMU", Remedy("-cpu host,host-phys-bits-limit={bits}", tried=QEMUS)),
        (
            "libvirt",
            Remedy(
                "<maxphysaddr mode='passthrough' limit='{bits}'/> in <cpu>",
                source="libvirt formatdomain (9.3.0)",
            ),
        ),
        (
            "Proxmox",
            Remedy(
                "qm set VMID --args '-global host-x86_64-cpu.host-phys-bits-limit={bits}'",
                source="the option was tried on " + QEMUS,
            ),
        ),
        (
            "Cloud Hypervisor",
            Remedy(
                "--cpus max_phys_bits={bits}",
                source="cloud-hypervisor docs/cpu.md, vmm/src/cpu.rs",
            ),
        ),
    ),
)
ONLY_IF_BARS_FIT = Remedy(
    "that helps only if all BARs of the guest fit below: at {bits} bits the firmware has {window} "
    "for them",
    tried="SeaBIOS 1.16.3 and 1.17.0, OVMF 2025.02: the top eighth of the address space",
)
IF_A_BAR = Remedy("if it is a BAR, {fewer}: then BARs lie below {below:#x}", tried=QEMUS)
WIDER_DEVICE = Remedy(
    "a device behind an IOMMU with more address bits", tried="this program's judge on lab hosts"
)
BELOW_WIDTH = Remedy(
    "take IOVAs below that width; a guest learns of it by fewer physical address bits", tried=LAB
)
BELOW_LIST = Remedy("take IOVAs from the kernel's range list, all below {below:#x}", tried=LAB)
BELOW_DPDK = Remedy(
    "use IOVAs below 2^{bits}: --iova-mode=pa, or --base-virtaddr={base:#x} (the IOVA is the "
    "virtual address otherwise)",
    source="DPDK doc/guides/linux_gsg/linux_eal_parameters.rst",
)
IOVA_MODE = Remedy(
    "--iova-mode=pa (needs root), or IOVAs below the width of the IOMMU with --base-virtaddr",
    source="DPDK doc/guides/linux_gsg/linux_eal_parameters.rst",
)
LESS_RAM = Remedy(
    "give the guest less RAM, so that it ends below 2^{bits}", tried=QEMUS + ", 54 plans"
)
NESTED_QEMU = Remedy(
    "if this host is itself a QEMU VM, start the outer QEMU with -device intel-iommu,aw-bits=48",
    tried="QEMU 7.2.22 (its default is 39; 48 since 10.0)",
)
GUEST_IOMMU_BITS = Remedy(
    "give the guest's IOMMU no more bits than the host's",
    ways=(
        ("QEMU", Remedy("-device intel-iommu,aw-bits={bits}", tried=QEMUS)),
        (
            "libvirt",
            Remedy(
                "<iommu model='intel'><driver aw_bits='{bits}'/></iommu>",
                source="libvirt formatdomain (6.5.0)",
            ),
        ),
    ),
)
GUEST_IOMMU_OPTION = Remedy("QEMU: -device intel-iommu,aw-bits={bits}", tried=QEMUS)
CPU_COUNT = Remedy("see how many the CPU has: grep 'address sizes' /proc/cpuinfo", tried=SHELL)
CPU_BELOW = Remedy(
    "put it below that: fewer physical address bits for the guest, or less RAM", tried=QEMUS
)
CPU_BELOW_BITS = Remedy("put it below 2^{bits}: less RAM, or a smaller BAR", tried=QEMUS)
CPU_OTHER = Remedy(
    "a host whose CPU has {needs} physical address bits{instead}", source="arch/x86/kvm/x86.c"
)
HOST_BITS = Remedy(
    "give the guest as many bits as the host has",
    ways=(
        ("QEMU", Remedy("-cpu host,host-phys-bits=on", tried=QEMUS)),
        (
            "libvirt",
            Remedy("<maxphysaddr mode='passthrough'/> in <cpu>", source="libvirt formatdomain"),
        ),
    ),
)
LESS_OR_SMALLER = Remedy(
    "less RAM or maxmem, or a smaller 64-bit PCI window (-global q35-pcihost.pci-hole64-size=SIZE)",
    tried=QEMUS,
)
PLAN_BITS = Remedy(
    "vmm-iova plan --machine q35 --ram SIZE --phys-bits BITS says what fits", tried="this program"
)

LESS_MAXMEM = Remedy(
    "maxmem={size} or less, and RAM stays where it is; a VMM that cuts RAM around the hole needs "
    "no less (--machine own-x86 plans it)",
    tried=QEMUS,
)
AS_MAXMEM = Remedy(
    "keep the room at {spare} or less (maxmem={most}), and QEMU moves no RAM; --maxmem {size} "
    "plans it as QEMU has it",
    tried=QEMUS,
)
TELL_OVMF = Remedy(
    "with OVMF, tell it a window of {size}: {option}", tried="OVMF 2025.02, eight BARs of 512 GiB"
)
TELL_OVMF_BITS = Remedy(
    "with OVMF, tell it a window of {size}, and give the guest the address bits for it: {option}, "
    "{more}",
    tried="OVMF 2025.02, four BARs of 128 GiB",
)
FEWER_PORTS = Remedy(
    "fewer devices, or BARs that are made smaller (resizable BAR): a window for all takes {bits} "
    "address bits, and the host's CPU has {host}",
    source="edk2 OvmfPkg/Library/PlatformInitLib/MemDetect.c; QEMU pc_memory_init()",
)

PLAN_WITH = Remedy(
    "plan with it: vmm-iova plan --host {file} --machine MACHINE --ram SIZE", tried="this program"
)

PLAN_VM = Remedy(
    "plan it: vmm-iova plan --vm FILE --host {host}, with this text as FILE", tried="this program"
)
PLAN_DESCRIBED = Remedy("plan it on its host: {command}", tried="this program")
SHOW_TEXT = Remedy(
    "see what may be mapped there: vmm-iova show --host FILE, with this text as FILE; paste the "
    "error line with it to have that explained",
    tried="this program",
)
CAPTURE_THERE = Remedy(
    "take the facts of the host: vmm-iova capture -o host.json there, then vmm-iova show --host "
    "host.json",
    tried="this program",
)

OTHER_FACTS = Remedy(
    "take the facts anew, with the guest's devices attached: vmm-iova capture --ask-kernel -s BDF "
    "-o host.json; these are of another host, group or kernel",
    tried="this program",
)

# -- places ----------------------------------------------------------------------------------------

PLAN_IT = Remedy(
    "plan the layout around it: vmm-iova plan --host HOST --machine {machine} --ram {ram}",
    tried="this program",
)
KEEP_AWAY = Remedy(
    "tell the guest to keep away: vmm-iova plan lists what to reserve (--format)",
    tried="this program",
)
TELL_GUEST = Remedy(
    "if it is a hole of the host, tell the guest: vmm-iova plan lists what to reserve",
    tried="this program",
)
MOVED_BY_QEMU = Remedy(
    "QEMU moves RAM to 1 TiB by itself with a machine type of 7.1 or newer and an AMD CPU model "
    "(-machine pc-q35-7.1, -cpu EPYC)",
    tried=QEMUS,
)
SMALLER_GUEST_AT = Remedy(
    "a guest of {size} fits: it ends below the hole",
    tried="the fix that launchpad.net/bugs/1869006 found by trial",
)
CUT_AT_SEAM = Remedy("map it in two pieces, cut at the seam", tried=LAB)
MAP_PIECES = Remedy("map it in pieces: {pieces}", tried=LAB)
MAP_AROUND = Remedy("map around it: {pieces}", tried=LAB)
OTHER_BASE = Remedy("move it to {start:#x}: the whole range fits there", tried=LAB)
OTHER_BASE_NEAREST = Remedy("move it to {start:#x}, the nearest usable address", tried=LAB)
OTHER_BASE_OUTSIDE = Remedy(
    "move it out of {hole}; with the width (--aperture) a place is named", tried="this program"
)
SMALLER = Remedy("make it smaller: {size} fit at {start:#x}", tried=LAB)
LEAVE_OUT = Remedy("leave out {groups}", tried="this program")
OTHER_RESERVE = Remedy(
    "another place for what is to be kept free (--reserve)", tried="this program"
)
WHOLE_GRANULES = Remedy("make start and size multiples of {page:#x}{held}", tried=LAB)
WHOLE_PAGES = Remedy(
    "make IOVA, address and size multiples of the IOMMU's smallest page (4 KiB on x86, up to "
    "64 KiB elsewhere: getconf PAGE_SIZE)",
    tried=LAB,
)
HARMLESS_REGION = Remedy(
    "nothing: the region is left out of the map, which matters only if a device reaches for it "
    "(the TPM's at 0xfed40000 is known to be harmless)",
    source="hw/vfio/listener.c of QEMU, vfio_listener_skipped_section",
)
END_BELOW = Remedy("end the range below 2^64", tried=LAB)
GRANULE_OR_RANGE = Remedy(
    "not a multiple of the granule, or not inside one range of facts().ranges", tried=LAB
)
ALIGN_OR_RANGE = Remedy(
    "not a multiple of the alignment, or it touches what facts().ranges leaves out", tried=LAB
)
REHEARSE = Remedy("a live mapping is in the way (rehearse_attach tells which)", tried=LAB)

# -- calls -----------------------------------------------------------------------------------------

CALL_ORDER = Remedy(
    "call in order: open the container, VFIO_GROUP_SET_CONTAINER, VFIO_SET_IOMMU, then map "
    "(iommufd: bind, attach, map)",
    tried=LAB,
)
FLAGS = Remedy(
    "set READ or WRITE, a size that is not 0, and argsz to the size of the struct", tried=LAB
)
UNMAP_FIRST = Remedy("already mapped; unmap it first", tried=LAB)
UNMAP_SAME = Remedy("unmap it first: the kernel says EEXIST even for the same mapping", tried=LAB)
UNMAP_OR_MOVE = Remedy(
    "unmap what is there first, or use another IOVA: two devices of one container share one IOVA "
    "space, so their BARs must not have the same address",
    tried=LAB,
)
MAPPED_AGAIN = Remedy(
    "if it is the same memory mapped again (DPDK and SPDK do this), it does no harm",
    source="DPDK lib/eal/linux/eal_vfio.c: EEXIST is ignored; spdk/spdk#3061",
)
UNMAP_EXACT = Remedy("unmap exactly what was mapped; nothing there is success on type1", tried=LAB)
UNMAP_WHOLE = Remedy(
    "unmap whole mappings, exactly as they were mapped: neither interface cuts one", tried=LAB
)
LESS_ROOM = Remedy("ask for a smaller length or alignment, or free IOVAs first", tried=LAB)
NO_ROOM = Remedy("no free place of that size and alignment", tried=LAB)
ATTACH_FIRST = Remedy(
    "attach every device before anything is mapped, or plan with all their groups together: "
    "vmm-iova plan --groups A,B",
    tried=LAB,
)
UNMAP_REGIONS = Remedy(
    "unmap what lies in the new device's regions and map it elsewhere", tried=LAB
)
OTHER_CONTAINER = Remedy(
    "give the group a container of its own, which locks the guest's RAM again, or use iommufd",
    source="drivers/vfio/vfio_iommu_type1.c, vfio_iommu_aper_conflict",
)
ALLOW_LESS = Remedy(
    "leave it out of the allow list (IOMMU_IOAS_ALLOW_IOVAS), or give the device an IOAS of its "
    "own",
    tried=LAB,
)
MAP_BEFORE_USE = Remedy(
    "if the device is a guest's or DPDK's: map the IOVA before the device is told of it, and with "
    "WRITE if the device writes",
    tried=LAB,
)
HOST_DRIVER = Remedy(
    "if the device is the host's own: it is its driver's fault, not a guest's; update the kernel "
    "and the device's firmware, and report it with the driver's name (lspci -k -s {bdf})",
    source="drivers/iommu/dma-iommu.c: the host's drivers map through the DMA API",
)
BOUND_ALREADY = Remedy(
    "already bound, not cache-coherent, or firmware demands a direct region", tried=LAB
)
COHERENCY = Remedy(
    "use a VFIO container (type1), or a device behind a coherent IOMMU",
    source="drivers/iommu/iommufd/device.c, IOMMU_CAP_CACHE_COHERENCY",
)
MORE_SLOTS = Remedy(
    "several slots, or several NUMA nodes with a memory backend of less than 8 TiB each (QEMU cuts "
    "a larger one on s390 only)",
    source="virt/kvm/kvm_main.c, KVM_MEM_MAX_NR_PAGES; accel/kvm/kvm-all.c of QEMU",
)
SET_CONTAINER_FILE = Remedy(
    "open /dev/vfio/vfio as the container and /dev/vfio/GROUP as the group: another file, or a "
    "kernel without CONFIG_VFIO_GROUP, does not know the call",
    tried=LAB,
)
READ_LINE_ABOVE = Remedy(
    "read the line above it: the errno of the ioctl itself stands there (VFIO_MAP_DMA failed: ...)",
    source="hw/vfio/container.c of QEMU: errno is returned after the message was printed",
)

# -- memory ----------------------------------------------------------------------------------------

BACKING_ROOM = Remedy(
    "see that what backs the memory has room for all of it: HugePages_Free in /proc/meminfo, "
    "df /dev/shm, the file's own size",
    tried=SHELL,
)
BACKING_WRITABLE = Remedy(
    "map memory that is there and writable, before the IOVA is mapped (mmap, mlock); pages of "
    "userfaultfd, FUSE or DAX cannot be pinned",
    source="mm/gup.c, FOLL_LONGTERM",
)
BACKING_OR_BEYOND = Remedy(
    "the memory is not there or not writable, or the address is beyond the IOMMU", tried=LAB
)
BACKING_OR_BAR = Remedy(
    "the memory is not there or not writable; BARs go through map_file (6.19)", tried=LAB
)
HUGEPAGES_FREE = Remedy(
    "for hugepages, have enough of them free on the node: grep Huge /proc/meminfo, vmm-iova plan "
    "--page-size 2MiB says how many",
    tried="this program",
)
HUGEPAGES_SET = Remedy(
    "hugepagesz={short} hugepages={count} (kernel command line), or echo {count} > "
    "/sys/kernel/mm/hugepages/{name}/nr_hugepages",
    source="Documentation/admin-guide/mm/hugetlbpage.rst",
)
MEMORY_LESS = Remedy(
    "give the guest {size} of RAM or less, or free memory on the host: free -g", tried=SHELL
)
SMALLER_GUEST = Remedy(
    "a guest with less RAM, or a host with more that is free: free -g", tried=SHELL
)
