"""The further codes of a frame of speech, in a loop of its own.

Qwen3-Omni's talker names the first code of each frame; a small model, the code predictor, names the others one by one
(15 in the released model). Transformers calls its ``generate`` for each frame: settings, checks, a cache and lists of
processors for 15 passes over five layers. Here all that is prepared once, and what is computed stays the class's own,
to the bit.
"""

from __future__ import annotations

import functools
import importlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from coterie.hf.caches import is_cache
from coterie.hf.generation_steps import Prepared, choose, one_by_one, prepare

_CLASSES = "transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe"
_NAME = "Qwen3OmniMoeTalkerCodePredictor"
_READ = ("output_hidden_states", "return_dict_in_generate")
"""Options that say what is returned; the talker always asks for the same."""
_DRAWN = ("top_k", "top_p", "temperature")
"""Options that say how codes are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """A frame's further codes, as what asks for them reads them.

    Attributes:
        sequences: int64 [1, Q - 1].
        hidden_states: Of each pass, a tuple that begins with what went into the layers: [1, T, H].
    """

    sequences: Tensor
    hidden_states: tuple[tuple[Tensor, ...], ...]


def is_code_predictor(module: nn.Module) -> bool:
    """Whether a module is the code predictor of Qwen3-Omni's talker."""
    # By its name: to import the class takes longer than all models without one need.
    return (type(module).__module__, type(module).__name__) == (_CLASSES, f"{_NAME}ModelForConditionalGeneration")


def code_scores(logits: Tensor, cache: Any, steps: int) -> Any:
    """What a code predictor returns of a pass, as its class does.

    Args:
        logits: Of the next code, [1, 1, V].
        cache: The tokens that it has seen.
        steps: Which of its heads and embeddings is next.
    """
    outputs, name = _outputs()
    return outputs(logits=logits, generation_steps=steps, **{name: cache})


@functools.cache
def _outputs() -> tuple[type[Any], str]:
    """What a predictor's outputs are, and what they call the cache, in which releases differ."""
    outputs: type[Any] = getattr(importlib.import_module(_CLASSES), f"{_NAME}OutputWithPast")
    names = {field.name for field in fields(outputs)}
    return outputs, "cache" if "cache" in names else "past_key_values"


def predicting(predictor: Any, *, greedy: bool = False) -> AbstractContextManager[object]:
    """Inside, a talker's code predictor generates in this loop, where transformers would in its common one.

    It can be entered once for each frame of an answer, while others have frames predicted in between.

    Args:
        predictor: The model's ``talker.code_predictor``, just after an answer was prepared.
        greedy: Whether it takes the likeliest codes; else it does what it is asked for. Older releases always ask it to
            draw.
    """
    config = predictor.generation_config
    if not one_by_one(predictor, config) or config.eos_token_id is not None:
        return nullcontext()  # a frame has all of its codes; one that may end before is not of this loop
    return _Predicting(predictor, greedy=greedy)


class _Predicting:
    """As :func:`predicting`."""

    def __init__(self, predictor: Any, *, greedy: bool) -> None:
        self._predictor = predictor
        self._frames = _Frames(predictor, greedy=greedy)
        # The talker says it to the predictor when it is prepared; another answer may say otherwise.
        self._sample = predictor.generation_config.do_sample

    def __enter__(self) -> None:
        self._predictor.generation_config.do_sample = self._sample
        self._predictor.generate = self._frames

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._predictor.generate


class _Frames:
    """``generate`` of the code predictor, during one answer."""

    def __init__(self, predictor: Any, *, greedy: bool) -> None:
        self._predictor = predictor
        self._greedy = greedy
        self._options: dict[str, Any] | None = None
        self._prepared: Prepared | None = None

    def __call__(self, *, inputs_embeds: Tensor, max_new_tokens: int, **options: Any) -> Codes:
        """The codes after the first one.

        Args:
            inputs_embeds: What the talker's last layer says, and the embedding of the first code: [1, 2, H].
            max_new_tokens: How many codes.
            options: Those of ``generate``.
        """
        asked = {name: value for name, value in options.items() if name not in _READ}
        if self._greedy:
            asked = {name: value for name, value in asked.items() if name not in _DRAWN} | {"do_sample": False}
        if self._prepared is None or asked != self._options:
            self._options = asked
            self._prepared = self._prepare(inputs_embeds, max_new_tokens, asked)
        return self._codes(self._prepared, inputs_embeds, max_new_tokens)

    def _prepare(self, inputs_embeds: Tensor, count: int, asked: dict[str, Any]) -> Prepared:
        ours = vars(self._predictor).pop("generate")  # or what somebody has put around it
        try:
            return prepare(self._predictor, inputs_embeds=inputs_embeds, max_new_tokens=count, **asked)
        finally:
            self._predictor.generate = ours

    @torch.no_grad()
    def _codes(self, prepared: Prepared, inputs_embeds: Tensor, count: int) -> Codes:
        embeddings = self._predictor.get_input_embeddings()
        sample = bool(prepared.config.do_sample)
        ids = inputs_embeds.new_empty(1, 0, dtype=torch.long)
        outputs = self._predictor(inputs_embeds=inputs_embeds, use_cache=True, return_dict=True)
        hidden = [(inputs_embeds,)]
        while True:
            scores = outputs.logits[:, -1].to(torch.float32, copy=True)
            for process in prepared.processors:
                # Not all by one call: that asks Python for the signature of each of them.
                scores = process(ids, scores)
            code = choose(scores, sample=sample)
            ids = torch.cat([ids, code[:, None]], dim=-1)
            done = ids.shape[1]
            if done == count:
                return Codes(sequences=ids, hidden_states=tuple(hidden))
            hidden.append((embeddings[done - 1](code[:, None]),))
            cache = {name: value for name, value in outputs.items() if is_cache(value)}
            outputs = self._predictor(
                input_ids=code[:, None], generation_steps=done, use_cache=True, return_dict=True, **cache
            )
