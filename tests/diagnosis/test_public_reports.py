# SPDX-License-Identifier: Apache-2.0
"""Whole public reports: the cause, the certainty, and the first action, as their threads found.

Their place stands beside each. What was pasted is rewritten: the same elements and numbers.
"""

from __future__ import annotations

import pytest

import vmm_iova as vi
from tests.kit.data import DATA


def paste(*names: str) -> str:
    return "".join((DATA / "reports" / f"{name}.txt").read_text("utf-8") for name in names)


# what is pasted, cause, certainty, harmless, words of the first three actions
REPORTS = [
    pytest.param(  # github.com/kata-containers/kata-containers/issues/12861
        ("01-p2p-warning",),
        (vi.Why.WIDTH, "likely", True),
        ("nothing, if the guest runs", "host-phys-bits-limit=39"),
        id="peer-to-peer-warning-beyond-the-width",
    ),
    pytest.param(  # kata-containers#12289, cloud-hypervisor#8895
        ("02-two-gpus-p2p",),
        (vi.Why.BAR, "likely", True),
        ("nothing, if the guest runs", "Linux 6.19 or later", "QEMU 11", "type1"),
        id="peer-to-peer-that-iommufd-does-not-map",
    ),
    pytest.param(  # kubevirt#18915, kubevirt#17805
        ("04-viommu-two-gpus", "04-viommu-two-gpus.cmdline"),
        (vi.Why.MEMLOCK, "likely", False),
        ("17 GiB (8 GiB of RAM x 2 devices behind the guest's IOMMU + 1 GiB)", "CAP_IPC_LOCK"),
        id="guest-iommu-locks-ram-once-for-each-device",
    ),
    pytest.param(
        ("04-viommu-two-gpus",),
        (vi.Why.MEMLOCK, "likely", False),
        ("once for each assigned device", "ulimit -l KIB"),
        id="no-number-where-the-ram-is-not-known",
    ),
    pytest.param(  # kubevirt#18895
        ("07-no-cdev",),
        (vi.Why.NO_CDEV, "likely", False),
        ("CONFIG_VFIO_DEVICE_CDEV=y and CONFIG_IOMMUFD", "/dev/vfio/GROUP"),
        id="no-vfio-cdev",
    ),
    pytest.param(
        ("07-no-cdev.input2",),
        (vi.Why.NO_CDEV, "likely", False),
        ("CONFIG_VFIO_DEVICE_CDEV=y",),
        id="no-vfio-cdev-for-libvirt",
    ),
    pytest.param(  # AltraMayor/gatekeeper#718
        ("09-hpe-dpdk",),
        (vi.Why.DIRECT, "certain", False),
        ("assign another device", "HPE ProLiant", "conrep"),
        id="identity-map-of-remote-management",
    ),
    pytest.param(  # raspberrypi/linux#6834
        ("11-no-group",),
        (vi.Why.NO_GROUP, "likely", False),
        (
            "if the machine has an IOMMU",
            "a Raspberry Pi",
            "ls -l /sys/bus/pci/devices/0001:01:00.0/iommu_group",
        ),
        id="no-group",
    ),
    pytest.param(
        ("11-no-group", "11-no-group.host"),
        (vi.Why.NO_GROUP, "certain", False),
        ("no setting helps: a Raspberry Pi cannot", "iommu_group"),
        id="no-group-by-the-listing",
    ),
    pytest.param(  # cloud-hypervisor#6147
        ("13-bar-move", "13-bar-move.host"),
        (vi.Why.BAR_MOVED, "certain", False),
        ("nothing, if the guest's device works", "another firmware in the guest"),
        id="bar-that-a-guest-sizes",
    ),
    pytest.param(  # lf-edge/eve#2544
        ("18-address-spaces",),
        (vi.Why.SHARED_GROUP, "certain", False),
        ("pcie-pci-bridge", "one guest"),
        id="group-in-two-address-spaces",
    ),
    pytest.param(  # lf-edge/eve#146
        ("19-xen-graphics",),
        (vi.Why.GRAPHICS, "likely", False),
        ("iommu=no-igfx",),
        id="graphics-under-xen",
    ),
    pytest.param(  # kubevirt#11093
        ("22-bar-without-room",),
        (vi.Why.NO_SPACE, "certain", False),
        ("X-PciMmio64Mb,string=65536",),
        id="bar-without-room",
    ),
]


