"""Losses of the tokens that a model is given, by hand; and only where the logits are there."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from coterie.passes import losses as module
from coterie.passes.losses import LossMeter

V = 11


def output(*shape: int, seed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(logits=3 * torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed)))


def by_hand(logits: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.cross_entropy(logits.double(), ids, reduction="none").numpy()


IDS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])


@pytest.mark.parametrize("slice_nbytes", [1, 64 << 20])
def test_a_pass_and_the_tokens_after_it(slice_nbytes, monkeypatch):
    monkeypatch.setattr(module, "_SLICE_NBYTES", slice_nbytes)
    meter, first = LossMeter(), output(2, 4)
    meter.begin(IDS, shape=(2, 4), cached=0)
    found = meter.end(first)
    assert (found.dtype, np.isnan(found[:, 0]).all()) == (np.float32, True)
    for row in range(2):
        np.testing.assert_allclose(found[row, 1:], by_hand(first.logits[row, :-1], IDS[row, 1:]), rtol=1e-5)
    after = torch.tensor([[7], [10]])
    meter.begin(after, shape=(2, 1), cached=4)
    first.logits.zero_()  # what was computed before is kept, not looked up
    found = meter.end(output(2, 1, seed=1))
    np.testing.assert_allclose(found[:, 0], by_hand(output(2, 4).logits[:, -1], after[:, 0]), rtol=1e-5)


def test_last_logits_alone_tell_only_of_the_next_token():
    meter = LossMeter()
    meter.begin(IDS, shape=(2, 4), cached=0)
    assert np.isnan(meter.end(output(2, 1))).all()
    meter.begin(IDS[:, :2], shape=(2, 2), cached=4)
    found = meter.end(output(2, 2, seed=1))
    np.testing.assert_allclose(found[:, 0], by_hand(output(2, 1).logits[:, 0], IDS[:, 0]), rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], by_hand(output(2, 2, seed=1).logits[:, 0], IDS[:, 1]), rtol=1e-5)


@pytest.mark.parametrize(("batch", "cached"), [(2, 0), (2, 3), (2, 5), (1, 4)])
def test_other_sequences_are_not_predicted_by_what_was_before(batch, cached):
    meter = LossMeter()
    meter.begin(IDS, shape=(2, 4), cached=0)
    meter.end(output(2, 4))
    meter.begin(IDS[:batch, :1], shape=(batch, 1), cached=cached)
    assert np.isnan(meter.end(output(batch, 1))).all()


@pytest.mark.parametrize("result", [None, (1, 2), SimpleNamespace(), SimpleNamespace(logits=torch.zeros(2, V))])
def test_without_logits_nothing_is_known(result):
    meter = LossMeter()
    for _ in range(2):
        meter.begin(IDS, shape=(2, 4), cached=0)
        assert np.isnan(meter.end(result)).all()


def test_tokens_that_are_not_known_or_not_in_the_vocabulary():
    meter = LossMeter()
    meter.begin(None, shape=(1, 3), cached=0)
    assert np.isnan(meter.end(output(1, 3))).all()
    meter.begin(torch.tensor([[2, V, -1, 4]]), shape=(1, 4), cached=0)
    assert np.isnan(meter.end(output(1, 4))).tolist() == [[True, True, True, False]]
