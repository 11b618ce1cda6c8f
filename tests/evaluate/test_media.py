"""Sounds and pictures: the divergence of what the full model says about each."""

from pathlib import Path

import numpy as np
import pytest
import torch

from coterie.engine import open_source
from coterie.errors import InputError, UsageError
from coterie.evaluate import MediaFile, evaluate
from coterie.evaluate.media import MediumPiece, predict_answer, read_media
from coterie.evaluate.paired import PairedScores
from coterie.generation.processors import Processors

DATA = Path(__file__).parents[1] / "data"
SPEECH = [MediaFile(name="speech", kind="speech", path=DATA / name) for name in ("dog.wav", "words/bird.flac")]
PICTURES = [MediaFile(name="images of shoes", kind="images", path=DATA / "sandal.png")]


def test_the_logits_of_an_answer_are_those_of_generating_it(open_model) -> None:
    model = open_model("bundled", component="thinker")
    processors = Processors(open_source("bundled").directory)
    for domain in read_media([*SPEECH, *PICTURES], processors, new_tokens=6):
        inputs = domain[0].inputs(processors).to(model.dtype)
        made = model.generate(
            **inputs, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        ids = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        logits_TV = predict_answer(model, inputs, ids)
        assert logits_TV.argmax(-1).tolist() == ids
        torch.testing.assert_close(logits_TV.float(), torch.cat(made.logits).float(), rtol=0.05, atol=0.05)


def test_figures_of_each_domain_beside_texts_and_from_what_was_kept(tmp_path: Path, monkeypatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("And it came to pass in those days, that there went out a decree.")
    usual = {"against": "bundled", "media": [*SPEECH, *PICTURES], "limit": 8, "expert_memory": "100%"}
    same = evaluate("bundled", [text], answer_tokens=6, **usual)
    assert [one.name for one in same.media] == ["speech", "images of shoes"]
    assert [one.comparison.kld.value for one in same.media] == [0.0, 0.0]
    assert [one.comparison.identical for one in same.media] == [one.tokens for one in same.media]
    assert same.total.tokens == 8  # of texts only
    # The full model takes its most probable token each time.
    assert all(one.comparison.full_accuracy.value == 1.0 for one in same.media)
    kept = {"reference": tmp_path / "kept", "journal": tmp_path / "scores.jsonl", "experts_per_token": 1}
    worse = evaluate("bundled", [text], answer_tokens=6, **usual, **kept)
    assert all(one.comparison.kld.value > 0 for one in worse.media)
    assert [one.tokens for one in worse.media] == [one.tokens for one in same.media]
    monkeypatch.setattr(MediumPiece, "of_full", lambda *_: pytest.fail("it is there"))
    (tmp_path / "scores.jsonl").rename(tmp_path / "first.jsonl")
    again = evaluate("bundled", [text], answer_tokens=6, **usual, **kept)
    assert again.media == worse.media
    # What journals keep gives the same figures.
    paired = PairedScores(tmp_path / "first.jsonl", tmp_path / "scores.jsonl")
    beside = [paired.compare(one.name, [1 + number]) for number, one in enumerate(worse.media)]
    assert [one.kld for one in beside] == [one.comparison.kld for one in worse.media]
    assert np.allclose([one.difference.value for one in beside], 0.0)
    with pytest.raises(UsageError, match="media differ"):
        evaluate("bundled", [text], answer_tokens=5, **usual, **kept)


def test_what_cannot_be_answered(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="compared by what the full model says of them, and none is named"):
        evaluate("bundled", media=SPEECH)
    (tmp_path / "no.wav").write_bytes(b"no sound")
    wrong = MediaFile(name="speech", kind="speech", path=tmp_path / "no.wav")
    with pytest.raises(InputError, match=r"no\.wav"):
        evaluate("bundled", media=[wrong], against="bundled")
