"""Absent experts and another K in whole models of the classes that transformers does not decorate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from conftest import realigned
from coterie.engine import load
from coterie.errors import UnsupportedError
from zoo import MATRIX, logits
from zoo import load as load_stock

from .undecorated_reference import change_in_stock, dropped, mask_in_stock, replaced

NAMES = ["dbrx", "jetmoe", "llama4_text", "llama4_text_top3", "longcat_flash", "step3p7", "switch_transformers"]
PRESENT = (0, 2, 3, 6)
SELECTION = "0,2-3,6"
IDENTITIES = {"longcat_flash": 4}
"""Choices without an expert, with the ids after those of the experts: always there."""


def need_mask(name: str) -> None:
    if name == "switch_transformers" and Version(transformers.__version__) < Version("5.8"):
        pytest.skip("older releases' router of Switch Transformers is refused: it chooses in another way")


def available(name: str, present: tuple[int, ...] = PRESENT) -> Tensor:
    return torch.tensor([e in present for e in range(8)] + [True] * IDENTITIES.get(name, 0))


@pytest.fixture
def partial(zoo_store) -> Callable[..., Path]:
    def make(name: str, experts: str | None = SELECTION) -> Path:
        if reason := MATRIX[name].why_not:
            pytest.skip(reason)
        return zoo_store(name, torch.float32, experts)

    return make


@pytest.fixture
def fresh_stock(zoo_checkpoint) -> Callable[..., PreTrainedModel]:
    def make(name: str, **options: Any) -> PreTrainedModel:
        return realigned(load_stock(zoo_checkpoint(name), torch.float32, **options)[0])

    return make


def chosen_ids(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, set[int]]:
    """Logits, and the ids of all experts that were chosen."""
    seen: set[int] = set()

    class Collector:
        def on_event(self, event: Any) -> None:
            if type(event).__name__ == "ExpertsSelected":
                seen.update(event.expert_ids.flatten().tolist())

    observer = Collector()
    model.coterie.add_observer(observer)
    return logits(model, inputs), seen


pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", NAMES)
def test_mask_is_a_stock_router_whose_scores_of_absent_experts_are_minus_infinity(
    name, partial, fresh_stock, zoo_stock, open_model
):
    need_mask(name)
    model = open_model(partial(name), missing="mask", expert_memory="50%")
    reference = mask_in_stock(fresh_stock(name), available(name))
    for seed in range(2):
        inputs = MATRIX[name].inputs(seed=seed, batch=2)
        ours, ids = chosen_ids(model, inputs)
        assert torch.equal(ours, logits(reference, inputs))
        assert not torch.equal(ours, logits(zoo_stock(name), inputs))
        assert {e for e in ids if e < 8} <= set(PRESENT)
    token = {key: value[:, :1] for key, value in MATRIX[name].inputs(seed=3).items()}
    assert torch.equal(logits(model, token), logits(reference, token))
    assert model.coterie.stats().total.absent == 0


@pytest.mark.parametrize("policy", ["drop", "nearest"])
@pytest.mark.parametrize("name", NAMES)
def test_policies_are_a_stock_model_whose_routing_is_changed(name, policy, partial, fresh_stock, zoo_stock, open_model):
    model = open_model(partial(name), missing=policy, expert_memory="50%")

    def make(rows: Tensor) -> Any:
        return dropped(available(name)) if policy == "drop" else replaced(rows.detach(), available(name))

    reference = change_in_stock(fresh_stock(name), make)
    for seed in range(2):
        inputs = MATRIX[name].inputs(seed=seed, batch=2)
        ours = logits(model, inputs)
        torch.testing.assert_close(ours, logits(reference, inputs))
        assert not torch.allclose(ours, logits(zoo_stock(name), inputs))
    assert model.coterie.stats().total.absent > 0


@pytest.mark.parametrize("policy", ["mask", "drop", "nearest"])
@pytest.mark.parametrize("name", NAMES)
def test_generation_goes_on_with_absent_experts(name, policy, partial, open_model):
    if policy == "mask":
        need_mask(name)
    model = open_model(partial(name), missing=policy, expert_memory="50%")
    inputs = MATRIX[name].inputs(seed=3, batch=2)
    tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    if name == "switch_transformers":  # which puts a token of its own before the decoder's prompt
        assert tokens.shape == (2, 1 + inputs["decoder_input_ids"].shape[1] + 3)
    else:
        assert tokens.shape == (2, inputs["input_ids"].shape[1] + 3)


def with_top_k(path: Path, count: int) -> Any:
    """A checkpoint's configuration with another K, under whatever name it has."""
    config = AutoConfig.from_pretrained(path)
    for part in (config, getattr(config, "text_config", None), getattr(config, "ffn_config", None)):
        for name in ("num_experts_per_tok", "moe_topk", "moe_top_k"):
            if part is not None and name in vars(part):
                setattr(part, name, count)
    return config


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "switch_transformers"])
def test_experts_per_token_is_what_stock_does_with_such_a_configuration(
    name, count, partial, fresh_stock, zoo_checkpoint, zoo_stock, open_model
):
    """With the model's own K, this also puts the adapters of ``mask`` in front of experts that are all there."""
    if (name, count) == ("longcat_flash", 1):
        pytest.skip("stock's own forward fails with one expert per token")
    model = open_model(partial(name, None), experts_per_token=count, expert_memory="50%")
    reference = fresh_stock(name, config=with_top_k(zoo_checkpoint(name), count))
    inputs = MATRIX[name].inputs(seed=1, batch=2)
    ours = logits(model, inputs)
    assert torch.equal(ours, logits(reference, inputs))
    own = 1 if name == "llama4_text" else 3
    assert torch.equal(ours, logits(zoo_stock(name), inputs)) == (count == own)


def test_the_experts_per_token_of_switch_are_fixed(partial):
    with pytest.raises(UnsupportedError, match="not supported for routers of class SwitchTransformersTop1Router"):
        load(partial("switch_transformers", None), experts_per_token=2, expert_memory="50%")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "longcat_flash"])
def test_mask_with_fewer_experts_than_k_is_a_stock_model_of_that_k(
    name, partial, fresh_stock, zoo_checkpoint, open_model
):
    """Not of LongCat-Flash, which always has its identity experts."""
    need_mask(name)
    for present in ((5,), (1, 5)):
        model = open_model(partial(name, ",".join(map(str, present))), missing="mask")
        options = (
            {}
            if name in ("switch_transformers", "llama4_text")
            else {"config": with_top_k(zoo_checkpoint(name), len(present))}
        )
        reference = mask_in_stock(fresh_stock(name, **options), available(name, present))
        inputs = MATRIX[name].inputs(seed=1, batch=2)
        ours, ids = chosen_ids(model, inputs)
        torch.testing.assert_close(ours, logits(reference, inputs))
        assert ids - {8} <= set(present)
