# SPDX-License-Identifier: Apache-2.0
"""Every peer case that is arithmetic, on both engines.

The runner knows the format, not the cases: other cases of the same kinds may be put into the file.
What cannot be computed here stands in `NOT_COMPUTABLE`, with the reason.
"""

import pytest

from tests.kit.data import cases
from vmm_iova import errors
from vmm_iova.ranges import AddrRange, MappableRanges, RangeSet, align_up

KINDS = ("alloc", "align", "query", "range_math", "complement", "union", "granule")

NOT_COMPUTABLE = {
    "crosvm-same-id-twice": "an allocation has no identifier of its own: its address identifies "
    "it, and a tag is a label that several allocations may carry",
}

NO_SUCH_POLICY = {
    "bump": "a policy that never revisits released space is what this allocator exists to avoid",
}

ERRORS = {
    "invalid_size": errors.RequestError,
    "invalid_alignment": errors.RequestError,
    "unaligned": errors.MisalignedError,
    "granule": errors.MisalignedError,
    "overflow": errors.RangeOverflowError,
    "overlap": errors.RequestError,
    "in_use": errors.OccupiedError,
    "out_of_range": errors.ApertureError,
    "outside_aperture": errors.ApertureError,
    "address_width": errors.RangeOverflowError,
    "conflict": errors.NarrowError,
    "no_space": errors.NoSpaceError,
    "not_allocated": errors.NotAllocatedError,
    "size_mismatch": errors.SizeMismatchError,
}

FIELDS = {"invalid_size": "size", "invalid_alignment": "align", "overlap": "ranges"}

CASES = cases(*KINDS)


def number(text):
    return int(text, 16) if isinstance(text, str) else text


def span(item):
    """A range in either of its two forms: [first, last] or {"first": ..., "last": ...}."""
    first, last = (item["first"], item["last"]) if isinstance(item, dict) else item
    return AddrRange(number(first), number(last))


def reason_against(case):
    if case["id"] in NOT_COMPUTABLE:
        return NOT_COMPUTABLE[case["id"]]
    for op in case.get("ops", ()):
        if "id" in op:
            return NOT_COMPUTABLE["crosvm-same-id-twice"]
        if op.get("policy") in NO_SUCH_POLICY:
            return NO_SUCH_POLICY[op["policy"]]
    return None


def outcome(act, expect):
    """Run `act`; check that it refuses if `expect` says so, else return what it gave."""
    if isinstance(expect, dict) and "error" in expect:
        with pytest.raises(ERRORS[expect["error"]]) as caught:
            act()
        # Exactly this kind of error, not one derived from it.
        assert type(caught.value) is ERRORS[expect["error"]]
        if expect["error"] in FIELDS:
            assert caught.value.field == FIELDS[expect["error"]]
        return None
    return act()


class Subject:
    """One allocator, driven by the operations of a case."""

    def __init__(self, made, case):
        self.ranges = RangeSet([span(item) for item in case.get("ranges", [])])
        self.least = number(case.get("min_align", "0x1"))
        granule = number(case.get("granule", "0x1"))
        # Peers have no rule about address 0.
        self.allocator = made(self.ranges, granule=granule, allow_zero=True)

    def alloc(self, op):
        size, expect = number(op["size"]), op["expect"]
        align = number(op.get("align", "0x1"))
        align = max(align, self.least) if align > 0 else align
        tag, policy = op.get("tag"), op.get("policy", "first")
        within = span(op["within"]) if "within" in op else None
        if policy == "exact":
            place = outcome(
                lambda: self.allocator.allocate_at(number(op["at"]), size, tag, align=align), expect
            )
        else:
            place = outcome(
                lambda: self.allocator.allocate(size, align, policy, within, tag), expect
            )
        assert place == number(expect.get("addr"))

    def free(self, op):
        size = number(op["size"]) if "size" in op else None
        outcome(lambda: self.allocator.release(number(op["first"]), size), op["expect"])

    def lookup(self, op):
        if "tag" in op:
            found = next((a.range for a in self.allocator if a.tag == op["tag"]), None)
        else:
            held = self.allocator.allocation_at(number(op.get("addr", op.get("first"))))
            found = held and held.range
        assert found == (span(op["expect"]) if op["expect"] else None)

    def add_range(self, op):
        def act():
            more = MappableRanges([*self.ranges, span(op)])
            self.allocator.widen(more.as_set())
            self.ranges = more.as_set()

        outcome(act, op["expect"])


class Kind:
    """How each kind of case is run."""

    @staticmethod
    def alloc(made, case):
        if "create" in case:
            create = case["create"]
            outcome(
                lambda: AddrRange.from_size(number(create["base"]), number(create["size"])),
                create["expect"],
            )
        subject = Subject(made, case)
        for op in case["ops"]:
            getattr(subject, op["op"])(op)
            subject.allocator._check()

    @staticmethod
    def align(made, case):
        for vector in case["vectors"]:
            value, align = number(vector["value"]), number(vector["align"])
            result = outcome(lambda: align_up(value, align), vector["expect"])  # noqa: B023
            assert result == number(vector["expect"].get("value"))

    @staticmethod
    def query(made, case):
        allocator = Subject(made, case).allocator
        answers = {
            "highest_address": lambda: allocator.ranges.hull.last,
            "lowest_address": lambda: allocator.ranges.hull.start,
            "free_bytes": lambda: allocator.free_bytes,
        }
        assert number(case["expect"]["value"]) == answers[case["query"]]()

    @staticmethod
    def range_math(made, case):
        for vector in case["vectors"]:
            a, b, expect = span(vector["a"]), span(vector["b"]), vector["expect"]
            if case["op"] == "intersect":
                expected = span(expect) if expect else None
                assert a.intersect(b) == expected
                assert not case.get("commutative") or b.intersect(a) == expected
            elif case["op"] == "subtract":
                assert list(a.subtract(b)) == [span(item) for item in expect]
            else:
                assert (a.overlaps(b), b in a)[case["op"] == "contains"] == expect

    @staticmethod
    def complement(made, case):
        holes = RangeSet([span(item) for item in case["ranges"]])
        result = holes.complement(span(case["bounds"]))
        result = result.align_inward(number(case.get("granule", "0x1")))
        assert list(result) == [span(item) for item in case["expect"]]

    @staticmethod
    def union(made, case):
        sets = case.get("sets") or [
            case[key] for key in ("a", "b", "ranges", "with", "other") if key in case
        ]
        result = RangeSet()
        for one in sets:
            several = isinstance(one, list) and (not one or not isinstance(one[0], str))
            result |= RangeSet([span(item) for item in (one if several else [one])])
        assert list(result) == [span(item) for item in case["expect"]]

    @staticmethod
    def granule(made, case):
        granule = min(number(page) for page in case["iommu_pages"])
        allocator = made(RangeSet.everything(), granule=granule)
        for request in case["requests"]:
            outcome(lambda: allocator.allocate(number(request["size"])), request["expect"])  # noqa: B023


@pytest.mark.parametrize(
    "case", [case for case in CASES if not reason_against(case)], ids=lambda case: case["id"]
)
def test_peer_case_gives_the_right_answer(make, case):
    getattr(Kind, case["kind"])(make, case)


@pytest.mark.parametrize(
    "case", [case for case in CASES if reason_against(case)], ids=lambda case: case["id"]
)
def test_peer_case_that_is_not_computable_has_a_reason(case):
    assert len(reason_against(case)) > 20


def test_the_file_has_cases_of_these_kinds():
    assert len(CASES) > 30
