"""What a model keeps of whole prompts, for others that ask the same: several answers to one question.

What is computed of the last piece of a prompt is of use to nobody but who has the same prompt to its end. For them the
cache goes on from there, and the logits of the first new token are known. A model that keeps no tokens, but states, has
its whole cache copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from coterie.generation.sequence import Supplied
from coterie.hf.cache_states import Stretch, copied, copied_nbytes, fill, known_layers, stretch, stretch_nbytes
from coterie.hf.caches import cached_length, caches_in, is_cache, reserved_length
from coterie.hf.generation_steps import Positions, Prepared, last_of, prompt_length


@dataclass(frozen=True, slots=True)
class PromptEnd:
    """What is kept at the end of a prompt.

    Attributes:
        state: Of the cache: the tokens after those that are kept in pieces, or all of it.
        outputs: What the last pass returned, by name, without the cache.
        cache_name: What the cache is called among these.
        kind: The class of these.
        positions: Where positions are after it.
    """

    state: Any
    outputs: dict[str, Any]
    cache_name: str
    kind: type
    positions: Positions

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        state = self.state.nbytes if isinstance(self.state, Stretch) else copied_nbytes(self.state)
        return state + sum(value.nbytes for value in self.outputs.values() if isinstance(value, Tensor))

    def supply(self, prepared: Prepared) -> Supplied:
        """Has a request with the same prompt go on from here."""
        caches = caches_in(prepared.kwargs.values())
        if isinstance(self.state, Stretch):
            cache = caches[0]
            fill(cache, [self.state])
        else:
            cache = copied(self.state)
            if caches:  # else the first pass makes it
                prepared.go_on_with(cache)
        values = {name: value.clone() if isinstance(value, Tensor) else value for name, value in self.outputs.items()}
        outputs = self.kind(**values, **{self.cache_name: cache})
        return Supplied(prompt_length(prepared), outputs, self.positions.copy())


def prompt_end(prepared: Prepared, cache: Any, begin: int, outputs: Any, positions: Positions) -> PromptEnd | None:
    """What is to be kept of a prompt that has been computed; None if it cannot be.

    Args:
        prepared: The request.
        cache: Its cache.
        begin: Tokens that are kept in pieces.
        outputs: What the last pass returned.
        positions: Where positions are after it.
    """
    kept = last_of(outputs)
    names = [name for name, value in outputs.items() if is_cache(value)]
    if kept is None or len(names) != 1:
        return None
    state = stretch(cache, begin, prompt_length(prepared)) if known_layers(cache) else copied(cache)
    return None if state is None else PromptEnd(state, kept, names[0], type(outputs), positions.copy())


def end_nbytes(prepared: Prepared, cache: Any, begin: int) -> int:
    """Bytes that the copies of :func:`prompt_end` take, but for the logits."""
    return stretch_nbytes(cache, begin, prompt_length(prepared)) if known_layers(cache) else copied_nbytes(cache)


def whole_key(prepared: Prepared, piece: int) -> bytes | None:
    """What a prompt is whose pieces cannot be kept: all that its passes are given, and the kind of cache.

    Args:
        prepared: The request.
        piece: Tokens of a pass, where it is computed in several.

    Returns:
        None where something else is among that than numbers: others may be given another.
    """
    digest = sha256(f"{prepared.config.prefill_chunk_size} {piece}\n".encode())
    for name, value in sorted({**prepared.kwargs, "input_ids": prepared.ids}.items()):
        if is_cache(value):
            described = f"{type(value).__name__} {reserved_length(value)}"
        elif isinstance(value, Tensor):
            described = f"{value.dtype} {tuple(value.shape)}"
        elif value is None or isinstance(value, bool | int | float | str):
            described = repr(value)
        else:
            return None
        digest.update(f"{name} {described}\n".encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return b"whole " + digest.digest()


def can_be_copied(prepared: Prepared) -> bool:
    """Whether the cache of a prompt can be copied as a whole, before there is anything in it."""
    caches = caches_in(prepared.kwargs.values())
    return (
        not prepared.model.config.is_encoder_decoder
        and not prepared.whole
        and bool(prepared.kwargs["use_cache"])
        and len(caches) < 2
        and all(not cached_length(cache) and copied(cache) is not None for cache in caches)
    )
