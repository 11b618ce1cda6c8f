"""What a store says about itself: the content of ``coterie.json`` as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from coterie.spec import BankKey, ExpertKey, RecordLayout
from coterie.spec.dense_schemes import NATIVE_EVERYWHERE, DenseSchemes
from coterie.spec.encodings import NATIVE, SCHEME_FORMATS, USUAL_SCHEMES, schemes_named

FORMAT_NAME = "coterie-store"
FORMAT_VERSION = 1
"""Of a store whose linear layers outside experts are in one scheme, or as in the checkpoint."""
PARTS_VERSION = 2
"""Of one in which they are in several, by part of the model."""
SCHEMES_VERSION = 3
"""Of one in which an expert or a linear layer is in a scheme that is none of :data:`FIRST_SCHEMES`."""
CHOICES_VERSION = 4
"""Of one that says what its codes were calibrated with, or what the schemes of its experts were allocated by."""

GROUPS_VERSION = 5
"""Of one in which an expert or a linear layer is in a scheme that says itself what is stored for which groups: in one
that is none of :data:`coterie.spec.encodings.USUAL_SCHEMES`."""

FIRST_SCHEMES = frozenset({NATIVE, "int4", "int8"})
"""Those that programs know which read versions 1 and 2 only."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Which model a store holds.

    Attributes:
        class_name: transformers class, such as ``Qwen3OmniMoeThinkerForConditionalGeneration``.
        model_type: ``model_type`` of its config.
        component: Component that was extracted alone, such as ``thinker``; None for a whole model.
        identity: Fingerprint (hex) of architecture and router bytes, the same for every store of one model.
    """

    class_name: str
    model_type: str
    component: str | None
    identity: str


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """Which checkpoint a store was made from.

    Attributes:
        name: Hub id, or the name of the checkpoint's directory.
        revision: Commit of the Hub repository; None for a directory.
        integrity: Fingerprint (hex) of the checkpoint's content.
    """

    name: str
    revision: str | None
    integrity: str


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """One whole file of the store.

    Attributes:
        file: Path relative to the store, with slashes.
        nbytes: Size in bytes.
        checksum: xxh3-128 of its bytes as 32 hex digits.
    """

    file: str
    nbytes: int
    checksum: str


PARTS_OF_ONE = 10**9
"""Errors are whole numbers of this part of what they are a share of: manifests have no fractions."""

MAX_ERROR = 10**6 * PARTS_OF_ONE
"""A million times what the record computes: more than any code is off by."""

WEIGHT_PARTS = 10**15
"""The same for errors of weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordErrors:
    """What a record whose codes were chosen by calibration is off by.

    Attributes:
        output: Squared error of what its matrices compute of what they were given in calibration, as a share of the
            square of that, in billionths (:data:`PARTS_OF_ONE`).
        nearest: The same for codes rounded to nearest.
        weights: For each matrix whose codes were chosen, by its name: the squared error of its weights, as a share of
            their squares, in :data:`WEIGHT_PARTS`. Fine enough to tell a single code or scale from another one: what is
            measured again differs only by the order in which float64 adds.
    """

    output: int
    nearest: int
    weights: Mapping[str, int]


def weight_share(part: float, whole: float) -> int:
    """A squared error of weights as a share of their squares, in :data:`WEIGHT_PARTS`."""
    return min(round(part / whole * WEIGHT_PARTS), 2**53 - 1) if whole > 0 else 0


@dataclass(frozen=True, kw_only=True)
class CalibrationFacts:
    """What the codes of a store were chosen by.

    Attributes:
        fingerprint: Digest (hex) of the inputs that experts were watched on, and of the settings.
        tokens: Domain → tokens of it.
        sequences: Fingerprints of some of the sequences of tokens among them, 16 hex digits each, in ascending order:
            whoever measures quality can tell whether a text is one of these.
    """

    fingerprint: str
    tokens: Mapping[str, int]
    sequences: tuple[str, ...] = ()


CRITERIA = ("reap", "energy")
"""What bits are allocated by: see :func:`coterie.profiles.error_weights`."""


@dataclass(frozen=True, kw_only=True)
class AllocationFacts:
    """What the schemes of a store's experts were allocated by.

    Attributes:
        criterion: One of :data:`CRITERIA`.
        bits: Bits per weight of experts' matrices, scales and zeros counted, in thousandths.
        domains: Those that bits were allocated for, ascending; empty for all.
        tokens_of: Component → the recorded tokens that decided, such as ``text`` or ``text of code``.
        profile: Digest (hex) of the profile's counters that decided.
        left_out: Experts that got no bits, and are not in the store.
    """

    criterion: str
    bits: int
    domains: tuple[str, ...]
    tokens_of: Mapping[str, tuple[str, ...]]
    profile: str
    left_out: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Where one expert is in its segment.

    Attributes:
        expert: Id within the bank.
        offset: Byte offset in the file, a multiple of 4096.
        nbytes: Bytes, padding included; those of the layout.
        scheme: ``native``, ``int8``, ``int4``, ...
        layout: Name of the layout in the manifest.
        checksum: xxh3-128 of the record's bytes as 32 hex digits.
        errors: What it is off by, if its codes were chosen by calibration; else None.
    """

    expert: int
    offset: int
    nbytes: int
    scheme: str
    layout: str
    checksum: str
    errors: RecordErrors | None = None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One file of experts of one bank: records in ascending order of id, without holes.

    Attributes:
        file: Path relative to the store, with slashes.
        nbytes: Size of the file.
        records: Its experts.
    """

    file: str
    nbytes: int
    records: tuple[Record, ...]


