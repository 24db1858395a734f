# SPDX-License-Identifier: Apache-2.0
"""What a guest needs to start, and what a host has for it: for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.host.state import State
    from vmm_iova.planning.start import Start

_COLUMN = 15


def start_lines(start: Start) -> Iterator[str]:
    """A line for each row that is known, and one for all that are not.

    Nothing where no fact says more than that the addresses fit.
    """
    known = [row for row in start.rows if row.state != "not known"]
    if all(row.what in _ALWAYS for row in known):
        return
    for row in known:
        yield f"{row.state:<7} {row.what:<{_COLUMN}}{row.text}"
    unknown = [row.what for row in start.rows if row.state == "not known"]
    if unknown:
        yield f"not known: {', '.join(unknown)}"


_ALWAYS = ("addresses", "peers", "map calls", "huge pages")


def start_data(start: Start) -> dict[str, Any]:
    """The same for programs."""
    return {
        "verdict": start.verdict,
        "rows": [
            {
                "what": row.what,
                "state": row.state,
                "text": row.text,
                "do": list(row.do),
                "fatal": row.fatal,
            }
            for row in start.rows
        ],
    }


def state_lines(state: State) -> Iterator[str]:
    """What a host has at the moment."""
    if state.memory is not None:
        total, available = show_size(state.memory.total), show_size(state.memory.available)
        yield f"memory: {total}, {available} available"
    for pool in state.huge_pages or ():
        if pool.total:
            yield f"huge pages of {show_size(pool.page_size)}: {pool.total}, {pool.free} free"
    if state.nodes is not None:
        shown = [node.path + ("" if node.usable else " (no access)") for node in state.nodes]
        yield f"nodes: {', '.join(shown) or 'none of VFIO or iommufd'}"
    if state.remaps_interrupts is not None:
        yield f"interrupts: {'' if state.remaps_interrupts else 'not '}remapped" + (
            ", and VFIO goes without (allow_unsafe_interrupts)" if state.unsafe_interrupts else ""
        )
    if state.may_lock:
        yield "locked memory is not counted here: CAP_IPC_LOCK"
