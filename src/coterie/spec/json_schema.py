"""JSON Schema of the dataclasses that files and answers are made of."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def json_schema(root: type) -> dict[str, Any]:
    """The JSON Schema of a dataclass as ``json`` writes it.

    Fields may be numbers, texts, truth values, None, literals, unions, tuples of one kind, mappings from texts, and
    dataclasses of such fields. Every field is required and no other is allowed.

    Raises:
        TypeError: If a field is of another type.
    """
    definitions: dict[str, Any] = {}
    body = _of_dataclass(root, definitions)
    schema: dict[str, Any] = {"$schema": DIALECT, "title": root.__name__, **body}
    if definitions:
        schema["$defs"] = definitions
    return schema


def _of_dataclass(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    described = _descriptions(kind.__doc__ or "")
    properties = {
        name: _of(hints[name], definitions) | ({"description": described[name]} if name in described else {})
        for name in names
    }
    body: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }
    summary = " ".join((kind.__doc__ or "").strip().partition("\n\n")[0].split())
    return body | ({"description": summary} if summary else {})


def _of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}
            definitions[kind.__name__] = _of_dataclass(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(one, definitions) for one in inner]}
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return {"type": "array", "items": _of(inner[0], definitions)}
    if origin is dict and inner[0] is str:
        return {"type": "object", "additionalProperties": _of(inner[1], definitions)}
    raise TypeError(f"{kind} has no JSON Schema")


def _descriptions(document: str) -> dict[str, str]:
    """Field → text, from the section `Attributes` of a Google-style docstring."""
    found: dict[str, str] = {}
    name = ""
    _, _, section = document.partition("Attributes:\n")
    for line in section.splitlines():
        depth = len(line) - len(line.lstrip())
        if not line.strip() or depth < 8:
            break
        if depth == 8 and ":" in line:
            name, _, text = line.strip().partition(":")
            found[name] = text.strip()
        elif name:
            found[name] += " " + line.strip()
    return found
