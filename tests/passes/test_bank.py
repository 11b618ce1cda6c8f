"""What a streamed bank computes under settings that change how torch multiplies, and what it counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from coterie.errors import ContextLengthError
from zoo import ZOO, logits


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def wide(tmp_path):
    """A checkpoint whose experts are too large to be copied together."""
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=256,
        moe_intermediate_size=512,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
    )
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("eager")
    model.save_pretrained(tmp_path)
    return model.eval(), tmp_path


@torch.no_grad()
def test_one_token_under_autocast(wide, open_model):
    stock, path = wide
    streamed = open_model(path)
    ours, theirs = (model.model.layers[0].mlp.experts for model in (streamed, stock))
    hidden, ids, weights = torch.randn(1, 256), torch.tensor([[3, 1]]), torch.tensor([[0.75, 0.25]])
    for enabled in (False, False, True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert torch.equal(ours(hidden, ids, weights), theirs(hidden, ids, weights))


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_float32_precision_changed_between_tokens(name, zoo_store, zoo_stock, open_model, precision):
    streamed, stock, token = open_model(zoo_store(name)), zoo_stock(name), torch.tensor([[7]])
    for chosen in ("highest", "medium", "highest"):
        torch.set_float32_matmul_precision(chosen)
        assert torch.equal(streamed(input_ids=token).logits, stock(input_ids=token).logits)


@torch.no_grad()
def test_more_experts_than_the_configuration_has(zoo_store, zoo_checkpoint, open_model):
    streamed = open_model(zoo_store("qwen3_moe", torch.bfloat16), experts_per_token=7)
    stock = Qwen3MoeForCausalLM.from_pretrained(
        zoo_checkpoint("qwen3_moe", torch.bfloat16), experts_implementation="eager", num_experts_per_tok=7
    )
    token = torch.tensor([[7]])
    assert torch.equal(streamed(input_ids=token).logits, stock(input_ids=token).logits)


def test_a_refused_prompt_is_not_counted(zoo_store, open_model):
    model = open_model(zoo_store("qwen3_moe"), expert_memory="100%", max_context=4)
    with pytest.raises(ContextLengthError):
        logits(model, ZOO["qwen3_moe"].inputs(length=16))
    assert model.coterie.stats().prefill_tokens == {"text": 0}


def test_no_advice_on_small_memory_where_every_expert_has_a_place(zoo_store, recwarn):
    from coterie.engine import load

    path = zoo_store("qwen3_moe", torch.bfloat16)
    load(path, expert_memory="100%", experts_per_token=7).coterie.close()
    assert not [w for w in recwarn if "The experts have" in str(w.message)]
    with pytest.warns(UserWarning, match="The experts have"):
        load(path, expert_memory="75%", experts_per_token=7).coterie.close()
