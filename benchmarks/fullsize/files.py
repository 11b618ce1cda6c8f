"""Where the files of a generated model are, and how they come to be there; no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SCRIPT = Path(__file__).resolve().parent.parent / "fullsize_model.py"


class Files:
    """The files of a shape.

    Args:
        work: The directory for generated models.
        shape: Name of the shape.
    """

    def __init__(self, work: Path, shape: str) -> None:
        self.store = work / f"{shape}-store"
        self.mixed = work / f"{shape}-mixed"
        self.gguf = work / f"{shape}-q4_0.gguf"
        self.checkpoint = work / f"{shape}-checkpoint"
        self.hollow = work / f"{shape}-hollow"
        self._work = work
        self._shape = shape

    def make(self, *kinds: str) -> None:
        """Writes what is missing of ``store``, ``gguf``, ``checkpoint`` and ``hollow``, in a process of its own.

        Libraries that this process had mapped could not be dropped from the page cache, and a start that finds them
        there is not cold.

        Raises:
            SystemExit: If that fails.
        """
        command = [sys.executable, str(_SCRIPT), "--shape", self._shape, "--work-dir", str(self._work)]
        if subprocess.run([*command, *(f"--{kind}" for kind in kinds)], check=False).returncode:
            raise SystemExit(f"The files of {self._shape} cannot be written.")
