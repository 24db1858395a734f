# SPDX-License-Identifier: Apache-2.0
"""Snapshots: the facts of a host as JSON, written, read back, and damaged."""

import enum
import json
import string
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.hosts import (
    CAP_48,
    TOP,
    Source,
    device,
    empty_region,
    group,
    kernel_list,
    msi,
    region,
    where,
    x86,
)
from vmm_iova.errors import HostDataError
from vmm_iova.host.bars import BarKind, DeviceBar
from vmm_iova.host.facts import (
    Device,
    DmaWindow,
    EmptyRegion,
    Group,
    IommuUnit,
    KernelRanges,
    Limits,
    Note,
    RegionKind,
    ReservedRegion,
    StatedWidth,
)
from vmm_iova.host.host import Host
from vmm_iova.host.load import bundled_hosts
from vmm_iova.host.snapshot import SCHEMA_NAME, SCHEMA_VERSION, dump_snapshot, load_snapshot
from vmm_iova.host.state import DeviceNode, Memory, PagePool, State
from vmm_iova.host.text import parse_text
from vmm_iova.plain import one_line
from vmm_iova.ranges import AddrRange, MappableRanges


def bundled():
    bundle = files("vmm_iova.host") / "bundled"
    return {
        host.name: host
        for name in bundled_hosts()
        if (bundle / f"{name}.txt").is_file()
        for host in parse_text((bundle / f"{name}.txt").read_text("utf-8"), name)
    }


BUNDLED = bundled()

RICH = Host(
    "rich",
    origin="sysfs of this machine",
    arch="x86_64",
    release="6.8.0-41-generic",
    page_size=0x1000,
    groups=(
        Group(
            "1",
            devices=("0000:01:00.0", "0000:01:00.1"),
            regions=(region(0x0, 0xFFFFFF, "direct-relaxable"), msi()),
            empty_regions=(empty_region(0x1000, "direct"),),
            type="DMA-FQ",
        ),
        Group("2", regions=()),  # an empty file
        Group("3", regions=None),  # no such file
        Group("4", regions=None, unreadable="/sys/x: Permission denied"),
        Group("5", regions=None, damaged="/sys/x:1: not a region line"),
        group("6", region(0x1000, 0x1FFF, "new-word", "6")),
    ),
    devices=(
        device("0000:01:00.0", "1", "dmar0"),
        Device("0000:01:00.1", "1", "dmar0", 64, "vfio-pci", 0x20000, bars=()),
        Device("lone"),
        Device(
            "0000:02:00.0",
            bars=(
                DeviceBar(0, 0x1000000, 32),
                DeviceBar(1, 1 << 35, 64, prefetchable=True, sizes=(1 << 28, 1 << 35)),
                DeviceBar(3, None, 64, assigned=False),
                DeviceBar(0, 0x80000, 32, kind=BarKind.ROM),
                DeviceBar(0, 0x800000, 64, kind=BarKind.VF),
            ),
        ),
    ),
    units=(
        IommuUnit("dmar0", CAP_48, 0xF020DE, None, Source("/sys/class/iommu/dmar0")),
        IommuUnit("ivhd0", None, None, "58f77ef22294ade:810", Source("/sys/class/iommu/ivhd0")),
    ),
    kernel_ranges=(
        kernel_list(
            (0x0, 0xFFFF), (0x10000, TOP), groups=("1", "2"), granule=0x1000, page_sizes=0x40201000
        ),
        kernel_list(),  # an empty list is not the same as none
    ),
    windows=(DmaWindow("dev", AddrRange(0x100000000, 0x8FFFFFFFF), Source("VFIO")),),
    widths=(StatedWidth(39, Source("dmesg", 7)),),
    log_regions=(
        ReservedRegion(
            AddrRange(0xD8D28000, 0xD8D46FFF), RegionKind.FIRMWARE, "RMRR", Source("dmesg", 10)
        ),
    ),
    limits=Limits(65535, -1),
    notes=(Note("odd"), Note("quiet", False)),
    state=State(
        memory=Memory(1 << 38, 1 << 37),
        huge_pages=(PagePool(1 << 30, 16, 8), PagePool(1 << 21, 0, 0)),
        nodes=(DeviceNode("/dev/vfio/12", True), DeviceNode("/dev/vfio/vfio", False)),
        remaps_interrupts=True,
        unsafe_interrupts=False,
        unsafe_iommufd=True,
        may_lock=True,
    ),
)


