# SPDX-License-Identifier: Apache-2.0
"""What can be done about a refused call, each as something to type, and what would settle it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.guest.errnos import Why
from vmm_iova.host.evidence import HYPERTRANSPORT
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.guest.errorline import Clues, Failure
    from vmm_iova.guest.explain import Verdict
    from vmm_iova.host.usable import Usable

_GIB = 1 << 30


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
    if why in (Why.WIDTH, Why.CPU_BITS):
        yield from _width(failure, verdict, bits or clues.cpu_bits)
    elif why is Why.HOLE:
        yield from _hole(failure, clues, verdict)
    elif why is Why.MEMLOCK:
        yield from _memlock(failure)
    else:
        yield from _FIXES.get(why, ())


def _width(failure: Failure, verdict: Verdict | None, bits: int | None) -> Iterator[str]:
    limit = bits or 39
    program = failure.program
    if program in ("DPDK", "SPDK"):
        yield (
            f"use IOVAs below 2^{limit}: --iova-mode=pa, or --base-virtaddr="
            f"{1 << (limit - 2):#x} (the IOVA is the virtual address otherwise)"
        )
    elif program in ("libvfn", "libevpl"):
        yield f"take IOVAs from the kernel's range list, all below {1 << limit:#x}"
    else:
        options = {
            "QEMU": f"-cpu host,host-phys-bits-limit={limit}",
            "libvirt": f"<maxphysaddr mode='passthrough' limit='{limit}'/> in <cpu>",
            "Proxmox": f"qm set VMID --cpu host,phys-bits={limit}",
            "Cloud Hypervisor": f"--cpus max_phys_bits={limit}",
        }
        if program == "QEMU":
            del options["Cloud Hypervisor"]
        elif program in options:
            options = {program: options[program]}
        shown = "; ".join(f"{name}: {text}" for name, text in options.items())
        yield f"limit the guest's physical address bits to {limit} ({shown})"
    yield from _elsewhere(verdict)
    if failure.part != "ram" and program not in ("DPDK", "SPDK", "libvfn", "libevpl"):
        yield (
            "if it is a BAR and nothing needs peer-to-peer DMA, the guest runs without this map: "
            "QEMU only warns; Cloud Hypervisor: vfio_p2p_dma=off"
        )
    if limit == 39:
        yield (
            "if the host is itself a guest of QEMU: -device intel-iommu,aw-bits=48 one level below"
        )
    yield "assign a device behind an IOMMU with more address bits"


def _elsewhere(verdict: Verdict | None) -> Iterator[str]:
    if verdict is None or verdict.ok:
        return
    if verdict.next_fit is not None:
        yield f"another base: all of it fits at {verdict.next_fit:#x}"
    if len(verdict.pieces) > 1:
        yield "map around it: " + ", ".join(map(str, verdict.pieces))
    elif verdict.room:
        yield f"a smaller one: {show_size(verdict.room)} fit at {verdict.range.start:#x}"


def _hole(failure: Failure, clues: Clues, verdict: Verdict | None) -> Iterator[str]:
    wanted = failure.range
    known = verdict is not None and not verdict.ok
    hypertransport = known and wanted is not None and wanted.overlaps(HYPERTRANSPORT)
    if hypertransport and failure.program in (None, "QEMU"):
        yield (
            "QEMU moves RAM to 1 TiB by itself with a machine type of 7.1 or newer and an AMD CPU "
            "model (-machine pc-q35-7.1, -cpu EPYC or host)"
        )
    if known:
        yield from _elsewhere(verdict)
    yield "plan the layout around it: vmm-iova plan --host HOST --machine q35 --ram SIZE"
    if verdict is not None:
        yield from (text for text in verdict.fixes if "firmware" in text or "--groups" in text)


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
    Why.HVA: ("map memory that is there and writable, before the IOVA is mapped (mmap, mlock)",),
    Why.BAR: (
        "turn peer-to-peer off (Cloud Hypervisor: vfio_p2p_dma=off); in QEMU the message is a "
        "warning, and the guest runs without peer-to-peer",
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
    ),
}


def settling(whys: Sequence[Why], failure: Failure, usable: Usable | None) -> tuple[str, ...]:
    """Return the facts that would settle it, each with how to get it."""
    found: dict[str, None] = {}
    place = {Why.WIDTH, Why.HOLE, Why.SEAM, Why.CPU_BITS}
    if place & set(whys) and usable is None:
        found["the host's facts: vmm-iova capture -o host.json there, then explain --host"] = None
    if Why.WIDTH in whys and usable is None:
        found[
            "the width of the IOMMU: cat /sys/class/iommu/*/intel-iommu/cap (bits 21:16), or "
            "dmesg | grep -i 'iommu width\\|dmar\\|amd-vi'"
        ] = None
    if Why.HOLE in whys and usable is None:
        found["the holes: grep . /sys/kernel/iommu_groups/*/reserved_regions"] = None
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
    if failure.range is None and failure.op == "map":
        found["IOVA and size of the map: the VMM's line with the numbers, or strace -e ioctl"] = (
            None
        )
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
    if failure.errno is None:
        found["the errno"] = None
    return tuple(found)
