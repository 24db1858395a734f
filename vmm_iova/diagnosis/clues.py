# SPDX-License-Identifier: Apache-2.0
"""What a report states beside the failure: of the host, its devices, its limits, and the guest."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.diagnosis.why import Api, Why
from vmm_iova.patterns import regex
from vmm_iova.ranges import AddrRange
from vmm_iova.readers.cpu import Cpu, read_cpu
from vmm_iova.readers.iommu_groups import read_iommu_groups
from vmm_iova.readers.kernel_log import KernelLog, read_kernel_log
from vmm_iova.readers.lspci import PciDevice, read_lspci
from vmm_iova.readers.qemu import QemuCommand, read_qemu
from vmm_iova.record import collector, field, record

if TYPE_CHECKING:
    from collections.abc import Sequence

HEX = r"0x[0-9a-fA-F]{1,64}"
"""A number in hex, as a pattern."""

_BDF = regex(r"(?<!guest BDF: )\b(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]\b")
_GROUP = regex(r"\bgroup (\d{1,9})\b|/dev/vfio/(\d{1,9})\b")
WIDTH = regex(r"iommu width \((\d{1,2})\)")
"""The width that VT-d's driver prints when an address is beyond it."""
_AMD = regex(r"\bAMD\b|\bEPYC\b|\bRyzen\b|AMD-Vi|\bThreadripper\b|AuthenticAMD")
_INTEL = regex(r"\bIntel\b|\bXeon\b|\bDMAR\b|\bLake\b|\bi[3579]-\d{3,5}|GenuineIntel")
# Not the guest's architecture: an arm64 guest may run on an x86 host.
_ARM = regex(r"\bSMMU|\barm-smmu")
_CLIENT = regex(
    r"\b(?:Alder|Raptor|Meteor|Arrow|Lunar|Tiger|Rocket|Comet|Coffee|Kaby) ?Lake\b|"
    r"\bCore(?:\(TM\))? (?:Ultra|i[3579])|\bi[3579]-\d{3,5}"
)
_MASK = regex(r"using dma mask ([0-9a-f]{1,16})\b")
_HOST_BITS = regex(r"> host aw-bits (0x[0-9a-f]{1,2}|[1-9]\d?)\b")
_PAST = regex(r"past 2\^(\d{2})|KVM memslot refused")
_MEMLOCK_WORDS = regex(r"memlock|locked memory", re.IGNORECASE)
_LIMIT = regex(r"RLIMIT_MEMLOCK \((\d{1,20})\)")
_ENTRY_LIMIT = regex(
    r"dma_entry_limit\D{0,4}(\d{1,10})|Maximum (?:possible|number of) DMA map\w{0,10}: (\d{1,10})"
)
_RELEASE = regex(r"Linux version (\d{1,3}\.\d{1,3})")
_IOVA_RANGE = regex(rf"iova range \d{{1,4}} is \[({HEX}); ({HEX})\]")
# What only the one interface has: files of /dev, names of ioctls, and QEMU's own words. Until 8.2,
# where iommufd came, it called its map vfio_dma_map (hw/vfio/common.c); vfio_legacy_dma_map is
# type1's still. Group and container are of type1 alone, /dev/vfio/devices of iommufd.
_TYPE1 = regex(
    r"/dev/vfio/(?:vfio|\d{1,9})\b|\bVFIO_(?:UN)?MAP_DMA\b|\bVFIO_SET_IOMMU\b|"
    r"\bvfio_(?:legacy_)?dma_(?:un)?map ?\(|set ?up container for group|\bvfio_iommu_type1\b"
)
_IOMMUFD = regex(r"\biommufd\b|/dev/iommu\b|/dev/vfio/devices/|\bIOMMU_IOAS_", re.IGNORECASE)
_BOARDS = (
    # Models of the device tree, the SoC, nodes of its tree (hvs and pisp_be are the display's and
    # the camera's), its PCIe driver, and how its makers name their kernels. Its IOMMUs serve
    # display, codec and camera, no PCIe: raspberrypi/linux#6834; arch/arm64/boot/dts/broadcom.
    (
        regex(
            r"\bRaspberry ?Pi\b|\bbcm27(?:11|12)\b|\bpisp_be\b|\baxi:gpu\b|"
            r"\b10[0-9a-f]{7,8}\.hvs\b|\d[-+](?:rpt-)?rpi\b|\d-raspi\b|\d-v8(?:-16k)?\+",
            re.IGNORECASE,
        ),
        "a Raspberry Pi",
    ),
    (regex(r"\bbrcm-pcie\b"), "a board with Broadcom's PCIe, such as a Raspberry Pi,"),
)
_NOT_CAUSES = (Why.OTHER, Why.PEER, Why.WIDTH, Why.BAR, Why.ENTRIES, Why.BAR_HELD)


