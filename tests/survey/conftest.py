import random
from collections.abc import Callable
from pathlib import Path

import pytest

import coterie
from zoo.sizes import TEXT_IDS

Words = Callable[..., Path]


@pytest.fixture
def words(tmp_path: Path) -> Words:
    """Writes a text of random words: ``words(count, name, seed=0)``."""

    def write(count: int, name: str = "words.txt", seed: int = 0) -> Path:
        chosen = random.Random(seed)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen_words = [f"w{chosen.randint(3, TEXT_IDS)}" for _ in range(count)]
        lines = [" ".join(chosen_words[begin : begin + 10]) for begin in range(0, count, 10)]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def data() -> Path:
    return Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def bundled() -> Path:
    return Path(coterie.__file__).parent / "bundled"
