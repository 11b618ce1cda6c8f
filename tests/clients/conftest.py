"""A server in a process and an environment of its own, as its users have it; its clients are others'."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

import coterie

# Where these clients are not installed there is nothing to collect. `make test-clients` makes an environment with them.
collect_ignore_glob = [] if find_spec("litellm") else ["test_*.py"]

# Litellm else asks another server for prices.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

PYTHON = "COTERIE_OTHER_PYTHON"
"""Environment variable: the Python that runs the server. `make test-clients` sets it to that of `.venv`."""
BUNDLED = Path(coterie.__file__).parent / "bundled"
PROMPT = "And it came to pass"
KEY = "a-key-of-some-length"
TEMPLATE = (
    "{% if tools %}Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}{{ '\\n' }}{% endif %}"
    "{% for m in messages %}{{ m.role }}{{ ' ' ~ m.name if m.name }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Shows tools as Qwen's and Hermes' templates do."""


@pytest.fixture(scope="module", autouse=True)
def _settings_are_put_back() -> None:
    """Clients of others write into the environment when they are imported."""


@pytest.fixture(scope="module", autouse=True)
def _no_thread_goes_on() -> None:
    """Clients of others keep threads for the next request, and the server's log is read for as long as it runs."""


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        url: Where.
        model: What it calls its model.
        log: The file that it writes its log into.
    """

    url: str
    model: str
    log: Path

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


Start = Callable[..., Server]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests in this folder are of this kind."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.clients)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers, which end with the session."""
    with ExitStack() as stack:

        def start_one(model: str, *options: str) -> Server:
            log = tmp_path_factory.mktemp("server") / "log"
            python = os.environ.get(PYTHON, sys.executable)
            command = [python, "-m", "coterie", "serve", model, "--port", "0", *options]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            stack.callback(_end, process)
            return Server(_address(process, log), Path(model).name, log)

        yield start_one


def _address(process: subprocess.Popen[str], log: Path) -> str:
    """Where it listens; from then on its log goes into a file."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if found := re.search(r"at (http\S+)/v1", line):
            threading.Thread(target=_copy, args=(process.stderr, log), daemon=True).start()
            return found[1]
    raise AssertionError(f"The server did not start: {said}")


def _copy(source: Iterator[str], log: Path) -> None:
    with log.open("w") as file:
        for line in source:
            file.write(line)
            file.flush()


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


@pytest.fixture(scope="session")
def server(start: Start) -> Server:
    """The bundled model: it goes on with texts, sees and hears, and has no chat template."""
    return start("bundled", "--queue", "64")


@pytest.fixture(scope="session")
def tool_server(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The bundled model with a chat template that shows tools."""
    folder = tmp_path_factory.mktemp("model") / "tools"
    shutil.copytree(BUNDLED, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return start(str(folder))
