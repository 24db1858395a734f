# SPDX-License-Identifier: Apache-2.0
"""The planner: where the RAM, doorbells, windows and BARs of a guest go, or why they cannot.

Four policies for RAM whose place in the machine model is not free (`on_hole`):

* `auto`: what the VMM does by itself; where that fails, a layout that needs one that can split;
* `refuse`: the machine's own place or nothing;
* `split`: RAM keeps its order and flows around the holes;
* `move`: what may move goes elsewhere as a whole, as QEMU moves all RAM above 4 GiB to 1 TiB when
  it, or the 64-bit PCI window behind it, reaches AMD's hole (hw/i386/pc.c, pc_memory_init).

The result depends on the arguments alone: same input, same layout, byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from vmm_iova import remedies as say
from vmm_iova.errors import PlanError, RequestError
from vmm_iova.host.usable import Usable
from vmm_iova.planning.attempt import attempt
from vmm_iova.planning.guest import Guest, Readable
from vmm_iova.planning.keep import plan_kept
from vmm_iova.planning.layout import Layout, OnHole
from vmm_iova.planning.misfit import Misfit
from vmm_iova.planning.page_tables import cost_of
from vmm_iova.planning.refuse import explain
from vmm_iova.planning.request import resolve
from vmm_iova.planning.site import HolePolicy, Policy, Prefer, Preference, Site, site_of
from vmm_iova.ranges import HUGE_PAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Guest", "OnHole", "Prefer", "plan"]

_AUTO = (*HUGE_PAGES, 1)


def plan(
    guest: Guest | Readable,
    usable: Usable,
    on_hole: OnHole = "auto",
    *,
    also_fit: Sequence[Usable] = (),
    keep: Layout | dict[str, Any] | None = None,
    prefer: Prefer = "lowest",
) -> Layout:
    """Place a guest on a host.

    Args:
        guest: what is wanted; of a `Definition`, each guest that may be meant has to fit, and the
            layout is that of the newest release.
        usable: where the host allows it, from `Host.usable`.
        on_hole: what to do when the machine's own place for RAM is not free.
        also_fit: what other groups of the host allow, from `Host.usable(groups=...)`: the layout
            holds for them too, so that they can be attached later.
        keep: a layout that a guest already has, or its JSON. It is kept where it still can be;
            else the new layout names every change in `changes`.
        prefer: with `split`: `lowest` fills from the bottom; `fewest` takes the fewest pieces,
            then, of the placements that align all pieces to 1 GiB, to 2 MiB or not at all, the
            fewest page-table entries, then the fewest tables, then the lowest.

    Returns:
        The layout: items ascending by address, with the host fact behind every cut.

    Raises:
        PlanError: it cannot be done; `reasons` has every obstacle and `fixes` what would help.
        RequestError: a size, alignment or policy makes no sense.
        MisalignedError: RAM is not a multiple of the granule, or of the pages that back it.
        UnknownNameError: no such machine model.
        HostDataError: `keep` is no layout.

    Complexity: O(holes + windows), well below 5 ms for a host (bench/test_plan.py); `fewest` looks
        at up to 4096 choices of the 12 largest ranges.
    Synchronization: none required.
    """
    if not isinstance(usable, Usable):
        raise RequestError(
            f"a plan needs what Host.usable returns, not {type(usable).__name__}",
            field="usable",
            value=usable,
        )
    for name, value, known in (
        ("on_hole", on_hole, get_args(OnHole)),
        ("prefer", prefer, get_args(Prefer)),
    ):
        if value not in known:
            raise RequestError(
                f"{name} {value!r} is none of {', '.join(known)}", field=name, value=value
            )
    if not isinstance(guest, Guest):
        return _each(guest, usable, on_hole, also_fit, keep, prefer)
    wanted = resolve(guest, usable)
    for other in also_fit:
        usable = usable.joined(other)
    site, policy = site_of(wanted, usable), Policy(HolePolicy(on_hole), Preference(prefer))
    sites = [site]
    if guest.align == "auto" or policy.prefer is Preference.FEWEST:
        least = min(node.align for node in wanted.nodes)
        aligns = dict.fromkeys(max(align, least) for align in _AUTO)
        sites = [site_of(wanted.aligned(align), usable) for align in aligns]
    if keep is not None:
        return plan_kept(site, keep, lambda: _best(sites, policy))
    return _best(sites, policy)


def can_be(guest: Guest, usable: Usable, on_hole: OnHole = "auto") -> bool:
    """Tell whether the VMM of a guest's machine can have it on a host; no reasons are looked for.

    Args:
        guest: what is wanted.
        usable: where the host allows it.
        on_hole: as in `plan`.

    Complexity: as one attempt of `plan`.
    """
    try:
        site = site_of(resolve(guest, usable), usable)
        attempt(site, Policy(HolePolicy(on_hole), own=True))
    except (Misfit, RequestError):
        return False
    return True


def _each(
    asked: Readable,
    usable: Usable,
    on_hole: OnHole,
    also_fit: Sequence[Usable],
    keep: Layout | dict[str, Any] | None,
    prefer: Prefer,
) -> Layout:
    """Plan every guest that may be meant, the newest last."""
    done: list[tuple[str, Layout | PlanError]] = []
    for reading in asked.readings_on(usable.arch):
        try:
            layout = plan(
                reading.guest, usable, on_hole, also_fit=also_fit, keep=keep, prefer=prefer
            )
            done.append((reading.text, layout))
        except PlanError as refusal:
            done.append((reading.text, refusal))
    refused = [(text, found) for text, found in done if isinstance(found, PlanError)]
    fitting = [(text, found) for text, found in done if isinstance(found, Layout)]
    if not refused:
        return fitting[-1][1]
    text, error = refused[-1]
    if not fitting:
        raise error  # whatever the release is
    others = ", or ".join(name for name, _ in fitting)
    if len(fitting) > 2:
        others = f"each of the {len(fitting)} others that may be meant"
    raise PlanError(
        f"with {text}: {error.message}; it fits with {others}",
        reasons=error.reasons,
        fixes=error.fixes,
        detail=error.detail,
    ) from error


def _best(sites: Sequence[Site], policy: Policy) -> Layout:
    """Attempt each site; of several layouts, return the one that costs least."""
    layouts: list[Layout] = []
    refused: tuple[Misfit, Site] | None = None
    for site in sites:
        try:
            layouts.append(attempt(site, policy))
        except Misfit as misfit:
            refused = misfit, site
    if len(layouts) == 1:
        return layouts[0]
    if layouts:
        return min(layouts, key=_cost)
    assert refused is not None  # there is a site
    raise _refusal(*refused, policy) from refused[0]


def _cost(layout: Layout) -> tuple[tuple[int, int, int], list[int]]:
    places = [item.place for item in layout.ram]
    return cost_of(places, layout.usable), [place.start for place in places]


def _refusal(misfit: Misfit, site: Site, policy: Policy) -> PlanError:
    """Explain; a refused machine of another kind than the host is said to be one."""
    error = explain(misfit, site, policy, attempt)
    machine, known = site.wanted.machine, site.host.arch
    if known is None or known == machine.arch:
        return error
    return PlanError(
        f"{error.message}; besides, machine {machine.name} is {machine.arch} and the host is "
        f"{known}, where KVM cannot run it",
        reasons=error.reasons,
        fixes=[say.MACHINE_OF_ARCH.format(arch=known), *error.fixes],
        detail=error.detail,
    )
