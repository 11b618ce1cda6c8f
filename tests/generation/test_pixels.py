"""Every mode of Pillow has its expected pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coterie.errors import InputError
from coterie.generation import pixels
from coterie.generation.picture import read_picture

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def grey(value: int) -> tuple[int, int, int]:
    return (value, value, value)


def palette(transparency: object = None) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def of(mode: str, *values: object) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)  # type: ignore[arg-type]
    return image


def clear(image: Image.Image, value: object) -> Image.Image:
    image.info["transparency"] = value
    return image


SIXTEEN = (0, 1, 255, 256, 257 * 128, 256 * 200, 65535)

TABLE = {
    "1": (of("1", 0, 1), [BLACK, WHITE]),
    "L": (of("L", 0, 100, 255), [BLACK, grey(100), WHITE]),
    "L with a clear value": (clear(of("L", 0, 100), 100), [BLACK, WHITE]),
    "LA": (of("LA", (0, 255), (0, 0), (0, 127), (90, 255)), [BLACK, WHITE, grey(128), grey(90)]),
    "P": (palette(), [RED, (0, 0, 255)]),
    "P with a clear entry": (palette(0), [WHITE, (0, 0, 255)]),
    "P with opacities": (palette(b"\x80\xff"), [(255, 127, 127), (0, 0, 255)]),
    "PA": (palette().convert("PA"), [RED, (0, 0, 255)]),
    "RGB": (of("RGB", RED, (1, 2, 3)), [RED, (1, 2, 3)]),
    "RGB with a clear colour": (clear(of("RGB", RED, (1, 2, 3)), (1, 2, 3)), [RED, WHITE]),
    "RGBA": (of("RGBA", (0, 0, 0, 255), (0, 0, 0, 0), (255, 0, 0, 127)), [BLACK, WHITE, (255, 128, 128)]),
    "RGBX": (of("RGBX", (9, 8, 7, 0)), [(9, 8, 7)]),
    "CMYK": (of("CMYK", (0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)), [WHITE, RED, BLACK]),
    "YCbCr": (of("YCbCr", (255, 128, 128), (0, 128, 128)), [WHITE, BLACK]),
    "HSV": (of("HSV", (0, 255, 255), (0, 0, 255)), [RED, WHITE]),
    "I;16": (of("I;16", *SIXTEEN), [grey(value >> 8) for value in SIXTEEN]),
    "I;16B": (of("I;16B", *SIXTEEN), [grey(value >> 8) for value in SIXTEEN]),
    "I;16 with a clear value": (clear(of("I;16", 0, 4000), 4000), [BLACK, WHITE]),
    "I": (of("I", *SIXTEEN), [grey(value >> 8) for value in SIXTEEN]),
    "I of 31 bits": (of("I", 0, 2**30, 2**31 - 1), [BLACK, grey(128), WHITE]),
    "I below zero": (of("I", -5, 65535), [BLACK, WHITE]),
    "F up to 1": (of("F", 0.0, 0.2, 0.5, 1.0), [BLACK, grey(51), grey(128), WHITE]),
    "F up to 255": (of("F", 0.0, 99.6, 255.0), [BLACK, grey(100), WHITE]),
    "F up to 65535": (of("F", 0.0, 256.0 * 77, 65535.0), [BLACK, grey(77), WHITE]),
}


@pytest.mark.parametrize("what", TABLE)
@pytest.mark.parametrize("band", [1, 1 << 20])
def test_every_mode_has_its_pixels(what: str, band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_BAND_PIXELS", band)
    image, expected = TABLE[what]
    found = pixels.as_rgb(image.copy())
    assert found.mode == "RGB"
    assert [found.getpixel((x, 0)) for x in range(found.width)] == expected


def test_rgb_is_not_copied() -> None:
    image = Image.new("RGB", (3, 2))
    assert pixels.as_rgb(image) is image


@pytest.mark.parametrize("values", [(0.0, float("nan")), (0.0, float("inf")), (-1.0, 1.0), (0.0, 1e9)])
def test_numbers_without_a_range_are_refused(tmp_path: Path, values: tuple[float, ...]) -> None:
    of("F", *values).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"a\.tiff cannot be read: it(s values go| has values)") as caught:
        read_picture(tmp_path / "a.tiff")
    assert caught.value.path == tmp_path / "a.tiff"


def test_a_ramp_of_sixteen_bits_keeps_its_levels(tmp_path: Path) -> None:
    for scale in (256, 257):
        ramp = (np.arange(256) * scale).astype(np.uint16).reshape(1, -1)
        Image.fromarray(ramp).save(tmp_path / "ramp.png")
        assert np.array_equal(np.asarray(read_picture(tmp_path / "ramp.png"))[0, :, 0], np.arange(256))


def test_bands_are_put_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_BAND_PIXELS", 50)
    values = np.random.default_rng(0).integers(0, 256, (37, 20, 4), dtype=np.uint8)
    whole = Image.fromarray(values)
    paper = Image.new("RGBA", whole.size, "white")
    paper.alpha_composite(whole)
    assert np.array_equal(np.asarray(pixels.as_rgb(whole)), np.asarray(paper.convert("RGB")))
    deep = Image.fromarray(values[..., 0].astype(np.uint16) * 256)
    assert np.array_equal(np.asarray(pixels.as_rgb(deep))[..., 1], values[..., 0])
