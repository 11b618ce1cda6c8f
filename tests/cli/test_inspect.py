import json
from pathlib import Path

import pytest
import torch

from coterie.extraction import extract


@pytest.fixture
def store(zoo_checkpoint, tmp_path: Path) -> str:
    extract(zoo_checkpoint("qwen3_moe", torch.bfloat16), tmp_path / "store", experts="0-1", layers="1")
    return str(tmp_path / "store")


def test_page_shows_completeness_by_layer_and_what_a_budget_holds(coterie, store: str) -> None:
    outcome = coterie("inspect", store, "--memory", "8GB")
    assert outcome.code == 0
    for text in ("Qwen3MoeForCausalLM", "10 of 16, partial", "8 (100%)", "2 (25%)", "It holds 10 of 10 experts"):
        assert text in outcome.out


def test_a_budget_that_is_too_small(coterie, store: str) -> None:
    assert "That is too little: about" in coterie("inspect", store, "--memory", "350MB").out


def test_json(coterie, store: str) -> None:
    found = json.loads(coterie("inspect", store, "--json").out)
    assert (found["schema_version"], found["present"], found["memory"]) == (1, 10, None)


def test_a_wrong_size_is_wrong_usage(coterie, store: str) -> None:
    outcome = coterie("inspect", store, "--memory", "much")
    assert outcome.code == 2
    assert "is not a size" in outcome.err


def test_whether_several_requests_share_passes_is_said(coterie, store: str) -> None:
    told = coterie("inspect", store).out
    assert "one request: not all of its linear layers are stored in a lossy scheme" in told
    assert "up to 16 requests" in told
    batching = json.loads(coterie("inspect", store, "--json").out)["batching"]
    assert [batching[name]["rows"] for name in ("exact", "fast")] == [1, 16]


def test_several_budgets_are_a_table(coterie, store: str) -> None:
    told = coterie("inspect", store, "--memory", "350MB", "--memory", "8GiB").out
    assert "With a context of" in told
    small, large = (line for line in told.splitlines() if line.strip().startswith(("333.79 MiB", "8.00 GiB")))
    assert "too little: about" in small
    assert "100%" in large
    found = json.loads(coterie("inspect", store, "--memory", "350MB", "--memory", "8GiB", "--json").out)
    assert [one["enough"] for one in found["budgets"]] == [False, True]
    assert found["memory"] == found["budgets"][0]
