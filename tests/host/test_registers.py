# SPDX-License-Identifier: Apache-2.0
"""Address widths from registers: upper bounds only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.data import cases
from vmm_iova.host.registers import (
    amd_features,
    amd_width,
    release_of,
    vtd_features,
    vtd_first_stage,
    vtd_page_sizes,
    vtd_width,
)

VECTORS = [vector for case in cases("vtd_cap") for vector in case["vectors"]]


def cap(mgaw_bits, sagaw):
    """A capability register with nothing but the two fields that say a width."""
    return (mgaw_bits - 1) << 16 | sagaw << 8


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["cap"])
def test_vtd_vector_of_a_real_machine_gives_its_widths(vector):
    found = vtd_width(int(vector["cap"], 16))
    expect = vector["expect"]
    assert (found.mgaw_bits, list(found.table_bits), found.usable_bits) == (
        expect["mgaw_bits"],
        expect["table_bits"],
        expect["usable_bits"],
    )


@pytest.mark.parametrize(
    ("mgaw_bits", "sagaw", "usable"),
    [
        (39, 0b00010, 39),
        (39, 0b00100, 39),  # 4-level tables, but no more than MGAW
        (39, 0b01000, 39),
        (40, 0b00010, 39),  # MGAW allows 40, tables only 39
        (40, 0b00100, 40),
        (48, 0b00100, 48),
        (48, 0b00110, 48),
        (48, 0b01000, 48),  # 48 is not above 48: the 4-level rule
        (49, 0b01100, 49),
        (52, 0b01100, 52),
        (57, 0b01100, 57),
        (57, 0b00100, 48),  # MGAW 57 with 4-level tables only
        (57, 0b00010, 39),
        (64, 0b01110, 57),  # never above 57
        (36, 0b00010, 36),
        (31, 0b00010, 31),
        (30, 0b00010, 0),  # the driver has no rule below 31 bits
        (39, 0b00001, 0),  # 2-level tables: not supported
        (48, 0b00000, 0),
        (1, 0b11111, 0),
    ],
)
def test_vtd_width_follows_the_rule_of_the_driver(mgaw_bits, sagaw, usable):
    assert vtd_width(cap(mgaw_bits, sagaw)).usable_bits == usable


@pytest.mark.parametrize(
    ("sagaw", "tables"),
    [(0b0010, (39,)), (0b0100, (48,)), (0b1000, (57,)), (0b1110, (39, 48, 57)), (0, ())],
)
def test_vtd_tables_come_from_sagaw(sagaw, tables):
    assert vtd_width(cap(48, sagaw)).table_bits == tables


@given(st.integers(0, (1 << 64) - 1))
def test_vtd_width_never_exceeds_what_the_register_says(register):
    found = vtd_width(register)
    assert found.usable_bits <= min(found.mgaw_bits, 57)
    assert 1 <= found.mgaw_bits <= 64


BOTH = 1 << 43 | 1 << 47  # scalable mode, first-stage tables
CAP_48 = 0x8D2078C106F0466  # a real server: MGAW 48, 48-bit tables
CAP_57 = 0x9ED008C40780C66  # a real server: MGAW 57, 48- and 57-bit tables, no FL5LP


@pytest.mark.parametrize(
    "ecap",
    [
        0,
        1 << 43,  # scalable mode without first-stage tables
        1 << 47,
        1 << 43 | 1 << 46,  # SLTS only
        0xF020DE,  # real server without scalable mode
    ],
)
def test_vtd_first_stage_needs_scalable_mode_and_its_tables(ecap):
    assert vtd_first_stage(CAP_48, ecap) is None


@pytest.mark.parametrize(
    ("cap", "bits"),
    [
        (CAP_48, 47),  # lower half of four levels
        (CAP_57, 47),  # five levels for the second stage alone
        (CAP_57 | 1 << 60, 56),  # FL5LP: lower half of five levels
        (CAP_48 | 1 << 60, 47),  # FL5LP is of no use within 48 bits
        (0xC0000020E60262, 38),  # 39 bits
    ],
)
def test_vtd_first_stage_has_its_lower_half(cap, bits):
    assert vtd_first_stage(cap, BOTH) == bits


@pytest.mark.parametrize(
    ("register", "sizes"),
    [
        (0, 0x1000),
        (1 << 34, 0x201000),  # 2 MiB
        (1 << 35, 0x40001000),  # 1 GiB
        (0xD2078C106F0466, 0x40201000),
        (0xC0000020E60262, 0x1000),  # Ivy Bridge graphics: 4 KiB only
        (0b1100 << 34, 0x1000),  # reserved bits say nothing
    ],
)
def test_vtd_page_sizes_come_from_sllps(register, sizes):
    assert vtd_page_sizes(register) == sizes


# -- AMD -----------------------------------------------------------------------------------------

EFR_48 = 0x58F77EF22294ADE & ~0xC00  # many bits as on an EPYC, HATS 0: 48 bits
EFR_57 = EFR_48 | 1 << 10
EFR_64 = EFR_48 | 2 << 10
EFR_BAD = EFR_48 | 3 << 10
EFR2 = 0x10  # few bits, HATS place 0
EFR2_64 = 0x810  # few bits, but bit 11 (HT_RANGE_IGNORE) looks like HATS 2


@pytest.mark.parametrize(("efr", "bits"), [(EFR_48, 48), (EFR_57, 57), (EFR_64, 64), (EFR_BAD, 0)])
@pytest.mark.parametrize(
    ("order", "release"),
    [
        ("{efr:x}", "4.15.0"),
        ("{efr:x}", "5.19.17"),
        ("{efr2:x}:{efr:x}", "6.1.0-13-amd64"),
        ("{efr2:x}:{efr:x}", "6.5.13"),
        ("{efr:x}:{efr2:x}", "6.8.0"),
        ("{efr:x}:{efr2:x}", "6.12.48"),
        ("{efr:x}:{efr2:x}", "7.3.0"),
    ],
)
def test_amd_width_follows_the_order_of_the_release(efr, bits, order, release):
    found = amd_width(order.format(efr=efr, efr2=EFR2_64), release)
    assert (found.bits, found.doubt) == (bits, None)


@pytest.mark.parametrize("release", [None, "6.6.1", "6.7.0-rc1", "unknown"])
@pytest.mark.parametrize("order", ["{efr:x}:{efr2:x}", "{efr2:x}:{efr:x}"])
def test_amd_width_without_a_telling_release_takes_the_half_with_many_bits(order, release):
    found = amd_width(order.format(efr=EFR_57, efr2=EFR2), release)
    assert found.bits == 57
    assert found.doubt  # so it is no bound for the kernel's own list


@pytest.mark.parametrize(
    ("features", "bits"),
    [
        ("800:400", 57),  # HATS 2 or 1
        ("400:800", 57),
        ("0:800", 48),
        ("c00:400", 57),  # HATS 3 is unusable, so it cannot be EFR
        (f"{EFR_64:x}:{EFR_48:x}", 48),  # two halves with as many bits
    ],
)
def test_amd_width_in_doubt_takes_the_smaller(features, bits):
    found = amd_width(features, None)
    assert found.bits == bits
    assert found.doubt


def test_amd_width_of_one_register_needs_no_release():
    assert amd_width(f"{EFR_48:x}", None) == amd_width(f"{EFR_48:#x}\n", "5.4.0")
    assert amd_width(f"{EFR_48:x}", None).bits == 48


@pytest.mark.parametrize("features", ["", ":", "xyz", "1:2:3", "10:", ":10", "   "])
def test_amd_features_that_are_no_register_give_no_width(features):
    found = amd_width(features, "6.8.0")
    assert found.bits == 0
    assert "not a feature register" in found.doubt


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.12.48-amd64", (6, 12)),
        ("5.4.0-1.el8", (5, 4)),
        ("7.0-rc1", (7, 0)),
        ("6.10", (6, 10)),  # ten, not one
        ("6", None),
        ("", None),
        (None, None),
        ("v6.8", None),
    ],
)
def test_release_gives_major_and_minor(release, expected):
    assert release_of(release) == expected


class TestFeatures:
    def test_register_of_a_server_with_scalable_mode_is_told_in_words(self) -> None:
        ecap = 1 << 26 | 1 << 40 | 1 << 43 | 1 << 45
        found = vtd_features(1 << 34 | 1 << 35, ecap)
        assert found == (
            "2 MiB pages",
            "1 GiB pages",
            "nested translation",
            "PASID",
            "scalable mode",
            "dirty tracking (second stage)",
        )

    def test_desktop_of_2011_has_neither_nested_translation_nor_pasid(self) -> None:
        found = vtd_features(0xC9008020660262, 0xF0105A)  # intel-dmar-i7-2600
        assert "interrupt remapping" in found
        assert not {"nested translation", "PASID", "scalable mode"} & set(found)

    @pytest.mark.parametrize(
        ("text", "release", "dirty"),
        [
            (f"{1 << 52:x}", None, True),
            (f"0:{1 << 52:x}", "6.1", True),
            (f"{1 << 52:x}:0", "6.12", True),
            (f"{1 << 52:x}:0", None, False),  # which half is which is not known
            ("junk", "6.12", False),
        ],
    )
    def test_dirty_tracking_of_amd_is_read_where_the_half_is_certain(
        self, text: str, release: str | None, dirty: bool
    ) -> None:
        assert ("dirty tracking" in amd_features(text, release)) == dirty
