"""Greedy continuations of two models: those of stock transformers, compared as sacrebleu compares them."""

import sys
from pathlib import Path

import pytest
import torch
from sacrebleu import corpus_bleu, corpus_chrf

from coterie.errors import InputError, MissingPackageError, UsageError
from coterie.evaluate import EvaluationProgress, Text, evaluate, tasks
from coterie.evaluate.greedy import cut_prompts, equal_tokens
from coterie.hf.tokenizer import load_tokenizer
from zoo import stock

ASKED = {"continuations": 3, "prompt_tokens": 9, "continuation_tokens": 7, "context": 32, "expert_memory": "100%"}


def stock_continuations(model_path: Path, ids: list[int], count: int, *, tokens: int, new: int) -> list[list[int]]:
    """By transformers' own loop, from prompts at equal distances."""
    model, found = stock(model_path, torch.bfloat16), []
    end = load_tokenizer(model_path).eos_token_id
    for number in range(count):
        start = number * (len(ids) // count)
        prompt = torch.tensor([ids[start : start + tokens]])
        found.append(model.generate(prompt, max_new_tokens=new, do_sample=False, eos_token_id=end)[0, tokens:].tolist())
    return found


def test_they_are_those_of_stock_transformers_and_equal_for_the_same_model(readable: Path, words) -> None:
    paths = [words(60), words(50, seed=1)]
    found = evaluate(readable, paths, against=readable, **ASKED).continuations
    tokenizer = load_tokenizer(readable)
    expected, following = [], []
    for path in paths:
        ids = tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
        for new in stock_continuations(readable, ids, 3, tokens=9, new=7):
            expected.append(tokenizer.decode(new, skip_special_tokens=True))
        following += [tokenizer.decode(ids[start + 9 : start + 16]) for start in range(0, len(ids) - 16, len(ids) // 3)]
    assert [sample.model for sample in found.samples] == expected
    assert [sample.full for sample in found.samples] == expected
    assert [sample.following for sample in found.samples] == following
    assert all(sample.identical and sample.equal_tokens == sample.tokens for sample in found.samples)
    assert (found.prompt_tokens, found.new_tokens, found.total.prompts) == (9, 7, 6)
    assert found.total.bleu == pytest.approx(100.0)
    assert found.total.chrf == pytest.approx(100.0)
    assert found.total.identical.value == 1.0


def test_figures_are_those_of_sacrebleu(readable: Path, partial: Path, words) -> None:
    paths = [words(60), words(50, seed=1)]
    found = evaluate(partial, paths, against=readable, missing="mask", **ASKED).continuations
    samples = found.samples
    ours, full = [sample.model for sample in samples], [sample.full for sample in samples]
    assert ours != full
    assert found.total.bleu == corpus_bleu(ours, [full]).score
    assert found.total.chrf == corpus_chrf(ours, [full]).score
    assert found.texts[1].chrf == corpus_chrf(ours[3:], [full[3:]]).score
    assert found.total.equal_tokens.value == pytest.approx(sum(one.equal_tokens for one in samples) / 6)
    assert found.total.identical.value == pytest.approx(sum(one.identical for one in samples) / 6)
    assert "tok:13a" in found.bleu_signature
    assert "nc:6" in found.chrf_signature


def test_those_of_the_full_model_are_kept_beside_logits(readable: Path, partial: Path, words, tmp_path: Path) -> None:
    paths, where = [words(60)], tmp_path / "kept"
    plain = {"context": 32, "expert_memory": "100%", "reference": where}
    evaluate(readable, paths, against=readable, **plain)
    asked = {"missing": "mask", **ASKED}
    beside = evaluate(partial, paths, against=readable, **asked)
    # Logits are there already; continuations join them.
    assert evaluate(partial, paths, against=readable, reference=where, **asked) == beside
    assert len(list(where.glob("*.continuation"))) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.PromptPiece, "of_full", lambda *_: pytest.fail("it is there"))
        assert evaluate(partial, paths, against=readable, reference=where, **asked) == beside
    damaged = sorted(where.glob("*.continuation"))[0]
    damaged.write_text(damaged.read_text().replace('"ids": [', '"ids": [1, '))
    with pytest.raises(InputError, match=rf"{damaged.name} is damaged") as caught:
        evaluate(partial, paths, against=readable, reference=where, **asked)
    assert "Remove it" in str(caught.value)
    damaged.unlink()
    assert evaluate(partial, paths, against=readable, reference=where, **asked) == beside


def test_an_interrupted_evaluation_keeps_them(readable: Path, partial: Path, words, tmp_path: Path) -> None:
    journal, told = tmp_path / "scores.jsonl", []

    def run(progress=None, **options):
        return evaluate(partial, [words(60)], against=readable, missing="mask", progress=progress, **ASKED, **options)

    def stop_at_70(progress: EvaluationProgress) -> None:
        if progress.done >= 70:  # 59 tokens of windows, two prompts of three
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stop_at_70, journal=journal)
    found = run(told.append, journal=journal)
    assert (told[0].done, told[0].total, told[-1].done) == (73, 80, 80)
    assert found == run()
    # All is there: no model is opened any more.
    assert run(lambda _: pytest.fail("nothing is left"), journal=journal) == found


def test_fewer_experts_continue_differently(readable: Path, words) -> None:
    found = {
        how: evaluate(readable, [words(60)], against=readable, adapt_experts=how, **ASKED).continuations.total
        for how in ("gate:0", "gate:0.9")
    }
    assert found["gate:0"].identical.value == 1.0
    assert found["gate:0.9"].identical.value < 1.0


def test_prompts_have_no_token_of_each_other() -> None:
    text = Text(name="text", ids=tuple(range(100)), prefix=(7,))
    prompts = cut_prompts(text, 4, tokens=15, new_tokens=10)
    assert [prompt.ids for prompt in prompts] == [(7, *range(start, start + 15)) for start in (0, 25, 50, 75)]
    assert prompts[3].following_ids == tuple(range(90, 100))
    assert prompts[0].length == 26
    with pytest.raises(InputError, match="room for 3 prompts of 16 tokens that are continued with 10, not for 4"):
        cut_prompts(text, 4, tokens=16, new_tokens=10)


def test_equal_tokens_end_where_one_ends() -> None:
    assert equal_tokens((1, 2, 3), (1, 2, 4)) == 2
    assert equal_tokens((1, 2), (1, 2, 4)) == 2
    assert equal_tokens((5,), (1, 2, 4)) == 0


def test_what_is_asked_wrongly_is_told_before_a_model_is_opened(readable: Path, words, monkeypatch) -> None:
    monkeypatch.setattr(tasks.Subject, "open", None)
    text = words(60)
    for options, message in (
        ({"continuations": 2}, "none is named"),
        ({"continuation_tokens": 9, "against": readable}, "continuation_tokens says how prompts are continued"),
        ({"continuations": 0, "against": readable}, "continuations must be at least 1"),
        ({"continuations": 1, "against": readable, "prompt_tokens": 0}, "prompt_tokens must be at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate(readable, [text], **options)
    with pytest.raises(InputError, match="room for 0 prompts"):
        evaluate(readable, [text], against=readable, continuations=1)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(MissingPackageError, match="need sacrebleu") as caught:
        evaluate(readable, [text], against=readable, **ASKED)
    assert "pip install" in str(caught.value)
