"""Models that are planned: one whose experts are most of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from coterie.planner import plan


@pytest.fixture(scope="module", autouse=True)
def fresh_process() -> Iterator[None]:
    """What this process holds besides changes from test to test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coterie.inspection.what_fits.process_memory", lambda: SimpleNamespace(total=0))
        yield


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose experts are most of it: 4 layers × 16 experts of 1.5 MiB."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("tight")
    config = Qwen3MoeConfig(
        hidden_size=512, intermediate_size=64, moe_intermediate_size=512, num_hidden_layers=4, num_experts=16,
        num_experts_per_tok=4, num_attention_heads=2, num_key_value_heads=1, head_dim=64, vocab_size=64,
        max_position_embeddings=512,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def least(tight: Path) -> int:
    return plan(tight, memory="1MiB", measure=False).budgets[0].memory.minimum
