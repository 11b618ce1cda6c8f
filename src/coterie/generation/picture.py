"""Reading pictures with Pillow, within the memory that there is for it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from coterie.errors import InputError
from coterie.files.regular import regular_file
from coterie.generation.pixels import as_rgb, pixel_nbytes
from coterie.spec import format_bytes

MAX_PIXELS = 178_956_970
"""Pillow's own limit against decompression bombs (twice its warning threshold)."""

_RGB_NBYTES = 4
_CODEC_NBYTES = {"PNG": 1, "BMP": 1, "PPM": 1, "GIF": 5, "WEBP": 12, "AVIF": 12, "JPEG2000": 20}
"""What the decoder of a format holds for each pixel beside the picture, as far as it is no more than some lines."""

_OTHER_CODEC_NBYTES = 8
_PROGRESSIVE_NBYTES = 6
_ORIENTATION = 0x0112
_DRAFTS = (1, 2, 4, 8)


def read_picture(path: str | Path, *, room: int | None = None, may_shrink: bool = True) -> Image.Image:
    """Reads a picture in RGB, turned the way its EXIF orientation says, on white where it is transparent.

    Args:
        path: A file of any format that Pillow reads; of an animation, the first frame.
        room: Bytes that it may take to decode. A JPEG that takes more is decoded at a half, a quarter or an eighth of
            its size, with a warning; any other is an error. None for no limit but :data:`MAX_PIXELS`.
        may_shrink: Whether that is done; if not, such a JPEG is an error, too.

    Raises:
        InputError: If there is no such file, it is not a picture, it is truncated, has values that cannot be shown, or
            is too large. Fact ``path``.
    """
    path = Path(path)
    try:
        with regular_file(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is below
            with Image.open(file) as image:
                shrunk = _fit(image, path, room, may_shrink=may_shrink)
                image.load()
                if _is_turned(image):
                    _check_room(image, path, room, shrunk, turned=True)
                    ImageOps.exif_transpose(image, in_place=True)
                picture = as_rgb(image)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"There is no picture file {path}.", path=path) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture in a format that Pillow can read.", path=path) from error
    except InputError as error:
        if "path" in error.facts:
            raise
        message = f"The picture {path} cannot be read: {error.message}."
        raise InputError(message, advice=error.advice, path=path) from None
    except MemoryError as error:
        raise InputError(f"The picture {path} takes more memory than there is.", path=path) from error
    except Exception as error:  # decoders meet anything in a file, and raise anything over it
        raise InputError(f"The picture {path} cannot be read: {_reason(error)}.", path=path) from error
    if shrunk > 1:
        warnings.warn(
            f"The picture {path} was decoded at 1/{shrunk} of its width and height, to stay within the memory budget.",
            stacklevel=2,
        )
    return picture


def _fit(image: Image.Image, path: Path, room: int | None, *, may_shrink: bool) -> int:
    """Refuses what is too large before it is decoded; returns by how much a JPEG is made smaller."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise InputError(
            f"The picture {path} has {image.width} × {image.height} pixels; {MAX_PIXELS} are the most.",
            advice="Scale it down.",
            path=path,
        )
    scales = _DRAFTS if may_shrink and image.format in ("JPEG", "MPO") else (1,)
    # Whether a picture is turned may be said behind its pixels: it is looked at again then.
    scale = next((one for one in scales if room is None or decoding_nbytes(image, one) <= room), 1)
    if scale > 1:
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
    else:
        _check_room(image, path, room, scale)
    return scale


def _check_room(image: Image.Image, path: Path, room: int | None, scale: int, *, turned: bool = False) -> None:
    needed = decoding_nbytes(image, turned=turned)
    if room is None or scale > 1 or needed <= room:
        return
    share = math.sqrt(max(0, room) / needed)
    raise InputError(
        f"The picture {path} has {image.width} × {image.height} pixels, which take {format_bytes(needed)} to decode; "
        f"the memory budget leaves {format_bytes(max(0, room))}.",
        advice=f"Scale it down to {int(image.width * share)} × {int(image.height * share)}, or raise the budget.",
        path=path,
        needed=needed,
        room=room,
    )


def decoding_nbytes(image: Image.Image, scale: int = 1, *, turned: bool = False) -> int:
    """Bytes that an opened picture takes at most while it is decoded and made RGB.

    Args:
        image: The picture, before it is decoded.
        scale: By how much a JPEG is made smaller in width and height.
        turned: Whether it is known to be turned.
    """
    pixels = image.width * image.height
    own = pixel_nbytes(image)
    if image.format in ("JPEG", "MPO"):
        fixed, turned = (_PROGRESSIVE_NBYTES if image.info.get("progressive") else 0), turned or _is_turned(image)
    else:
        fixed = _CODEC_NBYTES.get(image.format or "", _OTHER_CODEC_NBYTES)
    other = _RGB_NBYTES if image.mode != "RGB" or "transparency" in image.info else 0
    return fixed * pixels + (own * (1 + turned) + other) * pixels // scale**2


def _is_turned(image: Image.Image) -> bool:
    return bool(image.getexif().get(_ORIENTATION, 1) != 1)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300].rstrip(".")
    return text or type(error).__name__
