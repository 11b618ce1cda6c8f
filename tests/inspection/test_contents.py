from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from coterie.checkpoint import Checkpoint
from coterie.errors import StoreNotFoundError, UsageError
from coterie.extraction import extract
from coterie.inspection import inspect, memory_fit
from coterie.inspection.contents import store_contents
from coterie.inspection.what_fits import PROCESS_NBYTES
from coterie.origins.store_or_checkpoint import find_model
from coterie.plan.budget import least_budget
from coterie.spec import ContextShape
from coterie.spec.footprint import Footprint
from store.faults import Killed, KillingCalls


def test_a_checkpoint_and_its_whole_store_hold_the_same(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store")
    one, other = inspect(moe), inspect(tmp_path / "store")
    assert (one.model.kind, other.model.kind) == ("checkpoint", "store")
    assert one.model.identity == other.model.identity
    assert one.model.integrity == other.model.integrity
    assert one.banks == other.banks
    assert one.components == other.components
    assert one.expert_nbytes == other.expert_nbytes
    assert one.complete
    assert other.complete
    assert other.disk_nbytes == sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file())


def test_a_partial_store(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.inspection.what_fits.process_memory", lambda: SimpleNamespace(total=0))
    extract(moe, tmp_path / "store", experts="0-1", layers="1")
    report = inspect(tmp_path / "store")
    nbytes = next(iter(Checkpoint.open(moe).banks.values())).layout.nbytes
    assert [(bank.layer, bank.present, bank.experts) for bank in report.banks] == [(0, 8, 8), (1, 2, 8)]
    assert (report.present, report.experts, report.complete) == (10, 16, False)
    assert report.expert_nbytes == 10 * nbytes
    assert report.components[0].full_nbytes == 16 * nbytes
    assert report.working_set_nbytes == 2 * 2 * nbytes
    # Native records are computed with as they are: none is decoded beside them.
    assert report.minimum_nbytes == PROCESS_NBYTES + report.dense_memory_nbytes + 2 * nbytes


def test_components_are_told_apart(zoo_checkpoint) -> None:
    report = inspect(zoo_checkpoint("qwen3_omni"))
    assert [one.component for one in report.components] == ["talker", "thinker"]
    assert sum(one.experts for one in report.components) == report.experts
    only = inspect(zoo_checkpoint("qwen3_omni"), component="thinker")
    assert [one.component for one in only.components] == ["thinker"]
    assert only.disk_nbytes < report.disk_nbytes


def test_no_token_goes_through_two_components(zoo_checkpoint) -> None:
    report = inspect(zoo_checkpoint("qwen3_omni"))
    sets = [one.working_set_nbytes for one in report.components]
    assert min(sets) > 0
    assert report.working_set_nbytes == max(sets)


@pytest.mark.parametrize("component", ["thinker", "talker"])
def test_a_component_of_a_store_is_that_of_its_checkpoint(component: str, zoo_store, zoo_checkpoint) -> None:
    store, checkpoint = zoo_store("qwen3_omni"), zoo_checkpoint("qwen3_omni")
    one, other = inspect(store, component=component), inspect(checkpoint, component=component)
    assert one.model.component == component
    assert one.model.model_class == other.model.model_class
    assert one.banks == other.banks
    assert (one.dense_nbytes, one.dense_memory_nbytes) == (other.dense_nbytes, other.dense_memory_nbytes)
    assert one.disk_nbytes == other.disk_nbytes == one.dense_nbytes + one.expert_nbytes
    assert one.batching == other.batching
    part, whole = (store_contents(find_model(store), name).footprint for name in (component, None))
    assert part.dense < whole.dense
    assert part.experts < whole.experts


def test_a_store_of_one_component_has_no_other(zoo_checkpoint, tmp_path: Path) -> None:
    extract(zoo_checkpoint("qwen3_omni"), tmp_path / "thinker", component="thinker")
    named, whole = inspect(tmp_path / "thinker", component="thinker"), inspect(tmp_path / "thinker")
    assert (named.model, named.banks, named.disk_nbytes) == (whole.model, whole.banks, whole.disk_nbytes)
    with pytest.raises(UsageError, match="holds only the thinker, not the talker"):
        inspect(tmp_path / "thinker", component="talker")
    with pytest.raises(UsageError, match="encoder"):
        inspect(tmp_path / "thinker", component="encoder")


def test_what_a_budget_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.inspection.what_fits.process_memory", lambda: SimpleNamespace(total=0))
    sizes, margin = [100] * 10, 64 * 2**20
    shape = ContextShape(
        hidden=1,
        attention=1,
        kv_per_token=1,
        kv_per_copy=1,
        intermediate=1,
        experts=10,
        top_k=2,
        vocabulary=10,
        itemsize=2,
    )
    footprint = Footprint(dense=50, shape=shape, reading=3, dequantising=4, record=100, experts=1000, all_experts=1000)
    nothing = memory_fit(1, footprint, context=1, record_sizes=sizes, working_set_nbytes=200)
    assert (nothing.expert_nbytes, nothing.experts, nothing.enough) == (0, 0, False)
    around = nothing.context_nbytes
    assert around > shape.kv_bytes(1) + shape.activation_bytes(1) + 7

    def fit(left: int):
        memory = PROCESS_NBYTES + 50 + around + margin + left
        return memory_fit(memory, footprint, context=1, record_sizes=sizes, working_set_nbytes=200)

    assert (fit(450).experts, fit(450).share, fit(450).comfortable) == (4, 0.4, True)
    assert (fit(399).experts, fit(399).comfortable) == (3, False)
    assert not fit(199).enough
    assert (fit(5000).experts, fit(5000).share) == (10, 1.0)
    assert fit(199).minimum == least_budget(footprint, 1, process=PROCESS_NBYTES + 50)
    assert fit(199).margin_nbytes == margin
    for memory, enough in ((nothing.minimum, True), (nothing.minimum - 1, False)):
        found = memory_fit(memory, footprint, context=1, record_sizes=sizes, working_set_nbytes=200)
        assert (found.enough, found.minimum) == (enough, nothing.minimum)


def test_an_unfinished_store_is_told_as_such(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        extract(moe, tmp_path / "store", workers=1, calls=KillingCalls(60))
    with pytest.raises(StoreNotFoundError, match="unfinished store"):
        inspect(tmp_path / "store")


def test_the_report_as_json(moe: Path) -> None:
    value = json.loads(json.dumps(inspect(moe).to_json()))
    assert value["schema_version"] == 2
    assert value["model"]["model_class"] == "Qwen3MoeForCausalLM"
    assert value["banks"][0]["schemes"] == {"native": 8}


def test_what_a_store_would_hold_is_what_it_holds(zoo_checkpoint, tmp_path: Path) -> None:
    checkpoint, schemes = zoo_checkpoint("qwen3_omni", torch.bfloat16), {"scheme": "int4", "dense_scheme": "int8"}
    planned = inspect(checkpoint, **schemes)
    extract(checkpoint, tmp_path / "store", **schemes)
    made = inspect(tmp_path / "store")
    assert (planned.planned, made.planned) == (True, False)
    assert (planned.banks, planned.components, planned.dense_parts) == (made.banks, made.components, made.dense_parts)
    assert (planned.dense_nbytes, planned.dense_memory_nbytes) == (made.dense_nbytes, made.dense_memory_nbytes)
    assert (planned.dense_scheme, planned.batching) == (made.dense_scheme, made.batching)
    assert planned.dense_nbytes + planned.expert_nbytes < planned.disk_nbytes < made.disk_nbytes


def test_a_store_has_its_schemes(zoo_store) -> None:
    with pytest.raises(UsageError, match="has its schemes"):
        inspect(zoo_store("qwen3_omni"), scheme="int4")
