"""A Hub that takes uploads, and a store to publish."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from checkpoint.conftest import cache, waits  # noqa: F401
from checkpoint.conftest import hub as plain_hub  # noqa: F401
from checkpoint.hub import LocalHub

REPO = "me/tiny-store"


@pytest.fixture
def hub(plain_hub, monkeypatch, waits) -> LocalHub:  # noqa: F811
    """The Hub, for the client's plain uploads; nobody waits before another try."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return plain_hub


@pytest.fixture
def store(zoo_store, tmp_path) -> Path:
    """A store that may be changed."""
    return Path(shutil.copytree(zoo_store("qwen3_moe"), tmp_path / "tiny-store"))