@pytest.mark.parametrize(("names", "expect", "actions"), REPORTS)
def test_report_has_the_cause_of_its_thread(
    names: tuple[str, ...], expect: tuple[vi.Why, str, bool], actions: tuple[str, ...]
) -> None:
    (found,) = vi.explain(paste(*names))

    first = found.findings[0]
    assert (first.why, first.certainty, found.harmless) == expect
    shown = "\n".join(found.fixes[:3])
    assert all(words in shown for words in actions), shown


def test_warning_says_first_that_it_is_no_failure() -> None:
    (found,) = vi.explain(paste("01-p2p-warning"))
    assert found.headline.startswith("QEMU only warns")
    assert "not why a guest fails" in found.headline


# A warning about peer-to-peer, and what else stands in the paste: kata-containers#12289, and the
# words that tell which interface QEMU used.
_WARNED = (
    "qemu-system-x86_64: {call}(0x74f9d1ef82d0, 0xc000000000, 0xb90000, 0x74f9cc000000) = -14 (Bad "
    "address)\n0000:18:00.0: PCI peer-to-peer transactions on BARs are not supported.\n"
)
_NEWER, _OLDER = "vfio_container_dma_map", "vfio_dma_map"  # until QEMU 8.1, before iommufd
_COMMAND = "qemu-system-x86_64 -machine q35 -m 8G "


@pytest.mark.parametrize(
    ("call", "beside", "certainty"),
    [
        (_NEWER, "", "likely"),
        (
            _NEWER,
            _COMMAND + "-object iommufd,id=f -device vfio-pci,host=18:00.0,iommufd=f",
            "certain",
        ),
        (_NEWER, "IOMMU_IOAS_MAP failed: Bad address, PCI BAR?", "certain"),
        (_NEWER, "--device /dev/vfio/devices/vfio0", "certain"),
    ],
)
def test_bar_that_cannot_be_pinned_is_laid_to_iommufd_and_fixed_by_dma_bufs_or_type1(
    call: str, beside: str, certainty: str
) -> None:
    (found,) = vi.explain(_WARNED.format(call=call) + beside)

    assert (found.findings[0].why, found.certainty, found.harmless) == (
        vi.Why.BAR,
        certainty,
        True,
    )
    assert found.headline.startswith("iommufd")
    assert ("likely" in found.headline) is (certainty == "likely")
    assert "the guest starts" in found.headline
    assert found.fixes[0].startswith("nothing, if the guest runs and needs no peer-to-peer")
    assert all(words in found.fixes[1] for words in ("Linux 6.19 or later", "QEMU 11", "type1"))


@pytest.mark.parametrize(
    ("call", "beside"),
    [
        (_OLDER, ""),
        (_NEWER, _COMMAND + "-device vfio-pci,host=18:00.0"),
        (_NEWER, "vfio 0000:18:00.0: failed to setup container for group 12: ..."),
    ],
)
def test_bar_that_type1_did_not_map_is_not_laid_to_iommufd(call: str, beside: str) -> None:
    (found,) = vi.explain(_WARNED.format(call=call) + beside)

    assert (found.findings[0].why, found.harmless) == (vi.Why.HVA, True)
    assert found.certainty == "likely"
    assert "iommufd" not in found.headline + "".join(found.fixes)
    assert found.fixes[0].startswith("nothing, if the guest runs")
    assert "lspci -vv -s 18:00.0" in found.fixes[1]


def test_words_of_both_interfaces_leave_open_which_it_was() -> None:
    beside = "ls /dev/vfio/devices/vfio0 /dev/vfio/12\n"
    (found,) = vi.explain(_WARNED.format(call=_NEWER) + beside)
    assert (found.findings[0].why, found.certainty) == (vi.Why.BAR, "likely")


_NO_GROUP = "vfio-pci 0001:01:00.0: probe with driver vfio-pci failed with error -22\n"


