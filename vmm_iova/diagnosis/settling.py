# SPDX-License-Identifier: Apache-2.0
"""What would settle a diagnosis: the facts that are missing, each with how to get it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.diagnosis.why import Op, Why

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.diagnosis.case import Case


def settling(whys: Sequence[Why], case: Case) -> tuple[str, ...]:
    """Return the facts that would settle it, each with how to get it."""
    failure, usable = case.failure, case.usable
    found: dict[str, None] = {}
    place = {Why.WIDTH, Why.HOLE, Why.SEAM, Why.OUTSIDE}
    if place & set(whys) and usable is None and case.named is None:
        found[say.SETTLE_HOST] = None
    if Why.WIDTH in whys and usable is None:
        found[say.SETTLE_WIDTH] = None
    if Why.HOLE in whys and usable is None and case.named is None:
        found[say.SETTLE_HOLES] = None
    if Why.CPU_BITS in whys and failure.op is Op.MEMSLOT:
        found[say.SETTLE_CPU] = None
    found.update((text, None) for why, text in _SETTLES.items() if why in whys)
    if Why.MEMLOCK in whys and (case.clues.qemu is None or not case.clues.qemu.ram):
        found[say.SETTLE_RAM] = None
    numbers = (Op.MAP, Op.UNMAP, Op.MEMSLOT, Op.SETUP)
    if failure.range is None and failure.op in numbers and Why.NO_GROUP not in whys:
        known = "its size" if failure.iova is not None else "address and size of the map"
        found[say.SETTLE_NUMBERS.format(what=known)] = None
    if Why.ORDER in whys and failure.op is Op.MAP:
        found[say.SETTLE_ORDER] = None
    if failure.op is Op.FAULT:
        bdf = (failure.device or "BDF").removeprefix("0000:")
        found[say.SETTLE_OWNER.format(bdf=bdf)] = None
    if failure.op is Op.SETUP:
        found[say.SETTLE_CALL] = None
    elif failure.errno is None and failure.op not in (Op.FAULT, Op.START, Op.BAR):
        found[say.SETTLE_ERRNO] = None
    return tuple(found)


_SETTLES = {
    Why.DIRECT: say.SETTLE_DIRECT,
    Why.ISOLATION: say.SETTLE_ISOLATION,
    Why.MEMLOCK: say.SETTLE_MEMLOCK,
    Why.ENTRIES: say.SETTLE_ENTRIES,
    Why.ALIGNMENT: say.SETTLE_PAGE,
    Why.BAR: say.SETTLE_BAR,
    Why.LIVE_MAPS: say.SETTLE_GROUPS,
    Why.NO_GROUP: say.SETTLE_GROUP,
}
