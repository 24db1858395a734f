# SPDX-License-Identifier: Apache-2.0
"""Will a planned guest start: each row in its three states, and the verdict over all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import vmm_iova as vi
from tests.kit.hosts import group, msi, region
from tests.planning.test_assigned import AUDIO, GPU, NIC, PORT, box
from vmm_iova.errors import UnknownNameError
from vmm_iova.host.state import DeviceNode, Memory, PagePool, State
from vmm_iova.planning.start import Start, StartRow, will_start

GIB = 1 << 30
NODES = tuple(DeviceNode(path, True) for path in ("/dev/vfio/2", "/dev/vfio/vfio"))
GOOD = State(
    memory=Memory(64 * GIB, 32 * GIB),
    huge_pages=(PagePool(GIB, 16, 16), PagePool(2 << 20, 0, 0)),
    nodes=NODES,
    remaps_interrupts=True,
    unsafe_interrupts=False,
    may_lock=False,
)
UNLIMITED = vi.Limits(65535, -1)


def asked(host: vi.Host, *devices: str, guest: vi.Guest | None = None, **how: Any) -> Start:
    """Plan a guest of 4 GiB, and ask whether it starts."""
    usable = host.usable(devices=devices or None)
    layout = vi.plan(guest or vi.Guest("q35", "4G"), usable)
    return will_start(host, layout, vi.budget(layout), devices, **how)


def ready(**fields: Any) -> vi.Host:
    """A host on which a guest with the network card starts."""
    return replace(box(), **{"state": GOOD, "limits": UNLIMITED, **fields})


def row(start: Start, what: str) -> StartRow:
    (found,) = [item for item in start.rows if item.what == what]
    return found


def with_device(host: vi.Host, name: str, **fields: Any) -> vi.Host:
    """The host with a device changed."""
    devices = (replace(item, **fields) if item.name == name else item for item in host.devices)
    return replace(host, devices=tuple(devices))


# -- the verdict -----------------------------------------------------------------------------------


def test_guest_on_a_host_that_has_everything_starts_and_works() -> None:
    start = asked(ready(), NIC)
    assert {item.what: item.state for item in start.rows} == dict.fromkeys(
        (
            "IOMMU", "addresses", "assignable", "driver", "group", "BARs", "nodes", "interrupts",
            "memory", "huge pages", "locked memory", "map calls",
        ),
        "ok",
    )  # fmt: skip
    assert start.verdict == "starts and works"


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ([("ok", True)], "starts and works"),
        ([("ok", True), ("not known", True)], "not known"),
        ([("not known", True), ("not ok", True)], "does not start"),
        ([("not ok", False), ("not ok", True)], "does not start"),
        ([("ok", True), ("not ok", False)], "starts, but"),
        ([("not known", True), ("not ok", False)], "not known"),
        ([], "starts and works"),
    ],
)
def test_verdict_is_the_worst_that_is_certain(states: list[tuple[Any, bool]], verdict: str) -> None:
    rows = tuple(StartRow("x", state, "y", fatal=fatal) for state, fatal in states)
    assert Start(rows).verdict == verdict


def test_host_without_state_leaves_it_open_and_says_what_would_settle_it() -> None:
    start = asked(box(), NIC)
    assert start.verdict == "not known"
    unknown = start.rows_that_are("not known")
    assert [item.what for item in unknown] == ["nodes", "interrupts", "memory", "locked memory"]
    assert all("capture it there" in text for item in unknown for text in item.do)


def test_rows_that_stop_the_guest_come_first() -> None:
    host = ready(state=replace(GOOD, remaps_interrupts=False, unsafe_interrupts=True))
    start = asked(with_device(host, NIC, driver="mlx5_core"), NIC)
    assert [item.what for item in start.rows_that_are("not ok")] == ["driver", "interrupts"]


def test_guest_without_named_devices_is_not_settled() -> None:
    start = asked(ready())
    assert row(start, "devices").do == ("the guest's devices: name them with -s BDF,BDF",)
    assert start.verdict == "not known"


def test_device_that_is_not_there_is_refused() -> None:
    host = ready()
    layout = vi.plan(vi.Guest("q35", "4G"), host.usable())
    with pytest.raises(UnknownNameError):
        will_start(host, layout, vi.budget(layout), ["0000:09:00.0"])
    with pytest.raises(UnknownNameError):
        will_start(host, layout, vi.budget(layout), managed=["0000:09:00.0"])


# -- IOMMU and addresses ---------------------------------------------------------------------------


def test_iommu_is_in_use_not_in_use_or_not_known() -> None:
    assert row(asked(ready(), NIC), "IOMMU").state == "ok"
    assert row(asked(ready(sysfs=False), NIC), "IOMMU").state == "not known"
    plain = replace(box().group("2"), translated=False)
    host = ready(groups=(box().group("1"), plain))
    layout = vi.plan(vi.Guest("q35", "4G"), ready().usable())
    found = row(will_start(host, layout, vi.budget(layout), [NIC]), "IOMMU")
    assert (found.state, found.fatal) == ("not ok", True)
    assert "intel_iommu=on" in found.do[0]


def test_machine_that_cannot_cut_ram_has_no_addresses() -> None:
    hole = group("1", msi(), region(0x80000000, 0x800FFFFF), devices=(PORT, GPU, AUDIO))
    host = ready(groups=(hole, box().group("2")))
    guest = vi.Guest("i440fx", "16G", pci64=0)
    found = row(asked(host, GPU, guest=guest), "addresses")
    assert (found.state, found.fatal) == ("not ok", True)


def test_bar_that_no_peer_reaches_is_missed_but_stops_nothing() -> None:
    guest = vi.Guest(
        "q35", "4G", phys_bits=52, bars=[vi.Bar("gpu", "16G")], firmware="ovmf-2025.02"
    )
    narrow = replace(
        ready(), kernel_ranges=(), units=(vi.IommuUnit("dmar0", cap=0xC0000020E60262),)
    )
    start = asked(narrow, NIC, guest=guest)
    found = row(start, "peers")
    assert (found.state, found.fatal) == ("not ok", False)
    assert found.text == "peer-to-peer: no other device reaches gpu"
    assert start.verdict == "starts, but"


def test_rom_that_no_peer_reaches_is_nothing_amiss() -> None:
    host = ready()
    guest = vi.Guest("q35", "4G", bars=vi.device_bars(host, [GPU]))
    assert "peers" not in {item.what for item in asked(host, GPU, guest=guest).rows}


@pytest.mark.parametrize(
    ("regions", "state"),
    [
        ((msi("2"),), "ok"),
        ((msi("2"), region(0x1000000, 0x1FFFFFF, "direct", "2")), "not ok"),
        (None, "not known"),
    ],
)
def test_device_is_assignable_by_its_direct_regions(regions: Any, state: str) -> None:
    changed = replace(box().group("2"), regions=regions)
    found = row(asked(ready(groups=(box().group("1"), changed)), NIC), "assignable")
    assert found.state == state
    assert bool(found.do) is (state != "ok")


# -- devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "sysfs", "state"),
    [
        ("vfio-pci", True, "ok"),
        ("mlx5_vfio_pci", True, "ok"),
        ("mlx5_core", True, "not ok"),
        ("pci-stub", True, "not ok"),  # keeps the group viable, and hands out nothing
        (None, True, "not ok"),
        (None, False, "not known"),
    ],
)
def test_driver_of_a_device_is_bound_foreign_or_not_known(
    driver: str | None, sysfs: bool, state: str
) -> None:
    found = row(asked(with_device(ready(sysfs=sysfs), NIC, driver=driver), NIC), "driver")
    assert found.state == state
    if state == "not ok":
        assert f"echo {NIC} > /sys/bus/pci/drivers_probe" in found.do[0]
        assert (driver or "no driver") in found.text


def test_each_device_that_must_be_bound_has_its_command() -> None:
    host = with_device(with_device(ready(), NIC, driver=None), GPU, driver="nouveau")
    found = row(asked(host, GPU, NIC), "driver")
    assert found.text == f"{GPU} is bound to nouveau, and 1 more"
    assert [text.split()[1] for text in found.do] == [GPU, NIC]


def test_device_that_its_manager_binds_needs_no_driver() -> None:
    host = with_device(ready(), NIC, driver="mlx5_core")
    start = asked(host, NIC, manager="libvirt", managed=[NIC])
    assert row(start, "driver").text == "libvirt binds the devices"
    assert start.verdict == "starts and works"


def test_group_with_a_foreign_member_is_not_whole() -> None:
    start = asked(ready(), GPU)
    found = row(start, "group")
    assert (found.state, found.fatal) == ("not ok", True)
    assert found.text == f"a host driver has part of group 1: {AUDIO} to snd_hda_intel"
    assert found.do[0].startswith(f"bind {AUDIO} to vfio-pci as well")
    assert start.verdict == "does not start"


@pytest.mark.parametrize(
    ("driver", "sysfs", "state"),
    [
        ("vfio-pci", True, "ok"),
        ("pci-stub", True, "ok"),
        (None, True, "ok"),
        (None, False, "not known"),
        ("snd_hda_intel", False, "not ok"),
    ],
)
def test_group_goes_by_the_drivers_of_its_other_members(
    driver: str | None, sysfs: bool, state: str
) -> None:
    assert row(asked(ready(), GPU, AUDIO), "group").state == "ok"  # the bridge keeps its driver
    host = with_device(ready(sysfs=sysfs), AUDIO, driver=driver)
    assert row(asked(host, GPU), "group").state == state


def test_member_that_nothing_describes_is_not_known() -> None:
    whole = replace(box().group("2"), devices=(NIC, "0000:02:00.1"))
    found = row(asked(ready(groups=(box().group("1"), whole)), NIC), "group")
    assert found.state == "not known"
    assert "0000:02:00.1" in found.text


@pytest.mark.parametrize(
    ("bars", "state"),
    [
        ((vi.DeviceBar(0, 1 << 20),), "ok"),
        ((), "ok"),
        ((vi.DeviceBar(0, 1 << 35, assigned=False),), "not ok"),
        ((vi.DeviceBar(0, 1 << 19, 32, kind=vi.BarKind.ROM, assigned=False),), "ok"),
        (None, "not known"),
    ],
)
def test_bars_have_addresses_on_the_host_or_nothing_drives_the_device(
    bars: Any, state: str
) -> None:
    found = row(asked(with_device(ready(), NIC, bars=bars), NIC), "BARs")
    assert found.state == state
    if state == "not ok":
        assert "Above 4G Decoding" in found.do[0]


@pytest.mark.parametrize(
    ("paths", "state", "text"),
    [
        (None, "not known", "who may open them"),
        ((), "not ok", "/dev/vfio/vfio is not there"),
        (("/dev/vfio/vfio",), "not ok", "/dev/vfio/2 is not there"),
        (("/dev/vfio/vfio", "/dev/vfio/2"), "ok", "/dev/vfio/vfio, /dev/vfio/2 may be read"),
        (("/dev/vfio/vfio", "-/dev/vfio/2"), "not ok", "/dev/vfio/2 may not be read"),
        (("-/dev/vfio/vfio", "/dev/vfio/2"), "not ok", "/dev/vfio/vfio may not be read"),
    ],
)
def test_nodes_are_there_and_may_be_opened(
    paths: tuple[str, ...] | None, state: str, text: str
) -> None:
    nodes = None
    if paths is not None:
        nodes = tuple(DeviceNode(path.lstrip("-"), path[0] != "-") for path in paths)
    found = row(asked(ready(state=replace(GOOD, nodes=nodes)), NIC), "nodes")
    assert (found.state, bool(found.do)) == (state, state != "ok")
    assert text in found.text


def test_node_of_a_group_is_not_missed_before_a_device_is_bound() -> None:
    host = with_device(ready(), NIC, driver="mlx5_core")
    state = replace(GOOD, nodes=(DeviceNode("/dev/vfio/vfio", True),))
    start = asked(replace(host, state=state), NIC)
    assert [item.what for item in start.rows_that_are("not ok")] == ["driver"]


def test_iommufd_has_nodes_of_its_own() -> None:
    def nodes(*paths: str) -> StartRow:
        state = replace(GOOD, nodes=tuple(DeviceNode(path, True) for path in paths))
        return row(asked(ready(state=state), NIC, via="iommufd"), "nodes")

    assert nodes("/dev/iommu", "/dev/vfio/devices/vfio0").state == "ok"
    mixed = (DeviceNode("/dev/iommu", True), DeviceNode("/dev/vfio/devices/vfio0", True))
    mixed += (DeviceNode("/dev/vfio/devices/vfio1", False),)
    host = ready(state=replace(GOOD, nodes=mixed))
    assert row(asked(host, NIC, via="iommufd"), "nodes").state == "not known"
    assert "/dev/iommu is not there" in nodes("/dev/vfio/vfio", "/dev/vfio/2").text
    assert "CONFIG_VFIO_DEVICE_CDEV" in nodes("/dev/iommu").do[0]


def test_manager_opens_nodes_itself() -> None:
    state = replace(GOOD, nodes=())
    assert row(asked(ready(state=state), NIC, manager="proxmox"), "nodes").state == "ok"


# -- interrupts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remaps", "unsafe", "via", "state", "fatal"),
    [
        (True, False, "type1", "ok", True),
        (None, True, "type1", "not known", True),
        (False, False, "type1", "not ok", True),
        (False, None, "type1", "not ok", True),
        (False, True, "type1", "not ok", False),
        (False, True, "iommufd", "not ok", True),  # it has a parameter of its own
    ],
)
def test_interrupts_are_remapped_or_the_host_accepts_the_risk(
    remaps: bool | None, unsafe: bool | None, via: Any, state: str, fatal: bool
) -> None:
    host = ready(state=replace(GOOD, remaps_interrupts=remaps, unsafe_interrupts=unsafe))
    found = row(asked(host, NIC, via=via), "interrupts")
    assert (found.state, found.fatal) == (state, fatal)


@pytest.mark.parametrize(
    ("via", "told", "fatal"),
    [
        ("type1", {"unsafe_interrupts": True}, False),
        ("type1", {"unsafe_iommufd": True}, True),
        ("iommufd", {"unsafe_iommufd": True}, False),
        ("iommufd", {"unsafe_interrupts": True}, True),
    ],
)
def test_each_backend_has_its_own_leave_to_go_without_isolated_interrupts(
    via: Any, told: dict[str, bool], fatal: bool
) -> None:
    state = replace(GOOD, remaps_interrupts=False, **told)
    assert row(asked(ready(state=state), NIC, via=via), "interrupts").fatal is fatal


def test_s390_isolates_interrupts_always() -> None:
    host = ready(state=replace(GOOD, remaps_interrupts=None), arch="s390x")
    assert row(asked(host, NIC), "interrupts").state == "ok"


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "state", "fatal"),
    [
        (Memory(8 * GIB, 4 * GIB), "ok", True),
        (Memory(8 * GIB, 4 * GIB - 1), "not ok", False),
        (Memory(4 * GIB - 1, 2 * GIB), "not ok", True),
        (None, "not known", True),
    ],
)
def test_memory_is_free_occupied_or_too_little(
    memory: Memory | None, state: str, fatal: bool
) -> None:
    found = row(asked(ready(state=replace(GOOD, memory=memory)), NIC), "memory")
    assert (found.state, found.fatal) == (state, fatal)
    if state == "not ok":
        assert "free -g" in found.do[0]


def test_remedy_for_memory_has_the_size_that_is_free() -> None:
    host = ready(state=replace(GOOD, memory=Memory(8 * GIB, 3 * GIB + 5)))
    assert "give the guest 3 GiB of RAM or less" in row(asked(host, NIC), "memory").do[0]


@pytest.mark.parametrize(
    ("pools", "state", "text"),
    [
        ((PagePool(GIB, 8, 4),), "ok", "4 of 1 GiB, 4 free"),
        ((PagePool(GIB, 8, 3),), "not ok", "4 of 1 GiB, 3 free"),
        ((PagePool(2 << 20, 9000, 9000),), "not ok", "none of 1 GiB"),
        ((), "not ok", "none of 1 GiB"),
        (None, "not known", "how many huge pages"),
    ],
)
def test_huge_pages_are_enough_too_few_or_not_known(pools: Any, state: str, text: str) -> None:
    host = ready(state=replace(GOOD, huge_pages=pools))
    start = asked(host, NIC, guest=vi.Guest("q35", "4G", page_size="1G"))
    found = row(start, "huge pages")
    assert (found.state, found.fatal) == (state, True)
    assert text in found.text
    assert row(start, "memory").text == "all RAM is in huge pages"
    if state == "not ok":
        assert "hugepagesz=1G hugepages=4" in found.do[0]


def test_nodes_with_pages_of_their_own_are_counted_apart() -> None:
    nodes = [vi.Node("2G", "1G"), vi.Node("2G", "2M"), vi.Node("1G")]
    pools = (PagePool(GIB, 2, 2), PagePool(2 << 20, 1024, 1023))
    host = ready(state=replace(GOOD, huge_pages=pools, memory=Memory(GIB, GIB)))
    start = asked(host, NIC, guest=vi.Guest("q35", nodes=nodes))
    assert row(start, "huge pages").text == "1024 of 2 MiB, 1023 free"
    assert row(start, "memory").state == "ok"


@pytest.mark.parametrize(
    ("limit", "may_lock", "state"),
    [
        (-1, False, "ok"),
        (5 * GIB, False, "ok"),
        (4 * GIB, False, "not known"),  # QEMU maps firmware and video memory, too
        (4 * GIB - 1, False, "not ok"),
        (8 << 20, True, "ok"),
        (8 << 20, None, "not known"),  # it may have been root
        (None, False, "not known"),
        (None, True, "ok"),
    ],
)
def test_locked_memory_is_within_the_limit_that_counts(
    limit: int | None, may_lock: bool | None, state: str
) -> None:
    host = ready(limits=vi.Limits(65535, limit), state=replace(GOOD, may_lock=may_lock))
    found = row(asked(host, NIC), "locked memory")
    assert found.state == state
    if state == "not ok":
        assert f"ulimit -l {5 << 20}" in found.do[0]


def test_locked_memory_counts_once_for_each_container() -> None:
    host = ready(limits=vi.Limits(65535, 6 * GIB))
    guest = vi.Guest("q35", "4G", viommu=True, devices=2)
    found = row(asked(host, NIC, guest=guest), "locked memory")
    assert found.text == "8 GiB in 2 containers, and the limit is 6 GiB"
    assert found.state == "not ok"


@pytest.mark.parametrize(
    ("manager", "hard_limit", "devices", "state"),
    [
        ("libvirt", None, 1, "ok"),
        ("libvirt", None, 2, "not known"),
        ("libvirt", 5 * GIB, 1, "ok"),
        ("libvirt", 3 * GIB, 1, "not ok"),
        ("proxmox", None, 2, "ok"),
    ],
)
def test_manager_sets_the_limit_unless_the_definition_does(
    manager: Any, hard_limit: int | None, devices: int, state: str
) -> None:
    host = ready(limits=vi.Limits(65535, 8 << 20))
    guest = vi.Guest("q35", "4G", viommu=devices > 1, devices=devices)
    start = asked(host, NIC, guest=guest, manager=manager, hard_limit=hard_limit)
    assert row(start, "locked memory").state == state


@pytest.mark.parametrize(
    ("entries", "sysfs", "via", "state"),
    [
        (65535, True, "type1", "ok"),
        (1, True, "type1", "not ok"),
        (1, True, "iommufd", "ok"),
        (None, True, "type1", "ok"),  # the kernel's default: the module is not loaded yet
        (None, False, "type1", "not known"),
    ],
)
def test_map_calls_are_within_the_limit(
    entries: int | None, sysfs: bool, via: Any, state: str
) -> None:
    host = ready(limits=vi.Limits(entries, -1), sysfs=sysfs)
    found = row(asked(host, NIC, via=via), "map calls")
    assert found.state == state
    if state == "not ok":
        assert "dma_entry_limit=2" in found.do[0]


def test_more_pieces_than_kvm_has_slots_do_not_start() -> None:
    host = ready()
    layout = vi.plan(vi.Guest("q35", "4G"), host.usable(devices=[NIC]))
    cost = replace(vi.budget(layout), slots=40000)
    found = row(will_start(host, layout, cost, [NIC]), "map calls")
    assert (found.state, found.fatal) == ("not ok", True)


# -- limits that count -----------------------------------------------------------------------------


def test_limit_of_locked_memory_does_not_count_with_the_capability() -> None:
    host = ready(limits=vi.Limits(65535, 8 << 20), state=replace(GOOD, may_lock=True))
    assert host.usable().limits == vi.Limits(65535, None)
    assert ready(limits=vi.Limits(1, 2)).usable().limits == vi.Limits(1, 2)


# -- limits, exactly -------------------------------------------------------------------------------

MIB = 1 << 20


@pytest.mark.parametrize(
    ("what", "cost", "fields", "state", "text", "do"),
    [
        ("map calls", {"entries": 9}, {"limits": vi.Limits(9, -1)}, "ok", "9 of 9", None),
        (
            "map calls", {"entries": 10}, {"limits": vi.Limits(9, -1)}, "not ok", "10 of 9",
            "dma_entry_limit=10 (",
        ),
        ("map calls", {"slots": 32764}, {}, "ok", "2 of 65535", None),
        (
            "map calls", {"slots": 32765}, {}, "not ok",
            "32765 pieces of RAM, and KVM takes 32764 memory slots", None,
        ),
        (
            "locked memory", {"locked_bytes": GIB}, {"limits": vi.Limits(9, GIB + 64 * MIB)}, "ok",
            "1 GiB, and the limit is 1088 MiB", None,
        ),
        (
            "locked memory", {"locked_bytes": GIB}, {"limits": vi.Limits(9, GIB + 64 * MIB - 1)},
            "not known", "1 GiB, and the limit is", "ulimit -l 2097152 (KiB)",
        ),
        (
            "locked memory", {"locked_bytes": GIB}, {"limits": vi.Limits(9, GIB)},
            "not known", "1 GiB, and the limit is 1 GiB: little is left", "ulimit -l 2097152 (",
        ),
        (
            "locked memory", {"locked_bytes": GIB + 1}, {"limits": vi.Limits(9, GIB)},
            "not ok", "", "ulimit -l 2097153 (KiB), LimitMEMLOCK=2147483649 ",
        ),
        ("locked memory", {"locked_bytes": 1}, {"limits": vi.Limits(9, 0)}, "not ok", "1 B", None),
        (
            "locked memory", {"locked_bytes": GIB, "containers": 1}, {"limits": vi.Limits(9, -1)},
            "ok", "1 GiB, and there is no limit", None,
        ),
        (
            "locked memory", {"locked_bytes": GIB, "containers": 2}, {"limits": vi.Limits(9, -1)},
            "ok", "1 GiB in 2 containers, and there is no limit", None,
        ),
    ],
)  # fmt: skip
def test_limit_of_the_host_is_enough_exactly(
    what: str, cost: dict[str, int], fields: dict[str, Any], state: str, text: str, do: str | None
) -> None:
    host = ready(**fields)
    layout = vi.plan(vi.Guest("q35", "4G"), host.usable(devices=[NIC]))
    found = row(will_start(host, layout, replace(vi.budget(layout), **cost), [NIC]), what)
    assert (found.state, found.text[: len(text)]) == (state, text)
    if do is not None:
        assert found.do[0].startswith(do)


@pytest.mark.parametrize(
    ("available", "total", "state", "fatal", "size"),
    [
        (4 * GIB, 4 * GIB, "ok", True, None),
        (4 * GIB - 1, 4 * GIB, "not ok", False, "3 GiB"),
        (GIB, 4 * GIB, "not ok", False, "1 GiB"),
        (GIB - 1, 4 * GIB, "not ok", False, "1023 MiB"),
        (GIB, 4 * GIB - 1, "not ok", True, "1 GiB"),
    ],
)
def test_memory_of_the_host_is_enough_exactly(
    available: int, total: int, state: str, fatal: bool, size: str | None
) -> None:
    host = ready(state=replace(GOOD, memory=Memory(total, available)))
    found = row(asked(host, NIC), "memory")
    assert (found.state, found.fatal) == (state, fatal)
    assert (size is None) or size in found.do[0]


@pytest.mark.parametrize(
    ("pages", "counted"), [(None, True), (4096, True), (8192, False), (2 * MIB, False)]
)
def test_memory_counts_what_is_not_in_huge_pages(pages: int | None, counted: bool) -> None:
    host = ready(state=replace(GOOD, memory=Memory(GIB, GIB)))
    layout = vi.plan(vi.Guest("q35", "4G"), host.usable(devices=[NIC]))
    layout = replace(layout, page_sizes=((None, 4 * GIB, pages),))
    found = row(will_start(host, layout, vi.budget(layout), [NIC]), "memory")
    assert found.state == ("not ok" if counted else "ok")


@pytest.mark.parametrize(("free", "state"), [(2, "ok"), (1, "not ok")])
def test_huge_pages_are_enough_exactly(free: int, state: str) -> None:
    pools = (PagePool(2 * GIB, 9, 9), PagePool(GIB, 9, free))
    host = ready(state=replace(GOOD, huge_pages=pools))
    found = row(asked(host, NIC, guest=vi.Guest("q35", "2G", page_size="1G")), "huge pages")
    assert (found.state, found.text) == (state, f"2 of 1 GiB, {free} free")


def test_groups_are_named_one_or_several() -> None:
    assert row(asked(ready(), NIC), "group").text == "no host driver has another device of group 2"
    host = with_device(with_device(ready(), AUDIO, driver="vfio-pci"), PORT, driver="vfio-pci")
    both = row(asked(with_device(host, GPU, driver="vfio-pci"), NIC, GPU), "group").text
    assert both == "no host driver has another device of groups 1, 2"
