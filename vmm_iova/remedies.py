# SPDX-License-Identifier: Apache-2.0
"""What to type against a cause: each remedy is worded here and nowhere else.

Text and placeholders, no logic: which remedies help, with which numbers and in which order, is
`diagnosis.advice`'s. A placeholder is named for its value: `{bits}`, `{kib}`, `{bdf}`. How a
machine is given fewer address bits or a larger window stands in its own file (`machines`), as
every other option of it does.
"""

from __future__ import annotations

# -- an IOMMU that is off --------------------------------------------------------------------------

IOMMU_ON = "switch the IOMMU on in the firmware and, on Intel, boot with intel_iommu=on"
OR_ANOTHER_HOST = "or plan for another host with --host"
FIRMWARE_ON = "switch it on in the firmware (VT-d, AMD-Vi or IOMMU, SMMU)"
KERNEL_ON = (
    "boot with intel_iommu=on (AMD and Arm need nothing); what the kernel found: "
    "dmesg | grep -i 'DMAR\\|AMD-Vi\\|smmu'"
)
LOAD_MODULES = "load the modules: modprobe vfio-pci vfio_iommu_type1"

# -- devices and their drivers ---------------------------------------------------------------------

BIND_DEVICE = (
    "driverctl set-override {bdf} vfio-pci, or write vfio-pci to its driver_override, unbind it, "
    "and write its name to drivers_probe"
)
BIND_GROUP = (
    "bind all devices of the group to vfio-pci (driverctl set-override BDF vfio-pci), or unbind "
    "those that the guest should not have"
)
BIND_AND_LOAD = "bind the device to vfio-pci, and load vfio-pci and vfio_iommu_type1 or iommufd"
BIND_AND_GIVE = "bind the device to vfio-pci, and give access"
BIND_ALL_DPDK = (
    "bind all devices to vfio-pci: one on igb_uio or uio_pci_generic forces physical addresses"
)
CLOSE_OTHER = "close the other user: a group, or its device's node in /dev/vfio/devices, opens once"
CLOSE_OTHER_NODE = "another VMM has it; fuser -v tells which"
IS_OPEN = "it, its group, or a device of the group is open elsewhere"
GIVE_NODE = "give the VMM's user the node: chown USER {node}"
GIVE_CONTAINER = (
    "let the container or the cgroup have it: --device /dev/vfio/GROUP; libvirt: "
    "cgroup_device_acl in qemu.conf"
)
LOAD_TYPE1 = "load vfio_iommu_type1"
LOAD_VFIO = "is the module vfio loaded, and does /dev come from this kernel?"
LOAD_IOMMUFD = "iommufd needs Linux 6.2 with CONFIG_IOMMUFD, and access"
NO_POWER = "on POWER only spapr exists, which is not spoken"
CDEV = "that needs Linux 6.6 with CONFIG_VFIO_DEVICE_CDEV; via='type1' needs neither"
READ_LOG = "the kernel's log may say more"
RESET_DEVICE = (
    "a device that runs on after its driver or guest has gone: reset it, or bind it to vfio-pci "
    "before any other driver starts it"
)
RESET_STRAY = (
    "if no driver chose the address: the device runs on after its driver or guest has gone, or was "
    "set up wrongly; reset it"
)
ALL_FUNCTIONS = (
    "give the guest all functions of the device and bind each to vfio-pci: it may send with the id "
    "of another function (seen with Marvell SATA and with bridges to old PCI)"
)
KERNEL_QUIRK = "a kernel with a quirk for the device (drivers/pci/quirks.c, quirk_dma_func0_alias)"

# -- regions that firmware demands -----------------------------------------------------------------

FIRMWARE_REGION = (
    "switch off in the firmware what asks for the region (pre-boot DMA protection, legacy USB, "
    "integrated graphics, remote management's shared memory (HPE)), or assign a device that it "
    "does not bind"
)
FREE_DEVICE = (
    "assign a device that no direct region binds: vmm-iova show names the groups that it does"
)
FIRMWARE_UPDATE = (
    "update the firmware: several boards list whole bus ranges by mistake (AMD B650, X870E)"
)
NO_PARAMETER = "a firmware setting may drop the region; no kernel parameter does"
WITHOUT_STRICT = "without --strict the direct-relaxable region may be used"
OR_DIRECT = "or firmware demands a direct region"

# -- interrupts ------------------------------------------------------------------------------------

