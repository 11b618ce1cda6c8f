"""EleutherAI's evaluation harness: what it finds by asking a server is what `coterie evaluate` finds by itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from clients.conftest import BUNDLED, PYTHON, Server

TEXTS = [
    "And it came to pass in those days, that there went out a decree from Caesar Augustus, that all the world should "
    "be taxed.",
    "And God said, Let there be light: and there was light.",
]
FIRST = "And"
"""Both begin with it: nothing predicts the first token."""
LIKELIHOOD = """
task: likelihood
dataset_path: json
dataset_kwargs: {data_files: {test: TEXTS}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{first}}"
doc_to_target: "{{rest}}"
target_delimiter: ""
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
"""
GENERATION = """
task: generation
dataset_path: json
dataset_kwargs: {data_files: {test: TEXTS}}
test_split: test
output_type: generate_until
doc_to_text: "{{first}}{{rest}}"
doc_to_target: ""
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def results(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tasks")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"first": FIRST, "rest": text.removeprefix(FIRST)}) + "\n" for text in TEXTS))
    for name, task in (("likelihood", LIKELIHOOD), ("generation", GENERATION)):
        (folder / f"{name}.yaml").write_text(task.replace("TEXTS", str(texts)))
    found = simple_evaluate(
        model="local-completions",
        model_args={
            "model": "bundled", "base_url": f"{server.v1}/completions", "tokenizer": str(BUNDLED),
            "tokenizer_backend": "huggingface", "tokenized_requests": True, "max_length": 512, "num_concurrent": 2,
            "max_retries": 1,
        },
        tasks=["likelihood", "generation"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )  # fmt: skip
    assert found is not None
    return found


def test_likelihoods_are_those_of_coterie_evaluate(results: dict[str, Any], tmp_path: Path) -> None:
    samples = sorted(results["samples"]["likelihood"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(TEXTS)
    for text, sample in zip(TEXTS, samples, strict=True):
        (tmp_path / "text").write_text(text)
        command = [os.environ.get(PYTHON, sys.executable), "-m", "coterie", "evaluate", "bundled", "--json", "-q"]
        done = subprocess.run([*command, "--text", str(tmp_path / "text")], capture_output=True, text=True, check=True)
        own = json.loads(done.stdout)["total"]
        ((likelihood, _),) = sample["resps"][0]
        assert float(likelihood) == pytest.approx(-own["loss"]["value"] * own["tokens"], rel=1e-6)


def test_texts_are_generated_for_it(results: dict[str, Any]) -> None:
    for sample in results["samples"]["generation"]:
        (text,) = sample["resps"][0]
        assert text
        assert "." not in text
