"""Room for pictures and sounds while they are decoded: what a budget leaves when no model computes.

Beside a model that computes there is only what was set aside for that. What takes more waits until no pass is going on:
a picture is not decoded in another way because others are computed for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path

from coterie.engine.promises import lent_for_inputs, spare_nbytes
from coterie.errors import InputError, RequestCancelledError
from coterie.spec import format_bytes

DECODING = threading.RLock()
"""Held while something is decoded, and by whoever uses what makes inputs of it: one at a time has all the room."""

FULL_PROCESSOR_NBYTES = 12
"""Bytes per pixel that a model's own processor takes for a picture that it was given: copies, and values as floats."""

_VALUES_NBYTES = 72
"""Bytes per pixel of a scaled picture while it becomes values: floats, their multiples, and patches of them, twice."""

_FEATURES_NBYTES = 56
"""Bytes per sample of sounds that become features together: padded copies, spectra of overlapping windows, mel bins."""

_KEPT_FREE = 16 << 20
"""What decoders and the heap may leave behind."""


class Beside:
    """Decoding beside a model that computes.

    Args:
        room: Bytes that were set aside; None where no budget bounds them.
        wanted: Whether somebody still wants what is decoded.

    Attributes:
        short: Whether something would have taken more.
    """

    def __init__(self, room: int | None, wanted: Callable[[], bool]) -> None:
        self.room = room
        self.wanted = wanted
        self.short = False


class _Holder:
    """Whoever holds :data:`DECODING`.

    Attributes:
        beside: How it decodes beside passes; None if no pass goes on.
        lent: Whether experts lend memory for it.
    """

    beside: Beside | None = None
    lent: bool = False


_holder = _Holder()


@contextmanager
def beside_passes(room: int | None, wanted: Callable[[], bool]) -> Iterator[Beside]:
    """Inside, what is decoded has no more than some room, and ends early if nobody wants it.

    Args:
        room: As :class:`Beside` takes it.
        wanted: Likewise.
    """
    with DECODING:
        _holder.beside = beside = Beside(room, wanted)
        try:
            yield beside
        finally:
            _holder.beside = None


@contextmanager
def decoding() -> Iterator[None]:
    """Inside, one picture or sound is decoded.

    Raises:
        RequestCancelledError: If nobody wants it any more.
    """
    with DECODING:
        beside = _holder.beside
        still_wanted()
        try:
            if beside is not None or _holder.lent:
                yield
                return
            with lent_for_inputs():
                _holder.lent = True
                try:
                    yield
                finally:
                    _holder.lent = False
        except InputError as error:
            if beside is not None:
                beside.short |= "room" in error.facts
            raise


def still_wanted() -> None:
    """Ends what takes long if nobody wants it any more. :data:`DECODING` is held, if by anybody.

    Raises:
        RequestCancelledError: If so.
    """
    beside = _holder.beside
    if beside is not None and not beside.wanted():
        raise RequestCancelledError("The request was given up.")


def take_room(nbytes: int) -> None:
    """What has been decoded takes so many bytes, and is kept. :data:`DECODING` is held."""
    beside = _holder.beside
    if beside is not None and beside.room is not None:
        beside.room -= nbytes


def may_shrink() -> bool:
    """Whether pictures that would take too much may be decoded smaller than they are. :data:`DECODING` is held."""
    return _holder.beside is None


def decoding_room() -> int | None:
    """Bytes that decoding may take now; None where no open model has a budget. :data:`DECODING` is held."""
    beside = _holder.beside
    if beside is not None and beside.room is not None:
        return max(0, beside.room)
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


def check_features(sounds: Sequence[Sized], room: int | None) -> int:
    """Bytes that the features of sounds take; all are padded to the longest.

    Raises:
        InputError: If that is more than there is.
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
    return needed
