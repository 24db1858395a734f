# SPDX-License-Identifier: Apache-2.0
"""The doors are closed: whatever a public name shows can itself be had at a public place."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import vmm_iova as vi

DOORS = tuple(
    f"vmm_iova{door}" for door in ("", ".errors", ".fleet", ".kernel", ".mapping", ".simulated")
)
COMMON = {"DmaError", "IovaError", "NoSpaceError", "PlanError", "RequestError"}
"""Errors that everyone catches; all others are had at `vi.errors`."""


def _public(door: str) -> dict[str, Any]:
    module = import_module(door)
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and getattr(value, "__module__", door) in (door, "typing")
            and not inspect.ismodule(value)
        ]
    return {name: getattr(module, name) for name in names}


@cache
def _names(module_name: str) -> dict[str, Any]:
    """What annotations of a module may name, imports for type checkers included."""
    module = import_module(module_name)
    names = dict(vars(module))
    if module.__file__ and module.__file__.endswith(".py"):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text("utf-8"))):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                exec(compile(ast.Module(node.body, []), module_name, "exec"), names)
    return names


def _hints(value: Any) -> Iterator[tuple[str, Any]]:
    """Every annotation that a public function or class shows, with its name."""
    if inspect.isfunction(value):
        for name, hint in typing.get_type_hints(value, _names(value.__module__)).items():
            yield f"({name})", hint
    elif isinstance(value, type) and value.__module__.startswith("vmm_iova"):
        for base in value.__mro__:
            if not base.__module__.startswith("vmm_iova"):
                continue
            for name, hint in _attributes(base).items():
                yield f".{name}", hint
            for name, member in vars(base).items():
                if name.startswith("_") and name not in ("__init__", "__iter__", "__getitem__"):
                    continue
                member = member.fget if isinstance(member, property) else member
                member = getattr(member, "__func__", member)
                # A dataclass writes its constructor of the attributes, which were seen above.
                if inspect.isfunction(member) and member.__code__.co_filename != "<string>":
                    yield from ((f".{name}{at}", hint) for at, hint in _hints(member))


def _attributes(kind: type) -> dict[str, Any]:
    shown = {
        name: hint
        for name, hint in vars(kind).get("__annotations__", {}).items()
        if not name.startswith("_")
    }
    plain = type("Shown", (), {"__annotations__": shown})
    return typing.get_type_hints(plain, _names(kind.__module__))


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else ():
        for item in part if isinstance(part, list) else [part]:
            yield from _parts(item)


PUBLIC = {door: _public(door) for door in DOORS}
OPEN = [value for names in PUBLIC.values() for value in names.values()]


def _closed(part: Any) -> bool:
    """Whether a part of an annotation is of ours and can be had nowhere."""
    if typing.get_origin(part) is typing.Literal:
        return part not in [value for value in OPEN if typing.get_origin(value) is typing.Literal]
    ours = str(getattr(part, "__module__", "")).startswith("vmm_iova")
    named = isinstance(part, type | typing.NewType) and not typing.get_args(part)
    if isinstance(part, type) and part.__name__.startswith("_"):
        # A private base stands for the public class that is made of it.
        return ours and not any(isinstance(item, type) and issubclass(item, part) for item in OPEN)
    return ours and named and not any(part is value for value in OPEN)


@pytest.mark.parametrize("door", DOORS)
def test_every_type_in_a_public_signature_or_attribute_is_public_itself(door: str) -> None:
    closed = {
        f"{name}{where}: {part}"
        for name, value in PUBLIC[door].items()
        for where, hint in _hints(value)
        for part in _parts(hint)
        if _closed(part)
    }
    assert closed == set()


def test_walk_of_the_doors_sees_signatures_attributes_and_properties() -> None:
    shown = dict(_hints(vi.Host))
    assert shown[".groups"] == tuple[vi.Group, ...]
    assert dict(_hints(vi.AddrRange))[".size(return)"] is int
    assert dict(_hints(vi.plan))["(on_hole)"] == vi.OnHole
    assert dict(_hints(vi.errors.ApertureError))[".range"] is vi.AddrRange


@pytest.mark.parametrize("door", DOORS)
def test_public_name_is_documented_where_it_stands(door: str) -> None:
    bare = {
        name
        for name, value in PUBLIC[door].items()
        if (inspect.isfunction(value) or isinstance(value, type)) and not inspect.getdoc(value)
    }
    assert bare == set()


def test_package_shows_only_the_errors_that_everyone_catches() -> None:
    shown = {
        name
        for name, value in PUBLIC["vmm_iova"].items()
        if isinstance(value, type) and issubclass(value, vi.errors.IovaError)
    }
    assert shown == COMMON
    assert vi.errors.IovaError is vi.IovaError


def test_public_name_stands_once_one_a_line_and_is_loaded_when_asked_for() -> None:
    stub = Path(vi.__file__).with_suffix(".pyi").read_text("ascii")
    tree = ast.parse(stub)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = [alias.asname for node in imports for alias in node.names]
    assert all(len(node.names) == 1 for node in imports)
    assert all(node.names[0].name == node.names[0].asname for node in imports)
    assert sorted(set(names)) == sorted(names) == vi.__all__
    with pytest.raises(AttributeError, match="module 'vmm_iova' has no attribute 'nothing'"):
        vi.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert set(vi.__all__) <= set(dir(vi))
