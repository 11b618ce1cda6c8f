import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

import coterie
from checkpoint.conftest import cache, hub, publish  # noqa: F401 - fixtures
from coterie.generation.processors import Processors
from integration.conftest import store  # noqa: F401 - a fixture
from zoo.tokenizer import add_tokenizer

OLD = Version(transformers.__version__) < Version("5.8")
"""Whether this is a release of transformers in which the forward passes of omni models work out positions."""

DATA = Path(__file__).parents[1] / "data"
BUNDLED = Path(coterie.__file__).parent / "bundled"
SMALL_FILES = [file.name for file in BUNDLED.glob("*.json")]


@pytest.fixture(scope="session")
def data() -> Path:
    return DATA


@pytest.fixture(scope="session")
def bundled() -> Path:
    return BUNDLED


@pytest.fixture(scope="session")
def processors() -> Processors:
    return Processors(BUNDLED, embedding_rows=8192)


@pytest.fixture(scope="module")
def checkpoint(zoo_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Qwen3-Omni in bfloat16 with a tokenizer and a chat template; the module's own."""
    directory = tmp_path_factory.mktemp("omni") / "checkpoint"
    shutil.copytree(zoo_checkpoint("qwen3_omni", torch.bfloat16), directory)
    add_tokenizer(directory, chat=True)
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the bundled model's directory without its weights."""
    for name in SMALL_FILES:
        shutil.copy(BUNDLED / name, tmp_path / name)
    return tmp_path
