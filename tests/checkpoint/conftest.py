"""A Hub on this machine, and a client that goes online to it, to an empty cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from .hub import LocalHub, Repository

REPO = "someone/tiny-moe"
Publish = Callable[..., str]


@pytest.fixture
def cache(tmp_path) -> Path:
    """The Hub's cache."""
    return tmp_path / "cache"


@pytest.fixture
def hub(cache, monkeypatch, tmp_path_factory) -> Iterator[LocalHub]:
    """An empty Hub."""
    served = LocalHub(tmp_path_factory.mktemp("commits"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", served.url + template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield served
    served.close()
    # What still asks this Hub would go on asking in the tests after this one.
    for thread in threading.enumerate():
        if thread.name.startswith("coterie-hub"):
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def publish(hub) -> Publish:
    """Makes a commit of a directory: ``publish(directory, repo=REPO, reference="main")``; returns its hash."""

    def commit(directory: Path, repo: str = REPO, reference: str = "main") -> str:
        return hub.repositories.setdefault(repo, Repository()).commit(directory, reference)

    return commit


@pytest.fixture
def text(publish, zoo_checkpoint) -> Path:
    """The directory behind the repository of a text model in several shards."""
    directory: Path = zoo_checkpoint("qwen3_moe", torch.bfloat16, "60KB")
    publish(directory)
    return directory


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that the client wanted to wait; it does not."""
    seconds: list[float] = []
    monkeypatch.setattr("coterie.records.remote.attempts.pause", lambda wait, stopped: seconds.append(wait))
    return seconds
