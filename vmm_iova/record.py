# SPDX-License-Identifier: Apache-2.0
"""Values with named fields, and how they say in one line what they are.

`@record` stands for `@dataclass(frozen=True, slots=True)`, without `dataclasses`. To load that with
`inspect` and `ast`, takes 8 ms; and for each class, of which a command loads a hundred, it compiles
six methods, 0.5 ms. Here five are shared by all, `__init__` is compiled when the first object is
made, and whoever asks for dataclass fields gets them, made then.
"""

from __future__ import annotations

import enum
import operator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, dataclass_transform

if TYPE_CHECKING:
    import inspect
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


_UNSET: Any = object()


class _Field:
    """What is said of a field beside its name: its default, and where it does not count."""

    __slots__ = ("compare", "default", "default_factory")

    def __init__(self, default: Any, default_factory: Any, compare: bool) -> None:
        self.default = default
        self.default_factory = default_factory
        self.compare = compare


def field(*, default: Any = _UNSET, default_factory: Any = _UNSET, compare: bool = True) -> Any:
    """Say of a field of a record what `dataclasses.field` says of others."""
    return _Field(default, default_factory, compare)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(kind: type[_T]) -> type[_T]:
    """Make a class of typed fields an immutable value.

    It is a dataclass (`fields`, `replace` and `asdict` work) with slots, and objects compare, hash,
    pickle and copy by their fields. Its repr is that of `brief`.

    Raises:
        dataclasses.FrozenInstanceError: (the objects) a field is set or deleted.
    """
    return _made(kind, _SHARED)  # type: ignore[no-any-return]


@dataclass_transform(eq_default=False, field_specifiers=(field,))
def collector(kind: type[_T]) -> type[_T]:
    """Make a class of typed fields one whose objects are filled bit by bit; they do not compare."""
    return _made(kind, {"__repr__": _repr})  # type: ignore[no-any-return]


@dataclass_transform(frozen_default=True, order_default=True, field_specifiers=(field,))
def ordered(kind: type[_T]) -> type[_T]:
    """Make a record whose objects are ordered by their fields, too."""
    made = record(kind)
    for of in (operator.lt, operator.le, operator.gt, operator.ge):
        setattr(made, f"__{of.__name__}__", _comparison(of))
    return made


