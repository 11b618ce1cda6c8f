"""EleutherAI's evaluation harness: what it finds through a server, or of a loaded model, is what others find."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

import coterie
from clients.conftest import BUNDLED, PYTHON, Server

TASKS = Path(__file__).parent / "tasks"
TEXTS = [line["first"] + line["rest"] for line in map(json.loads, (TASKS / "texts.jsonl").read_text().splitlines())]
"""Both begin with the same token, which nothing predicts."""

Results = dict[str, Any]


def evaluate(**model: Any) -> Results:
    """Runs all tasks of the folder: likelihoods, choices and generation. The files that they name lie beside them."""
    with chdir(TASKS):
        found = simple_evaluate(
            tasks=["likelihood", "choice", "generation"],
            task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
            **model,
        )
    assert found is not None
    return found


def answers(results: Results, task: str) -> list[Any]:
    """What the model answered to each request of a task, document by document."""
    return [sample["resps"] for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"])]


@pytest.fixture(scope="module")
def served(server: Server) -> Results:
    """Through the server."""
    return evaluate(
        model="local-completions",
        model_args={
            "model": "bundled", "base_url": f"{server.v1}/completions", "tokenizer": str(BUNDLED),
            "tokenizer_backend": "huggingface", "tokenized_requests": True, "max_length": 512, "num_concurrent": 2,
            "max_retries": 1,
        },
    )  # fmt: skip


def of_model(model: Any) -> Results:
    from lm_eval.models.huggingface import HFLM

    return evaluate(model=HFLM(pretrained=model, softmax_dtype="float32"))


@pytest.fixture(scope="module")
def loaded() -> Iterator[Results]:
    """Of a model that Coterie has loaded, with memory for a quarter of its experts."""
    model = coterie.load("bundled", expert_memory="25%")
    yield of_model(model)
    model.coterie.close()


def test_likelihoods_are_those_of_coterie_evaluate(served: Results, loaded: Results, tmp_path: Path) -> None:
    through_server, of_loaded = answers(served, "likelihood"), answers(loaded, "likelihood")
    assert len(through_server) == len(of_loaded) == len(TEXTS) == 2
    for text, (((likelihood, _),),), (((own, _),),) in zip(TEXTS, through_server, of_loaded, strict=True):
        (tmp_path / "text").write_text(text)
        command = [os.environ.get(PYTHON, sys.executable), "-m", "coterie", "evaluate", "bundled", "--json", "-q"]
        done = subprocess.run([*command, "--text", str(tmp_path / "text")], capture_output=True, text=True, check=True)
        expected = json.loads(done.stdout)["total"]
        loss = expected["loss"]["value"] * expected["tokens"]
        assert float(likelihood) == pytest.approx(-loss, rel=1e-6)
        assert float(own) == pytest.approx(-loss, rel=1e-5)  # it adds up float32


def test_of_a_loaded_model_all_is_the_same_as_of_stock(loaded: Results) -> None:
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

    model = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
        BUNDLED, dtype="auto", experts_implementation="eager"
    )
    stock = of_model(model.eval())
    for task in ("likelihood", "choice", "generation"):
        assert answers(loaded, task) == answers(stock, task)
        assert answers(loaded, task)
    assert loaded["results"]["choice"] == stock["results"]["choice"]


def test_choices_and_texts_are_the_same_through_the_server(served: Results, loaded: Results) -> None:
    assert served["results"]["choice"]["acc,none"] == loaded["results"]["choice"]["acc,none"] == 1.0
    texts = [text for ((text,),) in answers(served, "generation")]
    assert all(texts)
    assert not any("." in text for text in texts)
    # The model's own generation config asks for 64 new tokens, which counts more than what lm-eval asks for.
    longer = [text for ((text,),) in answers(loaded, "generation")]
    assert all(long.startswith(text) for long, text in zip(longer, texts, strict=True))
