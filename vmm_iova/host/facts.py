# SPDX-License-Identifier: Apache-2.0
"""What a host says about its IOMMUs: facts, each with the place where it was read.

Nothing here judges. A fact that could not be had is None, which differs from an empty list:
"the file is empty" and "there is no such file" mean different things (see `host.usable`).
All types are immutable and pickle.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Literal, TypeVar

from vmm_iova.errors import HostDataError, UnknownNameError
from vmm_iova.host.state import State
from vmm_iova.plain import by_number
from vmm_iova.record import field, names, record, replace

if TYPE_CHECKING:
    from typing import Self

    from vmm_iova.host.bars import DeviceBar
    from vmm_iova.ranges import AddrRange, MappableRanges


SpaceKind = Literal["type1", "iommufd"]
"""Which of the kernel's two interfaces is behind an address space."""
RangesFrom = Literal["type1", "iommufd", "text"]
"""Where a list of ranges came from: an interface of the kernel, or a text that somebody pasted."""


class RegionKind(enum.Enum):
    """Type of a reserved region, in the words of sysfs.

    Source: drivers/iommu/iommu.c, iommu_group_resv_type_string (Linux 4.11, 5.3).
    """

    DIRECT = "direct"
    """Firmware demands a 1:1 mapping at all times; current kernels keep the device."""
    DIRECT_RELAXABLE = "direct-relaxable"
    """1:1 only until the host's driver lets go; user space may map over it (5.3)."""
    RESERVED = "reserved"
    """Never translated."""
    MSI = "msi"
    """Writes become interrupts; sysfs has one word for hardware and software windows."""
    FIRMWARE = "firmware"
    """An RMRR seen only in a kernel log, which names no device: a hole of none that can be had."""
    UNKNOWN = "unknown"
    """A word this program does not know: treated as not mappable, kept as it was read."""


@record
class Source:
    """Where a fact was read: a path or the name of a text, and the line in it (from 1)."""

    name: str
    line: int | None = None

    def __str__(self) -> str:
        return self.name if self.line is None else f"{self.name}:{self.line}"


@record
class Note:
    """Something about the facts that a person should know; `warning` ones are shown unasked."""

    text: str
    warning: bool = True


@record
class ReservedRegion:
    """A span that the platform withholds from some group.

    Attributes:
        range: the span as it was read, not rounded.
        kind: its type.
        word: the type word as it was read.
        source: where.
        group: group that it was read from; None for a kernel log or an architectural constant.
    """

    range: AddrRange
    kind: RegionKind
    word: str
    source: Source
    group: str | None = None


@record
class EmptyRegion:
    """A region of length 0, which broken firmware produces.

    It is no hole, but VFIO cuts the usable range at `start` into two that touch (Linux 5.4), and
    an empty `direct` one keeps the device from user space all the same.
    """

    start: int
    kind: RegionKind
    word: str
    source: Source
    group: str | None = None


@record
class Device:
    """A device that an IOMMU translates.

    Attributes:
        name: its name, a BDF such as `0000:01:00.0` for PCI.
        group: the group that it is in, or None.
        iommu: name of the IOMMU in front of it (`dmar0`, `ivhd1`, ...), or None.
        dma_mask_bits: mask of the *host driver*; says nothing about what VFIO may map.
        driver: driver bound to it, or None.
        pci_class: PCI class code, or None.
        bars: its memory BARs; None where nothing says which it has.
    """

    name: str
    group: str | None = None
    iommu: str | None = None
    dma_mask_bits: int | None = None
    driver: str | None = None
    pci_class: int | None = None
    bars: tuple[DeviceBar, ...] | None = None

    def joined(self, more: Device) -> Device:
        """Return this, with what another source knows of it where this one does not."""
        values = {name: getattr(self, name) for name in names(type(self))}
        return Device(**{k: getattr(more, k) if v is None else v for k, v in values.items()})

    @property
    def bridge(self) -> bool:
        """True for a bridge between PCI buses, which may keep its driver in a group."""
        return self.pci_class is not None and self.pci_class >> 8 == _PCI_BRIDGE


_PCI_BRIDGE = 0x0604  # include/linux/pci_ids.h, PCI_CLASS_BRIDGE_PCI


@record
class Group:
    """An IOMMU group.

    Attributes:
        id: its number as text; "pasted" for a text that names none.
        devices: names of its members.
        regions: its reserved regions, ascending; None when there is no such file (before 4.11),
            or it could not be read or trusted.
        empty_regions: regions of length 0.
        unreadable: why the file could not be read, or None.
        damaged: what is wrong with its content, or None.
        type: type of its default domain, or None; says nothing about the IOVA space under VFIO.
        translated: False for a no-IOMMU group of VFIO, where an IOVA is a physical address.
    """

    id: str
    devices: tuple[str, ...] = ()
    regions: tuple[ReservedRegion, ...] | None = ()
    empty_regions: tuple[EmptyRegion, ...] = ()
    unreadable: str | None = None
    damaged: str | None = None
    type: str | None = None
    translated: bool = True

    @property
    def only_listed(self) -> bool:
        """True if nothing is known of it but its members."""
        return self == Group(self.id, self.devices, None)

    def joined(self, more: Group) -> Group:
        """Return this with the members that another source names, one of which only lists it."""
        told = more if self.only_listed else self
        return replace(told, devices=tuple(dict.fromkeys((*self.devices, *more.devices))))

    @property
    def title(self) -> str:
        """The group and its devices, for messages: `group 3 (0000:01:00.0)`."""
        name = "the pasted text" if self.id == PASTED else f"group {self.id}"
        if not self.devices:
            return name
        more = f" and {len(self.devices) - 3} more" if len(self.devices) > 3 else ""
        return f"{name} ({', '.join(self.devices[:3])}{more})"