def dump(host):
    return dump_snapshot(host, "vmm-iova test")


def load(text):
    return load_snapshot(text, "snap.json")


# -- round trip ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_bundled_host_comes_back_the_same(name):
    assert load(dump(BUNDLED[name])) == BUNDLED[name]


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_bundled_host_is_written_the_same_again(name):
    text = dump(BUNDLED[name])
    assert dump(load(text)) == text


def test_host_with_every_fact_comes_back_the_same():
    assert load(dump(RICH)) == RICH
    assert dump(load(dump(RICH))) == dump(RICH)


@pytest.mark.parametrize("limits", [Limits(), Limits(0, 0), Limits(65535, -1), Limits(1, 1 << 40)])
def test_limits_come_back_the_same(limits):
    assert load(dump(x86(limits=limits))).limits == limits


@pytest.mark.parametrize(
    "source",
    [
        Source("a"),
        Source("a", 7),
        Source("VFIO 0000:01:00.0"),
        Source("pci0000:00"),  # a colon and digits, but no line
        Source("a:b:c", 3),
        Source("C:\\sys", 1),
    ],
    ids=str,
)
def test_source_is_written_the_same_again(source):
    text = dump(x86(origin="a test", widths=(StatedWidth(39, source),)))
    assert dump(load(text)) == text


def test_word_of_sysfs_that_is_a_kind_of_ours_stays_unknown():
    odd = ReservedRegion(AddrRange(0, 0xFFF), RegionKind.UNKNOWN, "firmware", where("1"), "1")
    (found,) = load(dump(x86(group("1", odd)))).groups
    assert found.regions == (odd,)


def test_snapshot_is_judged_like_the_host_it_was_taken_of():
    for_both = {"groups": ["1"], "strict": True}
    assert load(dump(RICH)).usable(**for_both) == RICH.usable(**for_both)


# -- form ----------------------------------------------------------------------------------------


def test_snapshot_is_ascii_json_with_one_newline_at_the_end():
    text = dump(x86(notes=(Note("na\u00efve \U0001f600"),)))
    assert text.isascii()
    assert text.endswith("}\n")
    assert not text.endswith("\n\n")


def test_snapshot_says_schema_and_generator_first():
    data = json.loads(dump(RICH))
    assert list(data)[:2] == ["schema", "generator"]
    assert data["schema"] == {"name": SCHEMA_NAME, "version": SCHEMA_VERSION}
    assert data["generator"] == "vmm-iova test"


