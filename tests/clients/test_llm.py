"""Simon Willison's `llm`, a command: its users name a server in a file, and ask in a shell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clients.conftest import BUNDLED, PROMPT, Server


@pytest.fixture
def llm(server: Server, tool_server: Server, tmp_path: Path):
    models = [
        f"- model_id: local\n  model_name: bundled\n  api_base: {server.v1}\n  vision: true\n  audio: true\n"
        "  supports_schema: true\n",
        f"- model_id: text\n  model_name: bundled\n  api_base: {server.v1}\n  completion: true\n",
        f"- model_id: tools\n  model_name: tools\n  api_base: {tool_server.v1}\n  supports_tools: true\n",
    ]
    (tmp_path / "extra-openai-models.yaml").write_text("".join(models))
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def run(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


def test_it_asks_and_goes_on(llm) -> None:
    asked = ("-m", "local", "-o", "temperature", "0", "-o", "max_tokens", "8")
    streamed, whole = llm(PROMPT, *asked), llm(PROMPT, *asked, "--no-stream")
    assert streamed == whole
    assert streamed.strip()
    assert llm("And then", *asked, "-c").strip()
    usage = json.loads(llm("logs", "--json", "-n", "1"))[0]
    assert usage["output_tokens"] == 8


def test_a_text_is_continued(llm) -> None:
    assert llm(PROMPT, "-m", "text", "-o", "max_tokens", "8").strip()


def test_it_shows_and_plays(llm) -> None:
    for sample, answer in (("sandal.png", "sandal"), ("dog.wav", "dog")):
        found = llm("-m", "local", "-o", "temperature", "0", "-a", str(BUNDLED / "samples" / sample), "")
        assert answer in found


def test_tools_are_shown(llm) -> None:
    function = "def weather(city: str) -> str:\n    'Outside.'\n    return 'Rain.'\n"
    asked = ("-m", "tools", "-o", "max_tokens", "6", "--functions", function, "Is it wet?")
    assert llm(*asked)


def test_what_is_refused_is_told(llm) -> None:
    assert "stop" in llm(PROMPT, "-m", "local", "-o", "stop", "x" * 300, status=1)
