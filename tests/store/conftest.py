from __future__ import annotations

from pathlib import Path

import pytest

from .tiny import write_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A finished tiny store with sharded dense tensors."""
    path = tmp_path / "store"
    write_store(path)
    return path
