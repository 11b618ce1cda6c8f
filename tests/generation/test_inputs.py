import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from coterie.errors import InputError, LoadError
from coterie.generation.inputs import build_inputs
from coterie.generation.picture import read_picture
from coterie.generation.processors import Processors
from coterie.generation.sound import read_sound

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
SOUND = "<|audio_start|><|audio_pad|><|audio_end|>"


@pytest.fixture(autouse=True)
def no_torchvision(request, monkeypatch):
    """What is tested is the way without torchvision, wherever the tests run."""
    monkeypatch.setattr("transformers.utils.is_torchvision_available", lambda: False)


@pytest.fixture
def stock(processors):
    """Transformers' own processor, with a stand-in for the one part that needs torchvision and is not used here."""
    from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import Qwen3OmniMoeProcessor

    processor = Qwen3OmniMoeProcessor.__new__(Qwen3OmniMoeProcessor)
    processor.tokenizer = processors.tokenizer
    processor.image_processor = processors.image_processor
    processor.feature_extractor = processors.feature_extractor
    processor.video_processor = SimpleNamespace(merge_size=2, model_input_names=[])
    processor.chat_template = None
    for kind in ("image", "audio", "video"):
        for name in (f"{kind}_token", f"{kind}_token_id"):
            setattr(processor, name, getattr(processors.tokenizer, name))
    for name in ("vision_bos_token", "vision_eos_token", "audio_bos_token", "audio_eos_token"):
        setattr(processor, name, getattr(processors.tokenizer, name))
    return processor


def decode(processors: Processors, ids: torch.Tensor) -> str:
    return processors.tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("text", "images", "audios"),
    [
        ("Once upon", [], []),
        (f"What is {PICTURE}?", ["sandal.png"], []),
        (f"{PICTURE}{PICTURE}", ["sandal.png", "ankle-boot.png"], []),
        (f"{SOUND}", ["dog.wav"][:0], ["dog.wav"]),
        (f"a {SOUND} b {PICTURE} c {SOUND} d", ["ankle-boot.png"], ["go.wav", "dog.wav"]),
    ],
)
def test_inputs_equal_those_of_transformers_processor(processors, stock, data, text, images, audios):
    options = {}
    if images:
        options["images"] = [read_picture(data / name) for name in images]
    if audios:
        options["audio"] = [read_sound(data / name, rate=16000) for name in audios]
    expected = stock(text=[text], return_tensors="pt", **options)
    got = build_inputs(processors, text, images=[data / n for n in images], audios=[data / n for n in audios])
    assert set(got.keys()) == set(expected.keys())
    for name in expected.keys():
        assert torch.equal(got[name], torch.as_tensor(expected[name])), name


def test_media_that_are_not_mentioned_come_first(processors, data):
    inputs = build_inputs(processors, "is it?", images=[data / "sandal.png"], audios=[data / "go.wav"])
    text = decode(processors, inputs["input_ids"][0])
    assert text.startswith("<|vision_start|>" + 16 * "<|image_pad|>" + "<|vision_end|><|audio_start|><|audio_pad|>")
    assert text.endswith("<|audio_pad|><|audio_end|>is it?")
    mentioned = build_inputs(
        processors, PICTURE + SOUND + "is it?", images=[data / "sandal.png"], audios=[data / "go.wav"]
    )
    assert torch.equal(inputs["input_ids"], mentioned["input_ids"])


def test_a_path_serves_as_well_as_processors(bundled, processors):
    assert torch.equal(build_inputs(bundled, "春")["input_ids"], build_inputs(processors, "春")["input_ids"])


def test_batches_are_padded_on_the_left(processors, data):
    inputs = build_inputs(processors, ["春", f"{PICTURE} is it a shoe"], images=[data / "sandal.png"])
    alone = build_inputs(processors, "春")["input_ids"][0]
    assert inputs["attention_mask"][0].sum() == len(alone)
    assert torch.equal(inputs["input_ids"][0, -len(alone) :], alone)
    assert bool(inputs["attention_mask"][1].all())


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("", [], "The prompt is empty"),
        (["a", ""], [], "Prompt 2 of 2 is empty"),
        ([], [], "There is no prompt"),
        (f"{PICTURE}", [], r"mentions 1 picture\(s\), but 0 were given"),
        (f"{PICTURE}", ["sandal.png"] * 2, r"mentions 1 picture\(s\), but 2 were given"),
        (["a", "b"], ["sandal.png"], r"for 2 prompts that mention none"),
        ("a", ["dog.wav"], "not a picture"),
    ],
)
def test_what_does_not_go_together(processors, data, text, images, message):
    with pytest.raises(InputError, match=message):
        build_inputs(processors, text, images=[data / name for name in images])


def test_a_very_oblong_picture_is_refused(processors, tmp_path):
    from PIL import Image

    Image.new("RGB", (1000, 1)).save(tmp_path / "line.png")
    with pytest.raises(InputError, match="aspect ratio"):
        build_inputs(processors, "a", images=[tmp_path / "line.png"])


