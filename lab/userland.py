# SPDX-License-Identifier: Apache-2.0
"""What runs inside a guest: a root of its own for foreign architectures, and the pure packages."""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import re
import shutil
import sys
import zipfile
from pathlib import Path

from lab import cache
from lab.debian import Apt, unpack
from lab.say import LabError, output, say

# The release whose Python runs in foreign guests; any that has Python 3.11 or newer would do.
RELEASE = "bookworm"
APPLETS = "sh cat cp dmesg echo env grep head id ls mkdir mount sleep sync tail true umount uname"
WANTED = ("pytest", "sortedcontainers")
# Taken along too; newer versions have compiled parts, then an older one is asked of PyPI.
WELCOME = ("hypothesis",)
LACKING = ".lacking"


def busybox(arch: str, renew: bool = False) -> Path:
    """Return a static busybox, which is all that an initramfs needs beside modules."""
    home = cache.root() / "busybox" / arch
    with cache.locked("fetch"):
        if renew or not (home / "bin" / "busybox").exists():
            apt = Apt(arch, (RELEASE,))
            apt.update()
            with cache.fresh(home) as made:
                for package in apt.download(["busybox-static"], made / "packages"):
                    unpack(package, made)
                shutil.rmtree(made / "packages")
    return home / "bin" / "busybox"


def foreign_root(arch: str, renew: bool = False) -> Path:
    """Return a folder with Python of that architecture: unpacked packages, never installed."""
    home = cache.root() / "roots" / f"{RELEASE}-{arch}"
    with cache.locked("fetch"):
        if renew or not (home / "usr/bin/python3").exists():
            apt = Apt(arch, (RELEASE,))
            apt.update()
            packages = apt.download_with_dependencies(["busybox-static", "python3"])
            say(f"unpacking {len(packages)} packages for {arch}")
            with cache.fresh(home) as made:
                for package in packages:
                    unpack(package, made)
                for folder in ("proc", "sys", "dev", "tmp", "run", "root", "etc"):
                    (made / folder).mkdir(exist_ok=True)
                for applet in APPLETS.split():
                    link = made / "bin" / applet
                    if not link.exists():
                        link.symlink_to("busybox")
                (made / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
                (made / "etc/group").write_text("root:x:0:\n")
    return home


def _closure() -> dict[str, metadata.Distribution]:
    """Return the distributions that the tests need, with all that those require."""
    found: dict[str, metadata.Distribution] = {}
    queue = [*WANTED, *WELCOME]
    while queue:
        name = queue.pop(0)
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name in WANTED:
                raise LabError(
                    f"the Python that runs the lab lacks {name}; install the project with its "
                    "development extras first"
                ) from None
            continue
        if any(file.suffix == ".so" for file in distribution.files or []):
            if name in WANTED:
                raise LabError(f"{name} here is not pure Python, so no other machine can run it")
            continue
        found[key] = distribution
        queue.extend(
            re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
            for requirement in distribution.requires or []
            if "extra ==" not in requirement
        )
    return found


def _older(name: str, into: Path) -> bool:
    """Let pip find the newest version that is pure Python, where the one here is not."""
    wheels = into / "wheels"
    wanted = ["--only-binary", ":all:", "--platform", "any", "--implementation", "py"]
    code, _ = output(
        [
            *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels)),
            *(*wanted, "--python-version", "3.11", "--abi", "none", name),
        ]
    )
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    shutil.rmtree(wheels, ignore_errors=True)
    return code == 0


def pure_packages() -> Path:
    """Return a folder with pytest and sortedcontainers, copied from this very environment."""
    distributions = _closure()
    names = sorted(f"{key} {value.version}" for key, value in distributions.items())
    names += [f"older {name}" for name in WELCOME if name not in distributions]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    home = cache.root() / "pure" / digest
    with cache.locked("fetch"):
        if home.exists() and not (home / LACKING).exists():
            return home
        with cache.fresh(home) as made:
            for name in WELCOME:
                if name not in distributions and not _older(name, made):
                    say(f"no pure {name} to be had; foreign guests go without it this time")
                    (made / LACKING).touch()
            for distribution in distributions.values():
                for file in distribution.files or []:
                    inside = not file.is_absolute() and ".." not in file.parts
                    if not inside or "__pycache__" in file.parts:
                        continue
                    source = Path(str(distribution.locate_file(file)))
                    if source.is_file():
                        target = made / file
                        target.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(source, target)
    return home
