"""Stores whose layers have different numbers of experts: which stay, and what the model computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from coterie.checkpoint import Checkpoint
from coterie.errors import UsageError
from coterie.exporting import export
from coterie.extraction import extract, prune, quantize
from coterie.extraction.keeping import counts_by_rank
from coterie.hf.expert_counts import COUNT_NAMES, RouterGroups
from coterie.inspection import inspect, verify
from coterie.origins.selection import Selection
from coterie.profiles import BankShape, ProfileDatabase, Recording, RunFacts
from coterie.spec import BankKey
from coterie.store import Store
from zoo import ZOO
from zoo.files import load
from zoo.quantised import quantised
from zoo.weights import build

from .stores import stored

FIRST, SECOND = BankKey("text", 0, "mlp"), BankKey("text", 1, "mlp")
NAMES = [
    "qwen3_moe",
    "gpt_oss",
    "glm4_moe",
    "jamba",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixtral", "olmoe", "qwen3_vl_moe")),
]
"""Routers with a softmax, biases, a sigmoid with a correction, and layers without experts."""


def kept_of(store: Path) -> dict[BankKey, tuple[int, ...]]:
    selection = Selection.read(store)
    assert selection is not None
    return {key: bank.experts for key, bank in selection.banks.items()}


def cut_by_hand(directory: Path, kept: dict[BankKey, tuple[int, ...]], experts_before: int = 8) -> torch.nn.Module:
    """The stock model; each layer is one of a stock model that has so many experts everywhere, with its own weights."""
    whole, _ = load(directory, torch.bfloat16)
    for key, experts in kept.items():
        config = AutoConfig.from_pretrained(directory)
        for part in (config, config.get_text_config()):
            for name in COUNT_NAMES:
                if getattr(part, name, None) == experts_before:
                    setattr(part, name, len(experts))
        small = type(whole)._from_config(config, dtype=torch.bfloat16).eval()
        small.set_experts_implementation("eager")
        path = next(
            path for path, module in whole.named_modules()
            if isinstance(module, torch.nn.ModuleList) and path.endswith("layers") and "visual" not in path
        )  # fmt: skip
        mine, layer = whole.get_submodule(path)[key.layer], small.get_submodule(path)[key.layer]
        state = {}
        for name, tensor in mine.state_dict().items():
            target = layer.state_dict()[name].shape
            different = [d for d, (a, b) in enumerate(zip(tensor.shape, target, strict=True)) if a != b]
            assert len(different) < 2
            state[name] = tensor.index_select(different[0], torch.tensor(experts)) if different else tensor.clone()
        layer.load_state_dict(state, strict=True)
        whole.get_submodule(path)[key.layer] = layer
    return whole


def logits_of(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of a prompt, and of a few tokens that are generated after it."""
    with torch.no_grad():
        made = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return torch.cat([model(**inputs).logits[0], *made.logits])


