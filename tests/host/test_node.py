# SPDX-License-Identifier: Apache-2.0
"""Parts of snapshots that are equal are read once, and never say what another file says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kit.snapshots import snapshot
from vmm_iova.errors import HostDataError
from vmm_iova.host import node as node_module
from vmm_iova.host.bars import DeviceBar
from vmm_iova.host.facts import Device
from vmm_iova.host.host import Host
from vmm_iova.host.node import File, Node
from vmm_iova.host.snapshot import dump_snapshot, load_snapshot


@pytest.fixture(autouse=True)
def _nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "_PARTS", {})


def changed(path: tuple[Any, ...], value: object, version: int = 2) -> str:
    """A snapshot with one field set to something; deleted for None."""
    data = json.loads(snapshot())
    data["schema"]["version"] = version
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    if value is None:
        del place[path[-1]]
    return json.dumps(data)


class Reads:
    """Reads a number, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, node: Node) -> int:
        self.count += 1
        return node.field("n", int)


def test_equal_parts_are_read_once_in_all_files() -> None:
    read = Reads()

    found = [
        Node({"list": [{"n": 1}, {"n": 2}, {"n": 1}]}, File(name)).each("list", read)
        for name in "ab"
    ]

    assert found == [(1, 2, 1), (1, 2, 1)]
    assert read.count == 2


def test_equal_groups_and_devices_of_two_hosts_are_the_same_objects() -> None:
    first, second = (load_snapshot(snapshot(name).decode(), name) for name in "ab")

    assert first.name != second.name
    assert all(a is b for a, b in zip(first.groups, second.groups, strict=True))
    assert all(a is b for a, b in zip(first.devices, second.devices, strict=True))


def test_fact_without_a_source_names_the_file_and_place_of_each_host() -> None:
    text = changed(("groups", 0, "reserved_regions", 0, "source"), None)

    hosts = [load_snapshot(text, name) for name in ("a.json", "b.json")]

    assert [str((host.groups[0].regions or ())[0].source) for host in hosts] == [
        "a.json groups[0].reserved_regions[0]",
        "b.json groups[0].reserved_regions[0]",
    ]


@pytest.mark.parametrize(
    ("value", "words"), [(True, "true or false"), (1.0, "float"), ("1", "text")]
)
def test_value_of_another_type_is_refused_beside_a_part_that_it_equals(
    value: object, words: str
) -> None:
    path = ("devices", 0, "dma_mask_bits")
    assert load_snapshot(changed(path, 1), "first").devices[0].dma_mask_bits == 1

    with pytest.raises(HostDataError, match=r"second: devices\[0\]\.dma_mask_bits.*" + words):
        load_snapshot(changed(path, value), "second")


def test_part_that_is_refused_is_refused_again_under_the_next_name() -> None:
    text = changed(("groups", 1, "reserved_regions", 0, "start"), "0xzz")

    for name in ("a", "b"):
        with pytest.raises(HostDataError, match=rf"^{name}: groups\[1\]\.reserved_regions\[0\]"):
            load_snapshot(text, name)


def test_device_of_version_1_does_not_take_the_bars_of_version_2() -> None:
    host = Host("x", devices=(Device("d", bars=(DeviceBar(0, 0x1000, 32),)),))
    new = dump_snapshot(host, "test")
    old = new.replace('"version": 2', '"version": 1')

    bars = [load_snapshot(text, "x").devices[0].bars for text in (old, new, old)]

    assert bars == [None, host.devices[0].bars, None]


def test_parts_that_are_kept_are_few_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "_MOST_PARTS", 3)
    read = Reads()
    large = {"n": 1, "more": "x" * node_module._LARGEST_PART}

    Node({"list": [{"n": n} for n in range(10)]}, File("a")).each("list", read)
    kept = node_module._PARTS[read]

    assert 0 < len(kept) <= 3
    Node({"list": [large, large]}, File("a")).each("list", read)
    assert read.count == 12
    assert all(len(said) <= node_module._LARGEST_PART for said in kept)


def test_part_with_what_is_too_deep_to_compare_is_read_each_time() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    read = Reads()

    found = Node({"list": [{"n": 7, "nobody reads": deep}] * 2}, File("a")).each("list", read)

    assert (found, read.count) == ((7, 7), 2)
    while deep:  # taken apart from outside: a deep tree ends in as many calls as it is deep
        deep = deep[0]