@dataclass(frozen=True, kw_only=True)
class Bank:
    """One bank of experts, whichever of them are present.

    Attributes:
        key: Component, layer and bank.
        num_experts: E, the experts that the model has, weightless ones included.
        top_k: Experts that the router chooses per token, or None if it is not fixed.
        sources: Checkpoint keys, or patterns of keys, that the experts came from.
        weightless: Ids of experts that have no weights and hence no record.
        segments: Files with its experts, in the order in which they were added.
    """

    key: BankKey
    num_experts: int
    top_k: int | None
    sources: tuple[str, ...]
    weightless: tuple[int, ...]
    segments: tuple[Segment, ...]

    @cached_property
    def records(self) -> Mapping[int, Record]:
        """Present experts by id, ascending."""
        return {record.expert: record for record in sorted(self._all_records(), key=lambda record: record.expert)}

    @cached_property
    def absent(self) -> tuple[int, ...]:
        """Ids of experts that have weights in the model but no record here, ascending."""
        known = self.records.keys() | set(self.weightless)
        return tuple(expert for expert in range(self.num_experts) if expert not in known)

    @property
    def nbytes(self) -> int:
        """Bytes of all records."""
        return sum(record.nbytes for record in self.records.values())

    def _all_records(self) -> list[Record]:
        return [record for segment in self.segments for record in segment.records]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that ``coterie.json`` says.

    Attributes:
        model: Which model.
        source: Which checkpoint.
        layouts: Record layouts by name; each is used by a record.
        banks: All banks of the model (or component), ordered by key, also those without any expert present.
        dense: Shards of everything that is not an expert.
        dense_index: The index of shards, if there are several.
        files: Configuration, tokenizer and the like, ordered by name.
        ignored: Checkpoint tensors that transformers does not use and that were left out, sorted.
        dense_schemes: The schemes of linear layers outside experts: one for all, or by part of the model.
        calibration: What codes of records that have errors were chosen by; None if there are none.
        allocation: What the schemes of experts were allocated by; None if somebody named them.
    """

    model: ModelFacts
    source: SourceFacts
    layouts: Mapping[str, RecordLayout]
    banks: tuple[Bank, ...]
    dense: tuple[FileFacts, ...]
    dense_index: FileFacts | None
    files: tuple[FileFacts, ...]
    ignored: tuple[str, ...]
    dense_schemes: DenseSchemes = NATIVE_EVERYWHERE
    calibration: CalibrationFacts | None = None
    allocation: AllocationFacts | None = None

    @cached_property
    def version(self) -> int:
        """The version of the format: the oldest that can say all of this."""
        if self.own_groups:
            return GROUPS_VERSION
        if self.calibration is not None or self.allocation is not None:
            return CHOICES_VERSION
        if self.later_schemes:
            return SCHEMES_VERSION
        return PARTS_VERSION if self.dense_schemes.by_part else FORMAT_VERSION

    @property
    def later_schemes(self) -> set[str]:
        """The schemes of experts and linear layers that versions 1 and 2 do not have."""
        experts = {record.scheme for bank in self.banks for segment in bank.segments for record in segment.records}
        return (experts | set(self.dense_schemes.lossy)) - FIRST_SCHEMES

    @property
    def own_groups(self) -> set[str]:
        """The schemes of experts and linear layers that no version before 5 has."""
        named = {name for scheme in self.later_schemes for name in schemes_named(scheme)}
        return (named & SCHEME_FORMATS.keys()) - set(USUAL_SCHEMES)

    @cached_property
    def banks_by_key(self) -> Mapping[BankKey, Bank]:
        """The banks by key."""
        return {bank.key: bank for bank in self.banks}

    @cached_property
    def places(self) -> Mapping[ExpertKey, tuple[Segment, Record]]:
        """Segment and record of every present expert."""
        return {
            bank.key.expert(record.expert): (segment, record)
            for bank in self.banks
            for segment in bank.segments
            for record in segment.records
        }

    @property
    def whole_files(self) -> tuple[FileFacts, ...]:
        """Every file that is checked as a whole: dense shards, their index, side files."""
        index = () if self.dense_index is None else (self.dense_index,)
        return self.dense + index + self.files

    @property
    def file_sizes(self) -> Mapping[str, int]:
        """Size in bytes of every file of the store except the manifest."""
        sizes = {facts.file: facts.nbytes for facts in self.whole_files}
        sizes.update((segment.file, segment.nbytes) for bank in self.banks for segment in bank.segments)
        return sizes

    @property
    def expert_nbytes(self) -> int:
        """Bytes of all records."""
        return sum(bank.nbytes for bank in self.banks)

    @property
    def is_complete(self) -> bool:
        """Whether every expert of every bank is present."""
        return not any(bank.absent for bank in self.banks)
