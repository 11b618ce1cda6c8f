"""Pictures of every mode as RGB: what a viewer shows on white paper.

Done in bands, so that beside the picture and its result no third one is in memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from coterie.errors import InputError

_BAND_PIXELS = 1 << 20
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")

Values = npt.NDArray[np.float64]


def pixel_nbytes(image: Image.Image) -> int:
    """Bytes that a pixel of a picture takes in memory as it is."""
    return {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;16") else 4)


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB; the picture itself if it is.

    What is transparent is laid on white. Sixteen bits become eight by their higher byte, as Pillow has it for colours.
    Numbers that may be anything are taken by the range that the picture uses: floats up to 1 as shares of white, others
    up to 255, or 65,535, as 8 or 16 bits; whole numbers of 32 bits are taken as 16 bits, or, if larger, as 31.

    Raises:
        InputError: If it has values that are no numbers, or none of these ranges.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in (*_SIXTEEN_BITS, "I", "F"):
        return _from_numbers(image)
    if image.mode in _ALPHA or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    result = Image.new("RGB", image.size)
    for box in _bands(image):
        band = image.crop(box)
        paper = Image.new("RGBA", band.size, (255, 255, 255, 255))
        paper.alpha_composite(band.convert("RGBA"))
        result.paste(paper.convert("RGB"), box)
    return result


def _from_numbers(image: Image.Image) -> Image.Image:
    low, white = _range(image)
    clear = image.info.get("transparency")
    result = Image.new("RGB", image.size)
    for box in _bands(image):
        # numpy knows the byte orders of Pillow's modes.
        values = np.asarray(image.crop(box), dtype=np.float64)
        grey = _eight_bits(np.clip(values, low, None), white)
        if isinstance(clear, int | float):
            grey[values == clear] = 255
        result.paste(Image.fromarray(grey).convert("RGB"), box)
    return result


def _range(image: Image.Image) -> tuple[float, float]:
    """What is black and what is white."""
    if image.mode in _SIXTEEN_BITS:
        return 0.0, 65535.0
    least, most = 0.0, 0.0
    for box in _bands(image):
        values = np.asarray(image.crop(box))
        if image.mode == "F" and not np.isfinite(values).all():
            raise InputError("it has values that are no numbers", advice="Save it with 8 bits per channel.")
        least, most = min(least, float(values.min())), max(most, float(values.max()))
    ranges = (65535.0, 2.0**31 - 1) if image.mode == "I" else (1.0, 255.0, 65535.0)
    white = next((one for one in ranges if most <= one), None)
    if white is None or (image.mode == "F" and least < 0):
        raise InputError(
            f"its values go from {least:g} to {most:g}, and nothing says what is black and white",
            advice="Save it with 8 bits per channel.",
        )
    return 0.0, white


def _eight_bits(values: Values, white: float) -> npt.NDArray[np.uint8]:
    if white <= 255:
        return (values * (255.0 / white)).round().astype(np.uint8)
    return (values // ((white + 1) / 256)).astype(np.uint8)


def _bands(image: Image.Image) -> list[tuple[int, int, int, int]]:
    rows = max(1, _BAND_PIXELS // max(1, image.width))
    return [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
