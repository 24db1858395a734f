# SPDX-License-Identifier: Apache-2.0
"""The one display of progress: what it shows, when, and that nobody sees it who does not look."""

from __future__ import annotations

import io

import pytest

from vmm_iova.progress import TerminalProgress, duration

GIB = 1 << 30


class Terminal(io.StringIO):
    """A terminal that remembers what was written."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError


class Clock:
    """Time that goes by when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def drawn(out: Terminal) -> list[str]:
    """The lines that were drawn, one over the other."""
    return [line.replace("  ", "").replace(" \n", "\n") for line in out.getvalue().split("\r")[1:]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_line_has_done_total_rate_and_time_left(clock: Clock) -> None:
    out = Terminal()
    show = TerminalProgress("guest memory", out, width=8, clock=clock)
    clock.now += 4
    show(2 * GIB, 8 * GIB)
    clock.now += 12
    show(8 * GIB, 8 * GIB)

    assert drawn(out) == [
        "guest memory [##......] 2.0 of 8.0 GiB, 512 MiB/s, 12 s left",
        "guest memory [########] 8.0 of 8.0 GiB, 512 MiB/s, 16 s\n",
    ]


def test_time_left_is_not_guessed_in_the_first_seconds(clock: Clock) -> None:
    out = Terminal()
    show = TerminalProgress("hosts", out, width=4, unit="hosts", clock=clock)
    clock.now += 1
    show(100, 1000)

    assert drawn(out) == ["hosts [....] 100 of 1000 hosts, 100/s"]


def test_amount_without_a_total_has_a_rate_and_no_end(clock: Clock) -> None:
    out = Terminal()
    show = TerminalProgress("fleet", out, unit="hosts", clock=clock)
    clock.now += 10
    show(2000, None, "3 damaged")
    show.close()
    show.close()

    assert drawn(out) == ["fleet 2000 hosts, 200/s, 3 damaged\n"]


def test_shorter_line_leaves_nothing_of_the_longer_one(clock: Clock) -> None:
    out = Terminal()
    show = TerminalProgress("x", out, unit="hosts", clock=clock)
    show(5, None, "a long note")
    clock.now += 1
    show(6)

    first, second = out.getvalue().split("\r")[1:]
    assert len(second) == len(first)


def test_calls_close_together_are_drawn_once(clock: Clock) -> None:
    out = Terminal()
    show = TerminalProgress("x", out, unit="hosts", clock=clock)
    for number in range(1, 100):
        clock.now += 0.001
        show(number, 1000)

    assert len(drawn(out)) == 1


def test_line_is_no_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    out = Terminal()
    for columns in ("50", "40", "20"):
        monkeypatch.setenv("COLUMNS", columns)
        TerminalProgress("what is being done", out, unit="hosts", clock=clock)(1, 2)

    assert drawn(out) == [
        "what is being done [#######........] 1 of 2 hosts",
        "what is being done [##...] 1 of 2 hosts",
        "what is being done ",
    ]


def test_other_text_comes_between_and_the_line_comes_back(clock: Clock) -> None:
    out = Terminal()
    show = TerminalProgress("x", out, width=2, unit="hosts", clock=clock)
    show.clear()
    show(1, 2)
    show.clear()
    out.write("said\n")
    show.redraw()

    line = "x [#.] 1 of 2 hosts"
    assert out.getvalue() == f"\r{line}\r{' ' * len(line)}\rsaid\n\r{line}"


def test_file_sees_nothing() -> None:
    out = io.StringIO()
    show = TerminalProgress("x", out)
    show(1, 2)
    show.clear()
    show.redraw()
    show.close()

    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (1500, "25 min"), (7500, "2 h 5 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
