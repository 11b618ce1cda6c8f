"""What tests of the native decode step share."""

from pathlib import Path

import pytest
import torch

from coterie.extraction import extract
from coterie.native import library


@pytest.fixture
def native() -> None:
    """Skips where there is no native library."""
    if library() is None:
        pytest.skip("the native library was not built")


@pytest.fixture(scope="session")
def store(zoo_checkpoint, tmp_path_factory):
    """Gives a store of a zoo model in a scheme, made once: ``store(name, dense_scheme="native", scheme="int8")``."""
    root, made = tmp_path_factory.mktemp("lossy"), {}

    def make(name: str = "qwen3_moe", dense_scheme: str | None = None, *, scheme: str = "int4") -> Path:
        key = (name, scheme, dense_scheme or scheme)
        if key not in made:
            made[key] = root / "-".join(key)
            extract(zoo_checkpoint(name, torch.bfloat16), made[key], scheme=scheme, dense_scheme=key[-1])
        return made[key]

    return make
