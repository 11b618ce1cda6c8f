"""Stores whose codes were chosen by what experts are given: the same bytes however they came about, and never worse."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from calibration.conftest import TOKENS, words
from coterie.calibration import Calibration, calibrator
from coterie.calibration.memory import Room
from coterie.errors import InputError, MemoryBudgetError, StoreError, UnsupportedError, UsageError
from coterie.extraction import extract, quantize
from coterie.inspection import verify
from coterie.spec import BankKey
from coterie.store import Store
from coterie.survey import gather
from extraction.stores import snapshot, stored
from store.faults import Killed, KillingCalls, WatchedCalls
from zoo import ZOO
from zoo.tokenizer import add_tokenizer


def test_records_say_how_much_better_they_are(readable: Path, tmp_path: Path, fresh: Path) -> None:
    store = Store.open(fresh)
    facts = store.manifest.calibration
    assert facts is not None
    assert store.manifest.version == 4
    assert set(facts.tokens) == {"code", "prose"}
    assert sum(facts.tokens.values()) <= TOKENS
    extract(readable, tmp_path / "plain", scheme="int4")
    plain = Store.open(tmp_path / "plain")
    assert plain.manifest.version == 1
    differing = 0
    for key in store.keys():
        record = store.manifest.places[key][1]
        assert record.errors is not None
        assert 0 < record.errors.output <= record.errors.nearest
        assert store.layout(key) == plain.layout(key)
        differing += stored(store, key) != stored(plain, key)
    assert differing == len(list(store.keys()))
    # The routers' inputs are correlated enough even in a model of random weights.
    better = [store.manifest.places[key][1].errors for key in store.keys()]
    assert sum(one.output for one in better if one) < 0.9 * sum(one.nearest for one in better if one)


def test_of_a_store_it_is_what_it_is_of_the_checkpoint(
    readable: Path, tmp_path: Path, fresh: Path, calibration: Calibration
) -> None:
    extract(readable, tmp_path / "native")
    quantize(tmp_path / "native", tmp_path / "again", scheme="int4", calibration=calibration)
    assert snapshot(tmp_path / "again") == snapshot(fresh)


def test_with_memory_for_one_expert_at_a_time_it_is_the_same(
    readable: Path, tmp_path: Path, fresh: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Room, "experts_at_once", lambda self, bank, experts: 3)
    watched: list[BankKey] = []
    watch = calibrator.LayerCalibrator._watch
    monkeypatch.setattr(
        calibrator.LayerCalibrator,
        "_watch",
        lambda self, number, bank, *rest: (watched.append(bank), watch(self, number, bank, *rest)),
    )
    quantize(readable, tmp_path / "tight", scheme="int4", calibration=calibration)
    assert len(watched) == 2 * 3  # 8 experts of each of two layers
    assert snapshot(tmp_path / "tight") == snapshot(fresh)


@pytest.mark.parametrize("every", [90, pytest.param(7, marks=pytest.mark.slow)])
def test_killed_at_a_change_of_the_disk_it_goes_on(
    every: int, readable: Path, tmp_path: Path, fresh: Path, calibration: Calibration
) -> None:
    want = snapshot(fresh)
    counted = WatchedCalls()
    quantize(readable, tmp_path / "counted", scheme="int4", calibration=calibration, calls=counted)
    for at in range(every // 2, counted.count, every):
        path = tmp_path / f"store-{at}"
        with pytest.raises(Killed):
            quantize(readable, path, scheme="int4", calibration=calibration, calls=KillingCalls(at))
        quantize(readable, path, scheme="int4", calibration=calibration)
        assert snapshot(path) == want, at


def test_killed_between_layers_nothing_is_run_again(
    readable: Path, tmp_path: Path, fresh: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = calibrator.LayerCalibrator._run
    numbers: list[int] = []

    def counting(self: calibrator.LayerCalibrator, number: int, *rest: object) -> None:
        if number == 1 and len(numbers) < 100:
            numbers.extend([-1] * 100)
            raise Killed
        numbers.append(number)
        run(self, number, *rest)

    monkeypatch.setattr(calibrator.LayerCalibrator, "_run", counting)
    path = tmp_path / "store"
    with pytest.raises(Killed):
        quantize(readable, path, scheme="int4", calibration=calibration)
    before = len(numbers)
    assert quantize(readable, path, scheme="int4", calibration=calibration).status == "resumed"
    assert set(numbers[before:]) == {1}
    assert snapshot(path) == snapshot(fresh)


def test_other_texts_are_another_request(readable: Path, tmp_path: Path, fresh: Path, calibration: Calibration) -> None:
    assert quantize(readable, fresh, scheme="int4", calibration=calibration).status == "already complete"
    other = Calibration(material=gather("text", "code", words(tmp_path, "other")), tokens=TOKENS, memory="4GiB")
    with pytest.raises(UsageError, match="not made with this calibration"):
        quantize(readable, fresh, scheme="int4", calibration=other)
    path = tmp_path / "begun"
    with pytest.raises(Killed):
        quantize(readable, path, scheme="int4", calibration=calibration, calls=KillingCalls(25))
    for another in (other, None):
        with pytest.raises(StoreError, match="the calibration texts differ"):
            quantize(readable, path, scheme="int4", calibration=another)
    extract(readable, path, scheme="int4", restart=True)
    assert verify(path).ok


def test_verified_against_its_checkpoint(readable: Path, tmp_path: Path, fresh: Path) -> None:
    report = verify(fresh, against=readable)
    assert report.ok, report.problems
    assert report.compared_experts == 16
    changed = tmp_path / "changed"
    shutil.copytree(readable, changed)
    file = min(changed.glob("*.safetensors"))
    tensors = load_file(file)
    name = min(name for name in tensors if "experts.5.down_proj" in name)
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    problems = verify(fresh, against=changed).problems
    assert [problem.place for problem in problems] == ["expert 00005"]
    assert "not as far from the checkpoint" in problems[0].message


def test_int8_and_schemes_by_expert(readable: Path, tmp_path: Path, calibration: Calibration) -> None:
    quantize(readable, tmp_path / "int8", scheme="int8", calibration=calibration)
    assert verify(tmp_path / "int8", against=readable).ok
    # What is int8 already is copied, and is not calibrated to be what it was.
    report = quantize(tmp_path / "int8", tmp_path / "copy", dense_scheme="int8")
    assert report.complete


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "deepseek_v3", "llama4", "jetmoe"])
def test_families(name: str, zoo_checkpoint: Callable[..., Path], tmp_path: Path, calibration: Calibration) -> None:
    if name not in ZOO:
        pytest.skip(f"the zoo has no {name}")
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    directory = tmp_path / "checkpoint"
    shutil.copytree(zoo_checkpoint(name, torch.float32), directory)
    add_tokenizer(directory, chat=False)
    quantize(directory, tmp_path / "store", scheme="int4", calibration=calibration)
    store = Store.open(tmp_path / "store")
    errors = [store.manifest.places[key][1].errors for key in store.keys()]
    assert all(one is not None and one.output <= one.nearest for one in errors)
    assert sum(one.output for one in errors if one) < 0.95 * sum(one.nearest for one in errors if one)
    assert verify(tmp_path / "store", against=directory).ok


def test_what_cannot_be_is_refused(readable: Path, tmp_path: Path, calibration: Calibration) -> None:
    with pytest.raises(UsageError, match="none are to be quantised"):
        quantize(readable, tmp_path / "a", scheme="native", dense_scheme="int8", calibration=calibration)
    quantize(readable, tmp_path / "four", scheme="int4")
    with pytest.raises(UsageError, match="none are to be quantised"):
        quantize(tmp_path / "four", tmp_path / "a", dense_scheme="int8", calibration=calibration)
    with pytest.raises(UsageError, match="nothing to calibrate with"):
        quantize(readable, tmp_path / "a", scheme="int4", calibration=Calibration(material=[]))
    short = tmp_path / "short.txt"
    short.write_text("w3 w4")
    with pytest.raises(InputError, match="fewer than 8 tokens"):
        quantize(readable, tmp_path / "a", scheme="int4", calibration=Calibration(material=gather("text", "a", short)))
    tight = Calibration(material=calibration.material, memory="100MiB")
    with pytest.raises(MemoryBudgetError, match="would do"):
        quantize(readable, tmp_path / "b", scheme="int4", calibration=tight)
    extract(readable, tmp_path / "part", experts="0-3")
    with pytest.raises(UnsupportedError, match="lacks some"):
        quantize(tmp_path / "part", tmp_path / "c", scheme="int4", calibration=calibration)
