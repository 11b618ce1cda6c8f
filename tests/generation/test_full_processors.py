"""Inputs of pictures, sounds and videos compared with transformers' own processors, which need torchvision.

``make test-torchvision`` runs this in an environment that has it.
"""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("torchvision")
pytest.importorskip("av")

from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

import coterie
from coterie.errors import InputError
from coterie.generation.completion import complete
from coterie.generation.containers import VideoFacts, open_container
from coterie.generation.inputs import build_inputs
from coterie.generation.picture import read_picture
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling
from coterie.generation.sound import read_sound
from coterie.generation.video_options import VideoOptions
from coterie.generation.video_settings import video_settings
from films import write_film
from zoo.files import stock
from zoo.matrix import MATRIX
from zoo.own_processors import save_with_processor

PICTURE, SOUND, VIDEO = (
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|audio_start|><|audio_pad|><|audio_end|>",
    "<|vision_start|><|video_pad|><|vision_end|>",
)
PIXELS = 4096


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("films") / "a.mp4", tone=440.0, frames=30, size=(170, 130))


def frames_of(film, settings, options):
    with open_container(film, what="The video") as container:
        facts = container.video
        numbers = settings.chosen(facts, options)
        known = VideoMetadata(total_num_frames=facts.frames, fps=facts.rate, frames_indices=list(numbers))
        return np.stack([np.array(one) for one in container.frames(numbers)]), known, len(numbers) / facts.seconds


def assert_same(expected, got):
    assert set(expected) == set(got) - {"use_audio_in_video"}
    for name in expected:
        assert torch.equal(torch.as_tensor(expected[name]), got[name]), name


@pytest.mark.parametrize("options", [{}, {"frames": 6}, {"fps": 4}, {"sound": False}])
def test_qwen3_omni(bundled, film, data, options):
    own = Processors(bundled)
    stock = AutoProcessor.from_pretrained(bundled)
    wanted = VideoOptions(pixels=PIXELS, **options)
    frames, known, rate = frames_of(film, own.video_settings, wanted)
    text = f"a {PICTURE} b {VIDEO} c {SOUND}"
    got = build_inputs(
        own, text, images=[data / "sandal.png"], audios=[data / "dog.wav"], videos=[film], video_options=wanted
    )
    sounds, heard = [read_sound(data / "dog.wav", rate=16000)], {}
    if wanted.sound is not False:
        sounds = [read_sound(film, rate=16000), *sounds]
        # Older releases have another name for it.
        new = hasattr(type(stock), "load_audio_from_video")
        heard = {"load_audio_from_video": True, "audio_from_video_indices": [0, None]} if new else {}
        heard = heard or {"use_audio_in_video": True}
    expected = _omni(stock, text, data, sounds, frames, known, rate, heard)
    assert_same(expected, got)


def _omni(stock, text, data, sounds, frames, known, rate, heard):
    size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    return stock(
        text=[text],
        images=[read_picture(data / "sandal.png")],
        audio=sounds,
        videos=[frames],
        return_tensors="pt",
        videos_kwargs={
            "do_sample_frames": False, "fps": rate, "video_metadata": [known], "size": size,
            **({"use_audio_in_video": True} if "use_audio_in_video" in heard else {}),
        },
        **{name: value for name, value in heard.items() if name != "use_audio_in_video"},
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"frames": 3}, {"fps": 4}])
def test_qwen3_vl(directory, film, data, options):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "qwen3_vl_moe"}))
    settings = {
        "size": {"shortest_edge": 256, "longest_edge": 32_768}, "patch_size": 4, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3, "video_processor_type": "Qwen3VLVideoProcessor",
    }  # fmt: skip
    (directory / "video_preprocessor_config.json").write_text(json.dumps(settings))
    for name in ("processor_config.json", "preprocessor_config.json"):
        known = json.loads((directory / name).read_text()) | {"processor_class": "Qwen3VLProcessor"}
        (directory / name).write_text(json.dumps(known))
    own, stock = Processors(directory), AutoProcessor.from_pretrained(directory)
    assert type(stock).__name__ == "Qwen3VLProcessor"
    wanted = VideoOptions(**options)
    frames, known, _ = frames_of(film, own.video_settings, wanted)
    text = f"a {PICTURE} b {VIDEO} c"
    got = build_inputs(own, text, images=[data / "sandal.png"], videos=[film], video_options=wanted)
    expected = stock(
        text=[text],
        images=[read_picture(data / "sandal.png")],
        videos=[frames],
        videos_kwargs={"do_sample_frames": False, "video_metadata": [known], "return_metadata": True},
        return_tensors="pt",
    )
    assert_same({name: value for name, value in expected.items() if name != "video_metadata"}, got)


