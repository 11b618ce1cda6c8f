"""Room for pictures and sounds while they are decoded: what a budget leaves when no model computes."""

from __future__ import annotations

import threading
from collections.abc import Sequence, Sized
from pathlib import Path

from coterie.engine.promises import spare_nbytes
from coterie.errors import InputError
from coterie.spec import format_bytes

DECODING = threading.Lock()
"""Held while something is decoded: one at a time has all the room."""

FULL_PROCESSOR_NBYTES = 12
"""Bytes per pixel that a model's own processor takes for a picture that it was given: copies, and values as floats."""

_VALUES_NBYTES = 72
"""Bytes per pixel of a scaled picture while it becomes values: floats, their multiples, and patches of them, twice."""

_FEATURES_NBYTES = 56
"""Bytes per sample of sounds that become features together: padded copies, spectra of overlapping windows, mel bins."""

_KEPT_FREE = 16 << 20
"""What decoders and the heap may leave behind."""


def decoding_room() -> int | None:
    """Bytes that decoding may take now; None where no open model has a budget."""
    spare = spare_nbytes()
    return None if spare is None else max(0, spare - _KEPT_FREE)


def check_values(pixels: int, path: str | Path, room: int | None) -> None:
    """Refuses a picture that is large for the model, too, before its values are made.

    Raises:
        InputError: With what it takes.
    """
    needed = pixels * _VALUES_NBYTES
    if room is not None and needed > room:
        raise InputError(
            f"The picture {path} is {pixels:,} pixels for the model, whose values take {format_bytes(needed)}; "
            f"the memory budget leaves {format_bytes(room)}.",
            advice="Scale it down, or raise the budget.",
            path=path,
            needed=needed,
            room=room,
        )


def check_features(sounds: Sequence[Sized], room: int | None) -> None:
    """Refuses sounds whose features would take more than there is; all are padded to the longest.

    Raises:
        InputError: With what they take.
    """
    needed = len(sounds) * max((len(sound) for sound in sounds), default=0) * _FEATURES_NBYTES
    if room is not None and needed > room:
        raise InputError(
            f"The features of {len(sounds)} sounds of up to {max(map(len, sounds)):,} samples take "
            f"{format_bytes(needed)}; the memory budget leaves {format_bytes(room)}.",
            advice="Cut them into shorter pieces, pass fewer at once, or raise the budget.",
            needed=needed,
            room=room,
        )
