"""What a benchmark has measured is there again when it goes on, under the same settings only."""

from __future__ import annotations

from pathlib import Path

from harness.journal import Journal


def test_what_was_kept_is_there_for_whoever_goes_on(tmp_path: Path) -> None:
    first = Journal(tmp_path / "a", resume=False)
    first.keep({"streams": 2, "memory": "8GiB"}, {"seconds": [1.5, 2.0]})
    assert first.of({"memory": "8GiB", "streams": 2}) == {"seconds": [1.5, 2.0]}
    again = Journal(tmp_path / "a", resume=True)
    assert again.of({"streams": 2, "memory": "8GiB"}) == {"seconds": [1.5, 2.0]}
    assert again.of({"streams": 2, "memory": "100%"}) is None
    assert [key for key, _ in again] == [{"streams": 2, "memory": "8GiB"}]


def test_who_does_not_go_on_begins_anew(tmp_path: Path) -> None:
    Journal(tmp_path / "a", resume=False).keep({"streams": 2}, 1)
    assert Journal(tmp_path / "a", resume=False).of({"streams": 2}) is None
    assert Journal(tmp_path / "a", resume=True).of({"streams": 2}) is None


def test_keys_are_what_json_makes_of_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a", resume=False)
    journal.keep({"streams": (1, 2)}, None)
    journal.keep({"streams": (1, 3)}, 7)
    assert journal.of({"streams": (1, 3)}) == 7
