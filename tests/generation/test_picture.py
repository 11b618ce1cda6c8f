import os
import struct
import warnings
import zlib

import pytest
import torch
from PIL import Image

from coterie.errors import InputError
from coterie.generation import media_features, picture
from coterie.generation.inputs import build_inputs


def test_pictures_become_rgb(tmp_path, data):
    assert picture.read_picture(data / "sandal.png").mode == "RGB"
    Image.new("RGBA", (3, 2), (10, 20, 30, 40)).save(tmp_path / "a.png")
    assert picture.read_picture(tmp_path / "a.png").getpixel((0, 0)) == (217, 218, 220)  # on white


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert picture.read_picture(tmp_path / "a.jpg").size == (2, 4)


def test_no_file(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(InputError, match="There is no picture file"):
            picture.read_picture(path)


def test_not_a_picture(data):
    with pytest.raises(InputError, match="not a picture"):
        picture.read_picture(data / "dog.wav")


def test_truncated(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read"):
        picture.read_picture(tmp_path / "a.png")


def test_too_large(data, monkeypatch):
    monkeypatch.setattr(picture, "MAX_PIXELS", 28 * 28 - 1)
    with pytest.raises(InputError, match="28 × 28 pixels"):
        picture.read_picture(data / "sandal.png")


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "RGBA", "P"])
def test_orientation_of_every_mode(tmp_path, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new(mode, (4, 2)).save(tmp_path / "a.png", exif=exif)
    found = picture.read_picture(tmp_path / "a.png")
    assert (found.mode, found.size) == ("RGB", (2, 4))


def one_colour(path, width, height):
    """A PNG of few bytes, whatever its size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, line = zlib.compressobj(9), bytes(1 + 3 * width)
    data = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def test_a_picture_that_takes_more_than_there_is_room_for_is_refused(tmp_path):
    path = one_colour(tmp_path / "a.png", 1000, 800)
    assert picture.read_picture(path, room=5 * 800_000).size == (1000, 800)
    with pytest.raises(InputError, match=r"a\.png has 1000 × 800 pixels, which take 3.81 MiB .* Scale it") as caught:
        picture.read_picture(path, room=5 * 800_000 - 1)
    assert (caught.value.needed, caught.value.path) == (4_000_000, path)


@pytest.mark.parametrize(("share", "scale"), [(1, 1), (4, 2), (16, 4), (64, 8)])
def test_a_jpeg_is_decoded_smaller_where_room_is_short(tmp_path, share, scale):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (1600, 801), (200, 30, 90)).save(path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = picture.read_picture(path, room=4 * 1600 * 801 // share)
    assert found.size == (1600 // scale, -(-801 // scale))
    assert [f"1/{scale} of its" in str(one.message) for one in told] == [True] * (scale > 1)
    assert max(abs(a - b) for a, b in zip(found.getpixel((5, 5)), (200, 30, 90), strict=True)) < 4


def test_a_progressive_jpeg_takes_more(tmp_path):
    Image.new("RGB", (1600, 800)).save(tmp_path / "a.jpg", progressive=True)
    with pytest.raises(InputError, match="to decode"):
        picture.read_picture(tmp_path / "a.jpg", room=5 * 1600 * 800)


@pytest.mark.parametrize("size", [(1700, 1300), (900, 3001), (1024, 1024), (64, 80)])
def test_large_pictures_reach_the_model_with_the_pixels_of_its_processor(tmp_path, processors, size):
    noise = Image.effect_noise(size, 90).convert("RGB")
    noise.save(tmp_path / "a.png")
    expected = processors.image_processor(images=[noise], return_tensors="pt")
    found = build_inputs(processors, "", images=[tmp_path / "a.png"])
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])


def test_pictures_are_decoded_one_by_one(tmp_path, processors, monkeypatch):
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.png")
        Image.effect_noise((60 + number, 50), 90).convert("RGB").save(paths[-1])
    expected = processors.image_processor(images=[Image.open(path) for path in paths], return_tensors="pt")
    order = []
    read, extract = media_features.read_picture, processors.image_processor

    def noted(path, **options):
        order.append(path.name)
        return read(path, **options)

    def prepared(images, **options):
        order.append(len(images))
        return extract(images=images, **options)

    monkeypatch.setattr(media_features, "read_picture", noted)
    for name in ("merge_size", "patch_size", "size", "do_resize", "resample"):
        setattr(prepared, name, getattr(extract, name))
    monkeypatch.setitem(processors.__dict__, "image_processor", prepared)
    found = build_inputs(processors, "", images=paths)
    assert order == ["0.png", 1, "1.png", 1, "2.png", 1]
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])


def test_values_that_take_more_than_there_is_room_for_are_refused(tmp_path, processors, monkeypatch):
    Image.new("RGB", (60, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(media_features, "decoding_room", lambda: 60 * 50 * 20)
    with pytest.raises(InputError, match="pixels for the model, whose values take"):
        build_inputs(processors, "", images=[tmp_path / "a.png"])


def test_a_fifo_and_a_device_are_no_pictures(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="FIFO"):
        picture.read_picture(tmp_path / "a.png")
    with pytest.raises(InputError, match="a device"):
        picture.read_picture("/dev/zero")
