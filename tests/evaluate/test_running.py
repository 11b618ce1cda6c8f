import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from coterie.errors import (
    CoverageError,
    InputError,
    LoadError,
    MemoryBudgetError,
    UnsupportedError,
    UsageError,
)
from coterie.evaluate import EvaluationProgress, evaluate, measuring, tasks
from coterie.hf.tokenizer import load_tokenizer
from coterie.spec import AdaptiveExperts
from zoo import stock
from zoo.tokenizer import add_tokenizer


@pytest.fixture(autouse=True)
def _no_advice() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The experts have")
        yield


def ids_of(model: Path, text: Path) -> torch.Tensor:
    return torch.tensor(load_tokenizer(model)(text.read_text(), add_special_tokens=False)["input_ids"])


@torch.inference_mode()
def rows_by_hand(model: object, ids: torch.Tensor, context: int) -> torch.Tensor:
    """Float64 logits that predict every token but the first, by windows that do not overlap."""
    pieces = ids[:-1].split(context)
    return torch.cat([model(input_ids=piece[None]).logits[0].double() for piece in pieces])


def test_perplexity_is_that_of_stock_transformers(readable: Path, words) -> None:
    paths = [words(150), words(77, seed=1)]
    found = evaluate(readable, paths, context=32, expert_memory="100%")
    model = stock(readable, torch.bfloat16)
    losses = []
    for path, quality in zip(paths, found.texts, strict=True):
        ids = ids_of(readable, path)
        losses.append(cross_entropy(rows_by_hand(model, ids, 32), ids[1:], reduction="none"))
        assert quality.tokens == len(ids) - 1
        assert quality.loss.value == pytest.approx(losses[-1].mean().item(), rel=1e-12)
        assert quality.comparison is None
    assert found.total.perplexity.value == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-12)
    assert found.against is None


