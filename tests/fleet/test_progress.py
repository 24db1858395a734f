# SPDX-License-Identifier: Apache-2.0
"""How far a fleet is: shown on a terminal, nowhere else; the total is known where it can be."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from vmm_iova.fleet.sources import count_sources, read_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three snapshots, one of them below, and what is none."""
    place = tmp_path / "hosts"
    (place / "more").mkdir(parents=True)
    for name in ("a.txt", "more/b.txt", "c.txt"):
        (place / name).write_text("0x00000000fee00000 0x00000000feefffff msi\n")
    (place / "README").write_text("none\n")
    (place / "around").symlink_to(place)
    return place


def test_total_of_a_folder_is_what_is_read_of_it(folder: Path) -> None:
    specs = [str(folder), "amd-epyc-1tb"]
    assert count_sources(specs) == len(list(read_sources(specs))) == 4


def test_total_with_an_archive_is_not_known(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "hosts.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "hosts")
    assert count_sources([str(folder), str(archive)]) is None


@pytest.mark.slow
def test_terminal_sees_how_far_the_fleet_is_and_a_pipe_does_not(folder: Path) -> None:
    command = [sys.executable, "-m", "vmm_iova", "fleet", str(folder), "--ram", "8G", "--aperture"]
    command += ["39", "-J"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "VMM_IOVA_ENGINE": "pure"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment):
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 4096):
                seen += part
        except OSError:  # Linux: the other end is closed
            pass
        os.close(ours)
    shown = re.sub(r"\s*\r\n$", "", seen.decode())
    assert re.fullmatch(r"\rfleet \[#{30}\] 3 of 3 hosts, .*/s, 0 s", shown)

    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.stderr == b""
