# SPDX-License-Identifier: Apache-2.0
"""Each remedy was tried, or names what it rests on; those not tried are listed here."""

from __future__ import annotations

from collections.abc import Iterator

from vmm_iova import remedies
from vmm_iova.diagnosis.filled_remedies import fill
from vmm_iova.remedies import Remedy

NOT_TRIED = """
ACS_OVERRIDE
ADD_VIOMMU
ALL_FUNCTIONS
ARM_NOTIFY
BACKING_WRITABLE
BAR_BY_GUEST
BAR_DMA_BUF/Cloud Hypervisor
BAR_DMA_BUF/QEMU
BAR_DMA_BUF/libvirt
BAR_FIRMWARE
BAR_MEMORY
BAR_OFF
BELOW_DPDK
BIND_ALL_DPDK
BITS_CPU
BOUNCE_IOMMU
BOUNCE_LARGER
CACHING_MODE/libvirt
CHECK_HARDWARE
COHERENCY
CPU_OTHER
ENTRIES_WAIT
FEWER_BITS/Cloud Hypervisor
FEWER_BITS/Proxmox
FEWER_BITS/libvirt
FEWER_PORTS
FIRMWARE_CLAIMS
FIRMWARE_HPE
FIRMWARE_REGION
FIRMWARE_TABLE
FIRMWARE_UPDATE
GIVE_CONTAINER
GRAPHICS_OFF
GUEST_IOMMU_BITS/libvirt
HARMLESS_REGION
HIDE_VM/QEMU
HIDE_VM/libvirt
HOST_BITS/libvirt
HOST_DRIVER
HUGEPAGES_SET
IOMMU_FIRST
IOMMU_ON_ARM
IOMMU_ON_MEDIATED
IOMMU_ON_XEN
IOVA_MODE
KERNEL_QUIRK
LOCK_LIBVIRT_ITSELF
LOCK_MAY_RAISE
LOCK_NO_VIOMMU
LOCK_RAM/containers
LOCK_RAM/libvirt
LOCK_RAM/systemd
LOCK_SOMETHING/containers
LOCK_SOMETHING/libvirt
LOCK_SOMETHING/systemd
MAPPED_AGAIN
MEDIATED_DRIVER
MEDIATED_SMALLER
MORE_SLOTS
NODE_BY_GROUP/KubeVirt
NODE_BY_GROUP/libvirt
NODE_IN_CONTAINER
NO_IOMMU_BOARD
NO_IOMMU_MODE
NO_PARAMETER
NO_POWER
NO_TRANSLATION
ONE_OWNER
OR_DIRECT
OTHER_CONTAINER
OTHER_MAKER
PEER_IDLE
PEER_IDLE_UNSURE/Cloud Hypervisor
PEER_IDLE_UNSURE/QEMU
READ_LINE_ABOVE
RELEASE_BAR
RESET_DEVICE
RESET_STRAY
RESIZE_BAR
SAME_SPACE/QEMU
SMALL_PAGES
SPLIT_GROUP
VFIO_USER_REGIONS
VIOMMU_MAPS
WINDOW_BITS/libvirt
WINDOW_HOST
WINDOW_LARGER/libvirt
XEN_ASSIGNABLE
XEN_LOGS
""".strip().splitlines()


def remedies_of(name: str, value: object) -> Iterator[tuple[str, Remedy]]:
    if isinstance(value, Remedy):
        yield name, value
        for program, way in value.ways:
            yield from remedies_of(f"{name}/{program}", way)
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from remedies_of(f"{name}[{index}]", item)


ALL = [
    found
    for name, value in vars(remedies).items()
    if name.isupper()
    for found in remedies_of(name, value)
]


def test_remedies_that_nobody_tried_are_these() -> None:
    assert sorted(name for name, item in ALL if not item.tried and not item.ways) == NOT_TRIED


def test_each_was_tried_somewhere_or_names_its_source() -> None:
    assert len(ALL) > 150
    assert not [name for name, item in ALL if not (item.tried or item.source or item.ways)]


def test_what_was_not_tried_says_so_where_it_is_printed() -> None:
    for name, item in ALL:
        if "{" not in item and not item.ways and not item.startswith(("nothing", "no setting")):
            assert str(fill(item)).endswith("(not tried)") is not bool(item.tried), name


def test_doing_nothing_is_not_said_to_be_untried() -> None:
    idle = [item for _, item in ALL if item.startswith("nothing") and not item.tried]
    assert len(idle) > 2
    assert not [item for item in idle if "not tried" in str(fill(item))]


def test_each_is_worded_once() -> None:
    texts = [str(item) for _, item in ALL if len(item) > 40]
    assert len(set(texts)) == len(texts)
