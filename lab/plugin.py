# SPDX-License-Identifier: Apache-2.0
"""A pytest plug-in for test runs inside a guest.

Marks that it understands:

* `guests("vtd", "amd")`: the test is only for these guests; elsewhere it is left out.
* `proves("text")`: what the lab's table may say of a guest once the test has passed in it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def _setup() -> Path | None:
    stated = os.environ.get("VMM_IOVA_LAB")
    return Path(stated) if stated else None


def pytest_configure(config: pytest.Config) -> None:
    """Make the marks known."""
    config.addinivalue_line("markers", "guests(*names): only in these guests of the kernel lab")
    config.addinivalue_line("markers", "proves(text): what the lab's table says once this passed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for other guests."""
    path = _setup()
    if path is None or not path.exists():
        return
    guest = json.loads(path.read_text())["guest"]
    mine: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        mark = item.get_closest_marker("guests")
        (mine if mark is None or guest in mark.args else others).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = mine


class Proved:
    """Collects the texts of the tests that passed."""

    def __init__(self) -> None:
        self.phrases: dict[str, bool] = {}
        self.marks: dict[str, list[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember what each test would prove."""
        for item in session.items:
            self.marks[item.nodeid] = [str(m.args[0]) for m in item.iter_markers("proves")]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A text holds when every test that carries it passed."""
        if report.when == "call" or report.failed:
            for phrase in self.marks.get(report.nodeid, []):
                self.phrases[phrase] = self.phrases.get(phrase, True) and report.passed

    def pytest_sessionfinish(self) -> None:
        """Write the texts beside the setup file."""
        path = _setup()
        if path is not None and path.parent.is_dir():
            held = [phrase for phrase, good in self.phrases.items() if good]
            (path.parent / "proved.json").write_text(json.dumps(held))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin to collect."""
    session.config.pluginmanager.register(Proved(), "lab-proved")
