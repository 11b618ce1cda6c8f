"""Families of models, each with schemes."""

from __future__ import annotations

import itertools

import pytest

from coterie.spec.encodings import USUAL_SCHEMES
from zoo import ZOO


def with_schemes(first: int) -> pytest.MarkDecorator:
    """Parameters ``name`` and ``scheme``: each family with one scheme after the other, and slowly with all.

    Args:
        first: The number of the first family's scheme. Tests that begin at different ones meet all pairs together.
    """
    schemes = sorted((*USUAL_SCHEMES, "int4-g32"))
    often = {(name, schemes[(first + place) % len(schemes)]) for place, name in enumerate(sorted(ZOO))}
    pairs = itertools.product(sorted(ZOO), schemes)
    return pytest.mark.parametrize(
        ("name", "scheme"), [pytest.param(*pair, marks=() if pair in often else pytest.mark.slow) for pair in pairs]
    )
