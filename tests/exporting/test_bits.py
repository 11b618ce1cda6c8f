"""An exported checkpoint is what transformers alone makes of the same experts: logits, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig

from coterie.checkpoint import Checkpoint
from coterie.errors import UnsupportedError
from coterie.exporting import export
from coterie.extraction import extract, prune
from coterie.inspection import verify
from coterie.origins.selection import Selection
from coterie.store import Store
from zoo import ZOO
from zoo.files import load
from zoo.quantised import quantised, stock_dequantised
from zoo.weights import build

NAMES = ["qwen3_moe", "mixtral", "olmoe", "gpt_oss", "glm4_moe", "jamba", "qwen3_vl_moe"]
"""One tensor per expert or one for all; routers with a softmax, a sigmoid with a correction, biases; transposed."""


def kept_of(store: Path) -> dict[tuple[str, int], list[int]]:
    selection = Selection.read(store)
    assert selection is not None
    return {(key.component, key.layer): list(bank.experts) for key, bank in selection.banks.items()}


def sliced(directory: Path, small: Path, kept: dict[tuple[str, int], list[int]]) -> torch.nn.Module:
    """The stock model of a checkpoint, with the kept experts' entries of every tensor that has one for each expert."""
    whole, _ = load(directory, torch.bfloat16)
    config = AutoConfig.from_pretrained(small)
    model = type(whole)._from_config(config, dtype=torch.bfloat16).eval()
    model.set_experts_implementation("eager")
    target = model.state_dict()
    state = {}
    for name, tensor in whole.state_dict().items():
        different = [d for d, (a, b) in enumerate(zip(tensor.shape, target[name].shape, strict=True)) if a != b]
        for dimension in different:
            segments = name.split(".")
            layer = next(int(segment) for segment in segments if segment.isdigit())
            component = segments[0] if segments[0] in ("thinker", "talker") else "text"
            tensor = taken(tensor, dimension, kept[component, layer], target[name].shape[dimension])
        state[name] = tensor.clone()
    model.load_state_dict(state, strict=True)
    return model


