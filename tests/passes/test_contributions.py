"""What experts add to their layers' output: told where it is asked for, and without changing a bit of the output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from conftest import realigned
from coterie.extraction import extract
from coterie.integration.adapters.additions import seen_additions
from coterie.native import library
from coterie.passes.contributions import Contributions
from coterie.spec import BankKey
from zoo import ZOO, ZooModel, load, logits
from zoo.undecorated import UNDECORATED

BF16 = torch.bfloat16
ALL = ZOO | UNDECORATED
OTHERWISE = ("llama4_text", "llama4_text_top3", "jetmoe")
"""Their experts modules cannot be asked for a single choice from outside."""


class Listener:
    """Keeps events by kind, and asks for contributions or not."""

    def __init__(self, wants: bool = True) -> None:
        self.wants_contributions = wants
        self.order: list[tuple[str, BankKey]] = []
        self.selected: list[Any] = []
        self.contributed: list[Any] = []

    def on_event(self, event: Any) -> None:
        kind = type(event).__name__
        if kind != "StepStarted":
            self.order.append((kind, event.bank))
        if kind == "ExpertsSelected":
            self.selected.append(event)
        elif kind == "ExpertsContributed":
            self.contributed.append(event)


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory, zoo_checkpoint, zoo_store) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("contributions")

    def make(name: str, dtype: torch.dtype = torch.float32, kind: str = "store") -> Path:
        if reason := ALL[name].why_not:
            pytest.skip(reason)
        if name in ZOO:
            return zoo_checkpoint(name, dtype) if kind == "checkpoint" else zoo_store(name, dtype)
        path = root / f"{name}-{dtype}-{kind}"
        if not path.exists() and kind == "checkpoint":
            UNDECORATED[name].build(dtype).save_pretrained(path)
        elif not path.exists():
            extract(make(name, dtype, "checkpoint"), path)
        return path

    return make


def runs(model: ZooModel) -> list[dict[str, torch.Tensor]]:
    """Two prompts at once, and a single token."""
    token = {key: value[:, :1] for key, value in model.inputs(seed=3).items()}
    return [model.inputs(seed=1, batch=2), token]


def one_by_one(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Norms [T, K]: of what a module gives where all of a token's choices but one have weight 0."""
    hidden, ids, weights = arguments
    hidden, only = hidden.reshape(-1, hidden.shape[-1]), torch.eye(weights.shape[1], dtype=weights.dtype)
    rows = [
        [
            module(hidden[t : t + 1], ids[t : t + 1], weights[t : t + 1] * only[k]).float().norm()
            for k in range(len(only))
        ]
        for t in range(len(hidden))
    ]
    return torch.tensor(rows)