PASTED = "pasted"
"""Id of the group that stands for a text without group numbers."""


@record
class IommuUnit:
    """A remapping unit and its registers.

    Attributes:
        name: `dmar0`, `ivhd0`, `smmu3.0x...`, ...
        cap: VT-d capability register, or AMD capability header; None when not published.
        ecap: VT-d extended capability register, or None.
        features: text of AMD's `features` file (its order changed twice), or None.
        source: where the registers were read.
    """

    name: str
    cap: int | None = None
    ecap: int | None = None
    features: str | None = None
    source: Source = Source("sysfs")

    @property
    def vendor(self) -> str:
        """`intel`, `amd`, `arm`, `s390`, ... by the name that its driver registers.

        Source: callers of iommu_device_sysfs_add (drivers/iommu, Linux 3.17 to 7.3).
        """
        for prefix, vendor in _VENDORS:
            if self.name.startswith(prefix):
                return vendor
        return "unknown"


_VENDORS = (
    ("dmar", "intel"),
    ("ivhd", "amd"),
    ("smmu", "arm"),
    ("s390-iommu", "s390"),
    ("apple-dart", "apple"),
    ("riscv-iommu", "riscv"),
    ("virtio", "virtio"),
)


@record
class KernelRanges:
    """The kernel's own list of mappable IOVAs: the strongest evidence there is.

    Attributes:
        ranges: the list; touching neighbours stay two.
        api: the interface that gave it; `text` when it was pasted.
        groups: groups that were attached when it was read; None when not known.
        granule: smallest page in bytes that came with it (lowest bit of `iova_pgsizes`,
            or `out_iova_alignment`), or None.
        page_sizes: bitmap of page sizes, or None.
        source: where.
    """

    ranges: MappableRanges
    api: RangesFrom
    source: Source
    groups: tuple[str, ...] | None = None
    granule: int | None = None
    page_sizes: int | None = None


@record
class DmaWindow:
    """The zPCI base capability: lowest and highest usable DMA address of a device, inclusive.

    Source: include/uapi/linux/vfio_zdev.h, VFIO_DEVICE_INFO_CAP_ZPCI_BASE (Linux 5.10).
    """

    device: str
    range: AddrRange
    source: Source


@record
class StatedWidth:
    """A width that the kernel printed in a log: an upper bound, like a register.

    Attributes:
        bits: address bits.
        source: where.
    """

    bits: int
    source: Source


@record
class Limits:
    """Limits on mapping. None: not known.

    Attributes:
        dma_entries: `dma_entry_limit` of vfio_iommu_type1 (default 65535, Linux 5.1).
        memlock: soft RLIMIT_MEMLOCK of the process in bytes; -1 when unlimited.
    """

    dma_entries: int | None = None
    memlock: int | None = None


@record
class IommuInfo:
    """What the kernel says of the IOMMU in front of a device (IOMMU_GET_HW_INFO, Linux 6.6).

    Attributes:
        device: whose IOMMU.
        kind: `intel` (VT-d), `smmuv3`, `amd`, `none` (the driver tells nothing) or `unknown`.
        registers: by name, such as `cap` and `ecap`, or `idr0` to `idr5`.
        capabilities: bitmap of what every driver tells (dirty tracking, PASID, ATS).
        pasid_bits: bits of a PASID that the device may use; 0 if none, or the kernel is older.
        source: where.
    """

    device: str
    kind: InfoKind
    registers: tuple[tuple[str, int], ...] = ()
    capabilities: int = 0
    pasid_bits: int = 0
    source: Source = Source("IOMMU_GET_HW_INFO")


InfoKind = Literal["intel", "smmuv3", "amd", "none", "unknown"]
"""Whose registers an `IommuInfo` has."""


@record
class Platform:
    """The machine around the IOMMUs. None: not known.

    Attributes:
        vendor: maker of its CPU: `intel`, `amd`, `arm`, `s390`.
        guest: whether it is itself a virtual machine.
    """

    vendor: str | None = None
    guest: bool | None = None

    def __or__(self, other: Platform) -> Platform:
        """Return this, with what only the other one knows."""
        return Platform(
            _first(self.vendor, other.vendor),
            _first(self.guest, other.guest),
        )


