# SPDX-License-Identifier: Apache-2.0
"""Speaking to the person at the terminal, and running other programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm_iova.progress import TerminalProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_lock = threading.Lock()
_displays: list[TerminalProgress] = []
"""The line at the bottom, while something is counted."""


class LabError(Exception):
    """Something the lab cannot go on without; the text is one clear sentence."""


def say(text: str, prefix: str = "lab: ") -> None:
    """Print one line of progress on standard error, whole even when guests run side by side."""
    with _lock:
        for display in _displays:
            display.clear()
        print(f"{prefix}{text}", file=sys.stderr, flush=True)
        for display in _displays:
            display.redraw()


@contextmanager
def counting(unit: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show on a terminal how many are done, at which rate, and the time left; lines come above it.

    Gives what is to be called, from any thread, when one is done: it says a line about that one.
    """
    display = TerminalProgress("lab:", unit=unit)
    _displays.append(display)
    done = 0

    def one_is_done(text: str) -> None:
        nonlocal done
        say(text)
        with _lock:
            done += 1
            display(done, total)

    try:
        display(0, total)
        yield one_is_done
    finally:
        _displays.remove(display)
        display.close()


def tail(path: Path, lines: int = 30) -> str:
    """Return the last lines of a log, or say that there is none."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return f"(no {path.name} was written)"
    return "\n".join(text.splitlines()[-lines:]) or f"({path.name} is empty)"


def output(
    command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[int, str]:
    """Run a command and return its exit code and everything that it printed."""
    try:
        done = subprocess.run(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        raise LabError(f"the program {command[0]} is not installed") from None
    return done.returncode, done.stdout


def must(command: Sequence[str], log: Path, what: str, cwd: Path | None = None) -> None:
    """Run a command into a log; when it fails, show the end of the log and name the step."""
    with log.open("a") as sink:
        sink.write(f"$ {' '.join(command)}\n")
        sink.flush()
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise LabError(f"{what}: the program {command[0]} is not installed") from None
        try:
            code = process.wait()
        except BaseException:
            # The whole family: a build's children would work on without their parent.
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if code:
        print(tail(log), file=sys.stderr)
        raise LabError(f"{what} failed with exit code {code}; the whole log is {log}")
