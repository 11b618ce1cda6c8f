"""What a model takes is added up once: `coterie inspect` says what opening needs, and opening needs what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import coterie
from coterie.checkpoint import Checkpoint
from coterie.engine import open_source
from coterie.extraction import extract
from coterie.inspection import inspect
from coterie.inspection.contents import checkpoint_footprint, store_footprint
from coterie.planner import plan
from coterie.spec import ContextShape
from coterie.spec.footprint import Footprint
from coterie.store import Store, is_store
from zoo import ZOO
from zoo.quantised import quantised


def said(path: Path, component: str | None = None) -> Footprint:
    """As `coterie inspect` adds it up."""
    if is_store(path):
        return store_footprint(Store.open(path))
    return checkpoint_footprint(Checkpoint.open(path, component=component))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_inspect_adds_up_what_opening_does(name: str, zoo_checkpoint, zoo_store) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    for path in (zoo_checkpoint(name, torch.bfloat16), zoo_store(name, torch.bfloat16)):
        assert said(path) == open_source(path).footprint


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_of_quantised_checkpoints(name: str, tmp_path: Path) -> None:
    quantised(name, tmp_path / "checkpoint")
    extract(tmp_path / "checkpoint", tmp_path / "store")
    extract(tmp_path / "checkpoint", tmp_path / "int8", scheme="int8", dense_scheme="int8")
    for path in ("checkpoint", "store", "int8"):
        found = said(tmp_path / path)
        assert found == open_source(tmp_path / path).footprint
        assert found.dequantising > 0


def test_of_partial_stores_and_of_several_schemes(zoo_checkpoint, tmp_path: Path) -> None:
    checkpoint = zoo_checkpoint("qwen3_moe", torch.bfloat16)
    whole = open_source(checkpoint).footprint
    extract(checkpoint, tmp_path / "store", experts="0-1", scheme="int4")
    extract(checkpoint, tmp_path / "store", experts="2-4", scheme="native")
    found = said(tmp_path / "store")
    assert found == open_source(tmp_path / "store").footprint
    assert found.experts < found.all_experts == found.experts + 2 * 3 * found.record
    assert found.record == whole.record
    assert (found.reading, whole.reading) == (0, 8 * whole.record)
    extract(checkpoint, tmp_path / "store", experts="5-7", scheme="native")
    found = said(tmp_path / "store")
    # As many bytes as they have, not as many as the first of each bank would make of them.
    assert found.all_experts == found.experts == inspect(tmp_path / "store").expert_nbytes


def test_of_a_part(zoo_checkpoint, zoo_store) -> None:
    checkpoint, store = zoo_checkpoint("qwen3_omni", torch.bfloat16), zoo_store("qwen3_omni", torch.bfloat16)
    parts = [open_source(store, component=name) for name in ("thinker", "talker")]
    for name, part in zip(("thinker", "talker"), parts, strict=True):
        assert said(checkpoint, name).experts == part.footprint.experts == part.footprint.all_experts
        assert {key.component for key in part.experts.keys()} == {name}
    assert sum(part.footprint.experts for part in parts) == open_source(store).footprint.experts


def test_a_report_has_the_same_figures(zoo_checkpoint) -> None:
    path = zoo_checkpoint("qwen3_moe", torch.bfloat16)
    report, footprint = inspect(path), open_source(path).footprint
    budget = plan(path, memory="4GiB", measure=False).budgets[0].memory
    assert report.dense_memory_nbytes == budget.dense_nbytes == footprint.dense
    assert report.expert_nbytes == footprint.experts
    shape = footprint.shape
    tokens = budget.context
    least = shape.kv_bytes(tokens) + shape.activation_bytes(tokens) + footprint.buffers
    assert budget.context_nbytes > least


AT_THE_EDGE = """
import sys, coterie
from coterie.errors import MemoryBudgetError
def planned(path, memory):
    return coterie.planner.plan(path, memory=memory, measure=False).budgets[0].memory
mib = 2**20
ballast = b"." * (500 * mib)  # more than is counted with at the least
import coterie.engine.opening
coterie.inspect(sys.argv[1])
for path in sys.argv[1:]:
    least = planned(path, "1MiB").minimum
    # This process goes on growing by a few MiB.
    for memory, takes in ((least + 8 * mib, True), (least - 40 * mib, False)):
        assert planned(path, memory).enough is takes, (path, memory, takes)
        try:
            coterie.load(path, memory=memory).coterie.close()
            assert takes, (path, memory)
        except MemoryBudgetError as error:
            assert not takes, (path, memory, error)
            print(error.minimum - least)
"""


def test_inspect_and_load_agree_at_the_edge(wide: dict[str, Path]) -> None:
    """A budget that is enough opens the model, one that is not is refused: also where experts are most of it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AT_THE_EDGE, *map(str, wide.values())],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    differences = [int(line) for line in done.stdout.split()]
    assert len(differences) == len(wide)
    assert all(abs(found) < 32 * 2**20 for found in differences)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model whose experts have 6 MiB each: buffers for reading them decide."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    config = Qwen3MoeConfig(
        hidden_size=1024, intermediate_size=64, moe_intermediate_size=1024, num_hidden_layers=1, num_experts=4,
        num_experts_per_tok=2, num_attention_heads=2, num_key_value_heads=1, head_dim=64, vocab_size=64,
        max_position_embeddings=512,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "checkpoint")
    coterie.extract(folder / "checkpoint", folder / "store")
    return {"checkpoint": folder / "checkpoint", "store": folder / "store"}


def test_the_fewest_experts_are_two_or_all() -> None:
    shape = ContextShape(
        hidden=1,
        attention=1,
        kv_per_token=1,
        kv_per_copy=1,
        intermediate=1,
        experts=4,
        top_k=1,
        vocabulary=1,
        itemsize=2,
    )
    facts = {"dense": 0, "shape": shape, "reading": 0, "dequantising": 0, "record": 100, "all_experts": 400}
    assert [Footprint(**facts, experts=count).least_experts for count in (0, 100, 200, 300)] == [0, 100, 200, 200]
