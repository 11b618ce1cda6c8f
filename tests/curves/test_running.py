import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from coterie.curves import Curve, CurveAxes, CurvePoint, curve, measuring
from coterie.errors import CoterieError, OutputError, ProfileError, UsageError
from coterie.evaluate import evaluate
from coterie.extraction import extract, quantize

SMALL = {"context": 16, "expert_memory": "100%", "limit": 48}


@pytest.fixture(autouse=True)
def _no_advice() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The experts have")
        yield


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_point_is_what_a_partial_store_gives(readable: Path, partial: Path, words, tmp_path: Path) -> None:
    text = words(80)
    found = curve(readable, [text], CurveAxes(coverage=("3", "100%")), **SMALL)
    *lacking, whole = found.points
    for point in lacking:
        by_hand = evaluate(partial, [text], against=readable, missing=point.setting.missing, **SMALL)
        assert point.total == by_hand.total
        assert (point.experts, point.total_experts, point.texts[0].name) == (6, 16, str(text))
    assert [point.setting.missing for point in lacking] == ["mask", "drop", "nearest"]
    assert (whole.kld.value, whole.experts, whole.total.comparison.identical) == (0.0, 16, 48)


def test_a_scheme_is_what_a_quantised_store_gives(readable: Path, words, tmp_path: Path) -> None:
    text = words(80)
    axes = CurveAxes(schemes=("int4", "int2"), experts_per_token=(1,), stores=(tmp_path / "int4",))
    quantize(readable, tmp_path / "int4", scheme="int4", dense_scheme="native")
    found = curve(readable, {"some": text}, axes, **SMALL)
    one, four, two, stored = found.points
    by_hand = evaluate(tmp_path / "int4", [text], against=readable, **SMALL)
    assert four.total == by_hand.total == stored.total
    assert (four.bits, four.expert_nbytes) == (stored.bits, stored.expert_nbytes)
    assert two.bits < four.bits < one.bits == 16
    assert two.kld.value > four.kld.value > 0
    assert one.total == evaluate(readable, [text], against=readable, experts_per_token=1, **SMALL).total
    assert one.token_nbytes * 2 == two.token_nbytes * one.expert_nbytes / two.expert_nbytes
    assert Curve.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_experts_that_do_not_fit_quantised_are_stored_for_a_while(readable: Path, words, tmp_path: Path) -> None:
    text, seen = words(80), []
    small = SMALL | {"expert_memory": "50%"}
    output = tmp_path / "curve.json"
    inside = lambda progress: seen.append(names(tmp_path / "curve.work"))  # noqa: E731
    found = curve(readable, [text], CurveAxes(schemes=("int4",)), output=output, progress=inside, **small)
    assert any(name.startswith("store-") for name in seen[-2])
    budget = SMALL | {"expert_memory": None, "memory": "16GiB"}
    assert found.points[0].total == curve(readable, [text], CurveAxes(schemes=("int4",)), **budget).points[0].total
    assert not (tmp_path / "curve.work").exists()


def test_what_is_read_is_told_with_drop_cold(readable: Path, words) -> None:
    small = SMALL | {"expert_memory": "40%"}
    text = words(80)
    off, some, most = curve(readable, [text], CurveAxes(drop_cold=(0.5, 1.0)), **small).points
    assert (off.kld.value, off.reads.left_out) == (0.0, 0)
    assert off.reads.bytes_per_token > some.reads.bytes_per_token > most.reads.bytes_per_token
    assert 0 < some.kld.value < most.kld.value
    by_hand = evaluate(readable, [text], against=readable, drop_cold=0.5, **small)
    assert (some.total, some.reads) == (by_hand.total, by_hand.reads)


def test_the_smallest_sets(readable: Path, recorded: Path, words, tmp_path: Path) -> None:
    texts = {"code": words(80), "prose": words(80, seed=1)}
    axes = CurveAxes(smallest=(0.02,), missing=("drop",))
    found = curve(readable, texts, axes, profile=recorded, output=tmp_path / "c.json", **SMALL)
    assert [(one.domain, one.bound) for one in found.smallest] == [("code", 0.02), ("prose", 0.02)]
    assert found.points == ()
    for one in found.smallest:
        assert one.kld.value <= one.bound
        assert one.experts == sum(len(ids) for ids in one.chosen.values()) <= 16
        ids = {int(name[-3:]): ids for name, ids in one.chosen.items()}
        store = tmp_path / f"{one.domain}-{one.bound}"
        text = texts[one.domain]
        extract(readable, store, experts=ids)
        by_hand = evaluate(store, [text], against=readable, missing="drop", **SMALL)
        assert by_hand.total.comparison.kld == one.kld
    assert [one.bound for one in found.shared] == [0.02]
    assert Curve.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_an_interrupted_curve_goes_on_where_it_was(readable: Path, words, tmp_path: Path, monkeypatch) -> None:
    axes = CurveAxes(coverage=("3", "5"), missing=("mask",))
    texts, output = [words(80), words(40, seed=3)], tmp_path / "curve.json"

    def stop(progress) -> None:
        if progress.done == 1 and progress.tokens is not None and progress.tokens.done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curve(readable, texts, axes, output=output, progress=stop, **SMALL)
    assert names(tmp_path)[:2] == ["curve.points.jsonl", "curve.work"]
    assert sorted(name.split("-")[0] for name in names(tmp_path / "curve.work")) == ["logits", "windows"]

    told = []
    found = curve(readable, texts, axes, output=output, progress=told.append, **SMALL)
    first = next(one for one in told if one.tokens is not None)
    assert (first.done, first.tokens.earlier > 0) == (1, True)
    assert found == curve(readable, texts, axes, **SMALL)
    assert not (tmp_path / "curve.work").exists()

    # More points: only these are measured.
    measured = []
    monkeypatch.setattr(
        "coterie.curves.running.measure_point",
        lambda task, setting, *rest: (measured.append(setting.label), measuring.measure_point(task, setting, *rest))[1],
    )
    more = curve(readable, texts, CurveAxes(coverage=("3", "5", "7"), missing=("mask",)), output=output, **SMALL)
    assert measured == ["7 experts, by id, mask"]
    assert more.points[:2] == found.points


