# SPDX-License-Identifier: Apache-2.0
"""Fuzz `explain`: any text is explained, or refused with an error of the program's own."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from fuzz.kit import NAMES
from vmm_iova.diagnosis.diagnose import diagnose
from vmm_iova.diagnosis.error_lines import parse_reports
from vmm_iova.diagnosis.failure import MOST_FAILURES
from vmm_iova.errors import IovaError
from vmm_iova.host.load import load_host
from vmm_iova.report.diagnosis import diagnosis_data, show_diagnosis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.host.usable import Usable


@cache
def _usable(name: str) -> Usable:
    return load_host(name).usable()


def one_input(data: bytes) -> None:
    """Explain a text, without a host and with two, with the rarer causes, and as data.

    Raises:
        Exception: any but the program's own is a finding.
    """
    text = data.decode("utf-8", "replace")
    try:
        reports = parse_reports(text)
    except IovaError:
        return
    for report in reports:
        assert len(report.failures) <= MOST_FAILURES
        for failure in report.failures[:20]:
            for name in (None, *NAMES):
                found = diagnose(failure, report.clues, name and _usable(name))
                assert found.headline
                assert show_diagnosis(found, verbose=True)
                assert diagnosis_data(found)["verdict"] == found.headline or found.failure.name


def seeds() -> Iterator[bytes]:
    """Lines of the programs that are known."""
    yield from (line.encode() for line in LINES)


LINES = (
    "qemu-system-x86_64: vfio_dma_map(0x55d0, 0x382000000000, 0x10000000, 0x7f00) = -22 (Inval)",
    "vfio_container_dma_map(0x5566, 0x100000000, 0x80000000, 0x7f5c) = -12 (Cannot allocate)",
    "qemu: -device vfio-pci,host=01:00.0: vfio 0000:01:00.0: group 12 is not viable",
    "DMAR: [DMA Read NO_PASID] Request device [01:00.0] fault addr 0xfee00000 [fault reason 0x06]",
    "AMD-Vi: Event logged [IO_PAGE_FAULT device=01:00.0 domain=0x000a address=0xfd00000000 f=0]",
    "arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received: 0x0000020000000010",
    "EAL: Cannot set up DMA remapping, error 12 (Cannot allocate memory)",
    "VFIO_MAP_DMA failed: Invalid argument (IOVA 0x382000000000 size 0x10000000)",
    "ioctl(VFIO_IOMMU_MAP_DMA) iova=0x8000000 size=0x100000 vaddr=0x7f0000000000 errno=16",
    "pc.ram 0xfd00000000 0x300000000 EINVAL qemu",
    "error: host address width 39 is not sufficient; memlock 65536; dma_entry_limit",
    "2026-01-01T00:00:00 ERROR cloud_hypervisor: VfioDmaMap(Error(22)) at 0xfd00000000+0x100000",
)
