# SPDX-License-Identifier: Apache-2.0
"""How far a long task is: one display for the fleet, for a guest's memory, and for the lab.

It is a callback, so what works stays free of it, and a library of progress bars would have to be
told the same three numbers. Where nobody looks on (a file, a pipe) it writes nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, TextIO

from vmm_iova.plain import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE = 0.1
"""Seconds between two drawings: a terminal at the end of a slow line keeps up, and so do eyes."""

SETTLED = 2.0
"""Seconds after which a rate says something about the time that is left."""

_BINARY = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


class TerminalProgress:
    """A progress callback that draws a line, and does nothing where there is no terminal.

    The line has what is done, of how much if that is known, the rate, and the time left, in as many
    columns as the terminal has.

    Args:
        label: what is being done.
        stream: where to; default standard error.
        width: characters of the bar.
        unit: what is counted; `bytes` are shown as KiB, MiB and so on.
        clock: seconds that go by, for tests.

    Synchronization: external.
    """

    def __init__(
        self,
        label: str,
        stream: TextIO | None = None,
        width: int = 30,
        *,
        unit: str = "bytes",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = one_line(label)
        self._stream = stream or sys.stderr
        self._width = width
        self._unit = unit
        self._clock = clock
        self._began = clock()
        self._drawn = -PAUSE
        self._line = ""

    def __repr__(self) -> str:
        return f"<TerminalProgress {self._label[:60]!r}>"

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Draw `done` of `total`; the line ends when all is done.

        Args:
            done: how much is done, of the unit.
            total: of how much; None where nobody knows.
            note: what else there is to say.
        """
        if not self.shown:
            return
        last = total is not None and done >= total
        seconds = self._clock() - self._began
        if not last and seconds - self._drawn < PAUSE:
            return
        self._drawn = seconds
        self._draw(self._text(done, total, note, seconds))
        if last:
            self.close()

    @property
    def shown(self) -> bool:
        """Whether somebody looks on."""
        return bool(self._stream.isatty())

    def clear(self) -> None:
        """Take the line away, for another text to be printed; `redraw` brings it back."""
        if self._line:
            self._stream.write(f"\r{' ' * len(self._line)}\r")
            self._stream.flush()

    def redraw(self) -> None:
        """Draw again what `clear` took away."""
        if self._line:
            self._stream.write(f"\r{self._line}")
            self._stream.flush()

    def close(self) -> None:
        """End the line, if there is one; nothing happens the second time."""
        if self._line:
            self._line = ""
            self._stream.write("\n")
            self._stream.flush()

    def _draw(self, line: str) -> None:
        line = line[: self._columns() - 1]
        gone = " " * (len(self._line) - len(line))  # what a longer line before it left
        self._line = line
        self._stream.write(f"\r{line}{gone}")
        self._stream.flush()

    def _columns(self) -> int:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):  # no real file, as in tests
            columns = shutil.get_terminal_size().columns
        return columns or 80  # a terminal that was not told its size says 0

    def _text(self, done: int, total: int | None, note: str, seconds: float) -> str:
        amount = self._amount(done, done)
        if total is not None:
            amount = f"{self._amount(done, total, bare=True)} of {self._amount(total, total)}"
        parts = [amount]
        if done and seconds > 0:
            rate = done / seconds
            if rate >= 1:
                parts.append(f"{self._amount(round(rate), round(rate), bare=self._counts)}/s")
            else:
                parts.append(f"{rate * 60:.1f}/min")
            if total is not None and done < total and seconds >= SETTLED:
                parts.append(f"{duration((total - done) / rate)} left")
            if total is not None and done >= total:
                parts.append(duration(seconds))
        said = ", ".join([*parts, note] if note else parts)
        if total is None:
            return f"{self._label} {said}"
        # The bar gets what the words leave.
        width = min(self._width, self._columns() - 1 - len(f"{self._label} [] {said}"))
        filled = width * min(done, total) // max(total, 1)
        bar = f"[{'#' * filled}{'.' * (width - filled)}] " if width > 0 else ""
        return f"{self._label} {bar}{said}"

    @property
    def _counts(self) -> bool:
        return self._unit != "bytes"

    def _amount(self, value: int, scale: int, *, bare: bool = False) -> str:
        """A value in the unit that suits `scale`; bare: without the unit's name."""
        if self._counts:
            return str(value) if bare else f"{value} {self._unit}"
        step = min(max(scale.bit_length() - 1, 0) // 10, len(_BINARY) - 1)
        shown = value / (1 << 10 * step)
        text = f"{shown:.1f}" if step and shown < 10 else f"{shown:.0f}"
        return text if bare else f"{text} {_BINARY[step]}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 3 min 20 s, 2 h 5 min.

    Args:
        seconds: at least 0.
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
