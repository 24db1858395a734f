# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at every position where CPython looks for signals.

CPython (3.11 to 3.14) looks for signals when a function of Python begins, when a call has returned
and before it jumps back in a loop; never within a function of C that does not ask for it. A trace
function sees every instruction, so it can count these positions, and raise at one of them.
"""

from __future__ import annotations

import dis
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

EVERY = int(os.environ.get("VMM_IOVA_EVERY", "3"))
"""Of the positions of an action, one in so many is tried; 1 is all of them, as in `make long`."""

_CALLS = frozenset(name for name in dis.opmap if name.startswith("CALL"))
_JUMPS = frozenset(name for name in dis.opmap if name.startswith("JUMP_BACKWARD"))
_LOOKS_AFTER = _CALLS | (_JUMPS - {"JUMP_BACKWARD_NO_INTERRUPT"})


class Interrupter:
    """Raises KeyboardInterrupt at the position of a number, and counts them all.

    Args:
        files: whose frames count, as parts of their paths; a part that begins with `!` leaves out.
        at: number of the position from 0, or None: only count.

    Attributes:
        count: positions that were seen.
        place: function and line of the interrupt, once it was raised.
    """

    def __init__(self, files: Iterable[str], at: int | None = None) -> None:
        self._wanted = [part for part in files if not part.startswith("!")]
        self._unwanted = [part[1:] for part in files if part.startswith("!")]
        self._at = at
        self._last: dict[int, str] = {}
        self.count = 0
        self.place: str | None = None

    def _counts(self, path: str) -> bool:
        return any(part in path for part in self._wanted) and not any(
            part in path for part in self._unwanted
        )

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        del arg
        code = frame.f_code
        if event == "call":
            if not self._counts(code.co_filename):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            self._last.pop(id(frame), None)
            # A generator that is closed is resumed without a look, and this event does not say why.
            if frame.f_lasti < 0 or not code.co_flags & inspect.CO_GENERATOR:
                self._look(frame)
        elif event == "opcode":
            if self._last.get(id(frame)) in _LOOKS_AFTER:
                self._look(frame)
            self._last[id(frame)] = dis.opname[code.co_code[frame.f_lasti]]
        elif event in ("exception", "return"):
            # From a call that raised CPython goes to its handler without a look.
            self._last.pop(id(frame), None)
        return self._trace

    def _look(self, frame: FrameType) -> None:
        # Of an interrupt in a destructor Python only prints that it was ignored; what was to be
        # given back then stays until the process ends, and nobody can help it.
        outer: FrameType | None = frame
        while outer is not None:
            if outer.f_code.co_name == "__del__":
                return
            outer = outer.f_back
        self.count += 1
        if self._at is not None and self.count > self._at and self.place is None:
            code = frame.f_code
            self.place = f"{Path(code.co_filename).stem}.{code.co_qualname}:{frame.f_lineno}"
            self._meet()

    def _meet(self) -> None:
        raise KeyboardInterrupt(self.place)

    def run(self, action: Callable[[], object]) -> BaseException | None:
        """Do it; return the exception that comes out."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            action()
        except BaseException as error:
            return error.with_traceback(None)
        finally:
            sys.settrace(before)
        return None


def every_interrupt(
    files: Iterable[str],
    prepare: Callable[[], Any],
    action: Callable[[Any], object],
    check: Callable[[Any, str | None], None],
) -> int:
    """Do an action anew for positions in it, interrupt it there, and check what is left.

    One in `EVERY` is tried, from one on that the number of them decides.

    Args:
        files: see `Interrupter`.
        prepare: makes what the action is done on.
        action: what is interrupted.
        check: is given what `prepare` made, and the place of the interrupt; None without one.

    Returns:
        How many positions there were.
    """
    files = tuple(files)
    made = prepare()
    counter = Interrupter(files)
    error = counter.run(lambda: action(made))
    assert error is None, f"without an interrupt: {error!r}"
    check(made, None)
    for number in range(counter.count % EVERY, counter.count, EVERY):
        made = prepare()
        interrupter = Interrupter(files, number)
        error = interrupter.run(lambda item=made: action(item))  # type: ignore[misc]
        assert interrupter.place is not None, f"position {number} of {counter.count} was not met"
        # What is not our own to raise is somebody's `__del__`, whose interrupts Python prints.
        assert error is None or isinstance(error, KeyboardInterrupt), (interrupter.place, error)
        del error
        check(made, interrupter.place)
    return counter.count
