# SPDX-License-Identifier: Apache-2.0
"""What is handed out works where nothing else is: `make package` runs this, from `.ci/run`.

The source distribution and the wheels are built from a copy of the checkout that holds nothing but
the repository's files, and each is installed into an environment that holds nothing at all.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tools.handed_out import environment, install, repository_files, run

COMPILED_MAX = 300_000
"""Bytes of the wheel that are machine code, packed; debug records would make them 1.6 MB."""
MADE_BY_SETUPTOOLS = {"PKG-INFO", "setup.cfg"}


def test_source_distribution_is_the_repository(unpacked: Path) -> None:
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    ours = {name for name in files if not name.startswith("vmm_iova.egg-info/")}
    assert ours - MADE_BY_SETUPTOOLS == set(repository_files())


def test_wheel_holds_the_package_stripped_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        modules = {name for name in names if name.endswith(".so")}
        packed = sum(archive.getinfo(name).compress_size for name in modules)
        sections = (b".symtab", b".debug_info")
        unstripped = {name for name in modules for part in sections if part in archive.read(name)}
    files = {name for name in repository_files() if name.startswith("vmm_iova/")}
    shared = {name for name in names if ".data/data/share/" in name}
    assert names - modules - shared == {name for name in files if not name.endswith((".pyx", ".c"))}
    assert {name.partition(".data/data/")[2] for name in shared} == {
        name for name in repository_files() if name.startswith("share/")
    }
    assert len(modules) == sum(name.endswith(".pyx") for name in files)
    assert unstripped == set()
    assert packed < COMPILED_MAX


def test_wheel_without_the_extension_is_for_every_machine(pure_wheel: Path) -> None:
    assert pure_wheel.name.endswith("-py3-none-any.whl")


def test_wheel_in_an_empty_environment_plans_on_the_fast_engine(
    wheel: Path, tmp_path: Path
) -> None:
    install(wheel, tmp_path / "home").check("fast")


def test_wheel_without_the_extension_in_an_empty_environment_plans_on_the_pure_engine(
    pure_wheel: Path, tmp_path: Path
) -> None:
    install(pure_wheel, tmp_path / "home").check("pure")


def test_source_distribution_with_a_compiler_plans_on_the_fast_engine(
    sdist: Path, tmp_path: Path
) -> None:
    install(sdist, tmp_path / "home").check("fast")


def test_source_distribution_without_a_compiler_plans_on_the_pure_engine(
    sdist: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    install(sdist, tmp_path / "home", PATH=str(empty), CC="/nonexistent/cc").check("pure")


def test_source_distribution_without_a_compiler_is_refused_where_the_extension_is_required(
    sdist: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    run(sys.executable, "-m", "venv", "--without-pip", home)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", sdist],
        env=environment(PATH="/nonexistent", CC="/nonexistent/cc", VMM_IOVA_REQUIRE_EXT="1"),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode != 0
    assert "/nonexistent/cc" in done.stdout + done.stderr


def test_source_distribution_passes_its_own_check(unpacked: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(unpacked, tmp_path / "source")
    done = run("make", "check", cwd=copy, env=environment(VMM_IOVA_REQUIRE_EXT="1"))
    assert "engines: pure, fast" in done.stdout
