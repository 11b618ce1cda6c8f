from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .tiny import write_store


@pytest.fixture(scope="session")
def pristine_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny store with sharded dense tensors; tests leave it as it is."""
    path = tmp_path_factory.mktemp("pristine") / "store"
    write_store(path)
    return path


@pytest.fixture
def store(pristine_store: Path, tmp_path: Path) -> Path:
    """The same store to spoil."""
    return Path(shutil.copytree(pristine_store, tmp_path / "store"))
