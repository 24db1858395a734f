# SPDX-License-Identifier: Apache-2.0
"""The hosts that were captured on real kernels, judged as their kernels judge."""

from __future__ import annotations

import pytest

import vmm_iova as vi
from vmm_iova.host.evidence import EvidenceKind
from vmm_iova.ranges import AddrRange

BELOW_MSI = AddrRange(0, 0xFEDF_FFFF)
LAST_48 = (1 << 48) - 1
EXPECTED = {
    "lab-vtd-48": [BELOW_MSI, AddrRange(0xFEF0_0000, LAST_48)],
    "lab-vtd-39": [BELOW_MSI, AddrRange(0xFEF0_0000, (1 << 39) - 1)],
    "lab-vtd-iommufd": [BELOW_MSI, AddrRange(0xFEF0_0000, LAST_48)],
    "lab-amd-vi": [
        BELOW_MSI,
        AddrRange(0xFEF0_0000, 0xFC_FFFF_FFFF),
        AddrRange(1 << 40, (1 << 64) - 0x1001),
    ],
    "lab-arm64-smmuv3": [AddrRange(0, 0x7FF_FFFF), AddrRange(0x810_0000, LAST_48)],
    "lab-s390x-zpci": [AddrRange(0x1_0000_0000, 0x1_3FFF_FFFF)],
}


def test_every_captured_host_is_in_the_table() -> None:
    assert [name for name in vi.bundled_hosts() if name.startswith("lab-")] == sorted(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_captured_host_has_the_ranges_of_its_kernel(name: str) -> None:
    host = vi.load_host(name)
    (listed,) = host.kernel_ranges
    usable = host.usable(groups=listed.groups)
    assert list(usable.ranges) == EXPECTED[name]
    assert usable.evidence[0].kind is EvidenceKind.KERNEL_LIST
    assert usable.granule == 0x1000


def test_group_that_the_kernel_was_not_asked_about_is_no_guess() -> None:
    with pytest.raises(vi.errors.EvidenceError, match="group 0") as caught:
        vi.load_host("lab-arm64-smmuv3").usable()
    assert "--groups 5,6" in caught.value.settles[0]
