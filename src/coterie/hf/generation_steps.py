"""Generation one token at a time, as transformers computes it: the calls that are its own business, in one place.

``generate`` makes much of a request before the first forward pass: settings, a cache, logits processors, stopping
criteria, positions. A function that is given to it as ``custom_generate``, which is public, gets all that instead of
transformers' own loop. Here it is handed over (:class:`Prepared`), and what that loop does to one sequence afterwards
is given in steps, to the bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.hf.caches import OWN_KEYS, caches_in, counts_tokens, is_cache, let_go_of_kept, own_keys
from coterie.hf.prompt_media import Media, media_of
from coterie.hf.rotary_lengths import Frequencies

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

_POSITIONS = "rope_deltas"
"""What models with pictures keep on themselves of the sequence that they saw last. Releases differ in who reads it."""
_REMARK = "Passing `generation_config` together with generation-related arguments"
_MASK = "attention_mask"
_BATCHED = ("input_ids", "position_ids")
"""What a row of a pass has of its own, as [1, 1], or as [axes, 1, 1]."""
_OF_PICTURES = frozenset(
    {
        "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "feature_attention_mask",
        "audio_feature_lengths", "video_second_per_grid", "second_per_grid_ts", "use_audio_in_video",
    }
)  # fmt: skip
"""What says where in a prompt pictures and sounds are: a pass that is given its positions reads none of it."""
_ONE_BY_ONE = ("greedy_search", "sample")
_ENCODED = "mm_encoder_outputs"
"""What releases from 5.24 on make of all pictures of a prompt before its first pass."""
_BY_TOKEN = {
    "attention_mask": "prompt",
    "position_ids": "piece",
    "token_type_ids": "prompt",
    "mm_token_type_ids": "prompt",
    "moe_mm_token_type_ids": "prompt",
}
"""What says something of each token, and whether a pass over a piece of a prompt is told of the tokens before, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request that is ready for its first forward pass.

    Attributes:
        model: The model.
        ids: Tokens of the prompt, int64 [1, T]; none where it is given as embeddings.
        processors: Change the logits of a step before a token is chosen.
        criteria: Say when it ends.
        config: Its settings.
        kwargs: What forward passes are called with, its cache included.
        whole: Whether the first pass computes the logits of the whole prompt, whatever the class does to generate.
        media: Pictures and sounds that each pass over a piece of the prompt is given by itself.
    """

    model: PreTrainedModel
    ids: Tensor
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    config: GenerationConfig
    kwargs: dict[str, Any]
    whole: bool = False
    media: Media = field(default_factory=Media)

    def go_on_with(self, cache: Any) -> None:
        """Has it begin with a cache that holds the first tokens of the prompt, in place of its own."""
        name = next(name for name, value in self.kwargs.items() if is_cache(value))
        self.kwargs[name] = cache


def one_by_one(model: PreTrainedModel, config: GenerationConfig) -> bool:
    """Whether tokens are chosen one after the other, in transformers' common way.

    That is not so in a search over several sequences, where candidates are checked, in a class with a loop of its own,
    or where passes are compiled. Where tokens are healed, ``generate`` generates one before it begins.

    Args:
        model: The model.
        config: Its settings.
    """
    from transformers import GenerationMixin

    common = all(getattr(type(model), name, None) is getattr(GenerationMixin, name) for name in ("generate", "_sample"))
    return (
        common
        and config.get_generation_mode() in _ONE_BY_ONE
        and config.compile_config is None
        and not config.token_healing
    )


def prepare(model: PreTrainedModel, **options: Any) -> Prepared:
    """Prepares a request.

    Args:
        model: The model.
        options: Those of ``generate``, inputs included. It is not told of a ``tokenizer`` or ``streamer``.
    """
    with _unremarked():
        prepared: Prepared = model.generate(custom_generate=hand_over, **options)
    return prepared


def prepare_in_pieces(model: PreTrainedModel, inputs: Mapping[str, Any], **options: Any) -> Prepared:
    """Prepares a request whose prompt may come in pieces, pictures and sounds included, where that is possible.

    Args:
        model: The model.
        inputs: What its forward takes of the prompt.
        options: Further ones, as of :func:`prepare`.
    """
    media = media_of(model.config, inputs)
    if media is not None and media.each:
        prepared = replace(prepare(model, **media.prepared(inputs), **options), media=media)
        # Older releases work out where pictures are in a forward pass, and only in one over the whole prompt.
        if may_come_in_pieces(prepared) and _knows_places(prepared):
            return prepared
    return prepare(model, **inputs, **options)


def _knows_places(prepared: Prepared) -> bool:
    """Whether it has been worked out where in time, height and width each token is."""
    positions = prepared.kwargs.get("position_ids")
    return isinstance(positions, Tensor) and positions.dim() == 3


@contextmanager
def _unremarked() -> Iterator[None]:
    """Inside, transformers does not remark on options beside a config: by nothing else is one of the model's undone."""

    def another(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_REMARK)

    logger = logging.getLogger("transformers.generation.utils")
    logger.addFilter(another)
    try:
        yield
    finally:
        logger.removeFilter(another)


