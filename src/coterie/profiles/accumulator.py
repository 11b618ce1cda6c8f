"""Counts what routers choose, for all banks of a model."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from coterie.errors import UsageError
from coterie.profiles.counters import BankCounters
from coterie.profiles.facts import (
    MAX_EXPERTS,
    BankShape,
    Group,
    SegmentFacts,
    Vocabulary,
    check_group,
)
from coterie.profiles.sketch import TokenSketch
from coterie.spec import BankKey

DEFAULT_BUFFER_TOKENS = 512
DEFAULT_VOCABULARY = 64
MAX_GROUPS = 256


class Accumulator:
    """Counters of all banks, for one segment at a time; safe to use from several threads.

    Memory is bounded: :attr:`nbytes` says how much is held, and nothing but a new group or a token id that was not
    seen before makes it more. At the shape of Qwen3-30B-A3B (48 banks, 128 experts, 8 per token), with 64 tokens kept
    per expert, it is some tens of MiB.

    Args:
        banks: The banks that will be counted.
        vocabulary: Tokens kept per expert; 0 counts no token ids.
        pairs: Whether pairs of experts are counted.
        buffer_tokens: Tokens kept per bank until they are counted, all at once.

    Raises:
        UsageError: If a bank is named twice or has a shape that cannot be.
    """

    def __init__(
        self,
        banks: Sequence[BankShape],
        *,
        vocabulary: int = DEFAULT_VOCABULARY,
        pairs: bool = True,
        buffer_tokens: int = DEFAULT_BUFFER_TOKENS,
    ) -> None:
        _check_shapes(banks)
        if vocabulary < 0 or buffer_tokens < 1:
            raise UsageError(f"vocabulary={vocabulary}, buffer_tokens={buffer_tokens}: these cannot be.")
        self.groups: list[Group] = []
        self._numbers: dict[Group, int] = {}
        self._lock = threading.Lock()
        self._banks: dict[BankKey, BankCounters] = {}
        totalled: set[tuple[str, str]] = set()
        for place, shape in enumerate(sorted(banks, key=lambda shape: shape.bank), start=1):
            # All layers of a component see the same tokens; its banks of another name may see others.
            kind = (shape.bank.component, shape.bank.bank)
            self._banks[shape.bank] = BankCounters(
                shape,
                buffer_tokens=buffer_tokens,
                first_fold=max(1, buffer_tokens * place // len(banks)),
                pairs=pairs,
                sketch=TokenSketch(shape.experts, vocabulary) if vocabulary else None,
                totals=TokenSketch(1, None) if vocabulary and kind not in totalled else None,
            )
            totalled.add(kind)

    def group(self, modality: str, domain: str, phase: str) -> int:
        """The number of a group, for :meth:`add`; the same names always have the same number.

        Raises:
            UsageError: For a name that cannot be, or more than 256 groups.
        """
        group = check_group(modality, domain, phase)
        with self._lock:
            if group not in self._numbers:
                if len(self.groups) == MAX_GROUPS:
                    raise UsageError(
                        f"More than {MAX_GROUPS} combinations of modality, domain and phase in one run.",
                        advice="Record in several runs; profiles merge.",
                    )
                self._numbers[group] = len(self.groups)
                self.groups.append(group)
            return self._numbers[group]

    def add(
        self,
        bank: BankKey,
        expert_ids: npt.NDArray[np.uint16],
        weights: npt.NDArray[np.float32],
        contributions: npt.NDArray[np.float32] | None,
        groups: npt.NDArray[np.uint8] | int,
        token_ids: npt.NDArray[np.integer] | int | None = None,
    ) -> None:
        """Counts T tokens that passed a bank's router. Arrays are copied; some microseconds for one token.

        Args:
            bank: Which.
            expert_ids: uint16 [T, K]; an id that is no expert's (65535) is not counted.
            weights: float32 [T, K], gate weights as the experts module received them.
            contributions: float32 [T, K], gate weight × ‖expert output‖₂, NaN where it was not measured; None if
                nowhere.
            groups: [T] numbers from :meth:`group`, or one for all.
            token_ids: [T] ids of the input tokens, −1 for none; or one for all; None to leave them out.

        Raises:
            KeyError: If the bank was not announced.
            ValueError: If the shapes do not fit.
        """
        with self._lock:
            self._banks[bank].add(expert_ids, weights, contributions, groups, token_ids)

    @property
    def tokens(self) -> int:
        """Tokens counted in this segment by the bank that saw most."""
        return max((counters.seen for counters in self._banks.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes held, or about to be held, by all counters and buffers."""
        return sum(counters.nbytes for counters in self._banks.values())

    def take(self, number: int) -> SegmentFacts:
        """What was counted since the last call, as a segment; all counters but those of tokens begin at zero again."""
        with self._lock:
            found = (counters.take(self.groups) for counters in self._banks.values())
            return SegmentFacts(number=number, banks=tuple(counts for counts in found if counts is not None))

    def vocabulary(self, segments: int) -> Vocabulary:
        """Counts of token ids since the run began.

        Args:
            segments: Segments that have been taken.
        """
        with self._lock:
            banks, totals = {}, {}
            for key, counters in self._banks.items():
                if counters.sketch is not None:
                    banks[key] = counters.sketch.state(segments)
                if counters.totals is not None:
                    totals[key.component, key.bank] = counters.totals.state(segments)
            return Vocabulary(banks=banks, totals=totals)

    def load(self, vocabulary: Vocabulary) -> None:
        """Goes on from counts of token ids that :meth:`vocabulary` gave."""
        with self._lock:
            for key, counters in self._banks.items():
                if counters.sketch is not None and key in vocabulary.banks:
                    counters.sketch.load(vocabulary.banks[key])
                if counters.totals is not None and (key.component, key.bank) in vocabulary.totals:
                    counters.totals.load(vocabulary.totals[key.component, key.bank])


def _check_shapes(banks: Sequence[BankShape]) -> None:
    names = [shape.bank for shape in banks]
    if len(set(names)) != len(names):
        raise UsageError("A bank is named twice.", got=names)
    for shape in banks:
        if not 0 < shape.experts <= MAX_EXPERTS or not 0 < shape.top_k <= shape.experts:
            raise UsageError(
                f"{shape.bank}: {shape.top_k} of {shape.experts} experts per token cannot be.", bank=shape.bank
            )
