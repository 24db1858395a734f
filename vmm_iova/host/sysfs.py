# SPDX-License-Identifier: Apache-2.0
"""Host facts from `/sys`, live or a copy of it. Reads text files only and opens no device.

Source: Documentation/ABI/testing/sysfs-kernel-iommu_groups; drivers/iommu/iommu.c,
drivers/iommu/intel/iommu.c, drivers/iommu/amd/init.c (Linux 3.5 to 7.3).
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.errors import HostDataError, HostUnavailableError
from vmm_iova.host.facts import Device, Group, IommuUnit, Limits, Note, Source
from vmm_iova.host.host import Host
from vmm_iova.host.regions import parse_reserved_regions
from vmm_iova.host.registers import cpu_address_bits
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import resource
except ImportError:  # not a Unix: planning still works there
    resource = None  # type: ignore[assignment]

_HEX = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,16}")


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
    itself = (base / "kernel/iommu_groups").is_dir() or (base / "class/iommu").is_dir()
    sys = base if itself else base / "sys"
    if not sys.is_dir():
        missing = not base.exists()
        raise HostUnavailableError(
            f"{base} does not exist" if missing else f"{base} holds no sysfs tree (no {sys})",
            source=str(base),
            errno=errno.ENOENT,
            hint="give a copy of /sys, or the directory that has it as sys/",
        )
    reader = _Reader(sys, shown="/sys" if live else str(sys))
    units = reader.units()
    behind = reader.devices_of_units()
    groups = reader.groups()
    if not groups:
        reader.notes.append(
            Note(f"no IOMMU groups: no IOMMU is in use on this host; {say.IOMMU_ON}")
        )
    limits = Limits(
        dma_entries=reader.number("module/vfio_iommu_type1/parameters/dma_entry_limit"),
        memlock=_memlock() if live else None,
    )
    return Host(
        name=name or ("LIVE" if live else base.resolve().name),
        origin="sysfs of this machine" if live else f"sysfs copied to {base}",
        arch=os.uname().machine if live else None,
        release=os.uname().release if live else reader.release(),
        page_size=os.sysconf("SC_PAGE_SIZE") if live else None,
        groups=groups,
        devices=reader.devices(groups, behind),
        units=units,
        limits=limits,
        sysfs=True,
        notes=tuple(reader.notes),
        cpu_bits=reader.cpu_bits(),
    )


def _memlock() -> int | None:
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return -1 if soft == resource.RLIM_INFINITY else soft


class _Reader:
    """Reads small files below one `/sys` and notes what it could not read."""

    def __init__(self, sys: Path, shown: str) -> None:
        self.sys = sys
        self.shown = shown
        self.notes: list[Note] = []

    def text_of(self, path: str) -> str | None:
        """Content of a file, None if there is none or it may not be read (which is noted)."""
        try:
            return (self.sys / path).read_text("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ENODEV, errno.EISDIR):
                self.notes.append(Note(f"{self.shown}/{path}: {error.strerror}"))
            return None

    def _value(
        self, path: str, convert: Callable[[str], int], pattern: re.Pattern[str]
    ) -> int | None:
        text = self.text_of(path)
        if text is None:
            return None
        if not pattern.fullmatch(text.strip()):
            self.notes.append(
                Note(f"{self.shown}/{path}: {shorten(text.strip())!r} is not a number: left out")
            )
            return None
        return convert(text.strip())

    def number(self, path: str) -> int | None:
        """Content of a decimal file."""
        return self._value(path, int, re.compile(r"[0-9]{1,20}"))

    def hexadecimal(self, path: str) -> int | None:
        """Content of a hex file, with or without `0x`."""
        return self._value(path, lambda text: int(text, 16), _HEX)

    def names(self, path: str) -> list[str]:
        """Names in a directory, sorted; empty if there is none."""
        try:
            return sorted(os.listdir(self.sys / path))  # noqa: PTH208  names only, also of links
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.notes.append(Note(f"{self.shown}/{path}: {error.strerror}"))
            return []

    def release(self) -> str | None:
        """Kernel release of a copy that has /proc/sys beside /sys, or a note of it inside."""
        text = self.text_of("../proc/sys/kernel/osrelease") or self.text_of("kernel/osrelease")
        return text.strip() or None if text else None

    def cpu_bits(self) -> int | None:
        """Physical address bits that /proc/cpuinfo states, beside /sys; x86 alone states them."""
        text = self.text_of("../proc/cpuinfo") if self.sys.name == "sys" else None
        return cpu_address_bits(text or "")

    def link(self, path: str) -> str | None:
        """Last component of a symbolic link, or None."""
        try:
            return (self.sys / path).readlink().name
        except OSError:
            return None

    def groups(self) -> tuple[Group, ...]:
        """All groups, ascending by number."""
        ids = [name for name in self.names("kernel/iommu_groups") if name.isdigit()]
        return tuple(self._group(group) for group in sorted(ids, key=int))

    def _group(self, group: str) -> Group:
        where = f"kernel/iommu_groups/{group}"
        path = self.sys / where / "reserved_regions"
        kind = self.text_of(f"{where}/type")
        name = (self.text_of(f"{where}/name") or "").strip()
        bare = Group(
            group,
            devices=tuple(self.names(f"{where}/devices")),
            regions=None,
            type=kind.strip() if kind else None,
            translated=name != "vfio-noiommu",
        )
        shown = f"{self.shown}/{where}/reserved_regions"
        if not bare.translated:
            self.notes.append(
                Note(f"group {group} is vfio-noiommu: nothing translates, an IOVA is physical")
            )
        try:
            region_list = parse_reserved_regions(path.read_text("ascii"), shown, group)
            if region_list.rejected:
                raise HostDataError(
                    f"{shown}:{region_list.rejected[0]}: not a region line", source=shown
                )
        except FileNotFoundError:
            return bare
        except OSError as error:
            self.notes.append(Note(f"{shown}: {error.strerror}"))
            return replace(bare, unreadable=f"{shown}: {error.strerror}")
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
            features = self.text_of(f"{amd}/features")
            units.append(
                IommuUnit(
                    name,
                    cap=self.hexadecimal(f"{intel}/cap"),
                    ecap=self.hexadecimal(f"{intel}/ecap"),
                    features=features.strip() if features else None,
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
                    )
                )
        return tuple(sorted(devices, key=lambda device: device.name))
