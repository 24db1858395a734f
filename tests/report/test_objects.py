# SPDX-License-Identifier: Apache-2.0
"""What a layout, usable ranges and a diagnosis show of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vmm_iova as vi
from vmm_iova.cli import main
from vmm_iova.report import answer

LINE = (
    "kvm: vfio_container_dma_map(0x5c92, 0x380000000000, 0x10000000, 0x7807) = -22 "
    "(Invalid argument)"
)


@pytest.fixture(scope="module")
def layout() -> vi.Layout:
    return vi.plan(vi.Guest("q35", "1.5TiB"), vi.load_host("amd-epyc-1tb").usable())


def test_layout_text_has_verdict_map_and_evidence(layout: vi.Layout) -> None:
    text = layout.text()

    assert text.startswith("FITS: 1.5 TiB of RAM in q35")
    for part in ("0000010000000000-0000027f7fffffff", "\ncost\n", "\nevidence\n"):
        assert part in text
    assert layout.text(verbose=True) != text


def test_layout_svg_is_what_the_command_draws(layout: vi.Layout, tmp_path: Path) -> None:
    file = tmp_path / "map.svg"
    main(["plan", "--host", "amd-epyc-1tb", "--machine", "q35", "--ram", "1.5TiB", "-o", str(file)])

    assert layout.svg() == layout._repr_svg_() == file.read_text("utf-8")


def test_layout_html_is_an_image_of_its_own_and_escaped_text(layout: vi.Layout) -> None:
    html = layout._repr_html_()

    assert html.startswith('<img alt="QEMU q35')
    assert "<style" not in html
    assert "<pre>FITS: 1.5 TiB" in html


def test_usable_shows_map_and_causes() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()

    assert "000000fd00000000-000000ffffffffff : reserved" in usable.text()
    assert usable.svg().startswith("<svg ")
    assert usable._repr_html_().startswith('<img alt="amd-epyc-1tb"')


def test_diagnosis_as_text_is_what_explain_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = vi.explain(LINE)
    main(["explain", LINE])
    assert str(found) == found.text() == capsys.readouterr().out
    main(["explain", "-v", LINE])
    assert found.text(verbose=True) == capsys.readouterr().out
    assert found._repr_html_().startswith("<pre>")


def test_text_on_a_terminal_has_no_stand_ins_for_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "_on_terminal", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    text = str(vi.explain(LINE)[0])

    assert not any("\ue000" <= char <= "\uf8ff" or char == "\x1b" for char in text)


@pytest.mark.parametrize("text", ["", "a log in which all is well\nand more of it"])
def test_find_failures_text_without_any_gives_none(text: str) -> None:
    assert vi.find_failures(text) == ()
    with pytest.raises(vi.errors.HostDataError):
        vi.explain(text)


def test_find_failures_finds_what_explain_finds() -> None:
    assert vi.find_failures(f"all is well\n{LINE}") == vi.explain(f"all is well\n{LINE}") != ()


def test_report_is_loaded_only_when_somebody_looks() -> None:
    program = (
        "import sys, vmm_iova as vi\n"
        "layout = vi.plan(vi.Guest('q35', '4GiB'), vi.load_host('amd-epyc-1tb').usable())\n"
        "before = 'vmm_iova.report' in sys.modules; layout.svg()\n"
        "print(before, 'vmm_iova.report' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False True\n"
