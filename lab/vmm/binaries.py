# SPDX-License-Identifier: Apache-2.0
"""QEMU with its firmware: that of this Debian, and newer ones unpacked beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path

from lab import cache
from lab.debian import Apt, unpack
from lab.say import LabError, say

PACKAGES = (
    "qemu-system-x86",
    "qemu-system-arm",
    "qemu-system-misc",
    "qemu-system-s390x",
    "qemu-system-riscv",
    "seabios",
    "ovmf",
)
SUITES = ("trixie", "sid")
BINARIES = {
    "x86_64": "qemu-system-x86_64",
    "aarch64": "qemu-system-aarch64",
    "riscv64": "qemu-system-riscv64",
    "s390x": "qemu-system-s390x",
}


@dataclass(frozen=True)
class Qemu:
    """One release of QEMU with the firmware that Debian pairs it with.

    Attributes:
        name: `debian` for the system's own, else the suite that it was unpacked from.
        root: folder that it was unpacked into; `/` for the system's own.
        version: of QEMU, such as (10, 0).
        seabios: version of SeaBIOS, such as `1.16.3`.
        ovmf: version of OVMF, such as `2025.02`; None where it is not there.
    """

    name: str
    root: Path
    version: tuple[int, int]
    seabios: str
    ovmf: str | None

    def command(self, arch: str) -> list[str]:
        """Return how to start it for an architecture, without any option."""
        binary = self.root / "usr/bin" / BINARIES[arch]
        if self.root == Path("/"):
            return [str(binary)]
        libraries = ":".join(
            str(self.root / part) for part in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
        )
        data = ("usr/share/seabios", "usr/share/qemu", "usr/lib/ipxe/qemu")
        loader = self.root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        folders = [word for part in data for word in ("-L", str(self.root / part))]
        return [str(loader), "--library-path", libraries, str(binary), *folders]

    @property
    def ovmf_files(self) -> tuple[Path, Path]:
        """Code and variables of OVMF."""
        folder = self.root / "usr/share/OVMF"
        return folder / "OVMF_CODE_4M.fd", folder / "OVMF_VARS_4M.fd"

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        number = ".".join(map(str, self.version))
        return f"QEMU {number} ({self.name}), SeaBIOS {self.seabios}, OVMF {self.ovmf or 'none'}"


@once
def system() -> Qemu:
    """Return the QEMU of this machine."""
    path = shutil.which(BINARIES["x86_64"])
    if path is None:
        raise LabError("there is no qemu-system-x86_64: apt-get install qemu-system-x86")
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    ovmf = _installed("ovmf")
    return Qemu("debian", Path("/"), _number(text), _installed("seabios"), ovmf)


def _number(text: str) -> tuple[int, int]:
    match = re.search(r"version (\d+)\.(\d+)", text)
    if match is None:
        raise LabError(f"QEMU does not say its version: {text[:80]!r}")
    return int(match[1]), int(match[2])


def _installed(package: str) -> str:
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", package],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LabError(f"package {package} is not installed: apt-get install {package}")
    return _upstream(done.stdout)


def _upstream(version: str) -> str:
    return version.partition(":")[2].partition("-")[0] if ":" in version else version.split("-")[0]


def unpacked(suite: str, *, renew: bool = False) -> Qemu:
    """Return the QEMU of another suite of Debian, fetched once and kept in the lab's cache."""
    home = cache.root() / "qemu" / suite
    note = home / "versions"
    with cache.locked("fetch"):
        if renew or not note.exists():
            apt = Apt("amd64", (suite,))
            apt.update()
            packages = apt.download_with_dependencies(list(PACKAGES))
            say(f"unpacking {len(packages)} packages of {suite}")
            with cache.fresh(home) as folder:
                for package in packages:
                    unpack(package, folder)
                versions = (apt.version(name) for name in ("seabios", "ovmf"))
                (folder / "versions").write_text("\n".join(map(_upstream, versions)) + "\n")
    seabios, ovmf = note.read_text().split()
    found = Qemu(suite, home, (0, 0), seabios, ovmf)
    text = subprocess.run(
        [*found.command("x86_64")[:4], "--version"], capture_output=True, text=True, check=True
    ).stdout
    return Qemu(suite, home, _number(text), seabios, ovmf)
