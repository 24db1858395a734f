# SPDX-License-Identifier: Apache-2.0
"""Each option works or is refused: none is ignored in silence."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from tests.kit.command import Output, run

LINE = "vfio_dma_map(0x1000, 0xfd00000000, 0x10000000, 0x2000) = -22 (Invalid argument)"
OPTIONS = {
    "--aperture": ("--aperture", "36"),
    "--granule": ("--granule", "2M"),
    "--strict": ("--strict",),
    "--facts": ("--facts", "{facts}"),
    "-g": ("-g", "7"),
    "-s": ("-s", "0000:01:00.0"),
    "--sysroot": ("--sysroot", "/nonexistent"),
    "--ask-kernel": ("--ask-kernel",),
    "--host": ("--host", "amd-epyc-1tb"),
}


@pytest.fixture
def facts(tmp_path: Path) -> str:
    path = tmp_path / "facts.txt"
    path.write_text("usable IOVA ranges\n0x0 - 0xfcffffffff\n0x10000000000 - 0xffffffffffff\n")
    return str(path)


def explained(capsys: Output, *arguments: str) -> tuple[int, str]:
    status = run("explain", LINE, *arguments)
    return status, "".join(capsys.readouterr())


def given(facts: str, *names: str) -> list[str]:
    return [part.format(facts=facts) for name in names for part in OPTIONS[name]]


@pytest.mark.parametrize("name", OPTIONS)
def test_option_of_explain_changes_the_answer_or_is_refused(
    name: str, facts: str, capsys: Output
) -> None:
    plain = explained(capsys)
    assert explained(capsys, *given(facts, name)) != plain


@pytest.mark.parametrize("names", list(combinations(OPTIONS, 2)), ids=" ".join)
def test_pair_of_options_of_explain_is_answered_or_refused_in_one_sentence(
    names: tuple[str, str], facts: str, capsys: Output
) -> None:
    status, shown = explained(capsys, *given(facts, *names))
    assert status in (0, 1, 2, 3, 4, 6, 9), shown
    refused = shown.startswith("vmm-iova: error: ")
    assert refused == (status in (2, 3, 4, 6) and "Do:" not in shown)
    # What one of the two refuses or needs, the other cannot undo in silence.
    if "--sysroot" in names and "--host" in names:
        assert status == 2


def test_facts_that_do_not_exist_are_an_error_without_a_host(capsys: Output) -> None:
    status, shown = explained(capsys, "--facts", "/nonexistent")
    assert status == 6
    assert "/nonexistent" in shown


@pytest.mark.parametrize("command", ["show", "plan", "check", "capture"])
@pytest.mark.parametrize("option", ["--sysroot /", "--sysroot /nonexistent", "--ask-kernel"])
def test_option_about_this_machine_is_refused_for_another_host(
    command: str, option: str, capsys: Output
) -> None:
    more = {"plan": ("--ram", "4G"), "check": ("--range", "0x1000+4K")}.get(command, ())
    status = run(command, "--host", "amd-epyc-1tb", *more, *option.split())
    text = "".join(capsys.readouterr())
    assert (status == 2) == (option != "--sysroot /")
    assert ("is about this machine" in text) == (status == 2)


class TestHelp:
    def test_program_alone_helps(self, capsys: Output) -> None:
        assert run() == 0
        assert "COMMAND" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "command", ["show", "plan", "check", "explain", "machines", "fleet", "diff", "capture"]
    )
    def test_help_has_examples_that_begin_as_they_are_typed(
        self, command: str, capsys: Output
    ) -> None:
        assert run(command, "--help") == 0
        text = capsys.readouterr().out
        assert "examples:" in text
        assert f"vmm-iova {command}" in text.split("examples:")[1]

    def test_options_stand_in_groups(self, capsys: Output) -> None:
        assert run("plan", "--help") == 0
        text = capsys.readouterr().out
        assert "\nhost:\n" in text
        assert "\nwhat you know of the host:\n" in text

    def test_mistyped_command_is_asked_about(self, capsys: Output) -> None:
        assert run("explian") == 2
        assert "did you mean explain?" in capsys.readouterr().err
