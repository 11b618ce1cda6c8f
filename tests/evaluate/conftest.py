import random
from collections.abc import Callable
from pathlib import Path

import pytest

from generation.conftest import bundled, data, processors  # noqa: F401 - fixtures
from zoo.sizes import TEXT_IDS


@pytest.fixture(scope="session")
def partial(readable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three of its experts per layer."""
    from coterie.extraction import extract

    directory = tmp_path_factory.mktemp("partial") / "store"
    extract(readable, directory, experts="0-2")
    return directory


@pytest.fixture
def words(tmp_path: Path) -> Callable[..., Path]:
    """Writes a text of random words: ``words(count, seed=0)``."""

    def write(count: int, seed: int = 0) -> Path:
        chosen = random.Random(seed)
        path = tmp_path / f"words-{count}-{seed}.txt"
        path.write_text(" ".join(f"w{chosen.randint(3, TEXT_IDS)}" for _ in range(count)), encoding="utf-8")
        return path

    return write
