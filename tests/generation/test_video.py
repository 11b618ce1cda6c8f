"""Videos as models of the Qwen-VL kind are given them: which frames, how large, what values, and what tokens."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import coterie
from coterie.errors import InputError, LoadError, UsageError
from coterie.generation.chat import chat_inputs, user_message
from coterie.generation.completion import complete
from coterie.generation.containers import VideoFacts
from coterie.generation.conversation import Conversation
from coterie.generation.inputs import build_inputs
from coterie.generation.placeholders import MediaTokens
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling
from coterie.generation.video_options import VideoOptions
from coterie.generation.video_settings import VideoSettings, video_settings
from coterie.generation.video_text import heard_text, timed_text
from coterie.generation.video_values import frame_values
from coterie.hf.generation_steps import prepare_in_pieces
from films import picture, write_film

pytest.importorskip("av")

PICTURE, SOUND, VIDEO = (
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|audio_start|><|audio_pad|><|audio_end|>",
    "<|vision_start|><|video_pad|><|vision_end|>",
)
TOKENS = MediaTokens(kind="video", start="<", pad="v", end=">")
HEARD = MediaTokens(kind="sound", start="(", pad="s", end=")")
SMALL = VideoOptions(pixels=1024)
FRAME = VideoSettings(
    rule="frame", patch=4, merge=2, temporal=2, fps=2.0, fewest=4, most=768, pixels=(1024, 4096),
    mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2), rescale=1 / 255,
)  # fmt: skip
CLIP = replace(FRAME, rule="clip", patch=16, pixels=(128 * 32 * 32, 768 * 32 * 32))


def facts(frames: int, rate: float = 25.0) -> VideoFacts:
    return VideoFacts(frames=frames, rate=rate, height=480, width=640, sound=False)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("films") / "a.mp4", tone=440.0, frames=30)


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("films") / "b.mp4", frames=20, size=(48, 64))


# What is expected here was computed by Qwen2VLVideoProcessor and Qwen3VLVideoProcessor of transformers 5.24.
@pytest.mark.parametrize(
    ("settings", "frames", "rate", "options", "expected"),
    [
        (FRAME, 100, 25.0, {}, [0, 12, 25, 37, 50, 62, 75, 87]),
        (FRAME, 10, 25.0, {}, [0, 2, 5, 7]),
        (FRAME, 3, 25.0, {}, [0, 1]),
        (FRAME, 100, 25.0, {"frames": 5}, [0, 25, 50, 75]),
        (FRAME, 100, 25.0, {"fps": 1.0}, [0, 25, 50, 75]),
        (CLIP, 100, 25.0, {}, [0, 14, 28, 42, 57, 71, 85, 99]),
        (CLIP, 10, 25.0, {}, [0, 3, 6, 9]),
        (CLIP, 100, 25.0, {"frames": 3}, [0, 50, 99]),
        (CLIP, 1, 25.0, {}, [0, 0]),
    ],
)
def test_which_frames_are_shown(settings, frames, rate, options, expected):
    assert settings.chosen(facts(frames, rate), VideoOptions(**options)) == expected


def test_long_videos_have_no_more_frames_than_the_processor_allows():
    for settings in (FRAME, CLIP):
        assert len(settings.chosen(facts(100_000), VideoOptions())) == 768
    with pytest.raises(InputError, match="12 frames of the video were asked for, and it has 10"):
        FRAME.chosen(facts(10), VideoOptions(frames=12))


@pytest.mark.parametrize(
    ("settings", "frames", "size", "options", "expected"),
    [
        (FRAME, 4, (480, 640), {}, (48, 72)),
        (FRAME, 4, (10, 12), {}, (32, 40)),
        (FRAME, 4, (480, 640), {"pixels": 1024}, (24, 32)),
        (CLIP, 8, (480, 640), {}, (256, 352)),
        (CLIP, 8, (480, 640), {"pixels": 10_000}, (64, 96)),
        (CLIP, 4, (20, 640), {}, (32, 1024)),
    ],
)
def test_how_large_frames_are_shown(settings, frames, size, options, expected):
    assert settings.size(frames, *size, VideoOptions(**options)) == expected


def test_strips_are_refused():
    with pytest.raises(InputError, match="more than 200 times as long as wide"):
        FRAME.size(4, 10, 3000, VideoOptions())


@pytest.mark.parametrize("options", [{"fps": 0}, {"fps": float("nan")}, {"frames": 0}, {"pixels": 10}])
def test_options_have_bounds(options):
    with pytest.raises(UsageError):
        VideoOptions(**options)
    with pytest.raises(UsageError, match="by a rate or a number, not both"):
        VideoOptions(fps=1, frames=2)


def test_values_are_those_of_scaled_frames_in_patches():
    size, (height, width) = (60, 50), (40, 48)
    frames = [picture(number, size) for number in range(3)]
    values, grid = frame_values(frames, 3, height, width, FRAME)
    assert grid.tolist() == [[2, 10, 12]]
    assert values.shape == (240, 96)
    assert values.dtype == torch.float32
    # [groups, rows / 2, columns / 2, 2, 2, colour, frame, y, x] back to pictures; the last one is there twice.
    parts = values.reshape(2, 5, 6, 2, 2, 3, 2, 4, 4).permute(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(4, height, width, 3)
    for number, part in zip([0, 1, 2, 2], parts, strict=True):
        back = (part * torch.tensor(FRAME.std) + torch.tensor(FRAME.mean)) * 255
        scaled = np.asarray(Image.fromarray(frames[number]).resize((width, height), Image.Resampling.BICUBIC))
        # Pillow rounds between the two directions, torch does not.
        assert abs(back.numpy() - scaled).max() <= 2.01


def test_sound_stands_where_it_is_heard():
    # Groups of frames at 0, 6.5 and 13 positions of sound.
    assert heard_text((3, 2, 4), 2, 0.5, 9, TOKENS, HEARD) == "(vv" + 7 * "s" + "vv" + 2 * "s" + "vv)"
    assert heard_text((1, 2, 4), 2, 0.5, 3, TOKENS, HEARD) == "(vvsss)"


def test_times_stand_before_frames():
    assert timed_text((2, 2, 4), 2, [0, 10, 20], 10.0, 2, TOKENS) == "<0.5 seconds><vv><2.0 seconds><vv>"


def test_settings_come_from_where_transformers_looks(directory):
    assert video_settings(directory, "frame", omni=True).patch == 4
    assert video_settings(directory, "frame", omni=True).pixels == (131_072, 786_432)
    (directory / "video_preprocessor_config.json").write_text(json.dumps({"fps": 3, "max_frames": 8, "patch_size": 8}))
    settings = video_settings(directory, "clip", omni=False)
    assert (settings.fps, settings.most, settings.patch, settings.merge) == (3.0, 8, 8, 2)
    for key, value in {"resample": 2, "do_normalize": False, "image_mean": [1], "video_processor_type": "X"}.items():
        (directory / "video_preprocessor_config.json").write_text(json.dumps({key: value}))
        with pytest.raises(LoadError, match=key):
            video_settings(directory, "clip", omni=False)


def test_inputs_of_a_video_that_is_seen_and_heard(processors, film):
    inputs = build_inputs(processors, f"see {VIDEO}?", videos=[film], video_options=SMALL)
    text = processors.tokenizer.decode(inputs["input_ids"][0])
    assert text.startswith("see <|vision_start|><|audio_start|><|video_pad|>")
    assert text.endswith("<|audio_pad|><|audio_end|><|vision_end|>?")
    assert inputs["use_audio_in_video"] is True
    assert inputs["video_grid_thw"].tolist() == [[2, 6, 8]]
    assert inputs["pixel_values_videos"].shape == (96, 96)
    assert text.count("<|video_pad|>") == 24
    assert inputs["video_second_per_grid"].tolist() == [1.25]  # 4 frames of 2.5 s, 2 in a group
    assert inputs["input_features"].shape[0] == 1
    seen = build_inputs(processors, "", videos=[film], video_options=replace(SMALL, sound=False))
    assert processors.tokenizer.decode(seen["input_ids"][0]) == VIDEO.replace("<|video_pad|>", 24 * "<|video_pad|>")
    assert not {"use_audio_in_video", "input_features"} & seen.keys()
    assert torch.equal(seen["pixel_values_videos"], inputs["pixel_values_videos"])


def test_models_hear_all_videos_or_none(processors, film, silent):
    with pytest.raises(InputError, match=r"has no sound, and others have: .* --no-video-sound"):
        build_inputs(processors, "", videos=[film, silent], video_options=SMALL)
    with pytest.raises(InputError, match="has no sound, and it was asked for"):
        build_inputs(processors, "", videos=[silent], video_options=replace(SMALL, sound=True))
    both = build_inputs(processors, "", videos=[film, silent], video_options=replace(SMALL, sound=False))
    assert both["video_grid_thw"].shape == (2, 3)


def test_what_is_too_much_is_told_before_it_is_decoded(processors, film, data, monkeypatch):
    with pytest.raises(InputError, match=r"tokens for this model, which has room for 4,096"):
        build_inputs(processors, "", videos=[film], video_options=VideoOptions(frames=30))
    monkeypatch.setattr("coterie.generation.media_features.decoding_room", lambda: 97 << 20)
    with pytest.raises(InputError, match=r"to decode; the memory budget leaves 97\.00 MiB"):
        build_inputs(processors, "", videos=[film], video_options=VideoOptions(pixels=100_000, sound=False))
    with pytest.raises(InputError, match=r"in none of the formats that can be read"):
        build_inputs(processors, "", videos=[data / "dog.wav"])


def test_clips_have_the_times_of_their_frames(directory, film):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "qwen3_vl_moe"}))
    (directory / "video_preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 256, "longest_edge": 8192}, "patch_size": 4, "image_mean": [0.5] * 3})
    )
    processors = Processors(directory)
    assert processors.videos is not None
    replaced = processors.videos.replaced_whole
    inputs = build_inputs(processors, f"a {VIDEO}", videos=[film])
    text = processors.tokenizer.decode(inputs["input_ids"][0])
    outer = ("", "") if replaced else ("<|vision_start|>", "<|vision_end|>")
    assert inputs["video_grid_thw"].tolist() == [[3, 8, 10]]
    each = "<|vision_start|>" + 20 * "<|video_pad|>" + "<|vision_end|>"
    times = "".join(f"<{seconds}seconds>{each}" for seconds in (0.3, 1.5, 2.4))
    assert text.replace(" ", "") == f"a{outer[0]}{times}{outer[1]}"
    assert inputs["mm_token_type_ids"].sum() == 2 * 60
    assert not {"video_second_per_grid", "use_audio_in_video"} & inputs.keys()
    with pytest.raises(InputError, match="does not hear videos"):
        build_inputs(processors, "", videos=[film], video_options=VideoOptions(sound=True))


@pytest.fixture(scope="module")
def opened(bundled):
    model = coterie.load(bundled, expert_memory="30%")
    yield model
    model.coterie.close()


@pytest.fixture(scope="module")
def stock(bundled):
    from transformers import AutoModelForMultimodalLM

    return AutoModelForMultimodalLM.from_pretrained(bundled, experts_implementation="eager").eval()


@pytest.mark.parametrize("sound", [True, False])
def test_media_of_all_kinds_in_any_order_are_as_in_transformers(opened, stock, processors, film, data, sound):
    text = f"{SOUND} w {VIDEO} x {PICTURE} y {VIDEO} z {SOUND}"
    inputs = build_inputs(
        processors, text, images=[data / "sandal.png"], audios=[data / "dog.wav", data / "go.wav"], videos=[film, film],
        video_options=replace(SMALL, sound=sound),
    )  # fmt: skip
    cast = inputs.to(stock.dtype)
    with torch.no_grad():
        assert torch.equal(stock(**cast).logits, opened(**cast).logits)
    expected = stock.generate(**cast, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = complete(opened, processors.tokenizer, inputs, Sampling(max_new_tokens=8, greedy=True))
    assert list(answer.token_ids) == expected.tolist()
    media = prepare_in_pieces(opened, inputs).media.each
    if media:  # older releases work positions out in a pass over the whole prompt
        assert [
            len({"input_features", "pixel_values_videos", "pixel_values"} & one.inputs.keys()) for one in media
        ] == ([1, 1 + sound, 1, 1 + sound, 1])


def test_what_a_turn_shows_is_encoded_once(opened, processors, film, data, monkeypatch):
    runs = []
    for path, tower in opened.named_modules():
        if (name := path.rpartition(".")[2]) in ("visual", "audio_tower"):
            monkeypatch.setitem(tower.__dict__, "forward", _counted(tower.forward, name, runs))
    talk = Conversation(opened, processors, sampling=Sampling(max_new_tokens=3, greedy=True), video_options=SMALL)
    talk.ask("look", videos=[film])
    assert sorted(runs) == ["audio_tower", "visual"]
    runs.clear()
    answer = talk.ask("and this", images=[data / "sandal.png"])
    alone = answer.reused_tokens > 0
    assert runs == ["visual"] if alone else len(runs) == 3  # older releases compute the whole prompt anew
    runs.clear()
    talk.ask("well?")
    assert not runs or not alone


def _counted(forward, name, runs):
    def counted(*args, **kwargs):
        runs.append(name)
        return forward(*args, **kwargs)

    return counted


def test_parts_of_a_message_may_be_videos(processors, film):
    inputs = chat_inputs(processors, [user_message("what?", videos=[film])], video_options=SMALL)
    assert torch.equal(
        inputs["input_ids"], build_inputs(processors, f"{VIDEO}what?", videos=[film], video_options=SMALL)["input_ids"]
    )
