"""Reading pictures with Pillow."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from coterie.errors import InputError

MAX_PIXELS = 178_956_970
"""Pillow's own limit against decompression bombs (twice its warning threshold)."""


def read_picture(path: str | Path) -> Image.Image:
    """Reads a picture in RGB, turned the way its EXIF orientation says.

    Args:
        path: A file of any format that Pillow reads; of an animation, the first frame.

    Raises:
        InputError: If there is no such file, it is not a picture, it is truncated, or it has more than
            :data:`MAX_PIXELS` pixels. Fact ``path``.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"The picture {path} has {image.width} × {image.height} pixels; {MAX_PIXELS} are the most.",
                    advice="Scale it down.",
                    path=path,
                )
            return ImageOps.exif_transpose(image).convert("RGB")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"There is no picture file {path}.", path=path) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture in a format that Pillow can read.", path=path) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"The picture {path} cannot be read: {error}.", path=path) from error
