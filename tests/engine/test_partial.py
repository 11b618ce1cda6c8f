"""Stores that hold some of the experts: refused unless a policy is named, and every policy does what it says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel
from transformers.integrations import moe

from coterie.engine import load
from coterie.errors import CoverageError, ExpertMissingError, UnsupportedError
from coterie.hf.experts import own_forward
from coterie.routing import drop, nearest, substitution_table
from coterie.store.manifest_file import load_manifest
from coterie.store.manifest_json import manifest_bytes
from zoo import MATRIX, ZOO, logits, stock

BF16 = torch.bfloat16
FAMILIES = ["qwen2_moe", "qwen3_moe", "qwen3_omni_thinker", "mixtral", "olmoe"]
OTHERS = ["gpt_oss", "deepseek_v2", "deepseek_v3", "glm4_moe", "jamba"]
PRESENT = (0, 2, 3, 6)
SELECTION = "0,2-3,6"
E, K = 8, 2

Function = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def available() -> torch.Tensor:
    mask = torch.zeros(E, dtype=torch.bool)
    mask[list(PRESENT)] = True
    return mask


@pytest.fixture
def partial(zoo_store) -> Callable[..., Path]:
    def make(name: str, experts: str = SELECTION, layers: str | None = None, dtype: torch.dtype = BF16) -> Path:
        if reason := MATRIX[name].why_not:
            pytest.skip(reason)
        return zoo_store(name, dtype, experts, layers)

    return make


@pytest.fixture
def brute_force(zoo_checkpoint, monkeypatch) -> Callable[..., PreTrainedModel]:
    """Stock transformers whose experts function changes ids and weights first; absent experts' weights are NaN."""

    def build(name: str, change: Callable[[torch.nn.Module], Function], dtype: torch.dtype = BF16) -> PreTrainedModel:
        def function(module, hidden, ids, weights):
            ids, weights = change(module)(ids, weights)
            left_out = ids >= E
            # In words of the stock forward: a slot that is left out is an expert that is there, with weight 0.
            return own_forward(module)(
                module, hidden, ids.masked_fill(left_out, PRESENT[0]), weights.masked_fill(left_out, 0)
            )

        model = stock(zoo_checkpoint(name, dtype), dtype)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # in aligned memory, on which float32 products depend
        for path, module in model.named_modules():
            if path.endswith(".experts"):
                for parameter in module.parameters():
                    parameter.data[~available()] = torch.nan
                # The routers of the same block, for whoever needs them.
                module.__dict__["block"] = model.get_submodule(path.rpartition(".")[0])
        # As its register() does, which nothing undoes.
        monkeypatch.setitem(moe.ALL_EXPERTS_FUNCTIONS._global_mapping, "brute_force", function)
        model.set_experts_implementation("brute_force")
        return model

    return build


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_partial_store_does_not_open_by_itself(partial):
    with pytest.raises(CoverageError) as caught:
        load(partial("qwen3_moe"))
    assert (caught.value.present, caught.value.total) == (8, 16)
    text = str(caught.value)
    assert "8 of 16 experts" in text
    assert "50% of each layer" in text
    assert all(f"'{policy}'" in text for policy in ("mask", "drop", "nearest", "error"))


def test_coverage_is_told_by_layer(partial):
    with pytest.raises(CoverageError, match=r"10 of 16 experts.*25% to 100% of each layer"):
        load(partial("qwen3_moe", "0-1", "1"))


@pytest.mark.parametrize("policy", [None, "error", "mask", "drop", "nearest"])
@pytest.mark.parametrize("name", FAMILIES)
def test_with_all_experts_every_policy_is_bit_identical(name, policy, zoo_store, zoo_stock, open_model):
    model = open_model(zoo_store(name, BF16), missing=policy, expert_memory="25%")
    inputs = ZOO[name].inputs(seed=1, batch=2)
    assert torch.equal(logits(model, inputs), logits(zoo_stock(name, BF16), inputs))
    assert model.coterie.stats().total.absent == 0


