"""How often chance alone gives a figure as large, over all layers of a model."""

from __future__ import annotations

import numpy as np

from coterie.analysis.matrices import Floats

_LEAST_SPREAD = 1e-12


def pooled_p_values(found: Floats, chance: Floats) -> Floats:
    """One-sided p-values of several layers that share their draws.

    A layer by itself could not have a p-value below 1/(R + 1), and corrected for many layers none would be left. So
    each figure is standardised by the mean and standard deviation of its own layer's draws, and compared with the
    standardised draws of all layers: p = (1 + how many are as large) / (1 + L·R) (pooled resampling; Ge, Dudoit and
    Speed, "Resampling-based multiple testing for microarray data analysis", TEST 12, 2003). With one layer that is the
    usual test.

    Args:
        found: [L] a figure for each layer.
        chance: [L, R] the same figure for R random draws of each layer.

    Returns:
        [L] p-values; NaN where a figure or its draws are NaN.
    """
    p_values = np.full(len(found), np.nan)
    tested = np.isfinite(found) & np.isfinite(chance).all(axis=1)
    if not tested.any():
        return p_values
    mean = chance[tested].mean(axis=1)
    spread = np.maximum(chance[tested].std(axis=1, ddof=1), _LEAST_SPREAD)
    pooled = np.sort(((chance[tested] - mean[:, None]) / spread[:, None]).ravel())
    scores = (found[tested] - mean) / spread
    # What differs by rounding alone counts as equal.
    as_large = len(pooled) - np.searchsorted(pooled, scores - 1e-9)
    p_values[tested] = (1 + as_large) / (1 + len(pooled))
    return p_values
