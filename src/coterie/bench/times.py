"""Generates exactly so many tokens and notes when each came."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from coterie.errors import UnsupportedError
from coterie.generation.one_sequence import check_settings, files_named, settings_file
from coterie.generation.sequence import Sequence
from coterie.generation.steps import generated
from coterie.hf.generation_steps import one_by_one, prepare

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TokenTimes:
    """A transformers streamer that notes when each token came.

    Args:
        on_token: Told after each new token how many there are.

    Attributes:
        times: Clock in seconds: when the prompt was taken, then when each new token was there.
    """

    def __init__(self, on_token: Callable[[int], None] | None = None) -> None:
        self.times: list[float] = []
        self._on_token = on_token

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt first, then with every token."""
        self.times.append(time.perf_counter())
        if self._on_token is not None and len(self.times) > 1:
            self._on_token(len(self.times) - 1)

    def end(self) -> None:
        """Called once at the end."""

    @property
    def prefill_s(self) -> float:
        """From the call until the first new token was there."""
        return self.times[1] - self.times[0]

    @property
    def steps_s(self) -> list[float]:
        """Time of every decode step: from each new token to the next."""
        return [after - before for before, after in zip(self.times[1:], self.times[2:], strict=False)]


def generate(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    tokens: int,
    *,
    seed: int | None = None,
    on_token: Callable[[int], None] | None = None,
) -> tuple[list[int], TokenTimes]:
    """Generates exactly ``tokens`` tokens: greedily, or drawn with a seed.

    Args:
        model: The model.
        prompt: Token ids, int64 [1, T].
        tokens: How many; end tokens are not drawn.
        seed: Draw instead of taking the likeliest. torch's random state is as before afterwards.
        on_token: Told after each new token how many there are; what it raises ends the generation.

    Returns:
        The new token ids, and when they came.

    Raises:
        UnsupportedError: If the model's generation config asks for what one streamed sequence cannot do, or its tokens
            do not come one after the other.
    """
    times = TokenTimes(on_token)
    check_settings(model, model.generation_config, streamed=True)
    if not one_by_one(model, model.generation_config):
        raise UnsupportedError(
            f"{type(model).__name__} does not generate one token after the other with the settings in "
            f"{settings_file(model)}, so no time of a token can be measured.",
            advice="Of a whole omni model, measure the thinker (component='thinker'). Remove "
            "prompt_lookup_num_tokens and compile_config from the file if it has them.",
            path=settings_file(model),
        )
    with torch.random.fork_rng(devices=[]), files_named(model):
        if seed is not None:
            torch.manual_seed(seed)
        # Nothing in the model's generation config ends it before its length.
        prepared = prepare(
            model,
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=seed is not None,
            stop_strings=None,
            max_time=None,
        )
        sequence = generated(Sequence(prepared, stream=times))
    return sequence.new_ids.tolist(), times