def test_routers_that_cannot_be_masked_are_named(partial):
    """Some layers of DeepSeek-V4 look experts up by token id; nothing is scored there."""
    with pytest.raises(UnsupportedError, match=r"missing='mask' .*DeepseekV4HashRouter, which chooses .*'drop'"):
        load(partial("deepseek_v4"), missing="mask")


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES + OTHERS)
def test_error_names_layer_and_experts(name, partial, open_model):
    model = open_model(partial(name), missing="error")
    with pytest.raises(ExpertMissingError) as caught:
        logits(model, ZOO[name].inputs(seed=1, batch=2))
    assert set(caught.value.experts) <= set(range(E)) - set(PRESENT)
    assert f"Layer {caught.value.bank.layer}" in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_error_passes_where_nothing_absent_is_chosen(name, zoo_store, partial, zoo_stock, open_model):
    """One token's experts are looked up in a full model; a store with exactly these serves that token."""
    inputs = {"input_ids": torch.tensor([[17]])}
    full = open_model(zoo_store(name, BF16))
    full.coterie.record_tokens()
    logits(full, inputs)
    used = sorted({expert for token in full.coterie.stats().tokens for expert in token.experts})
    assert len(used) < E
    model = open_model(partial(name, ",".join(map(str, used))), missing="error")
    assert torch.equal(logits(model, inputs), logits(zoo_stock(name, BF16), inputs))


@pytest.mark.parametrize("tokens", [24, 1])
@pytest.mark.parametrize("name", FAMILIES + OTHERS)
def test_drop_equals_brute_force(name, tokens, partial, brute_force, open_model):
    reference = brute_force(name, lambda module: lambda ids, weights: drop(ids, weights, available())[:2])
    model = open_model(partial(name), missing="drop", expert_memory="50%")
    for seed in range(3):
        inputs = ZOO[name].inputs(seed=seed, length=tokens)
        expected = logits(reference, inputs)
        assert not expected.isnan().any()
        assert torch.equal(logits(model, inputs), expected)
    assert model.coterie.stats().total.absent > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_nearest_equals_brute_force(name, partial, brute_force, open_model):
    def change(module: torch.nn.Module) -> Function:
        table = substitution_table(module.block.gate.weight, available())
        return lambda ids, weights: nearest(ids, weights, available(), table)[:2]

    model = open_model(partial(name), missing="nearest", expert_memory="50%")
    inputs = ZOO[name].inputs(seed=1, batch=2)
    expected = logits(brute_force(name, change), inputs)
    assert not expected.isnan().any()
    assert torch.equal(logits(model, inputs), expected)


