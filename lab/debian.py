# SPDX-License-Identifier: Apache-2.0
"""Debian packages of any release and architecture, without touching the system's own apt.

A private apt configuration has its own lists, cache and sources, so nothing here changes what the
machine has installed or believes to be current.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from lab import cache
from lab.say import LabError, output, say

FALLBACK_MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PAUSES = (5, 20, 60)
PASSING = (
    "unexpected size",
    "Mirror sync in progress",
    "Hash Sum mismatch",
    "Temporary failure",
    "Could not connect",
    "Connection failed",
    "Connection timed out",
    "503 ",
    "404 ",  # the index names a file that the mirror does not have yet, or no longer
)
# A mirror that follows unstable only now and then lets the release file run out. apt's own answer
# to that is a longer life counted from the file's date; the signature is checked all the same.
STALE_DAYS = 90


def mirror() -> str:
    """Return the mirror that this machine uses for Debian itself, else the public one."""
    if shutil.which("apt-get") is None:
        raise LabError("the lab fetches kernels with apt-get, and this machine has none")
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for place in places:
        if place.suffix not in (".list", ".sources") or not place.is_file():
            continue
        for line in place.read_text(errors="replace").splitlines():
            found = re.search(r"\bhttps?://\S+/debian(?=/?(\s|$))", line)
            if found and not line.lstrip().startswith("#"):
                return found.group()
    return FALLBACK_MIRROR


@dataclass(frozen=True)
class Apt:
    """One private apt configuration: an architecture and the suites that it looks into."""

    arch: str
    suites: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Return the folder that holds the lists and the configuration."""
        return cache.root() / "apt" / f"{'+'.join(self.suites)}-{self.arch}"

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C"}

    def _write(self) -> None:
        here = self.folder
        for part in ("lists/partial", "cache/archives/partial"):
            (here / part).mkdir(parents=True, exist_ok=True)
        # An empty list of installed packages; its folder is also where apt puts its locks.
        (here / "status").touch()
        signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        uri = mirror()
        (here / "sources.list").write_text(
            "".join(f"deb {signed}{uri} {suite} main\n" for suite in self.suites)
        )
        settings = {
            "Dir::State::Lists": here / "lists",
            "Dir::State::status": here / "status",
            "Dir::Cache": here / "cache",
            "Dir::Etc::SourceList": here / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Parts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "APT::Architecture": self.arch,
            "APT::Architectures": self.arch,
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        (here / "apt.conf").write_text(
            "".join(f'{key} "{value}";\n' for key, value in settings.items())
        )

    def _patiently(self, command: list[str], what: str, cwd: Path | None = None) -> str:
        """Run apt, again after a pause when the mirror is between two states."""
        for pause in (*PAUSES, None):
            code, text = output(command, env=self._environment(), cwd=cwd)
            if code == 0:
                return text
            if "is expired" in text:
                raise ExpiredError(text)
            passing = next((word for word in PASSING if word in text), None)
            complaints = [line for line in text.splitlines() if line.startswith(("E:", "W:"))]
            first = complaints[0] if complaints else text.strip()[-300:]
            if passing is None:
                raise LabError(f"{what} failed: {first}")
            if pause is None:
                break
            say(f"{what}: the mirror is not ready ({passing.strip()}); again in {pause} s")
            time.sleep(pause)
            if "404 " in text and "update" not in command:
                self.update()
        raise LabError(
            f"{what} failed {len(PAUSES) + 1} times because the mirror is mid-sync or out of "
            f"reach; try again later ({first})"
        )

    def update(self) -> None:
        """Fetch the package index."""
        self._write()
        what = f"reading the index of {'+'.join(self.suites)} for {self.arch}"
        say(what)
        command = ["apt-get", "update", "-q"]
        try:
            self._patiently(command, what)
        except ExpiredError:
            say(
                f"the mirror's {'+'.join(self.suites)} is older than its own expiry date; "
                f"taking it all the same (signatures are checked, at most {STALE_DAYS} days old)"
            )
            life = str(STALE_DAYS * 86400)
            try:
                self._patiently([*command, "-o", f"Acquire::Min-ValidTime={life}"], what)
            except ExpiredError:
                raise LabError(f"{what} failed: it is over {STALE_DAYS} days old") from None

    def depends(self, package: str) -> list[str]:
        """Return the names that a package depends on, as the index states them now."""
        code, text = output(
            ["apt-cache", "depends", "--important", package], env=self._environment()
        )
        if code or not text.startswith(package):
            raise LabError(f"{'+'.join(self.suites)} offers no package {package} for {self.arch}")
        return [
            line.split(":", 1)[1].strip()
            for line in text.splitlines()
            if line.lstrip(" |").startswith("Depends:")
        ]

    def version(self, package: str) -> str:
        """Return the version that the index offers now."""
        _, text = output(
            ["apt-cache", "show", "--no-all-versions", package], env=self._environment()
        )
        for line in text.splitlines():
            if line.startswith("Version:"):
                return line.split(":", 1)[1].strip()
        raise LabError(f"{'+'.join(self.suites)} offers no package {package} for {self.arch}")

    def download(self, packages: list[str], into: Path) -> list[Path]:
        """Download just these packages into a folder."""
        into.mkdir(parents=True, exist_ok=True)
        what = f"downloading {', '.join(packages)}"
        say(what)
        self._patiently(["apt-get", "download", "-q", *packages], what, cwd=into)
        return sorted(into.glob("*.deb"))

    def download_with_dependencies(self, packages: list[str]) -> list[Path]:
        """Download these packages and all that they depend on."""
        what = f"downloading {', '.join(packages)} for {self.arch} and what they need"
        say(what)
        command = ["apt-get", "install", "-q", "-y", "--download-only", *packages]
        archives = self.folder / "cache" / "archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        self._patiently(command, what)
        return sorted(archives.glob("*.deb"))


class ExpiredError(Exception):
    """The release file of a suite is past its own date."""


def unpack(package: Path, into: Path, members: tuple[str, ...] = ()) -> None:
    """Unpack a package, or only the members that match one of the patterns."""
    into.mkdir(parents=True, exist_ok=True)
    extract = ["tar", "-x", "-C", str(into)]
    if members:
        extract += ["--wildcards", *members]
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
    ) as source:
        done = subprocess.run(
            extract, stdin=source.stdout, stderr=subprocess.PIPE, text=True, check=False
        )
    # A pattern that matched nothing is no error here: what must exist is looked for afterwards.
    wrong = [
        line
        for line in done.stderr.splitlines()
        if "Not found in archive" not in line and "previous errors" not in line
    ]
    if source.returncode or (done.returncode and wrong):
        raise LabError(f"unpacking {package.name} failed: {' '.join(wrong)[:300]}")
