"""What is told of several requests before a model is opened is what is found once it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.extraction import extract
from coterie.inspection import inspect
from coterie.integration import rows_together
from coterie.native import MOST_ROWS, library
from integration.conftest import store  # noqa: F401 - a fixture
from zoo import MATRIX, ZOO

pytestmark = pytest.mark.skipif(library() is None, reason="the native library was not built")


def check(model: Any, told: Any) -> None:
    for batching in ("exact", "fast"):
        assert told[batching].rows == rows_together(model, batching)
        assert (told[batching].why is None) == (told[batching].rows > 1)


@pytest.mark.parametrize(
    ("name", "scheme", "dense", "exact", "fast"),
    [
        ("qwen3_moe", "int4", "int4", None, None),
        ("qwen3_moe", "int4", "native", "not all of its linear layers", None),
        ("qwen3_omni_thinker", "int8", "int8", None, None),
        ("deepseek_v3", "int4", "int4", "not those of Qwen3-MoE", None),
        ("qwen3_next", "int4", "int4", "not those of Qwen3-MoE", "keep other things"),
    ],
)
def test_a_store_says_what_opening_it_finds(name, scheme, dense, exact, fast, store, open_model) -> None:  # noqa: F811
    path = store(name, dense, scheme=scheme)
    told = inspect(path).batching
    check(open_model(path), told)
    for batching, why in (("exact", exact), ("fast", fast)):
        assert (why or "") in (told[batching].why or "")
    assert max(facts.rows for facts in told.values()) == (1 if fast else MOST_ROWS)


def test_experts_that_are_absent_and_weights_that_are_not_in_a_scheme(zoo_checkpoint, open_model, tmp_path) -> None:
    checkpoint = zoo_checkpoint("qwen3_moe", torch.bfloat16)
    check(open_model(checkpoint), inspect(checkpoint).batching)
    extract(checkpoint, tmp_path / "some", scheme="int4", dense_scheme="int4", experts="0-5")
    told = inspect(tmp_path / "some").batching
    check(open_model(tmp_path / "some", missing="mask"), told)
    assert told["exact"].why == "some of its experts are absent"


def test_a_store_whose_model_is_not_known_is_told_of_all_the_same(store, monkeypatch) -> None:  # noqa: F811
    from coterie.errors import LoadError
    from coterie.origins import StoreOrigin

    def unknown(*_: object) -> None:
        raise LoadError("no such class")

    monkeypatch.setattr(StoreOrigin, "of", unknown)
    told = inspect(store()).to_json()["batching"]
    assert told == {batching: {"rows": None, "why": "no such class"} for batching in ("exact", "fast")}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in {**MATRIX, **ZOO}.items() if case.generates])
def test_every_family_says_what_opening_it_finds(name, zoo_checkpoint, open_model, tmp_path) -> None:
    case = ZOO.get(name) or MATRIX[name]
    if case.why_not:
        pytest.skip(case.why_not)
    checkpoint = zoo_checkpoint(name, torch.bfloat16)
    check(open_model(checkpoint), inspect(checkpoint).batching)
    extract(checkpoint, tmp_path / "store", scheme="int4", dense_scheme="int4")
    check(open_model(tmp_path / "store"), inspect(tmp_path / "store").batching)