def masked_choice(name: str, module: torch.nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best K available experts of each token and their weights, by a plain loop in the definition's words."""
    gate = module.block.gate
    scores = torch.nn.functional.linear(hidden, gate.weight)
    renormalises = name == "mixtral" or gate.norm_topk_prob
    allowed = available()
    logits_TE = scores.masked_fill(~allowed, -torch.inf) if renormalises else scores
    probabilities = torch.softmax(logits_TE.float(), dim=-1)
    ids, weights = [], []
    for row in probabilities:
        best = sorted((expert for expert in PRESENT), key=lambda expert: -row[expert].item())[:K]
        ids.append(best)
        weights.append(torch.stack([row[expert] for expert in best]))
    weights_TK = torch.stack(weights)
    if renormalises:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return torch.tensor(ids), weights_TK if name == "mixtral" else weights_TK.to(hidden.dtype)


@pytest.mark.parametrize("name", FAMILIES)
def test_mask_equals_brute_force(name, partial, brute_force, open_model):
    """In float32: scores in bf16 are often equal, and which of two equals is chosen is not defined."""
    seen: dict[int, torch.Tensor] = {}

    def change(module: torch.nn.Module) -> Function:
        return lambda ids, weights: masked_choice(name, module, seen[id(module)])

    reference = brute_force(name, change, torch.float32)
    for module in reference.modules():
        if "block" in module.__dict__:
            module.register_forward_pre_hook(lambda m, args: seen.update({id(m): args[0]}))
    model = open_model(partial(name, dtype=torch.float32), missing="mask", expert_memory="50%")
    inputs = ZOO[name].inputs(seed=1, batch=2)
    expected = logits(reference, inputs)
    assert not expected.isnan().any()
    assert torch.equal(logits(model, inputs), expected)
    assert model.coterie.stats().total.absent == 0, "a masked router never chooses an absent expert"


@pytest.mark.parametrize("name", FAMILIES + OTHERS)
def test_masked_ids_are_all_present(name, partial, open_model):
    model = open_model(partial(name), missing="mask")
    model.coterie.record_tokens()
    model_tokens = ZOO[name].inputs(seed=2)
    getattr(model, "thinker", model).generate(**model_tokens, max_new_tokens=4, do_sample=False)
    used = {expert for token in model.coterie.stats().tokens for expert in token.experts}
    assert used == set(PRESENT)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_mask_with_fewer_experts_than_k_uses_those(name, partial, open_model):
    model = open_model(partial(name, "5"), missing="mask")
    model.coterie.record_tokens()
    assert torch.isfinite(logits(model, ZOO[name].inputs())).all()
    tokens = model.coterie.stats().tokens
    assert {token.dominant for token in tokens} == {5}
    assert {token.experts for token in tokens} == {(5, E)}
    assert {token.weights[1] for token in tokens} == {0.0}


@pytest.mark.parametrize("policy", ["mask", "drop", "nearest"])
@pytest.mark.parametrize("name", FAMILIES + OTHERS)
def test_generation_goes_on_with_absent_experts(name, policy, partial, open_model):
    model = open_model(partial(name), missing=policy, expert_memory="20%")
    result = model.generate(**ZOO[name].inputs(seed=3, batch=2), max_new_tokens=5, do_sample=False)
    assert result.shape == (2, 29)


# --- nothing there ----------------------------------------------------------------------------------------------------


@pytest.fixture
def emptied(zoo_store, tmp_path) -> Callable[..., Path]:
    """A copy of a whole store that has lost all experts of some layers."""

    def make(name: str, layers: set[int]) -> Path:
        root = Path(shutil.copytree(zoo_store(name, BF16), tmp_path / "emptied"))
        manifest, _ = load_manifest(root)
        for bank in manifest.banks:
            for segment in bank.segments if bank.key.layer in layers else ():
                (root / segment.file).unlink()
        banks = tuple(replace(bank, segments=()) if bank.key.layer in layers else bank for bank in manifest.banks)
        used = {record.layout for bank in banks for record in bank.records.values()}
        layouts = {layout: fields for layout, fields in manifest.layouts.items() if layout in used}
        (root / "coterie.json").write_bytes(manifest_bytes(replace(manifest, banks=banks, layouts=layouts)))
        return root

    return make


def without_experts(name: str, zoo_checkpoint, layers: set[int]) -> PreTrainedModel:
    """Stock transformers whose experts of some layers add nothing."""
    model = stock(zoo_checkpoint(name, BF16), BF16)
    for path, module in model.named_modules():
        if path.endswith(".experts") and int(path.split("layers.")[1].split(".")[0]) in layers:
            for parameter in module.parameters():
                parameter.data = torch.zeros_like(parameter.data)
    return model


@pytest.mark.parametrize("name", ["qwen3_moe", "olmoe", "gpt_oss"])
def test_a_store_without_any_expert_opens_with_drop_only(name, emptied, zoo_checkpoint, open_model):
    path = emptied(name, {0, 1})
    for policy in ("error", "mask", "nearest"):
        with pytest.raises(CoverageError, match="no expert at all"):
            load(path, missing=policy)
    model = open_model(path, missing="drop")
    inputs = ZOO[name].inputs(seed=1)
    assert torch.equal(logits(model, inputs), logits(without_experts(name, zoo_checkpoint, {0, 1}), inputs))
    assert model.coterie.stats().total.absent == 2 * 24 * K
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape == (1, 27)


@pytest.mark.parametrize("policy", ["mask", "drop", "nearest"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_without_any_expert_passes_the_residual(name, policy, emptied, zoo_checkpoint, open_model):
    model = open_model(emptied(name, {1}), missing=policy)
    inputs = ZOO[name].inputs(seed=1, batch=2)
    assert torch.equal(logits(model, inputs), logits(without_experts(name, zoo_checkpoint, {1}), inputs))


# --- experts per token ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("name", FAMILIES)
def test_experts_per_token_is_what_stock_does_with_such_a_router(name, count, zoo_store, zoo_checkpoint, open_model):
    reference = stock(zoo_checkpoint(name, BF16), BF16)
    for module in reference.modules():
        if hasattr(module, "top_k") and type(module).__name__.endswith("Router"):
            module.top_k = count
    model = open_model(zoo_store(name, BF16), experts_per_token=count)
    inputs = ZOO[name].inputs(seed=1, batch=2)
    assert torch.equal(logits(model, inputs), logits(reference, inputs))
    one = {"input_ids": torch.tensor([[17]])}
    assert torch.equal(logits(model, one), logits(reference, one))


def test_experts_per_token_needs_an_adapter(partial):
    with pytest.raises(UnsupportedError, match="experts_per_token"):
        load(partial("deepseek_v4", "0-7"), experts_per_token=1)


def test_other_models_are_not_touched(partial, zoo_checkpoint, zoo_stock, open_model):
    open_model(partial("qwen3_moe"), missing="mask")
    inputs = ZOO["qwen3_moe"].inputs()
    fresh = stock(zoo_checkpoint("qwen3_moe", BF16), BF16)
    assert torch.equal(logits(fresh, inputs), logits(zoo_stock("qwen3_moe", BF16), inputs))
