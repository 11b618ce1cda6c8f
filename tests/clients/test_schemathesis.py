"""Schemathesis: asks whatever the OpenAPI document allows and forbids, and compares the answers with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clients.conftest import KEY, Start

SETTINGS = ["--phases", "coverage,fuzzing", "--max-examples", "10", "--seed", "1", "--continue-on-failure",
            "--request-timeout", "60", "--generation-database", "none", "--no-color"]  # fmt: skip
# What a document cannot say, such as what a model's chat template has no place for, is refused all the same.
EXCLUDED = ["--exclude-checks", "positive_data_acceptance"]


@pytest.mark.timeout(900)
def test_the_server_does_what_its_document_says(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    # A short context: whatever is asked for is over soon.
    server = start("bundled", "--api-key-file", str(tmp_path / "keys"), "--max-context", "64", "--queue", "64")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
        "-H", f"Authorization: Bearer {KEY}", *SETTINGS, *EXCLUDED,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout or "passed" in done.stdout
    # Nothing went wrong that the answers do not tell of.
    assert '"level": "error"' not in server.log.read_text()
