# SPDX-License-Identifier: Apache-2.0
"""Which remedies help against a cause, with which numbers, in which order; what would settle it.

The wording is `vmm_iova.remedies`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.diagnosis.check import MODELS, fewer_bits
from vmm_iova.diagnosis.filled_remedies import Advice, fill
from vmm_iova.diagnosis.places import CLIENT_BITS, is_bar
from vmm_iova.diagnosis.why import Op, Part, Why
from vmm_iova.host.evidence import HYPERTRANSPORT
from vmm_iova.host.obstacles import iommu_hint
from vmm_iova.ranges import GIB, MIB
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm_iova.diagnosis.case import Case
    from vmm_iova.remedies import Remedy

_USER_SPACE_DRIVERS = ("DPDK", "SPDK", "libvfn", "libevpl", "unvme")
_UNLIMITED = 1 << 52  # libvirt's 9007199254740991 KiB and such are no numbers


def actions(whys: Sequence[Why], case: Case) -> tuple[Advice, ...]:
    """Return what can be done, in the order in which it is likely to help.

    Args:
        whys: causes, the most certain first.
        case: what is known.
    """
    found: dict[str, Advice] = {}
    if not whys:
        return tuple(_unexplained(case))
    for why in whys:
        for item in _of(why, case):
            found.setdefault(str(item), item)
    return tuple(found.values())


def _unexplained(case: Case) -> Iterator[Advice]:
    """What to do where the facts allow what the kernel refused."""
    call = case.failure
    if call.op is not Op.MAP or case.usable is None:
        return
    if call.part is Part.BAR and call.program == "QEMU" and not case.clues.fatal:
        yield fill(say.PEER_IDLE)
    yield fill(say.OTHER_FACTS)


def _of(why: Why, case: Case) -> Iterator[Advice]:
    special = _SPECIAL.get(why)
    if special is not None:
        yield from special(case)
        return
    yield from (fill(item, case.failure.program) for item in _FIXES.get(why, ()))


def _plain(texts: Sequence[str]) -> Iterator[Advice]:
    """Sentences that `check` has filled already."""
    return (Advice(text) for text in texts)


def _width(case: Case) -> Iterator[Advice]:
    call, verdict = case.failure, case.verdict
    limit = case.bits or CLIENT_BITS
    program = call.program
    below = call.place is not None and call.place.last < 1 << limit
    user_space = program in _USER_SPACE_DRIVERS
    if call.op is Op.FAULT:
        yield fill(say.BELOW_WIDTH)
        return
    bar = call.part is Part.BAR or case.clues.peer
    if program == "kernel" and not bar:
        yield fill(say.BELOW_WIDTH)
    if bar and program in ("QEMU", "libvirt", "Proxmox") and not case.clues.fatal:
        yield fill(say.PEER_IDLE)
    elif bar and program is None:
        yield fill(say.PEER_IDLE_UNSURE, program)
    if program in ("DPDK", "SPDK"):
        yield fill(say.BELOW_DPDK, bits=limit, base=1 << (limit - 2))
    elif user_space:
        yield fill(say.BELOW_LIST, below=1 << limit)
    if verdict is not None and not verdict.ok:
        useless = "physical address bits" if user_space else say.WIDER_DEVICE
        texts = [text for text in verdict.fixes if useless not in text]
        texts = [text for text in texts if text != say.WIDER_DEVICE]
        if bar:
            texts = [text for text in texts if "physical address bits" not in text]
            yield from _fewer(case, limit, verdict.bits_needed)
        yield from _plain(texts)
    elif call.part is Part.RAM:
        yield fill(say.LESS_RAM, bits=limit)
    elif not user_space and not below:
        yield from _fewer(case, limit, None)
    idle = call.part is None and not bar and not user_space and not case.clues.fatal
    if idle and program in (None, *MODELS):
        yield fill(say.PEER_IDLE_UNSURE, program)
    if bar and program == "Cloud Hypervisor":
        yield fill(say.BAR_OFF)
    if limit == CLIENT_BITS and not below and not user_space:
        yield fill(say.NESTED_QEMU)
    if program in _MACHINES:
        yield _plan_it(case)
    yield fill(say.WIDER_DEVICE)


def _fewer(case: Case, bits: int, needed: int | None) -> Iterator[Advice]:
    """Fewer address bits for the guest: where there is such an option, and its BARs fit below."""
    program, qemu = case.failure.program, case.clues.qemu
    if qemu is not None and qemu.arch not in (None, "x86_64", "i386"):
        return  # QEMU has the option on x86 only
    arch = case.usable.arch if case.usable is not None else None
    listed = sum(size for _, _, size in case.clues.bars if size >= MIB)
    bars = max(listed, case.failure.size or 0)
    idle = case.failure.part is Part.BAR and not case.clues.fatal  # the guest runs without
    purpose = "to have peer-to-peer: " if idle else ""
    advice = fewer_bits(bits, needed, program, arch, bars=bars, purpose=purpose)
    if advice is None:
        return
    yield advice
    window = (1 << bits) // 8
    if case.failure.part is not Part.RAM:
        yield fill(say.ONLY_IF_BARS_FIT, bits=bits, window=show_size(window))


def _plan_it(case: Case) -> Advice:
    qemu = case.clues.qemu
    ram = "SIZE"
    if qemu is not None and qemu.ram is not None:
        ram = show_size(qemu.ram).replace(" ", "")
    return fill(say.PLAN_IT, machine=machine_of(case), ram=ram)


def machine_of(case: Case) -> str:
    """Name the machine model of the program that failed."""
    text, qemu = case.failure.text, case.clues.qemu
    arch = qemu.arch if qemu is not None else None
    if arch is None and case.usable is not None and "qemu-system-" not in text:
        arch = case.usable.arch  # with KVM a guest is what its host is
    for name, machine in (("aarch64", "virt"), ("riscv64", "riscv-virt"), ("s390x", "s390x")):
        if arch == name or f"qemu-system-{name}" in text:
            return machine
    kind = (qemu.machine if qemu is not None else None) or ""
    if kind == "pc" or kind.startswith("pc-i440fx"):
        return "i440fx"
    return _MACHINES.get(case.failure.program or "", "microvm" if kind == "microvm" else "q35")


_MACHINES = {
    "Cloud Hypervisor": "cloud-hypervisor",
    "Firecracker": "firecracker",
    "crosvm": "crosvm",
    "kvmtool": "kvmtool",
}


def _cpu(case: Case) -> Iterator[Advice]:
    """KVM refuses what the CPU does not reach; `bits` are those of IOMMU and CPU, the fewer."""
    bits, verdict, call = case.bits, case.verdict, case.failure
    if bits is None:
        yield fill(say.CPU_COUNT)
        yield fill(say.CPU_BELOW)
        return
    advice = fewer_bits(bits, program=call.program)
    if advice is not None:
        yield advice
    if verdict is None or verdict.ok:
        yield fill(say.CPU_BELOW_BITS, bits=bits)
    else:
        yield from _plain([text for text in verdict.fixes if "physical address" not in text])
    if call.place is not None:
        cpu = case.clues.cpu_bits
        instead = f" instead of {cpu}" if cpu else " or more"
        yield fill(say.CPU_OTHER, needs=call.place.last.bit_length(), instead=instead)


def _hole(case: Case) -> Iterator[Advice]:
    call, verdict = case.failure, case.verdict
    known = verdict is not None and not verdict.ok
    if call.op is Op.FAULT:
        yield fill(say.KEEP_AWAY)
        yield fill(say.RESET_STRAY)
        return
    wanted = call.place
    hypertransport = wanted is not None and wanted.overlaps(HYPERTRANSPORT)
    qemu = call.program in (None, "QEMU")
    machine = machine_of(case)
    if known and hypertransport and qemu and call.part is not Part.BAR and machine == "q35":
        yield fill(say.MOVED_BY_QEMU)
    if call.part is not Part.BAR and not known and wanted is not None:
        yield from _smaller_guest(case)
    if verdict is not None and known:
        yield from _plain(verdict.fixes)
    yield _plan_it(case)


def _smaller_guest(case: Case) -> Iterator[Advice]:
    """A guest whose RAM ends below a likely hole; RAM in pieces would need the others, too."""
    wanted = case.failure.place
    if case.failure.program not in ("QEMU", None) or wanted is None:
        return
    holes = [text for text in (item.text for item in case.found.values()) if "fit below it" in text]
    start = 0x4000_0000
    if holes and wanted.start == start:  # QEMU's virt has all of its RAM in one piece
        size = holes[0].rpartition("; ")[2].removesuffix(" fit below it")
        yield fill(say.SMALLER_GUEST_AT, size=size)


def _rlimit(case: Case) -> Iterator[Advice]:
    size = case.failure.size
    need = f" to {size} bytes or more" if size and size < _UNLIMITED else ""
    yield fill(say.LOCK_LIBVIRT_ITSELF, need=need)
    yield fill(say.LOCK_MAY_RAISE)


def _memlock(case: Case) -> Iterator[Advice]:
    qemu, program = case.clues.qemu, case.failure.program
    way = program if program == "libvirt" else None
    if qemu is not None and qemu.ram:
        total = qemu.ram * qemu.containers + GIB
        times = f" x {qemu.containers} devices behind the guest's IOMMU" * (qemu.containers > 1)
        how = f"{show_size(qemu.ram)} of RAM{times} + 1 GiB"
        yield fill(say.LOCK_RAM, way, size=show_size(total), how=how, kib=total >> 10, bytes=total)
    else:
        yield fill(say.LOCK_SOMETHING, way)
    yield fill(say.LOCK_CAPABILITY)
    if qemu is not None and qemu.containers > 1:
        yield fill(say.LOCK_NO_VIOMMU, viommu=qemu.viommu)
    else:
        yield fill(say.LOCK_ONE_CONTAINER)
    yield fill(say.LOCK_PLAN)


def _viommu_width(case: Case) -> Iterator[Advice]:
    host = 48 if (case.bits or CLIENT_BITS) >= 48 else CLIENT_BITS  # it knows 39, 48 and 57
    yield fill(say.GUEST_IOMMU_BITS, bits=host)


def _alignment(case: Case) -> Iterator[Advice]:
    verdict = case.verdict
    if case.failure.op is Op.START:
        yield fill(say.HARMLESS_REGION)
    elif verdict is not None and verdict.kind == "granule":
        yield from _plain(verdict.fixes)
    else:
        yield fill(say.WHOLE_PAGES)


def _direct(case: Case) -> Iterator[Advice]:
    text = " ".join([case.failure.text, *(line for _, line in case.clues.signs)])
    if "HPE" in text or "ProLiant" in text:
        yield fill(say.FIRMWARE_HPE)
    yield fill(say.FIRMWARE_REGION)
    if not ("HPE" in text or "ProLiant" in text) and case.platform.vendor != "amd":
        yield fill(say.FIRMWARE_HPE)
    yield fill(say.FIRMWARE_CLAIMS)
    if case.platform.vendor in (None, "amd"):
        yield fill(say.FIRMWARE_UPDATE)
    yield fill(say.FREE_DEVICE)


def _no_iommu(case: Case) -> Iterator[Advice]:
    if case.failure.program == "Xen":
        yield fill(say.IOMMU_ON_XEN)
        return
    board = case.clues.board
    hint = iommu_hint(case.platform, "arm" if _on_arm(case) else None)
    if board is not None:
        yield fill(say.NO_IOMMU_BOARD, board=board)
    else:  # the report does not tell of which kind the machine is
        yield fill(say.IOMMU_IF_ANY if hint is say.IOMMU_ON else hint)
    if case.failure.device is not None:
        yield fill(say.SEE_GROUP, bdf=case.failure.device)
    if board is None:
        yield fill(say.READ_IOMMU_LOG)
    if case.failure.op is Op.PROBE or board is not None:
        yield fill(say.NO_IOMMU_MODE)
    else:
        yield fill(say.LOAD_MODULES)


def _on_arm(case: Case) -> bool:
    """Platform devices in groups, and no PCI device: a board of Arm's world."""
    members = [name for name, _ in case.clues.members]
    return bool(members) and not any(name.count(":") == 2 for name in members)


