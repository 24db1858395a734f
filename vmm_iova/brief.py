# SPDX-License-Identifier: Apache-2.0
"""How an object says in one line what it is: addresses and sizes in hex, long parts counted."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 200
"""Characters of a line at most."""

_TEXT = 48
"""Characters of one text in it."""

_FEW = 3
"""Parts of a collection that are shown; of more, the number is."""

_HEX_FROM = 1 << 10
"""Numbers from here up are addresses, sizes and masks; smaller ones are counts and bits."""

_T = TypeVar("_T")


def brief(kind: type[_T]) -> type[_T]:
    """Give a dataclass or named tuple a repr of at most `MOST` characters.

    Its attributes have the rest; those that are as by default are left out. Put it above
    `@dataclass`.
    """
    kind.__repr__ = _repr  # type: ignore[method-assign]
    return kind


def _repr(item: Any) -> str:
    kept: list[str] = []
    room = MOST - len(f"{type(item).__name__}(, ...)")
    for part in _parts(item):
        if len(part) + 2 > room:
            kept.append("...")
            break
        kept.append(part)
        room -= len(part) + 2
    return f"{type(item).__name__}({', '.join(kept)})"


def _parts(item: Any) -> Iterator[str]:
    if isinstance(item, tuple):
        yield from (f"{name}={_shown(value)}" for name, value in item._asdict().items())  # type: ignore[attr-defined]
        return
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if not field.repr or _is_default(field, value):
            continue
        yield f"{field.name}={_shown(value)}"


def _is_default(field: dataclasses.Field[Any], value: object) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(value == field.default)
    return field.default_factory is not dataclasses.MISSING and not value


def _shown(value: object) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:#x}" if abs(value) >= _HEX_FROM else str(value)
    if isinstance(value, str):
        return repr(_cut(value))
    if isinstance(value, tuple | list | set | frozenset | dict):
        return _many(value)
    if dataclasses.is_dataclass(value) and "start" not in _names(value):
        name = getattr(value, "name", None)
        return f"{type(value).__name__}({repr(_cut(name)) if isinstance(name, str) else '...'})"
    return _cut(repr(value))


def _many(value: tuple[Any, ...] | list[Any] | set[Any] | frozenset[Any] | dict[Any, Any]) -> str:
    plain = all(isinstance(item, str | int) or item is None for item in value)
    if len(value) <= _FEW and plain and not isinstance(value, dict):
        return f"({', '.join(map(_shown, value))}{',' if len(value) == 1 else ''})"
    kinds = {type(item).__name__ for item in value}
    return f"<{len(value)} {kinds.pop() if len(kinds) == 1 else 'items'}>"


def _names(value: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(value)}


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 3]}..."
