"""Renders chat templates in a process of its own; run as a script within limits, with nothing but jinja2.

The template of a checkpoint is a stranger's program. jinja's sandbox keeps it from reading files, not from taking all
memory or time. What templates find in it (filters, functions, extensions) is what transformers gives them.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any


def _environment() -> Any:
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` marks what the assistant said, which training wants to know and nobody here."""

        tags = {"generation"}  # noqa: RUF012 - what jinja2 declares

        def parse(self, parser: Any) -> Any:
            lineno = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

        def _body(self, caller: Any) -> Any:
            return caller()

    class PlainDict:
        """``dict``, without what a class can do."""

        def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
            return dict(*arguments, **named)

        def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
            return dict.fromkeys(*arguments)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now, "dict": PlainDict()}
    return environment


def _render(request: dict[str, Any]) -> list[dict[str, str]]:
    """The text of each conversation, or why there is none."""
    try:
        template = _environment().from_string(request["template"])
    except MemoryError:
        raise
    except Exception as error:
        return [{"error": f"it is not a template: {error}"}] * len(request["conversations"])
    results: list[dict[str, str]] = []
    for messages in request["conversations"]:
        try:
            text = template.render(messages=messages, **request["variables"])
        except MemoryError:
            raise
        except Exception as error:
            said = str(error) if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: {error}"
            results.append({"error": said[:2000]})
            continue
        if len(text) > request["longest"]:
            results.append({"error": f"it makes more than {request['longest']:,} characters of it"})
        else:
            results.append({"text": text})
    return results


def prepare() -> None:
    """Imports what :func:`answer` needs."""
    _environment()


def answer(request: bytes) -> bytes:
    """The results of a request, both as one JSON text."""
    try:
        results: Any = _render(json.loads(request))
    except MemoryError:
        results = "memory"
    return json.dumps(results).encode("ascii")


def main() -> None:
    """Reads a request from stdin and writes the results to stdout."""
    written = answer(sys.stdin.buffer.read())
    with open(1, "wb") as answers:
        answers.write(written)


if __name__ == "__main__":
    main()