def taken(tensor: torch.Tensor, dimension: int, experts: list[int], size: int) -> torch.Tensor:
    """The experts' entries of a dimension: one for each and then those of no expert with weights, or a block each."""
    removed = tensor.shape[dimension] - size
    if removed < 8:
        others = range(tensor.shape[dimension] - (size - len(experts)), tensor.shape[dimension])
        return tensor.index_select(dimension, torch.tensor([*experts, *others]))
    assert dimension == 0
    return tensor.unflatten(0, (-1, size // len(experts)))[experts].flatten(0, 1)


def logits_of(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("name", NAMES)
def test_stock_has_the_bits_of_the_pruned_store(name: str, zoo_checkpoint, tmp_path: Path, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    directory = zoo_checkpoint(name, torch.bfloat16)
    prune(directory, tmp_path / "pruned", keep=5, by="random", seed=3)
    report = export(tmp_path / "pruned", tmp_path / "exported", shard_limit=60_000)
    assert report.status == "written"
    assert set(report.experts.values()) == {5}
    kept = kept_of(tmp_path / "pruned")
    assert len({tuple(experts) for experts in kept.values()}) > 1
    inputs = ZOO[name].inputs(length=24)
    want = logits_of(sliced(directory, tmp_path / "exported", kept), inputs)
    stock, loading = load(tmp_path / "exported", torch.bfloat16)
    assert not any(loading.values())
    for parameter in stock.parameters():
        parameter.data = parameter.data.clone()
    assert torch.equal(logits_of(stock, inputs), want)
    assert torch.equal(logits_of(open_model(tmp_path / "pruned"), inputs), want)
    assert torch.equal(logits_of(open_model(tmp_path / "exported"), inputs), want)
    assert Checkpoint.open(tmp_path / "exported").identity == Store.open(tmp_path / "pruned").manifest.model.identity
    assert verify(tmp_path / "exported").ok
    only_this = changes(directory, tmp_path / "exported")
    # Heads that predict several tokens are in no store: the configuration must not promise them.
    assert {key: only_this.pop(key) for key in report.changed_keys} == dict.fromkeys(report.changed_keys, 0)
    assert list(only_this.values()) == [5]


def changes(before: Path, after: Path) -> dict[str, object]:
    """The values of a configuration that another has otherwise."""

    def leaves(value, path=()):
        if isinstance(value, dict):
            for key, item in value.items():
                yield from leaves(item, (*path, key))
        else:
            yield ".".join(path), value

    old, new = (dict(leaves(json.loads((path / "config.json").read_text()))) for path in (before, after))
    assert old.keys() == new.keys()
    return {key: new[key] for key in old if old[key] != new[key]}


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """A DeepSeek-V3 whose router chooses two of four groups of four experts first."""
    config = ZOO["deepseek_v3"].config()
    config.n_routed_experts = 16
    build(ZOO["deepseek_v3"].model_class, config, torch.bfloat16).save_pretrained(tmp_path / "grouped")
    return tmp_path / "grouped"


def test_groups_of_experts_stay_of_one_size(grouped: Path, tmp_path: Path, open_model) -> None:
    prune(grouped, tmp_path / "pruned", keep="70%", by="random")
    export(tmp_path / "pruned", tmp_path / "exported")
    kept = kept_of(tmp_path / "pruned")
    assert all([sum(e // 4 == group for e in experts) for group in range(4)] == [3] * 4 for experts in kept.values())
    inputs = ZOO["deepseek_v3"].inputs(length=24)
    want = logits_of(sliced(grouped, tmp_path / "exported", kept), inputs)
    assert torch.equal(logits_of(open_model(tmp_path / "pruned"), inputs), want)
    stock, _ = load(tmp_path / "exported", torch.bfloat16)
    assert torch.equal(logits_of(stock, inputs), want)


def test_thinker_and_talker_have_numbers_of_their_own(zoo_checkpoint, tmp_path: Path, open_model) -> None:
    directory = zoo_checkpoint("qwen3_omni", torch.bfloat16)
    prune(directory, tmp_path / "pruned", keep="thinker=5,talker=75%", by="random")
    report = export(tmp_path / "pruned", tmp_path / "exported")
    assert report.experts == {"thinker": 5, "talker": 6}
    changed = changes(directory, tmp_path / "exported")
    assert {key.rpartition(".")[0]: value for key, value in changed.items()} == {
        "thinker_config.text_config": 5,
        "talker_config.text_config": 6,
    }
    inputs = ZOO["qwen3_omni"].inputs(length=40, image=True, audio=True)
    want = sliced(directory, tmp_path / "exported", kept_of(tmp_path / "pruned"))
    stock, loading = load(tmp_path / "exported", torch.bfloat16)
    assert not any(loading.values())
    expected = logits_of(want.thinker, inputs)
    assert torch.equal(logits_of(stock.thinker, inputs), expected)
    assert torch.equal(logits_of(open_model(tmp_path / "pruned").thinker, inputs), expected)
    mine, theirs = stock.talker.state_dict(), want.talker.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert verify(tmp_path / "pruned", against=directory).ok


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_quantised_experts_keep_their_codes_and_scales(name: str, tmp_path: Path, open_model) -> None:
    directory = quantised(name, tmp_path / "checkpoint")
    prune(directory, tmp_path / "pruned", keep=3, by="random")
    export(tmp_path / "pruned", tmp_path / "exported")
    kept, fields = kept_of(tmp_path / "pruned"), 0
    with (
        safe_open(tmp_path / "exported/model.safetensors", "pt") as new,
        safe_open(directory / "model.safetensors", "pt") as old,
    ):
        for tensor in new.keys():
            segments = tensor.split(".")
            if "experts" not in segments:
                continue
            experts, place = kept["text", int(segments[2])], segments.index("experts") + 1
            got = new.get_tensor(tensor)
            if segments[place].isdigit():
                segments[place] = str(experts[int(segments[place])])
                want = old.get_tensor(".".join(segments))
            else:
                want = old.get_tensor(tensor)[experts]
            assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))
            fields += 1
    assert fields
    inputs = ZOO[name].inputs(length=24)
    stock = stock_dequantised(tmp_path / "exported")
    for parameter in stock.parameters():
        parameter.data = parameter.data.clone()
    assert torch.equal(logits_of(open_model(tmp_path / "pruned"), inputs), logits_of(stock, inputs))


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "qwen3_vl_moe"])
def test_a_store_of_the_whole_gives_back_its_checkpoint(name: str, zoo_checkpoint, tmp_path: Path) -> None:
    directory = zoo_checkpoint(name, torch.bfloat16)
    extract(directory, tmp_path / "store")
    export(tmp_path / "store", tmp_path / "exported")
    report = verify(tmp_path / "exported", against=directory)
    assert report.ok, report.problems
    assert report.compared_tensors > 10
    assert not (tmp_path / "exported/coterie-selection.json").exists()


def test_what_is_undecorated(tmp_path: Path, open_model, zoo_checkpoint) -> None:
    from zoo.undecorated import UNDECORATED

    done = 0
    for name in ("dbrx", "llama4_text_top3"):
        if UNDECORATED[name].why_not:
            continue
        directory = zoo_checkpoint(name, torch.bfloat16)
        prune(directory, tmp_path / name, keep="75%", by="random")
        export(tmp_path / name, tmp_path / f"{name}-exported")
        inputs = UNDECORATED[name].inputs(length=16)
        stock, loading = load(tmp_path / f"{name}-exported", torch.bfloat16)
        assert not any(loading.values()), loading
        for parameter in stock.parameters():
            parameter.data = parameter.data.clone()
        want = logits_of(sliced(directory, tmp_path / f"{name}-exported", kept_of(tmp_path / name)), inputs)
        assert torch.equal(logits_of(stock, inputs), want)
        assert torch.equal(logits_of(open_model(tmp_path / name), inputs), want)
        done += 1
    assert done


def test_experts_without_weights_stay_and_keep_a_store_from_being_exported(
    tmp_path: Path, open_model, zoo_checkpoint
) -> None:
    from zoo.undecorated import UNDECORATED

    model = UNDECORATED["longcat_flash"]
    if model.why_not:
        pytest.skip(model.why_not)
    directory = zoo_checkpoint("longcat_flash", torch.bfloat16)
    prune(directory, tmp_path / "pruned", keep=6, by="random")
    assert torch.isfinite(logits_of(open_model(tmp_path / "pruned"), model.inputs(length=16))).all()
    with pytest.raises(UnsupportedError, match="without weights"):
        export(tmp_path / "pruned", tmp_path / "exported")


def test_a_table_of_experts_by_token_is_refused(zoo_checkpoint, tmp_path: Path) -> None:
    from zoo import MATRIX

    names = [name for name in ("deepseek_v4",) if name in MATRIX and not MATRIX[name].why_not]
    if not names:
        pytest.skip("this transformers has no model whose router hashes tokens")
    with pytest.raises(UnsupportedError, match="whole numbers"):
        prune(zoo_checkpoint(names[0], torch.bfloat16), tmp_path / "pruned", keep="75%", by="random")
