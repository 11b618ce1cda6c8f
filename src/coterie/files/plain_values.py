"""Frozen values as plain ones, for JSON, and back."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

_INFINITE = {"inf": math.inf, "-inf": -math.inf}


def to_plain(value: Any) -> Any:
    """Dictionaries, lists, texts and numbers; what is infinite is the text ``"inf"`` (or ``"-inf"``).

    Args:
        value: What :func:`dataclasses.asdict` made, or a part of it.
    """
    if isinstance(value, Mapping):
        return {name: to_plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def from_plain(kind: Any, value: Any) -> Any:
    """The dataclass that plain values were made of, with everything in it.

    Args:
        kind: The class, or the type of a field of one.
        value: From :func:`to_plain`, or from JSON.

    Raises:
        ValueError: If it is not what such a class can be made of.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value)
    if origin is Literal:
        return _checked(value in arguments, value, kind)
    if origin is tuple:
        _checked(isinstance(value, list), value, kind)
        return tuple(from_plain(arguments[0], one) for one in value)
    if origin is not None and issubclass(origin, Mapping):
        _checked(isinstance(value, dict), value, kind)
        return {name: from_plain(arguments[1], one) for name, one in value.items()}
    if kind is float:
        if isinstance(value, str) and value in _INFINITE:
            return _INFINITE[value]
        return float(_checked(isinstance(value, int | float) and not isinstance(value, bool), value, kind))
    return _checked(type(value) is kind, value, kind)


def _dataclass(kind: Any, value: Any) -> Any:
    _checked(isinstance(value, dict), value, kind)
    hints = typing.get_type_hints(kind)
    unknown = sorted(value.keys() - hints.keys())
    if unknown:
        raise ValueError(f"{kind.__name__} has no {unknown[0]}")
    try:
        return kind(**{name: from_plain(hints[name], entry) for name, entry in value.items()})
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


def _one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is not type(None):
            try:
                return from_plain(kind, value)
            except ValueError:
                continue
    raise ValueError(f"{value!r} is none of {', '.join(map(str, kinds))}")


def _checked(fits: bool, value: Any, kind: Any) -> Any:
    if not fits:
        raise ValueError(f"{value!r} is no {getattr(kind, '__name__', kind)}")
    return value
