"""The examples on the pages of clients, run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clients.conftest import BUNDLED, Server
from docs.pages import ROOT, python_blocks

FOLDER = ROOT / "docs" / "clients"


def adapted(text: str, server: Server) -> str:
    """With the address and the model of the tests."""
    return text.replace("http://127.0.0.1:8000", server.url).replace("qwen3", server.model)


def shell_blocks(page: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", page, re.DOTALL)


@pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning")
@pytest.mark.parametrize("page", ["anthropic.md", "litellm.md", "openai.md"])
def test_python(page: str, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    blocks = python_blocks((FOLDER / page).read_text())
    assert blocks
    for block in blocks:
        exec(adapted(block, server), names)
        assert capsys.readouterr().out.strip()


def run(command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: Server, tmp_path: Path) -> None:
    shutil.copy(BUNDLED / "samples" / "sandal.png", tmp_path)
    blocks = shell_blocks((FOLDER / "curl.md").read_text())
    answers = [run(adapted(block, server), tmp_path) for block in blocks]
    assert len(answers) == 4
    assert all('"choices"' in answer and '"error"' not in answer for answer in answers)
    assert answers[1].endswith("data: [DONE]\n\n")
    assert "sandal" in answers[2]
    assert '"hit_rate"' in answers[3]


def test_llm(server: Server, tmp_path: Path) -> None:
    shutil.copy(BUNDLED / "samples" / "sandal.png", tmp_path)
    page = (FOLDER / "llm.md").read_text()
    (models,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "extra-openai-models.yaml").write_text(adapted(models, server))
    (commands,) = shell_blocks(page)
    for line in commands.splitlines():
        command = re.sub(r"^llm ", f"{sys.executable} -m llm ", line)
        said = run(command, tmp_path, LLM_USER_PATH=str(tmp_path), OPENAI_API_KEY="none")
        # After a picture the bundled model may have no more to say.
        assert said.strip() or " -c " in line, line
