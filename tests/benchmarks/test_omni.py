"""A whole omni model with drawn weights: a store that verifies, says what was designed, and is watched speaking."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bench_speech
import coterie
import omni_memory
from coterie.generation.chat import chat_inputs, user_message
from coterie.quant import SCHEMES
from fullsize.omni.configuration import SMALL, named_tokens, small_config, thinker
from fullsize.omni.hollow import write_hollow_checkpoint
from fullsize.omni.store import write_omni_store
from fullsize.omni.weights import OmniWeights
from fullsize.walk import Walk, text_of
from harness import speaking
from harness.report import Report
from harness.stopwatch import Stopwatch
from zoo import ZOO

CONFIG = small_config()
VOCABULARY = CONFIG["thinker_config"]["text_config"]["vocab_size"]
pytestmark = pytest.mark.skipif(ZOO["qwen3_omni"].why_not is not None, reason=str(ZOO["qwen3_omni"].why_not))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("omni") / "store"
    write_omni_store(path, SMALL)
    return path


@pytest.fixture(scope="module")
def weights() -> OmniWeights:
    return OmniWeights(CONFIG)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> bench_speech.Prompt:
    return bench_speech.make_prompt(tmp_path_factory.mktemp("prompt"), width=64, height=64, seconds=0.5)


class TestWalk:
    def test_ids_that_are_left_out_are_in_no_walk_and_nothing_else_changes(self) -> None:
        def rng() -> np.random.Generator:
            return np.random.Generator(np.random.SFC64(1))

        whole, some = Walk(100, rng()), Walk(100, rng(), [3, 50])
        assert [token for token in whole.order if token not in (3, 50)] == some.order.tolist()
        assert some.topics[3] == some.topics[50] == some.topics[some.order[-1]]
        assert some.following(int(some.order[-1]), 1) == [some.order[0]]
        assert [int(some.predecessors[one]) for one in some.order[1:]] == some.order[:-1].tolist()


class TestWeights:
    @pytest.mark.parametrize(
        "name",
        [
            "thinker.model.layers.0.self_attn.q_proj.weight",
            "thinker.lm_head.weight",
            "talker.codec_head.weight",
            "talker.code_predictor.model.layers.1.mlp.down_proj.weight",
            "thinker.visual.blocks.0.mlp.linear_fc2.weight",  # its inputs are no multiple of 64
        ],
    )
    def test_every_scheme_holds_the_same_values(self, name: str, weights: OmniWeights, tmp_path: Path) -> None:
        index = json.loads((write_hollow_checkpoint(tmp_path, CONFIG) / "model.safetensors.index.json").read_text())
        header = tmp_path / index["weight_map"][name]
        with header.open("rb") as file:
            rows, columns = json.loads(file.read(int.from_bytes(file.read(8), "little")))[name]["shape"]
        bits = np.concatenate(list(weights.plain(name, (rows, columns))))
        plain = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).view(rows, columns)
        assert plain.std() > 0
        for scheme in (SCHEMES["int4"], SCHEMES["int8"]):
            codes, scales = weights.stored(name, rows, columns, scheme.name)
            parts = (
                torch.from_numpy(np.ascontiguousarray(codes)),
                torch.from_numpy(np.ascontiguousarray(scales).view(np.int16)).view(torch.bfloat16),
            )
            assert tuple((part.shape) for part in parts) == tuple(
                shape for _, shape in scheme.form.parts(rows, columns)
            )
            assert torch.equal(scheme.dequantise(parts, columns, torch.bfloat16), plain)


class TestStore:
    def test_it_verifies_and_has_every_part(self, store: Path) -> None:
        assert not coterie.verify(store).problems
        report = coterie.inspect(store)
        assert report.complete
        assert [one.component for one in report.components] == ["talker", "thinker"]

    def test_a_written_store_is_left_as_it_is(self, store: Path) -> None:
        before = {file: file.stat().st_mtime_ns for file in store.rglob("*") if file.is_file()}
        write_omni_store(store, SMALL)
        assert {file: file.stat().st_mtime_ns for file in before} == before

    def test_its_thinker_opens_although_its_tables_are_larger_than_its_experts(
        self, store: Path, open_model: Any
    ) -> None:
        model = open_model(store, component="thinker", memory="3GiB")
        tables = sum(one.nbytes for one in model.buffers())
        assert tables > model.coterie.cache.total_bytes

    def test_thinker_and_talker_say_what_was_designed(
        self, store: Path, prompt: bench_speech.Prompt, weights: OmniWeights, open_model: Any
    ) -> None:
        model = open_model(store)
        processors = coterie.processors(model)
        message = user_message("abc", images=[prompt.picture], audios=[prompt.sound])
        inputs = chat_inputs(processors, [message])
        named = named_tokens(CONFIG)
        ids = inputs["input_ids"][0].tolist()
        assert ids[:3] == [named["<|im_start|>"], named["<|user|>"], named["\n"]]
        assert ids[-3:] == [named["<|im_start|>"], named["<|assistant|>"], named["\n"]]
        assert ids.count(named["<|image_pad|>"]) == 4
        assert ids.count(named["<|audio_pad|>"]) == 7
        with torch.no_grad():
            text = model.thinker.generate(**inputs.to(model.dtype), max_new_tokens=6, do_sample=False)
            assert text[0, -6:].tolist() == weights.thinker.walk.tokens(0, 6)
            codes = weights.talker.walk.tokens(10, 4)
            hidden = model.talker.model(
                inputs_embeds=model.talker.get_input_embeddings()(torch.tensor([codes[:3]])), use_cache=False
            ).last_hidden_state
            assert model.talker.codec_head(hidden)[0].argmax(-1).tolist() == codes[1:]


class TestStopwatch:
    def test_a_part_is_not_charged_with_what_is_inside_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = iter([0.0, 1.0, 3.0, 7.0])
        monkeypatch.setattr(time, "perf_counter", lambda: next(now))
        watch = Stopwatch()
        watch.enter("outer")
        watch.enter("inner")
        watch.leave()
        watch.leave()
        assert dict(watch.seconds) == {"outer": 1.0 + 4.0, "inner": 2.0}
        assert dict(watch.calls) == {"outer": 1, "inner": 1}


@pytest.fixture(scope="module")
def run(store: Path, prompt: bench_speech.Prompt) -> dict[str, Any]:
    words = "".join(map(text_of, thinker(CONFIG).walk.tokens(40, 5)))
    given = argparse.Namespace(
        model=str(store), words=[words], memory="3GiB", max_context=256, threads=1, image=[str(prompt.picture)],
        audio=[str(prompt.sound)], new_tokens=4, seconds=0.8, voice_greedy=True, profile=None, warm=None, pin=None,
        record_profile=None,
    )  # fmt: skip
    return speaking.run(given)


class TestSpeaking:
    def test_an_answer_is_watched(self, run: dict[str, Any]) -> None:
        (answer,) = run["answers"]
        assert answer["tokens"] == 4
        assert 0.7 < answer["sound_s"] < 0.9
        assert answer["calls"][speaking.TALKER] >= 10
        assert answer["calls"][speaking.VOCODER] == len(answer["chunks"]) == 4
        assert answer["reads"]["talker"][0] > 0
        assert sum(answer["parts_s"].values()) < answer["all_s"]
        assert 0 < answer["speech_s"] < answer["all_s"]
        assert set(run["peaks"][0]) >= {speaking.PROMPT, speaking.SPEECH}
        assert min(run["peaks"][0].values()) > 50 << 20
        json.dumps(run)

    def test_what_it_found_is_told(self, run: dict[str, Any], tmp_path: Path) -> None:
        report = Report("x", "X", work=tmp_path, quick=False)
        plan = run["plan"] | {"lent": {"speaking": 5 << 20}}
        run = run | {"killed": False, "held": 1 << 30, "reclaims": 0, "plan": plan}
        bench_speech.add_speed(report, {(2, 1.0): run}, quick=False)
        bench_speech.add_memory(report, run, 1 << 30, quick=False)
        bench_speech.add_reads(report, {"one": run})
        bench_speech.require_once(report, "one", run)
        assert "they lend 5 while speaking" in report.tables[2].caption
        assert [len(table.rows) for table in report.tables][:2] == [1, 1]
        assert all(len(row) == len(table.columns) for table in report.tables for row in table.rows)
        assert report.summary is not None
        assert [len(row) for row in report.summary.rows] == [len(report.summary.columns)]
        met = {verdict.requirement: verdict.met for verdict in report.verdicts}
        assert met["one: no expert of the talker read twice for an answer"]
        assert met["a prompt that fills the context, 1 GiB: within the budget"]
        assert not met["a prompt that fills the context, 1 GiB: at least 4.5 GiB for experts"]

    def test_one_that_was_killed_is_not_within_its_budget(self, tmp_path: Path) -> None:
        report = Report("x", "X", work=tmp_path, quick=False)
        bench_speech.add_memory(report, {"killed": True, "held": 5 << 30, "reclaims": 9}, 1 << 30, quick=False)
        assert [verdict.met for verdict in report.verdicts] == [False, False]


def test_what_budgets_hold_of_the_small_model_is_told(tmp_path: Path) -> None:
    checkpoint = write_hollow_checkpoint(tmp_path / "hollow", CONFIG)
    table = omni_memory.budgets_table(checkpoint, ["350MiB", "8GiB"])
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.rows[0][1] == "–"
    assert "too little" in table.rows[0][-1]
    assert table.rows[1][2] == "100%"
