# SPDX-License-Identifier: Apache-2.0
"""Sizes, addresses and ranges in the forms that people paste."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_iova.errors import RangeOverflowError, RequestError
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.units import format_size, parse_address, parse_range, parse_size, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64G", 64 << 30),
        ("1.5TiB", 3 << 39),
        ("1.5 TiB", 3 << 39),
        ("512m", 512 << 20),
        ("4KiB", 4096),
        ("4096", 4096),
        ("4096B", 4096),
        ("0x1000", 4096),
        ("0xFD_0000_0000", 0xFD_0000_0000),
        ("16E", 1 << 64),
        (" 2M ", 2 << 20),
        (4096, 4096),
    ],
)
def test_size_in_a_usual_form_is_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("64GB", "1000-based"),
        ("0", "out of the range"),
        ("17E", "out of the range"),
        ("-1", "not a number"),
        ("", "not a number"),
        ("0.3K", "not a whole number"),
        ("12 parsecs", "unknown unit"),
        ("1e9", "not a number|unknown unit"),
        ("9" * 10_000, "not a number"),
        ("0x", "not a number|unknown unit"),
    ],
)
def test_size_that_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parse_size(text)


@pytest.mark.parametrize("value", [None, 1.5, True, b"4K"])
def test_size_of_a_wrong_type_is_refused(value: object) -> None:
    with pytest.raises(RequestError, match="must be text or a whole number"):
        parse_size(value)  # type: ignore[arg-type]


def test_refused_unit_says_what_to_write() -> None:
    with pytest.raises(RequestError) as caught:
        parse_size("64GB")
    assert "GiB" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0xfd00000000", 0xFD_0000_0000),
        ("0", 0),
        ("4G", 1 << 32),
        ("0xffffffffffffffff", ADDRESS_LAST),
    ],
)
def test_address_in_a_usual_form_is_read(text: str, address: int) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["16E", "0x10000000000000000"])
def test_address_beyond_64_bits_is_an_overflow(text: str) -> None:
    with pytest.raises(RangeOverflowError, match="outside of 0 to 2\\^64-1"):
        parse_address(text)


def test_address_of_a_wrong_type_is_refused() -> None:
    with pytest.raises(RequestError, match="must be text or a whole number"):
        parse_address(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "0xfd00000000-0xffffffffff",
        "0xfd00000000+12G",
        "0xfd00000000 + 12GiB",
        "0xfd00000000..0xffffffffff",
        "0xfd00000000 - 0xffffffffff",
        "1012G+12G",
    ],
)
def test_range_in_a_usual_form_is_read(text: str) -> None:
    assert parse_range(text) == AddrRange(0xFD_0000_0000, 0xFF_FFFF_FFFF)


@pytest.mark.parametrize("text", ["", "0x1000", "-", "0x1000-", "+4K", "0x1000 0x2000"])
def test_text_that_is_no_range_says_how_to_write_one(text: str) -> None:
    with pytest.raises(RequestError, match="is not a range") as caught:
        parse_range(text)
    assert "START-LAST" in (caught.value.hint or "")


def test_range_with_last_below_start_is_refused() -> None:
    with pytest.raises(RequestError, match="below its start"):
        parse_range("0x2000-0x1000")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1 B"),
        (4096, "4 KiB"),
        (3 << 39, "1.5 TiB"),
        (0xFEE0_0000, "4078 MiB"),
        (1 << 64, "16 EiB"),
        ((1 << 64) - 4096, "0xfffffffffffff000 B"),
    ],
)
def test_size_is_printed_exactly(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(1, 1 << 64))
def test_size_printed_and_read_again_is_the_same(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_size_for_people_that_is_long_is_rounded_and_marked() -> None:
    assert show_size(0x1684820000) == "~90.1 GiB"
