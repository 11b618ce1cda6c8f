"""The quickstart, pasted line by line into a shell, as its first sentence promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import ROOT, command_lines, python_blocks

PAGE = (ROOT / "docs" / "quickstart.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_up_to_your_own_model_can_be_pasted(tmp_path: Path) -> None:
    text = PAGE.partition("\n## See it work\n")[2].partition("\n## Your own model\n")[0]
    lines = command_lines(text)
    assert len(lines) > 15
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "coterie"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m coterie "$@"\n')
    command.chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    script = "\n".join(["set -e -o pipefail", *lines, 'python - <<"END"', python_blocks(text)[0], "END"])
    home = {
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **home},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "Bit-identical" in done.stdout
