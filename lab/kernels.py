# SPDX-License-Identifier: Apache-2.0
"""Kernels to boot, and those of them that Debian ships."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import cache
from lab.debian import Apt, unpack
from lab.say import LabError

if TYPE_CHECKING:
    from pathlib import Path

# Of some hundred megabytes of modules only these folders can matter to a guest.
MEMBERS = (
    "*/vmlinuz*",
    "*/modules.builtin",
    "*/config*",
    "*/kernel/drivers/block/*",
    "*/kernel/drivers/char/hw_random/*",
    "*/kernel/drivers/iommu/*",
    "*/kernel/drivers/vfio/*",
    "*/kernel/drivers/virtio/*",
    "*/kernel/fs/9p/*",
    "*/kernel/fs/netfs/*",
    "*/kernel/fs/overlayfs/*",
    "*/kernel/net/9p/*",
    "*/kernel/virt/*",
)


@dataclass(frozen=True)
class Kernel:
    """A kernel ready to boot; `modules` is None when everything is compiled in."""

    image: Path
    release: str
    modules: Path | None


@dataclass(frozen=True)
class DebianKernel:
    """A kernel that Debian ships: which index offers it, and the package that follows it."""

    apt: Apt
    meta: str

    def kernel(self, renew: bool = False) -> Kernel:
        """Return the cached kernel; fetch it when there is none, or when asked to renew."""
        home = cache.root() / "kernels" / f"{self.meta}-{'+'.join(self.apt.suites)}"
        with cache.locked("fetch"):
            if renew or not (home / "kernel.json").exists():
                self._fetch(home)
        return load(home)

    def _fetch(self, home: Path) -> None:
        self.apt.update()
        packages = self._packages()
        version = self.apt.version(packages[0])
        if (home / "kernel.json").exists() and _load_version(home) == version:
            return
        with cache.fresh(home) as folder:
            for package in self.apt.download(packages, folder / "packages"):
                unpack(package, folder / "tree", MEMBERS)
            shutil.rmtree(folder / "packages")
            image = one(folder / "tree", "vmlinuz*")
            modules = one(folder / "tree", "vfio-pci.ko*")
            while modules.parent.name != "modules":
                modules = modules.parent
            store(folder, version, image, modules.name, modules)

    def _packages(self) -> list[str]:
        """Follow the package that names the current kernel down to those that hold it."""
        first, seen, queue = self.meta, [self.meta], [self.meta]
        while queue:
            for name in self.apt.depends(queue.pop()):
                part = name.startswith(("linux-image-", "linux-binary-", "linux-modules-"))
                if part and name not in seen:
                    seen.append(name)
                    queue.append(name)
        found = [name for name in seen if name != first]
        if not found:
            raise LabError(f"{self.meta} leads to no kernel package in {self.apt.suites[0]}")
        return found


def one(folder: Path, pattern: str) -> Path:
    """Return the first file below a folder whose name matches."""
    found = sorted(path for path in folder.rglob(pattern) if path.is_file())
    if not found:
        raise LabError(f"the kernel package holds no {pattern}")
    return found[0]


def store(home: Path, version: str, image: Path, release: str, modules: Path | None) -> None:
    """Write down what a kernel's folder holds; without this the folder does not count."""
    facts = {
        "version": version,
        "image": str(image.relative_to(home)),
        "release": release,
        "modules": str(modules.relative_to(home)) if modules else None,
    }
    (home / "kernel.json").write_text(json.dumps(facts, indent=1))


def _load_version(home: Path) -> str:
    return str(json.loads((home / "kernel.json").read_text())["version"])


def load(home: Path) -> Kernel:
    """Return the kernel that a folder holds."""
    facts = json.loads((home / "kernel.json").read_text())
    modules = home / facts["modules"] if facts["modules"] else None
    return Kernel(home / facts["image"], facts["release"], modules)
