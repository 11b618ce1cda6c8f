"""Arrays as bytes, and back: the form in which databases and servers hold them.

Counts are little-endian uint32, or uint64 where one is too large; sums little-endian float64. What is mostly zeros or
small (pairs, tokens) is compressed with zlib. Bytes are hostile input: their length is checked before anything is
allocated, and a compressed text is never expanded further than what it must give.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from coterie.errors import ProfileFormatError
from coterie.profiles.facts import (
    MAX_COUNT,
    MAX_PAIR_BYTES,
    MAX_SUM,
    BankCounts,
    Counts,
    SegmentFacts,
    Sums,
    TokenCounts,
)

_FAST = 1
MAX_TOKEN_ENTRIES = 1 << 23
"""Token counts of a run, of all of its banks together."""


def pack_counts(counts: Counts) -> bytes:
    """Counts as uint32, or uint64 if need be."""
    kind = "<u4" if not len(counts) or int(counts.max()) < 1 << 32 else "<u8"
    return counts.astype(kind).tobytes()


def unpack_counts(data: bytes, length: int, what: str) -> Counts:
    """The other way round.

    Args:
        data: What :func:`pack_counts` gave.
        length: How many counts there must be.
        what: What it is, for the message.

    Raises:
        ProfileFormatError: If the length is another, or a count is beyond all reason.
    """
    for kind in ("<u4", "<u8"):
        if len(data) == length * int(kind[2]):
            counts = np.frombuffer(data, kind)
            if length and int(counts.max()) > MAX_COUNT:
                raise _damaged(what, f"a count of {int(counts.max())}")
            return counts.astype(np.int64)
    raise _damaged(what, f"{len(data)} bytes instead of {4 * length}")


def pack_sums(sums: Sums) -> bytes:
    """Sums as float64."""
    return sums.astype("<f8").tobytes()


def unpack_sums(data: bytes, length: int, what: str) -> Sums:
    """The other way round; arguments and errors as of :func:`unpack_counts`, and sums must be finite, within reason."""
    if len(data) != 8 * length:
        raise _damaged(what, f"{len(data)} bytes instead of {8 * length}")
    sums = np.frombuffer(data, "<f8").astype(np.float64)
    if not (np.abs(sums) <= MAX_SUM).all():  # so not of NaN, either
        raise _damaged(what, "a sum is not finite, or beyond all reason")
    return sums


def pack_pairs(pairs: Counts) -> bytes:
    """Counts of pairs, compressed."""
    return zlib.compress(pack_counts(pairs), _FAST)


def unpack_pairs(data: bytes, experts: int, what: str) -> Counts:
    """The other way round; errors as of :func:`unpack_counts`.

    Args:
        data: What :func:`pack_pairs` gave.
        experts: E of the bank.
        what: What it is, for the message.
    """
    length = experts * (experts - 1) // 2
    if 8 * length > MAX_PAIR_BYTES:
        raise _damaged(what, f"pairs of {experts} experts")
    return unpack_counts(_expand(data, 8 * length, what), length, what)


def pack_tokens(state: TokenCounts) -> bytes:
    """A sketch's state, compressed: E, n, then experts, tokens, counts and dropped one after the other."""
    head = np.array([len(state.dropped), len(state.counts)], "<u4").tobytes()
    parts = (
        state.experts.astype("<u2").tobytes(),
        state.tokens.astype("<u4").tobytes(),
        state.counts.astype("<u8").tobytes(),
        state.dropped.astype("<u8").tobytes(),
    )
    return head + zlib.compress(b"".join(parts), _FAST)


