"""Typed records of JSON files: one frozen dataclass, reader and writer for each kind of file."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json

T = TypeVar("T")
_KINDS = {
    "bool": "true or false",
    "dict": "an object",
    "float": "a number",
    "int": "an integer",
    "list": "a list",
    "str": "a string",
    "tuple": "a list",
}


@dataclass(frozen=True)
class Record:
    """Base of a dataclass that is stored as a JSON file with a ``version``.

    A field may be a plain JSON type, a list, ``tuple[T, ...]``, a dictionary with string keys,
    another dataclass, or one of these or None. Unknown keys in a file are ignored. A field without
    a default is required.
    """

    #: What to do about a file that lacks a key. It ends the error message.
    remedy: ClassVar[str] = "the file is damaged"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the record stored in ``path``.

        Raises
        ------
        UserError
            If the file is missing, damaged or of another version, lacks a required key, or has a
            value of the wrong type.
        """
        return cls.from_json(read_json(path), str(path))

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str) -> Self:
        """Return the record in a JSON object; ``source`` names the object in errors.

        Raises
        ------
        UserError
            If a required key is missing or a value has the wrong type.
        """
        try:
            return from_json(cls, values)
        except _BadValue as e:
            raise UserError(f"{source}: {e}: {cls.remedy}") from e

    def write(self, path: Path) -> None:
        """Write the record atomically, with its ``version`` first."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that :meth:`write` stores, without its ``version``."""
        values: dict[str, Any] = to_json(self)
        return values


def stored_as(key: str) -> dict[str, str]:
    """Return the ``metadata`` of a dataclass field whose key in the file is ``key``."""
    return {"key": key}


def to_json(value: Any) -> Any:
    """Return dataclasses, and lists and dictionaries of them, as plain JSON types."""
    if is_dataclass(value):
        return {_key(f): to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    return value


def from_json(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return a dataclass made from a JSON object; ``prefix`` names the object in errors."""
    hints = _type_hints(cls)  # type: ignore[arg-type]
    arguments, missing = {}, []
    for f in fields(cls):  # type: ignore[arg-type]
        key = _key(f)
        if key in values:
            arguments[f.name] = _decode(hints[f.name], values[key], prefix + key)
        elif f.default is MISSING and f.default_factory is MISSING:
            missing.append(prefix + key)
    if missing:
        raise _BadValue(f"lacks {', '.join(missing)}")
    return cls(**arguments)


class _BadValue(ValueError):
    """A JSON object lacks keys, or has a value whose type is not that of its field."""


@functools.cache
def _type_hints(cls: Hashable) -> dict[str, Any]:
    return get_type_hints(cls)


def _key(f: Field[Any]) -> str:
    return str(f.metadata.get("key", f.name))


def _decode(hint: Any, value: Any, name: str) -> Any:
    """Return ``value`` as the type ``hint``.

    An integer is a valid ``float``, but ``true`` and ``false`` are no numbers.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or (value is None and NoneType in arguments):
        return value
    if origin in (Union, UnionType):
        (hint,) = (option for option in arguments if option is not NoneType)
        return _decode(hint, value, name)
    expected: Any = dict if is_dataclass(hint) else origin or hint
    allowed: Any = {float: (int, float), tuple: list}.get(expected, expected)
    is_bool_number = isinstance(value, bool) and expected in (int, float)
    if is_bool_number or not isinstance(value, allowed):
        raise _BadValue(f"{name} must be {_KINDS.get(expected.__name__)}, not {value!r}")
    if is_dataclass(hint):
        return from_json(hint, value, f"{name}.")  # type: ignore[arg-type]
    if origin in (list, tuple):
        return origin(_decode(arguments[0], v, f"{name}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        return {key: _decode(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    return value
