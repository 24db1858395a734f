# SPDX-License-Identifier: Apache-2.0
"""Where the plan says that a guest starts, the guest's own QEMU starts it; where not, it refuses.

Each set-up is planned on the machine as it is then, tried on QEMU, and what QEMU prints is given to
`explain`, which has to name the cause that was set up.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lab.guest_setup import UNSAFE
from lab.inner import (
    BUFFER,
    FROM_MEMORY,
    OWNER_ALONE,
    TO_MEMORY,
    WITHOUT_IPC_LOCK,
    explained,
    ours,
    planned,
    refused,
    started,
)
from lab.vmm.observe import wait_for_bars

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
ENTRIES = Path("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit")
BUS = Path("/sys/bus/pci")
SMALL = ("-M", "q35", "-m", "128M")
PLAN = ("--machine", "q35", "--ram", "128M", "--firmware", "seabios-1.16.2")
FITS = ("starts and works", 0)
STOPPED = ("does not start", 1)
HUGE_RAM = (
    *("-object", "memory-backend-ram,id=m,size={size},reserve=off"),
    *("-M", "q35,memory-backend=m,max-ram-below-4g=64M", "-m", "{size}"),
)


def device(lab: dict[str, Any], kind: str, which: int = 0) -> str:
    found: str = [each["bdf"] for each in lab["devices"] if each["kind"] == kind][which]
    return found


def taken(bdf: str) -> tuple[str, ...]:
    return ("-device", f"vfio-pci,id=it,host={bdf},addr=0x10")


def rows(document: dict[str, Any], state: str) -> list[str]:
    return [row["what"] for row in document["start"]["rows"] if row["state"] == state]


def causes(text: str) -> set[str]:
    """The first cause that `explain` names for each failure that it finds in a text."""
    return {failure["causes"][0]["cause"] for failure in explained(text)}


@contextlib.contextmanager
def instead(path: Path, text: str) -> Iterator[None]:
    """Write something to a file, and what was there when it is over."""
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


def bind(bdf: str, driver: str | None) -> None:
    """Take a device from its driver, and give it to another one."""
    folder = BUS / "devices" / bdf
    if (folder / "driver").exists():
        (folder / "driver/unbind").write_text(bdf)
    (folder / "driver_override").write_text(driver or "\n")
    if driver:
        (BUS / "drivers_probe").write_text(bdf)
        assert (folder / "driver").readlink().name == driver


# -- it fits ---------------------------------------------------------------------------------------


@pytest.mark.guests("vtd", "vtd39", "amd")
@pytest.mark.proves("QEMU starts where the plan says so, and its device reaches the guest's memory")
def test_guest_that_fits_starts_and_its_device_reaches_its_memory(lab: dict[str, Any]) -> None:
    bdf = device(lab, "edu")
    width = ("--aperture", "48") if lab["guest"] == "amd" else ()
    status, document = planned(*PLAN, *width, "-s", bdf)
    # what the set-up of amd did to have devices at all is said, and stops nothing
    verdict = "starts, but" if lab["guest"] == "amd" else "starts and works"
    assert (document["start"]["verdict"], status) == (verdict, 0), document["start"]
    bars = {item["name"]: item["gpa"] for item in document["items"] if item["kind"] == "bar"}
    pattern = bytes(range(256)) * 4
    with started(*SMALL, *taken(bdf)) as inner:
        placed = wait_for_bars(inner.qmp, {"it"}, 240)["it", 0]
        assert f"{placed.start:#x}" == bars[f"{bdf} BAR 0"]["start"]
        inner.qmp.ask("stop")
        inner.config(0x10, 0x04, inner.config(0x10, 0x04) | 0x6)  # memory and bus master
        inner.write(16 * MIB, pattern)
        inner.dma(placed.start, 16 * MIB, BUFFER, len(pattern), FROM_MEMORY)
        inner.dma(placed.start, BUFFER, 100 * MIB, len(pattern), TO_MEMORY)
        assert inner.read(100 * MIB, len(pattern)) == pattern


# -- it does not fit -------------------------------------------------------------------------------


@pytest.mark.guests("vtd39")
@pytest.mark.proves("QEMU refuses RAM beyond 39 bits as the plan does, and its line is explained")
def test_ram_beyond_the_width_is_refused_by_both(lab: dict[str, Any]) -> None:
    bdf = device(lab, "edu")
    status, text = ours(
        *("plan", "--machine", "q35", "--ram", "600G", "--max-ram-below-4g", "64M", "-s", bdf)
    )
    assert status == 3
    assert "translates 39 bits" in text
    said = refused(*(part.format(size="600G") for part in HUGE_RAM), *taken(bdf))
    assert "-22" in said
    assert causes(said) == {"width"}


@pytest.mark.guests("vtd39")
@pytest.mark.proves("a BAR beyond 39 bits: QEMU warns as the plan does, and goes on")
def test_bar_beyond_the_width_is_missed_by_peers_alone(lab: dict[str, Any]) -> None:
    bdf = device(lab, "nvme")
    status, document = planned(
        *("--machine", "q35", "--ram", "128M", "-s", bdf),
        *("--cpu", "amd", "--phys-bits", "40", "--firmware", "ovmf-2025.02"),
    )
    (place,) = [item["gpa"]["start"] for item in document["items"] if item["kind"] == "bar"]
    assert (document["start"]["verdict"], status) == ("starts, but", 0), document["start"]
    assert rows(document, "not ok") == ["peers"]
    with started("-S", *SMALL, "-cpu", "EPYC,phys-bits=40", *taken(bdf)) as inner:
        inner.config(0x10, 0x10, int(place, 16) & 0xFFFF_FFFF)  # as that firmware would place it
        inner.config(0x10, 0x14, int(place, 16) >> 32)
        inner.config(0x10, 0x04, 0x2)
        assert inner.qmp.ask("query-status")["status"] == "prelaunch"
        said = inner.qmp.complaint()
    assert "-22" in said
    found = [item for item in explained(said) if item["iova"] == place]
    assert found, said
    assert {item["causes"][0]["cause"] for item in found} == {"width"}
    assert all(item["part"] == "bar" for item in found)


@pytest.mark.guests("amd")
@pytest.mark.proves("QEMU refuses RAM across the HyperTransport hole as the plan does")
def test_region_in_the_way_is_refused_by_both(lab: dict[str, Any]) -> None:
    bdf = device(lab, "edu")
    intel = ("--cpu", "intel", "--on-hole", "refuse", "--aperture", "48")
    status, text = ours(
        *("plan", "--machine", "q35", "--ram", "1010G", "--max-ram-below-4g", "64M", "-s", bdf),
        *intel,
    )
    assert status == 3
    assert "0xfd00000000-0xffffffffff" in text
    ram = (part.format(size="1010G") for part in HUGE_RAM)
    said = refused(*ram, "-cpu", "Skylake-Client,phys-bits=46", *taken(bdf))
    assert "-22" in said
    assert causes(said) == {"hole"}


# -- it fits, and does not start -------------------------------------------------------------------


@pytest.mark.guests("vtd", "vtd39")
@pytest.mark.proves("too little locked memory: known before, refused by QEMU, explained")
def test_limit_of_locked_memory_too_low_is_refused_by_both(lab: dict[str, Any]) -> None:
    bdf = device(lab, "edu")
    limited = ("prlimit", f"--memlock={64 * MIB}", *WITHOUT_IPC_LOCK)
    status, document = planned(*PLAN, "-s", bdf, prefix=limited)
    assert (document["start"]["verdict"], status) == STOPPED
    assert rows(document, "not ok") == ["locked memory"]
    said = refused(*SMALL, *taken(bdf), prefix=limited)
    assert "-12" in said
    assert causes(said) == {"memlock"}


@pytest.mark.guests("vtd", "vtd39")
@pytest.mark.proves("enough locked memory as the plan says it is enough for QEMU")
def test_limit_that_the_plan_names_is_enough(lab: dict[str, Any]) -> None:
    bdf = device(lab, "edu")
    limited = ("prlimit", f"--memlock={192 * MIB}", *WITHOUT_IPC_LOCK)
    status, document = planned(*PLAN, "-s", bdf, prefix=limited)
    assert (document["start"]["verdict"], status) == FITS
    assert refused(*SMALL, *taken(bdf), prefix=limited) == ""


@pytest.mark.guests("vtd39")
@pytest.mark.proves("a group that is not whole: known before, refused by QEMU, explained")
def test_group_with_a_host_driver_is_refused_by_both(lab: dict[str, Any]) -> None:
    bdf, other = "0000:00:15.0", "0000:00:15.1"  # two functions of one device
    assert (BUS / "devices" / other / "driver").readlink().name == "virtio-pci"
    bind(bdf, "vfio-pci")
    try:
        status, document = planned(*PLAN, "-s", bdf)
        assert (document["start"]["verdict"], status) == STOPPED
        assert rows(document, "not ok") == ["group"]
        said = refused(*SMALL, *taken(bdf))
        assert "not viable" in said
        assert causes(said) == {"not_viable"}
        bind(other, None)  # as the plan says
        assert planned(*PLAN, "-s", bdf)[1]["start"]["verdict"] == "starts and works"
        assert refused(*SMALL, *taken(bdf)) == ""
    finally:
        bind(bdf, None)
        bind(other, "virtio-pci")


@pytest.mark.guests("amd")
@pytest.mark.proves("no interrupt remapping: known before, refused by QEMU, explained")
def test_host_without_interrupt_remapping_is_refused_by_both(lab: dict[str, Any]) -> None:
    bdf = device(lab, "edu")
    with instead(UNSAFE["type1"], "N"):
        status, document = planned(*PLAN, "--aperture", "48", "-s", bdf)
        assert (document["start"]["verdict"], status) == STOPPED
        assert rows(document, "not ok") == ["interrupts"]
        said = refused(*SMALL, *taken(bdf))
    assert "not permitted" in said
    assert causes(said) == {"isolation"}


@pytest.mark.guests("vtd", "vtd39")
@pytest.mark.proves("a device with its own driver: known before, refused by QEMU, explained")
def test_device_with_a_host_driver_is_refused_by_both(lab: dict[str, Any]) -> None:
    bdf = device(lab, "rng")
    bind(bdf, "virtio-pci")
    try:
        status, document = planned(*PLAN, "-s", bdf)
        assert (document["start"]["verdict"], status) == STOPPED
        assert rows(document, "not ok") == ["driver"]
        said = refused(*SMALL, *taken(bdf))
    finally:
        bind(bdf, "vfio-pci")
    assert "No such file" in said
    assert causes(said) == {"absent"}


@pytest.mark.guests("vtd39")
@pytest.mark.proves("a node that may not be opened: known before, refused by QEMU, explained")
def test_node_of_another_user_is_refused_by_both(lab: dict[str, Any]) -> None:
    bdf = device(lab, "edu")
    (node,) = [each["group_node"] for each in lab["devices"] if each["bdf"] == bdf]
    os.chown(node, 65534, 65534)
    try:
        status, document = planned(*PLAN, "-s", bdf, prefix=OWNER_ALONE)
        assert (document["start"]["verdict"], status) == STOPPED
        assert rows(document, "not ok") == ["nodes"]
        said = refused(*SMALL, *taken(bdf), prefix=OWNER_ALONE)
    finally:
        os.chown(node, 0, 0)
    assert "Permission denied" in said
    assert causes(said) == {"permission"}


@pytest.mark.guests("vtd39")
@pytest.mark.proves("too few map calls: known before, refused by QEMU, explained")
def test_limit_of_map_calls_too_low_is_refused_by_both(lab: dict[str, Any]) -> None:
    bdf = device(lab, "edu")
    two = ("--ram", "128M", "--max-ram-below-4g", "64M")
    with instead(ENTRIES, "1"):
        status, document = planned("--machine", "q35", *two, "-s", bdf)
        assert (document["start"]["verdict"], status) == STOPPED
        assert rows(document, "not ok") == ["map calls"]
        said = refused("-M", "q35,max-ram-below-4g=64M", "-m", "128M", *taken(bdf))
    assert "-28" in said
    assert causes(said) == {"entries"}


@pytest.mark.guests("vtd39")
@pytest.mark.proves("too few huge pages: known before, refused by QEMU, explained")
def test_huge_pages_too_few_are_refused_by_both(lab: dict[str, Any]) -> None:
    bdf = device(lab, "edu")
    assert lab["huge_pages"] == 16  # of 2 MiB
    status, document = planned(*PLAN, "--page-size", "2M", "-s", bdf)
    assert (document["start"]["verdict"], status) == STOPPED
    assert rows(document, "not ok") == ["huge pages"]
    backend = "memory-backend-memfd,id=m,size=128M,hugetlb=on,hugetlbsize=2M,prealloc=on"
    said = refused("-object", backend, "-M", "q35,memory-backend=m", "-m", "128M", *taken(bdf))
    assert "backing store" in said
    assert causes(said) == {"backing"}
