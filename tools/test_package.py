# SPDX-License-Identifier: Apache-2.0
"""What is handed out works where nothing else is: `make package` runs this, from `.ci/run`.

The source distribution and the wheels are built from a copy of the checkout that holds nothing but
the repository's files, and each is installed into an environment that holds nothing at all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLAN = ("plan", "--host", "amd-epyc-1tb", "--machine", "own-x86", "--ram", "1.5TiB")
COMPILED_MAX = 300_000
"""Bytes of the wheel that are machine code, packed; debug records would make them 1.6 MB."""
MADE_BY_SETUPTOOLS = {"PKG-INFO", "setup.cfg"}

# What a developer sets, and where this very checkout may be found.
_OURS = ("VMM_IOVA_", "PYTHON", "CC", "CFLAGS", "LDFLAGS", "VIRTUAL_ENV")


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, **more}


def _run(
    *words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=_environment() if env is None else env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


def _repository_files() -> list[str]:
    listed = _run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return sorted(name for name in listed.stdout.split("\0") if (ROOT / name).is_file())


def _build(what: str, source: Path, target: Path, **more: str) -> Path:
    """Build one distribution as `pip` would: isolated, with what pyproject.toml asks for."""
    command = (sys.executable, "-m", "build", f"--{what}", "--outdir", target, source)
    _run(*command, env=_environment(**more))
    (file,) = target.iterdir()
    return file


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a clean checkout."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in _repository_files():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    return _build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder that it holds."""
    target = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    (folder,) = target.iterdir()
    return folder


@pytest.fixture(scope="session")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with the compiled engine, built from the source distribution."""
    return _build("wheel", unpacked, tmp_path_factory.mktemp("wheel"), VMM_IOVA_REQUIRE_EXT="1")


@pytest.fixture(scope="session")
def pure_wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel without it, for every machine."""
    return _build("wheel", unpacked, tmp_path_factory.mktemp("pure"), VMM_IOVA_NO_EXT="1")


@dataclass(frozen=True)
class Installed:
    """An environment that holds the package, what it asks for, and nothing else."""

    home: Path

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, from a folder that holds no code."""
        return _run(self.home / "bin" / program, *words, cwd=self.home)

    def check(self, engine: str) -> None:
        """Assert that the command works as in the checkout, on this engine."""
        place = self.run("python", "-c", "import vmm_iova; print(vmm_iova.__file__)").stdout
        assert Path(place.strip()).is_relative_to(self.home)
        assert (
            self.run("vmm-iova", "--version").stdout == f"vmm-iova {_version()} ({engine} engine)\n"
        )
        assert self.run("vmm-iova", *PLAN).stdout == _plan_of_the_checkout()
        assert (self.home / "share/man/man1/vmm-iova-plan.1").exists()
        assert self._distributions() == {
            "vmm-iova": _version(),
            "sortedcontainers": None,
            "defusedxml": None,
        }

    def _distributions(self) -> dict[str, str | None]:
        program = (
            "from importlib.metadata import distributions\n"
            "for found in distributions(): print(found.name, found.version)\n"
        )
        lines = self.run("python", "-c", program).stdout.splitlines()
        pairs = dict(line.split() for line in lines)
        return {name: pairs[name] if name == "vmm-iova" else None for name in pairs}


def _version() -> str:
    program = "import vmm_iova; print(vmm_iova.__version__)"
    return _run(sys.executable, "-c", program, cwd=ROOT).stdout.strip()


def _plan_of_the_checkout() -> str:
    shown = _run(sys.executable, "-m", "vmm_iova", *PLAN, cwd=ROOT).stdout
    assert "split, 3 pieces" in shown
    return shown


def _install(what: Path, home: Path, **more: str) -> Installed:
    _run(sys.executable, "-m", "venv", "--without-pip", home)
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install")
    _run(*pip, "--quiet", "--disable-pip-version-check", what, env=_environment(**more))
    return Installed(home)


def test_source_distribution_is_the_repository(unpacked: Path) -> None:
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    ours = {name for name in files if not name.startswith("vmm_iova.egg-info/")}
    assert ours - MADE_BY_SETUPTOOLS == set(_repository_files())


def test_wheel_holds_the_package_stripped_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        modules = {name for name in names if name.endswith(".so")}
        packed = sum(archive.getinfo(name).compress_size for name in modules)
        sections = (b".symtab", b".debug_info")
        unstripped = {name for name in modules for part in sections if part in archive.read(name)}
    files = {name for name in _repository_files() if name.startswith("vmm_iova/")}
    shared = {name for name in names if ".data/data/share/" in name}
    assert names - modules - shared == {name for name in files if not name.endswith((".pyx", ".c"))}
    assert {name.partition(".data/data/")[2] for name in shared} == {
        name for name in _repository_files() if name.startswith("share/")
    }
    assert len(modules) == sum(name.endswith(".pyx") for name in files)
    assert unstripped == set()
    assert packed < COMPILED_MAX


def test_wheel_without_the_extension_is_for_every_machine(pure_wheel: Path) -> None:
    assert pure_wheel.name.endswith("-py3-none-any.whl")


def test_wheel_in_an_empty_environment_plans_on_the_fast_engine(
    wheel: Path, tmp_path: Path
) -> None:
    _install(wheel, tmp_path / "home").check("fast")


def test_wheel_without_the_extension_in_an_empty_environment_plans_on_the_pure_engine(
    pure_wheel: Path, tmp_path: Path
) -> None:
    _install(pure_wheel, tmp_path / "home").check("pure")


def test_source_distribution_with_a_compiler_plans_on_the_fast_engine(
    sdist: Path, tmp_path: Path
) -> None:
    _install(sdist, tmp_path / "home").check("fast")


def test_source_distribution_without_a_compiler_plans_on_the_pure_engine(
    sdist: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    _install(sdist, tmp_path / "home", PATH=str(empty), CC="/nonexistent/cc").check("pure")


def test_source_distribution_without_a_compiler_is_refused_where_the_extension_is_required(
    sdist: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    _run(sys.executable, "-m", "venv", "--without-pip", home)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", sdist],
        env=_environment(PATH="/nonexistent", CC="/nonexistent/cc", VMM_IOVA_REQUIRE_EXT="1"),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode != 0
    assert "/nonexistent/cc" in done.stdout + done.stderr


def test_source_distribution_passes_its_own_check(unpacked: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(unpacked, tmp_path / "source")
    done = _run("make", "check", cwd=copy, env=_environment(VMM_IOVA_REQUIRE_EXT="1"))
    assert "engines: pure, fast" in done.stdout
