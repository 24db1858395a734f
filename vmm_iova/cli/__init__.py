# SPDX-License-Identifier: Apache-2.0
"""The `vmm-iova` command. It looks and plans; nothing here maps memory or needs root.

One room a command (`show`, `plan`, `check`, ...), each with `add`, which names its options, and
`run`, which returns the exit status. `options` holds what they share.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, TextIO

import vmm_iova
from vmm_iova.cli.parser import make_parser
from vmm_iova.errors import EvidenceError, IovaError, PlanError
from vmm_iova.patterns import regex
from vmm_iova.plain import MARKS, for_terminal, one_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence


_JSON = regex("-[a-zA-Z]*J[a-zA-Z]*|--json")
_MARK = regex(f"([{''.join(MARKS)}])")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; default `sys.argv`.

    Returns:
        The exit status, one of `errors.EXIT_CODES` (argparse itself exits with 2).
    """
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(_Terminal(sys.stdout)),
        contextlib.redirect_stderr(_Terminal(sys.stderr)),
    ):
        warnings.showwarning = _warn
        return _main(arguments)


class _Terminal:
    """An output that gets no character which a terminal would obey, or cannot encode.

    The one place for it: names, paths and texts from outside are in whatever is printed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is None:  # as under pythonw
            return len(text)
        encoding = getattr(self._stream, "encoding", None)
        parts = _MARK.split(text)  # colours of our own; no other escape reaches a terminal
        shown = (MARKS.get(part) or for_terminal(part, encoding) for part in parts)
        return self._stream.write("".join(shown))

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()

    @property
    def beneath(self) -> TextIO | None:
        """The stream itself, for what draws on a terminal: that has words of ours alone."""
        return self._stream

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _main(arguments: Sequence[str] | None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    as_json = any(_JSON.fullmatch(word) for word in given)
    try:
        if "VMM_IOVA_ENGINE" in os.environ:  # a wrong one is told also where none is needed
            vmm_iova.engine_name()
        parser = make_parser(arguments)
        options = parser.parse_args(arguments)
        run: Callable[[argparse.Namespace], int] | None = getattr(options, "run", None)
        if run is None:  # the program alone
            parser.print_help()
            return 0
        status = run(options)
        sys.stdout.flush()
    except IovaError as error:
        return _complain(error, as_json)
    except BrokenPipeError:
        # The reader has gone (head, less): what it wanted it has. Keep the interpreter from
        # complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("vmm-iova: interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # of our own files nothing is left: it is the output
        print(f"vmm-iova: error: the output failed: {error.strerror}", file=sys.stderr)
        # What is left in the buffer would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 6
    except Exception as error:  # no traceback reaches the terminal
        defect = IovaError(
            f"{type(error).__name__}: {one_line(str(error))}",
            hint="this is a defect of vmm-iova; please report it with the command and its input",
        )
        return _complain(defect, as_json)
    return status


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as our own words; where in our source it arose helps nobody."""
    print(f"vmm-iova: warning: {message}", file=sys.stderr)


def _complain(error: IovaError, as_json: bool) -> int:
    if as_json:
        from vmm_iova.report.errors import error_document

        print(error_document(error), end="")
        return error.exit_code
    if isinstance(error, (PlanError, EvidenceError)):  # an answer, and not a fault of the command
        from vmm_iova.report.answer import show_answer
        from vmm_iova.report.verdicts import refusal_answer

        print(show_answer(refusal_answer(error)), end="", file=sys.stderr)
        return error.exit_code
    print(f"vmm-iova: error: {one_line(error.message)}", file=sys.stderr)
    for label, more in (("detail", error.detail), ("hint", error.hint)):
        if more:
            print(f"  {label}: {one_line(more)}", file=sys.stderr)
    return error.exit_code
