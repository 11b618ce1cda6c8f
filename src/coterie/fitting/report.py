"""What a fit found, as values: the same facts that its card says in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from coterie.bench import Measurement
from coterie.evaluate import Estimate, Evaluation
from coterie.evaluate.paired import Paired
from coterie.extraction import AllocationReport
from coterie.files.plain_values import from_plain, to_plain
from coterie.planner import HitRate, Range
from coterie.survey import MaterialKind

FIT_SCHEMA_VERSION = 1

Aim = Literal["memory", "speed", "bits"]
"""``memory``: all experts stay in memory. ``speed``: they do not all fit in it, and have the bits with which the
planner expects about the highest speed. ``bits``: as many as were asked for."""

Verdict = Literal["gain", "no gain", "open", "not compared"]
"""Whether the store is nearer to the full model than a uniform one of its size: the whole interval of the paired
difference is below 0; or above; or it has 0 in it, or there is none; or no uniform store was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A number of bits that was considered.

    Attributes:
        bits: Bits per weight of experts, scales included.
        share: Share of the experts that fits.
        tokens_per_second: Likeliest speed; None if this machine was not measured.
    """

    bits: float
    share: float
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """How large the experts are to be, and why.

    Attributes:
        aim: What decided.
        bits: Bits per weight that are to be allocated; None if ``expert_bytes`` says it.
        expert_bytes: Bytes that the records of all experts may take; None if ``bits`` says it.
        about_bits: About how many bits per weight that is.
        room: Bytes that the budget leaves for experts.
        share: Share of the experts that is expected to fit.
        reason: The same in words.
        candidates: What was compared, where speed decided.
        store_nbytes: About what the store will take.
    """

    aim: Aim
    bits: float | None
    expert_bytes: int | None
    about_bits: float
    room: int
    share: float
    reason: str
    candidates: tuple[Candidate, ...]
    store_nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFacts:
    """What the bits were allocated by.

    Attributes:
        profile: Where it is; None if it was recorded for this store and not kept.
        identity: Fingerprint of the model.
        tokens: Domain and modality, such as ``text of code`` → tokens recorded.
    """

    profile: str | None
    identity: str
    tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOut:
    """The experts of a bank that were pruned.

    Attributes:
        component: Part of the model.
        layer: Its layer.
        bank: Its bank.
        kept: Experts that stay.
        experts: Numbers of those that are gone. If the model had been pruned before, they are those of the model that
            was pruned first.
    """

    component: str
    layer: int
    bank: str
    kept: int
    experts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """The pruned model that the store was made of.

    Attributes:
        keep: What was asked to be kept of each layer.
        by: What decided which experts stay.
        ranking: Among which they were ranked.
        profile: What was recorded of the model before.
        banks: What is gone, bank by bank.
        store_nbytes: Bytes of the pruned store, which had the bits of the model.
        seconds: Time that making it took, in the run that finished it.
    """

    keep: str
    by: str
    ranking: str
    profile: ProfileFacts
    banks: tuple[TakenOut, ...]
    store_nbytes: int
    seconds: float

    @property
    def kept(self) -> int:
        """Experts that stay, of all layers."""
        return sum(bank.kept for bank in self.banks)

    @property
    def gone(self) -> int:
        """Experts that are gone."""
        return sum(len(bank.experts) for bank in self.banks)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """A store that was made.

    Attributes:
        experts_present: Experts that it holds.
        experts_total: Experts that the model has.
        store_nbytes: Bytes of all its files.
        expert_nbytes: Bytes of the records of its experts.
        bits: Bits per weight of all the model's experts, scales included; what is left out counts as no bits.
        dense_scheme: How linear layers outside experts are stored.
        calibration_tokens: Domain → tokens that codes were chosen by.
        seconds: Time that making it took, in the run that finished it.
    """

    experts_present: int
    experts_total: int
    store_nbytes: int
    expert_nbytes: int
    bits: float
    dense_scheme: str
    calibration_tokens: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """The store, and how its bits were allocated."""

    store: StoreFacts
    allocation: AllocationReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """A store with the same bits for all experts: of the model as it was, if the fitted store is of a pruned one.

    Attributes:
        name: What it is in words: a scheme, or two and how many experts have each.
        nearest: The scheme next to it in size, of two the larger.
        same_size: Whether it is of the size of the fitted store; if not, no scheme is so small or so large.
        asked_nbytes: Bytes of experts that a token asks for.
        error: Expected error, in the unit of the allocation's; None beside a pruned model, whose profile is another.
        store: The store.
    """

    name: str
    nearest: str
    same_size: bool
    asked_nbytes: float
    error: float | None
    store: StoreFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What verification found; a store with problems ends a fit.

    Attributes:
        files: Files that were checked.
        experts: Experts whose checksum was compared.
        absent_experts: Experts that were left out.
        compared_experts: Experts that were compared with the model's own, or whose error was measured again.
        against: The model that it was compared with; None for a store, with which nothing is compared.
    """

    files: int
    experts: int
    absent_experts: int
    compared_experts: int
    against: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainFigures:
    """What a domain loses.

    Attributes:
        domain: Its name, or ``all`` texts, or those that were asked for; of sounds and pictures ``speech`` or
            ``images``, and of which domain, if that is called otherwise.
        kind: What was scored: ``text``; or ``speech`` or ``images``, of which it was the full model's answers.
        tokens: Tokens that were predicted.
        kld: Mean KL(full ‖ store) in nats per token, with its interval.
        same_top: Share of tokens for which both find the same one most likely; None of several domains together that
            are not all.
        predicted: The divergence that is expected beside the uniform store's, by what the experts of both are off by
            and how much the domain uses them; None where nothing is known: of domains that the profile does not have,
            and without a uniform store.
        uniform: The uniform store's divergence.
        beside: The store beside the uniform one, paired.
        pruned: The divergence of the pruned model before its experts had fewer bits: the price of pruning alone. None
            if nothing was pruned.
    """

    domain: str
    kind: MaterialKind = "text"
    tokens: int
    kld: Estimate
    same_top: Estimate | None
    predicted: float | None
    uniform: Estimate | None
    beside: Paired | None
    pruned: Estimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The evaluations of the store and of the uniform one, and both side by side.

    Attributes:
        evaluation: Of the store.
        uniform: Of the uniform store; None if there is none.
        figures: By domain, then of those that were asked for if there are several, and of all texts.
        decisive: The name in ``figures`` that the verdict goes by.
        pruned: Of the pruned model before its experts had fewer bits; None if nothing was pruned.
    """

    evaluation: Evaluation
    uniform: Evaluation | None
    figures: tuple[DomainFigures, ...]
    decisive: str
    pruned: Evaluation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedFacts:
    """Speed under the budget.

    Attributes:
        share: Share of the experts that fits.
        hit_rate: The forecast.
        expected: Tokens per second that the planner expects; None if it knows no speed of this machine.
        cold: The first generation, with no expert in memory.
        warm: The second, after it.
    """

    share: float
    hit_rate: HitRate
    expected: Range | None
    cold: Measurement
    warm: Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a fit found.

    Attributes:
        schema_version: Version of this structure when written as JSON.
        model: The model that it was made of: a directory's name or a Hub id.
        revision: Commit of a Hub repository, or None.
        store: The directory's name.
        settings: What was asked for, with fingerprints of model and texts.
        memory: The budget in bytes.
        context: Tokens that it provides for.
        domains: Those that were asked for; empty for all.
        sizing: How large the experts are, and why.
        profile: What bits were allocated by: of a pruned model, what was recorded of it.
        pruned: What was pruned before; None if nothing was.
        made: The store.
        uniform: A uniform store of the same size, which was removed; None if none was made.
        verified: What verification found.
        evaluated: What evaluation found.
        speed: Speed expected and measured; None if it was not measured.
        speed_note: Why it could not be measured; else empty.
        verdict: Whether the store is better than the uniform one.
        advice: What to use instead, where it is not; else empty.
        commands: How to make the same, stage by stage.
        versions: Of packages.
    """

    schema_version: int = FIT_SCHEMA_VERSION
    model: str
    revision: str | None
    store: str
    settings: Mapping[str, str]
    memory: int
    context: int
    domains: tuple[str, ...]
    sizing: Sizing
    profile: ProfileFacts
    made: Allocated
    uniform: Uniform | None
    verified: Verified
    evaluated: Evaluated
    speed: SpeedFacts | None
    speed_note: str
    pruned: Pruned | None = None
    verdict: Verdict
    advice: str
    commands: tuple[str, ...]
    versions: Mapping[str, str]

    @property
    def missing(self) -> Literal["mask"] | None:
        """How the store has to be opened: what is done about experts that were left out."""
        return "mask" if self.made.allocation.facts.left_out else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as :func:`~coterie.files.plain_values.to_plain` has them."""
        plain: dict[str, Any] = to_plain(asdict(self))
        return plain

    @classmethod
    def from_json(cls, value: object) -> Fit:
        """The fit that plain values were made of.

        Raises:
            ValueError: If they are of no fit, or of one that a newer Coterie wrote.
        """
        if not isinstance(value, dict) or value.get("schema_version") != FIT_SCHEMA_VERSION:
            raise ValueError("no fit of a version that is known")
        found: Fit = from_plain(cls, value)
        return found
