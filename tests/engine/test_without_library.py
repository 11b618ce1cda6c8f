"""What is said where quantised models have to do without the native library."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from coterie import load, native
from coterie.extraction import extract


@pytest.mark.parametrize(("scheme", "dense_scheme"), [("int4", None), ("int8", None), (None, "int4")])
def test_a_quantised_store_without_the_library_is_remarked_on_once(
    scheme: str | None, dense_scheme: str | None, zoo_checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(zoo_checkpoint("qwen3_moe", torch.bfloat16), tmp_path / "store", scheme=scheme, dense_scheme=dense_scheme)
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.warns(UserWarning, match="store is quantised, and the native library") as caught:
        load(tmp_path / "store", expert_memory="100%").coterie.close()
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_nothing_is_said_where_it_would_not_be_used(zoo_store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(zoo_store("qwen3_moe", torch.bfloat16), expert_memory="100%").coterie.close()