def _comparison(of: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def compare(item: Any, other: Any) -> Any:
        if other.__class__ is not item.__class__:
            return NotImplemented
        return of(item._values(item), item._values(other))

    return compare


def _made(kind: Any, methods: dict[str, Any]) -> Any:
    """Return the class again, with slots for its fields: a class cannot get them later."""
    types = vars(kind).get("__annotations__", {})
    stated = {name: vars(kind).get(name, _UNSET) for name in types}
    fields = dict(getattr(kind, "_said_of", {}))
    slots = tuple(name for name in types if name not in fields)
    for name, value in stated.items():
        of = value if isinstance(value, _Field) else _Field(value, _UNSET, True)
        fields[name] = of
    namespace = {
        name: value
        for name, value in vars(kind).items()
        if name not in types and name not in ("__dict__", "__weakref__")
    }
    counted = [name for name, of in fields.items() if of.compare]
    namespace |= {
        "__doc__": kind.__doc__ or kind.__name__,
        "__qualname__": kind.__qualname__,
        "__slots__": slots,
        "__match_args__": tuple(fields),
        "__dataclass_fields__": _Dataclass("__dataclass_fields__"),
        "__dataclass_params__": _Dataclass("__dataclass_params__"),
        "_said_of": fields,
        "_values": operator.attrgetter(*counted) if counted else type,
        **{name: method for name, method in methods.items() if name not in vars(kind)},
    }
    made: Any = type(kind)(kind.__name__, kind.__bases__, namespace)
    made.__init__ = _first_init(made)
    made.__signature__ = _Signature()
    return made


class _Dataclass:
    """What `dataclasses` keeps of a class of its own, made when it asks."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, item: object, kind: Any) -> Any:
        import dataclasses

        def said(of: _Field) -> Any:
            given = {"default": of.default, "default_factory": of.default_factory}
            given = {name: value for name, value in given.items() if value is not _UNSET}
            return dataclasses.field(compare=of.compare, **given)

        types = _types(kind)
        fields = [(name, types[name], said(of)) for name, of in kind._said_of.items()]
        twin = dataclasses.make_dataclass(kind.__name__, fields)
        for name in ("__dataclass_fields__", "__dataclass_params__"):
            setattr(kind, name, getattr(twin, name))
        return getattr(twin, self._name)


def _types(kind: type) -> dict[str, Any]:
    """Annotations of a class and those above it."""
    return {
        name: value
        for base in reversed(kind.__mro__)
        for name, value in vars(base).get("__annotations__", {}).items()
    }


def names(kind: type) -> tuple[str, ...]:
    """Return the names of a record's fields."""
    return tuple(kind._said_of)  # type: ignore[attr-defined]


def replace(item: _T, **changes: Any) -> _T:
    """Return a record with other values in some fields: `dataclasses.replace`, and faster."""
    kept: Any = item
    values = [
        changes.pop(name) if name in changes else getattr(item, name) for name in kept._said_of
    ]
    return type(item)(*values, **changes)  # what is left there is no field, as `__init__` says


def _first_init(kind: Any) -> Callable[..., None]:
    """Return an `__init__` that compiles the real one, which takes its place."""

    def init(self: Any, *args: Any, **values: Any) -> None:
        _compile_init(kind)(self, *args, **values)

    return init


def _compile_init(kind: Any) -> Callable[..., None]:
    known: dict[str, Any] = {"_unset": _UNSET}
    parameters, lines = ["self"], []
    for name, of in kind._said_of.items():
        value = name
        known[f"_set_{name}"] = getattr(kind, name).__set__
        if of.default is not _UNSET:
            known[f"_default_{name}"] = of.default
            parameters.append(f"{name}=_default_{name}")
        elif of.default_factory is not _UNSET:
            known[f"_make_{name}"] = of.default_factory
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
    made.__annotations__ = {name: _types(kind)[name] for name in kind._said_of}
    kind.__init__ = made
    return made


class _Signature:
    """What `help` and `inspect.signature` show, also of a class that has no object yet."""

    def __get__(self, instance: object, kind: Any) -> inspect.Signature:
        import inspect

        shown = inspect.signature(_compile_init(kind))
        return shown.replace(parameters=list(shown.parameters.values())[1:])


def _refuse_set(item: object, name: str, value: object) -> NoReturn:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(item: object, name: str) -> NoReturn:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _equals(item: Any, other: Any) -> Any:
    if other.__class__ is not item.__class__:
        return NotImplemented
    return item._values(item) == item._values(other)


def _hash(item: Any) -> int:
    return hash(item._values(item))


def _state(item: Any) -> list[Any]:
    return [getattr(item, name) for name in item._said_of]


def _restore(item: Any, state: list[Any]) -> None:
    for name, value in zip(item._said_of, state, strict=True):
        object.__setattr__(item, name, value)


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
    if isinstance(item, tuple):  # a named one
        yield from (f"{name}={_shown(value)}" for name, value in item._asdict().items())  # type: ignore[attr-defined]
        return
    for name, of in _fields(item).items():
        value = getattr(item, name)
        if getattr(of, "repr", True) and not _is_default(of, value):
            yield f"{name}={_shown(value)}"


def _fields(item: Any) -> dict[str, Any]:
    """Fields of a record or a dataclass, by name; none of anything else."""
    kind = type(item)
    own = getattr(kind, "_said_of", None)
    return dict(getattr(kind, "__dataclass_fields__", {}) if own is None else own)


def _is_default(of: Any, value: object) -> bool:
    if of.default_factory is not _UNSET and callable(of.default_factory):
        return not value
    return bool(value == of.default)


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
    fields = _fields(value)
    if fields and "start" not in fields:
        name = getattr(value, "name", None)
        return f"{type(value).__name__}({repr(_cut(name)) if isinstance(name, str) else '...'})"
    return _cut(repr(value))


def _many(value: tuple[Any, ...] | list[Any] | set[Any] | frozenset[Any] | dict[Any, Any]) -> str:
    plain = all(isinstance(item, str | int) or item is None for item in value)
    if len(value) <= _FEW and plain and not isinstance(value, dict):
        return f"({', '.join(map(_shown, value))}{',' if len(value) == 1 else ''})"
    kinds = {type(item).__name__ for item in value}
    return f"<{len(value)} {kinds.pop() if len(kinds) == 1 else 'items'}>"


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
