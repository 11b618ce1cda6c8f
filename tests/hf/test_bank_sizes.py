"""A skeleton whose layers get numbers of experts of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.errors import UnsupportedError
from coterie.hf.bank_sizes import BankSizes, bank_sizes, uneven
from coterie.hf.banks import find_banks
from coterie.hf.skeleton import build_skeleton
from coterie.spec import BankKey
from zoo import ZOO

FIRST, SECOND = BankKey("text", 0, "mlp"), BankKey("text", 1, "mlp")


def skeleton():
    return build_skeleton(ZOO["qwen3_moe"].model_class, ZOO["qwen3_moe"].config(), torch.bfloat16)


def counts_of(model) -> dict[BankKey, int]:
    return {bank.key: bank.num_experts for bank in find_banks(model)}


def test_only_what_belongs_to_the_layer_is_cut() -> None:
    model, whole = skeleton(), skeleton()
    BankSizes.of(model, {FIRST: 3, SECOND: 8}).apply(model)
    assert counts_of(model) == {FIRST: 3, SECOND: 8}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    before = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    changed = {name for name in before if shapes[name] != before[name]}
    assert changed
    assert all(name.startswith("model.layers.0.mlp.") for name in changed)
    assert all(shapes[name] == (3, *before[name][1:]) for name in changed)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("counts", [{FIRST: 8, SECOND: 8}, {FIRST: 3, SECOND: 3}, {FIRST: 3, SECOND: 5}, {}])
def test_what_does_not_fit_the_configuration_is_left_for_the_comparison(counts: dict[BankKey, int]) -> None:
    model = skeleton()
    BankSizes.of(model, counts).apply(model)
    assert counts_of(model) == {FIRST: 8, SECOND: 8}


def test_an_even_model_is_not_built_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.hf.bank_sizes.build_skeleton", lambda *_: pytest.fail("built"))
    config = ZOO["qwen3_moe"].config()
    assert not uneven({FIRST: 4, SECOND: 4, BankKey("talker", 0, "mlp"): 2})
    assert bank_sizes(ZOO["qwen3_moe"].model_class, config, torch.bfloat16, {FIRST: 4, SECOND: 4}).cuts == ()


def test_what_depends_on_the_number_in_an_unknown_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_name(*arguments):
        model = build_skeleton(*arguments)
        for bank in find_banks(model):
            model.get_submodule(bank.path).label = f"{bank.num_experts} experts"
        return model

    monkeypatch.setattr("coterie.hf.bank_sizes.build_skeleton", with_name)
    model = with_name(ZOO["qwen3_moe"].model_class, ZOO["qwen3_moe"].config(), torch.bfloat16)
    with pytest.raises(UnsupportedError, match=r"layers.0.mlp.experts.label"):
        BankSizes.of(model, {FIRST: 3, SECOND: 8})


def test_experts_that_are_modules_go_by_their_numbers() -> None:
    model = nn.ModuleList(nn.Linear(2, 2, device="meta") for _ in range(4))
    from coterie.hf.bank_sizes import _difference

    cut = _difference("", model, nn.ModuleList(nn.Linear(2, 2, device="meta") for _ in range(2)), (4, 2), 3)
    assert cut is not None
    cut.apply(model)
    assert list(dict(model.named_children())) == ["0", "1", "2"]
