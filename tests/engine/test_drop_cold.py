"""Light experts that are not in memory are left out of decode steps: those, no others, and only where it was asked."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie import load
from coterie.errors import UsageError
from coterie.extraction import extract
from coterie.integration.quantised import TokenExperts
from coterie.native import library
from coterie.passes.current import current
from coterie.routing import Routed
from coterie.spec import BankKey
from zoo import ZOO, logits
from zoo.undecorated import UNDECORATED

BF16 = torch.bfloat16
NEW = 24
LAYERS = 2


class Computed:
    """Notes which of the chosen experts were computed, by layer and decode step."""

    wants_contributions = True

    def __init__(self) -> None:
        self.kept: dict[BankKey, list[torch.Tensor]] = defaultdict(list)
        self._decodes = False

    def on_event(self, event: Any) -> None:
        if type(event).__name__ == "StepStarted":
            self._decodes = event.phase == "decode"
        elif type(event).__name__ == "ExpertsContributed" and self._decodes:
            self.kept[event.bank].append(~torch.isnan(torch.tensor(event.contributions)))


class LeftOut:
    """Leaves the same out as was left out before, whatever is in memory."""

    def __init__(self, kept: dict[BankKey, list[torch.Tensor]]) -> None:
        self._kept = {bank: list(steps) for bank, steps in kept.items()}

    def __call__(self, bank: BankKey, routed: Routed, none: int) -> Routed:
        if not current().decode:
            return routed
        gone = ~self._kept[bank].pop(0)
        return Routed(routed.ids.masked_fill(gone, none), routed.weights.masked_fill(gone, 0), routed.absent)

    def most(self, component: str) -> None:
        return None


def generate(model: Any, **options: Any) -> Any:
    return model.generate(
        **ZOO["qwen3_moe"].inputs(seed=1, **options),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )


@pytest.fixture(scope="module")
def store4(zoo_checkpoint, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("int4") / "store"
    extract(zoo_checkpoint("qwen3_moe", BF16), directory, scheme="int4", dense_scheme="int4")
    return directory


@pytest.mark.parametrize("kind", ["bf16", "int4"])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_left_out_is_all_that_changes(kind, batch, zoo_store, store4, open_model):
    path = store4 if kind == "int4" else zoo_store("qwen3_moe", BF16)
    model, whole = open_model(path, expert_memory="40%", drop_cold=1.0, prefetch="off"), open_model(path)
    computed = Computed()
    model.coterie.add_observer(computed)
    found = generate(model, batch=batch)
    stats = model.coterie.stats().total
    left_out = sum(int((~kept).sum()) for steps in computed.kept.values() for kept in steps)
    assert 0 < stats.left_out <= left_out
    assert stats.bytes_not_read == stats.left_out * max(model.coterie.source.record_nbytes.values())
    assert all(bool(kept.any(dim=1).all()) for steps in computed.kept.values() for kept in steps)
    expected = generate(whole, batch=batch)
    # The prompt has all its experts.
    assert torch.equal(found.logits[0], expected.logits[0])
    assert not torch.equal(torch.stack(found.logits), torch.stack(expected.logits))
    with whole.coterie.limit_experts(LeftOut(computed.kept)):
        again = generate(whole, batch=batch)
    assert torch.equal(torch.stack(found.logits), torch.stack(again.logits))
    assert whole.coterie.stats().total.left_out == 0


@pytest.mark.parametrize("kind", ["bf16", "int4"])
def test_where_all_experts_are_in_memory_nothing_changes(kind, zoo_store, store4, open_model):
    path = store4 if kind == "int4" else zoo_store("qwen3_moe", BF16)
    model, whole = open_model(path, expert_memory="100%", drop_cold=1.0), open_model(path, expert_memory="100%")
    for one in (model, whole):
        with one.coterie.cache.lease(  # every expert is read
            list(one.coterie.source.experts.keys()), consumer=current().consumer
        ) as lease:
            assert len(list(lease)) == 16
    assert torch.equal(torch.stack(generate(model).logits), torch.stack(generate(whole).logits))
    assert model.coterie.stats().total.left_out == 0


def test_native_layers_compute_what_is_there(store4, open_model, monkeypatch):
    if library() is None:
        pytest.skip("the native library was not built")
    computed = []
    original = TokenExperts.compute

    def compute(self, state):
        whole = original(self, state)
        computed.append(whole is not None)
        return whole

    monkeypatch.setattr(TokenExperts, "compute", compute)
    model = open_model(store4, expert_memory="60%", drop_cold=1.0, prefetch="off")
    generate(model)
    assert len(computed) == LAYERS * (NEW - 1)
    assert {True, False} == set(computed)
    assert model.coterie.stats().total.left_out > 0


def test_it_predicts_no_more_than_it_is_likely_to_ask_for(zoo_store, open_model):
    hinted = {}
    for share in (None, 1.0):
        model = open_model(zoo_store("qwen3_moe", BF16), expert_memory="40%", prefetch="on", drop_cold=share)
        generate(model)
        hinted[share] = model.coterie.stats().prefetch_hinted
    # One prediction for each of the layers after the first, of every token.
    assert 0 < hinted[1.0] <= NEW * (LAYERS - 1) + LAYERS < 2 * NEW
    assert hinted[1.0] < hinted[None]


@pytest.mark.parametrize(
    "name", sorted({"llama4_text_top3", "jetmoe", "dbrx", "gpt_oss", "mixtral"} & set(ZOO | UNDECORATED))
)
def test_other_classes(name, zoo_store, zoo_checkpoint, open_model, tmp_path):
    zoo = (ZOO | UNDECORATED)[name]
    if zoo.why_not:
        pytest.skip(zoo.why_not)
    if name in ZOO:
        path = zoo_store(name)
    else:
        path = tmp_path / "model"
        zoo.build(torch.float32).save_pretrained(path)
    model, whole = open_model(path, expert_memory="50%", drop_cold=1.0), open_model(path)
    inputs = zoo.inputs(seed=1)
    assert torch.equal(logits(model, inputs), logits(whole, inputs))
    computed = Computed()
    model.coterie.add_observer(computed)
    # Drawn, because the likeliest tokens of such a model soon repeat themselves.
    model.generate(**inputs, max_new_tokens=16, min_new_tokens=16, do_sample=True)
    total = model.coterie.stats().total
    assert total.left_out > 0
    assert sum(int((~kept).sum()) for steps in computed.kept.values() for kept in steps) >= total.left_out


def test_absent_experts_are_no_cold_ones(zoo_store, open_model):
    model = open_model(
        zoo_store("qwen3_moe", torch.float32, experts="0-3"), missing="drop", expert_memory="25%", drop_cold=1.0
    )
    model.generate(**ZOO["qwen3_moe"].inputs(seed=1), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=True)
    total = model.coterie.stats().total
    assert total.absent > 0
    assert total.left_out > 0


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share, zoo_store):
    with pytest.raises(UsageError, match="drop_cold is a share"):
        load(zoo_store("qwen3_moe", BF16), drop_cold=share)


def test_what_experts_do_is_not_recorded_meanwhile(zoo_store, open_model, tmp_path):
    model = open_model(zoo_store("qwen3_moe", BF16), drop_cold=0.1)
    with pytest.raises(UsageError, match="With drop_cold no trace"), model.coterie.record_trace(tmp_path / "t.npz"):
        pass
    with pytest.raises(UsageError, match="With drop_cold no profile"), model.coterie.record_profile(tmp_path / "p.db"):
        pass
    assert not list(tmp_path.iterdir())


def test_with_one_expert_per_token_it_says_that_nothing_comes_of_it(zoo_store):
    with pytest.warns(UserWarning, match=r"drop_cold=0\.5 has no effect"):
        load(zoo_store("qwen3_moe", BF16), experts_per_token=1, expert_memory="100%", drop_cold=0.5).coterie.close()
