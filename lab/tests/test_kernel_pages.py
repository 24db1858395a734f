# SPDX-License-Identifier: Apache-2.0
"""The programs of docs/driver.md and docs/vmm.md, as printed, on the kernel of this guest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def _main(page: str) -> Any:
    (program,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": page}
    exec(compile(program, page, "exec"), names)
    return names["main"]


def _edu(lab: dict[str, Any]) -> str:
    return next(each["bdf"] for each in lab["devices"] if each["kind"] == "edu")


@pytest.mark.guests("vtd", "vtd39", "amd", "iommufd")
@pytest.mark.proves("the driver of docs/driver.md moves bytes there and back")
def test_driver_of_the_page_runs(lab: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    _main("driver.md")(_edu(lab))
    assert capsys.readouterr().out == "there and back\n"


@pytest.mark.guests("vtd", "vtd39", "iommufd")
@pytest.mark.proves("the VMM of docs/vmm.md plans and maps its guest")
def test_vmm_of_the_page_runs(lab: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    _main("vmm.md")([_edu(lab)], "64MiB")
    assert "kernel: b'bzImag'" in capsys.readouterr().out
