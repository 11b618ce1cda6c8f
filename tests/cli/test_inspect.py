import json
from pathlib import Path

import pytest
import torch

from coterie.extraction import extract


@pytest.fixture
def store(zoo_checkpoint, tmp_path: Path) -> str:
    extract(zoo_checkpoint("qwen3_moe", torch.bfloat16), tmp_path / "store", experts="0-1", layers="1")
    return str(tmp_path / "store")


def test_page_shows_completeness_by_layer(coterie, store: str) -> None:
    outcome = coterie("inspect", store)
    assert outcome.code == 0
    for text in ("Qwen3MoeForCausalLM", "10 of 16, partial", "8 (100%)", "2 (25%)"):
        assert text in outcome.out


def test_json(coterie, store: str) -> None:
    found = json.loads(coterie("inspect", store, "--json").out)
    assert (found["schema_version"], found["present"]) == (2, 10)


def test_whether_several_requests_share_passes_is_said(coterie, store: str) -> None:
    told = coterie("inspect", store).out
    assert "one request: not all of its linear layers are stored in a lossy scheme" in told
    assert "up to 16 requests" in told
    batching = json.loads(coterie("inspect", store, "--json").out)["batching"]
    assert [batching[name]["rows"] for name in ("exact", "fast")] == [1, 16]
