# SPDX-License-Identifier: Apache-2.0
"""Host facts from `/sys`, live or a copy of it. Reads text files only and opens no device.

Source: Documentation/ABI/testing/sysfs-kernel-iommu_groups; drivers/iommu/iommu.c,
drivers/iommu/intel/iommu.c, drivers/iommu/amd/init.c (Linux 3.5 to 7.3).
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_iova.errors import HostDataError, HostUnavailableError
from vmm_iova.files import Tree, is_there
from vmm_iova.host.bars import BarKind, DeviceBar, parse_resource, resizable_sizes
from vmm_iova.host.dumps import cpu_platform
from vmm_iova.host.facts import Device, Group, IommuUnit, Limits, Note, Source
from vmm_iova.host.host import Host
from vmm_iova.host.obstacles import iommu_hint
from vmm_iova.host.regions import parse_reserved_regions
from vmm_iova.host.registers import cpu_address_bits
from vmm_iova.host.state import read_state
from vmm_iova.patterns import regex
from vmm_iova.plain import by_number, one_line, whole_number
from vmm_iova.readers.cpu import read_cpu
from vmm_iova.record import replace
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import resource
except ImportError:  # not a Unix: planning still works there
    resource = None  # type: ignore[assignment]

_LINE = 4096  # bytes of a file that holds one line: sysfs itself gives no more than a page
_REGIONS = 1 << 17  # of reserved_regions: the kernel stops at a page, which has 64 KiB at most
_CPUINFO = 8 << 20  # about 1.5 KiB for each CPU
_COPY = "give a copy of /sys, or the directory that has it as sys/"
_PROC = 1 << 16  # of meminfo and of a process's status: about 1.5 KiB, more with thousands of CPUs
_HEX = regex(r"(?:0[xX])?[0-9a-fA-F]{1,16}")


def read_sysfs(root: str | Path = "/", name: str | None = None) -> Host:
    """Read what sysfs says about the IOMMUs of a host.

    A file that may not be read is noted and its fact left out, so this works without root.

    Args:
        root: `/`, or a directory that holds a copy of `/sys` (itself, or below `sys`).
        name: what to call the host; default `LIVE` or the directory's name.

    Returns:
        The facts. A machine without IOMMU groups gives a host without groups, and a note.

    Raises:
        HostUnavailableError: there is no such tree (errno of the call), or it is not sysfs.
    Complexity: O(groups + devices) small files.
    Synchronization: none required.
    """
    base = Path(root)
    live = base == Path("/")
    if not is_there(base):
        raise HostUnavailableError(
            f"{one_line(str(base))} does not exist",
            source=str(base),
            errno=errno.ENOENT,
            hint=_COPY,
        )
    tree = Tree(base)
    itself = tree.holds("kernel/iommu_groups") or tree.holds("class/iommu")
    if not itself and not tree.holds("sys"):
        sys = one_line(str(base / "sys"))
        raise HostUnavailableError(
            f"{one_line(str(base))} holds no sysfs tree (no {sys})",
            source=str(base),
            errno=errno.ENOENT,
            hint=_COPY,
        )
    # Facts name the files by their place on the machine that they describe: where a copy lies now
    # is nothing of that machine's, and a snapshot is to be given away.
    reader = _Reader(tree, "" if itself else "sys/", "/sys")
    if not itself:
        reader.proc, reader.proc_at = tree, "proc/"
    elif base.name == "sys":  # beside it, as /proc is beside /sys
        reader.proc = Tree(base.parent / "proc")
    arch = os.uname().machine if live else None
    units = reader.units()
    behind = reader.devices_of_units()
    groups = reader.groups()
    cpuinfo = reader.cpuinfo()
    first_cpu = cpuinfo.partition("\n\n")[0].splitlines()
    platform = cpu_platform(read_cpu(first_cpu))
    if not groups:
        reader.notes.append(
            Note(f"no IOMMU groups: no IOMMU is in use on this host; {iommu_hint(platform, arch)}")
        )
    state = read_state(reader, live=live)
    limits = Limits(
        dma_entries=reader.number("module/vfio_iommu_type1/parameters/dma_entry_limit"),
        memlock=_memlock() if live else None,
    )
    return Host(
        name=name or ("LIVE" if live else one_line(base.resolve().name)),
        origin="sysfs of this machine" if live else "a copy of sysfs",
        arch=arch,
        release=os.uname().release if live else reader.release(),
        page_size=os.sysconf("SC_PAGE_SIZE") if live else None,
        groups=groups,
        devices=reader.devices(groups, behind),
        units=units,
        limits=limits,
        sysfs=True,
        notes=tuple(reader.notes),
        cpu_bits=cpu_address_bits(cpuinfo),
        platform=platform,
        state=state,
    )


def _memlock() -> int | None:
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return -1 if soft == resource.RLIM_INFINITY else soft


class _Reader:
    """Reads small files below one `/sys` and notes what it could not read."""

    def __init__(self, tree: Tree, at: str, shown: str) -> None:
        self.tree = tree
        self.at = at
        self.shown = shown
        self.proc: Tree | None = None
        self.proc_at = ""
        self.notes: list[Note] = []

    def _read(self, tree: Tree, path: str, shown: str, limit: int) -> str | None:
        """Content of a file, None if there is none or it may not be read (which is noted)."""
        try:
            return tree.read(path, limit).decode("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ENODEV, errno.EISDIR):
                self.notes.append(Note(f"{shown}: {error.strerror}"))
            return None

    def line_of(self, path: str) -> str | None:
        """The line of a file; None if there is no file, or it has more lines (which is noted)."""
        return self._line(self.tree, self.at + path, f"{self.shown}/{path}")

    def _line(self, tree: Tree, path: str, shown: str) -> str | None:
        text = self._read(tree, path, shown, _LINE)
        if text is None:
            return None
        if len(text.strip().splitlines()) > 1:
            self.notes.append(Note(f"{shown}: is not one line: left out"))
            return None
        return one_line(text.strip())

    def _value(
        self, path: str, convert: Callable[[str], int], pattern: re.Pattern[str]
    ) -> int | None:
        text = self.line_of(path)
        if text is None:
            return None
        if not pattern.fullmatch(text):
            self.notes.append(
                Note(f"{self.shown}/{path}: {shorten(text)!r} is not a number: left out")
            )
            return None
        return convert(text)

    def number(self, path: str) -> int | None:
        """Content of a decimal file."""
        return self._value(path, int, re.compile(r"[0-9]{1,20}"))

    def hexadecimal(self, path: str) -> int | None:
        """Content of a hex file, with or without `0x`."""
        return self._value(path, lambda text: int(text, 16), _HEX)

    def names(self, path: str) -> list[str]:
        """Names in a directory, sorted; empty if there is none."""
        try:
            return self.tree.names(self.at + path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.notes.append(Note(f"{self.shown}/{path}: {error.strerror}"))
            return []

    def release(self) -> str | None:
        """Kernel release of a copy that has /proc/sys beside /sys, or a note of it inside."""
        path = "sys/kernel/osrelease"
        beside = self._line(self.proc, self.proc_at + path, f"/proc/{path}") if self.proc else None
        return beside or self.line_of("kernel/osrelease") or None

    def cpuinfo(self) -> str:
        """/proc/cpuinfo, beside /sys; empty if there is none."""
        return self.proc_text("cpuinfo", _CPUINFO) or ""

    def proc_text(self, path: str, limit: int = _PROC) -> str | None:
        """A file of /proc, beside /sys; None if there is none."""
        if self.proc is None:
            return None
        return self._read(self.proc, self.proc_at + path, f"/proc/{path}", limit)

    def link(self, path: str) -> str | None:
        """Last component of a symbolic link, or None."""
        return self.tree.link(self.at + path)

    def groups(self) -> tuple[Group, ...]:
        """All groups, ascending by number."""
        names = self.names("kernel/iommu_groups")
        ids = [name for name in names if whole_number(name) is not None]
        return tuple(self._group(group) for group in sorted(ids, key=by_number))

    def _group(self, group: str) -> Group:
        where = f"kernel/iommu_groups/{group}"
        name = self.line_of(f"{where}/name")
        bare = Group(
            group,
            devices=tuple(self.names(f"{where}/devices")),
            regions=None,
            type=self.line_of(f"{where}/type") or None,
            translated=name != "vfio-noiommu",
        )
        shown = f"{self.shown}/{where}/reserved_regions"
        if not bare.translated:
            self.notes.append(
                Note(f"group {group} is vfio-noiommu: nothing translates, an IOVA is physical")
            )
        try:
            content = self.tree.read(f"{self.at}{where}/reserved_regions", _REGIONS)
        except FileNotFoundError:
            return bare
        except OSError as error:
            self.notes.append(Note(f"{shown}: {error.strerror}"))
            return replace(bare, unreadable=f"{shown}: {error.strerror}")
        try:
            region_list = parse_reserved_regions(content.decode("ascii"), shown, group)
            if region_list.rejected:
                raise HostDataError(
                    f"{shown}:{region_list.rejected[0]}: not a region line", source=shown
                )
        except UnicodeDecodeError:
            self.notes.append(Note(f"{shown} is not text"))
            return replace(bare, damaged=f"{shown} is not text")
        except HostDataError as error:
            # One bad file is no reason to lose the host: the judge refuses this group alone.
            self.notes.append(Note(error.message))
            return replace(bare, damaged=error.message)
        self.notes += region_list.notes
        return replace(bare, regions=region_list.regions, empty_regions=region_list.empty_regions)

    def units(self) -> tuple[IommuUnit, ...]:
        """All remapping units, with the registers that Intel and AMD publish."""
        units = []
        for name in self.names("class/iommu"):
            where = f"class/iommu/{name}"
            intel, amd = f"{where}/intel-iommu", f"{where}/amd-iommu"
            units.append(
                IommuUnit(
                    name,
                    cap=self.hexadecimal(f"{intel}/cap"),
                    ecap=self.hexadecimal(f"{intel}/ecap"),
                    features=self.line_of(f"{amd}/features") or None,
                    source=Source(f"{self.shown}/{where}"),
                )
            )
        return tuple(units)

    def devices_of_units(self) -> dict[str, str]:
        """Which unit each device is behind, from the unit's list of links."""
        return {
            device: unit
            for unit in self.names("class/iommu")
            for device in self.names(f"class/iommu/{unit}/devices")
        }

    def devices(self, groups: tuple[Group, ...], behind: dict[str, str]) -> tuple[Device, ...]:
        """All members of the groups."""
        devices = []
        for group in groups:
            for name in group.devices:
                where = f"bus/pci/devices/{name}"
                devices.append(
                    Device(
                        name,
                        group=group.id,
                        iommu=behind.get(name) or self.link(f"{where}/iommu"),
                        dma_mask_bits=self.number(f"{where}/dma_mask_bits"),
                        driver=self.link(f"{where}/driver"),
                        pci_class=self.hexadecimal(f"{where}/class"),
                        bars=self._bars(where),
                    )
                )
        return tuple(sorted(devices, key=lambda device: device.name))

    def _bars(self, where: str) -> tuple[DeviceBar, ...] | None:
        """Memory BARs of a device; None where there is no list of them that can be trusted."""
        path = f"{where}/resource"
        shown = f"{self.shown}/{path}"
        text = self._read(self.tree, self.at + path, shown, _LINE)
        if text is None:
            return None
        try:
            bars = parse_resource(text, shown)
        except HostDataError as error:
            self.notes.append(Note(f"{error.message}: left out"))
            return None
        return tuple(
            replace(bar, sizes=self._sizes(where, bar)) if bar.kind is BarKind.BAR else bar
            for bar in bars
        )

    def _sizes(self, where: str, bar: DeviceBar) -> tuple[int, ...]:
        """Sizes that a BAR can be given (Linux 6.1); to ask wakes a device that sleeps."""
        bitmap = self.hexadecimal(f"{where}/resource{bar.index}_resize")
        return resizable_sizes(bitmap or 0)
