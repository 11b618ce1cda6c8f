"""The experts of a decode step in one native call, where all that was chosen are resident."""

from __future__ import annotations

import torch

from coterie import native
from coterie.cache import BankView
from coterie.native import TokenState
from coterie.passes.bank import StreamedBank
from coterie.passes.contributions import Written


class TokenExperts:
    """What a decode step does instead of calling the experts module, while nothing has to be read.

    Args:
        streamed: The bank, connected, none of whose experts is absent.
        view: Its experts in the cache.
        computed: Computes them.
    """

    def __init__(self, streamed: StreamedBank, view: BankView, computed: native.TokenExperts) -> None:
        self._streamed = streamed
        self._view = view
        self._computed = computed

    def compute(self, state: TokenState) -> torch.Tensor | None:
        """The residual with what the experts add, [T, 1, D]; counts and tells as the experts module would.

        Args:
            state: Through the layer, with its results.

        Returns:
            None if not all that was chosen are resident, or some may be left out: then nothing was computed, and the
            experts module is to be called. Where an expert has left at the last moment, the pass has looked ahead
            nevertheless, and does so again there: what was predicted, and is not resident, counts twice.

        Raises:
            UsageError: If the cache is closed.
        """
        streamed = self._streamed
        now = streamed.now()
        if now.limit is not None or not streamed.may_hold(now) or not self._computed.there(state):
            return None
        self._view.prediction_over(now.consumer)
        streamed.look_ahead()
        whole = self._computed.compute(state, norms=now.contributions)
        if whole is not None:
            results = state.results
            ids: list[int] = results.ids.tolist()[0] if state.rows == 1 else streamed.experts_in(results.ids)
            self._view.note(ids)
            if now.observers:
                streamed.chosen(now, results.ids, results.weights)
            streamed.served_from_memory(now, len(ids), 0, Written(results.norms) if now.contributions else None)
        return whole
