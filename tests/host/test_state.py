# SPDX-License-Identifier: Apache-2.0
"""What a host has at the moment: memory, huge pages, nodes, interrupts, capabilities."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kit.hosts import MSI_LINE, host
from vmm_iova.host import state as module
from vmm_iova.host.state import (
    DeviceNode,
    Memory,
    PagePool,
    State,
    may_lock,
    parse_meminfo,
    read_state,
)
from vmm_iova.host.sysfs import read_sysfs

MEMINFO = "MemTotal:       24684096 kB\nMemFree:         1000000 kB\nMemAvailable:   23282936 kB\n"
HUGE = "kernel/mm/hugepages"


class Tree:
    """A copy of `/sys` and `/proc`."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.write("kernel/iommu_groups/0/reserved_regions", MSI_LINE)

    def write(self, path: str, text: str, below: str = "sys") -> None:
        file = self.top / below / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    @property
    def state(self) -> State:
        return read_sysfs(self.top).state


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "copy")


def test_tree_that_says_nothing_has_no_state(tree: Tree) -> None:
    assert tree.state == State()


def test_memory_is_read_in_bytes(tree: Tree) -> None:
    tree.write("meminfo", MEMINFO, "proc")
    assert tree.state.memory == Memory(24684096 << 10, 23282936 << 10)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MemTotal: 5 kB\n",  # before 3.14
        "MemTotal: -5 kB\nMemAvailable: 1 kB\n",
        "MemTotal: 5\nMemAvailable: 1\n",
        f"MemTotal: {'9' * 5000} kB\nMemAvailable: 1 kB\n",
        "\x1bMemTotal: 5 kB MemAvailable: 1 kB",
    ],
)
def test_memory_that_is_not_said_is_not_known(text: str) -> None:
    assert parse_meminfo(text) is None


def test_pools_are_the_largest_pages_first_and_reserved_pages_are_not_free(tree: Tree) -> None:
    for name, total, free, reserved in (("2048", 512, 500, 100), ("1048576", 8, 8, 0)):
        tree.write(f"{HUGE}/hugepages-{name}kB/nr_hugepages", f"{total}\n")
        tree.write(f"{HUGE}/hugepages-{name}kB/free_hugepages", f"{free}\n")
        tree.write(f"{HUGE}/hugepages-{name}kB/resv_hugepages", f"{reserved}\n")
    assert tree.state.huge_pages == (PagePool(1 << 30, 8, 8), PagePool(2 << 20, 512, 400))


def test_kernel_without_huge_pages_has_an_empty_list_and_a_bare_tree_none(tree: Tree) -> None:
    assert tree.state.huge_pages is None
    tree.write("kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    assert tree.state.huge_pages == ()


@pytest.mark.parametrize("name", ["hugepages-kB", "hugepages-9x9kB", "x", "hugepages-2048MB"])
def test_pool_of_an_unknown_name_is_left_out(tree: Tree, name: str) -> None:
    tree.write(f"{HUGE}/{name}/nr_hugepages", "1\n")
    tree.write(f"{HUGE}/{name}/free_hugepages", "1\n")
    assert tree.state.huge_pages == ()


@pytest.mark.parametrize(
    ("names", "remaps"),
    [
        (("IR-IO-APIC", "IR-PCI-MSI-0000:00:1f.2"), True),
        (("", "DMAR-MSI", "IR-PCI-MSIX-0000:01:00.0"), True),
        (("IO-APIC", "PCI-MSI"), False),
        (("GICv3", "ITS-PCI-MSI-0000:00:01.0"), True),
        (("GICv2", "MSI"), None),
        (("XT-PIC", "DMAR-MSI"), None),
        ((), None),
    ],
)
def test_interrupts_are_isolated_by_the_name_of_their_controller(
    tree: Tree, names: tuple[str, ...], remaps: bool | None
) -> None:
    for number, name in enumerate(names):
        tree.write(f"kernel/irq/{number}/chip_name", f"{name}\n")
    assert tree.state.remaps_interrupts is remaps


@pytest.mark.parametrize(
    ("module", "field"),
    [("vfio_iommu_type1", "unsafe_interrupts"), ("iommufd", "unsafe_iommufd")],
)
@pytest.mark.parametrize(("word", "unsafe"), [("Y\n", True), ("N\n", False), ("maybe\n", None)])
def test_unsafe_interrupts_are_what_each_module_was_told(
    tree: Tree, module: str, field: str, word: str, unsafe: bool | None
) -> None:
    tree.write(f"module/{module}/parameters/allow_unsafe_interrupts", word)
    told = {name: getattr(tree.state, name) for name in ("unsafe_interrupts", "unsafe_iommufd")}
    assert told.pop(field) is unsafe
    assert list(told.values()) == [None]


@pytest.mark.parametrize(
    ("line", "able"),
    [
        ("CapEff:\t000001ffffffffff\n", True),
        ("CapEff:\t0000000000004000\n", True),
        ("CapEff:\t0000000000000000\n", False),
        ("CapEff:\t000001ffffffbfff\n", False),
        ("CapPrm:\t000001ffffffffff\n", None),
        ("", None),
    ],
)
def test_capability_to_lock_is_bit_14_of_the_effective_ones(line: str, able: bool | None) -> None:
    assert may_lock(f"Name:\tpython\n{line}CapBnd:\t0\n") is able


class _Nothing:
    def names(self, path: str) -> list[str]:
        return []

    def number(self, path: str) -> int | None:
        return None

    def line_of(self, path: str) -> str | None:
        return None

    def proc_text(self, path: str) -> str | None:
        return None


def test_nodes_are_listed_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vfio/vfio", "vfio/12", "vfio/devices/vfio0", "iommu"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to("/dev/null")
    (tmp_path / "vfio/file").write_text("")
    (tmp_path / "vfio/gone").symlink_to("nowhere")
    access = os.access

    def guarded(path: str, mode: int) -> bool:
        return access(path, mode) and not path.endswith("/12")

    monkeypatch.setattr(os, "access", guarded)
    found = read_state(_Nothing(), live=True, dev=str(tmp_path)).nodes
    assert found == (
        DeviceNode(f"{tmp_path}/vfio/12", False),
        DeviceNode(f"{tmp_path}/vfio/vfio", True),
        DeviceNode(f"{tmp_path}/vfio/devices/vfio0", True),
        DeviceNode(f"{tmp_path}/iommu", True),
    )


def test_machine_without_vfio_has_no_nodes_and_a_copy_does_not_say(tmp_path: Path) -> None:
    assert read_state(_Nothing(), live=True, dev=str(tmp_path)).nodes == ()
    assert read_state(_Nothing(), live=False, dev=str(tmp_path)) == State()


def test_this_machine_is_asked_itself() -> None:
    found = read_sysfs("/").state
    assert found.memory is not None
    assert 0 < found.memory.available <= found.memory.total
    assert found.may_lock is not None
    assert found.nodes is not None


def test_only_the_first_interrupts_are_looked_at(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_INTERRUPTS", 1)
    tree.write("kernel/irq/1/chip_name", "odd\n")
    tree.write("kernel/irq/2/chip_name", "IR-IO-APIC\n")
    assert tree.state.remaps_interrupts is None


def test_state_of_a_second_source_fills_what_the_first_does_not_know() -> None:
    first = host(state=State(memory=Memory(2, 1), may_lock=False))
    second = host(state=State(memory=Memory(9, 9), remaps_interrupts=True))
    assert first.with_facts(second).state == State(
        memory=Memory(2, 1), may_lock=False, remaps_interrupts=True
    )
