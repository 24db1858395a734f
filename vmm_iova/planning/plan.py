# SPDX-License-Identifier: Apache-2.0
"""The planner: where the RAM, doorbells, windows and BARs of a guest go, or why they cannot.

Three policies for RAM whose place in the machine model is not free (`on_hole`):

* `refuse`: the machine's own place or nothing;
* `split`: RAM keeps its order and flows around the holes;
* `move`: what may move goes elsewhere as a whole, as QEMU moves all RAM above 4 GiB to 1 TiB when
  it, or the 64-bit PCI window behind it, would meet AMD's hole (hw/i386/pc.c, pc_memory_init).

The result depends on the arguments alone: same input, same layout, byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from vmm_iova.errors import PlanError, RequestError
from vmm_iova.host.usable import Usable
from vmm_iova.planning.page_tables import cost_of
from vmm_iova.planning.planner import Planner
from vmm_iova.planning.request import Guest, Wanted, resolve
from vmm_iova.planning.site import OnHole, Prefer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.planning.layout import Layout

__all__ = ["Guest", "OnHole", "Prefer", "plan"]

_AUTO = (1 << 30, 1 << 21, 1)


def plan(
    guest: Guest,
    usable: Usable,
    on_hole: OnHole = "split",
    *,
    also_fit: Sequence[Usable] = (),
    keep: Layout | dict[str, Any] | None = None,
    prefer: Prefer = "lowest",
) -> Layout:
    """Place a guest on a host.

    Args:
        guest: what is wanted.
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
    wanted = resolve(guest, usable)
    for other in also_fit:
        usable = usable.joined(other)
    if keep is not None:
        from vmm_iova.planning.keep import plan_kept  # few plans keep an older one

        return plan_kept(
            wanted, usable, keep, lambda: _planned(guest, wanted, usable, on_hole, prefer)
        )
    return _planned(guest, wanted, usable, on_hole, prefer)


def _planned(
    guest: Guest, wanted: Wanted, usable: Usable, on_hole: OnHole, prefer: Prefer
) -> Layout:
    """Plan; a refused machine of another kind than the host is said to be one."""
    try:
        return _best(guest, wanted, usable, on_hole, prefer)
    except PlanError as error:
        machine, known = wanted.machine, usable.arch
        if known is None or known == machine.arch:
            raise
        raise PlanError(
            f"{error.message}; besides, machine {machine.name} is {machine.arch} and the host is "
            f"{known}, where KVM cannot run it",
            reasons=error.reasons,
            fixes=[f"a machine for {known}: vmm-iova machines lists them", *error.fixes],
            detail=error.detail,
        ) from error


def _best(guest: Guest, wanted: Wanted, usable: Usable, on_hole: OnHole, prefer: Prefer) -> Layout:
    """Plan; with `align="auto"` or `fewest`, with the alignment that costs least."""
    if guest.align != "auto" and prefer != "fewest":
        return Planner(wanted, usable, on_hole, prefer).plan()
    asked = min(node.align for node in wanted.nodes)
    made: list[tuple[tuple[int, int, int], list[int], Layout]] = []
    refused: PlanError | None = None
    for align in dict.fromkeys(max(align, asked) for align in _AUTO):
        try:
            layout = Planner(wanted.aligned(align), usable, on_hole, prefer).plan()
        except PlanError as error:
            refused = error
            continue
        places = [item.place for item in layout.ram]
        made.append((cost_of(places, usable), [place.start for place in places], layout))
    if not made and refused is not None:
        raise refused
    return min(made, key=lambda item: item[:2])[2]
