"""A pytest plugin that lets the tests of llama.cpp's server ask `coterie serve` instead.

Each test says how its server is to be started. Here a server with the same key, names and context is started once and
kept for all tests that want it. What the tests know of the texts of their own model is not looked at.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from functools import cache
from pathlib import Path
from typing import Any

# It is for downloading models, which nothing here does.
sys.modules.setdefault("wget", types.ModuleType("wget"))

import utils  # noqa: E402

PYTHON = os.environ["COTERIE_OTHER_PYTHON"]
LONGEST = 2048
"""Tokens of a sequence, where a test does not say."""

TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)

_processes: dict[tuple[str, ...], tuple[subprocess.Popen[str], int]] = {}


def _options(server: Any) -> tuple[str, ...]:
    """How `coterie serve` is told what a test wants of llama-server."""
    context = (server.n_ctx or LONGEST) // (server.n_slots or 1)
    options = ["--max-context", str(context), "--queue", "64", "--parallel", str(server.n_slots or 1)]
    names = [] if server.model_alias is None else server.model_alias.split(",")
    if "library" in (test := os.environ["PYTEST_CURRENT_TEST"]) or "logprobs" in test or "anthropic" in test:
        # Names that tests give to whatever they ask.
        names += ["gpt-3.5-turbo", "gpt-3.5-turbo-instruct", "davinci-002", "gpt-4.1", "test"]
    for name in names:
        options += ["--alias", name]
    if server.api_key:
        with tempfile.NamedTemporaryFile("w", suffix=".keys", delete=False) as file:
            file.write(server.api_key)
        options += ["--api-key-file", file.name]
    return tuple(options)


@cache
def _with_template() -> str:
    """The bundled model with a chat template that shows tools."""
    folder = Path(tempfile.mkdtemp(prefix="coterie-tools-")) / "tools"
    question = "import coterie; print(coterie.__path__[0])"
    package = subprocess.run([PYTHON, "-c", question], capture_output=True, text=True, check=True).stdout.strip()
    shutil.copytree(Path(package) / "bundled", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return str(folder)


def _model(server: Any) -> str:
    return _with_template() if server.jinja else "bundled"


def _start(server: Any, timeout_seconds: int = 0) -> None:
    options = _options(server)
    # Files of keys have names of their own.
    key = (_model(server), *(one for one in options if not one.endswith(".keys")), server.api_key or "")
    if key not in _processes:
        command = [PYTHON, "-m", "coterie", "serve", _model(server), "--port", "0", *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r":(\d+)/v1", line):
                break
        else:
            raise RuntimeError("The server did not start.")
        log = Path(tempfile.gettempdir()) / f"coterie-{process.pid}.log"
        subprocess.Popen(["cat"], stdin=process.stderr, stdout=log.open("w"))
        _processes[key] = process, int(found[1])
    server.server_port = _processes[key][1]
    server.ready = True


def _url(server: Any, path: str, host: str | None = None) -> str:
    if re.match(r"/(chat/completions|responses|models|messages|embeddings|audio)\b", path):
        path = f"/v1{path}"
    return f"http://{host or server.server_host.split(',')[0]}:{server.server_port}{path}"


def pytest_configure() -> None:
    """Before any test is imported."""
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.ServerProcess.start = _start
    utils.ServerProcess.stop = lambda server: None
    utils.ServerProcess.make_url = _url
    utils.match_regex = lambda _, text: isinstance(text, str)


def pytest_unconfigure() -> None:
    """Ends all servers."""
    for process, _ in _processes.values():
        process.terminate()
    for process, _ in _processes.values():
        process.wait(60)