def test_sounds_too_short_or_too_long_for_the_model(processors, tmp_path):
    import wave

    limit = processors.max_seconds()
    assert limit == pytest.approx(4096 / 13, rel=1e-3)
    for samples, message in ((200, "too short: 200 samples"), (int(16000 * limit) + 16000, "takes 315.1 s at most")):
        with wave.open(str(tmp_path / "a.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(bytes(2 * samples))
        with pytest.raises(InputError, match=message):
            build_inputs(processors, "a", audios=[tmp_path / "a.wav"])


def test_the_full_processor_is_used_where_there_is_one(bundled, stock, data, monkeypatch):
    own = Processors(bundled)
    monkeypatch.setattr(own, "_qwen", None)  # another model's directory
    monkeypatch.setitem(own.__dict__, "full", stock)
    files = {"images": [data / "sandal.png"], "audios": [data / "dog.wav"]}
    calls = []
    monkeypatch.setattr(type(stock), "__call__", _recorded(type(stock).__call__, calls))
    got = build_inputs(own, "what?", **files)
    assert calls == [[f"{PICTURE}{SOUND}what?"]]
    expected = build_inputs(Processors(bundled), "what?", **files)
    assert all(torch.equal(got[name], expected[name]) for name in expected.keys())


def _recorded(function, calls):
    def wrapper(self, *, text, **options):
        calls.append(list(text))
        return function(self, text=text, **options)

    return wrapper


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_qwen3_vl_gets_the_token_types_its_positions_need(directory, data):
    rewrite(directory / "config.json", model_type="qwen3_vl_moe")
    inputs = build_inputs(directory, f"a {PICTURE}", images=[data / "sandal.png"])
    image_id = json.loads((directory / "config.json").read_text())["image_token_id"]
    assert torch.equal(inputs["mm_token_type_ids"], (inputs["input_ids"] == image_id).long())
    assert inputs["mm_token_type_ids"].sum() == 16
    with pytest.raises(InputError, match="qwen3_vl_moe model does not take sounds"):
        build_inputs(directory, "a", audios=[data / "dog.wav"])


def test_the_thinker_config_of_a_full_omni_checkpoint_counts(directory, data):
    thinker = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(
        json.dumps({"model_type": "qwen3_omni_moe", "thinker_config": thinker, "talker_config": {"image_token_id": 1}})
    )
    inputs = build_inputs(directory, "", images=[data / "sandal.png"])
    assert (inputs["input_ids"] == thinker["image_token_id"]).sum() == 16


def test_models_that_need_their_own_processor_name_the_extra(directory, data):
    rewrite(directory / "config.json", model_type="qwen2_5_omni")
    rewrite(directory / "processor_config.json", processor_class="Qwen2_5OmniProcessor")
    rewrite(directory / "preprocessor_config.json", processor_class="Qwen2_5OmniProcessor")
    assert build_inputs(directory, "text is fine")["input_ids"].shape[0] == 1
    with pytest.raises(InputError, match=r"qwen2_5_omni.*torchvision.*pip install 'torchvision'"):
        build_inputs(directory, "a", images=[data / "sandal.png"])


def test_text_models_take_no_pictures(directory, data):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (directory / name).unlink()
    rewrite(directory / "config.json", model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"])
    with pytest.raises(InputError, match="qwen3_moe model does not take pictures"):
        build_inputs(directory, "a", images=[data / "sandal.png"])


def test_a_foreign_tokenizer_that_fits_the_embedding_is_found(directory):
    rewrite(directory / "config.json", image_token_id=11)
    with pytest.raises(LoadError, match=r"'<\|image_pad\|>' has id 8, but image_token_id in config\.json is 11"):
        Processors(directory, embedding_rows=8192)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_no_usable_config(directory, content):
    (directory / "config.json").unlink()
    if content is not None:
        (directory / "config.json").write_text(content)
    with pytest.raises(LoadError, match=r"config\.json"):
        Processors(directory)


def test_the_bundled_model_understands_what_it_hears_and_sees(bundled, processors, data):
    """Real inputs give real outputs: features, placeholders and positions are what the model was trained on."""
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

    model = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
        bundled, experts_implementation="eager", dtype=torch.bfloat16
    )
    for files, expected in (
        ({"audios": [data / "dog.wav"]}, "dog"),
        ({"audios": [data / "go.wav"]}, "go"),
        ({"images": [data / "sandal.png"]}, "a photo of a sandal"),
        ({"images": [data / "ankle-boot.png"]}, "a photo of an ankle boot"),
    ):
        inputs = build_inputs(processors, "", **files).to(model.dtype)
        answer = processors.tokenizer(expected + "<|endoftext|>", return_tensors="pt")["input_ids"]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            greedy = model(**inputs).logits.argmax(-1)
        # What greedy decoding would have said, in one pass: each token of the answer is the best after those before it.
        assert torch.equal(greedy[:, -answer.shape[1] - 1 : -1], answer), expected


def test_text_that_is_not_utf8_is_refused_and_what_the_locale_could_not_read_is_read(processors):
    for text in ("\udcff\udcfe abc", "a\ud800"):
        with pytest.raises(InputError, match=r"^The prompt is not UTF-8 text \(from character"):
            build_inputs(processors, text)
    with pytest.raises(InputError, match=r"^Prompt 2 of 2 is not UTF-8"):
        build_inputs(processors, ["a", "\udc80"])
    with pytest.raises(InputError, match="must be a text"):
        build_inputs(processors, [5])
    ascii_locale = "Größe".encode().decode("ascii", "surrogateescape")
    assert build_inputs(processors, ascii_locale)["input_ids"].equal(build_inputs(processors, "Größe")["input_ids"])
