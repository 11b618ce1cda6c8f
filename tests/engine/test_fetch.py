"""``missing="fetch"``: a partial store computes as the complete model does, and comes to hold what was used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from coterie.engine import load
from coterie.errors import CoverageError, LoadError, UsageError
from coterie.extraction import extract
from coterie.inspection import inspect, verify
from coterie.store import Store
from zoo import ZOO, logits

BF16 = torch.bfloat16
NAMES = ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "jamba", "qwen3_vl_moe", "qwen3_omni_thinker", "qwen3_omni"]


@pytest.fixture
def partial(zoo_store, tmp_path):
    """A store of its own with experts 0 and 3 of each layer."""

    def make(name: str, dtype: torch.dtype = BF16) -> Path:
        return Path(shutil.copytree(zoo_store(name, dtype, "0,3"), tmp_path / "store"))

    return make


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.matrix), BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_it_computes_as_the_complete_model(name, dtype, partial, zoo_checkpoint, zoo_stock, open_model):
    path, source = partial(name, dtype), zoo_checkpoint(name, dtype)
    model = open_model(path, missing="fetch", source=source, expert_memory="25%")
    for seed in range(2):
        inputs = ZOO[name].inputs(seed=seed, batch=2)
        assert torch.equal(logits(model, inputs), logits(zoo_stock(name, dtype), inputs))
    stats = model.coterie.stats()
    assert stats.total.absent == 0
    assert stats.fetched.experts > 4
    assert stats.fetched.nbytes >= stats.fetched.experts * 64
    model.coterie.close()
    assert model.coterie.stats().fetched.added == stats.fetched.experts
    assert verify(path, against=source).ok
    store = Store.open(path)
    assert len(store.keys()) == stats.fetched.experts + len(store.banks) * 2
    assert inspect(path).present == len(store.keys())


def test_generation_is_that_of_the_complete_model(partial, zoo_checkpoint, zoo_stock, open_model):
    model = open_model(
        partial("qwen3_moe"), missing="fetch", source=zoo_checkpoint("qwen3_moe", BF16), expert_memory="20%"
    )
    inputs = ZOO["qwen3_moe"].inputs(seed=3, batch=2)
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), zoo_stock("qwen3_moe", BF16).generate(**inputs, **options))


def test_what_is_complete_needs_no_checkpoint(partial, zoo_checkpoint, zoo_stock, open_model):
    path, inputs = partial("qwen3_moe"), ZOO["qwen3_moe"].inputs(seed=1, batch=2, length=64)
    first = open_model(path, missing="fetch", source=zoo_checkpoint("qwen3_moe", BF16))
    for seed in range(8):
        logits(first, ZOO["qwen3_moe"].inputs(seed=seed, batch=2, length=64))
    first.coterie.close()
    assert Store.open(path).manifest.is_complete
    for options in ({}, {"missing": "fetch"}, {"missing": "fetch", "source": "nowhere"}):
        model = open_model(path, **options)
        assert torch.equal(logits(model, inputs), logits(zoo_stock("qwen3_moe", BF16), inputs))
        assert model.coterie.stats().fetched.experts == 0


def test_checked_reads(partial, zoo_checkpoint, zoo_stock, open_model):
    path, source = partial("qwen3_moe"), zoo_checkpoint("qwen3_moe", BF16)
    model = open_model(path, missing="fetch", source=source, verify_reads=True, expert_memory="20%")
    inputs = ZOO["qwen3_moe"].inputs(seed=1, batch=2)
    for _ in range(3):
        assert torch.equal(logits(model, inputs), logits(zoo_stock("qwen3_moe", BF16), inputs))
        assert model.coterie.source.fetching.growth.flush()
    fetched = model.coterie.stats().fetched
    logits(model, inputs)
    assert model.coterie.stats().fetched == fetched


def test_one_component_of_a_whole_store(partial, zoo_checkpoint, zoo_stock, open_model):
    path, source = partial("qwen3_omni"), zoo_checkpoint("qwen3_omni", BF16)
    model = open_model(path, component="thinker", missing="fetch", source=source)
    inputs = ZOO["qwen3_omni"].inputs(seed=1)
    assert torch.equal(model(**inputs).logits, zoo_stock("qwen3_omni", BF16).thinker(**inputs).logits)
    model.coterie.close()
    store = Store.open(path)
    assert {key.component for key in store.keys() if key.expert not in (0, 3)} == {"thinker"}
    assert verify(path, against=source).ok


def test_a_store_of_one_component(zoo_checkpoint, zoo_stock, open_model, tmp_path):
    source = zoo_checkpoint("qwen3_omni", BF16)
    extract(source, tmp_path / "thinker", component="thinker", experts="1")
    model = open_model(tmp_path / "thinker", missing="fetch", source=source)
    inputs = ZOO["qwen3_omni"].inputs(seed=1)
    assert torch.equal(model(**inputs).logits, zoo_stock("qwen3_omni", BF16).thinker(**inputs).logits)
    model.coterie.close()
    assert verify(tmp_path / "thinker", against=source).ok


def test_it_fits_a_budget(partial, zoo_checkpoint, zoo_stock, open_model):
    path, source = partial("qwen3_moe"), zoo_checkpoint("qwen3_moe", BF16)
    model = open_model(path, missing="fetch", source=source, memory="8GiB")
    largest = max(model.coterie.source.record_nbytes.values())
    assert model.coterie.plan.io_buffers >= 9 * largest
    inputs = ZOO["qwen3_moe"].inputs(seed=1)
    assert torch.equal(logits(model, inputs), logits(zoo_stock("qwen3_moe", BF16), inputs))


def test_statistics_are_written(partial, zoo_checkpoint, open_model, tmp_path):
    model = open_model(partial("qwen3_moe"), missing="fetch", source=zoo_checkpoint("qwen3_moe", BF16))
    logits(model, ZOO["qwen3_moe"].inputs())
    model.coterie.write_stats(tmp_path / "stats.json")
    fetched = json.loads((tmp_path / "stats.json").read_text())["fetched"]
    assert fetched["experts"] > 0
    assert fetched.keys() == {"experts", "nbytes", "added"}


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_source_without_fetching_has_no_effect(partial, zoo_checkpoint):
    path = partial("qwen3_moe")
    for missing in (None, "mask"):
        with pytest.raises(UsageError, match="nothing is to be fetched"):
            load(path, missing=missing, source=zoo_checkpoint("qwen3_moe", BF16))


def test_the_source_has_to_be_known(partial):
    with pytest.raises(UsageError, match="source"):
        load(partial("qwen3_moe"), missing="fetch")


def test_another_source_is_refused(partial, zoo_checkpoint):
    with pytest.raises(LoadError, match="is not the checkpoint"):
        load(partial("qwen3_moe"), missing="fetch", source=zoo_checkpoint("qwen3_moe", torch.float32))


def test_fetching_is_among_what_a_partial_store_advises(partial):
    with pytest.raises(CoverageError, match="'fetch' reads it from the checkpoint"):
        load(partial("qwen3_moe"))
