"""Mutated manifests, files and journals of stores: a result, or our error. ``COTERIE_FUZZ=5``: 20,000 manifests."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
from pathlib import Path

import pytest

from coterie.errors import CoterieError
from coterie.store import Store, StoreWriter, verify_store
from coterie.store.journal import read_journal
from coterie.store.manifest_json import seal_manifest
from fuzzing import Watch, cases, damage, mutate, scramble

from .journals import ENTRY, HEADER, line
from .tiny import make_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

FILES = (
    "dense-00001-of-00002.safetensors",
    "dense.safetensors.index.json",
    "config.json",
    "experts/talker/mlp-layer-000.safetensors",
)
VERIFIED = 10
"""Of so many manifests, one is given to the verification, too."""


@pytest.fixture
def store(pristine_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine_store, tmp_path / "store"))


def opened(root: Path) -> None:
    store = Store.open(root)
    for key in list(store.keys())[:3]:
        store.extents(key)


def test_mutated_manifests(store: Path) -> None:
    path = store / "coterie.json"
    pristine = path.read_bytes()
    watch = Watch()
    for case in range(cases(4000)):
        rng = random.Random(case)
        try:
            path.write_bytes(seal_manifest(mutate(json.loads(pristine), rng)))
        except ValueError:  # it cannot be written as JSON
            path.write_bytes(scramble(pristine, rng))
        watch.run(case, lambda: opened(store))
        if case % VERIFIED == 0:
            watch.run(case, lambda: verify_store(store))
    watch.check()
    assert watch.outcomes["StoreFormatError"]


@pytest.mark.parametrize("file", FILES)
def test_damaged_files(file: str, store: Path) -> None:
    """Verification tells of every one, and opening refuses it or does not look. The first one is whole."""
    path = store / file
    pristine = path.read_bytes()
    verified, watch = Watch(), Watch()

    def verify() -> None:
        assert verify_store(store).ok == (path.read_bytes() == pristine)

    for case in range(cases(60)):
        path.write_bytes(damage(pristine, random.Random(case)) if case else pristine)
        verified.run(case, verify)
        watch.run(case, lambda: opened(store))
    verified.check()
    watch.check()


def test_mutated_journals(tmp_path: Path) -> None:
    path = tmp_path / ".coterie.journal"
    watch, found = Watch(), 0
    for case in range(cases(3000)):
        values = copy.deepcopy([HEADER, ENTRY, ENTRY])
        path.write_bytes(b"".join(map(line, mutate(values, random.Random(case)))))
        watch.run(case, lambda: read_journal(path))
        found += read_journal(path) is not None
    watch.check()
    assert 0 < found < cases(3000)


def test_a_journal_of_parts_that_are_none_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".coterie.journal").write_bytes(line({**HEADER, "parts": {"a": "b"}}))
    with contextlib.suppress(CoterieError), StoreWriter.open(tmp_path, make_plan()):
        pass
