# SPDX-License-Identifier: Apache-2.0
"""Capability chains, well-made and malicious."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_iova import AddrRange, MappableRanges
from vmm_iova.errors import CapabilityError
from vmm_iova.kernel import caps

TOP = 2**64 - 1


def info(chain: bytes, *, flags: int = 3, first: int = 24, argsz: int | None = None) -> bytes:
    total = 24 + len(chain) if argsz is None else argsz
    return struct.pack("=IIQII", total, flags, 0x4020_1000, first, 0) + chain


def ranges_cap(pairs: list[tuple[int, int]], following: int = 0, version: int = 1) -> bytes:
    head = struct.pack("=HHIII", 1, version, following, len(pairs), 0)
    return head + b"".join(struct.pack("=QQ", *pair) for pair in pairs)


def avail_cap(entries: int, following: int = 0) -> bytes:
    return struct.pack("=HHII", 3, 1, following, entries)


VTD = [(0, 0xFEDF_FFFF), (0xFEF0_0000, 0xFFFF_FFFF_FFFF)]


class TestType1Info:
    def test_three_capabilities_of_a_6_6_kernel_are_read(self) -> None:
        migration = struct.pack("=HHIIIQQ", 2, 1, 56, 0, 0, 0x1000, 1 << 28)
        chain = migration + avail_cap(65535, 72) + bytes(4) + ranges_cap(VTD)

        facts = caps.read_type1_info(info(chain))

        assert facts == caps.Type1Facts(
            0x4020_1000,
            MappableRanges(AddrRange(*pair) for pair in VTD),
            65535,
            0x1000,
            1 << 28,
        )

    def test_unaligned_ranges_of_a_5_10_kernel_are_read(self) -> None:
        migration = struct.pack("=HHIIIQQ", 2, 1, 56, 0, 0, 0x1000, 1 << 28)
        chain = migration + avail_cap(65535, 68) + ranges_cap(VTD)

        assert caps.read_type1_info(info(chain)).ranges == MappableRanges(
            AddrRange(*pair) for pair in VTD
        )

    def test_unaligned_ranges_of_the_compat_layer_are_read(self) -> None:
        chain = avail_cap(2**32 - 1, 36) + ranges_cap(VTD)

        facts = caps.read_type1_info(info(chain))

        assert (facts.entries_left, len(facts.ranges or ())) == (2**32 - 1, 2)

    def test_no_chain_gives_no_ranges_rather_than_everything(self) -> None:
        facts = caps.read_type1_info(info(b"", flags=1, first=0))

        assert (facts.ranges, facts.entries_left) == (None, None)

    def test_offset_without_the_caps_flag_is_not_followed(self) -> None:
        facts = caps.read_type1_info(info(ranges_cap(VTD), flags=1))

        assert facts.ranges is None

    def test_avail_only_gives_no_ranges(self) -> None:
        facts = caps.read_type1_info(info(avail_cap(7)))

        assert (facts.ranges, facts.entries_left) == (None, 7)

    def test_page_sizes_without_their_flag_are_zero(self) -> None:
        assert caps.read_type1_info(info(b"", flags=0, first=0)).page_sizes == 0

    def test_ranges_out_of_order_are_sorted(self) -> None:
        facts = caps.read_type1_info(info(ranges_cap(VTD[::-1])))

        assert facts.ranges == MappableRanges(AddrRange(*pair) for pair in VTD)

    def test_touching_ranges_stay_two(self) -> None:
        facts = caps.read_type1_info(info(ranges_cap([(0, 0xFFF), (0x1000, 0x1FFF)])))

        assert facts.ranges is not None
        assert facts.ranges.seams == (0x1000,)

    def test_range_to_the_last_address_is_kept(self) -> None:
        facts = caps.read_type1_info(info(ranges_cap([(0, TOP)])))

        assert facts.ranges == MappableRanges([AddrRange(0, TOP)])

    def test_version_above_one_reads_the_known_beginning(self) -> None:
        chain = ranges_cap(VTD, version=9) + b"\xff" * 32

        assert len(caps.read_type1_info(info(chain)).ranges or ()) == 2

    def test_unknown_capability_is_stepped_over_and_named(self) -> None:
        chain = struct.pack("=HHII", 77, 1, 36, 0xDEAD) + ranges_cap(VTD)

        facts = caps.read_type1_info(info(chain))

        assert (facts.unknown, len(facts.ranges or ())) == ((77,), 2)

    def test_second_capability_of_one_id_is_left_out(self) -> None:
        chain = avail_cap(5, 36) + avail_cap(6)

        assert caps.read_type1_info(info(chain)).entries_left == 5

    def test_next_that_goes_backwards_to_an_unseen_one_is_followed(self) -> None:
        chain = avail_cap(5) + ranges_cap(VTD, following=24)

        facts = caps.read_type1_info(info(chain, first=36))

        assert (facts.entries_left, len(facts.ranges or ())) == (5, 2)


MALICIOUS = [
    pytest.param(info(avail_cap(1, 24)), "comes back", id="cycle-of-one"),
    pytest.param(info(avail_cap(1, 36) + avail_cap(1, 24)), "comes back", id="cycle-of-two"),
    pytest.param(info(avail_cap(1, 8)), "outside", id="into-the-fixed-part"),
    pytest.param(info(avail_cap(1, 4096)), "outside", id="beyond-the-answer"),
    pytest.param(info(avail_cap(1, 2**32 - 1)), "outside", id="far-beyond"),
    pytest.param(info(avail_cap(1, 33)), "outside", id="header-cut"),
    pytest.param(info(ranges_cap(VTD)[:-1]), "2 ranges, the answer has room for 1", id="short"),
    pytest.param(info(struct.pack("=HHIII", 1, 1, 0, 2**32 - 1, 0)), "room for 0", id="count"),
    pytest.param(info(struct.pack("=HHI", 1, 1, 0)), "does not fit", id="no-count"),
    pytest.param(info(struct.pack("=HHI", 3, 1, 0)), "does not fit", id="no-avail"),
    pytest.param(info(ranges_cap([(2, 1)])), "down to", id="upside-down"),
    pytest.param(info(ranges_cap([(0, 9), (9, 20)])), "overlapping", id="overlap"),
    pytest.param(b"\x18\0\0\0", "does not fit", id="no-fixed-part"),
]


@pytest.mark.parametrize(("answer", "message"), MALICIOUS)
def test_type1_info_contradiction_raises_capability_error(answer: bytes, message: str) -> None:
    with pytest.raises(CapabilityError, match=message):
        caps.read_type1_info(answer)


def test_ranges_reaching_into_the_next_capability_are_refused() -> None:
    # The list claims 2 entries, but the second would be the next capability's bytes.
    cut = ranges_cap([VTD[0]], following=56)
    chain = struct.pack("=HHIII", 1, 1, 56, 2, 0) + cut[16:] + avail_cap(1)

    with pytest.raises(CapabilityError, match="room for 1"):
        caps.read_type1_info(info(chain))


@given(st.binary(min_size=0, max_size=200), st.integers(0, 240))
def test_type1_info_of_any_bytes_is_read_or_refused(chain: bytes, first: int) -> None:
    try:
        facts = caps.read_type1_info(info(chain, first=first))
    except CapabilityError:
        return
    assert facts.page_sizes == 0x4020_1000


def zpci(start: int, last: int, version: int = 1, following: int = 0, order: str = "=") -> bytes:
    tail = struct.pack(order + "I", 0xABCD) if version > 1 else b""
    return (
        struct.pack(order + "HHIQQHHHBB", 1, version, following, start, last, 7, 0, 64, 2, 9) + tail
    )


def device_info(chain: bytes, flags: int = 0x82) -> bytes:
    return struct.pack("=IIIIII", 24 + len(chain), flags, 9, 5, 24 if chain else 0, 0) + chain


class TestDeviceInfo:
    @pytest.mark.parametrize("version", [1, 2, 3])
    def test_zpci_base_of_any_version_gives_the_window(self, version: int) -> None:
        facts = caps.read_device_info(device_info(zpci(1 << 32, 0x1_3FFF_FFFF, version)))

        assert facts.zpci is not None
        assert facts.zpci.dma == AddrRange(0x1_0000_0000, 0x1_3FFF_FFFF)

    def test_zpci_group_adds_mask_and_doorbell(self) -> None:
        group = struct.pack("=HHIQQQHHHBB", 2, 1, 0, 0xFFF, 0x200, 1, 0, 0, 0, 0, 0)
        chain = zpci(0x1000, 0x1FFF, following=56) + group

        facts = caps.read_device_info(device_info(chain))

        assert facts.zpci is not None
        assert (facts.zpci.space_mask, facts.zpci.msi_address) == (0xFFF, 0x200)

    def test_device_without_capabilities_has_no_zpci(self) -> None:
        facts = caps.read_device_info(device_info(b"", flags=2))

        assert (facts.regions, facts.irqs, facts.zpci) == (9, 5, None)

    def test_zpci_window_upside_down_raises(self) -> None:
        with pytest.raises(CapabilityError, match="down to"):
            caps.read_device_info(device_info(zpci(2, 1)))

    def test_unknown_capability_is_named(self) -> None:
        chain = struct.pack("=HHIII", 5, 1, 0, 0, 0)

        assert caps.read_device_info(device_info(chain)).unknown == (5,)

    def test_window_without_its_group_has_no_mask_and_no_doorbell(self) -> None:
        facts = caps.read_device_info(device_info(zpci(0x1000, 0x1FFF, 3)))

        assert facts.zpci == caps.ZpciFacts(AddrRange(0x1000, 0x1FFF), 3, 2, 9)
        assert (facts.flags, facts.unknown) == (0x82, ())

    def test_group_without_a_window_is_no_zpci(self) -> None:
        group = struct.pack("=HHIQQQHHHBB", 2, 1, 0, 0xFFF, 0x200, 1, 0, 0, 0, 0, 0)

        assert caps.read_device_info(device_info(group)).zpci is None

    def test_offset_without_the_caps_flag_is_not_followed(self) -> None:
        assert caps.read_device_info(device_info(zpci(0x1000, 0x1FFF), flags=2)).zpci is None

    def test_offset_of_a_window_upside_down_is_named(self) -> None:
        with pytest.raises(CapabilityError) as caught:
            caps.read_device_info(device_info(zpci(2, 1)))
        assert caught.value.offset == 24


def region(chain: bytes = b"", *, flags: int = 12, size: int = 0x4000, first: int = 32) -> bytes:
    return struct.pack("=IIIIQQ", 32 + len(chain), flags, 2, first, size, 0x70) + chain


def sparse(*areas: tuple[int, int], count: int | None = None, identity: int = 1) -> bytes:
    head = struct.pack("=HHIII", identity, 1, 0, len(areas) if count is None else count, 0)
    return head + b"".join(struct.pack("=QQ", *area) for area in areas)


WHOLE = [(0, 0x3FFF)]


class TestRegionInfo:
    @pytest.mark.parametrize(
        ("answer", "spans"),
        [
            (region(sparse((0, 0x1000), (0x3000, 0x1000))), [(0, 0xFFF), (0x3000, 0x3FFF)]),
            (region(sparse((0, 0x4000))), WHOLE),
            (region(sparse((0x1000, 0), (0, 1))), [(0, 0)]),  # an area of no bytes is none
            (region(sparse()), []),
            (region(sparse((0, 0x1000), (0x3000, 0x1000), count=1)), [(0, 0xFFF)]),
            (region(sparse((0, 1), identity=9)), WHOLE),
            (region(first=0), WHOLE),
            (region(sparse((0, 1)), flags=4), WHOLE),  # no flag says that there are capabilities
            (region(sparse((0, 1)), flags=8), []),  # nothing may be mapped
            (region(flags=4, size=0), []),
            (region(flags=4, size=1), [(0, 0)]),
        ],
    )
    def test_what_may_be_mapped_is_what_the_areas_say(
        self, answer: bytes, spans: list[tuple[int, int]]
    ) -> None:
        fixed, found = caps.read_region_info(answer)

        assert [(item.start, item.last) for item in found] == spans
        assert (fixed["index"], fixed["offset"]) == (2, 0x70)

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (region(sparse((0, 0x4001))), "area 0x4000-0x4000 that may be mapped lies outside"),
            (region(sparse((0x4000, 1))), "area 0x4000-0x4000"),
            (region(sparse((0, 1), count=2)), "2 areas do not fit a capability of 32 bytes"),
            (region(sparse((0, 1)), first=31), "a capability at byte 0x1f lies outside of 0x20"),
        ],
    )
    def test_areas_that_cannot_be_are_refused(self, answer: bytes, message: str) -> None:
        with pytest.raises(CapabilityError, match=message):
            caps.read_region_info(answer)


@pytest.mark.parametrize(
    ("size", "first", "floor", "found"),
    [
        (24, 16, 16, [16]),  # it ends where the answer ends, and begins where the fixed part ends
        (23, 16, 16, None),
        (24, 15, 16, None),
        (24, 17, 16, None),
        (24, 0, 16, []),
    ],
)
def test_capability_lies_between_the_fixed_part_and_the_end(
    size: int, first: int, floor: int, found: list[int] | None
) -> None:
    if found is None:
        with pytest.raises(CapabilityError) as caught:
            list(caps.walk(bytes(size), first, size, floor))
        assert caught.value.offset == first
    else:
        chain = list(caps.walk(bytes(size), first, size, floor))
        assert [cap.offset for cap in chain] == found
        assert [len(cap.payload) for cap in chain] == [8] * len(found)


def test_type1_info_that_says_little_has_zeros() -> None:
    facts = caps.read_type1_info(info(avail_cap(7)))
    assert (facts.dirty_page_sizes, facts.max_dirty_bitmap, facts.unknown) == (0, 0, ())


@pytest.mark.parametrize("pairs", [[(5, 5)], [(0, 9), (10, 10)], [(TOP, TOP)]])
def test_ranges_of_one_byte_and_that_touch_are_taken(pairs: list[tuple[int, int]]) -> None:
    assert [(item.start, item.last) for item in caps.checked_ranges(pairs)] == pairs
    with pytest.raises(CapabilityError) as caught:
        caps.checked_ranges([(1, 0)], 24)
    assert caught.value.offset == 24


@pytest.mark.parametrize(("first", "read"), [(16, True), (15, False), (4, False)])
def test_capability_begins_where_the_fixed_part_of_old_kernels_ends(first: int, read: bool) -> None:
    """16 bytes without `cap_offset`: what is there may be the head of a capability."""
    answers = (
        (caps.read_type1_info, struct.pack("=IIQII", 24, 3, 0, first, 0)),
        (caps.read_device_info, struct.pack("=IIIIII", 24, 0x82, 9, 5, first, 0)),
    )
    for reader, answer in answers:
        if read:
            assert reader(answer).unknown == (first,)  # the offset itself is the id there
            continue
        with pytest.raises(CapabilityError, match="lies outside of 0x10 to 0x18"):
            reader(answer)
