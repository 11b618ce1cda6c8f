"""How many reads at once a model uses, and where the number comes from."""

from pathlib import Path

import pytest

import coterie
from coterie.engine import disk_tuning
from coterie.engine.disk_tuning import Reading, reading_for, record_places
from coterie.errors import UsageError
from coterie.plan import disk_notes
from coterie.plan.queue_depth import ReadTuning
from coterie.store import Store


@pytest.fixture
def store(zoo_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Store.open(zoo_store("mixtral"))


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    ran: list[int] = []

    def tune(extents, *, memory):
        ran.append(len(extents))
        return ReadTuning(at_once=3, parts=2, record=extents[0].nbytes)

    monkeypatch.setattr(disk_notes, "tune_reads", tune)
    return ran


def test_a_small_store_is_read_without_a_trial(store: Store, trials: list[int], tmp_path: Path) -> None:
    assert reading_for(store, memory=2**30) == Reading()
    assert trials == []
    assert not (tmp_path / "cache").exists()


def test_the_disk_of_a_large_one_is_tried_once(
    store: Store, trials: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_tuning, "WORTH_TUNING", 1)
    record = store.layout(next(iter(store.keys()))).nbytes
    for _ in range(2):
        found = reading_for(store, memory=2**30)
        assert found.at_once == 3
        assert found.read_nbytes is not None
        assert record // 2 <= found.read_nbytes < record
    assert trials == [len(store.keys())]


def test_where_the_trial_has_no_result_the_default_holds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_tuning, "WORTH_TUNING", 1)
    monkeypatch.setattr(disk_notes, "tune_reads", lambda extents, *, memory: None)
    assert reading_for(store, memory=2**30) == Reading()


def test_places_are_spread_over_all_experts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [store.extents(key)[0] for key in store.keys()]
    assert list(record_places(store)) == everything
    monkeypatch.setattr(disk_tuning, "_MOST_PLACES", 3)
    some = record_places(store)
    assert 1 <= len(some) <= 3
    assert some[-1].source == everything[-1].source


def test_a_model_reads_as_was_found(zoo_store, store: Store, trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_tuning, "WORTH_TUNING", 1)
    model = coterie.load(zoo_store("mixtral"), expert_memory="50%")
    assert trials
    assert model.coterie.cache.reads_at_once == 3
    assert model.coterie.stats().reads_at_once == 3
    model.coterie.close()


def test_the_environment_overrides_all(zoo_store, store: Store, trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_tuning, "WORTH_TUNING", 1)
    monkeypatch.setenv("COTERIE_READS_AT_ONCE", "7")
    model = coterie.load(zoo_store("mixtral"), expert_memory="50%")
    assert trials == []
    assert model.coterie.stats().reads_at_once == 7
    model.coterie.close()
    monkeypatch.setenv("COTERIE_READS_AT_ONCE", "lots")
    with pytest.raises(UsageError, match="COTERIE_READS_AT_ONCE"):
        coterie.load(zoo_store("mixtral"), expert_memory="50%")
