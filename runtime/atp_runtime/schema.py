"""Frozen dataclasses to JSON and back, checked field by field.

The manifest, the reports and the pruning configuration are declared once, as
dataclasses; this module is the only place that knows how such a declaration is read.
Supported annotations: `str`, `int`, `float`, `bool`, `None`, other dataclasses,
`tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]`, `X | Y`, `Any`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from atp_runtime.errors import InputError

T = TypeVar("T")


class SchemaError(ValueError):
    """A JSON value does not fit the declaration; the message starts with its path."""


def to_json(value: Any) -> Any:
    """The plain JSON value (dict, list, str, number, bool, None) of a declared value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: to_json(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[T], value: Any, *, source: str, fix: str) -> T:
    """Reads a value of the dataclass `cls` from parsed JSON.

    Args:
        cls: A frozen dataclass.
        value: What `json.loads` returned.
        source: The file's name, for the message.
        fix: What the user can do when the file is malformed.

    Raises:
        InputError: A field is missing, unknown, or of another type; the message names it.
    """
    try:
        return typing.cast("T", _read(cls, value, path=""))
    except SchemaError as error:
        raise InputError(
            f"{source}: {error}", why=f"it is not a valid {cls.__name__}.", fix=fix
        ) from error


def _read(hint: Any, value: Any, *, path: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _read_dataclass(hint, value, path)
    if origin is tuple:
        return _read_tuple(typing.get_args(hint), value, path)
    if origin in (Mapping, dict):
        _require(isinstance(value, dict), value, "an object", path)
        item_hint = typing.get_args(hint)[1]
        return {k: _read(item_hint, v, path=f"{path}.{k}") for k, v in value.items()}
    if origin in (typing.Union, types.UnionType):
        return _read_union(typing.get_args(hint), value, path)
    return _read_scalar(hint, value, path)


def _read_dataclass(cls: type[Any], value: Any, path: str) -> Any:
    _require(isinstance(value, dict), value, "an object", path)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise SchemaError(f"{path or 'top level'}: unknown field {unknown[0]!r}")
    read = {}
    for name, field in fields.items():
        if name in value:
            read[name] = _read(hints[name], value[name], path=f"{path}.{name}".lstrip("."))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SchemaError(f"{path or 'top level'}: field {name!r} is missing")
    try:
        return cls(**read)
    except ValueError as error:
        raise SchemaError(f"{path or 'top level'}: {error}") from error


def _read_tuple(items: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    _require(isinstance(value, list), value, "a list", path)
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_read(items[0], v, path=f"{path}[{i}]") for i, v in enumerate(value))
    _require(len(value) == len(items), value, f"a list of {len(items)}", path)
    pairs = zip(items, value, strict=True)
    return tuple(_read(hint, v, path=f"{path}[{i}]") for i, (hint, v) in enumerate(pairs))


def _read_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    first: SchemaError | None = None
    for option in options:
        try:
            return _read(option, value, path=path)
        except SchemaError as error:
            first = first or error
    raise first or SchemaError(f"{path}: no type declared")


def _read_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is type(None):
        _require(value is None, value, "null", path)
        return None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_number_as_bool = isinstance(value, bool) and hint is not bool
    _require(isinstance(value, hint) and not is_number_as_bool, value, hint.__name__, path)
    return value


def _require(ok: bool, value: Any, expected: str, path: str) -> None:
    if not ok:
        shown = repr(value)
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        raise SchemaError(f"{path or 'top level'}: expected {expected}, found {shown}")
