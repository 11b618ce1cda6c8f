"""Routing made up for tests: documents of several domains, seen by routers that choose at random or by a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from coterie.profiles import Accumulator, BankShape, RunFacts, SegmentFacts, Vocabulary
from coterie.spec import BankKey

IDENTITY = "0123456789abcdef0123456789abcdef"


def shapes(layers: int = 2, experts: int = 8, top_k: int = 2, component: str = "text") -> tuple[BankShape, ...]:
    return tuple(
        BankShape(bank=BankKey(component, layer, "mlp"), experts=experts, top_k=top_k) for layer in range(layers)
    )


def run_facts(banks: tuple[BankShape, ...] | None = None, **changes: str) -> RunFacts:
    facts = {"identity": IDENTITY, "model": "tiny", "model_class": "TinyMoe", "tool_version": "0.1.0"} | changes
    return RunFacts(banks=shapes() if banks is None else banks, **facts)


@dataclass(frozen=True)
class Router:
    """Chooses K of E experts per token in every layer.

    Attributes:
        layers: Banks.
        experts: E.
        top_k: K.
        planted: (layer, domain) → experts that a token of that domain always selects.
        burst: How much a document's taste sways the choice of its tokens: standard deviation of its own logits.
    """

    layers: int = 2
    experts: int = 8
    top_k: int = 2
    planted: Mapping[tuple[int, str], tuple[int, ...]] | None = None
    burst: float = 0.0

    def document(self, rng: np.random.Generator, domain: str, tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each layer: expert ids uint16 [T, K] and gate weights float32 [T, K] of a document's tokens."""
        for layer in range(self.layers):
            taste = rng.normal(0, self.burst, self.experts) if self.burst else np.zeros(self.experts)
            scores = rng.gumbel(size=(tokens, self.experts)) + taste
            for expert in (self.planted or {}).get((layer, domain), ()):
                scores[:, expert] += 100
            ids = np.argsort(-scores, axis=1)[:, : self.top_k].astype(np.uint16)
            weights = rng.random((tokens, self.top_k), dtype=np.float32) + 0.1
            yield ids, weights / weights.sum(axis=1, keepdims=True)


def recorded(
    router: Router,
    documents: Mapping[str, int],
    *,
    tokens: int = 64,
    documents_per_segment: int = 2,
    seed: int = 0,
    first: int = 0,
    modality: str = "text",
    contributions: bool = True,
) -> tuple[list[SegmentFacts], Vocabulary]:
    """Segments of a run: so many documents of each domain, one domain after the other."""
    rng = np.random.default_rng(seed)
    banks = shapes(router.layers, router.experts, router.top_k)
    accumulator = Accumulator(banks, vocabulary=8, buffer_tokens=100)
    segments: list[SegmentFacts] = []
    held = 0
    for domain, count in documents.items():
        group = accumulator.group(modality, domain, "prompt")
        for _ in range(count):
            token_ids = rng.integers(0, 50, tokens)
            for shape, (ids, weights) in zip(banks, router.document(rng, domain, tokens), strict=True):
                outputs = weights * (1 + ids.astype(np.float32)) if contributions else None
                accumulator.add(shape.bank, ids, weights, outputs, group, token_ids)
            held += 1
            if held == documents_per_segment:
                segments.append(accumulator.take(first + len(segments)))
                held = 0
    if held:
        segments.append(accumulator.take(first + len(segments)))
    return segments, accumulator.vocabulary(first + len(segments))
