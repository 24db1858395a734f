# SPDX-License-Identifier: Apache-2.0
"""Sysfs trees that are grown from bytes, and a watch on what is opened meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz.kit import Bytes

SECRET = "root:x:0:0:this is nobody's business"
_PLACES = (
    "sys/kernel/iommu_groups",
    "sys/kernel/iommu_groups/0",
    "sys/kernel/iommu_groups/0/reserved_regions",
    "sys/kernel/iommu_groups/0/type",
    "sys/kernel/iommu_groups/0/name",
    "sys/kernel/iommu_groups/0/devices",
    "sys/kernel/iommu_groups/0/devices/0000:01:00.0",
    "sys/kernel/iommu_groups/1/reserved_regions",
    "sys/kernel/iommu_groups/1/devices/0000:02:00.0",
    "sys/class/iommu",
    "sys/class/iommu/dmar0",
    "sys/class/iommu/dmar0/intel-iommu/cap",
    "sys/class/iommu/dmar0/intel-iommu/ecap",
    "sys/class/iommu/dmar0/devices/0000:01:00.0",
    "sys/class/iommu/ivhd0/amd-iommu/features",
    "sys/class/iommu/ivhd0/amd-iommu",
    "sys/bus/pci/devices/0000:01:00.0",
    "sys/bus/pci/devices/0000:01:00.0/class",
    "sys/bus/pci/devices/0000:01:00.0/dma_mask_bits",
    "sys/bus/pci/devices/0000:01:00.0/driver",
    "sys/bus/pci/devices/0000:01:00.0/iommu",
    "sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
    "sys/kernel/osrelease",
    "proc",
    "proc/sys/kernel/osrelease",
    "proc/cpuinfo",
    "sys",
    "kernel/iommu_groups/0/reserved_regions",
    "sys/bus/pci/devices/0000:01:00.0/resource",
    "sys/bus/pci/devices/0000:01:00.0/resource0_resize",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
    "sys/kernel/irq/0/chip_name",
    "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "proc/meminfo",
)
_CONTENTS = (
    b"0x00000000fee00000 0x00000000feefffff msi\n",
    b"0x000000007b800000 0x000000007bffffff direct\n0x0000000000000000 0xffffffffffffffff msi\n",
    b"0x00000000fee00000 0x00000000fee00000 reserved",
    b"0x0000000000000001 0x0000000000000000 direct-relaxable\n",
    b"DMA-FQ\n",
    b"vfio-noiommu\n",
    b"d2008c40660462\n",
    b"f020def\n",
    b"58f77ef22294a5a:0\n",
    b"0x030000\n",
    b"64\n",
    b"65535\n",
    b"6.12.48-amd64\n",
    b"address sizes\t: 46 bits physical, 48 bits virtual\n",
    b"",
    b"\xff\xfe\x00\x1b[2J\n",
    b"x" * 5000,
    b"1" * 5000 + b"\n",
    "²\n".encode(),
    b"two\nlines\n",
    b"0x00000000f0000000 0x00000000f0ffffff 0x000000000014220c\n" * 13,
    b"0x0000000000000000 0xffffffffffffffff 0x0000000000040200\n" * 7,
    b"IR-IO-APIC\n",
    b"Y\n",
    b"MemTotal: 24684096 kB\nMemAvailable: 23282936 kB\n",
)
_TARGETS = (
    "{secret}",
    "{outside}",
    "../secret",
    "../../secret",
    "../../../../../../secret",
    "/etc/passwd",
    "/dev/zero",
    "/dev/null",
    "/",
    "/proc/self/environ",
    "..",
    ".",
    "dmar0",
    "../dmar0",
    "../../../devices/0000:01:00.0",
    "{top}-too",
    "nowhere",
)


class Forest:
    """Grows trees in a folder of its own, which goes with the process."""

    def __init__(self) -> None:
        shared = Path("/dev/shm")
        where = shared if shared.is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="vmm-iova-trees-", dir=where))
        (self._folder / "secret").write_text(SECRET)
        outside = self._folder / "outside"
        outside.mkdir()
        for name in ("reserved_regions", "type", "cap", "osrelease", "cpuinfo", "0"):
            (outside / name).write_text(SECRET)
        too = self._folder / "top-too"
        too.mkdir()
        (too / "secret").write_text(SECRET)
        self._opened: list[str] | None = None
        sys.addaudithook(self._watch)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._opened is None or event not in ("open", "os.listdir", "os.scandir"):
            return
        if isinstance(arguments[0], (str, bytes, os.PathLike)):  # and no open descriptor
            self._opened.append(os.fsdecode(arguments[0]))

    @contextlib.contextmanager
    def grown(self, source: Bytes) -> Iterator[Path]:
        """Grow a tree for a while; at the end, what was opened must have been inside of it."""
        top = self._folder / "top"
        top.mkdir()
        try:
            for _ in range(2 + source.below(30)):
                self._plant(top, source)
            before = self._listing()
            self._opened = []
            try:
                yield top
            finally:
                opened, self._opened = self._opened, None
            inside = os.path.realpath(top)
            for path in opened:
                real = os.path.realpath(path)
                assert (real + "/").startswith(inside + "/"), f"{path} was opened"
                assert real == inside or real[len(inside)] == "/", f"{path} was opened"
            assert before == self._listing(), "something was written"
        finally:
            shutil.rmtree(top, ignore_errors=True)

    def _listing(self) -> list[str]:
        return sorted(str(path) for path in self._folder.rglob("*"))

    def _plant(self, top: Path, source: Bytes) -> None:
        path = top / _PLACES[source.below(len(_PLACES))]
        if source.below(16) == 0:
            name = os.fsdecode(source.take(source.below(20))).replace("/", "")
            path = path.with_name("x" if name in ("", ".", "..") else name)
        kind = source.below(8)
        with contextlib.suppress(OSError, ValueError):
            # What was planted before may be a link out of the tree: nothing is grown behind it.
            if not os.path.realpath(path.parent).startswith(os.path.realpath(top)):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind < 4:
                text = _CONTENTS[source.below(len(_CONTENTS))]
                content = text if kind else source.take(source.below(64))
                if path.is_file() or not os.path.lexists(path):  # a FIFO would wait for a reader
                    path.unlink(missing_ok=True)
                    path.write_bytes(content)
            elif kind < 6:
                outside = self._folder / "outside"
                target = _TARGETS[source.below(len(_TARGETS))]
                path.symlink_to(
                    target.format(secret=self._folder / "secret", outside=outside, top=top)
                )
            elif kind == 6:
                os.mkfifo(path)
            else:
                with path.open("xb") as sparse:
                    sparse.truncate(1 << 40)
