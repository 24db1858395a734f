# SPDX-License-Identifier: Apache-2.0
"""Devices of a host, for people: their BARs, and who has the rest of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.host.bars import BarKind
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_iova.host.bars import DeviceBar
    from vmm_iova.host.host import Host
    from vmm_iova.planning.assigned import Member


def host_devices(host: Host) -> Iterator[str]:
    """A line for each device that has BARs and could be given to a guest."""
    for device in host.devices:
        if device.bars and not device.bridge:
            yield f"{device.name}  {bars_text(device.bars)}"


def bars_text(bars: Iterable[DeviceBar]) -> str:
    """BARs in one line: `BAR 0 16 MiB (32-bit), BAR 1 32 GiB (prefetchable)`."""
    return ", ".join(_bar_text(bar) for bar in bars)


def _bar_text(bar: DeviceBar) -> str:
    size = "of unknown size" if bar.size is None else show_size(bar.size)
    words = ["32-bit"] if bar.bits == 32 and bar.kind is not BarKind.ROM else []
    words += ["prefetchable"] if bar.prefetchable and bar.bits == 64 else []
    words += [] if bar.assigned else ["no address on the host"]
    if len(bar.sizes) > 1:
        words.append(f"can be {show_size(bar.sizes[0])} to {show_size(bar.sizes[-1])}")
    return f"{bar.title} {size}" + (f" ({', '.join(words)})" if words else "")


def member_lines(members: Sequence[Member]) -> Iterator[str]:
    """Devices that go to a guest, and what comes along: a line each."""
    for member in members:
        device = member.device
        holder = _HOLDERS.get(member.holder) or f"bound to {device.driver}"
        words = [f"group {device.group}", *([] if member.asked else ["comes along"]), holder]
        bars = f": {bars_text(device.bars)}" if member.asked and device.bars else ""
        yield f"{device.name}  {', '.join(words)}{bars}"


_HOLDERS: dict[str, str] = {
    "bridge": "a bridge, which keeps its driver",
    "free": "bound to no driver",
    "not known": "its driver is not known",
}


def members_data(members: Sequence[Member]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "name": member.device.name,
            "group": member.device.group,
            "driver": member.device.driver,
            "holder": member.holder,
            "asked": member.asked,
        }
        for member in members
    ]