def test_frames_and_sizes_are_those_of_the_video_processors(bundled):
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor, smart_resize
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as resize_clip

    frame = video_settings(bundled, "frame", omni=True)
    clip = replace(frame, rule="clip", patch=16)
    stock = {"frame": Qwen2VLVideoProcessor(fps=2.0), "clip": Qwen3VLVideoProcessor()}
    chance = random.Random(0)
    for _ in range(500):
        total = chance.choice([2, 3, 5, chance.randint(2, 100), chance.randint(2, 60_000)])
        rate = chance.choice([12, 23.976, 25, 29.97, 60])
        facts = VideoFacts(
            frames=total, rate=rate, height=chance.randint(20, 3000), width=chance.randint(20, 3000), sound=False
        )
        options = chance.choice(
            [{}, {"fps": chance.choice([0.5, 1, 4])}, {"frames": 2 * chance.randint(1, total // 2)}]
        )
        names = {"fps": "fps", "frames": "num_frames"}
        for settings in (frame, clip):
            expected = stock[settings.rule].sample_frames(
                VideoMetadata(total_num_frames=total, fps=rate),
                **{names[name]: value for name, value in options.items()},
            )
            got = settings.chosen(facts, VideoOptions(**options))
            assert len(expected) < 2 or got == [int(one) for one in expected], (settings.rule, facts, options)
        count = chance.choice([2, 6, 7, 30])
        size = (facts.height, facts.width)
        assert frame.size(count, *size, VideoOptions()) == smart_resize(*size, 8, *frame.pixels)
        assert clip.size(count, *size, VideoOptions()) == resize_clip(count, *size, 2, 32, *clip.pixels)


@pytest.fixture(scope="module", params=["gemma4", "nemotron_h_omni"])
def own(request, tmp_path_factory):
    """A checkpoint of a model that has a processor of its own; the model, opened by Coterie; and by transformers."""
    if (why := MATRIX[request.param].why_not) is not None:
        pytest.skip(why)
    directory = tmp_path_factory.mktemp(request.param)
    save_with_processor(request.param, directory)
    opened = coterie.load(directory, expert_memory="90%")
    yield directory, opened, stock(directory, torch.bfloat16)
    opened.coterie.close()


@pytest.mark.parametrize("kinds", [("images",), ("audios",), ("videos",), ("images", "audios")])
def test_models_with_processors_of_their_own(own, film, data, kinds):
    directory, opened, stock = own
    processors = Processors(directory)
    assert set(processors.kinds) == {"image", "audio", "video"}
    files = {"images": [data / "sandal.png"], "audios": [data / "dog.wav"], "videos": [film]}
    inputs = build_inputs(processors, "w5 w6 w7", **{kind: files[kind] for kind in kinds})
    cast = inputs.to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(stock(**cast).logits, opened(**cast).logits)
    expected = stock.generate(**cast, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = complete(opened, processors.tokenizer, inputs, Sampling(max_new_tokens=6, greedy=True))
    tokens = list(answer.token_ids)
    assert tokens == expected.tolist()[: len(tokens)]
    assert len(tokens) == 6 or tokens[-1] == processors.tokenizer.eos_token_id


def test_own_processors_are_given_what_they_would_decode(own, film, data):
    directory, _, _ = own
    processors, processor = Processors(directory), AutoProcessor.from_pretrained(directory)
    got = build_inputs(processors, "w5", images=[data / "sandal.png"], audios=[data / "dog.wav"])
    expected = processor(
        text=[f"{processor.image_token}{processor.audio_token}w5"],
        images=[read_picture(data / "sandal.png")],
        audio=[read_sound(data / "dog.wav", rate=16000)],
        return_tensors="pt",
    )
    assert_same(expected, got)
    with pytest.raises(InputError, match="does not hear videos"):
        build_inputs(processors, "", videos=[film], video_options=VideoOptions(sound=True))
    with pytest.raises(InputError, match="model's own choice"):
        build_inputs(processors, "", videos=[film], video_options=VideoOptions(pixels=5000))


def test_sounds_that_an_extractor_would_cut_are_refused(own, tmp_path):
    directory, _, _ = own
    if "gemma4" not in str(directory):
        pytest.skip("its sounds have no limit")
    soundfile.write(tmp_path / "long.wav", np.zeros(31 * 8000, np.float32), 8000)
    with pytest.raises(InputError, match=r"31\.0 s long; this model takes 30\.0 s at most"):
        build_inputs(directory, "", audios=[tmp_path / "long.wav"])
