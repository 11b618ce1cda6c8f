"""Takes answers apart as a tokenizer says, in a process of its own; run as a script within limits.

What a tokenizer says about its model's answers is full of regular expressions, and those of a stranger may take all
time and memory. transformers' own parser does the work. It is loaded without the rest of transformers, which takes
seconds.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any


class _NoForm(Exception):
    """What the tokenizer says cannot be used at all."""


def _prepare(folder: Path) -> None:
    """Has the packages around the parser be as good as empty."""
    for name, path in (("transformers", folder), ("transformers.utils", folder / "utils")):
        package: Any = ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    utils: Any = sys.modules["transformers.utils"]
    logs: Any = ModuleType("transformers.utils.logging")
    logs.get_logger = logging.getLogger
    utils.logging = sys.modules[logs.__name__] = logs
    utils.is_jmespath_available = lambda: find_spec("jmespath") is not None
    tools: Any = ModuleType("transformers.utils.chat_template_utils")
    tools.get_json_schema = None  # for tools that are functions of Python
    sys.modules[tools.__name__] = tools


def _message(request: dict[str, Any]) -> Any:
    """What the parser makes of an answer."""
    text, form = request["text"], request["form"]
    if request["kind"] == "response_schema":
        return import_module("transformers.utils.chat_parsing_utils").recursive_parse(text, form)
    parse = import_module("transformers.utils.chat_parsing").parse_response
    try:
        form = import_module("transformers.utils.chat_parsing.response_templates").load_response_template(form)
    except Exception as error:
        # Of this an answer is no part.
        raise _NoForm(f"it is none: {error}") from error
    more = {"tools": request["tools"]} if "tools" in inspect.signature(parse).parameters else {}
    return parse(text, form, prefix=request["prompt"], **more)


def main() -> None:
    """Reads a request from stdin and writes the message, or why there is none, to stdout, both as one JSON text."""
    logging.disable()
    request = json.loads(sys.stdin.buffer.read())
    answer: dict[str, Any]
    try:
        _prepare(Path(request["transformers"]))
        answer = {"message": _message(request)}
        written = json.dumps(answer, allow_nan=False)
    except _NoForm as problem:
        written = json.dumps({"problem": " ".join(str(problem).split())[:500]})
    except MemoryError:
        written = json.dumps({"problem": "it takes too much memory"})
    except Exception as error:
        # Its message may quote the answer, which is nobody else's.
        written = json.dumps({"problem": f"it raises {type(error).__name__}"})
    if len(written) > request["longest"]:
        written = json.dumps({"problem": "it makes far more of an answer than there is"})
    with open(1, "wb") as answers:
        answers.write(written.encode("ascii"))


if __name__ == "__main__":
    main()
