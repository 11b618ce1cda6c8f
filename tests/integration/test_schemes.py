"""Models that compute with dequantised experts: bit for bit stock transformers with the same rounded weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from conftest import realigned
from coterie.errors import LoadError
from coterie.extraction import extract
from coterie.hf.banks import find_banks
from coterie.passes.decoder import FieldDecoder
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.spec import ExpertKey, RecordLayout
from coterie.spec.parameters import dequantised_nbytes
from coterie.store import Store
from integration.families import with_schemes
from zoo import ZOO, logits, stock


def fields_of(store: Store, key: ExpertKey) -> tuple[torch.Tensor, ...]:
    layout = store.layout(key)
    record = bytearray(layout.nbytes)
    store.read_into(key, memoryview(record))
    return tuple(
        torch.frombuffer(record, dtype=torch.uint8, count=place.nbytes, offset=place.offset)
        .view(TORCH_DTYPES[place.dtype])
        .view(place.shape)
        for place in layout.fields
    )


def round_experts(model: PreTrainedModel, store: Store) -> None:
    """Gives a stock model the weights that a store's records stand for."""
    with torch.no_grad():
        for bank in find_banks(model):
            for expert in range(bank.num_experts):
                key = bank.key.expert(expert)
                values = FieldDecoder(store.layout(key), bank)(fields_of(store, key))
                for (name, targets), value in zip(bank.targets.items(), values, strict=True):
                    if bank.holding == "separate":
                        model.get_parameter(targets[expert]).copy_(value)
                    else:
                        whole = model.get_parameter(targets[0])
                        whole.view(-1, *bank.parameters[name])[expert].copy_(value)


@with_schemes(0)
def test_outputs_are_those_of_stock_with_the_rounded_weights(
    name: str, scheme: str, zoo_checkpoint, tmp_path: Path, open_model
) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    directory = zoo_checkpoint(name, torch.float32)
    extract(directory, tmp_path / "store", scheme=scheme, dense_scheme="native")
    reference = realigned(stock(directory, torch.float32))
    exact = logits(reference, ZOO[name].inputs())
    round_experts(reference, Store.open(tmp_path / "store"))
    want = logits(reference, ZOO[name].inputs())
    assert not torch.equal(exact, want)
    for memory in ("100%", "30%"):
        assert torch.equal(logits(open_model(tmp_path / "store", expert_memory=memory), ZOO[name].inputs()), want)


def test_one_bank_may_have_every_scheme(zoo_checkpoint, tmp_path: Path, open_model) -> None:
    directory = zoo_checkpoint("gpt_oss", torch.bfloat16)
    for experts, scheme in (("0,4", "int4"), ("1,5", "int8"), ("2,3,6,7", "native")):
        extract(directory, tmp_path / "store", experts=experts, scheme=scheme)
    store = Store.open(tmp_path / "store")
    assert store.manifest.is_complete
    assert {store.scheme(key) for key in store.keys()} == {"int4", "int8", "native"}
    reference = realigned(stock(directory, torch.bfloat16))
    round_experts(reference, Store.open(tmp_path / "store"))
    want = logits(reference, ZOO["gpt_oss"].inputs())
    assert torch.equal(logits(open_model(tmp_path / "store"), ZOO["gpt_oss"].inputs()), want)


def test_dequantised_experts_count_in_the_plan(zoo_checkpoint, tmp_path: Path) -> None:
    extract(zoo_checkpoint("qwen3_moe", torch.float32), tmp_path / "store", scheme="int4")
    store = Store.open(tmp_path / "store")
    key = next(iter(store.keys()))
    (bank,) = [one for one in find_banks(stock(zoo_checkpoint("qwen3_moe"), torch.float32)) if one.key == key.bank_key]
    values = FieldDecoder(store.layout(key), bank)(fields_of(store, key))
    assert dequantised_nbytes(store.layout(key), 4) == sum(value.nbytes for value in values)


@pytest.mark.parametrize("change", ["codes", "scales"])
def test_fields_of_other_shapes_are_refused(change: str, zoo_checkpoint, tmp_path: Path) -> None:
    directory = zoo_checkpoint("qwen3_moe", torch.float32)
    extract(directory, tmp_path / "store", scheme="int4")
    store = Store.open(tmp_path / "store")
    layout = store.layout(next(iter(store.keys())))
    bank = find_banks(stock(directory, torch.float32))[0]
    index = 0 if change == "codes" else 1
    fields = [(one.name, one.dtype, one.shape) for one in layout.fields]
    name, dtype, shape = fields[index]
    fields[index] = (name, dtype, (*shape[:-1], shape[-1] + 1))
    with pytest.raises(LoadError, match="do not belong together"):
        FieldDecoder(RecordLayout.build(layout.name, fields), bank)
