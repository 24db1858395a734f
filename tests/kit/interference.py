# SPDX-License-Identifier: Apache-2.0
"""Other code in the middle of a call: a signal handler's, or a finalizer's.

It runs where CPython looks for signals; a finalizer's also where the collector runs, which in
CPython 3.11 is wherever an object that it tracks is made.
"""

from __future__ import annotations

import dis
import gc
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from tests.kit.interrupts import Interrupter

# Opcodes that make no object that the collector tracks, but for what they call.
_SILENT = frozenset(
    name
    for name in dis.opmap
    if name.startswith(("LOAD_", "STORE_", "POP_", "COPY", "SWAP", "JUMP", "COMPARE", "UNARY"))
) | {
    *("NOP", "CACHE", "RESUME", "PUSH_NULL", "PUSH_EXC_INFO", "KW_NAMES", "PRECALL", "IS_OP"),
    *("CONTAINS_OP", "BINARY_OP", "BINARY_SUBSCR", "RETURN_VALUE", "FOR_ITER", "RERAISE"),
    *("UNPACK_SEQUENCE", "CHECK_EXC_MATCH", "MAKE_CELL", "SEND", "YIELD_VALUE"),
}


class Intruder(Interrupter):
    """Runs other code at the position of a number.

    Args:
        files: as of `Interrupter`.
        at: number of the position from 0.
        intrude: the other code.
        silent: names of functions that make no tracked object, although they call.
    """

    def __init__(
        self, files: Iterable[str], at: int, intrude: Callable[[], object], silent: Iterable[str]
    ) -> None:
        super().__init__(files, at)
        self._intrude = intrude
        self._silent = frozenset(silent)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode" and frame.f_code.co_name not in self._silent:
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if name not in _SILENT:
                self._look(frame)
        return super()._trace(frame, event, arg)

    def _meet(self) -> None:
        self._intrude()


def at_each_collection(
    act: Callable[[], object], intrude: Callable[[], object], number: int
) -> bool:
    """Do something, and other code as a finalizer when the numberth tracked object is made.

    Returns:
        Whether the finalizer ran before the end.
    """
    ran = False
    inside = False

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            nonlocal ran
            if inside:
                ran = True
                intrude()

    thresholds, enabled = gc.get_threshold(), gc.isenabled()
    gc.disable()
    gc.collect(0)  # the count of young objects begins at 0
    Cycle()
    gc.set_threshold(number, 1000, 1000)
    gc.enable()
    inside = True
    try:
        act()
    finally:
        inside = False
        gc.disable()
        gc.set_threshold(*thresholds)
        if enabled:
            gc.enable()
    return ran