def test_a_stride_gives_tokens_more_context(readable: Path, words) -> None:
    path = words(60)
    found = evaluate(readable, [path], context=24, stride=5, expert_memory="100%")
    model, ids = stock(readable, torch.bfloat16), ids_of(readable, path)
    losses = []
    with torch.inference_mode():
        # Token by token from the rule: the window that predicts it begins 24 - 5 tokens before its first prediction.
        for position in range(1, len(ids)):
            block = max(0, (position - 25 + 5) // 5)
            start = block * 5
            stop = min(len(ids), start + 25)
            logits = model(input_ids=ids[None, start : stop - 1]).logits[0, position - start - 1].double()
            losses.append(cross_entropy(logits, ids[position]).item())
    assert found.texts[0].loss.value == pytest.approx(np.mean(losses), rel=1e-9)


def test_lossless_against_itself_is_exactly_nothing(readable: Path, words, tmp_path: Path) -> None:
    from coterie.extraction import extract

    extract(readable, tmp_path / "store")
    found = evaluate(tmp_path / "store", [words(200)], against=readable, context=48, memory="8GiB")
    compared = found.total.comparison
    assert (compared.kld.value, compared.kld.high, compared.kld_max) == (0.0, 0.0, 0.0)
    assert (compared.ratio.value, compared.ratio.low, compared.ratio.high) == (1.0, 1.0, 1.0)
    assert compared.same_top.value == 1.0
    assert (compared.mean_delta_p.value, compared.rms_delta_p.value) == (0.0, 0.0)
    assert compared.identical == found.total.tokens == 199
    assert found.model.identity == found.against.identity
    assert (found.model.kind, found.against.kind) == ("store", "checkpoint")


def test_a_masked_store_differs_as_brute_force_says(readable: Path, partial: Path, words, open_model) -> None:
    path = words(130)
    found = evaluate(partial, [path], against=readable, missing="mask", context=40, expert_memory="100%")
    ids = ids_of(readable, path)
    log_p = rows_by_hand(stock(readable, torch.bfloat16), ids, 40).log_softmax(-1)
    log_q = rows_by_hand(open_model(partial, missing="mask"), ids, 40).log_softmax(-1)
    divergence = kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    compared = found.total.comparison
    assert compared.kld.value == pytest.approx(divergence.mean().item(), rel=1e-9)
    assert compared.kld.low > 0.0
    assert compared.kld_max == pytest.approx(divergence.max().item(), rel=1e-9)
    assert compared.same_top.value == pytest.approx((log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item())
    at = ids[1:, None]
    change = (log_q.gather(-1, at).exp() - log_p.gather(-1, at).exp()).squeeze(-1)
    assert compared.rms_delta_p.value == pytest.approx(change.square().mean().sqrt().item(), rel=1e-9)
    ratio = (log_p.gather(-1, at) - log_q.gather(-1, at)).mean().exp().item()
    assert compared.ratio.value == pytest.approx(ratio, rel=1e-9)
    assert (found.model.experts, found.model.total_experts) == (6, 16)
    assert found.missing == "mask"


def test_a_limit_bounds_every_text(readable: Path, words) -> None:
    paths = [words(90), words(20, seed=2)]
    found = evaluate(readable, paths, context=16, limit=30, expert_memory="100%")
    assert [text.tokens for text in found.texts] == [30, 19]


def test_an_interrupted_evaluation_goes_on_where_it_was(readable: Path, partial: Path, words, tmp_path: Path) -> None:
    paths = [words(100), words(50, seed=3)]

    def run(journal: Path, progress=None):
        return evaluate(
            partial,
            paths,
            against=readable,
            missing="drop",
            context=16,
            expert_memory="100%",
            journal=journal,
            progress=progress,
        )

    def stop_at_40(progress: EvaluationProgress) -> None:
        if progress.done >= 40:
            raise KeyboardInterrupt

    journal = tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(journal, stop_at_40)
    told: list[EvaluationProgress] = []
    resumed = run(journal, told.append)
    assert (told[0].done, told[0].earlier, told[0].remaining_s) == (48, 48, None)
    assert (told[-1].done, told[-1].total, told[-1].remaining_s) == (148, 148, 0.0)
    assert resumed == run(tmp_path / "other.jsonl")
    # Everything is there: no model is opened any more.
    assert run(journal, told.append) == resumed
    with pytest.raises(UsageError, match="against, missing, model differ"):
        evaluate(readable, paths, context=16, expert_memory="100%", journal=journal)


def test_both_models_share_one_budget(readable: Path, partial: Path, words, monkeypatch) -> None:
    plans = []
    predict = tasks.predict

    def watch(model, *arguments):
        plans.append(model.coterie.plan)
        return predict(model, *arguments)

    monkeypatch.setattr(tasks, "predict", watch)
    budget = 8 << 30
    evaluate(partial, [words(20)], against=readable, missing="mask", context=32, memory=budget)
    full, model = plans[0], plans[1]
    assert full.budget < model.budget < budget
    assert (full.max_context, model.max_context) == (32, 32)
    with pytest.raises(MemoryBudgetError, match="two models at once") as caught:
        evaluate(partial, [words(20)], against=readable, missing="mask", context=32, memory="300MiB")
    enough = caught.value.minimum
    evaluate(partial, [words(20)], against=readable, missing="mask", context=32, memory=enough)


def test_what_is_asked_wrongly_is_told_before_a_model_is_opened(readable: Path, words, monkeypatch) -> None:
    monkeypatch.setattr(measuring.Subject, "open", None)
    text = words(30)
    with pytest.raises(UsageError, match="no text"):
        evaluate(readable, [])
    with pytest.raises(InputError, match="cannot be read"):
        evaluate(readable, [text, text.with_name("nowhere")])
    for options, message in (
        ({"limit": 0}, "limit must be"),
        ({"context": 0}, "context must be"),
        ({"context": 1 << 20}, "more than the .* tokens that the model was made for"),
        ({"stride": 33, "context": 32}, "stride=33"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate(readable, [text], **options)


def test_a_model_with_other_tokens_is_refused(readable: Path, zoo_checkpoint, words, tmp_path: Path) -> None:
    import shutil

    other = shutil.copytree(readable, tmp_path / "other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"w5"', '"v5"'))
    with pytest.raises(UsageError, match="different tokenizers: 2 tokens differ, such as 'v5'"):
        evaluate(readable, [words(30)], against=other)
    bare = zoo_checkpoint("olmoe", torch.bfloat16)
    with pytest.raises(LoadError, match="holds no tokenizer"):
        evaluate(bare, [words(30)])


def test_a_partial_store_needs_a_policy_and_the_full_model_none(readable: Path, partial: Path, words) -> None:
    with pytest.raises(CoverageError):
        evaluate(partial, [words(30)], expert_memory="100%", context=16)
    with pytest.raises(CoverageError):
        evaluate(readable, [words(30)], against=partial, missing="mask", expert_memory="100%", context=16)


def test_an_encoder_with_a_decoder_predicts_no_next_token(zoo_checkpoint, words, tmp_path: Path) -> None:
    import shutil

    directory = shutil.copytree(zoo_checkpoint("switch_transformers", torch.float32), tmp_path / "switch")
    add_tokenizer(directory, chat=False)
    with pytest.raises(UnsupportedError, match="encoder and a decoder"):
        evaluate(directory, [words(30)], expert_memory="100%", context=16)


def test_fewer_experts_have_a_price(readable: Path, words, tmp_path: Path) -> None:
    text = words(80)
    options = {"against": readable, "context": 20, "expert_memory": "100%"}
    found = {
        how: evaluate(readable, [text], adapt_experts=how, **options)
        for how in ("gate:0", "gate:0.9", "wake", AdaptiveExperts(k_max=1))
    }
    kld = {how: result.total.comparison.kld.value for how, result in found.items()}
    assert kld["gate:0"] == 0.0
    assert kld["gate:0.9"] > 0
    assert 0 < kld["wake"] < kld[AdaptiveExperts(k_max=1)]
    assert [found[how].adapt_experts for how in ("wake", "gate:0")] == ["wake", "gate:0"]
    # Each window begins without a memory, so that it does not matter where an evaluation was interrupted.
    again = evaluate(readable, [text], adapt_experts="wake", **options)
    assert again.total == found["wake"].total
    journal = tmp_path / "journal"
    evaluate(readable, [text], adapt_experts="wake", journal=journal, **options)
    with pytest.raises(UsageError):
        evaluate(readable, [text], adapt_experts="focus", journal=journal, **options)
    with pytest.raises(UsageError, match="Did you mean 'wake'"):
        evaluate(readable, [text], adapt_experts="wakes", **options)


def test_what_is_left_out_is_priced_token_by_token_in_order(readable: Path, words, tmp_path: Path) -> None:
    paths = [words(90), words(60, seed=1)]
    options = {"against": readable, "context": 32, "expert_memory": "40%"}
    # So small a share that nothing is below it: both models then compute the same, bit for bit.
    none = evaluate(readable, paths, drop_cold=1e-9, **options)
    assert none.total.comparison.identical == none.total.tokens == 148
    assert none.total.comparison.kld_max == 0.0
    assert (none.drop_cold, none.reads.left_out, none.reads.tokens) == (1e-9, 0, 148)
    found = evaluate(readable, paths, drop_cold=1.0, **options)
    assert found.total.comparison.kld.value > 0
    assert found.reads.left_out > 0 == found.full_reads.left_out
    assert found.reads.bytes_not_read == found.reads.left_out * found.full_reads.bytes_read // (
        found.full_reads.requested - found.full_reads.hits
    )
    assert found.reads.bytes_read < found.full_reads.bytes_read
    assert found.reads.bytes_per_token == found.reads.bytes_read / 148
    assert found.reads.capacity < found.reads.total_expert_bytes
    # Without it, what is in memory changes nothing, and nothing is told of it.
    assert evaluate(readable, paths, **options).reads is None


def test_an_interrupted_one_that_leaves_out_goes_on_with_a_warm_cache(readable: Path, words, tmp_path: Path) -> None:
    computed: list[int] = []
    paths, journal = [words(100)], tmp_path / "scores.jsonl"

    def run(progress=None, **options):
        return evaluate(
            readable,
            paths,
            context=16,
            expert_memory="40%",
            drop_cold=1.0,
            journal=journal,
            progress=progress,
            **options,
        )

    def stop_at_40(progress: EvaluationProgress) -> None:
        if progress.done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stop_at_40)
    original = tasks.WindowTask.piece

    def piece(task: tasks.WindowTask) -> tasks.WindowPiece:
        computed.append(task.window.first)
        return original(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.WindowTask, "piece", piece)
        resumed = run()
    assert computed == [33, 49, 65, 81, 97]  # the third window again, which is not counted twice
    assert resumed.reads.tokens == resumed.total.tokens == 99
    assert run() == resumed
    with pytest.raises(UsageError, match="cache differ"):
        evaluate(readable, paths, context=16, expert_memory="80%", drop_cold=1.0, journal=journal)
    with pytest.raises(UsageError, match="cache, drop_cold differ"):
        evaluate(readable, paths, context=16, expert_memory="40%", journal=journal)
