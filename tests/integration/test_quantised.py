"""Experts computed from their codes: the values of the reference within rounding, the same bits whatever the budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coterie.extraction import extract
from coterie.integration import quantised
from zoo import ZOO, logits

pytestmark = pytest.mark.usefixtures("native")

# SiLU and GELU, shared experts, several components, sigmoid routers.
NAMES = ["deepseek_v3", "mixtral", "olmoe", "qwen3_moe", "qwen3_omni"]
BY_SCHEME = pytest.mark.parametrize("scheme", ["int2", "int3", "int4", "int8"])


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Tokens of every pass that went to the native library."""
    found: list[int] = []
    compute = quantised.QuantisedExperts.compute

    def counted(self, now, hidden_TD, *rest, **options):
        found.append(hidden_TD.shape[0])
        return compute(self, now, hidden_TD, *rest, **options)

    monkeypatch.setattr(quantised.QuantisedExperts, "compute", counted)
    return found


def store(name: str, scheme: str, zoo_checkpoint, tmp_path: Path) -> Path:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    extract(zoo_checkpoint(name, torch.bfloat16), tmp_path / "store", scheme=scheme)
    return tmp_path / "store"


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative, of the token in the middle: where scores are close, rounding sends a token to another expert."""
    got, want = got.float().flatten(0, -2), want.float().flatten(0, -2)
    return float(((got - want).norm(dim=-1) / want.norm(dim=-1)).median())


@BY_SCHEME
@pytest.mark.parametrize("name", NAMES)
def test_near_the_reference_and_equal_at_every_budget(
    name: str, scheme: str, zoo_checkpoint, tmp_path: Path, open_model, computed: list[int], monkeypatch
) -> None:
    path = store(name, scheme, zoo_checkpoint, tmp_path)
    got = logits(open_model(path), ZOO[name].inputs())
    assert computed
    assert torch.equal(logits(open_model(path, expert_memory="30%"), ZOO[name].inputs()), got)
    monkeypatch.setattr(quantised, "library", lambda: None)
    count = len(computed)
    want = logits(open_model(path), ZOO[name].inputs())
    assert len(computed) == count
    assert distance(got, want) < 0.03


@BY_SCHEME
def test_generation_is_the_same_at_every_budget_and_number_of_threads(
    scheme: str, zoo_checkpoint, tmp_path: Path, open_model, computed: list[int]
) -> None:
    path = store("qwen3_moe", scheme, zoo_checkpoint, tmp_path)
    ids = torch.arange(3, 23)[None]
    answers = []
    for memory, threads in (("100%", 1), ("100%", 2), ("30%", 1), ("60%", 2)):
        torch.set_num_threads(threads)
        model = open_model(path, expert_memory=memory)
        answers.append(model.generate(ids, max_new_tokens=12, do_sample=False))
        stats = model.coterie.stats().total
        assert stats.hits + stats.misses == stats.requested
        assert (stats.misses > 0) == (stats.bytes_read > 0)
    torch.set_num_threads(1)
    assert {20, 1} <= set(computed)
    assert all(torch.equal(one, answers[0]) for one in answers)


def test_absent_experts(zoo_checkpoint, tmp_path: Path, open_model, computed: list[int], monkeypatch) -> None:
    directory = zoo_checkpoint("qwen3_moe", torch.bfloat16)
    extract(directory, tmp_path / "store", scheme="int4", experts="0-3")
    for missing in ("mask", "drop", "nearest"):
        got = logits(open_model(tmp_path / "store", missing=missing), ZOO["qwen3_moe"].inputs())
        assert computed
        with monkeypatch.context() as patch:
            patch.setattr(quantised, "library", lambda: None)
            want = logits(open_model(tmp_path / "store", missing=missing), ZOO["qwen3_moe"].inputs())
        assert distance(got, want) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_are_left_to_the_reference(
    dtype: torch.dtype, zoo_checkpoint, tmp_path: Path, open_model, computed: list[int]
) -> None:
    extract(zoo_checkpoint("qwen3_moe", dtype), tmp_path / "store", scheme="int4")
    logits(open_model(tmp_path / "store"), ZOO["qwen3_moe"].inputs())
    assert not computed


def test_a_bank_of_several_schemes_is_computed_alike(
    zoo_checkpoint, tmp_path: Path, open_model, computed: list[int], monkeypatch
) -> None:
    directory = zoo_checkpoint("qwen3_moe", torch.bfloat16)
    for experts, scheme in (("0-1", "int4"), ("2-3", "int3"), ("4-5", "int8"), ("6", "int2"), ("7", "native")):
        extract(directory, tmp_path / "store", scheme=scheme, experts=experts)
    got = logits(open_model(tmp_path / "store"), ZOO["qwen3_moe"].inputs())
    assert computed
    assert torch.equal(logits(open_model(tmp_path / "store", expert_memory="30%"), ZOO["qwen3_moe"].inputs()), got)
    ids = torch.arange(3, 23)[None]
    answers = [
        open_model(tmp_path / "store", expert_memory=memory).generate(ids, max_new_tokens=12, do_sample=False)
        for memory in ("100%", "30%")
    ]
    assert torch.equal(*answers)
    monkeypatch.setattr(quantised, "library", lambda: None)
    assert distance(got, logits(open_model(tmp_path / "store"), ZOO["qwen3_moe"].inputs())) < 0.03


def test_a_layer_whose_experts_are_all_native_is_left_to_torch(
    zoo_checkpoint, tmp_path: Path, open_model, computed: list[int]
) -> None:
    directory = zoo_checkpoint("qwen3_moe", torch.bfloat16)
    extract(directory, tmp_path / "store")
    want = logits(open_model(directory), ZOO["qwen3_moe"].inputs())
    assert torch.equal(logits(open_model(tmp_path / "store"), ZOO["qwen3_moe"].inputs()), want)
    assert not computed


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (torch.nn.SiLU(), "silu"),
        (torch.nn.GELU(), "gelu"),
        (torch.nn.GELU(approximate="tanh"), "gelu_tanh"),
        (torch.nn.ReLU(), "relu"),
        (torch.nn.Tanh(), None),
        (None, None),
    ],
)
def test_activations_are_known_by_what_they_compute(activation: torch.nn.Module | None, name: str | None) -> None:
    assert quantised.activation_name(activation) == name
