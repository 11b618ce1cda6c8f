"""What is shared out, and the worker of this process. Those of a Ray cluster: tests/on_ray."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from coterie.cluster import connection
from coterie.cluster.connection import check_ray
from coterie.cluster.workers import Here, RemoteModel
from coterie.errors import InputError, MissingPackageError, UsageError
from coterie.spec.opening import Opening


@dataclass
class Halves:
    """Halves even numbers."""

    seen: list[int]

    def run(self, shard: int) -> int:
        self.seen.append(shard)
        if shard % 2:
            raise InputError(f"{shard} is odd.")
        return shard // 2


def never() -> bool:
    return False


def test_the_worker_here_does_one_thing_after_the_other() -> None:
    worker, taken = Halves([]), []

    def items() -> Iterator[int]:
        for number in (2, 4, 100, 6, 7, 8):
            taken.append(number)
            yield number

    found = Here(worker).map(items(), lambda number: None if number == 100 else number, never)
    assert [next(found) for _ in range(3)] == [(2, 1), (4, 2), (100, None)]
    assert taken == [2, 4, 100]
    assert next(found) == (6, 3)
    with pytest.raises(InputError, match="7 is odd"):
        next(found)
    assert worker.seen == [2, 4, 6, 7]
    assert list(Here(worker).map([2, 4], int, lambda: True)) == []


def test_a_model_has_one_name_in_every_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Opening(memory="8GiB")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    named = [("bundled", "bundled"), ("./model", str(tmp_path / "model")), ("org/name", "org/name")]
    for name, place in named:
        assert RemoteModel(path=name, opening=opening, address="auto").path == place
    fetching = Opening(memory="8GiB", missing="fetch", source="model")
    assert RemoteModel(path="bundled", opening=fetching, address="auto").opening.source == str(tmp_path / "model")
    with pytest.raises(UsageError, match="Add --memory, which is meant for each"):
        RemoteModel(path="bundled", opening=Opening(), address="auto")


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"Workers of a cluster need ray.*pip install .*ray\[serve\]"):
        check_ray("Workers of a cluster")
