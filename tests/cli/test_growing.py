"""A partial store grows by what its router wanted and did not find."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from coterie.profiles import Profile
from coterie.spec import BankKey
from coterie.store import Store

FAST = ("--expert-memory", "100%", "-q")


def held(store: Path) -> dict[BankKey, set[int]]:
    found: dict[BankKey, set[int]] = {}
    for key in Store.open(store).keys():
        found.setdefault(key.bank_key, set()).add(key.expert)
    return found


def wanted(profile: Path) -> Mapping[BankKey, np.ndarray]:
    """Activations of each expert, absent or not."""
    return {bank: table.activations.sum(axis=0) for bank, table in Profile.open(profile).banks.items()}


@pytest.mark.parametrize("missing", ["drop", "nearest"])
def test_a_store_grows_by_what_was_missed_most(coterie, model, tmp_path: Path, missing: str) -> None:
    texts = {"known": range(3, 30), "new": range(60, 95)}
    for name, ids in texts.items():
        (tmp_path / f"{name}.txt").write_text(" ".join(f"w{ids[(5 * n) % len(ids)]}" for n in range(300)))

    def record(source: str, name: str, *options: str) -> Path:
        path = tmp_path / f"{name}.db"
        text = ("-t", f"{name}={tmp_path / name}.txt")
        outcome = coterie("profile", "record", source, "-o", str(path), *text, *options, *FAST)
        assert outcome.code == 0, outcome.err
        return path

    def absences(store: Path) -> int:
        """Choices of a router, in reading the new text, of experts that a store lacks."""
        prompt, stats = (tmp_path / "new.txt").read_text()[:60], tmp_path / "stats.json"
        options = ("--missing", missing, "--stats", str(stats), "-n", "2", "--greedy")
        assert coterie("generate", str(store), prompt, *options, *FAST).code == 0
        return int(json.loads(stats.read_text())["total"]["absent"])

    store = tmp_path / "store"
    known = record(model, "known")
    assert coterie("extract", model, str(store), "--top", "50%", "--profile", str(known)).code == 0
    before = held(store)
    missed = record(str(store), "new", "--missing", missing)
    uses = wanted(missed)
    absent = {bank: [e for e in range(len(one)) if e not in before[bank]] for bank, one in uses.items()}
    assert sum(uses[bank][experts].sum() for bank, experts in absent.items()) > 0, "nothing was missed"
    lacked = absences(store)
    outcome = coterie("extract", model, str(store), "--top", "60%", "--profile", str(missed), "--json")
    assert outcome.code == 0, outcome.err
    after = held(store)
    assert all(before[bank] <= after[bank] for bank in before), "nothing is lost"
    added = {bank: after[bank] - before[bank] for bank in before}
    assert sum(map(len, added.values()))
    for bank, experts in added.items():
        left = set(absent[bank]) - experts
        if experts and left:
            assert min(uses[bank][sorted(experts)]) >= max(uses[bank][sorted(left)])
    # What was read through the smaller store before is served by the grown one.
    shares = []
    for bank, one in uses.items():
        shares.append(one[sorted(after[bank])].sum() / one.sum() - one[sorted(before[bank])].sum() / one.sum())
    assert min(shares) >= 0
    assert max(shares) > 0
    assert absences(store) < lacked
