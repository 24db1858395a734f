# SPDX-License-Identifier: Apache-2.0
"""Errors: one sentence, facts as attributes, an exit code each, and they pickle."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from vmm_iova import errors
from vmm_iova.errors import EXIT_CODES, IovaError
from vmm_iova.ranges import AddrRange

SPAN = AddrRange(0x1000, 0x1FFF)


def _classes(root: type[IovaError] = IovaError) -> list[type[IovaError]]:
    return [root, *(found for child in root.__subclasses__() for found in _classes(child))]


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_documented_exit_code(kind: type[IovaError]) -> None:
    assert kind.exit_code in EXIT_CODES


@pytest.mark.parametrize(
    "error",
    [
        errors.RequestError("size 0x0", field="size", value=0, hint="give more"),
        errors.ApertureError("outside", range=SPAN, limit=0xFFF),
        errors.ReservedError("touches", range=SPAN, region=SPAN, cause="msi of group 3"),
        errors.OccupiedError("taken", range=SPAN, owner="ram", owner_range=SPAN),
        errors.NoSpaceError(
            "full", size=1, align=1, largest_free=SPAN, largest_aligned=4, total_free=5
        ),
        errors.NarrowError("in the way", conflicts=[(SPAN, "queue")]),
        errors.PlanError("no", reasons=["a"], fixes=["split", "move"]),
        errors.EvidenceError("unknown", looked_at=["sysfs"], settles=["--aperture"]),
        errors.HostDataError("bad", source="x.txt", line=3, text="junk"),
        errors.HostUnavailableError("gone", source="/sys", errno=2),
        errors.UnknownNameError("who", kind="group", name="9", known=["1", "2"]),
        errors.SizeMismatchError("other size", value=2, range=SPAN),
        errors.StraddleError("across", range=SPAN, seam=0x1800),
        errors.DmaError("refused", errno=22, ioctl="VFIO_IOMMU_MAP_DMA", iova=1, length=2, hva=3),
        errors.PartialUnmapError("less", errno=0, ioctl="VFIO_IOMMU_UNMAP_DMA", unmapped=4),
        errors.DeviceOpenError(
            "gone", bdf="0000:00:01.0", problem="absent", errno=19, ioctl="open"
        ),
        errors.MappingError(
            "third", errno=12, ioctl="x", index=2, tag="ram", left=[(SPAN, "ram", OSError("why"))]
        ),
        errors.PrecheckError("two", problems=[errors.CapabilityError("a", offset=1, hint="b")]),
        errors.UndoError("stays", left=[(SPAN, None, OSError("why"))]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_survives_pickle_with_its_facts(error: IovaError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.args == error.args
    assert str(again) == str(error)
    for name, value in error.__dict__.items():
        assert repr(getattr(again, name)) == repr(value), name
    if isinstance(error, errors.DmaError):
        assert (again.errno, again.strerror) == (error.errno, os.strerror(error.errno))


def test_constructor_takes_the_declared_facts_and_nothing_else() -> None:
    with pytest.raises(TypeError, match="RequestError is not raised without value="):
        errors.RequestError("x", field="size")
    with pytest.raises(TypeError, match="RequestError has no granule"):
        errors.RequestError("x", field="size", value=1, granule=2)
    assert errors.SizeMismatchError("x", value=1, range=SPAN).field == "size"
    assert errors.HostDataError("x", source="y").line is None


def test_list_given_to_an_error_is_kept_as_a_tuple() -> None:
    known = ["1"]
    error = errors.UnknownNameError("who", kind="group", name="9", known=known)
    known.append("2")
    assert error.known == ("1",)


@pytest.mark.parametrize(
    ("error", "detail", "hint"),
    [
        (
            errors.StraddleError("x", range=SPAN, seam=0x1800),
            None,
            "map it in two pieces, cut at 0x1800",
        ),
        (errors.PlanError("x", fixes=["split", "move"]), None, "split; or move"),
        (errors.PlanError("x"), None, None),
        (
            errors.EvidenceError("x", looked_at=["a", "b"], settles=["c"]),
            "looked at: a; b",
            "give one of: c",
        ),
        (errors.EvidenceError("x", looked_at=[], settles=[]), None, None),
        (
            errors.PrecheckError(
                "x",
                problems=[
                    errors.CapabilityError("a", offset=1),
                    errors.CapabilityError("b", offset=1, hint="c"),
                ],
            ),
            "a; b",
            "c",
        ),
        (
            errors.MappingError(
                "x", errno=12, ioctl="y", index=0, tag="t", left=[(SPAN, "t", OSError("why"))]
            ),
            "still mapped: 0x1000-0x1fff (t): why",
            None,
        ),
        (errors.MappingError("x", errno=12, ioctl="y", index=0, tag="t"), None, None),
        (
            errors.UndoError("x", left=[(SPAN, "t", OSError("why"))]),
            "0x1000-0x1fff (t): why",
            "unmap_all on the address space, or closing it, removes them",
        ),
    ],
    ids=lambda item: type(item).__name__,
)
def test_error_words_what_follows_from_its_facts(
    error: IovaError, detail: str | None, hint: str | None
) -> None:
    assert (error.detail, error.hint) == (detail, hint)


def test_errors_are_declared_without_the_cost_of_dataclasses() -> None:
    program = (
        "import sys, types\n"
        "package = types.ModuleType('vmm_iova'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['vmm_iova'] = package; before = set(sys.modules)\n"
        "import vmm_iova.errors\n"
        "print({'dataclasses', 'inspect'} & (set(sys.modules) - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, Path(errors.__file__).parent],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"


def test_exit_code_is_its_number_and_says_what_it_means() -> None:
    assert errors.ExitCode.REFUSED == 3
    assert f"{errors.ExitCode.REFUSED:<3}" == "3  "
    assert errors.ExitCode(70).meaning == "a defect of this program"


def test_text_of_an_error_labels_detail_and_hint() -> None:
    error = errors.HostDataError("bad line", source="x", hint="take it again")
    assert str(error) == "bad line\nhint: take it again"


def test_request_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="below its start"):
        AddrRange(2, 1)


def test_readme_table_lists_every_exit_code() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    missing = [code for code, text in EXIT_CODES.items() if f"| {code} | {text} |" not in readme]
    assert missing == []
