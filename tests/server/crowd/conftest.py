"""Servers as their users start them, for many clients at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.conftest import BUNDLED
from server.process import Process
from server.test_tools import TEMPLATE

Start = Callable[..., Process]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled one, with a chat template that shows tools."""
    folder = tmp_path_factory.mktemp("model") / "tools"
    shutil.copytree(BUNDLED, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Start]:
    made: list[Process] = []

    def run(*options: str) -> Process:
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        environment = {"TMPDIR": str(temporary)}
        made.append(Process(str(model), "--memory", "2GiB", *options, folder=tmp_path, environment=environment))
        return made[-1]

    yield run
    for one in made:
        one.kill()
