"""A fit from end to end: what its stages find alone, what is kept, and what is done again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from coterie.errors import CoterieError, DiskSpaceError, MissingPackageError, StoreError, UsageError
from coterie.evaluate import evaluate
from coterie.extraction import Allocation, prune, quantize
from coterie.fitting import Fit, fit, plan_fit
from coterie.fitting.work import WorkFolder
from coterie.inspection import verify
from coterie.origins.side_files import side_files
from coterie.store import Store, refresh_files, verify_store
from planner.machines import a_machine

STAGES = ("profile", "plan", "store", "verify", "uniform", "evaluate")
"""Those of a request that measures no speed."""

DOING = {
    "profile": "coterie.fitting.running.survey",
    "plan": "coterie.fitting.sizing.Sizer.choose",
    "store": "coterie.fitting.running.make_allocated",
    "verify": "coterie.fitting.running.verify_store",
    "uniform": "coterie.fitting.running.make_uniform",
    "evaluate": "coterie.fitting.running.side_by_side",
}
"""Stage → what it calls."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def facts(found: Fit) -> dict:
    """What was found, without times, and without what this process took before."""
    plain = found.to_json()
    for made in (plain["made"]["store"], plain["uniform"]["store"]):
        made.pop("seconds")
    plain["sizing"].pop("room")
    plain.pop("commands")
    return plain


def test_every_stage_was_told_of_in_order(fitted) -> None:
    assert list(dict.fromkeys(one.stage for one in fitted.told)) == list(STAGES)
    assert all(0 <= one.done <= one.total for one in fitted.told if one.done is not None)
    assert {one.number for one in fitted.told} == set(range(1, 7))
    assert {one.stages for one in fitted.told} == {6}


def test_the_store_is_what_quantizing_with_the_same_makes(fitted, request_of, tmp_path: Path) -> None:
    from coterie.calibration import Calibration
    from coterie.survey import gather

    texts = fitted.work / "texts/decides"
    material = [one for path in sorted(texts.iterdir()) for one in gather("text", path.name.split("-")[0], path)]
    allocation = Allocation(bits=3.2, profile=fitted.work / "profile.db")
    by_hand = tmp_path / "by-hand"
    calibration = Calibration(material=material, tokens=600, memory="8GiB")
    report = quantize(fitted.model, by_hand, allocation=allocation, calibration=calibration)
    assert fitted.fit.made.allocation == report.allocation
    ours, theirs = Store.open(fitted.store).manifest, Store.open(by_hand).manifest
    assert ours.places == theirs.places
    assert (ours.calibration, ours.allocation) == (theirs.calibration, theirs.allocation)


def test_what_it_says_is_what_the_commands_say_alone(fitted) -> None:
    found = fitted.fit
    texts = sorted((fitted.work / "texts/scored").iterdir())
    settings = {"limit": 200, "memory": "8GiB"}
    alone = evaluate(fitted.store, texts, against=fitted.model, **settings)
    evaluated = found.evaluated.evaluation
    assert [one.comparison for one in alone.texts] == [one.comparison for one in evaluated.texts]
    assert alone.total.comparison == evaluated.total.comparison
    uniform = evaluate(fitted.work / "uniform", texts, against=fitted.model, **settings)
    rows = {row.domain: row for row in found.evaluated.figures}
    assert list(rows) == ["code", "prose", "all"]
    for number, domain in enumerate(("code", "prose")):
        assert rows[domain].kld == alone.texts[number].comparison.kld
        assert rows[domain].beside.other_kld.value == pytest.approx(uniform.texts[number].comparison.kld.value)
    assert rows["all"].uniform.value == pytest.approx(uniform.total.comparison.kld.value)
    verified = verify(fitted.store, against=fitted.model)
    assert verified.ok
    assert (verified.experts, verified.compared_experts) == (found.verified.experts, found.verified.compared_experts)
    assert evaluated.calibrated_on == (0.0, 0.0)


def test_the_uniform_store_is_of_the_same_size_and_calibrated_alike(fitted) -> None:
    found, uniform = fitted.fit, Store.open(fitted.work / "uniform")
    assert found.uniform.same_size
    one = 8 * 2 / 16 / 3  # the bits of an expert more in int3
    assert 0 <= found.made.store.bits - found.uniform.store.bits <= one
    schemes = [uniform.scheme(key) for key in uniform.keys()]
    assert set(schemes) == {"int2", "int3"}
    assert found.uniform.name.startswith(f"int3 for {schemes.count('int3')} experts drawn at random, int2 for")
    assert uniform.manifest.calibration == Store.open(fitted.store).manifest.calibration


