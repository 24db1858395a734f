# SPDX-License-Identifier: Apache-2.0
"""The shape of an answer on a terminal, which is a real pseudo terminal here."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

LINE = (
    "qemu: vfio_dma_map(0x5e04, 0x382000000000, 0x10000000, 0x771a38000000) = -22 "
    "(Invalid argument)"
)


def on_terminal(columns: int, *command: str, **environment: str) -> str:
    """Run the command on a terminal of this width, and return what it wrote there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    with subprocess.Popen(
        [sys.executable, "-m", "vmm_iova", *command],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env={**kept, "TERM": "xterm", **environment},
    ) as process:
        os.close(slave)
        parts = []
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            if not part:
                break
            parts.append(part)
    os.close(master)
    assert process.returncode in (0, 9)
    return b"".join(parts).decode().replace("\r\n", "\n")


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "widest"), [(80, 80), (200, 80), (60, 60)])
def test_lines_are_wrapped_at_the_width_of_the_terminal(columns: int, widest: int) -> None:
    written = on_terminal(columns, "explain", LINE, NO_COLOR="1")
    assert written.startswith("LIKELY: ")
    assert max(map(len, written.splitlines())) <= widest


@pytest.mark.slow
def test_verdict_has_a_colour_and_nothing_else_has() -> None:
    first, *others = on_terminal(80, "explain", LINE).splitlines()
    assert re.match(r"\x1b\[[0-9;]+mLIKELY:?\x1b\[0m", first)
    assert not [line for line in others if "\x1b" in line]


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_it_is_not_wanted(quiet: dict[str, str]) -> None:
    assert "\x1b" not in on_terminal(80, "explain", LINE, **quiet)


@pytest.mark.slow
def test_pipe_gets_whole_lines_without_colour() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmm_iova", "explain", LINE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) > 80