@record
class Clues:
    """What a report states of the host, beside the failure.

    Attributes:
        width: address bits of the IOMMU that the kernel printed.
        vendor: `amd`, `intel` or `arm`, or None.
        cpu_bits: physical address bits that were passed, or None.
        memlock: limit of locked memory in bytes that was passed, or None.
        entries: limit on mappings that was passed, or None.
        client: True if the CPU is an Intel desktop or laptop part, whose IOMMUs have 39 bits.
        signs: causes that the kernel's log named, each with its line.
        devices: PCI devices that were named.
        groups: IOMMU groups that were named.
        peer: True if QEMU said that a map was one for peer-to-peer DMA.
        cpu: what lscpu or cpuinfo says, or None.
        pci: devices that lspci, or a listing of groups, describes.
        log: windows, BARs, groups and identity maps of a kernel log.
        members: (device, group) of a listing of /sys/kernel/iommu_groups.
        qemu: the guest's command line, or None.
        ranges: usable IOVA ranges that a program printed.
        release: the kernel, like `6.8`, or None.
        fatal: True if the program said that it cannot go on.
        api: the interface that its words belong to; None where they tell of both, or of none.
        board: a board whose PCIe is behind no IOMMU, with its article, or None.
    """

    width: int | None = None
    vendor: str | None = None
    cpu_bits: int | None = None
    memlock: int | None = None
    entries: int | None = None
    client: bool = False
    signs: tuple[tuple[Why, str], ...] = ()
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    peer: bool = False
    cpu: Cpu | None = None
    pci: tuple[PciDevice, ...] = ()
    log: KernelLog = field(default_factory=KernelLog)
    members: tuple[tuple[str, str], ...] = ()
    qemu: QemuCommand | None = None
    ranges: tuple[AddrRange, ...] = ()
    release: str | None = None
    fatal: bool = False
    api: Api | None = None
    board: str | None = None

    @property
    def listed(self) -> dict[str, str]:
        """Group of each device, whichever listing says so."""
        of_pci = {item.name: item.group for item in self.pci if item.group is not None}
        return {**of_pci, **dict(self.log.groups), **dict(self.members)}

    @property
    def bars(self) -> tuple[tuple[str, int | None, int], ...]:
        """(device, address, bytes) of each BAR that is described."""
        listed = [
            (device.name, region.start, region.size)
            for device in self.pci
            for region in device.regions
            if region.size is not None
        ]
        logged = [(bar.device, bar.range.start, bar.range.size) for bar in self.log.bars]
        return tuple(dict.fromkeys((*listed, *logged)))


