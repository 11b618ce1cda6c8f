"""Normalisation layers of streamed models: native, and bit for bit what they were."""

from __future__ import annotations

import pytest
import torch

from coterie.kernels import dense
from coterie.native import library
from coterie.passes.forwards import own, remove
from zoo import ZOO, logits

NAMES = sorted(ZOO)


def native_norms(model) -> list[torch.nn.Module]:
    return [one for one in model.modules() if isinstance(own(one), dense.NormForward)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_do_not_change(name: str, dtype: torch.dtype, zoo_checkpoint, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    if library() is None:
        pytest.skip("the native library was not built")
    model = open_model(zoo_checkpoint(name, dtype))
    native = native_norms(model)
    got = logits(model, ZOO[name].inputs())
    for module in native:
        remove(module, "native")
    assert torch.equal(logits(model, ZOO[name].inputs()), got)


def test_a_model_of_today_has_them_all_native(zoo_checkpoint, open_model) -> None:
    if library() is None:
        pytest.skip("the native library was not built")
    model = open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16))
    assert len(native_norms(model)) == sum("RMSNorm" in type(one).__name__ for one in model.modules())


def test_long_inputs_and_autocast_go_to_the_class(zoo_checkpoint, open_model, monkeypatch) -> None:
    if library() is None:
        pytest.skip("the native library was not built")
    model = open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16))
    module = native_norms(model)[0]
    calls: list[int] = []
    monkeypatch.setattr(dense.RmsNorm, "__call__", lambda *_: calls.append(1))
    columns = module.weight.shape[0]
    long = torch.ones(1, 32768 // columns + 1, columns, dtype=torch.bfloat16)
    assert torch.equal(module(long), type(module).forward(module, long))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(long[:, :2])
    assert not calls
    module(long[:, :2])
    assert calls


def test_without_the_library_nothing_is_replaced(zoo_checkpoint, open_model, monkeypatch) -> None:
    monkeypatch.setattr("coterie.integration.norms.library", lambda: None)
    model = open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16))
    assert native_norms(model) == []