@pytest.mark.parametrize(
    "beside",
    [
        "Machine model: Raspberry Pi 5 Model B Rev 1.0",  # dmesg, /proc/device-tree/model
        "Linux pi 6.12.22-v8-16k+ #1876 SMP PREEMPT aarch64 GNU/Linux",
        "Linux pi 6.6.51+rpt-rpi-2712 #1 SMP PREEMPT Debian aarch64",
        "Linux version 6.8.0-1015-raspi (buildd@bos03-arm64-051)",
        "brcm-pcie 1000110000.pcie: link up, 5.0 GT/s PCIe x1 (!SSC)",
        "bcm2712-iommu 1000005100.iommu: bcm2712_iommu_probe: Success",
        "platform axi:gpu: Adding to iommu group 1",
    ],
)
def test_board_whose_pcie_has_no_iommu_is_not_told_to_switch_one_on(beside: str) -> None:
    (found,) = vi.explain(_NO_GROUP + beside)

    assert found.findings[0].why is vi.Why.NO_GROUP
    assert "Raspberry Pi" in found.headline
    assert found.fixes[0].startswith("no setting helps")
    assert not any("switch" in text or "intel_iommu" in text for text in found.fixes)


def test_report_without_an_iommu_from_such_a_board_says_that_it_has_none() -> None:
    text = "Cannot prepare PCI passthrough, IOMMU not present\nHardware: Raspberry Pi 5\n"
    (found,) = vi.explain(text)
    assert found.findings[0].why is vi.Why.NO_IOMMU
    assert found.fixes[0].startswith("no setting helps")
    assert " off" not in found.headline + found.findings[0].text


def test_bar_that_stops_another_vmm_over_iommufd_is_no_warning() -> None:
    # cloud-hypervisor#8895
    text = (
        "cloud-hypervisor: Failed to map VFIO MMIO region: Failed to DMA map: failed to map an "
        "IOVA range to the IOAS: Bad address (os error 14)"
    )
    (found,) = vi.explain(text)
    assert (found.findings[0].why, found.certainty, found.harmless) == (
        vi.Why.BAR,
        "certain",
        False,
    )
    assert found.headline.startswith("iommufd cannot pin the pages of")
    assert "vfio_p2p_dma=off" in found.fixes[0]
    assert all(words in found.fixes[1] for words in ("Linux 6.19", "iommufd=on out of --platform"))


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ("", "if the machine has an IOMMU, switch it on"),
        ("arm-smmu-v3 arm-smmu-v3.0.auto: ias 44-bit, oas 44-bit", "IORT or device tree"),
        ("vendor_id\t: GenuineIntel", "boot with intel_iommu=on"),
        ("vendor_id\t: AuthenticAMD", "(AMD-Vi) on in the firmware"),
    ],
)
def test_machine_that_may_have_an_iommu_is_told_to_switch_it_on_and_how_to_see_it(
    beside: str, words: str
) -> None:
    (found,) = vi.explain(_NO_GROUP + beside)
    assert (found.findings[0].why, found.certainty) == (vi.Why.NO_GROUP, "likely")
    assert words in found.fixes[0]
    assert found.fixes[1].endswith("ls -l /sys/bus/pci/devices/0001:01:00.0/iommu_group")


def test_bar_that_no_region_of_the_listing_has_is_said_to_be_a_rom() -> None:
    (found,) = vi.explain(paste("13-bar-move", "13-bar-move.host"))
    assert any("no BAR of the listing has 512 KiB" in note for note in found.notes)


def test_listing_of_the_group_names_the_device_that_is_left() -> None:
    # 64kramsystem/vga-passthrough#15
    text = (
        "qemu-system-x86_64: -device vfio-pci,host=01:00.0: vfio error: 0000:01:00.0: group 1 is "
        "not viable\n"
        "IOMMU group 7\n\t00:1b.0 Audio device [0403]: 9 Series HD Audio [8086:8ca0]\n"
        "IOMMU group 1\n\t00:01.0 PCI bridge [0604]: PCI Express x16 Controller [8086:0c01]\n"
        "\t01:00.0 VGA compatible controller [0300]: GK104 [GeForce GTX 760] [10de:1187]\n"
        "\t01:00.1 Audio device [0403]: GK104 HDMI Audio Controller [10de:0e0a]\n"
    )
    (found,) = vi.explain(text)
    assert found.fixes[0].startswith("bind 0000:01:00.1 to vfio-pci as well")


