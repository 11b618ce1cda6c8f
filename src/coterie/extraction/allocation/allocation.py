"""What somebody asks of an allocation of bits, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from coterie.errors import UsageError
from coterie.spec import BankKey, ExpertKey, parse_bytes
from coterie.store import AllocationFacts

_RECORD = (
    "Record one: coterie profile record MODEL --db PROFILE --text DOMAIN=PATH, with texts of every kind that the model "
    "is for (and --speech and --images, if it takes them). Then add --profile PROFILE."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Bits for each expert's matrices by what a profile says of it, within a total.

    Attributes:
        bits: Bits per weight of all experts' matrices, scales and zeros counted, such as 3.5: the mean over all weights
            of each component. Either this or ``expert_bytes``.
        expert_bytes: What the records of all experts may take in the store, and in memory if all are there, such as
            ``"12GiB"``. Each component gets its share by its number of weights.
        profile: The model's profile: a file, or a PostgreSQL URL.
        domains: Bits go to what these domains use, and experts that they hardly use may be left out: the result is a
            partial store. By default all tokens count, and every expert stays.
        modalities: Only what these modalities use counts; by default all that the model takes or makes, of which the
            profile must know each.
    """

    profile: str | Path | None
    bits: float | None = None
    expert_bytes: str | int | None = None
    domains: Sequence[str] = ()
    modalities: Sequence[str] = ()

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.expert_bytes is None):
            raise UsageError(
                "An allocation takes bits per weight or bytes for all experts, one of the two.",
                advice="Give --bits, such as 3.5, or --expert-bytes, such as 12GiB.",
            )
        if self.bits is not None and not (isfinite(self.bits) and 0 < self.bits <= 64):
            raise UsageError(f"{self.bits} is not a number of bits per weight.", advice="Write it like 3.5.")
        if self.profile is None:
            raise UsageError("Which experts get how many bits goes by what a profile has recorded.", advice=_RECORD)
        if self.expert_bytes is not None:
            parse_bytes(self.expert_bytes, what="expert bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixLevels:
    """How often each level was given to one matrix of the experts of a bank.

    Attributes:
        component: Part of the model.
        layer: Its layer.
        bank: Its bank.
        matrix: Name of the parameter.
        levels: Scheme → experts that have the matrix in it.
        left_out: Experts that are left out.
    """

    component: str
    layer: int
    bank: str
    matrix: str
    levels: Mapping[str, int]
    left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way of storing the experts of a component.

    Attributes:
        name: ``allocation``, or the scheme that all matrices have.
        bits: Bits per weight, scales and zeros counted; what is left out counts as no bits.
        nbytes: Bytes of all records.
        error: The squared error that experts' outputs are expected to have, as a share of their squares, weighted as in
            the allocation: the sum over the matrices of an expert of the squared error of their weights; 4 for one that
            is left out.
        asked_nbytes: Bytes of the experts that a token asks for, on average over the recorded tokens that decided.
    """

    name: str
    bits: float
    nbytes: int
    error: float
    asked_nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentChoices:
    """The allocation of a component beside uniform schemes.

    Attributes:
        component: Its name.
        weights: Weights of its experts' matrices.
        allocation: What was chosen.
        uniform: The schemes for all next to it in size: the larger of those below, and the smaller of those above.
        asked_ratio: What a token asks for, divided by what it would ask for if all experts were as large as the mean.
    """

    component: str
    weights: int
    allocation: Choice
    uniform: tuple[Choice, ...]
    asked_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationReport:
    """An allocation: how it was chosen, what it is, and what equal schemes would be beside it.

    Attributes:
        criterion: ``reap``, or, if domains were named, ``energy``.
        domains: Those that were asked for, ascending.
        tokens_of: Component → the recorded tokens that decided.
        profile: Fingerprint of the counters that decided.
        bits: Bits per weight, over all components.
        nbytes: Bytes of all records.
        left_out: Experts that are left out.
        components: By name.
        matrices: By component, layer, bank and matrix.
    """

    criterion: str
    domains: tuple[str, ...]
    tokens_of: Mapping[str, tuple[str, ...]]
    profile: str
    bits: float
    nbytes: int
    left_out: int
    components: tuple[ComponentChoices, ...]
    matrices: tuple[MatrixLevels, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """What an allocation comes to for a model.

    Attributes:
        schemes: The scheme of the record of every expert that stays.
        facts: What the store says about it.
        report: What people are told.
    """

    schemes: Mapping[ExpertKey, str]
    facts: AllocationFacts
    report: AllocationReport

    def chosen(self, asked: Mapping[BankKey, Sequence[int]]) -> dict[BankKey, tuple[int, ...]]:
        """Bank → ids of the experts that stay, of those that were asked for."""
        return {key: tuple(e for e in ids if key.expert(e) in self.schemes) for key, ids in asked.items()}
