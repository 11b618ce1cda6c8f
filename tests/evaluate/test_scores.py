import math

import numpy as np
import pytest
import torch

from coterie.errors import LoadError, UnsupportedError, UsageError
from coterie.evaluate import Text, TokenScores, plan_windows, scores
from coterie.evaluate.scores import score
from harness.kept_cache import kept_cache
from zoo import MATRIX


def random_logits(seed: int, tokens: int = 7, width: int = 33, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 * torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))).to(dtype)


FOLLOWING = [3, 0, 32, 8, 8, 1, 30]


def divergence_by_hand(full: torch.Tensor, ours: torch.Tensor) -> list[float]:
    """KL(full ‖ ours) row by row with Python's floats, from the definition."""
    found = []
    for row, other in zip(full.tolist(), ours.tolist(), strict=True):
        p = [math.exp(value) / math.fsum(map(math.exp, row)) for value in row]
        q = [math.exp(value) / math.fsum(map(math.exp, other)) for value in other]
        found.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_those_of_the_definitions(dtype: torch.dtype) -> None:
    ours, full = random_logits(1, dtype=dtype), random_logits(2, dtype=dtype)
    found = score(ours, FOLLOWING, full)
    following = torch.tensor(FOLLOWING)
    for loss, logits in ((found.loss, ours), (found.full_loss, full)):
        expected = torch.nn.functional.cross_entropy(logits.double(), following, reduction="none")
        np.testing.assert_allclose(loss, expected.numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.kld, divergence_by_hand(full, ours), rtol=1e-11)
    np.testing.assert_array_equal(found.same_top, (ours.argmax(-1) == full.argmax(-1)).numpy())
    np.testing.assert_array_equal(found.correct, (ours.argmax(-1) == following).numpy())
    np.testing.assert_array_equal(found.full_correct, (full.argmax(-1) == following).numpy())
    assert not found.identical.any()


def test_divergence_has_a_direction() -> None:
    ours, full = random_logits(1), random_logits(2)
    there, back = score(ours, FOLLOWING, full).kld, score(full, FOLLOWING, ours).kld
    assert np.abs(there - back).min() > 1e-3


def test_the_same_logits_diverge_by_exactly_nothing() -> None:
    logits = random_logits(5, dtype=torch.bfloat16)
    found = score(logits, FOLLOWING, logits.clone())
    assert (found.kld == 0.0).all()
    assert (found.loss == found.full_loss).all()
    assert found.same_top.all()
    assert found.identical.all()


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_slices_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, full = random_logits(1), random_logits(2)
    whole = score(ours, FOLLOWING, full)
    monkeypatch.setattr(scores, "SLICE_NBYTES", rows * 8 * 6 * 33)
    sliced = score(ours, FOLLOWING, full)
    for name in TokenScores.__slots__:
        np.testing.assert_array_equal(getattr(whole, name), getattr(sliced, name))


def test_tokens_that_both_models_rule_out_add_nothing() -> None:
    ours, full = random_logits(1), random_logits(2)
    narrow = score(ours[:, :20], [0] * 7, full[:, :20])
    ours[:, 20:], full[:, 20:] = -math.inf, -math.inf
    wide = score(ours, [0] * 7, full)
    np.testing.assert_allclose(wide.kld, narrow.kld, rtol=1e-12)
    np.testing.assert_allclose(wide.loss, narrow.loss, rtol=1e-12)


def test_what_only_the_model_rules_out_is_infinitely_far() -> None:
    ours, full = random_logits(1), random_logits(2)
    ours[2, 7] = -math.inf
    assert np.isinf(score(ours, FOLLOWING, full).kld).tolist() == [False, False, True, False, False, False, False]


def test_without_a_full_model_there_are_losses_only() -> None:
    found = score(random_logits(1), FOLLOWING)
    assert found.loss.shape == (7,)
    assert (found.full_loss, found.kld, found.same_top, found.identical) == (None, None, None, None)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("whose", ["model", "full model"])
def test_logits_that_are_no_numbers_are_an_error(broken: float, whose: str) -> None:
    ours, full = random_logits(1), random_logits(2)
    (ours if whose == "model" else full)[4, 5] = broken
    with pytest.raises(LoadError, match=f"The {whose} computes"):
        score(ours, FOLLOWING, full)


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(UsageError, match="33 different tokens, the full model 34"):
        score(random_logits(1), FOLLOWING, random_logits(1, width=34))
    with pytest.raises(UnsupportedError, match="Token 32 is none of the 32"):
        score(random_logits(1, width=32), FOLLOWING)


def test_token_by_token_is_as_all_at_once(zoo_store, open_model) -> None:
    model = open_model(zoo_store("qwen3_moe"))
    text = Text(name="random", ids=tuple(random_ids(24)), prefix=(1,))
    for window in plan_windows(24, 16, 8):
        found, expected = scores.predict_in_steps(model, text, window), scores.predict(model, text, window)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model.coterie.stats().decode_tokens["text"] > 0


def random_ids(count: int) -> list[int]:
    return torch.randint(3, 90, (count,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("name", ["qwen3_moe", "nemotron_h", "jamba", "qwen3_vl_moe"])
def test_token_by_token_is_as_decoded_by_hand(name: str) -> None:
    """Some classes compute fewer logits where they generate."""
    model = MATRIX[name].build(torch.bfloat16).eval()
    text = Text(name="random", ids=tuple(random_ids(24)), prefix=(1,))
    window = plan_windows(24, 16, 8)[1]
    ids = torch.tensor([[1, *text.ids[window.inputs]]])
    first = ids[:, : ids.shape[1] - window.tokens + 1]
    with torch.inference_mode():
        out = model(input_ids=first, use_cache=True)
        expected = [out.logits[0, -1:]]
        for position in range(first.shape[1], ids.shape[1]):
            out = model(input_ids=ids[:, position : position + 1], use_cache=True, **kept_cache(out))
            expected.append(out.logits[0])
    found = scores.predict_in_steps(model, text, window)
    assert torch.equal(found, torch.cat(expected))
    assert found.dtype == expected[0].dtype


@pytest.mark.parametrize(
    ("name", "media"),
    [("qwen3_vl_moe", {"image": True}), ("qwen3_omni_thinker", {"image": True, "audio": True})],
)
def test_a_picture_that_the_model_saw_before_changes_nothing(name: str, media: dict[str, bool]) -> None:
    if reason := MATRIX[name].why_not:
        pytest.skip(reason)
    model = MATRIX[name].build(torch.float32).eval()
    text = Text(name="random", ids=tuple(random_ids(24)), prefix=(1,))
    window = plan_windows(24, 16, 8)[1]
    expected = scores.predict_in_steps(model, text, window)
    model.generate(**MATRIX[name].inputs(seed=3, length=32, **media), max_new_tokens=2, do_sample=False)
    assert torch.equal(scores.predict_in_steps(model, text, window), expected)


def test_a_model_that_predicts_no_next_token_is_refused() -> None:
    if reason := MATRIX["diffusion_gemma"].why_not:
        pytest.skip(reason)
    model = MATRIX["diffusion_gemma"].build(torch.float32).eval()
    text = Text(name="random", ids=tuple(random_ids(24)), prefix=(1,))
    with pytest.raises(UnsupportedError, match="no logits for each token"):
        scores.predict_in_steps(model, text, plan_windows(24, 16, 8)[1])
