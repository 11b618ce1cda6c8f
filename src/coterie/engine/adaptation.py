"""Fewer experts for some tokens, on request: by salience, up to a number, or by gate weight."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import torch

from coterie.engine.salience import SalienceMeter
from coterie.passes.current import current_request
from coterie.profiles.salience import Salience, SalienceRank
from coterie.routing import Routed, leave_out, light_choices
from coterie.spec import AdaptiveExperts, BankKey, Event, StepStarted


class _Ranks:
    """Rank of the salience of the last token of each of a request's sequences, by component."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[float | None, ...]] = {}


class Adaptation:
    """Leaves out the lightest of the experts that routers choose; see :class:`coterie.spec.AdaptiveExperts`.

    It is the limit that banks ask, and the observer by which it learns what tokens are worth.

    Args:
        settings: How many stay.
        experts: Bank → how many experts, identity experts included.
        choices: Component → the most experts that its routers choose for a token.
        seed: See :class:`~coterie.profiles.salience.SalienceScale`.

    Attributes:
        settings: Those given.
        wants_contributions: Whether salience is asked.
        wants_losses: Likewise.
        chosen: (token, expert) pairs that routers chose, and that are there.
        kept: Of these, those that were computed.
        tokens: How many tokens got each number of experts, before ``min_gate``.
    """

    def __init__(
        self,
        settings: AdaptiveExperts,
        *,
        experts: Mapping[BankKey, int],
        choices: Mapping[str, int],
        seed: int = 0,
    ) -> None:
        self.settings = settings
        self.wants_contributions = self.wants_losses = settings.by_salience
        self.chosen = 0
        self.kept = 0
        self.tokens: Counter[int] = Counter()
        self._meter = SalienceMeter(experts, self._told, seed=seed)
        self._choices = choices
        # Saliences without surprise are on another scale.
        self._scales: defaultdict[tuple[str, bool], SalienceRank] = defaultdict(SalienceRank)
        self._lock = threading.Lock()

    @property
    def reward(self) -> float:
        """As of :class:`~coterie.engine.salience.SalienceMeter`."""
        return self._meter.reward

    @reward.setter
    def reward(self, value: float) -> None:
        self._meter.reward = value

    def on_event(self, event: Event) -> None:
        """Follows the salience of tokens, if it is asked."""
        if isinstance(event, StepStarted):
            if event.phase == "prefill":
                # Other sequences begin, or several tokens come at once: of what is before each, nothing is known yet.
                current_request().state(self, _Ranks).rows.pop(event.component, None)
            count, k = event.batch * event.tokens, self._choices[event.component]
            counts = self._counts(event.component, count, k) or [k] * count
            with self._lock:
                self.tokens.update(counts)
        if self.settings.by_salience:
            self._meter.on_event(event)

    def __call__(self, bank: BankKey, routed: Routed, none: int) -> Routed:
        """What is left of a router's choice."""
        ids_TK, weights_TK, absent = routed
        tokens, k = ids_TK.shape
        counts = self._counts(bank.component, tokens, k)
        chosen = int((ids_TK < none).sum())
        most = None if counts is None or min(counts, default=k) >= k else torch.tensor(counts, device=ids_TK.device)
        light_TK, left = None, 0
        if most is not None or self.settings.min_gate > 0:
            light_TK = light_choices(ids_TK, weights_TK, none=none, most=most, min_gate=self.settings.min_gate)
            left = int(light_TK.sum())
        with self._lock:
            self.chosen += chosen
            self.kept += chosen - left
        if light_TK is None or not left:
            return routed
        return Routed(*leave_out(ids_TK, weights_TK, light_TK, none), absent)

    def most(self, component: str) -> int | None:
        """The most experts that a token of this thread's forward pass gets."""
        sequences = len(current_request().state(self, _Ranks).rows.get(component, ()))
        counts = self._counts(component, max(1, sequences), self._choices[component])
        return None if counts is None else max(counts)

    def _counts(self, component: str, tokens: int, k: int) -> list[int] | None:
        """How many experts each of the tokens gets, [T]; None if nothing is said about it."""
        settings = self.settings
        if settings.k_min is None and settings.k_max is None:
            return None
        least, most = settings.counts(k)
        ranks = current_request().state(self, _Ranks).rows.get(component, ()) if settings.by_salience else ()
        if len(ranks) != tokens:
            return [most] * tokens
        steps = most - least + 1
        return [most if rank is None else least + min(int(rank * steps), steps - 1) for rank in ranks]

    def _told(self, begun: StepStarted, scores: Sequence[Salience | None]) -> None:
        """A forward pass has ended: its last tokens decide for those that come after them."""
        ranks: list[float | None] = []
        with self._lock:
            for row in range(begun.batch):
                rank = None
                for score in scores[row * begun.tokens : (row + 1) * begun.tokens]:
                    if score is not None:
                        rank = self._scales[begun.component, score.surprise is None].rank(score.overall)
                ranks.append(rank)
        current_request().state(self, _Ranks).rows[begun.component] = tuple(ranks)