@record
class Facts:
    """All facts of one host. `vmm_iova.Host` can judge them.

    Attributes:
        name: what to call it.
        origin: where the facts come from, one line.
        arch: `x86_64`, `aarch64`, `s390x`, ... when a source says it; else None.
        release: kernel release, or None.
        page_size: page size of its kernel in bytes, or None.
        groups: IOMMU groups, ascending by number.
        devices: translated devices, by name.
        units: remapping units, by name.
        kernel_ranges: lists that the kernel itself gave.
        windows: zPCI DMA windows.
        widths: widths that the kernel printed.
        log_regions: RMRRs of a kernel log, which names no device for them.
        limits: limits on mapping.
        sysfs: True if a sysfs tree was read, so that having no groups means having no IOMMU.
        notes: what was odd about the sources; nothing is dropped in silence.
        cpu_bits: physical address bits of its CPU, or None.
        cpu_source: where that was read.
        platform: the machine around the IOMMUs.
        iommu_info: what iommufd says of the IOMMUs of attached devices.
        state: memory, nodes and the like, as they were when the facts were read.

    Synchronization: none required (immutable).
    """

    name: str
    origin: str = ""
    arch: str | None = None
    release: str | None = None
    page_size: int | None = None
    groups: tuple[Group, ...] = ()
    devices: tuple[Device, ...] = ()
    units: tuple[IommuUnit, ...] = ()
    kernel_ranges: tuple[KernelRanges, ...] = ()
    windows: tuple[DmaWindow, ...] = ()
    widths: tuple[StatedWidth, ...] = ()
    log_regions: tuple[ReservedRegion, ...] = ()
    limits: Limits = field(default_factory=Limits)
    sysfs: bool = False
    notes: tuple[Note, ...] = ()
    cpu_bits: int | None = None
    cpu_source: str = "/proc/cpuinfo"
    platform: Platform = field(default_factory=Platform)
    iommu_info: tuple[IommuInfo, ...] = ()
    state: State = field(default_factory=State)

    def group(self, group_id: str | int) -> Group:
        """Return the group of that number.

        Raises:
            UnknownNameError: there is none.
        """
        wanted = str(group_id)
        for group in self.groups:
            if group.id == wanted:
                return group
        known = [group.id for group in self.groups]
        raise UnknownNameError(
            f"host {self.name} has no group {wanted}",
            kind="group",
            name=wanted,
            known=known,
            hint=f"groups here: {_some(known)}",
        )

    def device(self, name: str) -> Device:
        """Return the device of that name; a BDF may leave out the domain `0000:`.

        Raises:
            UnknownNameError: there is none.
        """
        for device in self.devices:
            if name in (device.name, device.name.removeprefix("0000:")):
                return device
        known = [device.name for device in self.devices]
        raise UnknownNameError(
            f"host {self.name} has no device {name} behind an IOMMU",
            kind="device",
            name=name,
            known=known,
            hint=f"devices here: {_some(known)}",
        )

    def with_facts(self, more: Facts) -> Self:
        """Return this host with the facts of another source of the same host added.

        Of a device that both have, this host's facts count, and the other ones where it has none;
        a group that one of them only lists (`lspci`) is the other one's.

        Raises:
            HostDataError: both describe a group or a unit of the same name.
        """
        groups = {item.id: item for item in self.groups}
        for group in more.groups:
            ours = groups.get(group.id)
            if ours is not None and not (ours.only_listed or group.only_listed):
                raise self._twice("group", group.id, more)
            groups[group.id] = group if ours is None else ours.joined(group)
        for unit in more.units:
            if any(unit.name == item.name for item in self.units):
                raise self._twice("unit", unit.name, more)
        devices = {item.name: item for item in self.devices}
        for device in more.devices:
            known = devices.get(device.name)
            devices[device.name] = device if known is None else known.joined(device)
        return replace(
            self,
            arch=self.arch or more.arch,
            release=self.release or more.release,
            page_size=self.page_size or more.page_size,
            groups=tuple(sorted(groups.values(), key=lambda item: by_number(item.id))),
            devices=tuple(devices.values()),
            units=(*self.units, *more.units),
            kernel_ranges=(*self.kernel_ranges, *more.kernel_ranges),
            windows=(*self.windows, *more.windows),
            widths=(*self.widths, *more.widths),
            log_regions=(*self.log_regions, *more.log_regions),
            limits=Limits(
                _first(self.limits.dma_entries, more.limits.dma_entries),
                _first(self.limits.memlock, more.limits.memlock),
            ),
            sysfs=self.sysfs or more.sysfs,
            notes=(*self.notes, *more.notes),
            cpu_bits=_first(self.cpu_bits, more.cpu_bits),
            cpu_source=self.cpu_source if self.cpu_bits is not None else more.cpu_source,
            platform=self.platform | more.platform,
            iommu_info=(*self.iommu_info, *more.iommu_info),
            state=self.state.joined(more.state),
        )

    def _twice(self, kind: str, name: str, more: Facts) -> HostDataError:
        return HostDataError(
            f"{more.name} describes {kind} {name}, as {self.name} does: "
            "which one counts cannot be known",
            source=more.name,
        )


_T = TypeVar("_T")


def _first(ours: _T | None, theirs: _T | None) -> _T | None:
    return theirs if ours is None else ours


def _some(names: list[str], limit: int = 8) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
