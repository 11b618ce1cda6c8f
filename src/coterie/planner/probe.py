"""The forecast from your own text: it goes through the model once, and its routing is replayed for every budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import torch

from coterie.errors import UsageError
from coterie.eviction import Group, simulate
from coterie.eviction.recorded import ABSENT
from coterie.generation.opened import OpenModel
from coterie.hf.tokenizer import encode_text
from coterie.planner.hit_rates import NO_MISSES, HitRate, Law
from coterie.planner.ranges import Range
from coterie.spec import BankKey, ExpertKey
from coterie.spec.events import Event, ExpertsSelected
from coterie.spec.opening import Opening

PROBE_TOKENS = 128
"""Tokens of the text that are used: enough to forecast the next hundreds within the factor below."""

_FACTORS = ((128, 1.25), (64, 1.35), (32, 1.55))
"""Tokens, and within which factor the miss rate of the text after them was, in nine of ten cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Routing of a text, replayed as if each of its tokens were decoded, from an empty cache.

    The likeliest miss rate is that of the text's second half: the first half is for the cache what came before. The
    first uses of experts, of which a text of 128 tokens has more than its share, count in the range's other end.

    Attributes:
        groups: What each layer asked for, token by token.
        tokens: Tokens.
        experts: Experts of the component, in all layers.
        law: Says which policy is replayed, and what another number of experts per token changes.
        top_k: Experts per token and layer, as they were recorded.
    """

    groups: tuple[Group[ExpertKey], ...]
    tokens: int
    experts: int
    law: Law
    top_k: float
    _found: dict[int, tuple[float, float]] = field(default_factory=dict, repr=False, compare=False)

    def at(self, share: float, *, top_k: float) -> HitRate:
        """See :class:`coterie.planner.HitRates`."""
        basis = f"{self.tokens} tokens of your text, replayed"
        if share >= 1:
            return HitRate.of_miss(NO_MISSES, grade="probe", basis=basis)
        recorded = self.law.miss(share, self.top_k)
        times = self.law.miss(share, top_k) / recorded if recorded else 1.0
        settled, whole = (miss * times for miss in self._misses(max(1, int(share * self.experts))))
        factor = next(factor for tokens, factor in _FACTORS if self.tokens >= tokens)
        around = Range(low=settled / factor, expected=min(1.0, settled), high=min(1.0, max(settled, whole) * factor))
        return HitRate.of_miss(around, grade="probe", basis=basis)

    def _misses(self, capacity: int) -> tuple[float, float]:
        """Miss rates of the second half of the tokens, which finds what the first has left, and of all."""
        # Budgets, changes and the knee ask for the same capacities again.
        if capacity not in self._found:
            half = self.groups[0].step + self.tokens // 2
            hits = asked = 0

            def count(group: Group[ExpertKey], found: int, _: Mapping[ExpertKey, int]) -> None:
                nonlocal hits, asked
                if group.step >= half:
                    hits += found
                    asked += len(group.keys)

            whole = simulate(self.groups, capacity, self.law.eviction, watch=count)
            self._found[capacity] = 1 - hits / max(1, asked), 1 - whole.hit_rate
        return self._found[capacity]


def probe(model: str, text: str, opening: Opening, *, component: str, experts: int, law: Law, top_k: float) -> Probe:
    """Runs the beginning of a text through a model.

    Args:
        model: As :func:`coterie.load` takes it.
        text: The text; its first :data:`PROBE_TOKENS` tokens are used.
        opening: How the model is opened.
        component: Whose experts count.
        experts: Experts of it, in all layers.
        law: With the eviction policy to replay.
        top_k: Experts per token and layer.

    Raises:
        UsageError: If the text has too few tokens.
        CoterieError: As :func:`coterie.load`.
    """
    opened = OpenModel.open(model, opening)
    try:
        ids = encode_text(opened.processors.tokenizer, text)[:PROBE_TOKENS]
        least = _FACTORS[-1][0]
        if len(ids) < least:
            raise UsageError(
                f"The probe's text has {len(ids)} tokens, and at least {least} are needed.",
                advice=f"Give a longer text; {PROBE_TOKENS} tokens are used.",
                got=len(ids),
            )
        selected = _Selected(component)
        opened.model.coterie.add_observer(selected)
        with torch.inference_mode():
            opened.model(torch.tensor([ids]), use_cache=False, logits_to_keep=1)
    finally:
        opened.model.coterie.close()
    groups = selected.groups(len(ids))
    return Probe(groups=groups, tokens=len(ids), experts=experts, law=law, top_k=top_k)


class _Selected:
    """Keeps which experts the tokens of a component's forward pass chose."""

    def __init__(self, component: str) -> None:
        self._component = component
        self._rows: dict[BankKey, list[npt.NDArray[Any]]] = defaultdict(list)

    def on_event(self, event: Event) -> None:
        """Keeps routing events."""
        if isinstance(event, ExpertsSelected) and event.bank.component == self._component:
            self._rows[event.bank].append(event.expert_ids)

    def groups(self, tokens: int) -> tuple[Group[ExpertKey], ...]:
        """Token by token, within a token layer by layer."""
        rows = {bank: [row for block in blocks for row in block.tolist()] for bank, blocks in self._rows.items()}
        return tuple(_groups(rows, tokens))


def _groups(rows: Mapping[BankKey, Sequence[Sequence[int]]], tokens: int) -> list[Group[ExpertKey]]:
    found = []
    for token in range(tokens):
        for layer, bank in enumerate(sorted(rows)):
            keys = tuple(bank.expert(one) for one in dict.fromkeys(rows[bank][token]) if one != ABSENT)
            if keys:
                found.append(Group(step=token, layer=layer, keys=keys))
    return found
