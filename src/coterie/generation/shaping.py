"""What a request adds to the scores of tokens, beside what the model's settings do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.errors import InputError, UnsupportedError
from coterie.generation.grammar_matcher import Compiler, compiler_of
from coterie.generation.one_sequence import beams

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from coterie.generation.sampling import Sampling


class Bias:
    """A logits processor: makes tokens more or less likely.

    Args:
        biases: Token id → what is added to its score.
    """

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._ids = torch.tensor(list(biases), dtype=torch.int64)
        self._added = torch.tensor(list(biases.values()), dtype=torch.float32)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Adds them."""
        return scores.index_add(-1, self._ids.to(scores.device), self._added.to(scores)[None])


class Penalties:
    """A logits processor: makes tokens that were generated before less likely, or more.

    Args:
        presence: Taken from the scores of such tokens.
        frequency: Taken as often as one was generated.
        prompt: Tokens of the prompt, which do not count.
    """

    def __init__(self, presence: float, frequency: float, *, prompt: int) -> None:
        self._presence = presence
        self._frequency = frequency
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Takes them."""
        ids, times = torch.unique(input_ids[0, self._prompt :], return_counts=True)
        if not ids.numel():
            return scores
        taken = self._presence + self._frequency * times.to(scores.dtype)
        return scores.index_add(-1, ids, -taken[None])


def shaping(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: GenerationConfig,
    sampling: Sampling,
    *,
    prompt: int,
    in_steps: bool = True,
) -> list[Any]:
    """The logits processors of a request, in their order.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        config: The request's settings.
        sampling: What it asks for.
        prompt: Tokens of its prompt.
        in_steps: Whether tokens are chosen one after the other.

    Raises:
        InputError: If the form of the answer is none.
        UnsupportedError: If a form is asked for where several sequences are searched.
    """
    made: list[Any] = []
    if sampling.logit_bias:
        made.append(Bias(sampling.logit_bias))
    if sampling.presence_penalty or sampling.frequency_penalty:
        made.append(Penalties(sampling.presence_penalty, sampling.frequency_penalty, prompt=prompt))
    if made and beams(config) > 1:
        raise UnsupportedError("A beam search takes no penalties and no bias of a request.", field="logit_bias")
    if sampling.grammar is not None:
        if not in_steps:
            raise UnsupportedError("A search over several sequences cannot be kept to a form.", field="grammar")
        made.append(compiler_for(model, tokenizer).matcher(sampling.grammar, prompt=prompt))
    return made


def compiler_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Compiler:
    """What compiles forms of a model's answers."""
    own = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if own is None else own
    return compiler_of(tokenizer, {ends} if isinstance(ends, int) else {*(ends or ())}, vocabulary_of(model))


def check_tokens(model: PreTrainedModel, sampling: Sampling) -> None:
    """Refuses tokens that the model does not have.

    Args:
        model: The model.
        sampling: What is asked for.

    Raises:
        InputError: Naming the first. Facts ``field`` and ``token_id``.
    """
    for field, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
        most = vocabulary_of(model) if ids else 0
        beyond = next((one for one in ids if one >= most), None)
        if beyond is not None:
            raise InputError(
                f"{field} names the token {beyond}, and the model has {most}.", field=field, token_id=beyond
            )


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> None:
    """Refuses what a model cannot do, before anything is computed. A form is compiled, and found again later.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        sampling: What is asked for.

    Raises:
        InputError: Naming what it is. Fact ``field``.
        UnsupportedError: If the model's tokenizer cannot be kept to a form.
    """
    check_tokens(model, sampling)
    if sampling.grammar is not None:
        compiler_for(model, tokenizer).compile(sampling.grammar)


def vocabulary_of(model: PreTrainedModel) -> int:
    """Tokens that a model can say."""
    return int(model.config.get_text_config(decoder=True).vocab_size)
