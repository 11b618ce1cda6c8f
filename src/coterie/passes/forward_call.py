"""What a forward pass is, read from what it is called with: its tokens, and what came before them.

Nobody tells a model which pass it is in. Coterie counts tokens against the budget, and decode steps take other ways, so
both must be known for certain: a pass that goes on with earlier tokens but shows no cache is an error.

What logits are asked for is a part of it. ``generate`` looks for the parameter ``logits_to_keep`` and asks for those of
the last position alone, or of a few more where it checks candidates. What it asks for is all it reads. A forward that
computes the logits of every position is given that parameter (:func:`give_parameter`), which any caller may use.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coterie.errors import UnsupportedError
from coterie.hf.caches import cached_length, caches_in, holds_state, strangers_in
from coterie.hf.last_logits import PARAMETER, head_to_narrow
from coterie.hf.releases import broken
from coterie.hf.row_caches import RowCaches
from coterie.passes.current import carried
from coterie.passes.forwards import Covering, Forward, install
from coterie.spec import LAST_POSITIONS, Phase

_CONTRACT = "forward pass"
_IDS = ("input_ids", "decoder_input_ids")
_NEW = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")
"""Names of what a pass computes, tokens or their embeddings; with an encoder, what it reads comes first."""

Kept = int | torch.Tensor
"""Positions whose logits are asked for, as transformers takes them: so many at the end, 0 for all; or which, [N]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardCall:
    """One forward pass, as it is called.

    Attributes:
        ids: The new tokens [B, T], or None if only embeddings are given.
        batch: B, sequences.
        tokens: T, new tokens of each.
        cached: Tokens of each sequence before them.
        phase: What kind of pass it is.
        mask: The attention mask, if there is one.
        caches: The caches given → tokens that each has seen, None where it does not count.
        cached_new: New tokens that go into a cache, of all those that are computed.
        uses_cache: What the caller says: whether keys and values are kept. None if it says nothing.
        logits: Positions of each sequence whose logits are asked for at once.
    """

    ids: torch.Tensor | None
    batch: int
    tokens: int
    cached: int
    phase: Phase
    mask: object
    caches: tuple[tuple[Any, int | None], ...]
    cached_new: int
    uses_cache: bool | None
    logits: int

    @property
    def rows(self) -> RowCaches | None:
        """The caches of its sequences, where each has one of its own."""
        return self.caches[0][0] if self.caches and isinstance(self.caches[0][0], RowCaches) else None

    def check_begin(self) -> None:
        """Refuses a cache that moves from the accelerator to memory and back: it has nowhere to move to.

        Raises:
            UnsupportedError: If the pass has one.
        """
        for cache, _ in self.caches:
            if getattr(cache, "offloading", False):
                raise UnsupportedError(
                    "An offloaded cache moves between an accelerator and memory; a streamed model is on the CPU.",
                    advice="Use the default cache: leave cache_implementation out.",
                    operation="cache_implementation",
                )

    def check_end(self, result: object) -> None:
        """Holds what the pass left behind against what it was called with.

        Args:
            result: What it returned.

        Raises:
            ContractError: If no cache can be found though one is asked for, or one that does not count what it keeps.
        """
        if self.uses_cache is False:
            return
        before = self.caches
        if not before:
            if not self.uses_cache:
                return
            before = tuple((cache, 0) for cache in caches_in([result]))
            if not before:
                raise broken(_CONTRACT, "A forward pass that is to keep its keys and values returns no known cache.")
        for cache, length in before:
            now = cached_length(cache)
            if now is not None and now != (length or 0) + self.cached_new:
                raise broken(
                    _CONTRACT,
                    f"A {type(cache).__name__} counts {now} tokens after {length or 0} and {self.cached_new} more.",
                )