REMAP_INTERRUPTS = (
    "switch interrupt remapping on: in the firmware (VT-d with x2APIC, or AMD's IOMMU), and boot "
    "without intremap=off"
)
UNSAFE_INTERRUPTS = (
    "as the last resort, for guests that you trust: modprobe vfio_iommu_type1 "
    "allow_unsafe_interrupts=1 (iommufd has the same parameter)"
)
REMAP_OR_UNSAFE = (
    "the host has no interrupt remapping for it: turn it on, or accept the risk: "
    "{module}.allow_unsafe_interrupts=1"
)

# -- limits ----------------------------------------------------------------------------------------

LOCK_BY_LIBVIRT = (
    "raise the limit: {least}all of the guest's RAM plus 1 GiB is what libvirt grants "
    "(ulimit -l {kib}; systemd: LimitMEMLOCK=infinity; libvirt: <memtune><hard_limit>; containers: "
    "--ulimit memlock=-1), at least {size}"
)
LOCK_LEAST = "this map alone needs {size}; "
LOCK_RAISE = "raise RLIMIT_MEMLOCK (ulimit -l) or give CAP_IPC_LOCK"
LOCK_NUMBER = "ulimit -l {kib} (KiB), LimitMEMLOCK={size} in a unit of systemd, or CAP_IPC_LOCK"
LOCK_CAPABILITY = "give the VMM CAP_IPC_LOCK (type1 and iommufd count nothing then)"
LOCK_ONE_CONTAINER = (
    "put all devices into one container or IOAS: each container counts the RAM again"
)
LOCK_PLAN = "vmm-iova plan prints the locked memory of a guest before anything is mapped"
LOCK_LIBVIRT_ITSELF = (
    "raise the limit of libvirt itself{need}: LimitMEMLOCK=infinity in the unit of libvirtd or "
    "virtqemud, --ulimit memlock=-1 for a container"
)
LOCK_MAY_RAISE = "give libvirt CAP_SYS_RESOURCE, with which it may raise the limit of QEMU"
ENTRIES_LARGER = (
    "map in larger pieces: one map call takes one entry, whatever its size (hugepages, larger "
    "virtio-mem blocks)"
)
ENTRIES_RAISE = (
    "raise the limit before the container is set up: echo 4194304 > "
    "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
)
ENTRIES_NUMBER = (
    "dma_entry_limit={entries} (options vfio_iommu_type1 in /etc/modprobe.d; it is read when the "
    "container is made), larger pieces, or iommufd, which has no such limit"
)
ENTRIES_IOMMUFD = "use iommufd, which has no such limit"
ENTRIES_HINT = (
    "every map call takes one of vfio_iommu_type1's dma_entry_limit entries: map larger pieces, or "
    "raise it before the container is made"
)

# -- address widths --------------------------------------------------------------------------------

FEWER_BITS = "limit the guest's physical address bits to {bits}{instead} ({ways})"
IF_A_BAR = "if it is a BAR, {fewer}: then BARs lie below {below:#x}"
WIDER_DEVICE = "a device behind an IOMMU with more address bits"
BELOW_WIDTH = "take IOVAs below that width; a guest is told by fewer physical address bits"
BELOW_LIST = "take IOVAs from the kernel's range list, all below {below:#x}"
BELOW_DPDK = (
    "use IOVAs below 2^{bits}: --iova-mode=pa, or --base-virtaddr={base:#x} (the IOVA is the "
    "virtual address otherwise)"
)
IOVA_MODE = (
    "--iova-mode=pa (needs root), or IOVAs below the width of the IOMMU with --base-virtaddr"
)
LESS_RAM = "less RAM, so that it ends below 2^{bits}"
NESTED_QEMU = (
    "if the host is itself a guest of QEMU: -device intel-iommu,aw-bits=48 one level below"
)
GUEST_IOMMU_BITS = (
    "give the guest's IOMMU no more than the host's: -device intel-iommu,aw-bits={bits} "
    "(libvirt: <iommu model='intel'><driver aw_bits='{bits}'/></iommu>)"
)
GUEST_IOMMU_OPTION = "QEMU: -device intel-iommu,aw-bits={bits}"
CPU_COUNT = "see how many the CPU has: grep 'address sizes' /proc/cpuinfo"
CPU_BELOW = "put it below that: fewer physical address bits for the guest, or less RAM"
CPU_BELOW_BITS = "put it below 2^{bits}: less RAM, or a smaller BAR"
CPU_OTHER = "a host whose CPU has {needs} physical address bits{instead}"
HOST_BITS = (
    "give the guest as many bits as the host has: -cpu host,host-phys-bits=on (libvirt: "
    "<maxphysaddr mode='passthrough'/> in <cpu>)"
)
LESS_OR_SMALLER = (
    "less RAM or maxmem, or a smaller 64-bit PCI window (-global q35-pcihost.pci-hole64-size=SIZE)"
)
PLAN_BITS = "vmm-iova plan --machine q35 --ram SIZE --phys-bits BITS says what fits"

