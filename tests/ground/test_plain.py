# SPDX-License-Identifier: Apache-2.0
"""Text from outside made plain."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_iova.errors import HostDataError
from vmm_iova.plain import by_number, for_terminal, one_line, parse_json, whole_number


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0000:01:00.0", "0000:01:00.0"),
        ("größer · 名", "größer · 名"),
        ("a\x1b[2J", r"a\x1b[2J"),
        ("a\nb\r", r"a\nb\r"),
        ("a\tb\u00a0c\u3000d", "a b c d"),
        ("\x7f\x80\x9b31m", r"\x7f\x80\x9b31m"),  # C1 controls are one-byte escapes to some
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),  # turns the direction of writing
        ("a\u2028b\x85c\x0cd", r"a\u2028b\x85c\x0cd"),  # what splitlines takes for line ends
        ("\udcff\ud800", r"\xff\ud800"),
        ("\0", r"\x00"),
        ("", ""),
    ],
)
def test_one_line_shows_what_does_not_print_as_its_escape(text: str, shown: str) -> None:
    assert one_line(text) == shown


@given(st.text(st.characters(), max_size=40))
def test_one_line_of_any_text_prints_encodes_and_stays(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert shown.splitlines() in ([], [shown])
    shown.encode("utf-8")
    assert one_line(shown) == shown


def test_for_terminal_keeps_lines_and_tabs_and_nothing_that_is_obeyed() -> None:
    assert for_terminal("a\n\tb\x1b]0;x\x07\r\n") == "a\n\tb\\x1b]0;x\\x07\\r\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_for_terminal_fits_any_encoding(encoding: str) -> None:
    shown = for_terminal("µ 名 \ud800\n", encoding)
    assert shown.encode(encoding, "strict").decode(encoding) == shown
    assert shown.endswith("\\ud800\n")


@pytest.mark.parametrize("text", ["", "²", "٣", "-1", "1_0", "0x1", " 1", "1" * 19, "1" * 5000])
def test_whole_number_is_ascii_digits_of_bounded_length_alone(text: str) -> None:
    assert whole_number(text) is None


def test_names_that_are_numbers_come_first_and_by_value() -> None:
    names = ["²", "10", "b", "9", "1" * 5000, "007", "٣"]
    assert sorted(names, key=by_number) == ["007", "9", "10", "1" * 5000, "b", "²", "٣"]


def test_parse_json_gives_each_text_as_one_line_wherever_it_is() -> None:
    data = parse_json(r'{"a\n": "\u001b", "l": ["\n", [{"x": "\ud800"}], 1], "n": null}', "f")
    assert data == {r"a\n": r"\x1b", "l": [r"\n", [{"x": r"\ud800"}], 1], "n": None}


@pytest.mark.parametrize("number", [*range(0x20), 0x7F, 0x85, 0xA0, 0xAD, 0x202E, 0xE000])
def test_no_text_of_json_has_a_character_that_does_not_print(number: int) -> None:
    try:
        data = parse_json(f'{{"a{chr(number)}": ["b{chr(number)}"]}}', "f")
    except HostDataError:
        assert number < 0x20  # in a text, which json itself refuses
    else:
        ((key, (item,)),) = data.items()
        assert key.isprintable()
        assert item.isprintable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "nested deeper than can be read"),
        ('{"a":' * 200_000, "nested deeper than can be read"),
        ("1" * 5000, "is not JSON"),
        ("{", "f:1: is not JSON"),
        ('{\n"a" 1}', "f:2: is not JSON"),
    ],
)
def test_parse_json_names_what_it_cannot_read(text: str, words: str) -> None:
    with pytest.raises(HostDataError, match=words) as caught:
        parse_json(text, "f")
    assert caught.value.source == "f"


def test_nesting_of_lists_below_the_limit_of_python_is_no_traceback() -> None:
    depth = sys.getrecursionlimit() - 100
    text = '{"a":' + "[" * depth + '"\\n"' + "]" * depth + "}"
    try:
        parse_json(text, "f")
    except HostDataError as error:
        assert "nested" in error.message  # noqa: PT017  either is right, a RecursionError is not
