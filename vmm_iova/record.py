# SPDX-License-Identifier: Apache-2.0
"""Immutable values with named fields, and how they say in one line what they are.

`@record` stands for `@dataclass(frozen=True, slots=True)`, at a sixth of its cost when a module is
loaded: `dataclasses` compiles six methods for each class, 0.5 ms; here five are shared by all, and
`__init__` is compiled when the first object is made. A command loads a hundred such classes.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST = 200
"""Characters of a repr at most."""

_TEXT = 48
"""Characters of one text in it."""

_FEW = 3
"""Parts of a collection that are shown; of more, the number is."""

_HEX_FROM = 1 << 10
"""Numbers from here up are addresses, sizes and masks; smaller ones are counts and bits."""

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def record(kind: type[_T]) -> type[_T]:
    """Make a class of typed fields an immutable value.

    It is a dataclass (`fields`, `replace` and `asdict` work) with slots, and objects compare, hash,
    pickle and copy by their fields. Its repr is that of `brief`.

    Raises:
        dataclasses.FrozenInstanceError: (the objects) a field is set or deleted.
    """
    kind.__doc__ = kind.__doc__ or kind.__name__  # else dataclasses makes one, of the signature
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)(kind)
    names = [field.name for field in dataclasses.fields(made) if field.compare]
    made._values = attrgetter(*names) if names else type
    made.__init__ = _first_init(made)
    made.__signature__ = _Signature()
    for name, method in _SHARED.items():
        if name not in vars(kind):
            setattr(made, name, method)
    return made  # type: ignore[no-any-return]


def _first_init(kind: Any) -> Callable[..., None]:
    """Return an `__init__` that compiles the real one, which takes its place."""

    def init(self: Any, *args: Any, **values: Any) -> None:
        _compile_init(kind)(self, *args, **values)

    return init


def _compile_init(kind: Any) -> Callable[..., None]:
    known: dict[str, Any] = {"_unset": dataclasses.MISSING}
    parameters, lines = ["self"], []
    for field in dataclasses.fields(kind):
        name = value = field.name
        known[f"_set_{name}"] = getattr(kind, name).__set__
        if field.default is not dataclasses.MISSING:
            known[f"_default_{name}"] = field.default
            parameters.append(f"{name}=_default_{name}")
        elif field.default_factory is not dataclasses.MISSING:
            known[f"_make_{name}"] = field.default_factory
            parameters.append(f"{name}=_unset")
            value = f"_make_{name}() if {name} is _unset else {name}"
        else:
            parameters.append(name)
        lines.append(f"_set_{name}(self, {value})")
    if hasattr(kind, "__post_init__"):
        lines.append("self.__post_init__()")
    source = f"def __init__({', '.join(parameters)}):\n    " + "\n    ".join(lines or ["pass"])
    exec(source, known)  # noqa: S102 - names of fields alone, as dataclasses does it
    made: Callable[..., None] = known["__init__"]
    made.__qualname__ = f"{kind.__qualname__}.__init__"
    made.__module__ = kind.__module__
    made.__annotations__ = {item.name: item.type for item in dataclasses.fields(kind)}
    kind.__init__ = made
    return made


class _Signature:
    """What `help` and `inspect.signature` show, also of a class that has no object yet."""

    def __get__(self, instance: object, kind: Any) -> inspect.Signature:
        shown = inspect.signature(_compile_init(kind))
        return shown.replace(parameters=list(shown.parameters.values())[1:])


def _refuse_set(item: object, name: str, value: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(item: object, name: str) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _equals(item: Any, other: Any) -> Any:
    if other.__class__ is not item.__class__:
        return NotImplemented
    return item._values(item) == item._values(other)


def _hash(item: Any) -> int:
    return hash(item._values(item))


def _state(item: Any) -> list[Any]:
    return [getattr(item, field.name) for field in dataclasses.fields(item)]


def _restore(item: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(item), state, strict=True):
        object.__setattr__(item, field.name, value)


def brief(kind: type[_T]) -> type[_T]:
    """Give a dataclass or named tuple a repr of at most `MOST` characters.

    Its attributes have the rest; those that are as by default are left out. `record` has it.
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


_SHARED = {
    "__setattr__": _refuse_set,
    "__delattr__": _refuse_delete,
    "__eq__": _equals,
    "__hash__": _hash,
    "__getstate__": _state,
    "__setstate__": _restore,
    "__repr__": _repr,
}
"""Methods of all records; a class that has its own keeps it."""