def stock_norms(stock: PreTrainedModel, paths: list[str], inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Path of an experts module → norms, from outside the stock model."""
    calls: dict[str, tuple[torch.Tensor, ...]] = {}
    hooks = [
        stock.get_submodule(path).register_forward_pre_hook(
            lambda _, given, path=path: calls.update({path: given}), with_kwargs=False
        )
        for path in paths
    ]
    logits(stock, inputs)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        return {path: one_by_one(stock.get_submodule(path), given) for path, given in calls.items()}


@pytest.mark.parametrize("name", sorted(set(ALL) - set(OTHERWISE)))
def test_contributions_are_those_of_each_choice_by_itself(name, path_of, zoo_stock, open_model):
    model = open_model(path_of(name), expert_memory="25%")
    stock = zoo_stock(name) if name in ZOO else realigned(load(path_of(name, kind="checkpoint"), torch.float32)[0])
    banks = {bank.key: bank for bank in model.coterie.expert_banks}
    for inputs in runs(ALL[name]):
        listener = Listener()
        model.coterie.add_observer(listener)
        assert torch.equal(logits(model, inputs), logits(stock, inputs))
        model.coterie.remove_observer(listener)
        wanted = stock_norms(stock, [bank.path for bank in banks.values()], inputs)
        assert len(listener.contributed) == len(listener.selected) > 0
        for selected, contributed in zip(listener.selected, listener.contributed, strict=True):
            bank = banks[selected.bank]
            assert contributed.bank == selected.bank
            got = torch.from_numpy(contributed.contributions)
            assert got.dtype == torch.float32
            ids = torch.from_numpy(selected.expert_ids.astype(np.int64))
            left_out = ids >= bank.num_experts + bank.identities
            assert torch.equal(got.isnan(), left_out)
            torch.testing.assert_close(
                got[~left_out], wanted[bank.path][~left_out], rtol=1e-4, atol=1e-6, check_stride=False
            )


def added(module: Any, *arguments: torch.Tensor) -> list[torch.Tensor]:
    """What a block adds for each token with ``index_add``, in order, seen from outside."""
    seen: list[torch.Tensor] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func == torch.Tensor.index_add:
                seen.append(args[3])
            return func(*args, **(kwargs or {}))

    with Watch(), torch.no_grad():
        module(*arguments)
    return seen


def test_contributions_of_jetmoe(path_of, open_model):
    model, listener = open_model(path_of("jetmoe")), Listener()
    stock = realigned(load(path_of("jetmoe", kind="checkpoint"), torch.float32)[0])
    model.coterie.add_observer(listener)
    inputs = UNDECORATED["jetmoe"].inputs(seed=1, batch=2)
    rows = [rows for rows in added(lambda: logits(stock, inputs)) if rows.shape[-1] == 64]
    assert torch.equal(logits(model, inputs), logits(stock, inputs))
    assert len(rows) == len(listener.contributed) == 4  # attention and feed-forward of two layers
    for event, weighted in zip(listener.contributed, rows, strict=True):
        got = torch.from_numpy(event.contributions)
        torch.testing.assert_close(got.flatten().sort().values, weighted.norm(dim=-1).sort().values)
        sums = torch.zeros(len(got)).index_add(0, torch.arange(len(got)).repeat_interleave(3), got.flatten())
        assert (sums > 0).all()


@pytest.mark.parametrize("name", ["llama4_text", "llama4_text_top3"])
def test_contributions_of_llama4(name, path_of, open_model):
    model, listener = open_model(path_of(name)), Listener()
    stock = realigned(load(path_of(name, kind="checkpoint"), torch.float32)[0])
    model.coterie.add_observer(listener)
    inputs = UNDECORATED[name].inputs(seed=1, batch=2)
    found: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: found.append(output.view(8, -1, 64).norm(dim=-1).mT))
        for path, module in stock.named_modules()
        if type(module).__name__ == "Llama4TextExperts"
    ]
    assert hooks
    assert torch.equal(logits(model, inputs), logits(stock, inputs))
    for selected, contributed, norms_TE in zip(listener.selected, listener.contributed, found, strict=True):
        ids = torch.from_numpy(selected.expert_ids.astype(np.int64))
        torch.testing.assert_close(torch.from_numpy(contributed.contributions), norms_TE.gather(1, ids))


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("memory", ["100%", "30%"])
def test_contributions_by_the_native_library(scheme, memory, zoo_checkpoint, tmp_path, open_model):
    if library() is None:
        pytest.skip("the native library was not built")
    extract(zoo_checkpoint("qwen3_moe", BF16), tmp_path / "store", scheme=scheme)
    model = open_model(tmp_path / "store", expert_memory=memory)
    for inputs in runs(ZOO["qwen3_moe"]):
        silent = logits(model, inputs)
        listener = Listener()
        model.coterie.add_observer(listener)
        calls: dict[str, tuple[torch.Tensor, ...]] = {}
        hooks = [
            model.get_submodule(bank.path).register_forward_pre_hook(
                lambda _, given, path=bank.path, calls=calls: calls.update({path: given})
            )
            for bank in model.coterie.expert_banks
        ]
        assert torch.equal(logits(model, inputs), silent)
        for hook in hooks:
            hook.remove()
        model.coterie.remove_observer(listener)
        assert len(listener.contributed) == 2
        for event, bank in zip(listener.contributed, model.coterie.expert_banks, strict=True):
            with torch.no_grad():
                wanted = one_by_one(model.get_submodule(bank.path), calls[bank.path])
            # One by one, each output is rounded to bfloat16; together, the weights of experts with many tokens are.
            torch.testing.assert_close(torch.from_numpy(event.contributions), wanted, rtol=1e-2, atol=0)


def test_nobody_is_told_what_nobody_asked_for(zoo_store, open_model):
    model, listener = open_model(zoo_store("qwen3_moe", BF16)), Listener(wants=False)
    model.coterie.add_observer(listener)
    logits(model, ZOO["qwen3_moe"].inputs())
    assert {kind for kind, _ in listener.order} == {"ExpertsSelected", "ExpertsServed"}
    listener.wants_contributions = True
    listener.order.clear()
    logits(model, ZOO["qwen3_moe"].inputs())
    banks = model.coterie.banks
    kinds = ("ExpertsSelected", "ExpertsContributed", "ExpertsServed")
    assert listener.order == [(kind, bank) for bank in banks for kind in kinds]


@pytest.mark.parametrize("name", ["qwen3_moe", "longcat_flash", "llama4_text_top3", "jetmoe", "switch_transformers"])
@pytest.mark.parametrize("policy", ["drop", "nearest"])
def test_experts_that_did_not_compute_are_not_measured(name, policy, path_of, tmp_path, open_model):
    extract(path_of(name, kind="checkpoint"), tmp_path / "store", experts="0-3")
    model, listener = open_model(tmp_path / "store", missing=policy), Listener()
    inputs = ALL[name].inputs(seed=1, batch=2)
    silent = logits(model, inputs)
    model.coterie.add_observer(listener)
    assert torch.equal(logits(model, inputs), silent)
    absent = 0
    for selected, contributed in zip(listener.selected, listener.contributed, strict=True):
        ids, got = selected.expert_ids, contributed.contributions
        is_absent = (ids >= 4) & (ids < 8)
        absent += int(is_absent.sum())
        assert np.isnan(got[is_absent]).all()
        assert np.isfinite(got[ids < 4]).any()
    assert absent > 0


def test_a_forward_that_adds_other_rows_tells_nothing():
    index = torch.tensor([[0, 1], [1, 2]])
    for calls in ([[0], [0, 1]], [[0], [0, 1], [1], [1]], [[0], [0, 1], [1]]):
        noted = Contributions(index, index, 3)
        with seen_additions(noted, index, 3):
            for tokens in calls:
                torch.zeros(2, 4).index_add_(0, torch.tensor(tokens), torch.ones(len(tokens), 4))
        assert noted.measured() is None
    noted = Contributions(index, index, 3)
    with seen_additions(noted, index, 3):
        # In an expert's rows, first choices come before second ones.
        for tokens in ([0], [1, 0], [1]):
            torch.zeros(2, 4).index_add_(0, torch.tensor(tokens), torch.ones(len(tokens), 4))
    assert noted.measured().tolist() == [[2, 2], [2, 2]]