@collector
class ClueReader:
    """Clues as they are collected, line by line."""

    width: int | None = None
    vendors: set[str] = field(default_factory=set)
    cpu_bits: int | None = None
    memlock: int | None = None
    entries: int | None = None
    client: bool = False
    peer: bool = False
    release: str | None = None
    fatal: bool = False
    signs: dict[Why, str] = field(default_factory=dict)
    devices: dict[str, None] = field(default_factory=dict)
    groups: dict[str, None] = field(default_factory=dict)
    ranges: list[AddrRange] = field(default_factory=list)
    apis: set[Api] = field(default_factory=set)
    board: str | None = None

    def read(self, line: str, signs: Sequence[Why]) -> None:
        """Collect what a line states; `signs` are the causes that its words settle."""
        width = WIDTH.search(line)
        if width and 1 <= int(width[1]) <= 64:
            self._narrow(int(width[1]))
            self.signs.setdefault(Why.WIDTH, line)
        mask = _MASK.search(line)
        if mask and int(mask[1], 16):  # DPDK prints the bits that an IOVA may not have
            self._narrow((int(mask[1], 16) & -int(mask[1], 16)).bit_length() - 1)
        host = _HOST_BITS.search(line)
        if host:
            self._narrow(int(host[1], 0))
        if "Access beyond MGAW" in line:
            self.signs.setdefault(Why.WIDTH, line)
        for pattern, vendor in ((_AMD, "amd"), (_INTEL, "intel"), (_ARM, "arm")):
            if pattern.search(line):
                self.vendors.add(vendor)
        self.client = self.client or bool(_CLIENT.search(line))
        past = _PAST.search(line)
        if past and past[1]:
            self.cpu_bits = int(past[1])
        limit = _LIMIT.search(line)
        if limit:
            self.memlock = int(limit[1])
        if _MEMLOCK_WORDS.search(line):
            self.signs.setdefault(Why.MEMLOCK, line)
        entries = _ENTRY_LIMIT.search(line)
        if entries:
            self.entries = int(entries[1] or entries[2])
        span = _IOVA_RANGE.search(line)
        if span and int(span[1], 16) < int(span[2], 16) < 1 << 64:
            self.ranges.append(AddrRange(int(span[1], 16), int(span[2], 16)))
        release = _RELEASE.search(line)
        self.release = release[1] if release else self.release
        self.peer = self.peer or Why.PEER in signs
        self.fatal = self.fatal or "unable to continue" in line
        for why in signs:
            if why not in _NOT_CAUSES:
                self.signs.setdefault(why, line)
        self.apis.update(
            api
            for api, words in ((Api.TYPE1, _TYPE1), (Api.IOMMUFD, _IOMMUFD))
            if words.search(line)
        )
        self.board = self.board or next((of for words, of in _BOARDS if words.search(line)), None)
        named = (found if len(found) > 7 else f"0000:{found}" for found in _BDF.findall(line))
        self.devices.update(dict.fromkeys(named))
        self.groups.update((a or b, None) for a, b in _GROUP.findall(line))

    def _narrow(self, bits: int) -> None:
        self.width = min(self.width or 64, bits)

    def done(self, lines: Sequence[str] = ()) -> Clues:
        """Return them, with what the readers of other programs' texts make of the lines."""
        cpu = read_cpu(lines)
        if cpu is not None and cpu.vendor is not None:
            self.vendors = {cpu.vendor}
        (vendor,) = self.vendors if len(self.vendors) == 1 else (None,)
        qemu = read_qemu("\n".join(lines)) if lines else None
        if qemu is not None and qemu.assigned:
            self.apis = {Api.IOMMUFD if qemu.iommufd else Api.TYPE1}
        (api,) = self.apis if len(self.apis) == 1 else (None,)
        return Clues(
            width=self.width,
            vendor=vendor,
            cpu_bits=self.cpu_bits or (cpu.physical_bits if cpu else None),
            memlock=self.memlock,
            entries=self.entries,
            client=self.client,
            signs=tuple(self.signs.items()),
            devices=tuple(self.devices),
            groups=tuple(self.groups),
            peer=self.peer,
            cpu=cpu,
            pci=read_lspci(lines),
            log=read_kernel_log(lines),
            members=read_iommu_groups(lines),
            qemu=qemu,
            ranges=tuple(self.ranges),
            release=self.release,
            fatal=self.fatal,
            api=api,
            board=self.board,
        )
