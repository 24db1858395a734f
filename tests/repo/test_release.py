# SPDX-License-Identifier: Apache-2.0
"""The version stands in one place of the package; what else names it says the same."""

from __future__ import annotations

import re

import pytest

import vmm_iova as vi
from tests.kit.data import ROOT

CHANGES = (ROOT / "CHANGELOG.md").read_text("utf-8")
RELEASES = re.findall(r"^## (.*)$", CHANGES, re.MULTILINE)
PARTS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
"""The headings below a release, in the order of https://keepachangelog.com."""


def newest() -> tuple[str, str]:
    """The version and the date of the newest release in the changes."""
    version, date = RELEASES[1].split(" - ")
    return version, date


def test_changes_begin_with_what_is_not_released_yet() -> None:
    assert RELEASES[0] == "Unreleased"
    for release in RELEASES[1:]:
        assert re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", release)


def test_version_of_the_package_is_the_newest_of_the_changes() -> None:
    assert newest()[0] == vi.__version__


def test_citation_names_the_newest_release_and_its_date() -> None:
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    version, date = newest()
    assert f"\nversion: {version}\n" in text
    assert f"\ndate-released: {date}\n" in text


def test_debian_package_has_the_same_version() -> None:
    text = (ROOT / "debian/changelog").read_text("utf-8")
    assert re.match(rf"vmm-iova \({re.escape(vi.__version__)}-\d+\) ", text)


@pytest.mark.parametrize("release", RELEASES)
def test_parts_of_a_release_come_in_one_order(release: str) -> None:
    text = CHANGES.partition(f"## {release}\n")[2].partition("\n## ")[0]
    parts = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert parts == [part for part in PARTS if part in parts]
