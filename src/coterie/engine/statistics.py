"""What a streamed model did since it was opened: figures to read, and to write as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from coterie.engine.fetching import FetchCounts
from coterie.engine.parts import PartStats
from coterie.passes import BankCounters, StreamedBank, Verdict
from coterie.spec import BankKey

STATS_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BankStats:
    """Figures of one bank, or of several added up.

    Attributes:
        requested: Distinct experts asked for, added up over forward passes.
        hits: Of these, found resident.
        misses: Of these, read.
        hit_rate: Hits per request over all phases.
        decode_requested: Requests of decode steps alone.
        decode_hit_rate: The field's *hit rate*: decode slots found resident per slot asked for.
        bytes_read: Bytes read from disk.
        wait_s: Seconds that compute waited for reads.
        evictions: Experts evicted.
        absent: (token, expert) pairs whose expert is not in the store.
        left_out: Distinct experts that decode steps left out because of ``drop_cold``, added up over steps. They are
            neither requests nor misses.
        bytes_not_read: Bytes of their records. Without ``drop_cold`` less than that would be read in addition: what is
            read serves later tokens, too.
    """

    requested: int
    hits: int
    misses: int
    hit_rate: float
    decode_requested: int
    decode_hit_rate: float
    bytes_read: int
    wait_s: float
    evictions: int
    absent: int
    left_out: int
    bytes_not_read: int

    @classmethod
    def total(cls, counters: Iterable[BankCounters]) -> BankStats:
        """Adds up counters."""
        total = BankCounters()
        for one in counters:
            for name in BankCounters.__slots__:
                setattr(total, name, getattr(total, name) + getattr(one, name))
        return cls(
            requested=total.requested,
            hits=total.hits,
            misses=total.misses,
            hit_rate=total.hits / total.requested if total.requested else 0.0,
            decode_requested=total.decode_requested,
            decode_hit_rate=total.decode_hits / total.decode_requested if total.decode_requested else 0.0,
            bytes_read=total.bytes_read,
            wait_s=total.wait_s,
            evictions=total.evictions,
            absent=total.absent,
            left_out=total.left_out,
            bytes_not_read=total.bytes_not_read,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStats:
    """What one token used in one layer.

    Attributes:
        step: Forward pass.
        position: Position within the forward pass's batch × tokens.
        component: Component.
        layer: Layer.
        bank: Bank.
        experts: Ids that the router chose.
        weights: Their gate weights.
        dominant: The id with the largest weight.
        dominant_share: Its share of the token's gate weight.
    """

    step: int
    position: int
    component: str
    layer: int
    bank: str
    experts: tuple[int, ...]
    weights: tuple[float, ...]
    dominant: int
    dominant_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStats:
    """Everything counted since the model was opened.

    Attributes:
        schema_version: Version of this structure when written as JSON.
        model: Name of the store or checkpoint.
        identity: Fingerprint of the model.
        prefill_tokens: Component → tokens of prompts.
        decode_tokens: Component → tokens of decode steps.
        total: All banks.
        components: Component → its banks added up.
        layers: Each bank.
        capacity: Bytes that experts may take in memory.
        resident_bytes: Bytes of the experts in memory now.
        resident_experts: Experts in memory now.
        total_expert_bytes: Bytes of all experts that are in the source.
        minimum: The least capacity that works.
        working_set: Bytes of layers × experts per token, of the largest component: below twice this, a global LRU can
            fall to 0 % hits.
        reads_at_once: Reads outstanding at most.
        prefetch_hinted: Experts that were not in memory when they were predicted to be asked for next.
        prefetch_issued: Prefetch reads started; the disk had other things to do for the rest.
        prefetch_used: Of these, asked for before they were evicted.
        prefetch_in_time: Of these, in memory by then; the others were still on their way.
        prefetch_wasted: Prefetched and evicted without having been asked for.
        prefetch_bytes: Bytes that prefetches read; they are in no bank's ``bytes_read``.
        warmed: Experts read because a profile says that they are used much.
        warmed_used: Of these, asked for before they were evicted.
        warmed_bytes: Bytes that these reads read; they are in no bank's ``bytes_read``.
        warmed_for: The profile's domain that is expected; None for all, or without a profile.
        pinned: Experts that leave memory only when nothing else can.
        prefetch_verdicts: Component → what looking ahead was worth lately: ``pays``, or why it was not done; none with
            ``prefetch="off"``.
        announced_issued: Reads of what prompts had announced for their next layers, started early.
        announced_used: Of these, asked for; they are in the banks' ``bytes_read``.
        fetched: What ``missing="fetch"`` has read from the checkpoint.
        parts: Path of a part that is in memory only while a request needs it → what became of it; empty where
            everything stays in memory.
        tokens: Per token and layer, if it was asked for.
    """

    schema_version: int
    model: str
    identity: str
    prefill_tokens: dict[str, int]
    decode_tokens: dict[str, int]
    total: BankStats
    components: dict[str, BankStats]
    layers: dict[BankKey, BankStats]
    capacity: int
    resident_bytes: int
    resident_experts: int
    total_expert_bytes: int
    minimum: int
    working_set: int
    reads_at_once: int
    prefetch_hinted: int
    prefetch_issued: int
    prefetch_used: int
    prefetch_in_time: int
    prefetch_wasted: int
    prefetch_bytes: int
    warmed: int
    warmed_used: int
    warmed_bytes: int
    warmed_for: str | None
    pinned: int
    prefetch_verdicts: dict[str, Verdict]
    announced_issued: int
    announced_used: int
    fetched: FetchCounts
    parts: dict[str, PartStats]
    tokens: tuple[TokenStats, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; layers become a list with component, layer and bank."""
        plain = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("total", "components", "layers", "fetched", "parts", "tokens")
        }
        plain["total"] = asdict(self.total)
        plain["fetched"] = asdict(self.fetched)
        plain["parts"] = {path: asdict(part) for path, part in self.parts.items()}
        plain["components"] = {name: asdict(stats) for name, stats in self.components.items()}
        plain["layers"] = [
            {"component": key.component, "layer": key.layer, "bank": key.bank, **asdict(stats)}
            for key, stats in self.layers.items()
        ]
        if self.tokens is not None:
            plain["tokens"] = [asdict(token) for token in self.tokens]
        return plain


def bank_statistics(
    banks: dict[BankKey, StreamedBank],
) -> tuple[BankStats, dict[str, BankStats], dict[BankKey, BankStats]]:
    """All banks together, by component, and each."""
    components = sorted({key.component for key in banks})
    return (
        BankStats.total(bank.counters for bank in banks.values()),
        {c: BankStats.total(b.counters for k, b in banks.items() if k.component == c) for c in components},
        {key: BankStats.total([bank.counters]) for key, bank in sorted(banks.items())},
    )
