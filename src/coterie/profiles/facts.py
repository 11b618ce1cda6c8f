"""What is counted while a model runs: runs, segments, and the counters of each bank of experts.

Facts only: nothing here is a rate or a judgement. Shapes use E experts of a bank, G groups, T tokens, K experts per
token. Counters only grow, and belong to one run, which is named by a UUID drawn when it began; so two copies of the
same counters are joined by taking the larger of each, in any order and as often as one likes (:func:`join_segments`).
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from coterie.errors import UsageError
from coterie.spec import BankKey

Modality = Literal["text", "image", "audio", "video", "speech"]
"""What a token stands for: ``speech`` is a token of a speech codec, as talkers use them; ``audio`` is heard sound."""

TokenPhase = Literal["prompt", "generated"]
"""Whether a token was given or sampled."""

MODALITIES: tuple[Modality, ...] = get_args(Modality)
PHASES: tuple[TokenPhase, ...] = get_args(TokenPhase)
MAX_NAME = 64
"""Characters of a domain's name."""
MAX_EXPERTS = 65535
"""Experts of a bank: ids are uint16, and the last one means `no expert`."""

STEERING = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""What is in no text of a run: control characters, of which PostgreSQL takes not all, and halves of surrogates."""
MAX_RUN_EXPERTS = 1 << 20
"""Experts of all banks of a run."""
MAX_COUNT = 1 << 44
"""The largest count of a segment: sums over half a million of rows still fit into 64 bits."""
MAX_SUM = float(1 << 60)
"""The largest sum of a segment."""
MAX_PAIR_BYTES = 128 << 20
"""Bytes of the counts of pairs of all banks of a segment; a model with more is recorded without pairs."""

Counts = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]


class Group(NamedTuple):
    """Which tokens a counter counts: those of one modality, domain and phase."""

    modality: Modality
    domain: str
    phase: TokenPhase


def check_group(modality: str, domain: str, phase: str) -> Group:
    """The group of these names.

    Raises:
        UsageError: For an unknown modality or phase, or a domain that is empty, too long or not printable.
    """
    if modality not in MODALITIES:
        raise UsageError.unknown("modality", modality, MODALITIES)
    if phase not in PHASES:
        raise UsageError.unknown("phase", phase, PHASES)
    if not 0 < len(domain) <= MAX_NAME or not domain.isprintable() or domain != domain.strip():
        raise UsageError(
            f"{domain!r} is not the name of a domain.",
            advice=f"Use up to {MAX_NAME} printable characters, such as 'code'.",
            got=domain,
        )
    return Group(modality, domain, phase)


def kept_text(text: str, most: int = 255) -> str:
    """What a profile keeps of a text about a run."""
    return STEERING.sub("", text)[:most]


@dataclass(frozen=True, slots=True, kw_only=True)
class BankShape:
    """One bank of experts as a run used it.

    Attributes:
        bank: Which.
        experts: E, experts behind its router.
        top_k: K, experts per token.
    """

    bank: BankKey
    experts: int
    top_k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """One recording run: who was watched, and when it began.

    Attributes:
        uuid: Drawn anew for every run; counters are keyed by it.
        identity: Fingerprint of the model: architecture and router bytes, the same for every store of one model.
        model: Its name.
        model_class: Its transformers class.
        banks: Its banks, in order.
        started: When the run began, UTC, ISO 8601 to the second.
        tool_version: Version of the program that recorded.
        label: Free text.
        tokenizer: Name of the tokenizer that token ids belong to.
    """

    identity: str
    model: str
    model_class: str
    banks: tuple[BankShape, ...]
    tool_version: str
    label: str = ""
    tokenizer: str = ""
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))

    @property
    def has_pairs(self) -> bool:
        """Whether pairs of its experts are counted: not where they are too many to be held."""
        return sum(4 * shape.experts * (shape.experts - 1) for shape in self.banks) <= MAX_PAIR_BYTES

    def check(self) -> None:
        """Finds banks that no model has.

        Raises:
            ValueError: If there are any; says what is wrong.
        """
        if len({shape.bank for shape in self.banks}) != len(self.banks):
            raise ValueError("a bank is there twice")
        for shape in self.banks:
            if not 0 < shape.experts <= MAX_EXPERTS or not 0 < shape.top_k <= shape.experts:
                raise ValueError(f"{shape.bank} has {shape.top_k} of {shape.experts} experts per token")
        if sum(shape.experts for shape in self.banks) > MAX_RUN_EXPERTS:
            raise ValueError(f"it has more than {MAX_RUN_EXPERTS:,} experts")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupCounts:
    """Counters of one bank for the tokens of one group.

    Attributes:
        group: Which tokens.
        tokens: How many passed the router.
        entropy_sum: Sum over them of the entropy of their K gate weights scaled to 1, in nats.
        entropy_squares: Sum of its squares.
        activations: [E] tokens that selected each expert.
        gate_mass: [E] sum of their gate weights.
        reap_sum: [E] sum of gate weight × ‖expert output‖₂ over the activations where it was measured.
        reap_counts: [E] how many activations those are.
    """

    group: Group
    tokens: int
    entropy_sum: float
    entropy_squares: float
    activations: Counts
    gate_mass: Sums
    reap_sum: Sums
    reap_counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BankCounts:
    """Counters of one bank within a segment.

    Attributes:
        bank: Which.
        groups: One entry per group that had tokens, in order of the groups.
        pairs: [E·(E−1)/2] tokens that selected both experts of a pair (i < j), row by row of the upper triangle; None
            if pairs were not counted.
    """

    bank: BankKey
    groups: tuple[GroupCounts, ...]
    pairs: Counts | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentFacts:
    """Everything counted in one stretch of a run: the unit of sampling, of writing and of transfer.

    Attributes:
        number: Place within the run, from 0.
        banks: Counters by bank, in order of the banks.
    """

    number: int
    banks: tuple[BankCounts, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the bank that saw most."""
        return max((sum(counts.tokens for counts in bank.groups) for bank in self.banks), default=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenCounts:
    """How often each expert of a bank was selected for which input token: its heaviest tokens, from a bounded sketch.

    Counts are of the *input* token of a position, whose hidden state the router saw. Each falls short of the truth
    by at most ``dropped`` of its expert, and a token that is not listed was counted at most so often.

    Attributes:
        segments: Segments of the run that are covered, from the first; a later state has more of them.
        experts: uint16 [n], ascending.
        tokens: uint32 [n] token ids, ascending within an expert.
        counts: int64 [n].
        dropped: int64 [E], the error bound.
    """

    segments: int
    experts: npt.NDArray[np.uint16]
    tokens: npt.NDArray[np.uint32]
    counts: Counts
    dropped: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Counts of token ids of one run.

    Attributes:
        banks: Bank → its experts' heaviest tokens.
        totals: (component, bank name) → how often each token id passed, exact: a :class:`TokenCounts` of one `expert`.
    """

    banks: dict[BankKey, TokenCounts]
    totals: dict[tuple[str, str], TokenCounts]


@dataclass(frozen=True, slots=True)
class Mark:
    """How far an input of a resumable recording has been counted.

    Attributes:
        key: Fingerprint of the input's name; names themselves are not kept.
        position: Units of the input that are counted, such as windows.
        done: Whether that is all of it.
    """

    key: str
    position: int
    done: bool


def join_groups(a: GroupCounts, b: GroupCounts) -> GroupCounts:
    """The larger of each counter of the same group."""
    return GroupCounts(
        group=a.group,
        tokens=max(a.tokens, b.tokens),
        entropy_sum=max(a.entropy_sum, b.entropy_sum),
        entropy_squares=max(a.entropy_squares, b.entropy_squares),
        activations=np.maximum(a.activations, b.activations),
        gate_mass=np.maximum(a.gate_mass, b.gate_mass),
        reap_sum=np.maximum(a.reap_sum, b.reap_sum),
        reap_counts=np.maximum(a.reap_counts, b.reap_counts),
    )


def join_banks(a: BankCounts, b: BankCounts) -> BankCounts:
    """The larger of each counter of the same bank; groups that only one of them has are kept."""
    groups = {counts.group: counts for counts in a.groups}
    for counts in b.groups:
        groups[counts.group] = join_groups(groups[counts.group], counts) if counts.group in groups else counts
    if a.pairs is None or b.pairs is None:
        pairs = b.pairs if a.pairs is None else a.pairs
    else:
        pairs = np.maximum(a.pairs, b.pairs)
    return BankCounts(bank=a.bank, groups=tuple(groups[key] for key in sorted(groups)), pairs=pairs)


def join_segments(a: SegmentFacts, b: SegmentFacts) -> SegmentFacts:
    """The larger of each counter of the same segment of the same run.

    A join of a semilattice: commutative, associative and idempotent, so copies of a run may meet in any order.
    """
    banks = {counts.bank: counts for counts in a.banks}
    for counts in b.banks:
        banks[counts.bank] = join_banks(banks[counts.bank], counts) if counts.bank in banks else counts
    return SegmentFacts(number=a.number, banks=tuple(banks[key] for key in sorted(banks)))


def join_tokens(a: TokenCounts, b: TokenCounts) -> TokenCounts:
    """The later state of a run's sketch: the one that covers more segments.

    A sketch is not a counter that only grows, but its states have one order, because a run has one writer.
    """
    return max(a, b, key=_token_order)


def _token_order(state: TokenCounts) -> tuple[int, bytes, bytes, bytes, bytes]:
    """What orders states: segments; and then all that they hold, so that damaged copies cannot make order matter."""
    arrays = (state.counts, state.tokens, state.experts, state.dropped)
    counts, tokens, experts, dropped = (array.tobytes() for array in arrays)
    return state.segments, counts, tokens, experts, dropped


def join_marks(a: Mark, b: Mark) -> Mark:
    """The mark that is further on."""
    return replace(a, position=max(a.position, b.position), done=a.done or b.done)
