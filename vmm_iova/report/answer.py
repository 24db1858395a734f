# SPDX-License-Identifier: Apache-2.0
"""How every command answers: the verdict, what to do, why, how sure, and what it rests on.

On a terminal lines are wrapped at its width, 80 columns at most, and the verdict has a colour;
in a pipe there is neither (and no colour with NO_COLOR, https://no-color.org).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Literal

from vmm_iova.plain import for_terminal
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_iova.diagnosis.filled_remedies import Advice

Tone = Literal["good", "bad", "unsure"]
_COLUMNS, _INDENT, _WAY = 80, 8, 9
_COLOURS: dict[Tone, str] = {"good": "\ue000", "bad": "\ue001", "unsure": "\ue002"}


@record
class Answer:
    """What a command says first.

    Attributes:
        word: one word in capitals: how it stands, or how sure it is.
        verdict: a sentence without its stop, with the numbers that matter.
        tone: for the colour of the word.
        actions: what to do, the first first.
        more: what else can be done, where the first thing stands alone.
        reasons: why, a clause each.
        doubts: what would settle it, where it is not settled.
        sources: what the answer rests on.
        certainty: how sure it is; empty where the word says it.
    """

    word: str
    verdict: str
    tone: Tone
    actions: tuple[Advice | str, ...] = ()
    reasons: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    certainty: str = ""
    more: tuple[Advice | str, ...] = ()


def answer_data(answer: Answer) -> dict[str, Any]:
    """Return the same as keys for programs."""
    return {
        "verdict": answer.verdict,
        "certainty": answer.certainty or answer.word.lower(),
        "action": [str(item) for item in (*answer.actions, *answer.more)],
        "reason": list(answer.reasons),
        "source": list(answer.sources),
    }


def show_answer(answer: Answer, more: Iterable[str] = ()) -> str:
    """Print it, with more lines of the kind `label: text` behind."""
    first, *rest = (for_terminal(line) for line in (*_lines(answer), *more))
    return "\n".join([_coloured(first, answer), *rest]) + "\n"


def _lines(answer: Answer) -> Iterator[str]:
    yield from wrapped(f"{answer.word}: {answer.verdict}.", indent=2)
    for label, texts in (
        ("Do:", list(_actions(answer.actions))),
        ("More:", list(_actions(answer.more))),
        ("Why:", list(answer.reasons)),
        ("Sure?", list(answer.doubts)),
    ):
        for index, text in enumerate(texts):
            head = label if index == 0 else ""
            yield from wrapped(f"{head:<{_INDENT}}{text}", indent=_INDENT)
    for source in answer.sources:
        yield from wrapped(f"Based on {source}.", indent=2)


def _actions(actions: Iterable[Advice | str]) -> Iterator[str]:
    for item in actions:
        ways = () if isinstance(item, str) else item.ways
        text = item if isinstance(item, str) else item.text
        yield f"{text}:" if ways else text
        width = max((len(program) for program, _ in ways), default=0)
        width = max(width + 2, _WAY)
        yield from (f"  {program:<{width}}{command}" for program, command in ways)


def labelled(label: str, texts: Iterable[str]) -> Iterator[str]:
    """Lines behind an answer, the label on the first."""
    for index, text in enumerate(texts):
        head = label if index == 0 else ""
        yield from wrapped(f"{head:<{_INDENT}}{text}", indent=_INDENT)


def wrapped(text: str, *, indent: int) -> list[str]:
    """Cut a line at blanks so that it fits the terminal; in a pipe it stays whole.

    Args:
        text: the line.
        indent: of the lines that continue it.
    """
    if not _on_terminal():
        return [text]
    lead = len(text) - len(text.lstrip())
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        columns = _COLUMNS
    width = min(columns or _COLUMNS, _COLUMNS)
    import textwrap  # on a terminal alone

    return textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * max(indent, lead),
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=False,
    ) or [""]


def without_colours(text: str) -> str:
    """Return a text without the stand-ins, which only the command turns into colours."""
    return text.translate({ord(mark): None for mark in (*_COLOURS.values(), "\ue003")})


def _on_terminal() -> bool:
    return bool(sys.stdout is not None and sys.stdout.isatty())


def _coloured(line: str, answer: Answer) -> str:
    if not _on_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return line
    return f"{_COLOURS[answer.tone]}{answer.word}\ue003{line.removeprefix(answer.word)}"
