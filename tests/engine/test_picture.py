import pytest
from PIL import Image

from coterie.engine import picture
from coterie.errors import InputError


def test_pictures_become_rgb(tmp_path, data):
    assert picture.read_picture(data / "sandal.png").mode == "RGB"
    Image.new("RGBA", (3, 2), (10, 20, 30, 40)).save(tmp_path / "a.png")
    assert picture.read_picture(tmp_path / "a.png").getpixel((0, 0)) == (10, 20, 30)


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
