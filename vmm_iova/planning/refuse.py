# SPDX-License-Identifier: Apache-2.0
"""Why a guest has no place: a misfit in words, with every width, and fixes that were tried.

Nothing else in planning tries again. A fix that names a number or a policy was planned with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.diagnosis.check import region_fixes
from vmm_iova.diagnosis.filled_remedies import fill
from vmm_iova.errors import PlanError
from vmm_iova.host.evidence import EvidenceKind
from vmm_iova.host.facts import RegionKind
from vmm_iova.host.registers import width_line
from vmm_iova.host.usable import Cause, CauseKind
from vmm_iova.planning.bars import fit
from vmm_iova.planning.describe import Reason, describe, holes_of, limit_of, roomy_windows
from vmm_iova.planning.firmware_bars import ovmf_megabytes
from vmm_iova.planning.misfit import (
    AreaMisfit,
    BarMisfit,
    BarUnreached,
    DoorbellMisfit,
    Misfit,
    RamBlocked,
    RamHidden,
    RamLeft,
    RamTooMuch,
    RoomMisfit,
    StartRefused,
    TopUnknown,
    ViommuTooWide,
    WindowMisfit,
)
from vmm_iova.planning.request import VIOMMU_BITS, AddressLimit
from vmm_iova.planning.site import HolePolicy, Policy, site_of
from vmm_iova.planning.trials import Trials
from vmm_iova.ranges import ADDRESS_LAST, BASE_PAGE, MIB, AddrRange
from vmm_iova.record import replace
from vmm_iova.units import format_size, show_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.machines.model import Machine
    from vmm_iova.planning.bars import WantedBar
    from vmm_iova.planning.site import Site
    from vmm_iova.planning.trials import Attempt

_LISTED = 8  # more places than that are no help
_LEAST_BITS = 36  # fewer address bits make no guest that starts
_LEAST_BAR = MIB  # smallest size that a resizable BAR can have (PCIe specification, 7.8.6)


def explain(misfit: Misfit, site: Site, policy: Policy, attempt: Attempt) -> PlanError:
    """Make the error for a misfit: what is in the way, and what was tried and works.

    Args:
        misfit: what an attempt raised.
        site: the site of that attempt.
        policy: its policy.
        attempt: makes another one.

    Complexity: a few dozen attempts.
    """
    trials = Trials(site, policy, attempt)
    message, reasons = describe(misfit, site)
    detail = None
    if isinstance(misfit, RamBlocked):
        fixes = _fixes_of_blocked(misfit, reasons, trials)
        detail = "; ".join(map(str, reasons[1:4]))
        detail = f"also: {detail}" if detail else None
    elif isinstance(misfit, RamLeft):
        fixes = _fixes_of_left(misfit, trials)
    elif isinstance(misfit, BarMisfit):
        fixes = list(_fixes_of_bar(misfit, reasons, trials))
    elif isinstance(misfit, RoomMisfit):
        fixes = list(_fixes_of_room(misfit, trials))
    else:
        fixes = list(_other_fixes(misfit, trials))
    if not isinstance(misfit, RamTooMuch | TopUnknown | WindowMisfit | StartRefused):
        fixes, widths = _with_widths(fixes, reasons, trials)
        detail = "; ".join(filter(None, (detail, widths))) or None
    if isinstance(misfit, RamLeft) and not fixes:
        fixes = _next(misfit.fits // MIB, trials)
    if not fixes:
        fixes = [
            say.ANOTHER_OR_DEVICE
        ]  # more than one thing is in the way, and no single change is enough
    return PlanError(message, reasons=reasons, fixes=fixes, detail=detail)


# -- what helps ------------------------------------------------------------------------------------


def _size(size: int) -> str:
    return format_size(size).replace(" ", "")


def _listed(places: Sequence[object]) -> str:
    shown = ", ".join(map(str, places[:_LISTED]))
    return shown if len(places) <= _LISTED else f"{shown} and {len(places) - _LISTED} more places"


def _ram(size: int) -> str:
    """An option to paste: the size, cut to whole MiB."""
    whole = size // MIB * MIB
    exact = _size(whole)
    return f"--ram {f'{whole // MIB}MiB' if exact.startswith('0x') else exact}"


def _fixes_of_blocked(misfit: RamBlocked, reasons: list[Reason], trials: Trials) -> list[str]:
    """Another policy, less RAM, or what removes the obstacle."""
    policies = trials.policies()
    fixes = [
        say.ON_HOLE_PUTS.format(policy=policy.value, places=_listed(places))
        for policy, places in policies.items()
    ]
    fixes += region_fixes([reason.cause for reason in reasons], trials.site.host)
    fixes += _below(misfit, reasons, trials)
    if not fixes:
        fixes.append(say.HOLELESS_DEVICE)
    if not policies and trials.policy.on_hole is not HolePolicy.SPLIT:
        fixes = [*_less(trials), *fixes]
    if trials.policy.on_hole is HolePolicy.AUTO:
        fixes = [*_fitting_ram(trials), *fixes]
    return fixes


def _less(trials: Trials) -> Iterator[str]:
    """What fits with `split`."""
    site = trials.site
    _, over = site.around_holes()
    fits = (site.wanted.ram - over) // MIB * MIB
    machine = site.wanted.machine
    if machine.identity and "split" in machine.can and trials.ram_works(fits, HolePolicy.SPLIT):
        yield say.SPLIT_FITS.format(mib=fits // MIB)


def _below(misfit: RamBlocked, reasons: list[Reason], trials: Trials) -> Iterator[str]:
    """RAM that stays below a single obstacle in the topmost window."""
    site = trials.site
    refuses = trials.policy.on_hole is HolePolicy.REFUSE
    if not refuses or len(reasons) != 1 or not site.wanted.machine.identity:
        return
    pieces, _ = site.as_machine()
    spans = [piece.span for piece in pieces if piece.window is pieces[-1].window]
    if misfit.span != AddrRange(spans[0].start, spans[-1].last):
        return
    most = site.wanted.ram - misfit.span.size + misfit.fits
    if misfit.fits and trials.ram_works(most // MIB * MIB):  # as the fix says it
        yield say.RAM_BELOW.format(ram=_ram(most))


def _fixes_of_left(misfit: RamLeft, trials: Trials) -> list[str]:
    """How much fits, or what gives room back."""
    fixes = list(_more_room(misfit, trials.site))
    most = trials.most_ram(misfit.fits)
    if most:
        exact = most == misfit.fits // MIB * MIB
        ram = _ram(most) if exact else f"--ram {most // MIB}MiB"
        fixes.insert(0, say.RAM_FITS.format(ram=ram))
    return fixes


def _more_room(misfit: RamLeft, site: Site) -> Iterator[str]:
    """Which holes are worth giving back, and which device or option has more room."""
    holes, limit = holes_of(misfit), limit_of(misfit)
    worth = _worth(holes, limit, site.wanted.ram - misfit.fits)
    yield from region_fixes(worth, site.usable)
    ends = limit is not None and limit.kind is CauseKind.APERTURE
    if ends and any(item.kind is EvidenceKind.STATED for item in site.usable.evidence):
        yield say.WIDER_APERTURE
    better = ["more address bits"] if ends else []
    if any(cause.kind is not CauseKind.GUEST for cause in worth):
        better.append("fewer holes")
    if better:
        yield say.ROOMIER_DEVICE.format(better=" or ".join(better))
    elif not holes and limit is None:
        yield say.ANOTHER_MACHINE


def _worth(holes: Sequence[Cause], limit: Cause | None, left: int) -> list[Cause]:
    """The holes that are worth giving back: all, or the relaxable ones, if that is enough."""
    stop = limit.range.start if limit is not None else ADDRESS_LAST

    def gain(causes: Sequence[Cause]) -> int:
        return sum(min(c.range.last + 1, stop) - min(c.range.start, stop) for c in causes)

    relaxable = [
        cause
        for cause in holes
        if cause.region is not None and cause.region.kind is RegionKind.DIRECT_RELAXABLE
    ]
    if gain(holes) < left:
        return []
    return [cause for cause in holes if gain(relaxable) >= left or cause not in relaxable]


def _next(fits: int, trials: Trials) -> list[str]:
    """Where less RAM alone is not enough: what is in the way then."""
    if not fits:
        return [say.ANOTHER_OR_DEVICE]
    less = site_of(trials.with_ram(fits * MIB), trials.site.host, trials.site)
    try:
        trials.attempt(less, Policy(trials.policy.on_hole, own=True))
    except Misfit as misfit:
        message, _ = describe(misfit, less)
        return [say.RAM_NOT_ENOUGH.format(mib=fits, message=message)]
    return [say.RAM_LESS]


def _fixes_of_bar(misfit: BarMisfit, reasons: list[Reason], trials: Trials) -> Iterator[str]:
    """A wider window, another policy, another kind of BAR, less RAM, a smaller BAR."""
    bar, roomy, name = misfit.bar, roomy_windows(misfit), misfit.bar.name
    if trials.site.wanted.pci64_stated and bar.bits == 64:
        yield say.PCI64_GROWS
    for policy in trials.policies():
        yield say.ON_HOLE_ROOM.format(policy=policy.value)
    if roomy and any(reason.cause.kind is CauseKind.APERTURE for reason in reasons):
        place = fit(roomy[:1], bar.size, bar.align, downward=False)
        assert place is not None  # that is what roomy means
        yield say.BITS_DEVICE.format(bits=place.last.bit_length())
    below = replace(bar, bits=32)
    if bar.bits == 64 and not bar.behind and trials.works(trials.with_bar(bar, below)):
        yield say.BAR_BELOW_4G.format(name=name, size=_size(bar.size))
    if bar.required and trials.works(trials.with_bar(bar, bar.optional)):
        yield say.BAR_OPTIONAL
    yield from _less_ram(trials)
    yield from _smaller_bar(bar, trials)


def _smaller_bar(bar: WantedBar, trials: Trials) -> Iterator[str]:
    """The largest BAR that has a place, if the device has one."""
    top = 0 if bar.behind else (bar.size - 1).bit_length()  # of a port each BAR is its own
    sizes = [1 << bits for bits in reversed(range(_LEAST_BAR.bit_length() - 1, top))]
    for size in sizes:
        if bar.sizes is not None and size not in bar.sizes:
            continue  # the device cannot
        if trials.works(trials.with_bar(bar, replace(bar, size=size, align=size))):
            shown = show_size(size)
            if bar.sized_by:
                bit = (size // MIB).bit_length() - 1
                yield str(fill(say.RESIZE_BAR, size=shown, bit=bit, file=bar.sized_by))
            else:
                yield say.BAR_SMALLER.format(size=shown)
            return
    yield say.ANOTHER_OR_FEWER_BARS


def _less_ram(trials: Trials) -> Iterator[str]:
    most = trials.most_ram()
    if most:
        yield say.RAM_LEAVES.format(size=_size(most))


def _fixes_of_room(misfit: RoomMisfit, trials: Trials) -> Iterator[str]:
    if misfit.fits:
        yield say.ROOM_FITS.format(name=misfit.room.name, size=_size(misfit.fits))
    yield from _less_ram(trials)


def _other_fixes(misfit: Misfit, trials: Trials) -> Iterator[str]:
    machine = trials.site.wanted.machine
    if isinstance(misfit, RamTooMuch):
        most = trials.most_ram(misfit.fits)
        if most:
            yield say.RAM_MOST.format(size=_size(most))
        yield say.ANOTHER_MACHINE
    elif isinstance(misfit, TopUnknown):
        yield _phys_bits("N", _more_bits(machine, "N"))
    elif isinstance(misfit, ViommuTooWide):
        fitting = [bits for bits in VIOMMU_BITS if bits <= misfit.bits]
        if fitting and trials.works(replace(trials.site.wanted, viommu_bits=fitting[-1])):
            yield say.VIOMMU_NARROW.format(
                bits=fitting[-1], option=say.GUEST_IOMMU_OPTION.format(bits=fitting[-1])
            )
    elif isinstance(misfit, WindowMisfit):
        yield say.PCI64_SMALLER
    elif isinstance(misfit, StartRefused):
        wanted = trials.site.wanted
        yield from _wider(trials)
        if wanted.pci64 is not None and trials.works(replace(wanted, pci64=None)):
            option = machine.option("pci64_none")
            yield say.PCI64_NONE.format(option=f" ({option})" if option else "")
        if wanted.hotplug and trials.works(replace(wanted, hotplug=0)):
            yield say.MAXMEM_LESS
        yield from _fitting_ram(trials)
    elif isinstance(misfit, RamHidden | AreaMisfit):
        if isinstance(misfit, AreaMisfit) and trials.works(replace(trials.site.wanted, hotplug=0)):
            yield say.MAXMEM_NONE
        yield from _fitting_ram(trials)
    elif isinstance(misfit, DoorbellMisfit):
        if misfit.fits >= BASE_PAGE:
            yield say.DOORBELL_SMALLER.format(size=show_size(1 << misfit.fits.bit_length() - 1))
        yield from _fitting_ram(trials)
    elif isinstance(misfit, BarUnreached):
        yield from _fixes_of_place(misfit, trials)


def _fitting_ram(trials: Trials) -> Iterator[str]:
    most = trials.most_ram()
    if most:
        yield say.RAM_FITS.format(ram=_ram(most))


def _fixes_of_place(misfit: BarUnreached, trials: Trials) -> Iterator[str]:
    """Levers on where firmware puts BARs: its own switch, address bits, another release."""
    wanted, machine, bar = trials.site.wanted, trials.site.wanted.machine, misfit.bar
    if misfit.firmware.kind == "ovmf" and wanted.ovmf_window is None:
        mib = ovmf_megabytes([item for item in wanted.bars if item.bits == 64])
        option = machine.option("ovmf_window", mib=mib)
        told = replace(wanted, ovmf_window=mib << 20)
        every = [(one, replace(wanted, firmware=(one,))) for one in wanted.firmware]
        stuck = [one for one, alone in every if not trials.works(alone)]
        helped = [one for one in stuck if trials.works(replace(told, firmware=(one,)))]
        if option and helped:
            since = f", from {helped[0]} on" if helped != stuck else ""
            yield say.OVMF_WINDOW.format(mib=mib, option=option) + since
    reach = trials.site.host.ranges.hull
    bits = (reach.last + 1).bit_length() - 1 if reach else 0
    if wanted.limits and _LEAST_BITS <= bits < wanted.limits[0].bits:
        fewer = replace(wanted, limits=(AddressLimit(bits, ""),))
        if trials.works(fewer):
            yield _phys_bits(bits, machine.option("phys_bits", bits=bits))
    for firmware in wanted.firmware:
        if len(wanted.firmware) > 1 and trials.works(replace(wanted, firmware=(firmware,))):
            yield say.FIRMWARE_RELEASE.format(name=firmware.option)
    if misfit.span.last > wanted.address_last:
        yield from _wider(trials)
    if bar.required and trials.works(trials.with_bar(bar, bar.optional)):
        yield say.BAR_OPTIONAL
    yield from _smaller_bar(bar, trials)


def _with_widths(
    fixes: list[str], reasons: Sequence[Reason], trials: Trials
) -> tuple[list[str], str | None]:
    """Add what to do where a width or an alignment is the cause; return every width, too."""
    kinds = {reason.cause.kind for reason in reasons}
    widths = None
    if kinds & {CauseKind.APERTURE, CauseKind.GUEST_WIDTH}:
        listed = trials.site.widths
        widths = f"widths: {width_line(listed)}" if listed else None
    if CauseKind.GUEST_WIDTH in kinds:
        fixes = [*_wider(trials), *fixes]
    smaller = trials.smaller_align()
    if smaller is not None:
        fixes = [say.ALIGN_ROOM.format(size=_size(smaller)), *fixes]
    return fixes, widths


def _wider(trials: Trials) -> Iterator[str]:
    """How to give the guest more address bits, if the host lets more of them help."""
    bits, machine = trials.more_bits(), trials.site.wanted.machine
    if bits is None:
        return
    cpu_bits = trials.site.host.cpu_bits
    if cpu_bits is not None and bits > cpu_bits:
        yield say.BITS_CPU.format(bits=bits)
    elif machine.phys_bits is not None and bits > machine.phys_bits:
        yield say.MACHINE_BITS.format(machine=machine.title, bits=machine.phys_bits)
    else:
        yield _phys_bits(bits, _more_bits(machine, bits))


def _phys_bits(bits: object, option: str | None) -> str:
    return say.PHYS_BITS.format(bits=bits, option=f" ({option})" if option else "")


def _more_bits(machine: Machine, bits: object) -> str | None:
    """The option for more address bits; a limit such as host-phys-bits-limit only lowers them."""
    named = (machine.option(name, bits=bits) for name in ("more_bits", "least_bits", "phys_bits"))
    return next(filter(None, named), None)
