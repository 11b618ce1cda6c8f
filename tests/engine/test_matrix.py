"""Every experts class of transformers, streamed from checkpoint and store: the bits of stock with eager experts.

What ran and was equal is recorded in ``docs/models.json``, which the page of supported models is made of: write it anew
with ``COTERIE_RECORD=1 pytest tests/engine/test_matrix.py --junitxml=matrix.xml``, then ``python scripts/models.py
matrix.xml`` and ``make docs``.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedModel

from conftest import realigned
from coterie.extraction import extract
from coterie.hf.banks import ExpertBank, find_banks
from coterie.hf.experts import uses_common_forward
from coterie.hf.families import DECORATED
from coterie.hf.releases import TESTED
from coterie.routing import routing_support
from zoo import MATRIX, ZooModel, load, logits, save

pytestmark = pytest.mark.matrix

DTYPES = (torch.float32, torch.bfloat16)
NEW_TOKENS = 5
RECORDED = json.loads((Path(__file__).parents[2] / "docs" / "models.json").read_text(encoding="utf-8"))


def outputs(model: PreTrainedModel, variant: ZooModel) -> list[torch.Tensor]:
    """Logits of two sequences at once, and the tokens that one of them goes on with."""
    seeing = {"image": True} if variant.sees_with_experts else {}
    results = [logits(model, variant.inputs(seed=1, batch=2, **seeing))]
    if variant.generates:
        speaker = getattr(model, "thinker", model)
        torch.manual_seed(0)  # a diffusion model draws
        tokens = speaker.generate(**variant.inputs(seed=2, **seeing), max_new_tokens=NEW_TOKENS, do_sample=False)
        results.append(getattr(tokens, "sequences", tokens))
    return results


def facts(stock: PreTrainedModel, variant: ZooModel) -> dict[str, Any]:
    """What the page of supported models says about a variant."""
    banks = find_banks(stock)
    modules = {type(stock.get_submodule(bank.path)): stock.get_submodule(bank.path) for bank in banks}
    return {
        "class": variant.class_name,
        "experts": sorted(cls.__name__ for cls in modules),
        "common": all(bank.family == DECORATED for bank in banks) and all(map(uses_common_forward, modules.values())),
        "banks": sorted({f"{bank.key.component}/{bank.key.bank}" for bank in banks}),
        "tied": any(bank.tied for bank in banks),
        "compared": ["logits", "tokens"] if variant.generates else ["logits"],
        "routers": routers(stock, banks),
    }


def routers(stock: PreTrainedModel, banks: list[ExpertBank]) -> dict[str, dict[str, Any]]:
    """Class that routes → what can be done about absent experts there."""
    found: dict[str, dict[str, Any]] = {}
    for bank in banks:
        support = routing_support(stock.get_submodule(bank.router_block))
        found[support.router_class] = {
            "family": support.family,
            "reason": support.reason,
            "experts_per_token": support.experts_per_token,
            "nearest": support.nearest,
        }
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(MATRIX))
def test_streams_bit_for_bit(name, dtype, tmp_path, open_model, record_property):
    variant = MATRIX[name]
    if reason := variant.why_not:
        pytest.skip(reason)
    checkpoint, store = tmp_path / "checkpoint", tmp_path / "store"
    save(variant, dtype, checkpoint)
    stock, report = load(checkpoint, dtype)
    assert {kind: keys for kind, keys in report.items() if keys} == {}
    expected = outputs(realigned(stock), variant)
    assert torch.isfinite(expected[0]).all()
    assert expected[0].argmax(dim=-1).unique().numel() > 5
    extract(checkpoint, store)
    for path in (checkpoint, store):
        model = open_model(path, expert_memory="25%")
        for ours, theirs in zip(outputs(model, variant), expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs), f"{(ours != theirs).float().mean():.1%} of the elements differ"
        stats = model.coterie.stats()
        assert stats.total.evictions > 0
        silent = [str(key) for key, bank in stats.layers.items() if not bank.requested]
        assert not silent or name == "qwen3_omni"  # whose talker was not asked to speak
        model.coterie.close()
    found = facts(stock, variant)
    record = RECORDED.get(transformers.__version__, {}).get(name)
    if record is not None and not os.environ.get("COTERIE_RECORD"):
        assert {key: record[key] for key in found} == found, "docs/models.json is out of date: see the top of this file"
    record_property("matrix", json.dumps({"name": name, "dtype": str(dtype), "facts": found}))


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_absent_experts_can_be_fetched_or_dropped(name, tmp_path, open_model):
    variant = MATRIX[name]
    if reason := variant.why_not:
        pytest.skip(reason)
    checkpoint, store = tmp_path / "checkpoint", tmp_path / "store"
    save(variant, torch.bfloat16, checkpoint)
    seeing = {"image": True} if variant.sees_with_experts else {}
    inputs = variant.inputs(seed=1, batch=2, **seeing)
    extract(checkpoint, store, experts="1")
    dropping = open_model(store, missing="drop")
    assert torch.isfinite(logits(dropping, inputs)).all()
    assert sum(bank.absent for bank in dropping.coterie.stats().layers.values()) > 0
    dropping.coterie.close()
    fetching = open_model(store, missing="fetch", source=checkpoint)
    expected = logits(realigned(load(checkpoint, torch.bfloat16)[0]), inputs)
    assert torch.equal(logits(fetching, inputs), expected)
    assert fetching.coterie.stats().fetched.experts > 0
    fetching.coterie.close()


@pytest.mark.parametrize("release", sorted(RECORDED))
def test_what_is_recorded_is_what_the_matrix_has(release):
    """The page of supported models cannot claim what was not run."""
    recorded = RECORDED[release]
    if release != transformers.__version__:
        assert recorded.keys() <= MATRIX.keys()
        return
    assert sorted(recorded) == sorted(name for name, variant in MATRIX.items() if variant.why_not is None)
    for name, record in recorded.items():
        assert record["dtypes"] == ["bfloat16", "float32"]
        assert record["class"] == MATRIX[name].class_name


def test_the_newest_release_is_recorded():
    assert TESTED[-1] in RECORDED


def test_every_decorated_class_is_in_the_matrix():
    """A class that a new release of transformers brings is missed here first."""
    if transformers.__version__ != max(RECORDED, key=Version):
        pytest.skip("only the newest release has all of them")
    decorated: set[str] = set()
    for file in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        text = file.read_text(encoding="utf-8")
        decorated.update(re.findall(r"^@use_experts_implementation.*\n(?:@.*\n)*class (\w+)", text, re.MULTILINE))
    covered = {cls for record in RECORDED[transformers.__version__].values() for cls in record["experts"]}
    assert len(decorated) > 30
    assert decorated - covered == set()