def test_logits_of_the_full_model_are_kept_where_they_are_wanted(readable: Path, words, tmp_path: Path) -> None:
    axes = CurveAxes(coverage=("3",), missing=("mask",))
    text = words(60)
    curve(readable, [text], axes, reference=tmp_path / "kept", **SMALL)
    assert names(tmp_path / "kept") == ["all"]
    made = (tmp_path / "kept/all/00000-00000.logits").stat().st_mtime_ns
    curve(readable, [text], CurveAxes(coverage=("4",), missing=("mask",)), reference=tmp_path / "kept", **SMALL)
    assert (tmp_path / "kept/all/00000-00000.logits").stat().st_mtime_ns == made


def test_points_of_another_curve_are_refused(readable: Path, words, tmp_path: Path) -> None:
    axes = CurveAxes(coverage=("3",), missing=("mask",))
    output = tmp_path / "curve.json"
    curve(readable, [words(60)], axes, output=output, **SMALL)
    content = (tmp_path / "curve.points.jsonl").read_bytes()
    with pytest.raises(UsageError, match="points of another curve: limit differ"):
        curve(readable, [words(60)], axes, output=output, **SMALL | {"limit": 20})
    assert (tmp_path / "curve.points.jsonl").read_bytes() == content
    assert names(tmp_path) == ["curve.points.jsonl", words(60).name]
    # Half a line, which a kill may leave, is measured anew.
    (tmp_path / "curve.points.jsonl").write_bytes(content[:-9])
    curve(readable, [words(60)], axes, output=output, **SMALL)
    assert (tmp_path / "curve.points.jsonl").read_bytes() == content
    (tmp_path / "curve.points.jsonl").write_text('{"a": 1}\n{"key": 3}\n')
    with pytest.raises(UsageError, match="no record of a curve's points"):
        curve(readable, [words(60)], axes, output=output, **SMALL)


def test_a_point_is_read_back_as_it_was(readable: Path, words) -> None:
    (point,) = curve(readable, [words(40)], CurveAxes(coverage=("3",), missing=("drop",)), **SMALL).points
    assert CurvePoint.from_json(json.loads(json.dumps(point.to_json()))) == point
    for wrong in (
        {},
        point.to_json() | {"more": 1},
        point.to_json() | {"experts": "3"},
        point.to_json() | {"bits": None},
    ):
        with pytest.raises(ValueError, match=r"."):
            CurvePoint.from_json(wrong)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (CurveAxes(coverage=("1",)), "fewer than its tokens use, 2"),
        (CurveAxes(coverage=("9",)), "which has 8"),
        (CurveAxes(coverage=("4",), by=("reap",), domains=("cod",)), "Unknown domain 'cod'"),
        (CurveAxes(smallest=(0.1,)), "Unknown domain"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(
    readable: Path, recorded: Path, words, axes: CurveAxes, message: str, monkeypatch
) -> None:
    monkeypatch.setattr("coterie.curves.running.measure_point", None)
    with pytest.raises(UsageError) as found:
        curve(readable, [words(40)], axes, profile=recorded, **SMALL)
    assert message in str(found.value)


def test_a_wrong_store_or_file_is_said_before_anything_is_measured(
    readable: Path, partial: Path, words, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("coterie.curves.running.measure_point", None)
    for wrong in (
        {"stores": (partial,)},
        {"stores": (tmp_path / "nowhere",)},
        {"expert_schemes": (tmp_path / "nowhere.json",)},
    ):
        with pytest.raises(CoterieError):
            curve(readable, [words(40)], CurveAxes(schemes=("int4",), **wrong), **SMALL)


def test_files_of_others_beside_the_output_stay(readable: Path, words, tmp_path: Path) -> None:
    mine = tmp_path / "curve.work" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    curve(readable, [words(40)], CurveAxes(experts_per_token=(1,)), output=tmp_path / "curve.json", **SMALL)
    assert mine.read_text() == "mine"
    assert names(mine.parent) == ["thesis.txt"]


def test_other_mistakes(readable: Path, partial: Path, omni: Path, recorded: Path, words, tmp_path: Path) -> None:
    text = words(40)
    with pytest.raises(UsageError, match="partial store"):
        curve(partial, [text], **SMALL)
    with pytest.raises(UsageError, match="no text"):
        curve(readable, [], **SMALL)
    with pytest.raises(UsageError, match="named twice"):
        curve(readable, [text, text], **SMALL)
    with pytest.raises(UsageError, match="is a partial store"):
        curve(readable, [text], CurveAxes(stores=(partial,)), **SMALL)
    with pytest.raises(UsageError, match="store of another model"):
        curve(readable, [text], CurveAxes(stores=(omni,)), **SMALL)
    with pytest.raises(ProfileError):
        curve(omni, [text], CurveAxes(coverage=("50%",)), profile=recorded, **SMALL)
    with pytest.raises(OutputError, match="cannot be made"):
        curve(readable, [text], output=tmp_path / "nowhere" / "x.json", **SMALL)
