"""A fit of a model that hears and sees: sounds and pictures decide, and others are scored."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

from coterie.evaluate import evaluate
from coterie.fitting import FitRequest, fit, plan_fit
from coterie.fitting.held_out import digest, divide
from coterie.survey import gather
from coterie.survey.answering import media_files
from zoo.tokenizer import add_processor

from .conftest import Fitted, text

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds and pictures: those of the tests, and pictures that differ in size."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("media")
    (folder / "images").mkdir()
    with Image.open(DATA / "sandal.png") as picture:
        for number in range(5):
            picture.convert("RGB").resize((64 + 8 * number, 64)).save(folder / "images" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def material(files: Path):
    return (
        *(one for domain in ("code", "prose") for one in gather("text", domain, text(files, domain))),
        *gather("speech", "speech", DATA / "words/t*.flac"),
        *gather("images", "shoes", files / "images"),
    )


@pytest.fixture(scope="module")
def hearing(omni: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-Omni with all that makes its inputs."""
    directory = shutil.copytree(omni, tmp_path_factory.mktemp("hearing") / "checkpoint")
    add_processor(directory)
    return directory


@pytest.fixture(scope="module")
def fitted(hearing: Path, material, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    store = tmp_path_factory.mktemp("fitted") / "store"
    request = FitRequest(
        memory="8GiB",
        context=256,
        bits=4.0,
        material=material,
        calibration_tokens=600,
        limit=100,
        measure=False,
        component="thinker",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit(hearing, store, request, keep_work=True)
    return Fitted(hearing, store, store.with_name("store.work"), request, found, [])


def test_no_sound_and_no_picture_decides_and_is_scored(material, tmp_path: Path) -> None:
    division = divide(material, (), tmp_path, tokens=600)
    decides = {digest(one.path) for one in division.decides if one.kind != "text"}
    scored = {digest(one.path) for one in division.media}
    assert not decides & scored
    assert decides | scored == {digest(one.path) for one in material if one.kind != "text"}
    for kind in ("speech", "images"):
        assert any(one.kind == kind for one in division.decides)
        assert any(one.kind == kind for one in division.media)
    # Their content alone says it; one alone decides.
    assert set(divide(material[::-1], (), tmp_path, tokens=600).media) == set(division.media)
    single = [one for one in material if one.kind != "images"] + [one for one in material if one.kind == "images"][:1]
    assert not [one for one in divide(single, (), tmp_path, tokens=600).media if one.kind == "images"]


@pytest.mark.slow
def test_the_card_has_their_divergences_beside_what_was_predicted(fitted: Fitted, material, tmp_path: Path) -> None:
    found = fitted.fit
    rows = {row.domain: row for row in found.evaluated.figures}
    assert list(rows) == ["code", "prose", "speech", "images of shoes", "all"]
    assert [row.kind for row in rows.values()] == ["text", "text", "speech", "images", "text"]
    assert rows["all"].tokens == rows["code"].tokens + rows["prose"].tokens
    assert found.evaluated.decisive == "all"
    media = media_files(divide(material, (), tmp_path, tokens=600).media)
    texts = sorted((fitted.work / "texts/scored").iterdir())
    alone = evaluate(
        fitted.store, texts, media=media, against=fitted.model, component="thinker", limit=100, memory="8GiB"
    )
    card = (fitted.store / "README.md").read_text()
    for quality in alone.media:
        row = rows[quality.name]
        assert row.kld.value == pytest.approx(quality.comparison.kld.value)
        assert row.predicted > 0
        assert row.uniform.value > 0
        assert f"| {row.domain} | {row.tokens:,} | {row.kld.value:.5f}" in card
    assert "speech and images of shoes: of sounds and pictures that were not calibrated on" in card
    assert "Not measured" not in card


@pytest.mark.slow
def test_how_many_are_answered_is_planned(fitted: Fitted, tmp_path: Path) -> None:
    planned = plan_fit(fitted.model, tmp_path / "other", fitted.request)
    assert set(planned.scored_media) == {"speech", "images of shoes"}
    assert min(planned.scored_media.values()) >= 1
