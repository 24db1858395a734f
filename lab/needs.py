# SPDX-License-Identifier: Apache-2.0
"""What must be installed on this machine before a guest can boot: looked for, then installed."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import cache
from lab.debian import KEYRING
from lab.say import LabError, must, output, say

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Need:
    """A program or a header file, and the Debian packages that may bring it, best first."""

    found_as: str
    packages: tuple[str, ...]

    def met(self) -> bool:
        """Tell whether it is there."""
        if self.found_as.startswith("/"):
            return Path(self.found_as).exists()
        return shutil.which(self.found_as) is not None


BASIC = (
    Need("dpkg-deb", ("dpkg",)),
    Need("tar", ("tar",)),
    Need("xz", ("xz-utils",)),
    Need(str(KEYRING), ("debian-archive-keyring",)),
)
BUILD = (
    Need("make", ("build-essential",)),
    Need("gcc", ("build-essential",)),
    Need("flex", ("flex",)),
    Need("bison", ("bison",)),
    Need("bc", ("bc",)),
    Need("perl", ("perl",)),
    Need("/usr/include/libelf.h", ("libelf-dev",)),
)
# The s390x emulator has a package of its own in newer releases only.
QEMU = {
    "x86_64": Need("qemu-system-x86_64", ("qemu-system-x86",)),
    "aarch64": Need("qemu-system-aarch64", ("qemu-system-arm",)),
    "s390x": Need("qemu-system-s390x", ("qemu-system-s390x", "qemu-system-misc")),
}


def _pick(need: Need) -> str:
    """Return the first package that the machine's own index knows."""
    for package in need.packages[:-1]:
        code, text = output(["apt-cache", "show", package])
        if code == 0 and f"Package: {package}\n" in text:
            return package
    return need.packages[-1]


def install(needs: Iterable[Need]) -> None:
    """Install what is missing; who is not root is told the exact command instead."""
    missing = [need for need in needs if not need.met()]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        names = ", ".join(need.found_as for need in missing)
        raise LabError(f"the lab needs {names}, and can install them only where apt-get is")
    if os.geteuid() != 0:
        packages = sorted({need.packages[-1] for need in missing})
        raise LabError(
            "not being root, the lab cannot install what it needs; please run: "
            f"sudo apt-get install --no-install-recommends {' '.join(packages)}"
        )
    log = cache.root() / "install.log"
    wait = ["-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3"]
    must(["apt-get", "update", "-q", *wait], log, "reading the machine's package index")
    packages = sorted({_pick(need) for need in missing})
    say(f"installing {' '.join(packages)}")
    must(
        [
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            *["apt-get", "install", "-q", "-y", "--no-install-recommends"],
            *wait,
            *packages,
        ],
        log,
        f"installing {' '.join(packages)}",
    )
    left = [need.found_as for need in missing if not need.met()]
    if left:
        raise LabError(f"{' '.join(packages)} installed, but {', '.join(left)} is still missing")
