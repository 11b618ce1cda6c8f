"""A model of which two of four routers are made to a plan, and its profile."""

from pathlib import Path

import pytest

from analysis.planted import LAYERS, planted_profile, planted_rows, random_rows, routed_checkpoint
from coterie.analysis import Routers


@pytest.fixture(scope="session")
def planted_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers 1 and 3 have planted routers, the others random ones."""
    routers = [planted_rows(layer) if layer % 2 else random_rows(layer) for layer in range(LAYERS)]
    return routed_checkpoint(tmp_path_factory.mktemp("planted") / "model", routers)


@pytest.fixture(scope="session")
def planted_db(planted_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of that model: in layers 1 and 3 the planted experts serve their domains."""
    path = tmp_path_factory.mktemp("profile") / "planted.db"
    return planted_profile(path, Routers.open(planted_checkpoint).identity, (1, 3))
