"""Damaged pictures and sounds: a picture or a sound, or an error that says what is wrong with the file.

``COTERIE_FUZZ=30`` tries about ten thousand of each kind.
"""

import random

import numpy as np
import pytest
import soundfile
from PIL import Image

from coterie.errors import InputError
from coterie.generation.containers import open_container
from coterie.generation.picture import read_picture
from coterie.generation.sound import read_sound
from films import write_film
from fuzzing import Watch, cases, damage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.filterwarnings("ignore")]

ROOM = 64 << 20
RATE = 16_000


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "ico", "tga", "pcx", "sgi", "jp2"])
def test_damaged_pictures(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.effect_noise((40, 30), 80).convert("RGB").save(path)
    pristine = path.read_bytes()

    def read() -> None:
        assert read_picture(path, room=ROOM).mode == "RGB"

    watch = Watch(InputError)
    for case in range(cases(300)):
        path.write_bytes(damage(pristine, random.Random(case)))
        watch.run(case, read)
    watch.check()


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64", "FLAC", "AIFF", "OGG"])
def test_damaged_sounds(tmp_path, kind):
    path = tmp_path / "a.sound"
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE // 4) / RATE)
    soundfile.write(path, tone.astype(np.float32), RATE, format=kind)
    pristine = path.read_bytes()

    def read() -> None:
        assert 0 < len(read_sound(path, rate=RATE, max_seconds=600, room=ROOM)) <= 8 << 20

    watch = Watch(InputError)
    for case in range(cases(400)):
        path.write_bytes(damage(pristine, random.Random(case)))
        watch.run(case, read)
    watch.check()


@pytest.mark.parametrize(
    ("name", "codecs"),
    [("a.mp4", ("mpeg4", "aac")), ("a.webm", ("libvpx-vp9", "libopus")), ("a.avi", ("mpeg4", "mp3"))],
)
def test_damaged_videos(tmp_path, name, codecs):
    pytest.importorskip("av")
    path = write_film(tmp_path / name, codec=codecs[0], sound_codec=codecs[1], sound_rate=48_000, tone=440.0)
    pristine = path.read_bytes()

    def read() -> None:
        with open_container(path, what="The video", room=300 << 20) as container:
            if (facts := container.video) is not None:
                assert len(list(container.frames([0, facts.frames - 1]))) == 2
            if container.sound:
                assert sum(len(block) for _, block in container.samples()) < 60 * 48_000

    watch = Watch(InputError)
    for case in range(cases(30)):
        path.write_bytes(damage(pristine, random.Random(case)))
        watch.run(case, read)
    watch.check()