def test_the_card_and_the_facts_are_in_the_store_and_belong_there(fitted) -> None:
    found = fitted.fit
    assert Fit.from_json(json.loads((fitted.store / "coterie-fit.json").read_text())) == found
    card = (fitted.store / "README.md").read_text()
    assert not verify_store(fitted.store).problems
    for row in found.evaluated.figures:
        assert f"| {row.domain} | {row.tokens:,} | {row.kld.value:.5f}" in card
        assert f"| {row.predicted:.5f} | {row.uniform.value:.5f}" in card
    for said in (
        f"{found.made.store.bits:.2f} bits per weight",
        found.uniform.name,
        found.sizing.reason,
        "for a memory of 8.00 GiB and a context of 64 tokens",
        "coterie fit ",
        "Speed was not measured.",
        "fewer than 7,680 tokens",
    ):
        assert said in card, said
    assert found.verdict == "open"
    assert found.advice
    assert found.advice in card


def test_a_store_that_is_made_of_it_has_other_figures_and_not_its_card(fitted, tmp_path: Path) -> None:
    quantize(fitted.store, tmp_path / "smaller", dense_scheme="int8")
    assert not {"README.md", "coterie-fit.json"} & set(names(tmp_path / "smaller"))


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "plan"])  # which takes no time
def test_what_fails_goes_on_where_it_was(stage: str, fitted, monkeypatch, tmp_path: Path) -> None:
    done: list[str] = []
    for name, target in DOING.items():
        module, _, function = target.rpartition(".")
        owner = _found(module)
        real = getattr(owner, function)

        def call(*arguments, _name=name, _real=real, **others):
            if _name == "plan" and others.get("measure", True) is False and "profile" not in others:
                return _real(*arguments, **others)  # what is asked beforehand
            done.append(_name)
            if _name == failing[0]:
                raise KeyboardInterrupt
            return _real(*arguments, **others)

        monkeypatch.setattr(owner, function, call)
    before = STAGES[: STAGES.index(stage)]
    failing = [stage]
    store = tmp_path / "store"
    unfinished(fitted, tmp_path / "store.work", stage)
    with pytest.raises(KeyboardInterrupt):
        fit(fitted.model, store, fitted.request)
    assert done == [stage]
    assert names(tmp_path) == ["store.work"]
    done.clear()
    failing[0] = ""
    found = fit(fitted.model, store, fitted.request)
    assert done == list(STAGES[len(before) :])
    assert facts(found) == facts(fitted.fit)
    assert names(tmp_path) == ["store"]


def _found(path: str):
    import importlib

    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def unfinished(fitted, work: Path, stage: str) -> None:
    """A copy of the work of a fit as it was when a stage began."""
    shutil.copytree(fitted.work, work)
    shutil.copytree(fitted.store, work / "store")
    for name in ("README.md", "coterie-fit.json"):
        (work / "store" / name).unlink()
    refresh_files(work / "store", side_files(work / "store"))
    folder = WorkFolder(work, fitted.fit.settings)
    for name in STAGES[STAGES.index(stage) :]:
        folder.forget(name)
    folder.finish("speed", {})  # writes the record


def test_an_evaluation_goes_on_with_the_window_where_it_stopped(fitted, tmp_path: Path) -> None:
    unfinished(fitted, tmp_path / "store.work", "evaluate")

    def stop(progress) -> None:
        if progress.what == "the uniform store" and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(fitted.model, tmp_path / "store", fitted.request, progress=stop)
    kept = (tmp_path / "store.work/store.windows.jsonl").stat()
    found = fit(fitted.model, tmp_path / "store", fitted.request, keep_work=True)
    assert (tmp_path / "store.work/store.windows.jsonl").stat().st_size == kept.st_size
    assert facts(found) == facts(fitted.fit)


def test_a_finished_store_is_told_of_and_not_made_again(fitted, monkeypatch) -> None:
    monkeypatch.setattr("coterie.fitting.running._Run", None)
    assert fit(fitted.model, fitted.store, fitted.request, keep_work=True) == fitted.fit
    for others in ({"bits": 3.5}, {"limit": 100}):
        with pytest.raises(UsageError, match="is there already, and was not made by this command"):
            fit(fitted.model, fitted.store, dataclasses.replace(fitted.request, **others), keep_work=True)


def test_another_request_is_refused_or_keeps_what_is_the_same(fitted, tmp_path: Path, monkeypatch) -> None:
    store = tmp_path / "store"
    unfinished(fitted, tmp_path / "store.work", "uniform")
    other = dataclasses.replace(fitted.request, bits=3.6, compare=False)
    with pytest.raises(UsageError, match="unfinished work of another request: bits, compare differ"):
        fit(fitted.model, store, other)
    done = [one.name for one in plan_fit(fitted.model, store, fitted.request).stages if one.finished]
    assert done == ["profile", "plan", "store", "verify"]
    assert [one.name for one in plan_fit(fitted.model, store, other).stages if one.finished] == ["profile"]
    monkeypatch.setattr("coterie.fitting.running.survey", None)  # what is recorded stays
    found = fit(fitted.model, store, other, restart=True)
    assert found.made.store.bits == pytest.approx(3.6, abs=0.1)
    assert names(tmp_path) == ["store"]


