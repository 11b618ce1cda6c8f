"""Log probabilities of tokens: those of the model itself, before anything shapes what is drawn.

They are computed in double precision from the logits, as ``coterie evaluate`` does it, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.errors import LoadError, UnsupportedError
from coterie.hf.generation_steps import Prepared
from coterie.passes.prompt_logits import PromptLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from coterie.generation.sampling import Sampling

LEAST = -9999.0
"""What is said of a token that the model rules out: minus infinity is no JSON, and clients know this number."""

_TIES = 12
"""Further tokens that are looked at: logits in 16 bits are often the same."""
_ROWS = 8
"""Places that are computed together: each takes 16 bytes for every token that there is."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was when it came.

    Attributes:
        token_id: The token.
        logprob: Its log probability, in nats; None of the first token of a prompt, which nothing is before.
        top: The most probable tokens at this place with theirs, the likeliest first.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


LogprobsTold = Callable[[Sequence[TokenLogprob]], Any]
"""Is told those of tokens, in order."""


class NewLogprobs:
    """A logits processor that changes nothing: remembers how likely each token was, before others change that.

    Args:
        most: The most probable tokens that are remembered of each place.
        on_logprobs: Told those of tokens whose text is about to be handed on.

    Attributes:
        entries: The tokens that came, in order.
    """

    def __init__(self, most: int, on_logprobs: LogprobsTold | None = None) -> None:
        self.entries: list[TokenLogprob] = []
        self._most = most
        self._on_logprobs = on_logprobs
        self._told = 0
        self._row: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Takes the logits of the next token, [1, V]."""
        self._row = _log_softmax(scores[:1])
        return scores

    def came(self, token_ids: Sequence[int]) -> None:
        """Takes the token that was chosen."""
        if self._row is not None:
            self.entries += _entries(self._row, token_ids, self._most)
            self._row = None

    def hand_on(self, tokens: int) -> None:
        """Says that the texts of so many tokens are handed on now, or were before."""
        new = self.entries[self._told : tokens]
        if new and self._on_logprobs is not None:
            self._on_logprobs(new)
        self._told = max(self._told, tokens)


class PromptLogprobs:
    """Takes the logits of a prompt, some rows after the other, and remembers how likely its tokens were.

    Args:
        ids: The prompt, int64 [T].
        most: The most probable tokens that are remembered of each place.
        on_logprobs: Told them, once all are known.

    Attributes:
        entries: Its tokens, in order.
    """

    def __init__(self, ids: Tensor, most: int, on_logprobs: LogprobsTold | None = None) -> None:
        self._on_logprobs = on_logprobs
        self._ids = ids.tolist()
        self.entries = [TokenLogprob(self._ids[0], None)]
        self._most = most

    def __call__(self, logits: Tensor) -> None:
        """Takes the logits of the next positions, [R, V]; those of the last one say nothing of the prompt."""
        for rows in torch.split(logits, _ROWS):
            begin = len(self.entries)
            following = self._ids[begin : begin + len(rows)]
            if following:
                self.entries += _entries(_log_softmax(rows[: len(following)]), following, self._most)
                if self._on_logprobs is not None and len(self.entries) == len(self._ids):
                    self._on_logprobs(self.entries)


class LogprobsAsked:
    """What one request wants to know of log probabilities.

    Args:
        sampling: What it asks for.
        ids: Its prompt, int64 [T].
        on_logprobs: Told those of new tokens, before the texts that they are part of.
        on_prompt_logprobs: Told those of the prompt, once all are known.

    Attributes:
        new: Of the new tokens; None if they are not wanted.
        prompt: Of the prompt's tokens, likewise.
    """

    def __init__(
        self,
        sampling: Sampling,
        ids: Tensor,
        on_logprobs: LogprobsTold | None = None,
        on_prompt_logprobs: LogprobsTold | None = None,
    ) -> None:
        most, of_prompt = sampling.logprobs, sampling.prompt_logprobs
        self.new = None if most is None else NewLogprobs(most, on_logprobs)
        self.prompt = None if of_prompt is None else PromptLogprobs(ids, of_prompt, on_prompt_logprobs)

    def of(self, prepared: Prepared) -> PromptLogits | None:
        """Has the logits of a request remembered; returns what its prompt's passes are to be given."""
        if self.new is not None:
            prepared.processors.insert(0, self.new)  # before any other has changed them
        return None if self.prompt is None else PromptLogits(prepared.model, prepared.kwargs, self.prompt)

    def refuse(self, model: PreTrainedModel) -> None:
        """Refuses them where transformers generates in a way of its own.

        Raises:
            UnsupportedError: If some are wanted.
        """
        if self.new is not None or self.prompt is not None:
            raise UnsupportedError(
                f"{type(model).__name__} generates in a way of its own here, which tells no log probabilities.",
                advice="Set num_beams to 1 in its generation_config.json.",
                field="logprobs",
            )

    def told(self, tokens: int) -> dict[str, Any]:
        """All of them, as a completion has them.

        Args:
            tokens: New tokens whose text is in the answer.
        """
        return {
            "logprobs": () if self.new is None else tuple(self.new.entries[:tokens]),
            "prompt_logprobs": () if self.prompt is None else tuple(self.prompt.entries),
        }


def _log_softmax(logits: Tensor) -> Tensor:
    made = torch.log_softmax(logits.double(), dim=-1)
    if bool(made[:, 0].isnan().any()):
        raise LoadError(
            "The model computes logits that are not numbers.",
            advice="Verify it: coterie verify MODEL. A scheme may also have made weights that overflow.",
        )
    return made


def _entries(rows: Tensor, token_ids: Sequence[int], most: int) -> list[TokenLogprob]:
    """Rows of log probabilities [R, V] and the tokens that came."""
    chosen = rows.gather(-1, torch.tensor(token_ids, dtype=torch.int64, device=rows.device)[:, None]).clamp_(min=LEAST)
    if not most:
        return [
            TokenLogprob(token_id, logprob) for token_id, logprob in zip(token_ids, chosen[:, 0].tolist(), strict=True)
        ]
    values, ids = rows.topk(min(most + _TIES, rows.shape[-1]), dim=-1)
    tops = zip(ids.tolist(), values.clamp_(min=LEAST).tolist(), strict=True)
    return [
        TokenLogprob(token_id, logprob, _first(*top, most))
        for token_id, logprob, top in zip(token_ids, chosen[:, 0].tolist(), tops, strict=True)
    ]


def _first(ids: Sequence[int], values: Sequence[float], most: int) -> tuple[tuple[int, float], ...]:
    """The most probable ones; of those that are equally so, the lowest ids, as a greedy choice has it."""
    return tuple(sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))[:most])
