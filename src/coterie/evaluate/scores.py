"""What is kept of a prediction: a few numbers per token, never its logits.

Letters: S input tokens of a window, T tokens predicted in it, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coterie.errors import LoadError, UnsupportedError, UsageError
from coterie.evaluate.texts import Text
from coterie.evaluate.windows import Window
from coterie.generation import sequence, steps
from coterie.hf.generation_steps import plain

SLICE_NBYTES = 64 << 20
"""Memory that the float64 copies of a slice of logits take, whatever T is (more only where one row takes more)."""
_ROWS_AT_ONCE = 6
"""Float64 rows of V per token of a slice: both log-probabilities, probabilities, differences, products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Scores of consecutive predictions, each an array [T]; those after ``correct`` are None without a full model.

    Attributes:
        loss: −log p of the token that came, in nats, float64.
        correct: Whether the most probable token is the one that came.
        full_loss: The loss of the full model.
        full_correct: Whether its most probable token is the one that came.
        kld: KL(full ‖ model) of the two distributions over the whole vocabulary, in nats, float64: the sum of
            p_full · (log p_full − log p_model) over all tokens.
        same_top: Whether both models find the same token most probable.
        identical: Whether all V logits are the same numbers.
    """

    loss: NDArray[np.float64]
    correct: NDArray[np.bool_]
    full_loss: NDArray[np.float64] | None = None
    full_correct: NDArray[np.bool_] | None = None
    kld: NDArray[np.float64] | None = None
    same_top: NDArray[np.bool_] | None = None
    identical: NDArray[np.bool_] | None = None

    @classmethod
    def join(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """All of them, one after the other."""
        columns: dict[str, Any] = {}
        for name in cls.__slots__:
            arrays = [getattr(part, name) for part in parts]
            columns[name] = None if any(array is None for array in arrays) else np.concatenate(arrays)
        return cls(**columns)


@torch.inference_mode()
def predict(model: Any, text: Text, window: Window) -> Tensor:
    """Runs a model over a window, in one pass.

    Args:
        model: A transformers model that predicts the next token, streamed or stock.
        text: The text.
        window: Part of it.

    Returns:
        Logits [T, V] in the model's dtype, for the tokens at ``window.predicted``.

    Raises:
        UnsupportedError: If the model predicts no next tokens.
        CoterieError: As reading experts does.
    """
    ids = _input_ids(model, text, window)
    return _logits(model, model(input_ids=ids, use_cache=False), ids)[0, -window.tokens :]


@torch.inference_mode()
def predict_in_steps(model: Any, text: Text, window: Window) -> Tensor:
    """As :func:`predict`, token by token as in generation, for what depends on the tokens before; takes far longer.

    The tokens up to the first prediction are one pass, each further one is another.

    Raises:
        UnsupportedError: If the model predicts no next tokens, or keeps no cache.
        CoterieError: As reading experts does.
    """
    ids = _input_ids(model, text, window)
    first = ids[:, : ids.shape[1] - window.tokens + 1]
    given = iter(ids[0, first.shape[1] :, None])
    rows: list[Tensor] = []

    def keep(output: Any) -> None:
        length = 1 if rows else first.shape[1]
        rows.append(_logits(model, output, ids[:, :length])[0, -1:].clone())

    loop = steps.Steps()
    one = sequence.Sequence(plain(model, first), chooser=lambda scores: next(given, ids[0, -1:]), keep=keep)
    loop.add(one)
    for _ in range(window.tokens):
        if rows and not one.keeps_tokens:
            raise UnsupportedError(
                f"{type(model).__name__} keeps nothing of the tokens before, so it cannot be run token by token.",
                advice="Evaluate it without drop_cold, and without adapting experts by salience.",
            )
        loop.step()
        one.check()
    return torch.cat(rows)


def _input_ids(model: Any, text: Text, window: Window) -> Tensor:
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedError(
            f"{type(model).__name__} has an encoder and a decoder: it does not predict the next token of a text.",
            advice="Only decoder models can be evaluated.",
        )
    return torch.tensor([[*text.prefix, *text.ids[window.inputs]]], dtype=torch.int64)


def _logits(model: Any, output: Any, ids: Tensor) -> Tensor:
    """Logits [1, S, V] of a forward pass."""
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != ids.shape:
        raise UnsupportedError(
            f"{type(model).__name__} gives no logits for each token of a text.",
            advice="Only models that predict the next token can be evaluated; of an omni model that is its thinker.",
        )
    return logits


@torch.inference_mode()
def score(logits_TV: Tensor, next_T: Sequence[int], full_TV: Tensor | None = None) -> TokenScores:
    """Scores predictions, in float64, slice by slice.

    Beside the logits it takes ``SLICE_NBYTES``. For logits that are the same numbers the divergence is exactly 0; where
    they differ, a sum that rounding made negative is set to 0.

    Args:
        logits_TV: The model's.
        next_T: The tokens that came.
        full_TV: The full model's logits of the same predictions, or None.

    Raises:
        UsageError: If the two have different vocabularies.
        UnsupportedError: If a token is not in the vocabulary.
        LoadError: If logits are not numbers.
    """
    width = logits_TV.shape[-1]
    if full_TV is not None and full_TV.shape[-1] != width:
        raise UsageError(
            f"The model predicts {width} different tokens, the full model {full_TV.shape[-1]}.",
            advice="Compare with the model that this one was made from.",
            got=width,
            expected=full_TV.shape[-1],
        )
    if max(next_T) >= width:
        raise UnsupportedError(
            f"Token {max(next_T)} is none of the {width} that the model can predict.",
            advice="This is no language model, or its tokenizer is another model's.",
            token_id=max(next_T),
        )
    following_T1 = torch.tensor(next_T, dtype=torch.int64).unsqueeze(-1)
    rows = max(1, SLICE_NBYTES // (8 * _ROWS_AT_ONCE * width))
    starts = range(0, len(following_T1), rows)
    parts = [
        _score_slice(
            logits_TV[start : start + rows],
            following_T1[start : start + rows],
            None if full_TV is None else full_TV[start : start + rows],
        )
        for start in starts
    ]
    return TokenScores.join(parts)


def _score_slice(logits_TV: Tensor, following_T1: Tensor, full_TV: Tensor | None) -> TokenScores:
    log_q_TV = torch.log_softmax(logits_TV.double(), dim=-1)
    loss = _loss(log_q_TV, following_T1, "model")
    top_T, next_T = logits_TV.argmax(-1), following_T1.squeeze(-1)
    correct = (top_T == next_T).numpy()
    if full_TV is None:
        return TokenScores(loss=loss, correct=correct)
    full_top_T = full_TV.argmax(-1)
    log_p_TV = torch.log_softmax(full_TV.double(), dim=-1)
    full_loss = _loss(log_p_TV, following_T1, "full model")
    p_TV = log_p_TV.exp()
    # What the full model rules out adds nothing, even where the other model rules it out too (∞ − ∞).
    terms_TV = torch.where(p_TV > 0, p_TV * (log_p_TV - log_q_TV), 0.0)
    return TokenScores(
        loss=loss,
        correct=correct,
        full_loss=full_loss,
        full_correct=(full_top_T == next_T).numpy(),
        kld=terms_TV.sum(-1).clamp_(min=0.0).numpy(),
        same_top=(top_T == full_top_T).numpy(),
        identical=(logits_TV == full_TV).all(-1).numpy(),
    )


def _loss(log_p_TV: Tensor, following_T1: Tensor, whose: str) -> NDArray[np.float64]:
    loss_T = -log_p_TV.gather(-1, following_T1).squeeze(-1)
    if loss_T.isnan().any():
        raise LoadError(
            f"The {whose} computes logits that are not numbers.",
            advice="Verify it: coterie verify MODEL. A scheme may also have made weights that overflow.",
        )
    array: NDArray[np.float64] = loss_T.numpy()
    return array
