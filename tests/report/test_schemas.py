# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas: strict, described key by key, and true of what the commands print."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

import vmm_iova as vi
from tests.answers.test_answers import lines
from tests.kit.command import Output, run
from tools import schemas
from vmm_iova.host.load import bundled_text

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "reference/json.md"
NAMES = sorted(schemas.outputs())
LINE = "vfio_dma_map(0x1, 0x382000000000, 0x1000, 0x2) = -22"


def packaged(name: str) -> dict[str, Any]:
    folder = resources.files("vmm_iova.report") / "schemas"
    read: dict[str, Any] = json.loads((folder / f"{name}.schema.json").read_text("utf-8"))
    return read


@cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(packaged(name))


def check(document: dict[str, Any]) -> str:
    """Hold a document to its schema, and return the name of it."""
    name = document["schema"]["name"].removeprefix("vmm-iova-")
    found = [
        f"{list(e.absolute_path)}: {e.message[:200]}" for e in validator(name).iter_errors(document)
    ]
    assert found == []
    return str(name)


def printed(output: Output, *command: str) -> dict[str, Any]:
    run(*command, "-J")
    read: dict[str, Any] = json.loads(output.readouterr().out)
    return read


@pytest.mark.parametrize("name", NAMES)
def test_schema_in_the_package_is_what_is_written_down(name: str) -> None:
    assert packaged(name) == schemas.outputs()[name], "make docs writes it anew"
    Draft202012Validator.check_schema(packaged(name))


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all in it, but what is a schema of its own."""
    if isinstance(schema, list):
        for item in schema:
            yield from parts(item)
    elif isinstance(schema, dict) and "$id" not in schema:
        yield schema
        for value in schema.values():
            yield from parts(value)


@pytest.mark.parametrize("name", NAMES)
def test_schema_describes_every_key_and_allows_no_other(name: str) -> None:
    for part in parts(packaged(name)):
        if part.get("type") == "object":
            assert "additionalProperties" in part
            assert part["additionalProperties"] is not True
        for key, value in part.get("properties", {}).items():
            if isinstance(value, dict) and part.get("type") == "object":
                assert value.get("description"), key


@pytest.mark.parametrize(
    "host",
    [
        host if host.startswith("amd") else pytest.param(host, marks=pytest.mark.slow)
        for host in vi.bundled_hosts()
    ],
)
def test_answers_about_bundled_host_are_as_their_schemas_say(host: str, capsys: Output) -> None:
    machine = "virt" if host.startswith("arm") else "s390x" if "s390" in host else "q35"
    plan = ("plan", "--host", host, "--ram", "2G", "--machine", machine)
    assert check(printed(capsys, "show", "--host", host)) in ("show", "error")
    assert check(printed(capsys, *plan)) in ("layout", "error")
    assert check(printed(capsys, *plan, "--aperture", "42", "--compare")) in ("layout", "error")
    ranges = ("--range", "0xfd00000000+4G", "--range", "0xfee00000+1M")
    assert check(printed(capsys, "check", "--host", host, "--aperture", "42", *ranges)) in (
        "check",
        "error",
    )
    assert check(printed(capsys, "diff", host, "amd-epyc-1tb")) in ("diff", "error")
    assert check(printed(capsys, "explain", LINE, "--host", host)) in ("explain", "error")


def commands(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each output at least once, with what few requests have."""
    q35 = ("--machine", "q35", "--ram", "8G")
    yield "hosts", ("show", "--list")
    yield "machines", ("machines",)
    yield "machines", ("machines", "q35")
    yield "error", ("plan", "--bogus")
    yield "error", ("plan", "--host", "nowhere", "--ram", "4G")
    yield "error", ("plan", "--host", "intel-dmar-i7-2600", "--machine", "q35", "--ram", "600G")
    yield "error", ("plan", "--host", "lab-vtd-iommufd", "--machine", "q35", "--ram", "300TiB")
    yield "explain", ("explain", LINE)
    yield "diff", ("diff", "amd-epyc-1tb", "intel-dmar-i7-2600", "--ram", "16G")
    yield "layout", ("plan", "--host", "amd-epyc-1tb", *q35, "--viommu", "--room", "later=64M")
    yield "layout", ("plan", "--host", "amd-epyc-1tb", *q35, "--bar", "gpu=1G,required")
    for definition in ("win11.xml", "hgx.xml", "desktop.txt", "arm.sh"):
        host = "arm-centos7-server-05-00-0" if definition == "arm.sh" else "amd-epyc-1tb"
        file = str(DOCS / "definitions" / definition)
        yield "layout error", ("plan", "--host", host, "--vm", file)
    for host in ("amd-epyc-1tb", "intel-dmar-i7-2600", "s390x-32g"):
        (folder / f"{host}.txt").write_text(bundled_text(host) or "")
    attach = ("--attach", "0000:00:11.0", "--range", "0x8000000000+4K")
    yield "attach", ("check", "--host", "lab-vtd-39", "-s", "0000:00:10.0", *attach)
    yield "capture", ("capture", "--host", "lab-vtd-39", "-o", str(folder / "captured.json"))
    yield "fleet", ("fleet", str(folder), *q35)
    yield "fleet", ("fleet", str(folder), "--ram", "600G")


def test_each_output_is_as_its_schema_says(tmp_path: Path, capsys: Output) -> None:
    seen = set()
    for wanted, command in commands(tmp_path):
        name = check(printed(capsys, *command))
        assert name in wanted.split(), command
        seen.add(name)
    assert seen >= set(NAMES) - {"show", "check"}  # which the test above has


@pytest.mark.slow
@pytest.mark.parametrize("part", range(7))
def test_recorded_requests_are_as_their_schemas_say(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [line.command.split() for line in lines()[part::7]]
    asked = [words for words in asked if not {"--format", "--dry-run"} & set(words)]
    for words in asked:
        check(printed(capsys, *[word for word in words if word != "-J"]))
    assert len(asked) > 50


def test_reference_has_every_key_that_is_printed(capsys: Output, tmp_path: Path) -> None:
    page = PAGE.read_text("utf-8")
    for _, command in commands(tmp_path):
        document = printed(capsys, *command)
        name = document["schema"]["name"]
        section = page.split(f"## {name}\n", 1)[1].split("\n## ", 1)[0]
        known = set(re.findall(r"^\| `([^`]+)` ", section, re.M))
        for key in keys(document, validator(name.removeprefix("vmm-iova-")).schema):
            assert key in known, f"{name}: {key}"


def keys(value: Any, schema: Any, path: str = "") -> Iterator[str]:
    """Every key of a document as the page names it: `.*` where keys are data."""
    if "anyOf" in schema:
        schema = schema["anyOf"][0]
    if "$id" in schema or value is None:
        return
    if isinstance(value, list):
        for item in value:
            yield from keys(item, schema["items"], f"{path}[]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in schema.get("properties", {}):
                where = f"{path}.{key}".lstrip(".")
                yield where
                yield from keys(item, schema["properties"][key], where)
            elif isinstance(schema.get("additionalProperties"), dict):
                yield from keys(item, schema["additionalProperties"], f"{path}.*")
            else:
                yield f"{path}.{key}".lstrip(".")