def unpack_tokens(data: bytes, segments: int, experts: int, what: str, *, most: int = MAX_TOKEN_ENTRIES) -> TokenCounts:
    """The other way round; errors as of :func:`unpack_counts`.

    Args:
        data: What :func:`pack_tokens` gave.
        segments: Segments that it covers.
        experts: E of the bank.
        what: What it is, for the message.
        most: Counts that it may have.
    """
    if len(data) < 8:
        raise _damaged(what, "it is cut off")
    found, entries = (int(number) for number in np.frombuffer(data[:8], "<u4"))
    if found != experts or entries > most:
        raise _damaged(what, f"{found} experts and {entries} tokens, where the bank has {experts} experts")
    size = 14 * entries + 8 * experts
    body = _expand(data[8:], size, what)
    if len(body) != size:
        raise _damaged(what, f"{len(body)} bytes instead of {size}")
    ends = np.cumsum([0, 2 * entries, 4 * entries, 8 * entries, 8 * experts]).tolist()
    fields: list[npt.NDArray[np.generic]] = [
        np.frombuffer(body[start:end], kind)
        for start, end, kind in zip(ends[:-1], ends[1:], ("<u2", "<u4", "<u8", "<u8"), strict=True)
    ]
    if any(len(field) and int(field.max()) > MAX_COUNT for field in fields[2:]):
        raise _damaged(what, "a count beyond all reason")
    state = TokenCounts(
        segments=segments,
        experts=fields[0].astype(np.uint16),
        tokens=fields[1].astype(np.uint32),
        counts=fields[2].astype(np.int64),
        dropped=fields[3].astype(np.int64),
    )
    if entries and int(state.experts.max()) >= experts:
        raise _damaged(what, f"it names expert {int(state.experts.max())} of {experts}")
    return state


def segment_digest(segment: SegmentFacts) -> str:
    """XXH3-128 of all that a segment holds: equal for equal counters, on every machine."""
    digest = xxhash.xxh3_128()
    for bank in segment.banks:
        digest.update(repr(tuple(bank.bank)).encode())
        for counts in bank.groups:
            head = (tuple(counts.group), counts.tokens, counts.entropy_sum, counts.entropy_squares)
            digest.update(repr(head).encode())
            digest.update(pack_counts(counts.activations) + pack_sums(counts.gate_mass))
            digest.update(pack_sums(counts.reap_sum) + pack_counts(counts.reap_counts))
        digest.update(b"no pairs" if bank.pairs is None else pack_counts(bank.pairs))
    return digest.hexdigest()


def check_bank(bank: BankCounts, experts: int, what: str) -> None:
    """Finds counters that no recording can give.

    Raises:
        ProfileFormatError: If a count is negative, or an expert was chosen more often than there were tokens.
    """
    for counts in bank.groups:
        arrays: Sequence[Counts] = (counts.activations, counts.reap_counts)
        if any(len(array) != experts for array in (*arrays, counts.gate_mass, counts.reap_sum)):
            raise _damaged(what, f"its arrays are not of {experts} experts")
        if counts.tokens < 1 or any((array < 0).any() for array in arrays):
            raise _damaged(what, "a count is negative, or a group has no tokens")
        if not (abs(counts.entropy_sum) <= MAX_SUM and abs(counts.entropy_squares) <= MAX_SUM):
            raise _damaged(what, "an entropy is not finite, or beyond all reason")
        if int(counts.activations.max()) > counts.tokens:
            raise _damaged(
                what, f"an expert was chosen {int(counts.activations.max())} times in {counts.tokens} tokens"
            )
    if bank.pairs is not None and (len(bank.pairs) != experts * (experts - 1) // 2 or (bank.pairs < 0).any()):
        raise _damaged(what, "its pairs are not those of the bank's experts")


def _expand(data: bytes, most: int, what: str) -> bytes:
    """Decompresses to at most so many bytes."""
    expander = zlib.decompressobj()
    try:
        body = expander.decompress(data, most + 1)
    except zlib.error as error:
        raise _damaged(what, str(error)) from error
    if len(body) > most or not expander.eof:
        raise _damaged(what, f"its end is missing, or it is longer than {most} bytes")
    return body


def _damaged(what: str, problem: str) -> ProfileFormatError:
    return ProfileFormatError(
        f"The profile is damaged: {what}: {problem}.",
        advice="Merge an intact copy into a new file, or record again.",
        what=what,
    )
