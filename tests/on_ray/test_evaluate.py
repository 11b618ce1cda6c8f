"""An evaluation by workers of a Ray finds what a single process finds: `make test-ray`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from coterie.engine.alteration import Alteration
from coterie.errors import UsageError
from coterie.evaluate import Evaluation, EvaluationProgress, evaluate
from coterie.evaluate.running import evaluate_opening
from coterie.extraction import extract
from coterie.spec import BankKey
from coterie.spec.opening import Opening

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

OPTIONS: dict[str, Any] = {"context": 24, "stride": 16, "memory": "2GiB", "threads": 1}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("texts")
    for name, count in (("a.txt", 150), ("b.txt", 70)):
        drawn = random.Random(count)
        (folder / name).write_text(" ".join(f"w{drawn.randint(3, 80)}" for _ in range(count)))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def lossy(readable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store") / "int4"
    extract(readable, store, scheme="int4")
    return store


def test_figures_and_journal_are_the_same(
    cluster: str, readable: Path, lossy: Path, texts: list[Path], tmp_path: Path
) -> None:
    asked = OPTIONS | {"against": readable, "continuations": 2, "continuation_tokens": 6, "prompt_tokens": 12}
    told: list[EvaluationProgress] = []
    here = evaluate(lossy, texts, journal=tmp_path / "here", **asked)
    found = evaluate(lossy, texts, journal=tmp_path / "there", ray=cluster, progress=told.append, **asked)
    assert found == here
    assert found.total is not None
    assert found.total.comparison is not None
    assert found.total.comparison.kld.value > 0
    assert (told[0].done, told[-1].done) == (0, told[-1].total)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    # What one process left, workers finish.
    lines = (tmp_path / "here").read_bytes().splitlines(keepends=True)
    (tmp_path / "some").write_bytes(b"".join(lines[:4]))
    assert finished(tmp_path / "some") == 3
    assert evaluate(lossy, texts, journal=tmp_path / "some", ray=cluster, **asked) == here


def finished(journal: Path) -> int:
    return len(journal.read_bytes().splitlines()) - 1


def test_logits_that_workers_compute_are_kept(
    cluster: str, readable: Path, lossy: Path, texts: list[Path], tmp_path: Path
) -> None:
    asked = OPTIONS | {"against": readable}
    found: Evaluation = evaluate(lossy, texts, reference=tmp_path / "there", ray=cluster, **asked)
    assert found == evaluate(lossy, texts, reference=tmp_path / "here", **asked)
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there")
    )
    assert ours == theirs


def test_workers_alter_a_model_as_this_process_does(cluster: str, readable: Path, texts: list[Path]) -> None:
    bank = BankKey("text", 0, "mlp")
    altered = Alteration(experts={bank: (0, 1, 3)}, schemes="int4")
    asked: dict[str, Any] = {"against": readable, "context": 24, "alteration": altered}
    opening = Opening(memory="2GiB", threads=1, missing="mask")
    here = evaluate_opening(readable, texts, opening, **asked)
    assert evaluate_opening(readable, texts, opening, ray=cluster, **asked) == here
    assert here != evaluate_opening(readable, texts, opening, **asked | {"alteration": None})


def test_what_depends_on_the_order_is_refused(cluster: str, readable: Path, texts: list[Path]) -> None:
    with pytest.raises(UsageError, match="one process computes all, in order"):
        evaluate(readable, texts, drop_cold=0.1, ray=cluster, **OPTIONS)
    with pytest.raises(UsageError, match="one process computes all, in order"):
        evaluate_opening(readable, texts, Opening(memory="1GiB"), in_steps=True, ray=cluster)
    with pytest.raises(UsageError, match="Add --memory"):
        evaluate(readable, texts, ray=cluster)