def hand_over(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Prepared:
    """The function for ``custom_generate``: names what it is given."""
    # Else the next request would take this one's static cache, and empty it.
    let_go_of_kept(model)
    return Prepared(
        model=model,
        ids=input_ids,
        processors=logits_processor,
        criteria=stopping_criteria,
        config=generation_config,
        kwargs=model_kwargs,
    )


def plain(model: PreTrainedModel, ids: Tensor) -> Prepared:
    """A request for nothing but what the model computes of a prompt, the logits of all its tokens included.

    Args:
        model: The model.
        ids: The prompt, int64 [1, T].
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    for space in _spaces(model):
        space[_POSITIONS] = None  # it begins like any other, whatever the model saw last
    return Prepared(
        model=model,
        ids=ids,
        processors=LogitsProcessorList(),
        criteria=StoppingCriteriaList(),
        config=GenerationConfig(),
        kwargs={"use_cache": True},
        whole=True,
    )


def _spaces(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The attributes of whatever keeps positions of the sequence that it saw last."""
    spaces = (vars(one) for one in (model, *model.children()))
    return [space for space in spaces if _POSITIONS in space]


class Positions:
    """Where a sequence's positions are, as its model keeps it on itself: several sequences have one model.

    Also, the frequencies of its rotary embedding where they go by the longest sequence, and keys that modules keep of
    the one that they saw last.

    Args:
        prepared: A sequence that its model has just prepared.
        goes_on: Whether its cache holds tokens already, of an earlier one that began alike.
    """

    __slots__ = ("_frequencies", "_kept", "_keys")

    def __init__(self, prepared: Prepared, *, goes_on: bool = False) -> None:
        model = prepared.model
        self._kept = [(space, space[_POSITIONS]) for space in _spaces(model)]
        self._frequencies = Frequencies(model)
        self._keys: list[tuple[dict[str, Any], Any]] = [(module._buffers, None) for module in own_keys(model)]
        if goes_on:
            self.go_on(prepared)

    def go_on(self, prepared: Prepared) -> None:
        """Says that its first tokens are computed by nobody: its cache holds them."""
        if not _knows_places(prepared):
            # Older releases find it out in the pass over the first tokens, which this sequence does not have: what the
            # model keeps is of another. There, only texts go on so, whose positions are counted.
            counted = torch.zeros(1, 1, dtype=torch.long, device=prepared.ids.device)
            self._kept = [(space, counted) for space, _ in self._kept]

    def copy(self) -> Positions:
        """Those of another sequence that has computed the same tokens."""
        made = copy(self)
        made._frequencies = copy(self._frequencies)
        return made

    def put_back(self) -> None:
        """Has the model keep what it kept."""
        for space, value in self._kept:
            space[_POSITIONS] = value
        for buffers, value in self._keys:
            buffers[OWN_KEYS] = value
        self._frequencies.put_back()

    def note(self) -> None:
        """Remembers what it keeps now."""
        self._kept = [(space, space[_POSITIONS]) for space, _ in self._kept]
        self._keys = [(buffers, buffers[OWN_KEYS]) for buffers, _ in self._keys]
        self._frequencies.note()


def prompt_length(prepared: Prepared) -> int:
    """Tokens of the prompt that the decoder computes, embeddings included."""
    given = prepared.kwargs.get("inputs_embeds")
    if given is None or prepared.model.config.is_encoder_decoder:
        return int(prepared.ids.shape[1])
    return int(given.shape[1])


def prefill(prepared: Prepared, kwargs: dict[str, Any]) -> Any:
    """The first forward pass, over the prompt; several where the settings ask for pieces of it."""
    if prepared.whole:
        return prepared.model(input_ids=prepared.ids, **kwargs, return_dict=True)
    return prepared.model._prefill(prepared.ids, prepared.config, kwargs, is_first_iteration=True)


def may_come_in_pieces(prepared: Prepared) -> bool:
    """Whether the prompt can be computed in several passes, as ``prefill_chunk_size`` of transformers has it.

    It cannot with an encoder, with what goes through a model as a whole (embeddings, and pictures and sounds that were
    not told apart: :func:`prepare_in_pieces`), without a cache, or with one that holds states instead of tokens: layers
    of linear attention begin anew with longer passes. So do modules that have :func:`~coterie.hf.caches.own_keys`.

    Args:
        prepared: The request.
    """
    caches = caches_in(prepared.kwargs.values())
    others = {name for name, value in prepared.kwargs.items() if isinstance(value, Tensor)} - {*_BY_TOKEN}
    others -= {name for one in prepared.media.each for name in one.inputs}
    return (
        not (prepared.whole or prepared.model.config.is_encoder_decoder or others or prepared.kwargs.get(_ENCODED))
        and bool(prepared.kwargs["use_cache"])
        and len(caches) == 1
        and counts_tokens(caches[0])
        and not own_keys(prepared.model)
    )


def piece_end(prepared: Prepared, begin: int, size: int) -> int:
    """Where a piece of the prompt ends: at a multiple of a number of tokens, or where a picture or sound does.

    Args:
        prepared: A request that :func:`may_come_in_pieces`.
        begin: First token of the piece.
        size: That number.
    """
    return prepared.media.after(min(prompt_length(prepared), (begin // size + 1) * size))


def prefill_piece(prepared: Prepared, kwargs: dict[str, Any], begin: int, end: int) -> Any:
    """A forward pass over a piece of the prompt, as transformers' own loop over such pieces does it.

    Args:
        prepared: A request that :func:`may_come_in_pieces`.
        kwargs: What forward passes are called with; its cache holds the tokens before the piece.
        begin: First token of the piece.
        end: The one after its last.
    """
    known = dict(kwargs)
    for name, first in _BY_TOKEN.items():
        if (value := kwargs.get(name)) is not None:
            known[name] = value[..., begin if first == "piece" else 0 : end]
    if prepared.media.each:
        # What there is of all media tells nothing of these.
        for name in {_ENCODED, *(name for one in prepared.media.each for name in one.inputs)}:
            known.pop(name, None)
        known |= prepared.media.inputs(begin, end)
    ids = prepared.ids[:, begin:end]
    inputs = prepared.model.prepare_inputs_for_generation(ids, is_first_iteration=True, **known)
    return prepared.model(**inputs, return_dict=True)


def next_inputs(model: PreTrainedModel, ids: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the next forward pass is called with.

    Args:
        model: The model.
        ids: All tokens so far [1, T].
        kwargs: As :func:`after_pass` returned them.
    """
    length = 1 if kwargs["use_cache"] else None
    inputs: dict[str, Any] = model.prepare_inputs_for_generation(ids, next_sequence_length=length, **kwargs)
    return inputs


def join_inputs(inputs: Sequence[Mapping[str, Any]], cache: object) -> dict[str, Any] | None:
    """What one pass of the next tokens of several sequences is called with.

    Args:
        inputs: What :func:`next_inputs` gave for each.
        cache: The cache for all.

    Returns:
        None if they cannot be joined: one hides tokens, is given what is not of a text, or is asked for otherwise.
    """
    read = [{name: value for name, value in one.items() if _is_read(name, value)} for one in inputs]
    first, joined = read[0], dict[str, Any]()
    if any(one.keys() != first.keys() for one in read):
        return None
    for name, value in first.items():
        values = [one[name] for one in read]
        if name in _BATCHED:
            if not all(isinstance(one, Tensor) and one.shape == value.shape for one in values):
                return None
            joined[name] = torch.cat(values, dim=-2)
        elif all(map(is_cache, values)):
            joined[name] = cache
        elif (
            isinstance(value, int)
            and not name.startswith("output_")
            and all(type(one) is type(value) and one == value for one in values)
        ):
            joined[name] = value
        else:
            return None
    complete = all(name in joined for name in _BATCHED) and any(value is cache for value in joined.values())
    return joined if complete else None


def _is_read(name: str, value: object) -> bool:
    """Whether an input changes what a pass of one token computes."""
    if name == _MASK and isinstance(value, Tensor) and value.dim() == 2 and bool(value.all()):
        return False
    return value is not None and value is not False and name not in _OF_PICTURES


def row_of(outputs: Any, row: int, cache: object) -> Any:
    """Of what a pass of several sequences returned, what it would have returned for one of them.

    Args:
        outputs: Of the pass.
        row: Which of them.
        cache: Its own.
    """
    return type(outputs)(
        **{
            name: cache if is_cache(value) else value[row : row + 1] if isinstance(value, Tensor) else value
            for name, value in outputs.items()
        }
    )


def last_of(outputs: Any) -> dict[str, Any] | None:
    """Of what a pass over a prompt returned, what the choice of its next token takes, as copies.

    Args:
        outputs: Of the pass.

    Returns:
        What to make such outputs of, by name, without caches; None if there is more than is known to be of no use.
    """
    if set(outputs) - {"logits", _POSITIONS} - {name for name, value in outputs.items() if is_cache(value)}:
        return None
    return {
        name: value[:, -1:].clone() if name == "logits" else value.clone() if isinstance(value, Tensor) else value
        for name, value in outputs.items()
        if not is_cache(value)
    }


def after_pass(model: PreTrainedModel, outputs: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What passes are called with from now on.

    Args:
        model: The model.
        outputs: What the last pass returned.
        kwargs: What it was called with, before :func:`next_inputs`.
    """
    following: dict[str, Any] = model._update_model_kwargs_for_generation(
        outputs, kwargs, is_encoder_decoder=model.config.is_encoder_decoder
    )
    return following


def left_of(kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a sequence that has ended could go on with, but for its cache: pictures and sounds are in that.

    Args:
        kwargs: As :func:`after_pass` returned them, with one cache.

    Returns:
        The name of the cache, and the rest.
    """
    name = next(name for name, value in kwargs.items() if is_cache(value))
    dropped = {name, _ENCODED}
    dropped |= {one for one, value in kwargs.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return name, {one: value for one, value in kwargs.items() if one not in dropped}


def lengthen(prepared: Prepared, length: int) -> None:
    """Has a sequence that goes on end at another length; its time begins anew.

    Args:
        prepared: The request.
        length: Tokens at which it ends, prompt included.
    """
    from transformers import MaxLengthCriteria, MaxTimeCriteria

    for one in prepared.criteria:
        if isinstance(one, MaxLengthCriteria):
            one.max_length = length
        elif isinstance(one, MaxTimeCriteria):
            one.initial_timestamp = time.time()


def last_logits(outputs: Any, ids: Tensor) -> Tensor:
    """Logits of the next token, float32 [1, V]: a copy, so that those of a whole prompt can go."""
    logits: Tensor = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=ids.device)
    return logits


def choose(scores: Tensor, *, sample: bool) -> Tensor:
    """Chooses a token.

    Args:
        scores: Logits as the processors left them, float32 [1, V].
        sample: Whether to draw it, with torch's random numbers; else the first of the likeliest.

    Returns:
        Its id, [1].
    """
    if not sample:
        return torch.argmax(scores, dim=-1)
    return torch.multinomial(torch.nn.functional.softmax(scores, dim=-1), num_samples=1).squeeze(1)