def test_a_store_for_domains_leaves_experts_out_and_says_what_the_others_pay(
    fitted, request_of, tmp_path: Path
) -> None:
    request = request_of(domains=("code",), bits=2.2, profile=fitted.work / "profile.db", measure=True)
    found = fit(fitted.model, tmp_path / "store", request, machine=a_machine())
    made = found.made
    assert made.allocation.facts.left_out > 0
    assert made.store.experts_present == 16 - made.allocation.facts.left_out
    assert (found.evaluated.decisive, found.missing) == ("code", "mask")
    assert found.evaluated.evaluation.missing == "mask"
    rows = {row.domain: row for row in found.evaluated.figures}
    assert rows["code"].predicted is not None
    assert rows["prose"].predicted > rows["code"].predicted
    assert rows["prose"].kld.value > rows["code"].kld.value
    # No scheme is so small.
    assert (found.uniform.same_size, found.uniform.name) == (False, "int2")
    card = (tmp_path / "store/README.md").read_text()
    assert f"{made.allocation.facts.left_out} are left out, and it opens with `--missing mask`" in card
    assert "What the others lose is the price of that." in card
    assert "the nearest uniform store (int2)" in card
    # Its speed was measured, and stands beside what was expected.
    assert found.speed.warm.new_tokens == 32
    assert f"| {found.speed.warm.decode_tokens_per_s:.1f} |" in card
    assert "--missing mask" in found.commands[-1]
    assert str(request.profile) in card


def test_a_native_store_is_fitted_like_its_checkpoint_and_need_not_be_compared(fitted, tmp_path: Path) -> None:
    from coterie.extraction import extract

    extract(fitted.model, tmp_path / "native")
    request = dataclasses.replace(fitted.request, compare=False)
    found = fit(tmp_path / "native", tmp_path / "store", request)
    assert found.made.allocation == fitted.fit.made.allocation
    assert Store.open(tmp_path / "store").manifest.places == Store.open(fitted.store).manifest.places
    assert [row.kld for row in found.evaluated.figures] == [row.kld for row in fitted.fit.evaluated.figures]
    assert found.verified.against is None
    assert (found.verdict, found.uniform, found.advice) == ("not compared", None, "")
    assert "No uniform store was made to compare with" in (tmp_path / "store/README.md").read_text()


def test_a_pruned_store_is_compared_with_what_it_was_pruned_of(fitted, tmp_path: Path) -> None:
    prune(fitted.model, tmp_path / "pruned", keep=6, profile=fitted.work / "profile.db")
    request = dataclasses.replace(fitted.request, against=fitted.model, compare=False, bits=6.0)
    found = fit(tmp_path / "pruned", tmp_path / "store", request)
    evaluated = found.evaluated.evaluation
    assert (evaluated.against.experts, evaluated.model.experts) == (16, 12)
    alone = evaluate(
        tmp_path / "store", sorted((fitted.work / "texts/scored").iterdir()), against=fitted.model, limit=200
    )
    assert alone.total.comparison == evaluated.total.comparison
    assert f"--against {fitted.model}" in found.commands[0]


def test_a_store_that_is_damaged_ends_it(fitted, tmp_path: Path, monkeypatch) -> None:
    def damage(progress) -> None:
        if progress.stage == "verify" and progress.done is None:
            (file,) = (tmp_path / "store.work/store/experts/text").glob("*000.safetensors")
            content = bytearray(file.read_bytes())
            content[5000] ^= 1
            file.write_bytes(content)

    with pytest.raises(StoreError, match="is not what was to be written: experts/text"):
        fit(fitted.model, tmp_path / "store", fitted.request, progress=damage)


def test_a_full_disk_is_told_before_anything_is_made(fitted, tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr("coterie.fitting.checks.shutil.disk_usage", lambda place: usage)
    with pytest.raises(DiskSpaceError, match=r"The work needs .*\(store .*, uniform .*, evaluate"):
        fit(fitted.model, tmp_path / "store", fitted.request)
    assert not (tmp_path / "store").exists()


def test_what_is_in_the_way_is_not_touched(fitted, tmp_path: Path) -> None:
    (tmp_path / "store.work").mkdir()
    (tmp_path / "store.work/mine.txt").write_text("mine")
    with pytest.raises(CoterieError, match="it has something else"):
        fit(fitted.model, tmp_path / "store", fitted.request)
    assert names(tmp_path / "store.work") == ["mine.txt"]


def test_what_is_finished_here_workers_of_a_cluster_need_not_do_again(request_of, monkeypatch) -> None:
    request = request_of()
    shared = dataclasses.replace(request, ray="auto")
    assert shared.settings("model", "") == request.settings("model", "")
    monkeypatch.setattr("coterie.cluster.connection.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="need ray, which is not installed"):
        shared.check()
