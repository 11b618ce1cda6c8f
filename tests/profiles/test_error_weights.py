"""How much an error of an expert matters, against counters that were made up."""

from __future__ import annotations

import numpy as np
import pytest

from coterie.errors import UsageError
from coterie.profiles import BankShape, BankUsage, Group, Usage, error_weights
from coterie.spec import BankKey

BANK = BankKey("text", 0, "mlp")
SHAPE = BankShape(bank=BANK, experts=4, top_k=1)


def usage(**groups: tuple[str, str, list[int], list[float]]) -> Usage:
    """Of each group: modality, domain, how often each expert was chosen, and the size of what it then added."""
    counts = np.array([of[2] for of in groups.values()], dtype=np.int64)
    sizes = np.array([of[3] for of in groups.values()])
    table = BankUsage(
        shape=SHAPE,
        tokens=counts.sum(axis=1),
        activations=counts,
        gate_mass=counts.astype(np.float64),
        reap_sum=counts * sizes,
        reap_counts=counts.copy(),
    )
    names = [Group(modality=of[0], domain=of[1], phase="prompt") for of in groups.values()]
    return Usage("0" * 32, "m", names, {BANK: table})


CODE = ("text", "code", [100, 10, 0, 0], [1.0, 4.0, 0.0, 0.0])
PROSE = ("text", "prose", [900, 0, 50, 0], [1.0, 0.0, 2.0, 0.0])
PICTURES = ("image", "photos", [0, 0, 0, 20], [0.0, 0.0, 0.0, 9.0])


def test_without_domains_it_is_the_mean_whoever_is_used_most() -> None:
    found = error_weights(usage(a=CODE, b=PROSE), [BANK], {"text": ["text"]})
    assert found.measure == "reap"
    sums, counts = np.array([1000.0, 40, 100, 0]), np.array([1000, 10, 50, 0])
    want = (sums + 32 * sums.sum() / counts.sum()) / (counts + 32)
    np.testing.assert_allclose(found.weights[BANK], want)
    assert int(np.argmin(found.weights[BANK])) == 0
    np.testing.assert_allclose(found.rates[BANK], counts / counts.sum())
    assert found.activations == 265
    # What was never seen is as the average of its layer.
    assert found.weights[BANK][3] == pytest.approx(sums.sum() / counts.sum())


def test_what_one_modality_needs_is_not_outvoted() -> None:
    found = error_weights(usage(a=CODE, b=PROSE, c=PICTURES), [BANK], {"text": ["text", "image"]})
    assert int(np.argmax(found.weights[BANK])) == 3
    assert [str(claim) for claim in found.claims["text"]] == ["text", "image"]
    text = error_weights(usage(a=CODE, b=PROSE, c=PICTURES), [BANK], {"text": ["text", "image"]}, modalities=["text"])
    np.testing.assert_allclose(text.weights[BANK], error_weights(usage(a=CODE, b=PROSE), [BANK], {}).weights[BANK])


def test_with_domains_it_is_the_share_of_the_energy_each_domain_alike() -> None:
    some = usage(a=CODE, b=PROSE)
    code = error_weights(some, [BANK], {"text": ["text"]}, domains=["code"])
    assert code.measure == "energy"
    energy = np.array([100.0, 160, 0, 0])
    np.testing.assert_allclose(code.weights[BANK], energy / energy.sum())
    both = error_weights(some, [BANK], {"text": ["text"]}, domains=["code", "prose"])
    other = np.array([900.0, 0, 200, 0])
    np.testing.assert_allclose(both.weights[BANK], (energy / energy.sum() + other / other.sum()) / 2)
    assert [str(claim) for claim in both.claims["text"]] == ["text of code", "text of prose"]


def test_the_fingerprint_is_that_of_what_decided() -> None:
    some, more = usage(a=CODE, b=PROSE), usage(a=CODE, b=("text", "prose", [900, 0, 51, 0], [1.0, 0.0, 2.0, 0.0]))
    code = [error_weights(one, [BANK], {}, domains=["code"]).fingerprint for one in (some, more)]
    every = [error_weights(one, [BANK], {}).fingerprint for one in (some, more)]
    assert code[0] == code[1]
    assert len({code[0], *every}) == 3


def test_what_cannot_be_weighed() -> None:
    with pytest.raises(UsageError, match=r"image.*fewest bits"):
        error_weights(usage(a=CODE), [BANK], {"text": ["text", "image"]})
    with pytest.raises(UsageError, match=r"image.*left out"):
        error_weights(usage(a=CODE), [BANK], {"text": ["text", "image"]}, domains=["code"])
    some = usage(a=CODE)
    some.banks[BANK].reap_counts[:] = 0
    with pytest.raises(UsageError, match="--contributions"):
        error_weights(some, [BANK], {"text": ["text"]})
    with pytest.raises(UsageError, match="Nothing was recorded of text/mlp-layer-001"):
        error_weights(some, [BankKey("text", 1, "mlp")], {})