class CallReader:
    """Reads the calls of one forward.

    Args:
        forward: The forward of a component's outermost module.
        is_encoder_decoder: Whether its cache keeps what a decoder computes of what an encoder read.
    """

    def __init__(self, forward: Callable[..., Any], *, is_encoder_decoder: bool = False) -> None:
        self._is_encoder_decoder = is_encoder_decoder
        parameters = inspect.signature(forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        # A wrapper that passes everything on names nothing: tokens come first in every class.
        self._positions = tuple(one.name for one in parameters if one.kind in kinds) or _IDS[:1]

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ForwardCall:
        """What this call is.

        Raises:
            ContractError: If it cannot be told: no tokens are found, or earlier ones without a cache.
        """
        given: Mapping[str, Any] = {**dict(zip(self._positions, args, strict=False)), **kwargs} if args else kwargs
        shapes = [shape for name in _NEW if (shape := _shape(given.get(name))) is not None]
        if not shapes:
            raise broken(_CONTRACT, f"A forward pass shows no tokens, only {', '.join(map(repr, given)) or 'nothing'}.")
        batch, tokens = shapes[0]
        uses_cache = given.get("use_cache")
        caches = tuple((cache, _length(cache)) for cache in caches_in((*args[len(self._positions) :], *given.values())))
        if not caches and uses_cache is not False:
            _check_begins(given, batch, tokens)
        lengths = [length for _, length in caches if length is not None]
        begun = any(lengths) or any(length is None and holds_state(cache) for cache, length in caches)
        ids = next((given[name] for name in _IDS if _shape(given.get(name)) == (batch, tokens)), None)
        return ForwardCall(
            ids=ids,
            batch=batch,
            tokens=tokens,
            cached=max(lengths, default=0),
            phase="decode" if tokens == 1 and begun else "prefill",
            mask=given.get("attention_mask"),
            caches=caches,
            cached_new=self._cached_new(given, tokens),
            uses_cache=uses_cache,
            logits=_logits(given),
        )

    def _cached_new(self, given: Mapping[str, Any], tokens: int) -> int:
        of_decoder = [shape for name in _NEW[2:] if (shape := _shape(given.get(name))) is not None]
        if not of_decoder:
            return tokens
        if self._is_encoder_decoder:
            return of_decoder[0][1]
        # A model that writes many tokens at once into a canvas: its decoder reads the cache of what comes before.
        return tokens if any(_shape(given.get(name)) for name in _NEW[:2]) else 0


def _logits(given: Mapping[str, Any]) -> int:
    """Positions whose logits are asked for; a decoder's, where there is one."""
    lengths = [shape[1] for name in (*_NEW[2:], *_NEW[:2]) if (shape := _shape(given.get(name))) is not None]
    if lengths[0] == 1:
        return 1
    if in_slices():
        return min(LAST_POSITIONS, lengths[0])
    kept = given.get(PARAMETER, asked_for())
    if isinstance(kept, torch.Tensor):
        return min(kept.numel(), lengths[0])
    return min(kept, lengths[0]) if isinstance(kept, int) and kept > 0 else lengths[0]


def _length(cache: Any) -> int | None:
    try:
        return cached_length(cache)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise broken(_CONTRACT, f"A {type(cache).__name__} does not say how many tokens it holds ({error}).") from error


def _shape(value: object) -> tuple[int, int] | None:
    if isinstance(value, torch.Tensor) and value.dim() >= 2:
        return int(value.shape[0]), int(value.shape[1])
    return None


def _check_begins(given: Mapping[str, Any], batch: int, tokens: int) -> None:
    """A pass without a cache must be one that begins its sequences."""
    strange = next(iter(strangers_in(given.values())), None)
    if strange is not None:
        name = next((name for name, value in given.items() if value is strange), None)
        raise broken(
            _CONTRACT,
            f"A forward pass is given a {type(strange).__name__}{f' as {name!r}' if name else ''}, and no known cache: "
            "whether tokens came before cannot be told.",
        )
    earlier = max(_hidden(given, batch, tokens), default=0)
    if earlier > 0:
        raise broken(
            _CONTRACT,
            f"A forward pass of {tokens} new tokens goes on after {earlier} earlier ones, but shows no cache. "
            "(If nothing came before, use_cache=False says so.)",
        )


def _hidden(given: Mapping[str, Any], batch: int, tokens: int) -> Iterable[int]:
    """Earlier tokens, by each of the arguments that tell of them."""
    masks = given.get("decoder_attention_mask" if "decoder_input_ids" in given else "attention_mask")
    for mask in masks.values() if isinstance(masks, Mapping) else (masks,):
        if isinstance(mask, torch.Tensor) and mask.dim() in (2, 4) and mask.shape[0] == batch:
            yield int(mask.shape[-1]) - tokens
    for name in ("position_ids", "cache_position"):
        positions = given.get(name)
        if isinstance(positions, torch.Tensor) and positions.numel() and not positions.is_floating_point():
            yield int(positions.min())


class _Asked:
    positions: Kept = 0
    in_slices: bool = False


def asked_for() -> Kept:
    """What this thread's forward pass was asked for, if its class's own forward does not know the parameter."""
    # Carried: of a model with an encoder the parts are passes, not the model whose forward is asked.
    return carried(_Asked, _Asked).positions


def in_slices() -> bool:
    """Whether this thread's forward passes make no more logits at once than those of the last positions take."""
    return carried(_Asked, _Asked).in_slices


@contextmanager
def slicing() -> Iterator[None]:
    """Inside, this thread's forward passes make the logits of all positions, but never all at once."""
    asked = carried(_Asked, _Asked)
    before, asked.in_slices = asked.in_slices, True
    try:
        yield
    finally:
        asked.in_slices = before


class _Keeping(Covering):
    """A model's forward, with the parameter."""

    def __init__(self, forward: Forward) -> None:
        functools.update_wrapper(self, forward, updated=())
        # What generate looks at to know whether it may ask.
        self.__dict__["__signature__"] = _with_parameter(inspect.signature(forward))

    def __call__(self, *args: Any, logits_to_keep: Kept = 0, **kwargs: Any) -> Any:
        asked = carried(_Asked, _Asked)
        before, asked.positions = asked.positions, logits_to_keep
        try:
            return self.beneath(*args, **kwargs)
        finally:
            asked.positions = before


def give_parameter(model: nn.Module) -> None:
    """Gives a model's forward the parameter; does nothing where it has it, or its logits are read otherwise.

    Raises:
        ContractError: If the class's head is not where it was.
    """
    head = head_to_narrow(model)
    if head is None:
        return
    # By hooks: how the head computes is for others to choose.
    head.register_forward_pre_hook(_narrow)
    head.register_forward_hook(_select)
    install(model, "logits", _Keeping(model.forward))


def _narrow(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Gives a head the last positions, as many as make a product that rounds as that of all."""
    kept = asked_for()
    if not isinstance(kept, int) or kept < 1 or not args or args[0].dim() != 3:
        return None
    rows = max(kept, LAST_POSITIONS)
    if args[0].shape[1] <= rows:
        return None
    # One after the other, as all of them are: else torch may choose another product.
    return (args[0][:, -rows:].contiguous(), *args[1:])


def _select(head: nn.Module, args: tuple[Any, ...], logits: torch.Tensor) -> torch.Tensor | None:
    """Of what the head made, what was asked for."""
    kept = asked_for()
    if isinstance(kept, int):
        return None if kept < 1 or logits.shape[1] <= kept else logits[:, -kept:]
    return logits[:, kept]


def _with_parameter(signature: inspect.Signature) -> inspect.Signature:
    added = inspect.Parameter(PARAMETER, inspect.Parameter.KEYWORD_ONLY, default=0, annotation=Kept)
    # What takes any other keyword comes last.
    parameters = sorted((*signature.parameters.values(), added), key=lambda one: one.kind)
    return signature.replace(parameters=parameters)
