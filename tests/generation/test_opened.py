import shutil

import pytest

import coterie
from coterie.errors import CheckpointNotFoundError, ReadError
from coterie.extraction import extract
from coterie.store import Store


def test_a_picture_and_a_word_from_python() -> None:
    model = coterie.load("bundled", expert_memory="100%")
    try:
        processors = coterie.processors(model)
        samples = coterie.samples()
        said = []
        for options in ({"audios": [samples["dog.wav"]]}, {"images": [samples["sandal.png"]]}):
            inputs = coterie.build_inputs(processors, "", **options)
            ids = model.generate(**inputs.to(model.dtype), max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
            said.append(processors.tokenizer.decode(ids, skip_special_tokens=True))
        assert said == ["dog", "a photo of a sandal"]
    finally:
        model.coterie.close()


def test_the_store_of_a_model_is_not_opened_again(open_model, tmp_path, monkeypatch) -> None:
    extract("bundled", tmp_path / "store")
    model = open_model(tmp_path / "store")
    monkeypatch.setattr(Store, "open", None)
    assert coterie.processors(model).tokenizer("a")["input_ids"]
    with (tmp_path / "store" / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ReadError, match=r"tokenizer_config\.json was replaced or written to"):
        coterie.processors(model)


def test_processors_of_a_directory_and_of_a_name(directory, tmp_path) -> None:
    assert coterie.processors("bundled").path.name == "bundled"
    assert coterie.processors(str(directory)).path == directory
    shutil.rmtree(directory)
    with pytest.raises(CheckpointNotFoundError, match="no directory"):
        coterie.processors(directory)
