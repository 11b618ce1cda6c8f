"""Speech of a store whose code predictor is in a scheme: every frame's codes are computed natively."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from coterie.cli import main
from coterie.extraction import extract
from coterie.generation.chat import chat_inputs
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling
from coterie.generation.speaking import speak
from coterie.generation.speech import Voice
from coterie.integration.code_predictor import NativeCodePredictor
from coterie.native import DenseDecoder, library
from coterie.passes.forwards import at, own
from zoo import ZOO, save
from zoo.omni import omni_config
from zoo.tokenizer import add_tokenizer

WISHES = Sampling(max_new_tokens=4, greedy=True, seed=3)
FRAMES, CODES = 6, 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    if library() is None:
        pytest.skip("the native library was not built")
    directory = tmp_path_factory.mktemp("speaking") / "checkpoint"
    model = replace(ZOO["qwen3_omni"], config=partial(omni_config, whole_groups=True))
    save(model, torch.bfloat16, directory)
    add_tokenizer(directory, chat=True)
    return directory


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Tokens of every pass through a predictor that was computed natively."""
    seen: list[int] = []
    original = DenseDecoder.__call__

    def call(self, sequence, embeddings, head):
        seen.append(len(embeddings))
        return original(self, sequence, embeddings, head)

    monkeypatch.setattr(DenseDecoder, "__call__", call)
    return seen


@pytest.mark.parametrize("scheme", ["int8", "native"])
def test_the_command_line_from_checkpoint_to_sound(scheme: str, checkpoint, tmp_path, passes) -> None:
    store = tmp_path / "store"
    assert main(["extract", str(checkpoint), str(store), "--dense-scheme", f"predictor={scheme}"]) == 0
    said = ["generate", str(store), "w5 w6 w7", "-n", "4", "--greedy", "--seed", "1", "--max-speech", "0.006"]
    assert main([*said, "--speak", str(tmp_path / "a.wav")]) == 0
    assert (tmp_path / "a.wav").stat().st_size > 44
    # Each frame begins with two tokens. 6 ms are 6 frames of this model.
    assert passes == ([2, *[1] * (CODES - 1)] * (len(passes) // CODES) if scheme == "int8" else [])
    assert len(passes) // CODES in ((FRAMES, FRAMES + 1) if scheme == "int8" else (0,))


def test_a_predictor_that_comes_and_goes_is_computed_natively(
    checkpoint, tmp_path, open_model, open_by_phase, passes
) -> None:
    extract(checkpoint, tmp_path / "store", scheme="int4", dense_scheme="rest=int8,predictor=int8")
    processors = Processors(tmp_path / "store")
    inputs = chat_inputs(processors, [{"role": "user", "content": "w5 w6 w7"}])
    voice = Voice(max_seconds=0.006)

    def said(model) -> np.ndarray:
        return speak(model, inputs, WISHES, voice=voice).result().samples

    expected = said(open_model(tmp_path / "store", expert_memory="100%"))
    passes.clear()
    model = open_by_phase(tmp_path / "store")
    assert isinstance(at(model.talker.code_predictor, "native"), NativeCodePredictor)
    for _ in range(2):  # it has left in between
        assert np.array_equal(said(model), expected)
        assert passes
        passes.clear()


@pytest.mark.parametrize("dense", ["encoders=native,rest=int8,predictor=int8", "talker=int4,predictor=int8"])
def test_sound_does_not_depend_on_threads(dense: str, checkpoint, tmp_path, open_model, passes) -> None:
    extract(checkpoint, tmp_path / "store", scheme="int4", dense_scheme=dense)
    model = open_model(tmp_path / "store", expert_memory="100%")
    assert isinstance(own(model.talker.code_predictor), NativeCodePredictor)
    processors, before, found = Processors(tmp_path / "store"), torch.get_num_threads(), []
    inputs = chat_inputs(processors, [{"role": "user", "content": "w5 w6 w7"}])
    voice = Voice(max_seconds=0.006)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(speak(model, inputs, WISHES, voice=voice).result().samples)
    finally:
        torch.set_num_threads(before)
    assert passes
    assert len(found[0])
    assert np.array_equal(found[0], found[1])
