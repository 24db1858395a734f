# SPDX-License-Identifier: Apache-2.0
"""What a step of planning raises when a part of the guest has no place: the bare facts.

`planning.refuse` alone makes sentences of them, and looks for what would help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.planning.guest import bar_title
from vmm_iova.ranges import AddrRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.host.bars import BarBits
    from vmm_iova.host.usable import Cause
    from vmm_iova.machines.firmware import Firmware
    from vmm_iova.planning.bars import WantedBar


class Misfit(Exception):  # noqa: N818 -- callers never see it: `explain` makes a PlanError of it
    """A part of the guest has no place.

    Attributes:
        item: the part.
        span: where it should be.
        causes: what is in the way, ascending.
        fits: bytes that would fit.
    """

    def __init__(
        self, item: str, span: AddrRange, causes: Sequence[Cause] = (), fits: int = 0
    ) -> None:
        super().__init__(item)
        self.item = item
        self.span = span
        self.causes = tuple(causes)
        self.fits = fits


class RamBlocked(Misfit):
    """RAM has to be where something is in the way.

    Attributes:
        parts: every part of RAM that is in such a place; the first is what the misfit itself says.
        rule: why it has to be there.
    """

    def __init__(self, parts: Sequence[Misfit], rule: str) -> None:
        first = parts[0]
        super().__init__(first.item, first.span, first.causes, first.fits)
        self.parts = tuple(parts)
        self.rule = rule


class RamLeft(Misfit):
    """All room for RAM is taken; `fits` bytes of it have a place."""


class RamTooMuch(Misfit):
    """The machine takes no more than `fits` bytes of RAM."""


class RamTooWide(Misfit):
    """RAM ends beyond the guest's addresses."""


class BarMisfit(Misfit):
    """A BAR has no place in any of its windows.

    Attributes:
        bar: the BAR.
        windows: where it may be, ascending; none when there is no room for a window.
        bits: of the windows; a 64-bit BAR goes below 4 GiB where the machine has no other.
    """

    def __init__(self, bar: WantedBar, windows: Sequence[AddrRange], bits: BarBits) -> None:
        super().__init__(bar_title(bar.name), max(windows, key=_size, default=AddrRange(0, 0)))
        self.bar = bar
        self.windows = tuple(windows)
        self.bits = bits


class TopUnknown(Misfit):
    """The 64-bit PCI window reaches up to a top that nothing states."""


class StartRefused(Misfit):
    """The VMM does not start: it reaches beyond the guest's addresses."""


class ViommuTooWide(Misfit):
    """The guest's own IOMMU has more address bits than the host's.

    Attributes:
        bits: of the host's.
    """

    def __init__(self, span: AddrRange, cause: Cause, bits: int) -> None:
        super().__init__("the guest's IOMMU", span, (cause,))
        self.bits = bits


class RamHidden(Misfit):
    """RAM lies under the 64-bit PCI window, so that the guest cannot reach it."""


class AreaMisfit(Misfit):
    """Memory that is plugged in later would lie where something is in the way."""


class BarUnreached(Misfit):
    """A BAR that peers must reach goes elsewhere: firmware decides where.

    Attributes:
        bar: the BAR.
        firmware: what puts it there.
        inside: what it would lie in or beyond, if that is no place for any BAR.
    """

    def __init__(
        self,
        bar: WantedBar,
        firmware: Firmware,
        span: AddrRange,
        causes: Sequence[Cause],
        inside: str | None = None,
    ) -> None:
        super().__init__(bar_title(bar.name), span, causes)
        self.bar = bar
        self.firmware = firmware
        self.inside = inside


class DoorbellMisfit(Misfit):
    """A doorbell has no place; `fits` is the largest gap there is for it."""


class WindowMisfit(Misfit):
    """The 64-bit PCI window has no room above RAM."""


class RoomMisfit(Misfit):
    """What is plugged in later has no room; `fits` is the largest that would.

    Attributes:
        room: the room.
        above: where it may begin.
    """

    def __init__(
        self, room: WantedBar, above: int, span: AddrRange, cause: Cause, fits: int
    ) -> None:
        super().__init__(f"room {room.name}", span, (cause,), fits)
        self.room = room
        self.above = above


def _size(window: AddrRange) -> int:
    return window.size
