"""Predictions in company, against those alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import coterie
from coterie.errors import UsageError
from coterie.evaluate import Text, encode
from coterie.evaluate.company import compare_company
from coterie.generation.opened import OpenModel
from coterie.generation.steps import Steps
from generation.conftest import OLD
from zoo.sizes import TEXT_IDS


def random_texts(count: int, tokens: int = 40) -> list[Text]:
    ids = torch.randint(3, TEXT_IDS, (count, tokens), generator=torch.Generator().manual_seed(0))
    return [Text(name=f"text {row}", ids=tuple(one.tolist())) for row, one in enumerate(ids)]


@pytest.mark.skipif(OLD, reason="positions are made within the pass there, and answers take turns")
def test_in_company_the_bundled_model_predicts_nearly_the_same(bundled: Path) -> None:
    model = coterie.load(bundled, expert_memory="100%")
    tokenizer = OpenModel.of(model).processors.tokenizer
    prose = (Path(__file__).parents[2] / "benchmarks/data/eval/prose.txt").read_text(encoding="utf-8")
    texts = [encode(tokenizer, prose[begin:], name=str(begin), limit=60) for begin in (0, 2000, 4000)]
    found = compare_company(model, texts, prompt=10, tokens=6)
    model.coterie.close()
    assert (found.rows, found.passes, found.tokens) == (3, {3: 6}, 18)
    assert found.kld_mean < 1e-4
    assert found.kld_max < 1e-3
    assert found.same_top > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_company_a_tiny_model_predicts_nearly_the_same(dtype, zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("mixtral", dtype))
    found = compare_company(model, random_texts(4), prompt=5, tokens=6)
    assert (found.passes, found.tokens) == ({4: 6}, 24)
    assert found.kld_mean <= found.kld_max < 1e-4
    alone = compare_company(model, random_texts(4), prompt=5, tokens=6, batching="exact")
    assert (alone.passes, alone.kld_max, alone.identical) == ({1: 24}, 0.0, 24)


def test_a_divergence_shows(zoo_checkpoint, open_model, monkeypatch) -> None:
    """What would be computed wrongly for several, as is here each of their tokens, would be seen."""
    model = open_model(zoo_checkpoint("mixtral"))
    step = Steps.step

    def wrong(self: Steps) -> object:
        if len(self._waiting) > 1:
            with torch.no_grad():
                model.lm_head.weight += 0.01 * torch.randn(model.lm_head.weight.shape)
        return step(self)

    monkeypatch.setattr(Steps, "step", wrong)
    found = compare_company(model, random_texts(3), prompt=5, tokens=6)
    assert found.kld_max > 1e-4
    assert found.identical < found.tokens


def test_too_little_is_refused(zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("mixtral"))
    with pytest.raises(UsageError, match="beside something else"):
        compare_company(model, random_texts(1))
    with pytest.raises(UsageError, match="text 0 has 40 tokens; 97 are compared"):
        compare_company(model, random_texts(2))
