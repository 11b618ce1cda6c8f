"""Media for a processor that wants all of them at once: each has the room that those before it leave."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from coterie.errors import InputError
from coterie.generation import own_processor
from coterie.generation.decoding import FULL_PROCESSOR_NBYTES
from coterie.generation.media_files import MediaFiles
from coterie.generation.own_processor import with_own_processor
from coterie.generation.sound import read_sound
from films import write_film

pytest.importorskip("av")

PIXELS = 200 * 160
RATE = 16_000


class Own:
    """Stands for a processor of transformers, which needs torchvision: gives back what it is given."""

    image_processor = object()
    feature_extractor = SimpleNamespace(sampling_rate=RATE)
    image_token, audio_token, video_token = "<picture>", "<sound>", "<video>"

    class video_processor:
        valid_kwargs = object

        @staticmethod
        def sample_frames(metadata: Any, **_: Any) -> list[int]:
            return [0, metadata.total_num_frames // 2]

    def __call__(self, **given: Any) -> dict[str, Any]:
        return given


def asked(directory: Path, **media: list[Path]) -> dict[str, Any]:
    processors = SimpleNamespace(full=Own(), config={"model_type": "own"}, path=directory, max_seconds=lambda _: None)
    files = MediaFiles(**{kind: tuple(map(str, paths)) for kind, paths in media.items()})
    return with_own_processor(processors, ["w5"], files, add_special_tokens=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_film(tmp_path_factory.mktemp("films") / "a.mp4")


def test_a_video_has_the_room_that_pictures_and_sounds_leave(film, data, tmp_path, monkeypatch) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (200, 160)).save(picture)
    room = 0
    monkeypatch.setattr(own_processor, "decoding_room", lambda: room)
    refused = []
    while len(refused) < 5:  # what is looked at first takes less
        try:
            (clip,) = asked(tmp_path, videos=[film])["videos"]
            break
        except InputError as error:
            refused.append(room)
            room = error.facts["needed"]
    assert clip.shape == (2, 48, 64, 3)
    assert refused
    samples = len(read_sound(data / "dog.wav", rate=RATE))
    for before, kept in (
        ({"images": [picture]}, PIXELS * FULL_PROCESSOR_NBYTES),
        ({"images": [picture, picture]}, 2 * PIXELS * FULL_PROCESSOR_NBYTES),
        ({"audios": [data / "dog.wav"]}, 60 * samples),
        ({"images": [picture], "audios": [data / "dog.wav"]}, PIXELS * FULL_PROCESSOR_NBYTES + 60 * samples),
    ):
        with pytest.raises(InputError) as caught:
            asked(tmp_path, videos=[film], **before)
        assert caught.value.facts["path"] == film
        assert caught.value.facts["room"] == room - kept
        room += kept
        assert len(asked(tmp_path, videos=[film], **before)["videos"]) == 1
        room -= kept
