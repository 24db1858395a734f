# SPDX-License-Identifier: Apache-2.0
"""The matcher of error lines: what a template means, and that no text makes it slow."""

from __future__ import annotations

import pytest

from vmm_iova.diagnosis import error_lines
from vmm_iova.diagnosis.error_line_matcher import Tally, Template, fold
from vmm_iova.diagnosis.error_line_table import FORMS, read_line
from vmm_iova.diagnosis.error_lines import parse_report
from vmm_iova.errors import HostDataError

TEMPLATES = [text for form in FORMS for text in form.templates]


def values(template: str, line: str) -> dict[str, str] | None:
    match = Template(template).search(fold(line))
    return None if match is None else match.values


@pytest.mark.parametrize(
    "line",
    [
        "vfio_dma_map(0x..., 0x1000, 0x2000, 0x3000) = -22",
        "x VFIO_DMA_MAP (0x5e04,0x1000,0x2000,\t0x3000)=-22",
        "vfio_dma_map(0x1\u2026, 0x1000, 0x2000, 0x3000)",
    ],
)
def test_blanks_and_case_and_shortened_pointers_make_no_difference(line: str) -> None:
    found = values("vfio_dma_map ({ptr:p}, {iova}, {size}, {hva})", line)
    assert found is not None
    assert (found["iova"], found["size"]) == ("0x1000", "0x2000")


def test_parts_between_gaps_are_found_in_their_order() -> None:
    template = "dmar ... fault addr {addr:x} ... present bit"
    assert values(template, "DMAR: [x] fault addr 1000 [reason] Present bit") == {"addr": "1000"}
    assert values(template, "Present bit DMAR: fault addr 1000") is None


def test_failed_attempt_does_not_hide_a_later_place() -> None:
    assert values("group {group:d} is not", "group x is not, group 7 is not") == {"group": "7"}


def test_number_that_no_address_has_is_no_number() -> None:
    assert values("size={size},", f"size=0x{'f' * 65},") is None


def test_part_that_begins_with_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="begin with a word"):
        Template("{iova} is bad")


def test_template_of_the_table_is_in_lower_case_and_finds_what_it_shows() -> None:
    assert len(TEMPLATES) > 200
    for text in TEMPLATES:
        _check_template(text)


def _check_template(text: str) -> None:
    # A template that can match nothing would teach nothing.
    shown = text
    for kind, value in (
        (":x}", "1000"),
        (":d}", "7"),
        (":w}", "word"),
        (":p}", "0x10"),
    ):
        head, _, rest = shown.partition("{")
        while rest:
            name, _, after = rest.partition("}")
            if f"{name}}}".endswith(kind):
                head, rest = f"{head}{value}{after.partition('{')[0]}", after.partition("{")[2]
            else:
                head, rest = f"{head}{{{name}}}{after.partition('{')[0]}", after.partition("{")[2]
        shown = head
    for name, value in (("dev", "0000:01:00.0"), ("hva", "0x10"), ("node", "x"), ("ptr", "0x1")):
        shown = shown.replace(f"{{{name}}}", value)
    while "{" in shown:
        head, _, rest = shown.partition("{")
        shown = f"{head}0x10{rest.partition('}')[2]}"
    assert text == text.lower(), text
    assert Template(text).search(fold(shown)) is not None, text


HOSTILE = [
    "fault addr fDMAR:[ ]",
    "DMAR: [fault addr 0x",
    "vfio_dma_map(0x",
    "vfio_dma_map(0x1, 0x1, 0x1, ",
    "bar 1 [mem size 0x1 ",
    "iova=iova=[0x",
    "0x",
    "arm-smmu event iova",
    "group 1 group group 1 is ",
    " ",
    "f",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_twice_the_text_is_looked_at_twice_as_long(piece: str) -> None:
    def looked_at(pieces: int) -> int:
        tally = Tally()
        read_line(fold(piece * pieces), tally)
        return tally.characters

    small, large = looked_at(500), looked_at(1000)
    assert large <= 2.1 * small + 1000


def test_whole_paste_is_bounded_in_lines_characters_and_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert error_lines.MOST_LINES == 20_000
    monkeypatch.setattr(error_lines, "MOST_LINES", error_lines.MOST_FAILURES + 100)
    line = "kvm: vfio_dma_map(0x1, 0x{:x}000, 0x1000, 0x2000) = -22 (Invalid argument)\n"
    text = "".join(line.format(n) for n in range(error_lines.MOST_LINES + 5))
    report = parse_report(text)
    assert len(report.failures) == error_lines.MOST_FAILURES
    assert any("first 200 of 205 lines" in note for note in report.notes)


def test_line_that_kept_explain_busy_for_a_minute_is_read() -> None:
    with pytest.raises(HostDataError):  # and no fault: the reason does not stand behind it
        parse_report("fault addr xDMAR:[ ]" * 195)
