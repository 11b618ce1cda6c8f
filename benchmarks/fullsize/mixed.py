"""A full-size store with experts' matrices in two, three and four bits, as an allocation of 3.5 bits has them.

Random weights have no profile: which matrix gets which level is drawn. A quarter of the matrices gets ``int2``, half
``int3`` and a quarter stays in ``int4``, in every layer alike, so the mean is 3.5 bits per weight, scales counted.
These are about the shares that an allocation of that size has in the bundled model. Experts that are used more do not
have more bits here, so a token asks for as many bytes as if all had 3.5.
"""

from __future__ import annotations

import random
from pathlib import Path

from coterie import quantize
from coterie.store import Store

SHARES = ("int2", "int3", "int3", "int4")
MATRICES = ("gate_up_proj", "down_proj")


def schemes(store: Path, seed: int = 0) -> dict[str, object]:
    """What ``--expert-schemes`` takes: a level for each matrix of each expert of a store."""
    draw = random.Random(seed)
    experts: dict[str, dict[str, str]] = {}
    for bank, present in sorted(Store.open(store).banks.items()):
        keys = [bank.expert(expert) for expert in sorted(present.records)]
        levels = []
        for _ in MATRICES:
            drawn = [SHARES[place % len(SHARES)] for place in range(len(keys))]
            draw.shuffle(drawn)
            levels.append(drawn)
        for key, *own in zip(keys, *levels, strict=True):
            experts[str(key)] = dict(zip(MATRICES, own, strict=True))
    return {"schema_version": 1, "experts": experts}


def write_mixed(path: Path, store: Path) -> None:
    """Makes the mixed store of the one in ``int4``, or goes on with one that was interrupted."""
    quantize(store, path, expert_schemes=schemes(store))
