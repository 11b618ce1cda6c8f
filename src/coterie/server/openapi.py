"""The OpenAPI document, made of what requests are checked against."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter

from coterie.server.operations import Operation
from coterie.server.schemas.answers import AnthropicErrorAnswer, ErrorAnswer

_REFERENCE = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_ERRORS = {"openai": ErrorAnswer, "anthropic": AnthropicErrorAnswer}


def document(operations: Sequence[Operation], *, version: str, keys: bool) -> dict[str, Any]:
    """Describes a server.

    Args:
        operations: What it can be asked.
        version: Of Coterie.
        keys: Whether it wants a key.
    """
    kinds = {one for op in operations for one in (op.asked, op.answered, _ERRORS[op.dialect]) if one is not None}
    schemas: dict[str, Any] = {}
    for kind in sorted(kinds, key=lambda one: str(one.__name__)):
        schema = TypeAdapter(kind).json_schema(ref_template=_REFERENCE)
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(_PARAMETER.sub(r"{\1}", operation.path), {})[operation.method.lower()] = _described(
            operation, keys=keys
        )
    components: dict[str, Any] = {"schemas": dict(sorted(schemas.items()))}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Coterie", "version": version},
        "paths": paths,
        "components": components,
    }


def _described(operation: Operation, *, keys: bool) -> dict[str, Any]:
    error = {"description": "Why there is no answer.", "content": _json(_ERRORS[operation.dialect])}
    content: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in operation.kinds}
    if operation.answered is not None:
        content |= _json(operation.answered)
    elif not content:
        content = {"text/plain": {"schema": {"type": "string"}}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {"200": {"description": "The answer.", "content": content}, "default": error},
    }
    if operation.asked is not None:
        kind = "multipart/form-data" if operation.form else "application/json"
        described["requestBody"] = {"required": True, "content": _content(kind, operation.asked)}
    if names := _PARAMETER.findall(operation.path):
        described["parameters"] = list(_parameters(names))
    if keys and not operation.keyless:
        described["security"] = [{"key": []}]
    return described


def _json(kind: Any) -> dict[str, Any]:
    return _content("application/json", kind)


def _content(media_type: str, kind: Any) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": _REFERENCE.format(model=kind.__name__)}}}


def _parameters(names: Iterable[str]) -> Iterable[dict[str, Any]]:
    return ({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names)
