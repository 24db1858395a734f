# SPDX-License-Identifier: Apache-2.0
"""`capture --ask-kernel` on the kernel of this guest, and the plan that its snapshot gives."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import vmm_iova as vi
from vmm_iova import cli
from vmm_iova.host.evidence import EvidenceKind

MACHINE = {"arm64": "virt", "s390x": "s390x"}
NAMES = {
    "vtd": "lab-vtd-48",
    "vtd39": "lab-vtd-39",
    "amd": "lab-amd-vi",
    "iommufd": "lab-vtd-iommufd",
    "arm64": "lab-arm64-smmuv3",
    "s390x": "lab-s390x-zpci",
}


@pytest.fixture
def snapshot(lab: dict[str, Any]) -> Path:
    """Take it as a user does; it stays in the folder of the run, to become a bundled host."""
    path = Path(os.environ["VMM_IOVA_LAB"]).parent / "capture.json"
    name = NAMES[lab["guest"]]
    devices = ",".join(item["bdf"] for item in lab["devices"])
    arguments = ["capture", "--ask-kernel", "-s", devices, "--name", name, "-o", str(path)]
    assert cli.main(arguments) == 0, sys.stderr
    return path


def test_capture_has_the_kernels_list_as_its_evidence(snapshot: Path, lab: dict[str, Any]) -> None:
    devices = [item["bdf"] for item in lab["devices"]]
    usable = vi.load_host(snapshot).usable(devices=devices)
    assert usable.evidence[0].kind is EvidenceKind.KERNEL_LIST
    assert usable.granule == lab["page_size"]
    assert usable.granule_known


@pytest.mark.proves("a captured snapshot plans a guest elsewhere")
def test_capture_gives_a_plan_that_the_kernel_in_memory_takes(
    snapshot: Path, lab: dict[str, Any]
) -> None:
    from vmm_iova.mapping import dry_run

    devices = [item["bdf"] for item in lab["devices"]]
    usable = vi.load_host(snapshot).usable(devices=devices)
    machine = MACHINE.get(lab["guest"], "q35")
    layout = vi.plan(vi.Guest(machine, "512MiB", pci64=None), usable)
    assert sum(item.place.size for item in layout.ram) == 512 << 20
    if usable.limits.memlock == -1:
        assert len(dry_run(layout).calls) == len(layout.ram)


@pytest.mark.guests("s390x")
@pytest.mark.proves("sysfs, the kernel's list and the zPCI capability agree on the aperture")
def test_three_sources_agree_on_s390(snapshot: Path, lab: dict[str, Any]) -> None:
    host = vi.load_host(snapshot)
    (listed,) = host.kernel_ranges
    assert [window.range for window in host.windows] == [listed.ranges[0]] * len(host.windows)
    group = host.group(host.device(lab["devices"][0]["bdf"]).group or "")
    below, above = (region.range for region in group.regions or ())
    assert (below.last + 1, above.start - 1) == (listed.ranges[0].start, listed.ranges[0].last)


@pytest.mark.guests("iommufd")
@pytest.mark.proves("IOMMU_GET_HW_INFO is decoded, and says what sysfs says")
def test_answer_of_the_kernel_about_its_iommu_is_shown_in_words(
    lab: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    devices = ",".join(item["bdf"] for item in lab["devices"])
    asked = ("show", "--ask-kernel", "iommufd", "-s", devices)
    assert cli.main([*asked, "-J"]) == 0
    found = json.loads(capsys.readouterr().out)
    (unit,) = [item for item in found["host"]["iommus"] if item["cap"]]
    assert len(found["host"]["iommu_info"]) == len(lab["devices"])
    for info in found["host"]["iommu_info"]:
        assert info["kind"] == "intel"
        assert info["registers"] == {"cap": unit["cap"], "ecap": unit["ecap"]}
        words = found["hardware"][info["device"]]
        assert set(found["features"][unit["name"]]) <= set(words)
    assert cli.main([*asked]) == 0
    text = capsys.readouterr().out
    assert text.count(f"cap {int(unit['cap'], 16):x} ecap") == 2  # the unit's, and the kernel's
