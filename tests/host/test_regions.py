# SPDX-License-Identifier: Apache-2.0
"""The `reserved_regions` file of a group: its format is ABI, its content is not tidy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.data import cases
from tests.kit.hosts import MSI, MSI_LINE, TOP, line, note_texts, warnings_of
from tests.kit.steps import growth
from vmm_iova.errors import HostDataError
from vmm_iova.host.facts import EmptyRegion, RegionKind, Source
from vmm_iova.host.regions import parse_region_line, parse_reserved_regions
from vmm_iova.ranges import RangeSet

CASES = {case["id"]: case for case in cases("parse_reserved_regions")}
PAGE_BYTES = 4096  # sysfs hands out at most a page less one byte


def parse(text):
    return parse_reserved_regions(text, "resv", "3")


def triples(found):
    return [(item.range.start, item.range.last, item.word) for item in found.regions]


def case_triples(case):
    expect = case["expect"]
    records = expect if isinstance(expect, list) else expect["records"]
    return [(int(r["first"], 16), int(r["last"], 16), r["type"]) for r in records]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_peer_case_gives_its_records(case):
    assert triples(parse(case["text"])) == case_triples(case)


def test_peer_case_with_garbage_reports_its_line_numbers():
    case = CASES["parse-garbage-line"]
    assert list(parse(case["text"]).rejected) == case["expect"]["rejected_lines"]


def test_peer_case_off_page_widens_to_its_holes():
    case = CASES["parse-not-page-aligned"]
    holes = RangeSet(item.range for item in parse(case["text"]).regions).align_outward(0x1000)
    assert [[f"{h.start:#x}", f"{h.last:#x}"] for h in holes] == case["expect"]["holes_at_4k"]


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("direct", RegionKind.DIRECT),
        ("direct-relaxable", RegionKind.DIRECT_RELAXABLE),
        ("reserved", RegionKind.RESERVED),
        ("msi", RegionKind.MSI),
    ],
)
def test_known_word_gives_its_kind(word, kind):
    (found,) = parse(line(0x1000, 0x1FFF, word)).regions
    assert (found.kind, found.word) == (kind, word)


@pytest.mark.parametrize(
    "word",
    [
        "firmware",  # a kind of this program, but no word of sysfs
        "unknown",
        "Direct",  # words are case-sensitive ABI
        "directly",
        "msi2",
        "direct-relaxable-maybe",  # longer than the 16 characters of the longest known word
    ],
)
def test_unknown_word_is_kept_as_unknown_and_noted(word):
    found = parse(line(0x1000, 0x1FFF, word))
    assert (found.regions[0].kind, found.regions[0].word) == (RegionKind.UNKNOWN, word)
    assert word in " ".join(warnings_of(found))


def test_unknown_word_of_10_000_characters_stays_one_short_note():
    found = parse(line(0x1000, 0x1FFF, "x" * 10_000))
    assert found.regions[0].kind is RegionKind.UNKNOWN
    assert len(note_texts(found)) < 300


def test_each_region_remembers_source_line_and_group():
    found = parse(line(0x1000, 0x1FFF, "direct") + MSI_LINE)
    assert [(r.source, r.group) for r in found.regions] == [
        (Source("resv", 1), "3"),
        (Source("resv", 2), "3"),
    ]


def test_lines_out_of_order_come_out_ascending():
    text = (
        MSI_LINE + line(0x0, 0xFFFFFF, "direct-relaxable") + line(0x7B800000, 0x7FFFFFFF, "direct")
    )
    assert [r.range.start for r in parse(text).regions] == [0x0, 0x7B800000, 0xFEE00000]


def test_overlap_of_different_types_keeps_both_lines():
    text = line(0x1000000, 0x10FFFFFF, "direct-relaxable") + line(0x8000000, 0x80FFFFF, "msi")
    assert triples(parse(text)) == [
        (0x1000000, 0x10FFFFFF, "direct-relaxable"),
        (0x8000000, 0x80FFFFF, "msi"),  # NXP LX2160A: inside of the first
    ]


def test_same_span_with_two_types_keeps_both():
    text = line(0x8000000, 0x80FFFFF, "reserved") + line(0x8000000, 0x80FFFFF, "msi")
    assert [r.word for r in parse(text).regions] == ["msi", "reserved"]


def test_touching_lines_of_one_type_stay_two_regions():
    # up to 5.3 the kernel joins only what overlaps
    text = line(0x1000, 0x1FFF, "reserved") + line(0x2000, 0x2FFF, "reserved")
    assert len(parse(text).regions) == 2


def test_duplicate_lines_count_once_with_a_note():
    found = parse(MSI_LINE * 3)
    assert triples(found) == [(MSI.start, MSI.last, "msi")]
    assert "2 repeated" in note_texts(found)


def test_unrepeated_lines_give_no_note():
    assert parse(MSI_LINE).notes == ()


@pytest.mark.parametrize(
    "text",
    [
        "0x00000000fee00000 0x00000000feefffff msi   \n",
        "   0x00000000fee00000 0x00000000feefffff msi\n",
        "0x00000000fee00000\t0x00000000feefffff  msi\n",
        "0x00000000fee00000 0x00000000feefffff msi\r\n",
        "0X00000000FEE00000 0X00000000FEEFFFFF msi\n",
        "0x00000000FEE00000 0x00000000FEEFFFFF msi\n",
        "0xfee00000 0xfeefffff msi\n",  # short form, as people type it
        "\n\n0xfee00000 0xfeefffff msi\n\n",
    ],
    ids=["trailing", "leading", "tabs", "crlf", "upper-0X", "upper", "short", "blank-lines"],
)
def test_untidy_spelling_gives_the_same_region(text):
    assert triples(parse(text)) == [(0xFEE00000, 0xFEEFFFFF, "msi")]


@pytest.mark.parametrize("text", ["", "\n", "\r\n", "   \n", "# only a comment\n"])
def test_text_without_lines_gives_nothing_and_is_no_error(text):
    found = parse(text)
    assert (found.regions, found.empty_regions, found.notes, found.rejected) == ((), (), (), ())


def test_region_of_one_byte_is_kept():
    assert triples(parse(line(0x1000, 0x1000, "reserved"))) == [(0x1000, 0x1000, "reserved")]


def test_region_up_to_the_last_address_is_kept():
    found = parse(line(0x1, TOP, "reserved"))
    assert triples(found) == [(0x1, TOP, "reserved")]


# -- length 0 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["reserved", "direct", "msi"])
def test_region_of_everything_is_taken_at_its_word(word):
    # Length 0 at 0 prints the same: what cannot be told apart must not leave everything usable.
    found = parse(line(0x0, TOP, word))
    assert [(item.range.start, item.range.last) for item in found.regions] == [(0x0, TOP)]
    assert found.empty_regions == ()


@pytest.mark.parametrize(
    ("start", "last", "word"),
    [
        (0x1000, 0xFFF, "reserved"),
        (0x1000, 0xFFF, "direct"),  # AMD IVMD with length 0
        (TOP, TOP - 1, "msi"),
    ],
)
def test_last_just_below_start_is_an_empty_region_with_a_warning(start, last, word):
    found = parse(line(start, last, word))
    assert (found.regions, [(e.start, e.word) for e in found.empty_regions]) == (
        (),
        [(start, word)],
    )
    assert "length 0" in warnings_of(found)[0]


def test_empty_region_direct_keeps_its_kind_source_and_group():
    (found,) = parse(line(0x1000, 0xFFF, "direct")).empty_regions
    assert found == EmptyRegion(0x1000, RegionKind.DIRECT, "direct", Source("resv", 1), "3")


@pytest.mark.parametrize(
    ("start", "last"),
    [
        (0x2000, 0x1000),
        (0x1000, 0xFFE),  # two below: not what the kernel prints for length 0
        (TOP, 0x0),
    ],
)
def test_last_far_below_start_is_an_error_that_names_the_line(start, last):
    with pytest.raises(HostDataError, match=r"resv:2: .*below its start") as caught:
        parse(MSI_LINE + line(start, last, "reserved"))
    assert (caught.value.line, caught.value.exit_code) == (2, 5)


# -- damaged -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "0x10000000000000000 0x1ffffffffffffffff reserved\n",  # 2^64
        "0x0 0x10000000000000000 reserved\n",
        "0x0 0x" + "f" * 5000 + " reserved\n",
    ],
)
def test_number_beyond_64_bits_is_an_error(text):
    with pytest.raises(HostDataError, match="beyond 2\\^64-1") as caught:
        parse(text)
    assert len(caught.value.text) < 200


@pytest.mark.parametrize(
    "text",
    [
        "0x0000000000001000 0x0000000000001fff\n",  # no type word
        "0x0000000000001000 \n",
        "0x0000000000001000\n",
        "0x\n",
        "0x 0x msi\n",
        "0xfee0000g 0xfeefffff msi\n",
        "0xfee00000 0xfeeffff\x00 msi\n",
        "0xfee00000 feefffff msi\n",  # the kernel always prints 0x
        "0xfee00000-0xfeefffff msi x\n",
    ],
)
def test_line_that_begins_like_a_region_and_breaks_off_is_an_error(text):
    with pytest.raises(HostDataError, match="cut off or garbled") as caught:
        parse(text)
    assert (caught.value.source, caught.value.line) == ("resv", 1)
    assert caught.value.hint


def test_garbage_lines_are_reported_by_number():
    text = "garbage\n" + MSI_LINE + "\n# comment\nNOT HEX direct\n-1 -2 msi\n"
    assert parse(text).rejected == (1, 5, 6)


def test_garbage_lines_do_not_hide_the_good_ones():
    assert triples(parse("garbage\n" + MSI_LINE)) == [(0xFEE00000, 0xFEEFFFFF, "msi")]


def test_last_line_without_newline_is_cut_off():
    with pytest.raises(HostDataError, match=r"cut off.*no newline") as caught:
        parse(MSI_LINE + MSI_LINE.rstrip("\n"))
    assert caught.value.line == 2


def test_last_line_cut_in_the_word_is_cut_off():
    # `res` would otherwise pass for an unknown word
    with pytest.raises(HostDataError, match="cut off"):
        parse(MSI_LINE + "0x0000000000001000 0x0000000000001fff res")


def full_page(size):
    """Whole lines, the last with a word as long as it takes to make `size` bytes."""
    lines = [line(0x100000 * n, 0x100000 * n + 0xFFFF, "msi") for n in range(1, 94)]
    text = "".join(lines)
    return text + line(0x1000, 0x1FFF, "w" * (size - len(text) - 39))


@pytest.mark.parametrize("size", [PAGE_BYTES - 55, PAGE_BYTES - 20, PAGE_BYTES - 1, PAGE_BYTES])
def test_file_within_a_line_of_a_page_is_cut_off(size):
    text = full_page(size)
    assert len(text) == size
    with pytest.raises(HostDataError, match=r"cut off.*page of 4096"):
        parse(text)


def test_file_cut_mid_line_at_4095_bytes_is_cut_off():
    text = "".join(line(0x100000 * n, 0x100000 * n + 0xFFFF, "msi") for n in range(1, 200))[:4095]
    with pytest.raises(HostDataError, match="cut off") as caught:
        parse(text)
    assert "VFIO" in caught.value.hint


@pytest.mark.parametrize("page", [16384, 65536])  # base pages of Arm kernels
def test_file_that_fills_a_larger_page_is_cut_off(page):
    text = (line(0x1000, 0x1FFF, "reserved") * 2000)[: page - 1]
    with pytest.raises(HostDataError, match="cut off"):
        parse(text)


def test_file_just_short_of_a_line_below_the_page_is_whole():
    text = full_page(PAGE_BYTES - 60)
    assert len(parse(text).regions) == 94


# -- large ---------------------------------------------------------------------------------------


def many_lines(count):
    return "".join(line(0x10000 * n, 0x10000 * n + 0xFFF, "reserved") for n in range(count, 0, -1))


def test_10_000_lines_are_all_kept():
    found = parse(many_lines(10_000))
    assert len(found.regions) == 10_000
    assert found.regions[0].range.start == 0x10000


def test_work_grows_with_the_lines_and_no_faster():
    assert growth(lambda count: parse(many_lines(count)), 500) < 2.2


@pytest.mark.slow
def test_10_000_hostile_lines_give_few_notes():
    text = "".join(
        line(0x1000 * n, 0x1000 * n + 0x4FFF, f"weird{n % 7}") + "junk\n" for n in range(5_000)
    )
    found = parse(text)
    assert (len(found.regions), len(found.rejected)) == (5_000, 5_000)
    assert len(found.notes) < 10


# -- one line ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "   ", "hello", "fee00000 feefffff msi", "[0x0, 0xfff]"])
def test_single_line_that_is_no_region_is_left_to_the_caller(text):
    assert parse_region_line(text, Source("x")) is None


spans = (
    st.tuples(st.integers(0, TOP), st.integers(0, TOP))
    .map(sorted)
    .filter(
        lambda pair: tuple(pair) != (0, TOP)  # prints like a region of length 0
    )
)
words = st.sampled_from(["direct", "direct-relaxable", "reserved", "msi", "new-word"])
entries = st.lists(st.tuples(spans, words), max_size=40)


@given(entries, st.randoms(use_true_random=False))
def test_order_of_lines_does_not_matter(found, shuffler):
    lines = [line(*span, word) for span, word in found]
    shuffled = lines[:]
    shuffler.shuffle(shuffled)
    assert triples(parse("".join(lines))) == triples(parse("".join(shuffled)))


@given(entries)
def test_every_line_that_went_in_comes_out(found):
    text = "".join(line(*span, word) for span, word in found)
    expected = sorted({(*span, word) for span, word in found})
    assert sorted(triples(parse(text))) == expected


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused_in_a_sentence(text):
    found = refused_or(text)
    assert found.message if isinstance(found, HostDataError) else found.regions is not None


def refused_or(text):
    try:
        return parse(text)
    except HostDataError as error:
        return error
