"""Models whose linear layers are in a scheme: bit for bit stock transformers with the same rounded weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from conftest import realigned
from coterie.checkpoint import Checkpoint
from coterie.errors import LoadError
from coterie.extraction import extract
from coterie.extraction.dense import quantised_linears
from coterie.integration import EncodedWeight, QuantisedLinears
from coterie.kernels import QuantisedLinear
from coterie.origins import CheckpointOrigin
from coterie.quant import SCHEMES, stored_linear
from coterie.spec.dense_schemes import DenseSchemes
from coterie.store import Store
from integration.families import with_schemes
from zoo import ZOO, logits, stock


def round_linears(model: PreTrainedModel, checkpoint: Checkpoint, scheme: str | DenseSchemes) -> None:
    """Gives a stock model the weights that a store's linear layers stand for."""
    schemes = DenseSchemes(scheme) if isinstance(scheme, str) else scheme
    with torch.no_grad():
        for name, matrix in quantised_linears(CheckpointOrigin(checkpoint), schemes).items():
            rounded = matrix.scheme.dequantise(matrix.quantise(checkpoint.read(name)), matrix.shape[1], model.dtype)
            model.get_parameter(checkpoint.keymap.dense[name]).copy_(rounded)


@with_schemes(1)
def test_outputs_are_those_of_stock_with_the_rounded_weights(
    name: str, scheme: str, zoo_checkpoint, tmp_path: Path, open_model
) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    directory = zoo_checkpoint(name, torch.float32)
    extract(directory, tmp_path / "store", dense_scheme=scheme)
    reference = realigned(stock(directory, torch.float32))
    exact = logits(reference, ZOO[name].inputs())
    round_linears(reference, Checkpoint.open(directory), scheme)
    want = logits(reference, ZOO[name].inputs())
    assert not torch.equal(exact, want)
    model = open_model(tmp_path / "store")
    assert torch.equal(logits(model, ZOO[name].inputs()), want)
    assert any(isinstance(module, QuantisedLinear) for module in model.modules())


