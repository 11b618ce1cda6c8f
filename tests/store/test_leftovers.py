"""What an interrupted growth leaves is told apart from what does not belong in a store at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.store import verify_store

from .faults import Killed, KillingCalls, WatchedCalls
from .tiny import make_plan, write_store

LEFT = [
    ".coterie.lock",
    ".coterie.journal",
    "..coterie.journal.partial",
    ".coterie.json.partial",
    "experts/thinker/mlp-layer-000.1.safetensors",
    "experts/thinker/.mlp-layer-001.1.safetensors.partial",
    # One that began after the manifest was read.
    "experts/talker/mlp-layer-000.2.safetensors",
]
FOREIGN = [
    "notes.txt",
    ".notes.txt.partial",
    ".dense.safetensors.partial",
    ".tokenizer.json.partial",
    "dense.safetensors",
    "coterie.journal",
    "experts/.coterie.lock",
    "experts/thinker/mlp-layer-000.01.safetensors",
    "experts/thinker/mlp-layer-000.1.safetensors.bak",
    # No growth adds a bank.
    "experts/thinker/mlp-layer-007.safetensors",
    "experts/talker/attention-layer-000.1.safetensors",
]


@pytest.mark.parametrize("name", LEFT)
def test_files_that_a_growth_writes_are_left_over(name: str, store: Path) -> None:
    (store / name).write_bytes(b"xyz")
    report = verify_store(store)
    assert report.ok
    assert [(one.file, one.nbytes) for one in report.leftovers] == [(name, 3)]


@pytest.mark.parametrize("name", FOREIGN)
def test_all_others_are_foreign(name: str, store: Path) -> None:
    (store / name).write_bytes(b"xyz")
    report = verify_store(store)
    assert [(one.kind, one.file, one.rule) for one in report.problems] == [("foreign", name, "R29")]
    assert report.leftovers == ()


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc/hostname"), lambda path: path.symlink_to("gone")])
def test_a_link_is_nothing_that_a_growth_writes(make: Callable[[Path], None], store: Path) -> None:
    make(store / ".coterie.journal")
    assert [one.file for one in verify_store(store).problems] == [".coterie.journal"]


def test_a_segment_that_the_manifest_names_is_no_leftover_when_it_is_damaged(tmp_path: Path) -> None:
    write_store(tmp_path, make_plan([0]))
    write_store(tmp_path, make_plan([0, 1]))
    (tmp_path / "experts/thinker/mlp-layer-000.1.safetensors").write_bytes(b"xyz")
    report = verify_store(tmp_path)
    assert not report.ok
    assert report.leftovers == ()


def test_whatever_a_killed_growth_leaves_the_next_one_removes(tmp_path: Path) -> None:
    calls = WatchedCalls()
    write_store(tmp_path / "counted", make_plan([0, 1]))
    write_store(tmp_path / "counted", make_plan([0, 1, 3]), calls=calls)
    found: set[str] = set()
    for at in range(calls.count):
        path = tmp_path / f"store-{at}"
        write_store(path, make_plan([0, 1]))
        with pytest.raises(Killed):
            write_store(path, make_plan([0, 1, 3]), calls=KillingCalls(at))
        report = verify_store(path)
        assert report.ok, at
        found |= {one.file for one in report.leftovers}
        # Another growth than the one that was killed, or one that finds nothing to add.
        write_store(path, make_plan([0, 4]) if at % 2 else make_plan([0, 1]))
        after = verify_store(path)
        assert after.ok, at
        assert after.leftovers == (), at
    assert {".coterie.lock", ".coterie.journal", "experts/thinker/mlp-layer-000.1.safetensors"} < found
    assert any(name.endswith(".safetensors.partial") for name in found)
