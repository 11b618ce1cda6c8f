"""The container file, as far as it can be tried without a container engine."""

import json
import re
import subprocess
import sys
from pathlib import Path

from clients.conftest import Server
from coterie.cli.commands import COMMANDS, build
from docs.pages import ROOT

FILE = ROOT / "Containerfile"
TEXT = FILE.read_text()


def instruction(name: str) -> list[str]:
    """The words of an instruction in its exec form; the last there is."""
    return json.loads(re.findall(rf"^{name} (\[.*\])$", TEXT, re.MULTILINE)[-1])


def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run([str(Path(sys.executable).with_name("hadolint")), str(FILE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_serves_as_nobody_with_a_key() -> None:
    assert re.findall(r"^USER (.*)$", TEXT, re.MULTILINE)[-1] == "10001:10001"
    assert instruction("ENTRYPOINT") == ["coterie"]
    name, *arguments = instruction("CMD")
    command = build(next(entry for entry in COMMANDS if entry.name == name))
    known = {option for parameter in command.params for option in parameter.opts}
    assert {one for one in arguments if one.startswith("--")} == {"--host", "--api-key-file"} <= known
    assert "--memory" not in arguments


def test_its_health_check_tells_a_server_from_none(server: Server) -> None:
    python, *arguments = json.loads(re.search(r"^  CMD (\[.*\])$", TEXT, re.MULTILINE)[1])
    assert python == "python"
    for url, expected in ((server.url, 0), ("http://127.0.0.1:1", 1)):
        command = [one.replace("http://127.0.0.1:8000", url) for one in arguments]
        assert subprocess.run([sys.executable, *command], capture_output=True, check=False).returncode == expected


def test_what_the_image_is_made_of_is_there() -> None:
    kept = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for name in kept)
    assert {"src", "pyproject.toml", "hatch_build.py", "requirements.lock"} <= set(kept)
