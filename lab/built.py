# SPDX-License-Identifier: Apache-2.0
"""The kernel with iommufd, which no Debian kernel turns on: built here from Debian's source."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab import cache
from lab.debian import Apt, unpack
from lab.kernels import Kernel, load, one, store
from lab.say import LabError, must, say

FRAGMENT = Path(__file__).with_name("iommufd.config")
SOURCE = Apt("amd64", ("trixie-backports",))
CONFIGURE: tuple[tuple[str, ...], ...] = (
    ("make", "tinyconfig"),
    ("scripts/kconfig/merge_config.sh", "-m", ".config", str(FRAGMENT)),
    ("make", "olddefconfig"),
)


@dataclass(frozen=True)
class BuiltKernel:
    """The current source of a release, tinyconfig and a fragment, kept by version and fragment."""

    meta: str = "linux-source"

    def kernel(self, renew: bool = False) -> Kernel:
        """Return the built kernel of this fragment; build when there is none for it."""
        if platform.machine() != "x86_64":
            raise LabError(
                "the kernel with iommufd is built with this machine's own compiler for x86-64, so "
                "it needs an x86-64 machine"
            )
        digest = hashlib.sha256(FRAGMENT.read_bytes()).hexdigest()[:12]
        folder = cache.root() / "kernels"
        with cache.locked("build"):
            have = sorted(
                folder.glob(f"iommufd-*-{digest}/kernel.json"), key=lambda p: p.stat().st_mtime
            )
            if have and not renew:
                return load(have[-1].parent)
            SOURCE.update()
            package = next(
                name for name in SOURCE.depends(self.meta) if name.startswith("linux-source-")
            )
            version = SOURCE.version(package)
            home = folder / f"iommufd-{version}-{digest}"
            if not (home / "kernel.json").exists():
                _build(package, version, home)
            return load(home)


def _package(package: str, version: str) -> Path:
    """Return the source package; it stays for the next change of the fragment."""
    folder = cache.root() / "source"
    kept = folder / f"{package}_{version}.deb"
    if not kept.exists():
        with cache.fresh(folder) as made:
            got = SOURCE.download([package], made)
            got[0].rename(made / kept.name)
    return kept


def _configured(package: str, version: str, work: Path) -> None:
    """Unpack and configure the source, unless an interrupted build left it so already."""
    for other in work.parent.glob("*"):
        if other != work:
            shutil.rmtree(other)
    if work.exists():
        say(f"going on with the interrupted build of {package} {version}")
        return
    with cache.fresh(work) as made:
        unpack(_package(package, version), made / "package", ("*/linux-source-*.tar.xz",))
        archive = one(made / "package", "linux-source-*.tar.xz")
        tree, log = made / "tree", made / "build.log"
        tree.mkdir()
        must(
            ["tar", "-x", "-f", str(archive), "-C", str(tree), "--strip-components=1"],
            log,
            "unpacking the kernel source",
        )
        shutil.rmtree(made / "package")
        for step in CONFIGURE:
            must(step, log, "configuring the kernel", cwd=tree)
        _check((tree / ".config").read_text(), package)


def _build(package: str, version: str, home: Path) -> None:
    """Build in a folder that outlives an interrupt: half an hour's work is not begun again."""
    work = cache.root() / "build" / home.name
    _configured(package, version, work)
    tree, log = work / "tree", work / "build.log"
    jobs = f"-j{os.cpu_count() or 2}"
    say(f"building {package} {version} with {jobs}; this happens once and takes some minutes")
    must(("nice", "-n", "15", "make", jobs, "bzImage"), log, "building the kernel", cwd=tree)
    with cache.fresh(home) as made:
        shutil.copyfile(tree / "arch/x86/boot/bzImage", made / "vmlinuz")
        shutil.copyfile(tree / ".config", made / "config")
        shutil.copyfile(log, made / "build.log")
        release = (tree / "include/config/kernel.release").read_text().strip()
        store(made, version, made / "vmlinuz", release, None)
    shutil.rmtree(work)


def _check(config: str, package: str) -> None:
    """Refuse to build when the source does not know an option that the fragment asks for."""
    got = set(config.splitlines())
    asked = [line for line in FRAGMENT.read_text().splitlines() if line.startswith("CONFIG_")]
    lost = [line for line in asked if line not in got]
    if lost:
        raise LabError(
            f"{package} does not take {', '.join(lost)} of {FRAGMENT.name}; a dependency was "
            "renamed or is missing"
        )
