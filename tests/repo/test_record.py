# SPDX-License-Identifier: Apache-2.0
"""Records are frozen dataclasses with slots, and patterns compile late."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from vmm_iova.patterns import regex
from vmm_iova.record import collector, field, names, ordered, record, replace


@record
class Base:
    """A record with every kind of field."""

    name: str
    size: int = 0x1000
    parts: list[int] = field(default_factory=list)
    note: str = field(default="", compare=False)


@record
class Checked(Base):
    """One that looks at itself."""

    low: int = 0

    def __post_init__(self) -> None:
        if self.low < 0:
            raise ValueError(self.low)


@record
class Named:
    """One with words of its own."""

    name: str

    def __repr__(self) -> str:
        return f"<{self.name}>"


@ordered
class Pair:
    """One with an order."""

    low: int
    high: int = 0


@collector
class Heap:
    """One that is filled."""

    name: str
    parts: list[int] = field(default_factory=list)
    size: int = 0


STANDARD = dataclasses.make_dataclass(
    "Base",
    [
        ("name", "str"),
        ("size", "int", 0x1000),
        ("parts", "list[int]", dataclasses.field(default_factory=list)),
        ("note", "str", dataclasses.field(default="", compare=False)),
    ],
    frozen=True,
    slots=True,
)


def test_record_has_the_signature_of_a_dataclass_before_an_object_is_made() -> None:
    ours, theirs = (inspect.signature(kind).parameters for kind in (Base, STANDARD))

    assert [(item.name, item.kind) for item in ours.values()] == [
        (item.name, item.kind) for item in theirs.values()
    ]
    assert list(inspect.signature(Checked).parameters)[-1] == "low"


def test_record_takes_defaults_of_its_own_each_time() -> None:
    first, second = Base("a"), Base("a")
    first.parts.append(1)

    assert (first.size, second.parts) == (0x1000, [])


@pytest.mark.parametrize("wrong", [(), ("a", 1, [], "", 5)])
def test_record_with_a_wrong_number_of_values_raises_type_error(wrong: tuple[object, ...]) -> None:
    with pytest.raises(TypeError, match="__init__"):
        Base(*wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword"):
        Base("a", other=1)  # type: ignore[call-arg]


def test_record_cannot_be_changed_and_has_no_dict() -> None:
    item = Base("a")
    for change in (
        lambda: setattr(item, "size", 1),
        lambda: setattr(item, "new", 1),
        lambda: delattr(item, "size"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()

    assert not hasattr(item, "__dict__")
    assert item.size == 0x1000


def test_records_compare_and_hash_by_the_fields_that_count() -> None:
    assert Base("a", parts=(), note="x") == Base("a", parts=(), note="y")  # type: ignore[arg-type]
    assert hash(Base("a", parts=(), note="x")) == hash(Base("a", parts=(), note="y"))  # type: ignore[arg-type]
    assert Base("a") != Base("b")
    assert Base("a") != Checked("a")
    assert Base("a") != STANDARD("a")
    with pytest.raises(TypeError, match="unhashable"):
        hash(Base("a"))


@pytest.mark.parametrize(
    "same", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_record_is_copied_and_pickled_whole(same: object) -> None:
    item = Checked("a", 2, [3], "note", 4)

    assert same(item) == item  # type: ignore[operator]
    assert same(item).note == "note"  # type: ignore[operator]


def test_record_is_replaced_matched_and_taken_apart_as_a_dataclass() -> None:
    match dataclasses.replace(Checked("a"), low=7):
        case Checked("a", size, [], "", low):
            assert (size, low) == (0x1000, 7)
        case other:
            pytest.fail(repr(other))
    assert dataclasses.asdict(Base("a")) == {"name": "a", "size": 0x1000, "parts": [], "note": ""}
    with pytest.raises(ValueError, match="-1"):
        dataclasses.replace(Checked("a"), low=-1)


def test_record_is_replaced_as_dataclasses_do_it() -> None:
    item = Checked("a", parts=(), note="n", low=3)  # type: ignore[arg-type]

    assert replace(item, low=7) == dataclasses.replace(item, low=7)
    assert replace(item, low=7).note == "n"
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        replace(item, other=1)
    with pytest.raises(ValueError, match="-1"):
        replace(item, low=-1)


def test_record_tells_its_fields_with_those_of_its_base_first() -> None:
    told = dataclasses.fields(Checked)  # type: ignore[arg-type]

    assert names(Checked) == tuple(item.name for item in told)
    assert names(Checked) == ("name", "size", "parts", "note", "low")
    assert [item.type for item in told] == ["str", "int", "list[int]", "str", "int"]
    assert [item.compare for item in told] == [True, True, True, False, True]


def test_ordered_record_sorts_by_its_fields_and_not_with_others() -> None:
    pairs = [Pair(2), Pair(1, 5), Pair(1, 2)]

    assert sorted(pairs) == [Pair(1, 2), Pair(1, 5), Pair(2)]
    assert Pair(1) <= Pair(1) < Pair(1, 1)
    assert Pair(1, 1) > Pair(1) >= Pair(1)
    with pytest.raises(TypeError, match="not supported"):
        assert Pair(1) < (1, 2)


def test_collector_is_filled_and_compares_by_identity() -> None:
    first, second = Heap("a"), Heap("a")
    first.parts.append(1)
    first.size = 1

    assert (second.parts, second.size) == ([], 0)
    assert Heap("a") != second
    assert repr(first) == "Heap(name='a', parts=(1,), size=1)"
    with pytest.raises(AttributeError):
        first.other = 1  # type: ignore[attr-defined]


def test_package_is_imported_without_dataclasses() -> None:
    script = (
        "import sys, vmm_iova.planning.plan, vmm_iova.host.load\n"
        "sys.exit('dataclasses' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_record_keeps_a_repr_of_its_own() -> None:
    assert repr(Named("a")) == "<a>"
    assert repr(Checked("a", 0x2000, low=3)) == "Checked(name='a', size=0x2000, low=3)"


def test_pattern_is_compiled_at_its_first_use_and_then_is_one() -> None:
    late = regex("(?P<n>a+)b", re.IGNORECASE)
    wrong = regex("(")

    found = late.search("xAAb")

    assert found is not None
    assert found["n"] == "AA"
    assert late.groupindex == {"n": 1}
    assert late.search is late.search
    assert late.pattern == "(?P<n>a+)b"
    with pytest.raises(re.error):
        wrong.match("")


def test_every_pattern_of_the_package_compiles() -> None:
    late = [
        value
        for path in sorted((Path(__file__).parents[2] / "vmm_iova").rglob("*.py"))
        if path.name != "__main__.py"
        for value in vars(import_module(_module(path))).values()
        if type(value).__name__ == "_Late"
    ]

    assert len(late) > 80
    assert all(item.pattern for item in late)


def _module(path: Path) -> str:
    parts = path.relative_to(Path(__file__).parents[2]).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