@pytest.mark.parametrize("name", NAMES)
def test_a_store_has_the_bits_of_a_model_cut_by_hand(name: str, zoo_checkpoint, tmp_path: Path, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    directory = zoo_checkpoint(name, torch.bfloat16)
    report = prune(directory, tmp_path / "pruned", keep=5, by="random", seed=1, ranking="global")
    kept = kept_of(tmp_path / "pruned")
    assert len({len(experts) for experts in kept.values()}) > 1
    assert report.experts_present == sum(map(len, kept.values())) == 5 * len(kept)
    inputs = {"input_ids": ZOO[name].inputs(length=20)["input_ids"]}
    want = logits_of(cut_by_hand(directory, kept), inputs)
    assert torch.equal(logits_of(open_model(tmp_path / "pruned"), inputs), want)
    assert torch.equal(logits_of(open_model(tmp_path / "pruned", expert_memory="40%"), inputs), want)
    facts = {(bank.layer, bank.experts) for bank in inspect(tmp_path / "pruned").banks}
    assert facts == {(key.layer, len(experts)) for key, experts in kept.items()}
    assert verify(tmp_path / "pruned", against=directory).ok
    with pytest.raises(UsageError, match="one number for all layers"):
        export(tmp_path / "pruned", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_groups_of_a_layer_stay_of_one_size(tmp_path: Path, open_model) -> None:
    config = ZOO["deepseek_v3"].config()
    config.n_routed_experts = 16
    build(ZOO["deepseek_v3"].model_class, config, torch.bfloat16).save_pretrained(tmp_path / "grouped")
    prune(tmp_path / "grouped", tmp_path / "pruned", keep=12, by="random", seed=3, ranking="global")
    kept = kept_of(tmp_path / "pruned")
    assert sorted(map(len, kept.values())) != [12] * len(kept)
    for experts in kept.values():
        assert len({sum(e // 4 == group for e in experts) for group in range(4)}) == 1
    inputs = {"input_ids": ZOO["deepseek_v3"].inputs(length=20)["input_ids"]}
    want = logits_of(cut_by_hand(tmp_path / "grouped", kept, 16), inputs)
    assert torch.equal(logits_of(open_model(tmp_path / "pruned"), inputs), want)


@pytest.fixture
def profile(moe: Path, tmp_path: Path) -> Path:
    """In the first layer three experts do all; in the second all do the same."""
    source = Checkpoint.open(moe)
    banks = tuple(BankShape(bank=bank, experts=8, top_k=2) for bank in sorted(source.banks))
    run = RunFacts(identity=source.identity, model="m", model_class="M", tool_version="0", banks=banks)
    with (
        ProfileDatabase(tmp_path / "p.db", create=True) as database,
        Recording(database, run, vocabulary=0) as recording,
    ):
        group = recording.group("text", "code", "prompt")
        for shape in banks:
            ids = np.tile(np.arange(8, dtype=np.uint16)[:, None], (50, 1))
            sizes = np.where(ids < 3, 9.0, 0.1) if shape.bank == FIRST else np.ones(ids.shape)
            recording.add(shape.bank, ids, np.ones(ids.shape, np.float32), sizes.astype(np.float32), group)
    return tmp_path / "p.db"


def test_layers_that_need_many_experts_keep_more(moe: Path, profile: Path, tmp_path: Path) -> None:
    prune(moe, tmp_path / "store", keep="75%", by="ean", profile=profile, ranking="global")
    assert kept_of(tmp_path / "store") == {FIRST: (0, 1, 2, 3), SECOND: tuple(range(8))}
    prune(moe, tmp_path / "least", keep="75%", by="ean", profile=profile, ranking="global", least=5)
    assert kept_of(tmp_path / "least") == {FIRST: (0, 1, 2, 3, 4), SECOND: tuple(range(7))}
    selection = Selection.read(tmp_path / "least")
    assert selection is not None
    assert selection.steps == ({"by": "ean", "tokens_of": {"text": ["text"]}, "ranking": "global", "least": 5},)


def test_of_a_store_it_is_what_it_is_of_the_checkpoint(moe: Path, tmp_path: Path, open_model) -> None:
    wanted = {"keep": 6, "by": "random", "seed": 1, "ranking": "global"}
    prune(moe, tmp_path / "want", **wanted)
    quantize(tmp_path / "want", tmp_path / "want-int4", scheme="int4", dense_scheme="int8")
    quantize(moe, tmp_path / "int4", scheme="int4", dense_scheme="int8")
    prune(tmp_path / "int4", tmp_path / "got-int4", **wanted)
    want, got = Store.open(tmp_path / "want-int4"), Store.open(tmp_path / "got-int4")
    assert {key: got.checksum(key) for key in got.keys()} == {key: want.checksum(key) for key in want.keys()}
    assert got.manifest.model == want.manifest.model
    inputs = ZOO["qwen3_moe"].inputs(length=20)
    assert torch.equal(
        logits_of(open_model(tmp_path / "got-int4"), inputs), logits_of(open_model(tmp_path / "want-int4"), inputs)
    )


def test_a_store_with_layers_of_several_sizes_is_pruned_again(moe: Path, tmp_path: Path, open_model) -> None:
    prune(moe, tmp_path / "first", keep=6, by="random", seed=1, ranking="global")
    before = kept_of(tmp_path / "first")
    for keep, ranking in (("50%", "layer"), (3, "layer"), (3, "global")):
        out = tmp_path / f"{keep}-{ranking}"
        prune(tmp_path / "first", out, keep=keep, by="random", seed=4, ranking=ranking)
        kept = kept_of(out)
        assert all(set(kept[key]) < set(before[key]) for key in kept)
        inputs = ZOO["qwen3_moe"].inputs(length=20)
        assert torch.equal(logits_of(open_model(out), inputs), logits_of(cut_by_hand(moe, kept), inputs))
        assert verify(out, against=moe).ok
    assert [len(e) for e in kept_of(tmp_path / "3-layer").values()] == [3, 3]
    export(tmp_path / "3-layer", tmp_path / "exported")
    assert json.loads((tmp_path / "exported/config.json").read_text())["num_local_experts"] == 3
    with pytest.raises(UsageError, match="has"):
        prune(tmp_path / "first", tmp_path / "out", keep=7, by="random")


def test_scales_of_a_quantised_checkpoint_go_with_their_experts(tmp_path: Path, open_model) -> None:
    directory = quantised("qwen3_moe", tmp_path / "checkpoint")
    before = Checkpoint.open(directory).banks[FIRST].bank.num_experts
    prune(directory, tmp_path / "pruned", keep=before - 1, by="random", seed=1, ranking="global")
    kept = kept_of(tmp_path / "pruned")
    extract(directory, tmp_path / "whole")
    whole, small = Store.open(tmp_path / "whole"), Store.open(tmp_path / "pruned")
    for key, experts in kept.items():
        for new, old in enumerate(experts):
            assert stored(small, key.expert(new)) == stored(whole, key.expert(old))
    assert torch.isfinite(logits_of(open_model(tmp_path / "pruned"), ZOO["qwen3_moe"].inputs(length=8))).all()


def test_thinker_and_talker_are_ranked_apart(zoo_checkpoint, tmp_path: Path, open_model) -> None:
    directory = zoo_checkpoint("qwen3_omni", torch.bfloat16)
    prune(directory, tmp_path / "pruned", keep="thinker=5,talker=75%", by="random", seed=9, ranking="global")
    kept = kept_of(tmp_path / "pruned")
    for component, each in (("thinker", 5), ("talker", 6)):
        sizes = [len(experts) for key, experts in kept.items() if key.component == component]
        assert sum(sizes) == each * len(sizes)
        assert len(set(sizes)) > 1
    inputs = ZOO["qwen3_omni"].inputs(length=40, image=True, audio=True)
    with torch.no_grad():
        whole = open_model(tmp_path / "pruned").thinker(**inputs).logits
        assert torch.equal(open_model(tmp_path / "pruned", component="thinker")(**inputs).logits, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranking": "galaxy"}, "ranking 'galaxy'"),
        ({"least": 4}, "--ranking global"),
        ({"ranking": "global", "least": 0}, "at least one expert"),
        ({"ranking": "global", "least": 7}, "leaves no choice"),
        ({"ranking": "global", "keep": 1}, "Keep at least 2"),
    ],
)
def test_what_cannot_be_asked_for(moe: Path, tmp_path: Path, options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prune(moe, tmp_path / "store", **({"by": "random", "keep": 6} | options))
    assert not (tmp_path / "store").exists()


def test_steps_of_one_expert_of_each_group() -> None:
    bank = type("Bank", (), {"num_experts": 8, "choices": 2, "identities": 0})()
    banks = {FIRST: bank, SECOND: bank}
    scores = {FIRST: np.array([9.0, 8, 1, 1, 1, 1, 1, 1]), SECOND: np.array([5.0, 5, 5, 5, 5, 5, 5, 5])}
    one = {"text": RouterGroups()}
    assert counts_by_rank(banks, scores, {FIRST: 6, SECOND: 6}, one, None) == {FIRST: 4, SECOND: 8}
    two = {"text": RouterGroups(count=2, chosen=1, least=2)}
    assert counts_by_rank(banks, scores, {FIRST: 6, SECOND: 6}, two, None) == {FIRST: 4, SECOND: 8}
    # A bank that keeps all takes no part.
    assert counts_by_rank(banks, scores, {FIRST: 6, SECOND: 8}, one, None) == {FIRST: 6, SECOND: 8}
