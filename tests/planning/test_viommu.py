# SPDX-License-Identifier: Apache-2.0
"""The guest's own Intel IOMMU: its width against the host's."""

from __future__ import annotations

import pytest

import vmm_iova as vi
from vmm_iova.errors import RequestError


def plan(bits: int | None, host: str) -> vi.Layout:
    guest = vi.Guest("q35", "8G", viommu=True, viommu_bits=bits)
    return vi.plan(guest, vi.load_host(host).usable())


@pytest.mark.parametrize(
    ("bits", "host"),
    [(39, "intel-dmar-i7-2600"), (48, "amd-epyc-1tb"), (None, "intel-dmar-i7-2600")],
)
def test_viommu_that_is_no_wider_than_the_hosts_is_planned(bits: int | None, host: str) -> None:
    assert plan(bits, host).viommu


def test_viommu_wider_than_the_hosts_is_refused_with_the_width_that_fits() -> None:
    # in QEMU's words: "aw-bits 48 > host aw-bits 39" (hw/i386/intel_iommu.c, vtd_check_hiod())
    with pytest.raises(vi.PlanError, match="has 48 address bits and the host's 39") as caught:
        plan(48, "intel-dmar-i7-2600")
    assert caught.value.fixes == ("--viommu-bits 39 (QEMU: -device intel-iommu,aw-bits=39)",)
    (reason,) = caught.value.reasons
    assert isinstance(reason, vi.Reason)
    assert reason.cause.kind is vi.CauseKind.APERTURE


def test_viommu_on_a_host_narrower_than_any_of_its_widths_has_no_fix_of_its_own() -> None:
    usable = vi.load_host("intel-dmar-i7-2600").usable(aperture=36)
    with pytest.raises(vi.PlanError) as caught:
        vi.plan(vi.Guest("q35", "8G", viommu=True, viommu_bits=39), usable)
    assert caught.value.fixes == ("another machine, or a device behind another IOMMU",)


def test_viommu_of_a_width_that_qemu_does_not_take_is_no_request() -> None:
    with pytest.raises(RequestError, match="viommu_bits 40 is none of 39, 48, 57"):
        plan(40, "amd-epyc-1tb")
