"""Attention and routers of lossy models: native for a token, the class's own for everything else, and near it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coterie.extraction import extract
from coterie.integration import token_forwards
from coterie.integration.token_forwards import TokenAttention, TokenRouter
from coterie.native import library

NAMES = ["qwen3_moe", "qwen3_omni"]


@pytest.fixture(autouse=True)
def native() -> None:
    if library() is None:
        pytest.skip("the native library was not built")


def store(name: str, zoo_checkpoint, tmp_path: Path, dense_scheme: str = "int4") -> Path:
    extract(zoo_checkpoint(name, torch.bfloat16), tmp_path / "store", scheme="int4", dense_scheme=dense_scheme)
    return tmp_path / "store"


def replaced(model: torch.nn.Module, kind: type) -> list[torch.nn.Module]:
    return [one for one in model.modules() if isinstance(one.__dict__.get("forward"), kind)]


def continued(model, ids: torch.Tensor, steps: int = 6) -> torch.Tensor:
    """Logits of steps with one token each, after a prompt."""
    found = []
    model = getattr(model, "thinker", model)
    with torch.no_grad():
        out = model(ids, use_cache=True)
        for step in range(steps):
            out = model(torch.full_like(ids[:, :1], step + 5), past_key_values=out.past_key_values, use_cache=True)
            found.append(out.logits)
    return torch.cat(found, dim=1)


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative, of the token in the middle: where scores are close, rounding sends a token to another expert."""
    got, want = got.float().flatten(0, -2), want.float().flatten(0, -2)
    return float(((got - want).norm(dim=-1) / want.norm(dim=-1)).median())


@pytest.mark.parametrize("name", NAMES)
def test_near_the_class_s_own(name: str, zoo_checkpoint, tmp_path: Path, open_model, monkeypatch) -> None:
    path = store(name, zoo_checkpoint, tmp_path)
    ids = torch.arange(3, 19)[None]
    calls: list[str] = []
    for kind, function in (("attention", "token_attention"), ("router", "route")):
        original = getattr(token_forwards, function)
        monkeypatch.setattr(
            token_forwards, function, lambda *a, _o=original, _k=kind, **k: calls.append(_k) or _o(*a, **k)
        )
    model = open_model(path)
    part = getattr(model, "thinker", model)
    attention, routers = replaced(part, TokenAttention), replaced(part, TokenRouter)
    assert attention
    assert routers
    got = continued(model, ids)
    assert calls.count("attention") == 6 * len(attention)
    for module in (*attention, *routers):
        del module.__dict__["forward"]
    want = continued(model, ids)
    assert distance(got, want) < 0.03


def test_the_same_at_every_budget(zoo_checkpoint, tmp_path: Path, open_model) -> None:
    path = store("qwen3_moe", zoo_checkpoint, tmp_path)
    ids = torch.arange(3, 19)[None]
    whole, tight = (continued(open_model(path, expert_memory=memory), ids) for memory in ("100%", "30%"))
    assert torch.equal(whole, tight)


def test_a_model_with_its_own_linear_layers_is_left_alone(zoo_checkpoint, tmp_path: Path, open_model) -> None:
    model = open_model(store("qwen3_moe", zoo_checkpoint, tmp_path, dense_scheme="native"))
    assert not replaced(model, TokenAttention)
    assert not replaced(model, TokenRouter)


def test_padded_batches_and_prompts_go_to_the_class(zoo_checkpoint, tmp_path: Path, open_model, monkeypatch) -> None:
    model = open_model(store("qwen3_moe", zoo_checkpoint, tmp_path))
    ids = torch.arange(3, 19)[None].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    monkeypatch.setattr(token_forwards, "token_attention", lambda *_: pytest.fail("not for one token alone"))
    model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)


def test_a_cache_of_fixed_size_is_masked_and_left_to_the_class(zoo_checkpoint, tmp_path: Path, open_model) -> None:
    model = open_model(store("qwen3_moe", zoo_checkpoint, tmp_path))
    ids = torch.arange(3, 19)[None]
    dynamic = model.generate(ids, max_new_tokens=6, do_sample=False)
    static = model.generate(ids, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert torch.equal(dynamic, static)