# -- places ----------------------------------------------------------------------------------------

PLAN_IT = "plan the layout around it: vmm-iova plan --host HOST --machine {machine} --ram SIZE"
KEEP_AWAY = "tell the guest to keep away: vmm-iova plan lists what to reserve (--format)"
TELL_GUEST = "if it is a hole of the host, tell the guest: vmm-iova plan lists what to reserve"
MOVED_BY_QEMU = (
    "QEMU moves RAM to 1 TiB by itself with a machine type of 7.1 or newer and an AMD CPU model "
    "(-machine pc-q35-7.1, -cpu EPYC or host)"
)
CUT_AT_SEAM = "map it in two pieces, cut at the seam"
MAP_PIECES = "map it in pieces: {pieces}"
MAP_AROUND = "map around it: {pieces}"
OTHER_BASE = "another base: all of it fits at {start:#x}"
OTHER_BASE_NEAREST = "another base: the nearest usable address is {start:#x}"
OTHER_BASE_OUTSIDE = "another base, outside of {hole}; with the width (--aperture) one is named"
SMALLER = "a smaller one: {size} fit at {start:#x}"
LEAVE_OUT = "leave out {groups}"
OTHER_RESERVE = "another place for what is to be kept free (--reserve)"
WHOLE_GRANULES = "make start and size multiples of {page:#x}{held}"
WHOLE_PAGES = (
    "make IOVA, address and size multiples of the IOMMU's smallest page (4 KiB on x86, up to "
    "64 KiB elsewhere: getconf PAGE_SIZE)"
)
HARMLESS_REGION = (
    "it is left out of the map, which does no harm unless a device reaches for it (the TPM's at "
    "0xfed40000 is known to be harmless)"
)
END_BELOW = "end the range below 2^64"
GRANULE_OR_RANGE = "not a multiple of the granule, or not inside one range of facts().ranges"
ALIGN_OR_RANGE = "not a multiple of the alignment, or it touches what facts().ranges leaves out"
REHEARSE = "a live mapping is in the way (rehearse_attach tells which)"

# -- calls -----------------------------------------------------------------------------------------

CALL_ORDER = (
    "call in order: open the container, VFIO_GROUP_SET_CONTAINER, VFIO_SET_IOMMU, then map "
    "(iommufd: bind, attach, map)"
)
FLAGS = "set READ or WRITE, a size that is not 0, and argsz to the size of the struct"
UNMAP_FIRST = "an IOVA is mapped once: unmap first"
UNMAP_SAME = "unmap it first: the kernel says EEXIST even for the same mapping"
UNMAP_OR_MOVE = (
    "unmap what is there first, or use another IOVA: two devices of one container share one IOVA "
    "space, so their BARs must not have the same address"
)
MAPPED_AGAIN = "if it is the same memory mapped again (DPDK and SPDK do this), it does no harm"
UNMAP_EXACT = "unmap exactly what was mapped; nothing there is success on type1"
UNMAP_WHOLE = "unmap whole mappings, exactly as they were mapped: neither interface cuts one"
LESS_ROOM = "ask for a smaller length or alignment, or free IOVAs first"
NO_ROOM = "no free place of that size and alignment"
ATTACH_FIRST = (
    "attach every device before anything is mapped, or plan with all their groups together: "
    "vmm-iova plan --groups A,B"
)
UNMAP_REGIONS = "unmap what lies in the new device's regions and map it elsewhere"
MAP_BEFORE_USE = "map the IOVA before the device is told of it, and with WRITE if the device writes"
BOUND_ALREADY = "already bound, not cache-coherent, or firmware demands a direct region"
COHERENCY = "use a VFIO container (type1), or a device behind a coherent IOMMU"
MORE_SLOTS = (
    "several slots, or several NUMA nodes with a memory backend of less than 8 TiB each (QEMU cuts "
    "a larger one on s390 only)"
)

