"""What a model is run over in calibration: the same forward passes for every layer, whatever memory there is."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from coterie.errors import InputError
from coterie.evaluate.overlap import kept_sequences
from coterie.evaluate.texts import beginning
from coterie.files.text import text_parts
from coterie.generation.inputs import build_inputs
from coterie.generation.processors import Processors
from coterie.hf.tokenizer import encode_text
from coterie.survey import Material

_ROWS = 4
"""Windows of a forward pass: experts are read once for all of them. Not by what memory there is: with other rows, sums
would be rounded in another way."""

_LEAST_TOKENS = 8
"""Of a window: fewer say nothing."""

_MEDIA = 64
"""Sounds or pictures of a domain, at most."""

_VERSION = 1
"""Of how codes are chosen; part of the fingerprint."""

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One forward pass.

    Attributes:
        ids: Token ids of its windows, all of one length; empty for a sound or a picture.
        medium: A sound or a picture, or None.
    """

    ids: tuple[tuple[int, ...], ...] = ()
    medium: Material | None = None

    def inputs(self, processors: Processors, dtype: torch.dtype) -> Inputs:
        """What the model's forward takes."""
        if self.medium is None:
            return {"input_ids": torch.tensor(self.ids, dtype=torch.int64)}
        audios, images = ([self.medium.path] if self.medium.kind == kind else [] for kind in ("speech", "images"))
        made: Inputs = build_inputs(processors, "", images=images, audios=audios).to(dtype)
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """All forward passes of a calibration.

    Attributes:
        runs: In order.
        tokens: Domain → tokens of it.
        fingerprint: Hex digits that differ if the passes do.
        sequences: Fingerprints of sequences of tokens, by which a text is recognised.
    """

    runs: tuple[Run, ...]
    tokens: Mapping[str, int]
    fingerprint: str
    sequences: tuple[str, ...]


def plan_runs(
    material: Sequence[Material], processors: Processors, *, tokens: int, context: int, longest: int | None
) -> Runs:
    """Takes the same number of tokens of each domain, as far as it has them, evenly from its files.

    Args:
        material: Files by domain.
        processors: Of the model.
        tokens: In all.
        context: Tokens of a window.
        longest: Those that the model was made for, if that is known; a pass has no more, either.

    Raises:
        InputError: If a file cannot be used, or there is too little text.
    """
    domains = {name: [one for one in material if one.domain == name] for name in sorted({m.domain for m in material})}
    share = max(_LEAST_TOKENS, tokens // len(domains))
    windows: list[tuple[int, ...]] = []
    media: list[Material] = []
    counts: Counter[str] = Counter()
    for domain, files in domains.items():
        texts = [one for one in files if one.kind == "text"]
        for ids in _windows(texts, processors, share, context):
            windows.append(ids)
            counts[domain] += len(ids)
        media += _spread([one for one in files if one.kind != "text"], _MEDIA)
    rows = _ROWS if longest is None else max(1, min(_ROWS, longest // context))
    runs = [
        Run(ids=tuple(together[first : first + rows]))
        for _, group in groupby(sorted(windows, key=len, reverse=True), key=len)
        for together in [list(group)]
        for first in range(0, len(together), rows)
    ]
    for medium in media:
        run = Run(medium=medium)
        counts[medium.domain] += run.inputs(processors, torch.float32)["input_ids"].numel()
        runs.append(run)
    if not runs:
        raise InputError(
            f"The texts have fewer than {_LEAST_TOKENS} tokens; nothing can be calibrated by them.",
            advice="Give some thousand words of each kind of text that the model is for.",
        )
    return Runs(
        runs=tuple(runs),
        tokens=dict(counts),
        fingerprint=_fingerprint(runs),
        sequences=kept_sequences(ids for run in runs for ids in run.ids),
    )


def _fingerprint(runs: Sequence[Run]) -> str:
    digest = hashlib.sha256(f"{_VERSION}".encode())
    for run in runs:
        content = None if run.medium is None else hashlib.sha256(run.medium.path.read_bytes()).hexdigest()
        digest.update(json.dumps([run.ids, content]).encode())
    return digest.hexdigest()


def _spread(files: Sequence[Material], most: int) -> list[Material]:
    """At most so many of them, evenly."""
    count = min(most, len(files))
    return [files[number * len(files) // count] for number in range(count)]


def _windows(files: Sequence[Material], processors: Processors, share: int, context: int) -> Iterator[tuple[int, ...]]:
    """Windows of some texts, so many tokens together, evenly from all of them."""
    chosen = _spread(files, share // _LEAST_TOKENS)
    prefix = beginning(processors.tokenizer)
    left = share
    for number, file in enumerate(chosen):
        quota = left // (len(chosen) - number)
        for ids in _of_file(file, processors, context - len(prefix)):
            taken = ids[: quota - len(prefix)]
            if len(taken) < _LEAST_TOKENS:
                break
            yield (*prefix, *taken)
            quota -= len(prefix) + len(taken)
            left -= len(prefix) + len(taken)


def _of_file(file: Material, processors: Processors, room: int) -> Iterator[list[int]]:
    """A text's tokens in pieces of ``room``; the last may be shorter."""
    for part in text_parts(file.path):
        ids = encode_text(processors.tokenizer, part)
        yield from (ids[first : first + room] for first in range(0, len(ids), room))
