"""Facts as JSON, and back: what instances send each other. What comes in is checked as hostile input."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from coterie.errors import ProfileFormatError, UsageError
from coterie.profiles.facts import (
    MAX_COUNT,
    STEERING,
    BankCounts,
    BankShape,
    GroupCounts,
    RunFacts,
    SegmentFacts,
    TokenCounts,
    Vocabulary,
    check_group,
)
from coterie.profiles.packing import (
    MAX_TOKEN_ENTRIES,
    check_bank,
    pack_counts,
    pack_pairs,
    pack_sums,
    pack_tokens,
    segment_digest,
    unpack_counts,
    unpack_pairs,
    unpack_sums,
    unpack_tokens,
)
from coterie.spec import BankKey

EXCHANGE_SCHEMA_VERSION = 1
_MAX_BANKS = 4096
_MAX_GROUPS = 256
_MAX_NUMBER = 1 << 31
"""Of layers and segments: what a column holds."""
_TEXTS = ("identity", "model", "model_class", "tool_version", "label", "tokenizer", "started")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_IDENTITY = re.compile(r"[!-~]{1,64}")
_Decoded = TypeVar("_Decoded")


def model_from_json(value: Any) -> tuple[str, str]:
    """Fingerprint and name of a model.

    Raises:
        ProfileFormatError: If it is none.
    """
    return _decoded("model", lambda: (_identity(value["identity"]), _text(value["model"])))


def digest_from_json(value: Any) -> tuple[int, str]:
    """Number and digest of a segment.

    Raises:
        ProfileFormatError: If it is none.
    """
    return _decoded("segment", lambda: (_whole(value["number"], _MAX_NUMBER), _text(value["digest"])))


def run_to_json(run: RunFacts) -> dict[str, Any]:
    """A run as JSON."""
    banks = [shape.bank._asdict() | {"experts": shape.experts, "top_k": shape.top_k} for shape in run.banks]
    return {"uuid": run.uuid} | {name: getattr(run, name) for name in _TEXTS} | {"banks": banks}


def run_from_json(value: Any) -> RunFacts:
    """The other way round.

    Raises:
        ProfileFormatError: If it is not a run.
    """
    return _decoded("run", lambda: _run(value))


def _run(value: Mapping[str, Any]) -> RunFacts:
    shapes = []
    for bank in _limited(value["banks"], _MAX_BANKS):
        shape = BankShape(bank=_bank_key(bank), experts=_whole(bank["experts"]), top_k=_whole(bank["top_k"]))
        shapes.append(shape)
    texts = {name: _text(value[name]) for name in _TEXTS}
    _identity(texts["identity"])
    if not _UUID.fullmatch(value["uuid"]):
        raise ValueError("its uuid is none")
    run = RunFacts(uuid=value["uuid"], banks=tuple(sorted(shapes, key=lambda shape: shape.bank)), **texts)
    run.check()
    return run


def segment_to_json(segment: SegmentFacts) -> dict[str, Any]:
    """A segment as JSON; arrays are packed as in the database, then base64."""
    banks = []
    for bank in segment.banks:
        groups = [
            counts.group._asdict()
            | {
                "tokens": counts.tokens,
                "entropy_sum": counts.entropy_sum,
                "entropy_squares": counts.entropy_squares,
                "activations": _encode(pack_counts(counts.activations)),
                "gate_mass": _encode(pack_sums(counts.gate_mass)),
                "reap_sum": _encode(pack_sums(counts.reap_sum)),
                "reap_counts": _encode(pack_counts(counts.reap_counts)),
            }
            for counts in bank.groups
        ]
        packed = None if bank.pairs is None else _encode(pack_pairs(bank.pairs))
        banks.append(bank.bank._asdict() | {"groups": groups, "pairs": packed})
    return {"number": segment.number, "digest": segment_digest(segment), "banks": banks}


def segment_from_json(value: Any, run: RunFacts) -> SegmentFacts:
    """The other way round.

    Args:
        value: What :func:`segment_to_json` gave.
        run: The run that it belongs to.

    Raises:
        ProfileFormatError: If it is not a segment of that run, or not what its digest says.
    """
    return _decoded("segment", lambda: _segment(value, run))


def _segment(value: Mapping[str, Any], run: RunFacts) -> SegmentFacts:
    shapes = {shape.bank: shape for shape in run.banks}
    banks: dict[BankKey, BankCounts] = {}
    for item in _limited(value["banks"], len(shapes)):
        key = _bank_key(item)
        experts = shapes[key].experts
        what = f"{key} of run {run.uuid}"
        groups = sorted(
            (_group(counts, experts, what) for counts in _limited(item["groups"], _MAX_GROUPS)),
            key=lambda counts: counts.group,
        )
        if len({counts.group for counts in groups}) != len(groups) or key in banks:
            raise ValueError(f"{key} or one of its groups is there twice")
        if item["pairs"] is not None and not run.has_pairs:
            raise ValueError("it has pairs of too many experts")
        pairs = None if item["pairs"] is None else unpack_pairs(_decode(item["pairs"]), experts, what)
        banks[key] = BankCounts(bank=key, groups=tuple(groups), pairs=pairs)
        check_bank(banks[key], experts, what)
    segment = SegmentFacts(
        number=_whole(value["number"], _MAX_NUMBER), banks=tuple(banks[key] for key in sorted(banks))
    )
    if segment_digest(segment) != value["digest"]:
        raise ValueError(f"segment {segment.number} is not what its digest says")
    return segment


def _group(value: Mapping[str, Any], experts: int, what: str) -> GroupCounts:
    return GroupCounts(
        group=check_group(value["modality"], value["domain"], value["phase"]),
        tokens=_whole(value["tokens"]),
        entropy_sum=_real(value["entropy_sum"]),
        entropy_squares=_real(value["entropy_squares"]),
        activations=unpack_counts(_decode(value["activations"]), experts, what),
        gate_mass=unpack_sums(_decode(value["gate_mass"]), experts, what),
        reap_sum=unpack_sums(_decode(value["reap_sum"]), experts, what),
        reap_counts=unpack_counts(_decode(value["reap_counts"]), experts, what),
    )


def vocabulary_to_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Counts of tokens as JSON."""
    banks = [
        key._asdict() | {"segments": state.segments, "counts": _encode(pack_tokens(state))}
        for key, state in sorted(vocabulary.banks.items())
    ]
    totals = [
        {"component": component, "bank": bank, "segments": state.segments, "counts": _encode(pack_tokens(state))}
        for (component, bank), state in sorted(vocabulary.totals.items())
    ]
    return {"banks": banks, "totals": totals}