# -- memory ----------------------------------------------------------------------------------------

BACKING_ROOM = (
    "see that what backs the memory has room for all of it: HugePages_Free in /proc/meminfo, "
    "df /dev/shm, the file's own size"
)
BACKING_WRITABLE = (
    "map memory that is there and writable, before the IOVA is mapped (mmap, mlock); pages of "
    "userfaultfd, FUSE or DAX cannot be pinned"
)
BACKING_OR_BEYOND = "the memory is not there or not writable, or the address is beyond the IOMMU"
BACKING_OR_BAR = "the memory is not there or not writable; BARs go through map_file (6.19)"
HUGEPAGES_FREE = (
    "for hugepages, have enough of them free on the node: grep Huge /proc/meminfo, vmm-iova plan "
    "--page-size 2MiB says how many"
)
HUGEPAGES_SET = (
    "hugepagesz={short} hugepages={count} (kernel command line), or echo {count} > "
    "/sys/kernel/mm/hugepages/{name}/nr_hugepages"
)
SMALLER_GUEST = "a guest with less RAM, or a host with more that is free: free -g"

# -- peer-to-peer ----------------------------------------------------------------------------------

BAR_IDLE = (
    "if it is a BAR and nothing needs peer-to-peer DMA, the guest runs without this map: {ways}"
)
BAR_IDLE_QEMU = "QEMU only warns"
BAR_IDLE_CLOUD_HYPERVISOR = "Cloud Hypervisor: --platform vfio_p2p_dma=off"
BAR_OFF = (
    "turn peer-to-peer off (Cloud Hypervisor: --platform vfio_p2p_dma=off); in QEMU the message is "
    "a warning, and the guest runs without peer-to-peer"
)
BAR_TYPE1 = "use a VFIO container (type1) instead of iommufd: it maps BARs"
BAR_DMA_BUF = (
    "on Linux 6.19 and later map the BAR as a dma-buf (VFIO_DEVICE_FEATURE_DMA_BUF, "
    "IOMMU_IOAS_MAP_FILE)"
)

# -- a guest's own IOMMU ---------------------------------------------------------------------------

CACHING_MODE = "-device intel-iommu,caching-mode=on (libvirt: <driver caching_mode='on'/>)"
ARM_NOTIFY = "on Arm, virtio-iommu, or an SMMUv3 with accel=on: the emulated one tells nothing"
IOMMU_FIRST = "put the intel-iommu before the vfio-pci devices on the command line"
HOST_GRANULE = (
    "-device virtio-iommu-pci,granule=host (QEMU 9.0 and later), or granule=64k on a host with "
    "64 KiB pages"
)
SMALL_PAGES = "a host kernel with 4 KiB pages"

# -- what would settle a doubt ---------------------------------------------------------------------

SETTLE_HOST = "the host's facts: vmm-iova capture -o host.json there, then explain --host"
SETTLE_WIDTH = (
    "the width of the IOMMU: cat /sys/class/iommu/*/intel-iommu/cap (bits 21:16), or "
    "dmesg | grep -i 'iommu width\\|dmar\\|amd-vi'"
)
SETTLE_HOLES = "the holes: grep . /sys/kernel/iommu_groups/*/reserved_regions"
SETTLE_CPU = "the physical address bits of the CPU: grep 'address sizes' /proc/cpuinfo"
SETTLE_DIRECT = (
    "whether firmware claims the device: grep -w direct "
    "/sys/kernel/iommu_groups/*/reserved_regions; dmesg | grep -i '1:1\\|RMRR'"
)
SETTLE_ISOLATION = "the kernel's log: dmesg | grep -i 'remapping\\|unsafe'"
SETTLE_MEMLOCK = "the limit of the VMM: grep -i locked /proc/PID/limits; dmesg | grep MEMLOCK"
SETTLE_ENTRIES = "cat /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
SETTLE_NUMBERS = "{what}: the VMM's line with the numbers, or strace -e ioctl"
SETTLE_PAGE = "the page size of the host's kernel: getconf PAGE_SIZE"
SETTLE_ORDER = "the order of the calls: strace -e ioctl (VFIO_SET_IOMMU before the first map)"
SETTLE_BAR = "whether the address is a BAR: /proc/PID/maps names vfio there"
SETTLE_GROUPS = "the devices' groups together: vmm-iova show --groups A,B"
SETTLE_CALL = "the lines above it, and dmesg: they name the call that failed"
SETTLE_ERRNO = "the errno"
