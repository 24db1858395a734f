# SPDX-License-Identifier: Apache-2.0
"""What goes to a package index: `make package` runs this.

The wheel of this machine goes through the tools of the release. What cibuildwheel does in its
containers cannot be run where there is no container engine: its configuration is held to its own
schema, it is asked what it would build, and its test command runs on this machine's wheel.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tools.handed_out import ROOT, environment, install, run

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CONFIG: dict[str, Any] = PROJECT["tool"]["cibuildwheel"]
RELEASE = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
PYTHONS = ("cp311", "cp312", "cp313", "cp314", "cp315")
OLDEST_GLIBC = (2, 28)
"""What the wheels of the release are for: RHEL 8, Debian 10, Ubuntu 20.04 and newer."""


def test_wheel_needs_no_library_and_runs_on_old_systems(repaired: Path) -> None:
    found = re.findall(r"manylinux_(\d+)_(\d+)", repaired.name)
    assert found
    assert min((int(major), int(minor)) for major, minor in found) <= OLDEST_GLIBC
    with zipfile.ZipFile(repaired) as archive:
        assert not [name for name in archive.namelist() if ".libs/" in name]  # nothing is added


def test_repaired_wheel_in_an_empty_environment_plans_on_the_fast_engine(
    repaired: Path, tmp_path: Path
) -> None:
    install(repaired, tmp_path / "home").check("fast")


def test_index_can_show_what_is_handed_out(sdist: Path, pure_wheel: Path, repaired: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, pure_wheel, repaired)


def test_wheels_are_configured_as_their_tool_has_it() -> None:
    schema = json.loads(
        files("cibuildwheel").joinpath("resources/cibuildwheel.schema.json").read_text("utf-8")
    )
    jsonschema.validate(CONFIG, schema)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_wheels_are_built_for_each_python_and_libc(machine: str) -> None:
    command = ("cibuildwheel", "--print-build-identifiers", "--platform", "linux")
    shown = run(sys.executable, "-m", *command, "--archs", machine, cwd=ROOT).stdout
    assert shown.split() == [
        f"{python}-{libc}_{machine}" for libc in ("manylinux", "musllinux") for python in PYTHONS
    ]


def test_release_takes_the_tools_that_are_tried_here() -> None:
    extra = PROJECT["project"]["optional-dependencies"]["package"]
    for tool in ("cibuildwheel", "twine"):
        (pinned,) = (line for line in extra if line.startswith(f"{tool}=="))
        assert pinned in RELEASE


def test_test_command_of_the_wheels_passes_on_this_one(wheel: Path, tmp_path: Path) -> None:
    home = install(wheel, tmp_path / "home", *CONFIG["test-requires"])
    place = tmp_path / "tests"
    for name in CONFIG["test-sources"]:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, place / name)
    for command in CONFIG["test-command"]:
        program, *words = shlex.split(command)
        done = subprocess.run(
            [home.home / "bin" / program, *words],
            cwd=place,
            env=environment(PATH=f"{home.home / 'bin'}:/usr/bin:/bin"),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
