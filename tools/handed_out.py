# SPDX-License-Identifier: Apache-2.0
"""Building what is handed out, and installing it where nothing else is; tests use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLAN = ("plan", "--host", "amd-epyc-1tb", "--machine", "own-x86", "--ram", "1.5TiB")

# What a developer sets, and where this very checkout may be found.
_OURS = ("VMM_IOVA_", "PYTHON", "CC", "CFLAGS", "LDFLAGS", "VIRTUAL_ENV")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, **more}


def run(
    *words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment() if env is None else env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


def repository_files() -> list[str]:
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return sorted(name for name in listed.stdout.split("\0") if (ROOT / name).is_file())


def build(what: str, source: Path, target: Path, **more: str) -> Path:
    """Build one distribution as `pip` would: isolated, with what pyproject.toml asks for."""
    command = (sys.executable, "-m", "build", f"--{what}", "--outdir", target, source)
    run(*command, env=environment(**more))
    (file,) = target.iterdir()
    return file


@dataclass(frozen=True)
class Installed:
    """An environment that holds the package, what it asks for, and nothing else."""

    home: Path

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, from a folder that holds no code."""
        return run(self.home / "bin" / program, *words, cwd=self.home)

    def check(self, engine: str) -> None:
        """Assert that the command works as in the checkout, on this engine."""
        place = self.run("python", "-c", "import vmm_iova; print(vmm_iova.__file__)").stdout
        assert Path(place.strip()).is_relative_to(self.home)
        assert (
            self.run("vmm-iova", "--version").stdout == f"vmm-iova {version()} ({engine} engine)\n"
        )
        assert self.run("vmm-iova", *PLAN).stdout == plan_of_the_checkout()
        assert (self.home / "share/man/man1/vmm-iova-plan.1").exists()
        assert self._distributions() == {
            "vmm-iova": version(),
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


def version() -> str:
    program = "import vmm_iova; print(vmm_iova.__version__)"
    return run(sys.executable, "-c", program, cwd=ROOT).stdout.strip()


def plan_of_the_checkout() -> str:
    shown = run(sys.executable, "-m", "vmm_iova", *PLAN, cwd=ROOT).stdout
    assert "split, 3 pieces" in shown
    return shown


def install(what: Path, home: Path, *others: str, **more: str) -> Installed:
    """Install a distribution, and others beside it, into an environment of its own."""
    run(sys.executable, "-m", "venv", "--without-pip", home)
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install")
    run(*pip, "--quiet", "--disable-pip-version-check", what, *others, env=environment(**more))
    return Installed(home)
