"""What `lab.vmm` compares: nothing printed is left out, and its tables name what there is."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
import vmm_iova as vi
from lab.vmm.binaries import Qemu
from lab.vmm.compare import differences
from lab.vmm.matrix import Config, configs
from lab.vmm.observe import Observed
from lab.vmm.parts import PARTS
from lab.vmm.planted import MACHINES, UNREAD, planted, sample
from lab.vmm.promises import PROMISES, printed, remedied, untried
from lab.vmm.tables import Tree, e820, srat
from vmm_iova.ranges import GIB, AddrRange

QEMU = Qemu("test", Path("/"), (10, 0), "1.16.3", "2025.02")
LOW, HIGH = AddrRange(0, 0x7FFF_FFFF), AddrRange.from_size(4 * GIB, 6 * GIB)
EIGHT = Config("map", "q35", 8 * GIB, "Skylake-Server", 46)
SEEN = Observed(ram=(LOW, HIGH), window=AddrRange.from_size(10 * GIB, 32 * GIB))


def test_option_that_is_printed_for_qemu_is_started() -> None:
    assert untried() == {}


def test_promise_of_an_option_that_nothing_prints_is_gone() -> None:
    assert PROMISES.keys() - printed().keys() == set()


@pytest.mark.parametrize("machine", PARTS)
def test_part_that_is_compared_is_in_the_machine_file(machine: str) -> None:
    model = vi.load_machine(machine)
    names = {item.name for item in (*model.fixed, *model.above)}
    known = {name for parts in PARTS.values() for name in parts}
    assert names <= known
    if not machine.startswith("virt-"):
        assert PARTS[machine].keys() <= names


@pytest.mark.parametrize("machine", MACHINES)
def test_number_of_a_machine_file_is_planted(machine: str) -> None:
    changes = list(planted(machine))
    assert changes
    assert all(len(set(change.others)) == len(change.others) for change in changes)
    assert sample(machine, 1) == sample(machine, 1)


def test_number_that_is_not_read_from_qemu_exists() -> None:
    keys = {change.key for machine in MACHINES for change in planted(machine)}
    for name in UNREAD:
        key = name.partition(":")[2] or name
        assert any(key in (known, *known.split(".")) or known.startswith(key) for known in keys)


def test_same_seed_draws_the_same() -> None:
    assert list(configs(3, 20, 20, 5, 20)) == list(configs(3, 20, 20, 5, 20))
    assert list(configs(3, 20, 0, 0, 0)) != list(configs(4, 20, 0, 0, 0))


def test_plan_that_agrees_has_no_difference() -> None:
    assert differences(EIGHT, QEMU, SEEN) == []


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (replace(SEEN, ram=(LOW, AddrRange.from_size(5 * GIB, 6 * GIB))), "RAM"),
        (replace(SEEN, window=None), "64-bit window"),
        (replace(SEEN, device_memory=HIGH), "plugged memory"),
        (replace(SEEN, e820=((LOW, 1),)), "e820 usable"),
        (replace(SEEN, nodes={0: [LOW]}), "node 0"),
        (replace(SEEN, nodes={0: [LOW, HIGH], 1: [HIGH]}), "node 1"),
        (replace(SEEN, regions=(("ioapic", AddrRange(0xFEC0_1000, 0xFEC0_1FFF)),)), "I/O APIC"),
        (replace(SEEN, regions=(("new", AddrRange(0xFE00_0000, 0xFF00_FFFF)),)), "has nothing"),
        (Observed(refused="no"), "QEMU refuses (no)"),
    ],
)
def test_real_thing_that_is_otherwise_is_a_difference(seen: Observed, text: str) -> None:
    assert any(text in found for found in differences(EIGHT, QEMU, seen))


def test_plan_that_is_refused_while_qemu_starts_is_a_difference() -> None:
    (text,) = differences(replace(EIGHT, ram=600 * GIB, bits=39), QEMU, SEEN)
    assert text.startswith("the plan is refused")


def test_fix_of_a_refusal_changes_the_guest() -> None:
    assert remedied(EIGHT, "--phys-bits 41 (QEMU: ...)") == replace(EIGHT, bits=41)
    assert remedied(EIGHT, "--ram 7GiB fits") == replace(EIGHT, ram=7 * GIB)
    assert remedied(EIGHT, "another machine") is None


def test_tables_of_a_guest_are_read() -> None:
    assert e820(struct.pack("<QQI", 0, 1 << 20, 1)) == ((AddrRange(0, 0xF_FFFF), 1),)
    one = struct.pack("<BBIHQQII", 1, 40, 1, 0, 1 << 32, GIB, 0, 1) + bytes(8)
    plugged = struct.pack("<BBIHQQII", 1, 40, 1, 0, 1 << 33, GIB, 0, 3) + bytes(8)
    table = b"SRAT" + struct.pack("<I", 48 + 80) + bytes(40) + one + plugged
    assert srat(b"FACP" + table) == {1: [AddrRange.from_size(4 * GIB, GIB)]}


def test_device_tree_is_read() -> None:
    names = b"reg\0numa-node-id\0"
    reg = struct.pack(">QQ", 0x4000_0000, GIB)
    body = struct.pack(">I", 1) + b"\0\0\0\0"
    body += struct.pack(">I", 1) + b"memory@40000000\0"
    body += struct.pack(">III", 3, len(reg), 0) + reg + struct.pack(">IIII", 3, 4, 4, 1)
    body += struct.pack(">III", 2, 2, 9)
    head = struct.pack(">10I", 0xD00DFEED, 0, 40, 40 + len(body), 0, 17, 16, 0, len(names), 0)
    assert Tree(head + body + names).memory() == {1: [AddrRange.from_size(0x4000_0000, GIB)]}