def test_speech_is_that_of_stock_with_the_rounded_parts(zoo_checkpoint, tmp_path: Path, open_model) -> None:
    directory = zoo_checkpoint("qwen3_omni", torch.float32)
    extract(directory, tmp_path / "store", dense_scheme="attention=int8,talker=int4,predictor=int8")

    def answer(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(5)
        text, sound = model.generate(
            **ZOO["qwen3_omni"].inputs(), return_audio=True, thinker_max_new_tokens=4, talker_max_new_tokens=9
        )
        return text, sound

    reference = realigned(stock(directory, torch.float32))
    exact = answer(reference)
    round_linears(reference, Checkpoint.open(directory), Store.open(tmp_path / "store").manifest.dense_schemes)
    want = answer(reference)
    got = answer(open_model(tmp_path / "store"))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert not torch.equal(exact[1], want[1])


@pytest.fixture
def store(zoo_checkpoint, tmp_path: Path) -> Path:
    extract(zoo_checkpoint("qwen3_moe", torch.bfloat16), tmp_path / "store", scheme="int4", dense_scheme="int4")
    return tmp_path / "store"


def test_what_is_in_memory_is_what_is_stored(store: Path, open_model, zoo_checkpoint) -> None:
    model = open_model(store)
    whole = open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16))
    here = {name: tensor.nbytes for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    there = {name: tensor.nbytes for name, tensor in [*whole.named_parameters(), *whole.named_buffers()]}
    layer = "model.layers.0.self_attn.q_proj"
    assert f"{layer}.weight" not in here
    # 4.5 bits instead of 16.
    assert here[f"{layer}.codes"] + here[f"{layer}.scales"] == there[f"{layer}.weight"] * 4.5 / 16
    assert model.coterie.source.footprint.dense < 0.6 * whole.coterie.source.footprint.dense
    assert model.coterie.source.footprint.dense == sum(
        nbytes for name, nbytes in here.items() if not name.endswith("inv_freq")
    )


def test_a_smaller_dense_part_leaves_more_for_experts(store: Path, zoo_checkpoint, tmp_path: Path) -> None:
    from coterie.engine.memory import plan_for
    from coterie.engine.source import open_source

    extract(zoo_checkpoint("qwen3_moe", torch.bfloat16), tmp_path / "native", scheme="int4")
    plans = []
    for path in (store, tmp_path / "native"):
        source = open_source(path)
        plans.append(plan_for(source, 8 << 30, 64, loaded=False).process)
    # Both are the same process, measured twice; what differs is the dense part, and what was allocated in between.
    native = open_source(tmp_path / "native").footprint.dense
    assert plans[0] - plans[1] < native
    assert open_source(store).footprint.dense < native


def test_a_weight_that_is_used_beside_its_layer_is_the_rounded_one(store: Path, open_model, zoo_checkpoint) -> None:
    model = open_model(store)
    layer = model.model.layers[1].self_attn.o_proj
    checkpoint = Checkpoint.open(zoo_checkpoint("qwen3_moe", torch.bfloat16))
    name = "model.layers.1.self_attn.o_proj.weight"
    matrix = stored_linear(name, layer.out_features, layer.in_features, SCHEMES["int4"])
    assert torch.equal(
        layer.weight, matrix.scheme.dequantise(matrix.quantise(checkpoint.read(name)), matrix.shape[1], torch.bfloat16)
    )
    assert layer.weight.dtype == torch.bfloat16
    assert "scheme=int4" in repr(layer)


@pytest.mark.parametrize("component", ["thinker", "talker"])
def test_a_component_of_a_whole_store_is_that_of_stock(
    component: str, zoo_checkpoint, tmp_path: Path, open_model
) -> None:
    directory = zoo_checkpoint("qwen3_omni", torch.float32)
    extract(directory, tmp_path / "whole", dense_scheme="int8")
    extract(directory, tmp_path / "part", component=component, dense_scheme="int8")
    whole, part = open_model(tmp_path / "whole", component=component), open_model(tmp_path / "part")
    # Named alike, and with the same bytes.
    ours, theirs = (dict(model.named_buffers()) for model in (whole, part))
    assert [name for name in ours if name.endswith(".codes")]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_partial_store_runs(zoo_checkpoint, tmp_path: Path, open_model) -> None:
    directory = zoo_checkpoint("qwen3_moe", torch.float32)
    extract(directory, tmp_path / "store", experts="0-4", dense_scheme="int4")
    masked = open_model(tmp_path / "store", missing="mask")
    fetched = open_model(tmp_path / "store", missing="fetch", source=directory)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert masked(input_ids=ids).logits.isfinite().all()
        want = open_model(extracted(directory, tmp_path / "all"))(input_ids=ids).logits
        assert torch.equal(fetched(input_ids=ids).logits, want)


def extracted(directory: Path, store: Path) -> Path:
    extract(directory, store, dense_scheme="int4")
    return store


def test_generation(store: Path, open_model) -> None:
    ids = torch.arange(3, 12)[None]
    once = open_model(store).generate(ids, max_new_tokens=6, do_sample=False)
    small = open_model(store, expert_memory="30%").generate(ids, max_new_tokens=6, do_sample=False)
    assert once.shape == (1, 15)
    assert torch.equal(once, small)


class _Unread:
    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("nothing is to be read")


def _skeleton(zoo_checkpoint) -> PreTrainedModel:
    return Checkpoint.open(zoo_checkpoint("qwen3_moe", torch.float32)).skeleton


def test_a_weight_of_another_shape_is_refused_by_name(zoo_checkpoint) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    facts = (("U8", (3, 32)), ("BF16", (3, 1, 2)))
    linears = QuantisedLinears({name: EncodedWeight(scheme=SCHEMES["int4"], facts=facts, read=_Unread())})
    with pytest.raises(LoadError, match=r"q_proj.*do not belong together") as caught:
        linears.replace(_skeleton(zoo_checkpoint))
    assert caught.value.tensor == name
    assert caught.value.got == facts


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight", "nobody.weight"])
def test_a_weight_of_no_linear_layer_is_refused_by_name(name: str, zoo_checkpoint) -> None:
    linears = QuantisedLinears({name: EncodedWeight(scheme=SCHEMES["int4"], facts=(), read=_Unread())})
    with pytest.raises(LoadError, match=r"not the weight of a plain linear layer") as caught:
        linears.replace(_skeleton(zoo_checkpoint))
    assert caught.value.tensor == name


def test_a_layer_takes_over_the_bias() -> None:
    linear = nn.Linear(64, 32)
    matrix = stored_linear("w", 32, 64, SCHEMES["int8"])
    layer = QuantisedLinear(linear, matrix)
    assert layer.weight.is_meta  # before it has one, transformers' initialisation must pass over it
    layer.fill(*matrix.quantise(linear.weight.detach()))
    assert layer.bias is linear.bias
    x = torch.randn(2, 64)
    with torch.no_grad():
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, linear.bias))
