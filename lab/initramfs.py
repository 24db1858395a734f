# SPDX-License-Identifier: Apache-2.0
"""The first file system of a guest: busybox, a few modules in loading order, and the way on.

The real root comes over 9p, read-only, with a RAM overlay on top: the machine's own root for
x86-64 (so that the project's virtual environment and compiled extension run inside), an unpacked
one for other architectures. The guest can write anywhere and changes nothing.
"""

from __future__ import annotations

import lzma
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.say import LabError

if TYPE_CHECKING:
    from lab.kernels import Kernel

# Where the guest sees the folder of its run, the one place that it shares with the outside.
OUT = "/run/vmm-iova-lab"

INIT = """#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs dev /dev
for module in $($bb cat /modules/order); do
    $bb insmod /modules/$module || echo "lab: cannot load $module"
done
share() {
    $bb mkdir -p "$2"
    $bb mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2"
}
share lab_root /lower ro,cache=loose || echo "lab: no root"
$bb mount -t tmpfs -o mode=755 cow /cow
$bb mkdir /cow/upper /cow/work
$bb mount -t overlay -o xino=off,lowerdir=/lower,upperdir=/cow/upper,workdir=/cow/work root /new \\
    || echo "lab: no overlay"
$bb mkdir -p /dev/shm /dev/pts
$bb mount -t tmpfs shm /dev/shm
$bb mount -t devpts pts /dev/pts
$bb mount -t debugfs debug /sys/kernel/debug
$bb mount -t cgroup2 cgroup /sys/fs/cgroup
for kept in proc sys dev; do $bb mount --rbind /$kept /new/$kept; done
[ -e /dev/fd ] || $bb ln -s /proc/self/fd /dev/fd
$bb mount -t tmpfs -o mode=755 run /new/run
share lab_out /new@OUT@ rw,cache=none || echo "lab: no way out"
@SHARES@
$bb ifconfig lo up
$bb dmesg > /new@OUT@/dmesg.txt
$bb chroot /new /bin/sh @OUT@/command.sh > /new@OUT@/output.txt 2>&1
code=$?
$bb dmesg > /new@OUT@/dmesg-after.txt
echo $code > /new@OUT@/exit
$bb sync
$bb poweroff -f
"""


@dataclass(frozen=True)
class Share:
    """A folder of this machine that the guest sees at a place of its own."""

    tag: str
    folder: Path
    place: str
    writable: bool = False

    @property
    def options(self) -> str:
        """Return the mount options: what cannot change may be cached."""
        return "rw,cache=none" if self.writable else "ro,cache=loose"


def _member(name: str, mode: int, data: bytes, number: int) -> bytes:
    """Return one entry of a cpio archive in the format that the kernel calls newc."""
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def cpio(files: dict[str, bytes], folders: list[str]) -> bytes:
    """Return a cpio archive of executable files and empty folders."""
    parts = [_member(name, 0o040755, b"", index) for index, name in enumerate(folders, 1)]
    offset = len(parts) + 1
    parts += [
        _member(name, 0o100755, data, offset + index)
        for index, (name, data) in enumerate(files.items())
    ]
    return b"".join(parts) + _member("TRAILER!!!", 0, b"", 0)


def _read(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".ko":
        return path.read_bytes()
    raise LabError(f"the module {path.name} is compressed in a way that the lab cannot read")


def modules_in_order(kernel: Kernel, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Return the wanted modules and what they depend on, each after its dependencies.

    A module's own `depends=` entry is read instead of `modules.dep`, which packages do not carry.
    A name that begins with `?` may be missing. Some packages lack the list of what is compiled in;
    then a module that is not there is taken for that, and the guest's set-up finds out.
    """
    if kernel.modules is None:
        return {}
    files = {
        path.name.split(".")[0].replace("-", "_"): path for path in kernel.modules.rglob("*.ko*")
    }
    listed = kernel.modules / "modules.builtin"
    lines = listed.read_text().splitlines() if listed.exists() else []
    builtin = {Path(line).stem.replace("-", "_") for line in lines}
    loaded: dict[str, bytes] = {}

    def load(name: str, optional: bool) -> None:
        key = name.replace("-", "_")
        if key in builtin or f"{key}.ko" in loaded:
            return
        if key not in files:
            if optional or not listed.exists():
                return
            raise LabError(f"kernel {kernel.release} has no module {name}")
        data = _read(files[key])
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in (depends.group(1).decode() if depends else "").split(","):
            if needed:
                load(needed, optional=False)
        loaded[f"{key}.ko"] = data

    for name in wanted:
        load(name.removeprefix("?"), name.startswith("?"))
    return loaded


def initramfs(
    kernel: Kernel, wanted: tuple[str, ...], busybox: Path, shares: tuple[Share, ...]
) -> bytes:
    """Return the archive to boot with; root and way out need not be among the shares."""
    modules = modules_in_order(kernel, wanted)
    lines = [
        f"share {share.tag} /new{shlex.quote(share.place)} {share.options}" for share in shares
    ]
    script = INIT.replace("@OUT@", OUT).replace("@SHARES@", "\n".join(lines))
    files = {
        "init": script.encode(),
        "bin/busybox": busybox.read_bytes(),
        "modules/order": "".join(f"{name}\n" for name in modules).encode(),
        **{f"modules/{name}": data for name, data in modules.items()},
    }
    folders = ["bin", "dev", "proc", "sys", "modules", "lower", "cow", "new"]
    return cpio(files, folders)