def vocabulary_from_json(value: Any, run: RunFacts) -> Vocabulary:
    """The other way round; errors as of :func:`segment_from_json`."""
    return _decoded("vocabulary", lambda: _vocabulary(value, run))


def _vocabulary(value: Mapping[str, Any], run: RunFacts) -> Vocabulary:
    shapes = {shape.bank: shape for shape in run.banks}
    kinds = {(shape.bank.component, shape.bank.bank) for shape in run.banks}
    banks: dict[BankKey, TokenCounts] = {}
    left = MAX_TOKEN_ENTRIES
    for item in _limited(value["banks"], len(shapes)):
        key = _bank_key(item)
        banks[key] = _tokens(item, shapes[key].experts, left)
        left -= len(banks[key].counts)
    totals: dict[tuple[str, str], TokenCounts] = {}
    for item in _limited(value["totals"], len(kinds)):
        kind = (item["component"], item["bank"])
        if kind not in kinds:
            raise ValueError(f"{kind} is no bank of the run")
        totals[kind] = _tokens(item, 1, left)
        left -= len(totals[kind].counts)
    return Vocabulary(banks=banks, totals=totals)


def _tokens(item: Mapping[str, Any], experts: int, most: int) -> TokenCounts:
    segments = _whole(item["segments"], _MAX_NUMBER)
    return unpack_tokens(_decode(item["counts"]), segments, experts, "counts of tokens", most=most)


def _decoded(what: str, decode: Callable[[], _Decoded]) -> _Decoded:
    """The result of a decoder; whatever it stumbles over is one kind of error."""
    try:
        return decode()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, UsageError, binascii.Error) as error:
        problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else str(error)
        raise ProfileFormatError(f"This is no {what}: {problem}.", advice="Nothing of it was used.") from error


def _bank_key(value: Mapping[str, Any]) -> BankKey:
    component, bank = _text(value["component"]), _text(value["bank"])
    if not component or not bank or len(component) > 64 or len(bank) > 64:
        raise ValueError("a bank without a name, or with too long a one")
    return BankKey(component, _whole(value["layer"], _MAX_NUMBER), bank)


def _whole(value: Any, most: int = MAX_COUNT + 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < most:
        raise ValueError(f"{value!r} is no count")
    return value


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a sum is no number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 255 or STEERING.search(value):
        raise ValueError("a text is missing, longer than 255 characters, or has control characters in it")
    return value


def _identity(value: Any) -> str:
    if not isinstance(value, str) or not _IDENTITY.fullmatch(value):
        raise ValueError("a fingerprint is none")
    return value


def _limited(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"a list of at most {most} was expected")
    return value


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError("packed numbers are a text")
    return base64.b64decode(text, validate=True)
