# SPDX-License-Identifier: Apache-2.0
"""What can be done about a refused call, each as something to type, and what would settle it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.diagnosis.causes import Why
from vmm_iova.diagnosis.check import MODELS, WIDER_DEVICE, fewer_bits
from vmm_iova.host.evidence import HYPERTRANSPORT
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.diagnosis.check import Verdict
    from vmm_iova.diagnosis.error_lines import Clues, Failure
    from vmm_iova.host.usable import Usable

_GIB = 1 << 30
_CLIENT_BITS = 39  # Intel desktops and laptops, and QEMU's own intel-iommu


def remedies(
    whys: Sequence[Why],
    failure: Failure,
    clues: Clues,
    verdict: Verdict | None,
    bits: int | None,
) -> tuple[str, ...]:
    """Return what can be done, in the order in which it is likely to help.

    Args:
        whys: causes, the most certain first.
        failure: the call.
        clues: what the report states.
        verdict: what `check` says of the range, if it was judged.
        bits: address bits of the IOMMU, known or likely.
    """
    found: dict[str, None] = {}
    for why in whys:
        for text in _of(why, failure, clues, verdict, bits):
            found.setdefault(text, None)
    return tuple(found)


def _of(
    why: Why, failure: Failure, clues: Clues, verdict: Verdict | None, bits: int | None
) -> Iterator[str]:
    if why is Why.WIDTH:
        yield from _width(failure, verdict, bits)
    elif why is Why.CPU_BITS:
        yield from _cpu(failure, verdict, bits, clues.cpu_bits)
    elif why is Why.HOLE:
        yield from _hole(failure, clues, verdict)
    elif why is Why.MEMLOCK:
        yield from _memlock(failure)
    elif why is Why.RLIMIT:
        yield from _rlimit(failure)
    elif why is Why.VIOMMU_WIDTH:
        host = 48 if (bits or _CLIENT_BITS) >= 48 else _CLIENT_BITS  # it knows 39, 48 and 57
        yield (
            f"give the guest's IOMMU no more than the host's: -device intel-iommu,aw-bits={host} "
            f"(libvirt: <iommu model='intel'><driver aw_bits='{host}'/></iommu>)"
        )
    elif why is Why.ALIGNMENT and failure.op == "start":
        yield (
            "it is left out of the map, which does no harm unless a device reaches for it (the "
            "TPM's at 0xfed40000 is known to be harmless)"
        )
    elif why is Why.ALIGNMENT and verdict is not None and verdict.kind == "granule":
        yield from verdict.fixes
    else:
        yield from _FIXES.get(why, ())


_USER_SPACE_DRIVERS = ("DPDK", "SPDK", "libvfn", "libevpl", "unvme")


def _width(failure: Failure, verdict: Verdict | None, bits: int | None) -> Iterator[str]:
    limit = bits or _CLIENT_BITS
    program = failure.program
    below = failure.place is not None and failure.place.last < 1 << limit
    if failure.op == "fault":
        yield "take IOVAs below that width; a guest is told by fewer physical address bits"
        yield from fewer_bits(limit)
    elif program in ("DPDK", "SPDK"):
        yield (
            f"use IOVAs below 2^{limit}: --iova-mode=pa, or --base-virtaddr="
            f"{1 << (limit - 2):#x} (the IOVA is the virtual address otherwise)"
        )
    elif program in _USER_SPACE_DRIVERS:
        yield f"take IOVAs from the kernel's range list, all below {1 << limit:#x}"
    if verdict is not None and not verdict.ok:
        idle = "physical address bits" if program in _USER_SPACE_DRIVERS else WIDER_DEVICE
        yield from (text for text in verdict.fixes if idle not in text and text != WIDER_DEVICE)
    elif failure.part == "ram":
        yield f"less RAM, so that it ends below 2^{limit}"
    elif program not in _USER_SPACE_DRIVERS and failure.op != "fault" and not below:
        yield from fewer_bits(limit, program=program)
    if failure.part != "ram" and failure.op != "fault" and program in (None, *MODELS):
        ways = {
            "QEMU": "QEMU only warns",
            "Cloud Hypervisor": "Cloud Hypervisor: --platform vfio_p2p_dma=off",
        }
        yield (
            "if it is a BAR and nothing needs peer-to-peer DMA, the guest runs without this map: "
            + ways.get(program or "", "; ".join(ways.values()))
        )
    if limit == _CLIENT_BITS and not below and program not in _USER_SPACE_DRIVERS:
        yield (
            "if the host is itself a guest of QEMU: -device intel-iommu,aw-bits=48 one level below"
        )
    if program in _MACHINES:
        yield _plan_it(program)
    yield WIDER_DEVICE


def _plan_it(program: str | None) -> str:
    machine = _MACHINES.get(program or "", "q35")
    return f"plan the layout around it: vmm-iova plan --host HOST --machine {machine} --ram SIZE"


def _cpu(
    failure: Failure, verdict: Verdict | None, bits: int | None, cpu: int | None
) -> Iterator[str]:
    """KVM refuses what the CPU does not reach; `bits` are those of IOMMU and CPU, the fewer."""
    if bits is None:
        yield "see how many the CPU has: grep 'address sizes' /proc/cpuinfo"
        yield "put it below that: fewer physical address bits for the guest, or less RAM"
        return
    yield from fewer_bits(bits, program=failure.program)
    if verdict is None or verdict.ok:
        yield f"put it below 2^{bits}: less RAM, or a smaller BAR"
    else:
        yield from (text for text in verdict.fixes if "physical address bits" not in text)
    if failure.place is not None:
        needs = failure.place.last.bit_length()
        yield f"a host whose CPU has {needs} physical address bits" + (
            f" instead of {cpu}" if cpu else " or more"
        )


def _hole(failure: Failure, clues: Clues, verdict: Verdict | None) -> Iterator[str]:
    wanted = failure.place
    known = verdict is not None and not verdict.ok
    hypertransport = known and wanted is not None and wanted.overlaps(HYPERTRANSPORT)
    if failure.op == "fault":
        yield "tell the guest to keep away: vmm-iova plan lists what to reserve (--format)"
        yield (
            "if no driver chose the address: the device runs on after its driver or guest has "
            "gone, or was set up wrongly; reset it"
        )
        return
    if hypertransport and failure.program in (None, "QEMU") and failure.part != "bar":
        yield (
            "QEMU moves RAM to 1 TiB by itself with a machine type of 7.1 or newer and an AMD CPU "
            "model (-machine pc-q35-7.1, -cpu EPYC or host)"
        )
    if verdict is not None and known:
        yield from verdict.fixes
    yield _plan_it(failure.program)


_MACHINES = {
    "Cloud Hypervisor": "cloud-hypervisor",
    "Firecracker": "firecracker",
    "crosvm": "crosvm",
    "kvmtool": "kvmtool",
}


def _rlimit(failure: Failure) -> Iterator[str]:
    need = f" to {failure.size} bytes or more" if failure.size else ""
    yield (
        f"raise the limit of libvirt itself{need}: LimitMEMLOCK=infinity in the unit of libvirtd "
        "or virtqemud, --ulimit memlock=-1 for a container"
    )
    yield "give libvirt CAP_SYS_RESOURCE, with which it may raise the limit of QEMU"


def _memlock(failure: Failure) -> Iterator[str]:
    need = failure.size or 0
    total = need + _GIB
    kib = -(-total // 1024)
    least = f"this map alone needs {show_size(need)}; " if need else ""
    size = f"{kib} KiB" if need else "guest RAM plus 1 GiB"
    yield (
        f"raise the limit: {least}all of the guest's RAM plus 1 GiB is what libvirt grants "
        f"(ulimit -l {kib if need else 'KIB'}; systemd: LimitMEMLOCK=infinity; libvirt: "
        f"<memtune><hard_limit>; containers: --ulimit memlock=-1), at least {size}"
    )
    yield "give the VMM CAP_IPC_LOCK (type1 and iommufd count nothing then)"
    yield "put all devices into one container or IOAS: each container counts the RAM again"
    yield "vmm-iova plan prints the locked memory of a guest before anything is mapped"


_FIXES: dict[Why, tuple[str, ...]] = {
    Why.DIRECT: (
        "switch off in the firmware what asks for the region: pre-boot DMA protection, legacy USB, "
        "remote management's shared memory (HPE), integrated graphics",
        "assign a device that no direct region binds: vmm-iova show names the groups that it does",
        "update the firmware: several boards list whole bus ranges by mistake (AMD B650, X870E)",
    ),
    Why.SLOT_SIZE: (
        "several slots, or several NUMA nodes with a memory backend of less than 8 TiB each "
        "(QEMU cuts a larger one on s390 only)",
    ),
    Why.SEAM: ("map it in two pieces, cut at the seam",),
    Why.ALIGNMENT: (
        "make IOVA, address and size multiples of the IOMMU's smallest page (4 KiB on x86, up to "
        "64 KiB elsewhere: getconf PAGE_SIZE)",
    ),
    Why.WRAP: ("end the range below 2^64",),
    Why.ORDER: (
        "call in order: open the container, VFIO_GROUP_SET_CONTAINER, VFIO_SET_IOMMU, then map "
        "(iommufd: bind, attach, map)",
    ),
    Why.FLAGS: ("set READ or WRITE, a size that is not 0, and argsz to the size of the struct",),
    Why.OVERLAP: (
        "unmap what is there first, or use another IOVA: two devices of one container share one "
        "IOVA space, so their BARs must not have the same address",
        "if it is the same memory mapped again (DPDK and SPDK do this), it does no harm",
    ),
    Why.ENTRIES: (
        "map in larger pieces: one map call takes one entry, whatever its size (hugepages, larger "
        "virtio-mem blocks)",
        "raise the limit before the container is set up: echo 4194304 > "
        "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
        "use iommufd, which has no such limit",
    ),
    Why.HVA: (
        "see that what backs the memory has room for all of it: HugePages_Free in /proc/meminfo, "
        "df /dev/shm, the file's own size",
        "map memory that is there and writable, before the IOVA is mapped (mmap, mlock); pages of "
        "userfaultfd, FUSE or DAX cannot be pinned",
    ),
    Why.BAR: (
        "turn peer-to-peer off (Cloud Hypervisor: --platform vfio_p2p_dma=off); in QEMU the "
        "message is a warning, and the guest runs without peer-to-peer",
        "use a VFIO container (type1) instead of iommufd: it maps BARs",
        "on Linux 6.19 and later map the BAR as a dma-buf (VFIO_DEVICE_FEATURE_DMA_BUF, "
        "IOMMU_IOAS_MAP_FILE)",
    ),
    Why.ISOLATION: (
        "switch interrupt remapping on: in the firmware (VT-d with x2APIC, or AMD's IOMMU), and "
        "boot without intremap=off",
        "as the last resort, for guests that you trust: modprobe vfio_iommu_type1 "
        "allow_unsafe_interrupts=1 (iommufd has the same parameter)",
    ),
    Why.LIVE_MAPS: (
        "attach every device before anything is mapped, or plan with all their groups together: "
        "vmm-iova plan --groups A,B",
        "unmap what lies in the new device's regions and map it elsewhere",
    ),
    Why.NOT_VIABLE: (
        "bind all devices of the group to vfio-pci (driverctl set-override BDF vfio-pci), or "
        "unbind those that the guest should not have",
    ),
    Why.BUSY: (
        "close the other user: a group, or its device's node in /dev/vfio/devices, opens once",
    ),
    Why.ABSENT: ("bind the device to vfio-pci, and load vfio-pci and vfio_iommu_type1 or iommufd",),
    Why.COHERENCY: ("use a VFIO container (type1), or a device behind a coherent IOMMU",),
    Why.NOT_MAPPED: ("unmap exactly what was mapped; nothing there is success on type1",),
    Why.CUT: ("unmap whole mappings, exactly as they were mapped: neither interface cuts one",),
    Why.ROOM: ("ask for a smaller length or alignment, or free IOVAs first",),
    Why.PERMISSION: (
        "give the VMM's user the node: chown USER /dev/vfio/GROUP",
        "let the container or the cgroup have it: --device /dev/vfio/GROUP; libvirt: "
        "cgroup_device_acl in qemu.conf",
    ),
    Why.UNMAPPED_DMA: (
        "map the IOVA before the device is told of it, and with WRITE if the device writes",
        "if it is a hole of the host, tell the guest: vmm-iova plan lists what to reserve",
        "a device that runs on after its driver or guest has gone: reset it, or bind it to "
        "vfio-pci before any other driver starts it",
    ),
    Why.REQUESTER: (
        "give the guest all functions of the device and bind each to vfio-pci: it may send with "
        "the id of another function (seen with Marvell SATA and with bridges to old PCI)",
        "a kernel with a quirk for the device (drivers/pci/quirks.c, quirk_dma_func0_alias)",
    ),
    Why.GUEST_BITS: (
        "give the guest as many bits as the host has: -cpu host,host-phys-bits=on (libvirt: "
        "<maxphysaddr mode='passthrough'/> in <cpu>)",
        "less RAM or maxmem, or a smaller 64-bit PCI window (-global "
        "q35-pcihost.pci-hole64-size=SIZE)",
        "vmm-iova plan --machine q35 --ram SIZE --phys-bits BITS says what fits",
    ),
    Why.BACKING: (
        "for hugepages, have enough of them free on the node: grep Huge /proc/meminfo, vmm-iova "
        "plan --page-size 2MiB says how many",
        "a guest with less RAM, or a host with more that is free: free -g",
    ),
    Why.NO_IOMMU: (
        "switch it on in the firmware (VT-d, AMD-Vi or IOMMU, SMMU)",
        "boot with intel_iommu=on (AMD and Arm need nothing); what the kernel found: "
        "dmesg | grep -i 'DMAR\\|AMD-Vi\\|smmu'",
        "load the modules: modprobe vfio-pci vfio_iommu_type1",
    ),
    Why.VIOMMU_NOTIFY: (
        "-device intel-iommu,caching-mode=on (libvirt: <driver caching_mode='on'/>)",
        "on Arm, virtio-iommu, or an SMMUv3 with accel=on: the emulated one tells nothing",
        "put the intel-iommu before the vfio-pci devices on the command line",
    ),
    Why.VIOMMU_PAGES: (
        "-device virtio-iommu-pci,granule=host (QEMU 9.0 and later), or granule=64k on a host with "
        "64 KiB pages",
        "a host kernel with 4 KiB pages",
    ),
    Why.IOVA_MODE: (
        "--iova-mode=pa (needs root), or IOVAs below the width of the IOMMU with --base-virtaddr",
        "bind all devices to vfio-pci: one on igb_uio or uio_pci_generic forces physical addresses",
    ),
}


def settling(
    whys: Sequence[Why], failure: Failure, usable: Usable | None, holes: Usable | None = None
) -> tuple[str, ...]:
    """Return the facts that would settle it, each with how to get it."""
    found: dict[str, None] = {}
    place = {Why.WIDTH, Why.HOLE, Why.SEAM}
    if place & set(whys) and usable is None and holes is None:
        found["the host's facts: vmm-iova capture -o host.json there, then explain --host"] = None
    if Why.WIDTH in whys and usable is None:
        found[
            "the width of the IOMMU: cat /sys/class/iommu/*/intel-iommu/cap (bits 21:16), or "
            "dmesg | grep -i 'iommu width\\|dmar\\|amd-vi'"
        ] = None
    if Why.HOLE in whys and usable is None and holes is None:
        found["the holes: grep . /sys/kernel/iommu_groups/*/reserved_regions"] = None
    if Why.CPU_BITS in whys and failure.op == "memslot":
        found["the physical address bits of the CPU: grep 'address sizes' /proc/cpuinfo"] = None
    if Why.DIRECT in whys:
        found[
            "whether firmware claims the device: grep -w direct "
            "/sys/kernel/iommu_groups/*/reserved_regions; dmesg | grep -i '1:1\\|RMRR'"
        ] = None
    if Why.ISOLATION in whys:
        found["the kernel's log: dmesg | grep -i 'remapping\\|unsafe'"] = None
    if Why.MEMLOCK in whys:
        found["the limit of the VMM: grep -i locked /proc/PID/limits; dmesg | grep MEMLOCK"] = None
    if Why.ENTRIES in whys:
        found["cat /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"] = None
    if failure.range is None and failure.op in ("map", "unmap", "memslot", "setup"):
        known = "its size" if failure.iova is not None else "address and size of the map"
        found[f"{known}: the VMM's line with the numbers, or strace -e ioctl"] = None
    if Why.ALIGNMENT in whys:
        found["the page size of the host's kernel: getconf PAGE_SIZE"] = None
    if Why.ORDER in whys and failure.op == "map":
        found["the order of the calls: strace -e ioctl (VFIO_SET_IOMMU before the first map)"] = (
            None
        )
    if Why.BAR in whys:
        found["whether the address is a BAR: /proc/PID/maps names vfio there"] = None
    if Why.LIVE_MAPS in whys:
        found["the devices' groups together: vmm-iova show --groups A,B"] = None
    if failure.op == "setup":
        found["the lines above it, and dmesg: they name the call that failed"] = None
    elif failure.errno is None and failure.op not in ("fault", "start"):
        found["the errno"] = None
    return tuple(found)
