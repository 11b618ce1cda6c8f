"""Runs a model with the toys, in a process whose Coterie has them, and holds it against stock.

python running.py CHECKPOINT STORE
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from coterie.eviction.toy import ToyPolicy

import coterie
from conftest import realigned
from coterie.checkpoint import Checkpoint
from coterie.native import library
from coterie.store import Store
from integration.test_quantised_linear import round_linears
from integration.test_schemes import round_experts
from zoo import ZOO, logits, stock


def main(checkpoint: Path, store: Path) -> None:
    """Every assertion that fails ends the process."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The experts have")
    inputs = ZOO["qwen3_moe"].inputs()
    coterie.extract(checkpoint, store, scheme="toy", dense_scheme="toy")
    opened = Store.open(store)
    assert {opened.scheme(key) for key in opened.keys()} == {"toy"}
    assert str(opened.manifest.dense_schemes) == "toy"
    assert coterie.verify(store).ok

    reference = realigned(stock(checkpoint, torch.bfloat16))
    exact = logits(reference, inputs)
    round_experts(reference, opened)
    round_linears(reference, Checkpoint.open(checkpoint), "toy")
    want = logits(reference, inputs)
    assert not torch.equal(exact, want)

    model = coterie.load(store, expert_memory="30%", eviction="toy")
    assert torch.equal(logits(model, inputs), want)
    assert torch.equal(logits(model, inputs), want)
    assert ToyPolicy.chosen > 0
    model.coterie.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"exact, native: {library() is not None}")
