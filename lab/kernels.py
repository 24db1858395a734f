"""Kernels to boot: Debian's own as they are, and one built from Debian's source with iommufd."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab import cache
from lab.debian import Apt, unpack
from lab.say import LabError, must, say

FRAGMENT = Path(__file__).with_name("iommufd.config")
SOURCE = Apt("amd64", ("trixie-backports",))
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
        return _load(home)

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
            image = _one(folder / "tree", "vmlinuz*")
            modules = _one(folder / "tree", "vfio-pci.ko*")
            while modules.parent.name != "modules":
                modules = modules.parent
            _store(folder, version, image, modules.name, modules)

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


@dataclass(frozen=True)
class BuiltKernel:
    """The kernel with iommufd, which no Debian kernel turns on: built here from their source."""

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
                return _load(have[-1].parent)
            SOURCE.update()
            package = next(
                name for name in SOURCE.depends(self.meta) if name.startswith("linux-source-")
            )
            version = SOURCE.version(package)
            home = folder / f"iommufd-{version}-{digest}"
            if not (home / "kernel.json").exists():
                with cache.fresh(home) as made:
                    self._build(package, version, made)
            return _load(home)

    def _source(self, package: str, version: str, tree: Path) -> None:
        """Unpack the source; the downloaded package stays, for the next change of fragment."""
        store = cache.root() / "source"
        kept = store / f"{package}_{version}.deb"
        if not kept.exists():
            with cache.fresh(store) as made:
                got = SOURCE.download([package], made)
                got[0].rename(made / kept.name)
        inner = tree.parent / "package"
        unpack(kept, inner, ("*/linux-source-*.tar.xz",))
        tree.mkdir()
        archive = _one(inner, "linux-source-*.tar.xz")
        log = tree.parent / "build.log"
        must(
            ["tar", "-x", "-f", str(archive), "-C", str(tree), "--strip-components=1"],
            log,
            "unpacking the kernel source",
        )
        shutil.rmtree(inner)

    def _build(self, package: str, version: str, home: Path) -> None:
        tree, log = home / "tree", home / "build.log"
        self._source(package, version, tree)
        jobs = f"-j{os.cpu_count() or 2}"
        say(f"building {package} {version} with {jobs}; this happens once and takes some minutes")
        steps: tuple[tuple[str, ...], ...] = (
            ("make", "tinyconfig"),
            ("scripts/kconfig/merge_config.sh", "-m", ".config", str(FRAGMENT)),
            ("make", "olddefconfig"),
        )
        for step in steps:
            must(step, log, "configuring the kernel", cwd=tree)
        self._check((tree / ".config").read_text(), package)
        must(("nice", "-n", "15", "make", jobs, "bzImage"), log, "building the kernel", cwd=tree)
        image = home / "vmlinuz"
        shutil.copyfile(tree / "arch/x86/boot/bzImage", image)
        shutil.copyfile(tree / ".config", home / "config")
        release = (tree / "include/config/kernel.release").read_text().strip()
        shutil.rmtree(tree)
        _store(home, version, image, release, None)

    @staticmethod
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


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(path for path in folder.rglob(pattern) if path.is_file())
    if not found:
        raise LabError(f"the kernel package holds no {pattern}")
    return found[0]


def _store(home: Path, version: str, image: Path, release: str, modules: Path | None) -> None:
    facts = {
        "version": version,
        "image": str(image.relative_to(home)),
        "release": release,
        "modules": str(modules.relative_to(home)) if modules else None,
    }
    (home / "kernel.json").write_text(json.dumps(facts, indent=1))


def _load_version(home: Path) -> str:
    return str(json.loads((home / "kernel.json").read_text())["version"])


def _load(home: Path) -> Kernel:
    facts = json.loads((home / "kernel.json").read_text())
    modules = home / facts["modules"] if facts["modules"] else None
    return Kernel(home / facts["image"], facts["release"], modules)
