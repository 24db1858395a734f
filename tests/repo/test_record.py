# SPDX-License-Identifier: Apache-2.0
"""Records are frozen dataclasses with slots, and patterns compile late."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import re
from importlib import import_module
from pathlib import Path

import pytest

from vmm_iova.patterns import regex
from vmm_iova.record import record


@record
class Base:
    """A record with every kind of field."""

    name: str
    size: int = 0x1000
    parts: list[int] = dataclasses.field(default_factory=list)
    note: str = dataclasses.field(default="", compare=False)


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
