"""What is refused before anything is made."""

import dataclasses
import json
from pathlib import Path

import pytest

from coterie.errors import InputError, MemoryBudgetError, ProfileError, UsageError
from coterie.extraction import extract, quantize
from coterie.fitting import FitRequest, fit, plan_fit
from coterie.survey import gather

from .conftest import text


@pytest.fixture
def refused(readable: Path, tmp_path: Path, request_of):
    """``refused(error, message, **request)``: what is asked for is refused, and nothing is left behind."""

    def check(error: type[Exception], message: str, model: Path | str = readable, **others) -> None:
        before = sorted(tmp_path.iterdir())
        request = request_of(**others)
        for ask in (fit, plan_fit):
            with pytest.raises(error, match=message):
                ask(model, tmp_path / "store", request)
        assert sorted(tmp_path.iterdir()) == before

    return check


def test_domains_and_modalities_that_nobody_knows(refused, fitted) -> None:
    refused(UsageError, "Unknown domain 'cod'.*Did you mean 'code'", domains=("cod",))
    refused(UsageError, "Unknown domain 'latin'", domains=("latin",), profile=fitted.work / "profile.db")
    refused(UsageError, "modality of what is to be recorded 'image'", modalities=("image",))


def test_a_model_that_sees_and_hears_by_texts_alone(refused) -> None:
    message = "serves audio, image beside text.*Add --speech PATH and --images PATH; or --modality text"
    refused(UsageError, message, model="bundled", context=None)


def test_a_profile_of_another_model_or_of_none(refused, fitted, tmp_path: Path) -> None:
    refused(ProfileError, "another model", model="bundled", profile=fitted.work / "profile.db", modalities=("text",))
    refused(ProfileError, r"no\.db", profile=tmp_path / "no.db")


def test_stores_of_which_no_better_one_can_be_made(refused, readable: Path, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("stores")
    extract(readable, folder / "part", experts="0-3")
    refused(UsageError, "is a partial store: it has 8 of 16 experts", model=folder / "part")
    quantize(readable, folder / "lossy", scheme="int4")
    refused(UsageError, "is lossy already", model=folder / "lossy")


def test_a_full_model_that_is_another_or_not_full(refused, readable: Path, tmp_path_factory) -> None:
    refused(UsageError, "have different tokenizers", against="bundled")
    extract(readable, part := tmp_path_factory.mktemp("stores") / "part", experts="0-3")
    refused(UsageError, "part lacks experts", against=part)


def test_memory_that_is_too_small(refused) -> None:
    refused(
        MemoryBudgetError, "will not run in 64.00 MiB, because.*The smallest memory that would do is", memory="64MiB"
    )
    refused(MemoryBudgetError, "The full model has to be run.*--work-memory", work_memory="64MiB")
    refused(UsageError, "fits in 8.00 GiB as it is", bits=None)


def test_text_that_is_scored_and_calibrated_on(refused, material) -> None:
    texts = tuple(gather("text", "code", material[0].path))
    refused(UsageError, "% of the text of code that is to be scored is also calibrated on", texts=texts)


def test_a_domain_that_is_asked_for_and_cannot_be_scored(refused, material, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("single")
    single = gather("text", "single", text(folder, "single", documents=1))
    refused(UsageError, "nothing to score of single", material=(*material, *single), domains=("single",))


def test_questions_that_are_none(refused, tmp_path_factory) -> None:
    file = tmp_path_factory.mktemp("questions") / "q.jsonl"
    file.write_text(json.dumps({"text": "w3"}) + "\n")
    refused(InputError, r"Line 1 of .* is no question", exact_match=(file,))


def test_values_that_cannot_be(material) -> None:
    good = FitRequest(memory="8GiB", material=material)
    good.check()
    for others, message in (
        ({"memory": "lots"}, "lots"),
        ({"work_memory": "some"}, "some"),
        ({"bits": 0.0}, "not a number of bits"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"context": 0}, "context must be at least 1"),
        ({"material": ()}, "no text to calibrate with"),
        ({"texts": (dataclasses.replace(material[0], kind="images"),)}, "measured on texts"),
        ({"dense_scheme": "int99"}, "int99"),
    ):
        with pytest.raises(UsageError, match=message):
            dataclasses.replace(good, **others).check()
