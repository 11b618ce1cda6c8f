import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from coterie.engine import open_source
from coterie.engine.alteration import Alteration
from coterie.engine.opening import open_streamed
from coterie.errors import CoverageError, UsageError
from coterie.extraction import extract, quantize
from coterie.extraction.expert_schemes import ExpertSchemes
from coterie.spec.opening import Opening

IDS = torch.tensor([[5, 9, 14, 3, 7, 7, 20, 11]])
WHOLE = Opening(expert_memory="100%")


@pytest.fixture(autouse=True)
def _no_advice() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The experts have")
        yield


@torch.inference_mode()
def logits(path: Path, opening: Opening = WHOLE, alteration: Alteration | None = None) -> torch.Tensor:
    model = open_streamed(path, opening, alteration)
    try:
        return model(input_ids=IDS).logits
    finally:
        model.coterie.close()


@pytest.fixture(scope="module")
def moe(zoo_checkpoint) -> Path:
    return zoo_checkpoint("qwen3_moe", torch.bfloat16)


@pytest.fixture(scope="module")
def store(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("altered") / "store"
    extract(moe, directory)
    return directory


def some_experts(path: Path) -> Alteration:
    return Alteration(experts=dict.fromkeys(open_source(path).num_experts, (0, 3, 4)))


@pytest.mark.parametrize("missing", ["mask", "drop", "nearest"])
def test_with_some_experts_it_is_the_partial_store(moe: Path, store: Path, tmp_path: Path, missing) -> None:
    extract(moe, tmp_path / "part", experts="0,3,4")
    opening = Opening(expert_memory="100%", missing=missing)
    expected = logits(tmp_path / "part", opening)
    for path in (moe, store):
        assert torch.equal(logits(path, opening, some_experts(path)), expected)
    assert not torch.equal(logits(moe), expected)
    with pytest.raises(CoverageError, match="holds 6 of 16 experts"):
        logits(moe, WHOLE, some_experts(moe))


def test_in_a_scheme_it_is_the_quantised_store(moe: Path, store: Path, tmp_path: Path) -> None:
    quantize(store, tmp_path / "int4", scheme="int4")
    some = {"schema_version": 1, "rest": "int8", "experts": {"text/mlp-layer-000/00003": "int4"}}
    quantize(store, tmp_path / "mixed", expert_schemes=some)
    for schemes, name in (("int4", "int4"), (ExpertSchemes.read(some), "mixed")):
        expected = logits(tmp_path / name)
        for path in (moe, store):
            assert torch.equal(logits(path, WHOLE, Alteration(schemes=schemes)), expected)
        # Experts that do not all fit are quantised again.
        assert torch.equal(logits(moe, Opening(expert_memory="40%"), Alteration(schemes=schemes)), expected)
    altered = Alteration(schemes="int4").of(open_source(moe))
    # Of memory, reading takes what quantising does.
    assert altered.footprint.reading > open_source(tmp_path / "int4").footprint.reading
    altered.close()


def test_both_at_once(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "part", experts="0,3,4", scheme="int4", dense_scheme="native")
    opening = Opening(expert_memory="100%", missing="drop")
    both = Alteration(experts=some_experts(moe).experts, schemes="int4")
    assert torch.equal(logits(moe, opening, both), logits(tmp_path / "part", opening))


def test_what_cannot_be_altered(moe: Path, store: Path, tmp_path: Path) -> None:
    quantize(store, tmp_path / "int4", scheme="int4")
    first = min(open_source(moe).num_experts)
    with pytest.raises(UsageError, match="no expert 8 in"):
        Alteration(experts={first: (1, 8)}).of(open_source(moe))
    with pytest.raises(UsageError, match="stored as int4; as int8 they would be larger"):
        Alteration(schemes="int8").of(open_source(tmp_path / "int4"))
    with pytest.raises(UsageError, match="does not have"):
        Alteration(schemes=ExpertSchemes.read({"schema_version": 1, "experts": {"x": "int4"}})).of(open_source(moe))


def test_different_alterations_are_told_apart(moe: Path) -> None:
    first, *_ = sorted(open_source(moe).num_experts)
    found = [
        Alteration(experts={first: (1, 2)}),
        Alteration(experts={first: (1, 3)}),
        Alteration(schemes="int4"),
        Alteration(schemes=ExpertSchemes.read({"schema_version": 1, "rest": "int4"})),
        Alteration(experts={first: (1, 2)}, schemes="int4"),
    ]
    assert len({one.fingerprint for one in found}) == len(found)
    assert Alteration(experts={first: (2, 1)}).fingerprint == found[0].fingerprint