def _not_viable(case: Case) -> Iterator[Advice]:
    others = others_of_group(case)
    if others:
        yield fill(say.BIND_THESE, devices=", ".join(others))
    else:
        yield fill(say.BIND_GROUP)


def others_of_group(case: Case) -> list[str]:
    """Devices of the failing group that are neither bridges nor bound to VFIO, by the listings."""
    clues = case.clues
    group = case.failure.group or clues.listed.get(case.failure.device or "")
    if group is None:
        return []
    pci = {item.name: item for item in clues.pci}
    named = [name for name, of in clues.listed.items() if of == group]
    return [
        name
        for name in named
        if name != case.failure.device
        and not (name in pci and (pci[name].bridge or "vfio" in (pci[name].driver or "")))
    ]


def _fault(case: Case) -> Iterator[Advice]:
    call = case.failure
    bdf = (call.device or "BDF").removeprefix("0000:")
    driver = call.driver or next(
        (item.driver for item in case.clues.pci if item.name == call.device), None
    )
    if driver is None or "vfio" in driver:
        yield fill(say.MAP_BEFORE_USE)
        yield fill(say.TELL_GUEST)
    if driver is None or "vfio" not in driver:
        yield fill(say.HOST_DRIVER, bdf=bdf)
    if driver is None or "vfio" in driver:
        yield fill(say.RESET_DEVICE)