def test_guest_that_fails_on_another_host_is_not_told_of_its_bars_limit() -> None:
    # A limit of 39 bits leaves 64 GiB for BARs: a card of 64 GiB does not fit there.
    text = (
        "vfio_dma_map(0x1, 0x380000000000, 0x10000000, 0x7) = -22 (Invalid argument)\n"
        "01:00.0 3D controller [0302]: a card\n"
        "\tRegion 2: Memory at 380000000000 (64-bit, prefetchable) [size=64G]\n"
    )
    (found,) = vi.explain(text)
    assert not any("address bits" in text for text in found.fixes[:2])


def test_arm_guest_is_told_the_size_that_fits_and_its_own_machine() -> None:
    # Launchpad qemu 1869006: the reporter found by trial that 3054 MiB are the most.
    text = (
        "qemu-system-aarch64: -device vfio-pci,host=01:00.0: vfio 0000:01:00.0: failed to setup "
        "container for group 11: memory listener initialization failed: Region mach-virt.ram: "
        "vfio_dma_map(0x55de3c2a97f0, 0x40000000, 0x100000000, 0x7fb7fbe00000) = -22 (Invalid "
        "argument)"
    )
    (found,) = vi.explain(text)
    assert found.fixes[0].startswith("a guest of 3054 MiB fits")
    assert any("--machine virt" in text for text in found.fixes)


def test_errno_that_the_call_does_not_have_is_left_to_the_line_above() -> None:
    line = "Region pc.ram: vfio_dma_map(0x1, 0x100000000, 0x180000000, 0x7000) = -2 (No such file)"
    (alone,) = vi.explain(f"qemu: {line}")
    assert [item.why for item in alone.findings] == [vi.Why.UNWOUND]
    (both,) = vi.explain(f"qemu: VFIO_MAP_DMA failed: Cannot allocate memory\nqemu: {line}")
    assert (both.failure.errno, both.findings[0].why) == ("ENOMEM", vi.Why.MEMLOCK)


def test_qemu_s_own_check_has_one_cause_and_no_errno() -> None:
    text = "qemu: vfio 0000:01:00.0: Container 0x5 can't map guest IOVA region 0x0..0xffffffffffff"
    (found,) = vi.explain(text)
    assert found.failure.errno is None
    assert found.findings[0].why is vi.Why.OUTSIDE


def test_fault_of_ram_is_about_its_memory_first() -> None:
    text = "qemu: vfio_dma_map(0x1, 0x100000000, 0x180000000, 0x7f00000000) = -14 (Bad address)"
    (found,) = vi.explain(text)
    assert found.findings[0].why is vi.Why.HVA


def test_unlimited_of_libvirt_is_no_number() -> None:
    text = "cannot limit locked memory of process 1 to 9007199254740991: Operation not permitted"
    (found,) = vi.explain(text)
    assert "9007199254740991" not in found.fixes[0]


@pytest.mark.parametrize(
    ("cpu", "words"),
    [
        ("flags\t\t: fpu vme hypervisor lahf_lm\n", "start the outer QEMU with"),
        ("vendor_id\t: AuthenticAMD\n", "(AMD-Vi) on in the firmware"),
        ("vendor_id\t: GenuineIntel\n", "boot with intel_iommu=on"),
    ],
)
def test_iommu_is_switched_on_in_the_way_of_the_machine(cpu: str, words: str) -> None:
    (found,) = vi.explain(f"vfio 0000:08:00.0: no iommu_group found: No such file\n{cpu}")
    assert words in found.fixes[0]


def test_row_without_numbers_is_kept_and_leaks_no_facts() -> None:
    text = (
        "# kind: failed_maps\n"
        "first 0x382000000000 0x10000000 EINVAL Xeon, memlock limit\n"
        "second - - ENOMEM\n"
        "third 0x100000000 0x1000 EINVAL AMD\n"
    )
    found = vi.explain(text)
    assert [item.failure.name for item in found] == ["first", "second", "third"]
    assert found[1].findings[0].certainty == "likely"
