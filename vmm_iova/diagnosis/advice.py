# SPDX-License-Identifier: Apache-2.0
"""What can be done about a refused call, each as something to type, and what would settle it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.diagnosis.causes import Why
from vmm_iova.diagnosis.check import MODELS, fewer_bits
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
        yield say.GUEST_IOMMU_BITS.format(bits=host)
    elif why is Why.ALIGNMENT and failure.op == "start":
        yield say.HARMLESS_REGION
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
        yield say.BELOW_WIDTH
        yield from fewer_bits(limit)
    elif program in ("DPDK", "SPDK"):
        yield say.BELOW_DPDK.format(bits=limit, base=1 << (limit - 2))
    elif program in _USER_SPACE_DRIVERS:
        yield say.BELOW_LIST.format(below=1 << limit)
    if verdict is not None and not verdict.ok:
        idle = "physical address bits" if program in _USER_SPACE_DRIVERS else say.WIDER_DEVICE
        yield from (text for text in verdict.fixes if idle not in text and text != say.WIDER_DEVICE)
    elif failure.part == "ram":
        yield say.LESS_RAM.format(bits=limit)
    elif program not in _USER_SPACE_DRIVERS and failure.op != "fault" and not below:
        yield from fewer_bits(limit, program=program)
    if failure.part != "ram" and failure.op != "fault" and program in (None, *MODELS):
        ways = {
            "QEMU": say.BAR_IDLE_QEMU,
            "Cloud Hypervisor": say.BAR_IDLE_CLOUD_HYPERVISOR,
        }
        yield say.BAR_IDLE.format(ways=ways.get(program or "", "; ".join(ways.values())))
    if limit == _CLIENT_BITS and not below and program not in _USER_SPACE_DRIVERS:
        yield say.NESTED_QEMU
    if program in _MACHINES:
        yield _plan_it(program)
    yield say.WIDER_DEVICE


def _plan_it(program: str | None) -> str:
    return say.PLAN_IT.format(machine=_MACHINES.get(program or "", "q35"))


def _cpu(
    failure: Failure, verdict: Verdict | None, bits: int | None, cpu: int | None
) -> Iterator[str]:
    """KVM refuses what the CPU does not reach; `bits` are those of IOMMU and CPU, the fewer."""
    if bits is None:
        yield say.CPU_COUNT
        yield say.CPU_BELOW
        return
    yield from fewer_bits(bits, program=failure.program)
    if verdict is None or verdict.ok:
        yield say.CPU_BELOW_BITS.format(bits=bits)
    else:
        yield from (text for text in verdict.fixes if "physical address bits" not in text)
    if failure.place is not None:
        needs = failure.place.last.bit_length()
        instead = f" instead of {cpu}" if cpu else " or more"
        yield say.CPU_OTHER.format(needs=needs, instead=instead)


def _hole(failure: Failure, clues: Clues, verdict: Verdict | None) -> Iterator[str]:
    wanted = failure.place
    known = verdict is not None and not verdict.ok
    hypertransport = known and wanted is not None and wanted.overlaps(HYPERTRANSPORT)
    if failure.op == "fault":
        yield say.KEEP_AWAY
        yield say.RESET_STRAY
        return
    if hypertransport and failure.program in (None, "QEMU") and failure.part != "bar":
        yield say.MOVED_BY_QEMU
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
    yield say.LOCK_LIBVIRT_ITSELF.format(need=need)
    yield say.LOCK_MAY_RAISE


def _memlock(failure: Failure) -> Iterator[str]:
    need = failure.size or 0
    total = need + _GIB
    kib = -(-total // 1024)
    yield say.LOCK_BY_LIBVIRT.format(
        least=say.LOCK_LEAST.format(size=show_size(need)) if need else "",
        kib=kib if need else "KIB",
        size=f"{kib} KiB" if need else "guest RAM plus 1 GiB",
    )
    yield say.LOCK_CAPABILITY
    yield say.LOCK_ONE_CONTAINER
    yield say.LOCK_PLAN


_FIXES: dict[Why, tuple[str, ...]] = {
    Why.DIRECT: (say.FIRMWARE_REGION, say.FREE_DEVICE, say.FIRMWARE_UPDATE),
    Why.SLOT_SIZE: (say.MORE_SLOTS,),
    Why.SEAM: (say.CUT_AT_SEAM,),
    Why.ALIGNMENT: (say.WHOLE_PAGES,),
    Why.WRAP: (say.END_BELOW,),
    Why.ORDER: (say.CALL_ORDER,),
    Why.FLAGS: (say.FLAGS,),
    Why.OVERLAP: (say.UNMAP_OR_MOVE, say.MAPPED_AGAIN),
    Why.ENTRIES: (say.ENTRIES_LARGER, say.ENTRIES_RAISE, say.ENTRIES_IOMMUFD),
    Why.HVA: (say.BACKING_ROOM, say.BACKING_WRITABLE),
    Why.BAR: (say.BAR_OFF, say.BAR_TYPE1, say.BAR_DMA_BUF),
    Why.ISOLATION: (say.REMAP_INTERRUPTS, say.UNSAFE_INTERRUPTS),
    Why.LIVE_MAPS: (say.ATTACH_FIRST, say.UNMAP_REGIONS),
    Why.NOT_VIABLE: (say.BIND_GROUP,),
    Why.BUSY: (say.CLOSE_OTHER,),
    Why.ABSENT: (say.BIND_AND_LOAD,),
    Why.COHERENCY: (say.COHERENCY,),
    Why.NOT_MAPPED: (say.UNMAP_EXACT,),
    Why.CUT: (say.UNMAP_WHOLE,),
    Why.ROOM: (say.LESS_ROOM,),
    Why.PERMISSION: (say.GIVE_NODE.format(node="/dev/vfio/GROUP"), say.GIVE_CONTAINER),
    Why.UNMAPPED_DMA: (say.MAP_BEFORE_USE, say.TELL_GUEST, say.RESET_DEVICE),
    Why.REQUESTER: (say.ALL_FUNCTIONS, say.KERNEL_QUIRK),
    Why.GUEST_BITS: (say.HOST_BITS, say.LESS_OR_SMALLER, say.PLAN_BITS),
    Why.BACKING: (say.HUGEPAGES_FREE, say.SMALLER_GUEST),
    Why.NO_IOMMU: (say.FIRMWARE_ON, say.KERNEL_ON, say.LOAD_MODULES),
    Why.VIOMMU_NOTIFY: (say.CACHING_MODE, say.ARM_NOTIFY, say.IOMMU_FIRST),
    Why.VIOMMU_PAGES: (say.HOST_GRANULE, say.SMALL_PAGES),
    Why.IOVA_MODE: (say.IOVA_MODE, say.BIND_ALL_DPDK),
}


def settling(
    whys: Sequence[Why], failure: Failure, usable: Usable | None, holes: Usable | None = None
) -> tuple[str, ...]:
    """Return the facts that would settle it, each with how to get it."""
    found: dict[str, None] = {}
    place = {Why.WIDTH, Why.HOLE, Why.SEAM}
    if place & set(whys) and usable is None and holes is None:
        found[say.SETTLE_HOST] = None
    if Why.WIDTH in whys and usable is None:
        found[say.SETTLE_WIDTH] = None
    if Why.HOLE in whys and usable is None and holes is None:
        found[say.SETTLE_HOLES] = None
    if Why.CPU_BITS in whys and failure.op == "memslot":
        found[say.SETTLE_CPU] = None
    found.update((text, None) for why, text in _SETTLES_FIRST.items() if why in whys)
    if failure.range is None and failure.op in ("map", "unmap", "memslot", "setup"):
        known = "its size" if failure.iova is not None else "address and size of the map"
        found[say.SETTLE_NUMBERS.format(what=known)] = None
    if Why.ALIGNMENT in whys:
        found[say.SETTLE_PAGE] = None
    if Why.ORDER in whys and failure.op == "map":
        found[say.SETTLE_ORDER] = None
    if Why.BAR in whys:
        found[say.SETTLE_BAR] = None
    if Why.LIVE_MAPS in whys:
        found[say.SETTLE_GROUPS] = None
    if failure.op == "setup":
        found[say.SETTLE_CALL] = None
    elif failure.errno is None and failure.op not in ("fault", "start"):
        found[say.SETTLE_ERRNO] = None
    return tuple(found)


_SETTLES_FIRST = {
    Why.DIRECT: say.SETTLE_DIRECT,
    Why.ISOLATION: say.SETTLE_ISOLATION,
    Why.MEMLOCK: say.SETTLE_MEMLOCK,
    Why.ENTRIES: say.SETTLE_ENTRIES,
}