def _bar(case: Case) -> Iterator[Advice]:
    program = case.failure.program
    if program == "Cloud Hypervisor":
        yield fill(say.BAR_OFF)
    elif program in (None, "QEMU", "libvirt", "Proxmox"):
        yield fill(say.PEER_IDLE)
    yield fill(say.BAR_DMA_BUF, program)


def _memory(case: Case) -> Iterator[Advice]:
    """Pages that the kernel does not get at: of RAM, or of a BAR, which nothing backs."""
    call = case.failure
    if not is_bar(case):
        yield fill(say.BACKING_ROOM)
        yield fill(say.BACKING_WRITABLE)
        return
    if call.program in ("QEMU", "libvirt", "Proxmox") and not case.clues.fatal:
        yield fill(say.PEER_IDLE)
    bdf = (call.device or (case.clues.devices or ("BDF",))[0]).removeprefix("0000:")
    yield fill(say.BAR_MEMORY, bdf=bdf)


def _peer(case: Case) -> Iterator[Advice]:
    yield fill(say.PEER_IDLE)


def _no_space(case: Case) -> Iterator[Advice]:
    sizes = [size for _, _, size in case.clues.bars]
    total = max(case.failure.size or 0, sum(sizes))
    if total:
        window = 1 << (2 * total - 1).bit_length()
        yield fill(say.WINDOW_LARGER, window=show_size(window), mib=window // MIB)
    else:
        yield fill(say.WINDOW_LARGER, window="twice the size of its BARs", mib="MIB")
    yield fill(say.WINDOW_BITS)
    yield fill(say.WINDOW_HOST)


def _no_cdev(case: Case) -> Iterator[Advice]:
    yield fill(say.NODE_BY_GROUP)
    yield fill(say.NODE_OF_DEVICE)
    yield fill(say.NODE_IN_CONTAINER)


def _permission(case: Case) -> Iterator[Advice]:
    yield fill(say.GIVE_NODE, node=case.failure.node or "/dev/vfio/GROUP")
    yield fill(say.GIVE_CONTAINER)


def _absent(case: Case) -> Iterator[Advice]:
    if case.failure.node == "/dev/iommu":
        yield fill(say.LOAD_IOMMUFD)
        return
    yield fill(say.BIND_AND_LOAD)


def _unbound(case: Case) -> Iterator[Advice]:
    yield fill(say.BIND_THIS, bdf=case.failure.device or "BDF")


def _overlap(case: Case) -> Iterator[Advice]:
    again = fill(say.MAPPED_AGAIN)
    if case.failure.program in ("DPDK", "SPDK"):
        yield again
        yield fill(say.UNMAP_OR_MOVE)
        return
    yield fill(say.UNMAP_OR_MOVE)
    yield again


def _entries(case: Case) -> Iterator[Advice]:
    if case.failure.warning:
        yield fill(say.ENTRIES_WAIT)
    yield fill(say.ENTRIES_LARGER)
    yield fill(say.ENTRIES_RAISE)
    yield fill(say.ENTRIES_IOMMUFD)


def _outside(case: Case) -> Iterator[Advice]:
    if case.failure.place is None:
        yield _plan_it(case)
        return
    likely = [why for why in (Why.HOLE, Why.WIDTH) if why in case.found]
    low = case.failure.place.last < 1 << 32  # where no IOMMU is too narrow
    for why in likely or [Why.HOLE if low else Why.WIDTH]:
        yield from _of(why, case)


_SPECIAL: dict[Why, Callable[[Case], Iterator[Advice]]] = {
    Why.WIDTH: _width,
    Why.CPU_BITS: _cpu,
    Why.HOLE: _hole,
    Why.OUTSIDE: _outside,
    Why.MEMLOCK: _memlock,
    Why.RLIMIT: _rlimit,
    Why.VIOMMU_WIDTH: _viommu_width,
    Why.ALIGNMENT: _alignment,
    Why.DIRECT: _direct,
    Why.NO_IOMMU: _no_iommu,
    Why.NO_GROUP: _no_iommu,
    Why.NO_DOMAIN: _no_iommu,
    Why.NOT_VIABLE: _not_viable,
    Why.UNMAPPED_DMA: _fault,
    Why.BAR: _bar,
    Why.HVA: _memory,
    Why.PEER: _peer,
    Why.NO_SPACE: _no_space,
    Why.NO_CDEV: _no_cdev,
    Why.PERMISSION: _permission,
    Why.ABSENT: _absent,
    Why.UNBOUND: _unbound,
    Why.OVERLAP: _overlap,
    Why.ENTRIES: _entries,
}
_FIXES: dict[Why, tuple[Remedy, ...]] = {
    Why.SLOT_SIZE: (say.MORE_SLOTS,),
    Why.SEAM: (say.CUT_AT_SEAM,),
    Why.WRAP: (say.END_BELOW,),
    Why.ORDER: (say.CALL_ORDER,),
    Why.FLAGS: (say.FLAGS,),
    Why.ISOLATION: (say.REMAP_INTERRUPTS, say.UNSAFE_INTERRUPTS),
    Why.LIVE_MAPS: (say.ATTACH_FIRST, say.UNMAP_REGIONS),
    Why.BUSY: (say.CLOSE_OTHER,),
    Why.UNMATCHED: (say.OVERRIDE_FIRST,),
    Why.SHARED_GROUP: (say.SAME_SPACE, say.ONE_OWNER, say.SPLIT_GROUP),
    Why.COHERENCY: (say.COHERENCY,),
    Why.NOT_MAPPED: (say.UNMAP_EXACT,),
    Why.CUT: (say.UNMAP_WHOLE,),
    Why.ROOM: (say.LESS_ROOM,),
    Why.FOREIGN_FILE: (say.SET_CONTAINER_FILE,),
    Why.MEDIATED: (say.MEDIATED_DRIVER,),
    Why.MEDIATED_GROUP: (say.IOMMU_ON_MEDIATED,),
    Why.REQUESTER: (say.ALL_FUNCTIONS, say.KERNEL_QUIRK),
    Why.GRAPHICS: (say.GRAPHICS_OFF,),
    Why.INVALID_REQUEST: (say.FIRMWARE_TABLE,),
    Why.HARDWARE: (say.CHECK_HARDWARE,),
    Why.UNTRANSLATED: (say.NO_TRANSLATION,),
    Why.BAR_MOVED: (say.BAR_BY_GUEST, say.BAR_FIRMWARE),
    Why.BAR_HELD: (say.RELEASE_BAR,),
    Why.GUEST_BITS: (say.HOST_BITS, say.LESS_OR_SMALLER, say.PLAN_BITS),
    Why.BACKING: (say.HUGEPAGES_FREE, say.SMALLER_GUEST),
    Why.VIOMMU_NOTIFY: (say.CACHING_MODE, say.ARM_NOTIFY, say.IOMMU_FIRST),
    Why.VIOMMU_PAGES: (say.HOST_GRANULE, say.SMALL_PAGES),
    Why.NO_VIOMMU: (say.ADD_VIOMMU,),
    Why.ACS: (say.ACS_OVERRIDE,),
    Why.IOVA_MODE: (say.IOVA_MODE, say.BIND_ALL_DPDK),
    Why.UNWOUND: (say.READ_LINE_ABOVE,),
    Why.BOUNCE: (say.BOUNCE_LARGER, say.BOUNCE_IOMMU),
    Why.TOOLSTACK: (say.XEN_LOGS, say.XEN_ASSIGNABLE),
    Why.MEDIATED_ROOM: (say.MEDIATED_SMALLER,),
    Why.VFIO_USER: (say.VFIO_USER_REGIONS,),
    Why.VIOMMU_MISS: (say.VIOMMU_MAPS,),
    Why.GUEST_DRIVER: (say.MOVED_RAM, say.HIDE_VM),
    Why.OTHER: (say.OTHER_MAKER,),
}