def numbers(node):
    """Every JSON number below a node, with its key."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, value


def test_addresses_and_registers_are_hex_strings():
    # JSON numbers above 2^53 do not survive JavaScript and jq
    assert {key for key, _ in numbers(json.loads(dump(RICH)))} <= {
        "version",
        "bits",
        "dma_mask_bits",
        "dma_entries",
        "index",
        "total",
        "free",
    }


def test_field_that_a_later_program_added_is_passed_over():
    data = json.loads(dump(RICH))
    data["colour"] = "blue"
    data["groups"][0]["mood"] = [1, {"x": None}]
    assert load(json.dumps(data)) == RICH


@pytest.mark.parametrize("state", [State(), State(huge_pages=(), nodes=()), RICH.state])
def test_state_comes_back_the_same(state):
    assert load(dump(x86(state=state))).state == state


def test_snapshot_of_version_1_states_no_bars_and_no_state():
    data = json.loads(dump(RICH))
    data["schema"]["version"] = 1
    del data["state"]
    for item in data["devices"]:
        del item["bars"]
    found = load(json.dumps(data))
    assert [item.bars for item in found.devices] == [None] * 4
    assert found.state == State()
    assert found.devices[1].driver == "vfio-pci"
    assert load(dump(found)) == found  # written anew it is of the newest version
    assert json.loads(dump(found))["schema"]["version"] == SCHEMA_VERSION == 2


# -- damaged -------------------------------------------------------------------------------------


class Gone(enum.Enum):
    """Stands for a field that is not there."""

    GONE = 0


GONE = Gone.GONE


def broken(path, value):
    """The rich snapshot with one field replaced, or taken out."""
    data = node = json.loads(dump(RICH))
    *parents, key = path
    for step in parents:
        node = node[step]
    if value is GONE:
        del node[key]
    else:
        node[key] = value
    return json.dumps(data)


def dotted(path):
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.lstrip(".")


REGION = ("groups", 0, "reserved_regions", 1)
BAR = ("devices", 3, "bars", 1)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        # wrong types
        (("groups",), {}),
        (("groups",), "none"),
        (("groups", 1), "2"),
        (("groups", 0, "id"), 1),
        (("groups", 0, "devices"), "0000:01:00.0"),
        (("groups", 0, "devices", 1), 7),
        (("groups", 0, "reserved_regions"), {}),
        (REGION, "msi"),
        ((*REGION, "start"), 0xFEE00000),  # a JSON number
        ((*REGION, "type"), 3),
        ((*REGION, "source"), 3),
        (("devices", 0, "name"), None),
        (("devices", 1, "dma_mask_bits"), "64"),
        (("devices", 1, "dma_mask_bits"), True),
        (("devices", 1, "class"), 0x20000),
        (("iommus", 0, "cap"), CAP_48),
        (("iommus", 1, "features"), 0),
        (("iova_ranges", 0, "groups"), "1"),
        (("iova_ranges", 0, "groups", 0), 1),
        (("iova_ranges", 0, "ranges"), "0x0-0xffff"),
        (("limits",), []),
        (("limits", "memlock"), 65536),
        (("limits", "dma_entries"), 1.5),
        (("notes", 0), "odd"),
        (("notes", 0, "text"), 1),
        (("notes", 0, "warning"), "yes"),
        (("name",), 5),
        (("page_size",), 4096),
        (("schema",), "1"),
        (("schema", "version"), "1"),
        (("schema", "version"), True),
        (("schema", "version"), 1.0),
        (("schema", "name"), "something-else"),
        # missing fields
        (("schema",), GONE),
        (("schema", "version"), GONE),
        (("schema", "name"), GONE),
        (("limits",), GONE),
        (("groups",), GONE),
        (("groups", 0, "id"), GONE),
        (
            ("groups", 0, "reserved_regions"),
            GONE,
        ),  # null: no such file
        (("groups", 0, "empty_regions"), GONE),  # a `direct` one keeps the device
        ((*REGION, "start"), GONE),
        ((*REGION, "last"), GONE),
        ((*REGION, "type"), GONE),
        (("devices", 0, "name"), GONE),
        (("iommus", 0, "name"), GONE),
        (("iova_ranges", 0, "api"), GONE),
        (("iova_ranges", 0, "ranges"), GONE),
        (("iova_ranges", 0, "ranges", 0, "last"), GONE),
        (("dma_windows", 0, "device"), GONE),
        (("widths", 0, "bits"), GONE),
        # bad numbers
        ((*REGION, "start"), "fee00000"),
        ((*REGION, "start"), "0x"),
        ((*REGION, "start"), "0xg"),
        ((*REGION, "start"), "-0x1"),
        ((*REGION, "start"), " 0x1"),
        ((*REGION, "start"), "0x1_0"),
        ((*REGION, "start"), "4276092928"),
        ((*REGION, "last"), "0x10000000000000000"),  # 2^64
        ((*REGION, "last"), "0x" + "f" * 5000),
        ((*REGION, "last"), "0xfedfffff"),  # one below start
        (("iommus", 0, "cap"), "0x10000000000000000"),
        (("iova_ranges", 0, "granule"), "0x1800"),  # no power of two
        (("iova_ranges", 0, "granule"), "0x0"),
        (("page_size",), "0xfff"),
        (("dma_windows", 0, "last"), "0x0"),
        (("widths", 0, "bits"), 0),
        (("widths", 0, "bits"), 65),
        (("log_regions", 0, "last"), "0x0"),
        (("limits", "memlock"), "infinite"),
        # BARs and state
        (("devices", 3, "bars"), {}),
        (("devices", 3, "bars", 0), "BAR 0"),
        ((*BAR, "kind"), "port"),
        ((*BAR, "kind"), GONE),
        ((*BAR, "index"), -1),
        ((*BAR, "index"), GONE),
        ((*BAR, "size"), 4096),
        ((*BAR, "size"), "0x10000000000000000"),
        ((*BAR, "bits"), 16),
        ((*BAR, "bits"), True),
        ((*BAR, "assigned"), "yes"),
        ((*BAR, "sizes"), "0x1000"),
        ((*BAR, "sizes", 0), 4096),
        ((*BAR, "sizes", 0), "4096"),
        (("state",), []),
        (("state", "memory"), "0x1000"),
        (("state", "memory", "total"), GONE),
        (("state", "memory", "available"), 4096),
        (("state", "huge_pages"), {}),
        (("state", "huge_pages", 0, "free"), -1),
        (("state", "huge_pages", 0, "total"), "16"),
        (("state", "huge_pages", 0, "page_size"), GONE),
        (("state", "nodes", 0), "/dev/vfio/vfio"),
        (("state", "nodes", 0, "path"), GONE),
        (("state", "nodes", 0, "usable"), "yes"),
        (("state", "remaps_interrupts"), 1),
        (("state", "may_lock"), "no"),
    ],
    ids=lambda item: dotted(item) if isinstance(item, tuple) else str(item)[:24],
)
def test_damaged_field_is_one_sentence_with_its_path(path, value):
    with pytest.raises(HostDataError, match=r"^snap\.json") as caught:
        load(broken(path, value))
    assert dotted(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.exit_code == 5


def test_overlapping_ranges_are_one_sentence_with_the_path_of_the_list():
    with pytest.raises(HostDataError, match=r"iova_ranges\[0\]\.ranges .*overlap") as caught:
        load(broken(("iova_ranges", 0, "ranges", 0, "last"), "0x10000"))  # the next starts there
    assert caught.value.exit_code == 5


def test_newer_schema_is_refused_with_the_hint_to_update():
    with pytest.raises(HostDataError, match="newer") as caught:
        load(broken(("schema", "version"), SCHEMA_VERSION + 1))
    assert "update" in caught.value.hint
    assert caught.value.exit_code == 5


def test_newer_schema_is_refused_before_its_fields_are_looked_at():
    text = json.dumps({"schema": {"name": SCHEMA_NAME, "version": 99}, "groups": "?"})
    with pytest.raises(HostDataError, match="schema 99 is newer"):
        load(text)


@pytest.mark.parametrize("version", [0, -1])
def test_older_schema_is_refused_with_the_hint_to_capture_again(version):
    with pytest.raises(HostDataError, match="older") as caught:
        load(broken(("schema", "version"), version))
    assert "capture" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "[]",
        "null",
        "1",
        '"text"',
        '{"schema": null}',
        '{"schema": {"name": "vmm-iova-host", "version": 1}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"schema": {"name": "vmm-iova-host", "version": ' + "9" * 5000 + "}}",
        "\x00",
        "{\x01}",
        dump(RICH)[:-20],
    ],
    ids=[
        "empty", "open", "bare", "list", "null", "number", "text", "null-schema", "cut",
        "deep-list", "deep-object", "huge-number", "nul", "control", "cut-off",
    ],
)  # fmt: skip
def test_junk_is_one_sentence(text):
    with pytest.raises(HostDataError) as caught:
        load(text)
    assert "snap.json" in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.exit_code == 5


def test_json_error_names_its_line():
    with pytest.raises(HostDataError, match=r"snap\.json:3") as caught:
        load('{\n"schema": 1,\n oops}')
    assert caught.value.line == 3


@given(st.data())
def test_any_cut_of_a_snapshot_is_one_sentence(data):
    text = dump(RICH)
    with pytest.raises(HostDataError):
        load(text[: data.draw(st.integers(0, len(text) - 3))])


@given(st.text(max_size=100))
def test_any_text_is_no_snapshot(text):
    with pytest.raises(HostDataError):
        load(text)


FIELDS = ["groups", "id", "devices", "limits", "iova_ranges", "ranges", "start", "last"]
leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(trees)
def test_any_tree_under_a_good_head_gives_a_host_or_one_sentence(tree):
    head = {"schema": {"name": SCHEMA_NAME, "version": SCHEMA_VERSION}, "limits": {}}
    body = tree if isinstance(tree, dict) else {"groups": tree}
    assert host_or_message(json.dumps(body | head))


def host_or_message(text):
    try:
        return load(text)
    except HostDataError as error:
        return error.message


# -- random hosts --------------------------------------------------------------------------------

addresses = st.integers(0, TOP) | st.sampled_from([0, 0xFFF, 0xFEE00000, TOP - 1, TOP])
ranges = st.tuples(addresses, addresses).map(lambda pair: AddrRange(min(pair), max(pair)))
names = st.text(string.ascii_letters + string.digits + "/-._@ ", min_size=1, max_size=12)
free_text = st.text(max_size=12).map(one_line)  # as facts are: see test_plain
sources = st.builds(Source, names, st.none() | st.integers(0, 1 << 40))
kinds = st.sampled_from(
    [RegionKind.DIRECT, RegionKind.DIRECT_RELAXABLE, RegionKind.RESERVED, RegionKind.MSI]
)
registers = st.none() | st.integers(0, TOP)
powers = st.none() | st.integers(0, 63).map(lambda shift: 1 << shift)


@st.composite
def groups(draw, number):
    region = st.builds(
        lambda span, kind, odd, source: ReservedRegion(
            span, kind, odd if kind is RegionKind.UNKNOWN else kind.value, source, number
        ),
        ranges,
        kinds | st.just(RegionKind.UNKNOWN),
        st.sampled_from(["odd", "msi2", "Direct", "x y z"]),
        sources,
    )
    regions = draw(st.none() | st.lists(region, max_size=4).map(tuple))
    empty = st.builds(
        lambda start, kind, source: EmptyRegion(start, kind, kind.value, source, number),
        addresses,
        kinds,
        sources,
    )
    return Group(
        number,
        devices=tuple(draw(st.lists(names, max_size=3))),
        regions=regions,
        empty_regions=tuple(draw(st.lists(empty, max_size=2))),
        unreadable=draw(st.none() | free_text),
        damaged=draw(st.none() | free_text),
        type=draw(st.none() | free_text),
    )


def mappable(found):
    """Disjoint ranges out of any."""
    kept = []
    for item in sorted(found):
        if not kept or item.start > kept[-1].last:
            kept.append(item)
    return MappableRanges(kept)


lists = st.builds(
    KernelRanges,
    st.lists(ranges, max_size=4).map(mappable),
    st.sampled_from(["type1", "iommufd", "text"]),
    sources,
    st.none() | st.lists(names, max_size=3).map(tuple),
    powers,
    registers,
)
hosts = st.builds(
    Host,
    name=names,
    origin=names,
    arch=st.none() | names,
    release=st.none() | names,
    page_size=powers,
    groups=st.lists(st.integers(0, 99).map(str), max_size=3, unique=True).flatmap(
        lambda ids: st.tuples(*map(groups, ids))
    ),
    devices=st.lists(
        st.builds(
            Device,
            names,
            st.none() | names,
            st.none() | names,
            st.none() | st.integers(0, 64),
            st.none() | free_text,
            registers,
        ),
        max_size=3,
    ).map(tuple),
    units=st.lists(
        st.builds(IommuUnit, names, registers, registers, st.none() | free_text, sources),
        max_size=3,
    ).map(tuple),
    kernel_ranges=st.lists(lists, max_size=2).map(tuple),
    windows=st.lists(st.builds(DmaWindow, names, ranges, sources), max_size=2).map(tuple),
    widths=st.lists(st.builds(StatedWidth, st.integers(1, 64), sources), max_size=2).map(tuple),
    log_regions=st.lists(
        st.builds(ReservedRegion, ranges, st.just(RegionKind.FIRMWARE), st.just("RMRR"), sources),
        max_size=3,
    ).map(tuple),
    limits=st.builds(Limits, st.none() | st.integers(0, 1 << 32), st.none() | st.integers(-1, TOP)),
    notes=st.lists(st.builds(Note, free_text, st.booleans()), max_size=3).map(tuple),
)


@given(hosts)
def test_any_host_comes_back_the_same(host):
    assert load(dump(host)) == host


@given(hosts)
def test_any_host_is_written_the_same_again(host):
    text = dump(host)
    assert dump(load(text)) == text
