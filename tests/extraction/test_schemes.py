"""Stores with experts in lossy schemes: bytes, sizes, growth, comparison with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.checkpoint import Checkpoint
from coterie.engine import load
from coterie.errors import QuantisationError, StoreError, UnsupportedError, UsageError
from coterie.extraction import extract
from coterie.extraction.quantising import scheme_of_store
from coterie.inspection import inspect, verify
from coterie.quant import SCHEMES
from coterie.store import Store, verify_store
from zoo.quantised import quantised

from .stores import snapshot, stored

NAMES = ["gpt_oss", "jetmoe", "mixtral", "qwen3_moe", "qwen3_omni"]
BY_SCHEME = pytest.mark.parametrize("scheme", ["int2", "int3", "int4", "int8"])
I5 = torch.tensor([5])


def copied(checkpoint: Path, directory: Path, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A copy of a checkpoint with its first tensor of this name changed."""
    directory.mkdir()
    for path in checkpoint.glob("*.json"):
        (directory / path.name).write_bytes(path.read_bytes())
    weights = {name: value for path in checkpoint.glob("*.safetensors") for name, value in load_file(path).items()}
    name = min(name for name in weights if part in name)
    weights[name] = change(weights[name])
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


@BY_SCHEME
@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_stored_in_fewer_bytes_and_compares_with_its_checkpoint(
    name: str, scheme: str, zoo_checkpoint, tmp_path: Path
) -> None:
    directory = zoo_checkpoint(name, torch.float32)
    report = extract(directory, tmp_path / "store", scheme=scheme)
    assert report.complete
    checkpoint, store = Checkpoint.open(directory), Store.open(tmp_path / "store")
    assert scheme_of_store(store.manifest) == scheme
    for key in store.keys():
        assert store.layout(key).payload_nbytes < checkpoint.layout(key).payload_nbytes
        assert scheme in store.layout(key).name.split(";")
    assert verify_store(tmp_path / "store").problems == ()
    found = verify(tmp_path / "store", against=directory)
    assert found.ok
    assert found.compared_experts == len(store.keys())


@BY_SCHEME
def test_same_bytes_whatever_the_number_of_workers_and_threads(
    scheme: str, moe: Path, tmp_path: Path, two_threads
) -> None:
    extract(moe, tmp_path / "many", scheme=scheme, workers=4)
    torch.set_num_threads(1)
    extract(moe, tmp_path / "one", scheme=scheme, workers=1)
    assert snapshot(tmp_path / "many") == snapshot(tmp_path / "one")


def test_codes_of_other_weights_are_found_by_comparison(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store", scheme="int4")
    other = copied(moe, tmp_path / "other", "experts.3.down_proj", lambda value: value.index_fill_(0, I5, 0.5))
    problems = verify(tmp_path / "store", against=other).problems
    (found,) = [problem for problem in problems if problem.place == "expert 00003"]
    assert found.kind == "corrupt"
    assert "down_proj_int4" in found.message


def test_growing_keeps_the_scheme_unless_another_is_asked_for(moe: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    extract(moe, store, experts="0-2", scheme="int4")
    extract(moe, store, experts="0-4")
    assert scheme_of_store(Store.open(store).manifest) == "int4"
    extract(moe, store, experts="5,6", scheme="int8")
    extract(moe, store, experts="7", scheme="native")
    opened = Store.open(store)
    assert [opened.scheme(key) for key in sorted(opened.keys())][:8] == ["int4"] * 5 + ["int8"] * 2 + ["native"]
    assert verify(store, against=moe).ok
    whole = tmp_path / "whole"
    extract(moe, whole, scheme="int4")
    for key in opened.keys():
        if opened.scheme(key) == "int4":
            assert stored(opened, key) == stored(Store.open(whole), key)
    bank = inspect(store).banks[0]
    assert bank.schemes == {"int4": 5, "int8": 2, "native": 1}


def test_an_expert_is_never_rewritten_in_another_scheme(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store", experts="0", scheme="int4")
    before = snapshot(tmp_path / "store")
    with pytest.raises(StoreError, match="is there as int4"):
        extract(moe, tmp_path / "store", experts="0,1", scheme="int8")
    assert snapshot(tmp_path / "store") == before


def test_an_interrupted_store_is_not_finished_in_another_scheme(moe: Path, tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(moe, tmp_path / "store", scheme="int4", progress=stop)
    with pytest.raises(StoreError, match="another plan"):
        extract(moe, tmp_path / "store", scheme="int8")
    assert extract(moe, tmp_path / "store", scheme="int4").complete


def test_a_fetched_expert_has_the_scheme_of_the_store(moe: Path, tmp_path: Path, open_model) -> None:
    store = tmp_path / "store"
    extract(moe, store, experts="0,1", scheme="int4")
    model = open_model(store, missing="fetch", source=moe)
    with torch.no_grad():
        fetched = model(input_ids=torch.arange(3, 35)[None]).logits
    model.coterie.close()
    assert scheme_of_store(Store.open(store).manifest) == "int4"
    assert len(Store.open(store).keys()) > 4
    extract(moe, tmp_path / "whole", scheme="int4")
    with torch.no_grad():
        whole = open_model(tmp_path / "whole")(input_ids=torch.arange(3, 35)[None]).logits
    assert torch.equal(fetched, whole)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_quantised_checkpoints_are_quantised_again(name: str, tmp_path: Path) -> None:
    directory = quantised(name, tmp_path / "checkpoint", torch.bfloat16)
    extract(directory, tmp_path / "store", scheme="int8")
    assert verify(tmp_path / "store", against=directory).ok
    ids = torch.arange(3, 15)[None]
    answers = []
    for path in (directory, tmp_path / "store"):
        model = load(path, expert_memory="100%")
        with torch.no_grad():
            answers.append(model(input_ids=ids).logits.float())
        model.coterie.close()
    # Wide: a token whose scores are close may be routed to another expert.
    assert (answers[0] - answers[1]).norm() < 0.2 * answers[0].norm()


def test_weights_that_are_not_finite_are_refused_by_name(moe: Path, tmp_path: Path) -> None:
    damaged = copied(
        moe, tmp_path / "damaged", "experts.3.down_proj", lambda value: value.index_fill_(0, I5, torch.nan)
    )
    with pytest.raises(QuantisationError, match=r"down_proj: Row 5 .*native") as caught:
        extract(damaged, tmp_path / "store", scheme="int4")
    assert caught.value.key.expert == 3
    assert extract(damaged, tmp_path / "native", scheme="native").complete


def test_unknown_schemes(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int4"):
        extract(moe, tmp_path / "store", scheme="int44")
    assert not (tmp_path / "store").exists()


def test_a_scheme_of_a_later_version_is_not_compared(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store", scheme="int4")
    schemes = dict(SCHEMES)
    try:
        del SCHEMES["int4"]
        with pytest.raises(UnsupportedError, match="'int4'"):
            verify(tmp_path / "store", against=moe)
    finally:
        # All of them: what is put back alone would be the last one, in every test after this.
        SCHEMES.clear()
        SCHEMES.update(schemes)
