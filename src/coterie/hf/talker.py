"""What Qwen3-Omni's talker is given of an answer's text, made by transformers' own code while the text goes on.

Transformers' ``generate`` of the whole model has the thinker write all of the text, makes the talker's input of it, and
has the talker speak. The talker's first pass reads the user's turns and the first token of the answer; each further
pass reads one more token of it, and after the last one a mark that there are no more. So the talker can begin with the
first token. Here ``generate`` is given a thinker that has written that much, and a talker that hands over what was
made ready for it, through ``custom_generate``, which is public.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from coterie.hf.generation_steps import Prepared, hand_over

_TRAILING = "trailing_text_hidden"
_MEDIA = ("audio_token_id", "image_token_id", "video_token_id")
_ENCODED = ("input_features", "pixel_values", "pixel_values_videos")
"""Inputs that only the thinker's encoders read."""
_ROLE_ROWS = 4
"""Rows in which transformers computes the fewest: three tokens say whose turn it is, and one is of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What the thinker has written, under the names that transformers reads.

    Attributes:
        sequences: Tokens [1, T], prompt included.
        hidden_states: What went into the thinker's layers, and into the one that the talker accepts, by number of the
            layer: one pass that stands for all.
    """

    sequences: Tensor
    hidden_states: tuple[dict[int, Tensor], ...]


class _HandedOver(Exception):
    """Leaves transformers' ``generate`` with what it has prepared for the talker."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__()
        self.prepared = prepared


def writing_part(model: Any) -> Any:
    """What generates text: the thinker of a whole omni model, else the model itself."""
    return getattr(model, "thinker", model)


def accepted_layer(model: Any) -> int:
    """The layer of the thinker whose input the talker reads, of pictures and sounds in a prompt."""
    return int(model.config.talker_config.accept_hidden_layer)


def tokens_to_begin(model: Any, ids: Tensor) -> int | None:
    """Tokens of the text that the talker's first pass reads.

    Args:
        model: The whole model.
        ids: The prompt, [1, T].

    Returns:
        1 after the marks of Qwen3-Omni's own template; None if the prompt has no turn of the assistant.
    """
    begins = (ids[0, :-1] == model.config.im_start_token_id) & (ids[0, 1:] == model.config.assistant_token_id)
    places = begins.nonzero().flatten()
    return max(1, _ROLE_ROWS - (ids.shape[1] - int(places[-1]))) if len(places) else None


def media_mask(model: Any, ids: Tensor) -> Tensor:
    """Which tokens stand for pictures, sounds or videos.

    Args:
        model: The whole model.
        ids: int64 [1, T].
    """
    config = model.config.thinker_config
    known = [token for name in _MEDIA if (token := getattr(config, name, None)) is not None]
    return torch.isin(ids, torch.tensor(known, dtype=ids.dtype))


def written(model: Any, ids: Tensor, media: Tensor | None) -> Written:
    """What the talker can read of tokens.

    Args:
        model: The whole model.
        ids: Tokens [1, T], prompt included.
        media: What goes into the accepted layer at those of them that stand for pictures and sounds of the prompt, in
            order: [M, H]. None where there are none.
    """
    with torch.no_grad():
        embeddings = model.thinker.get_input_embeddings()(ids)
    accepted = embeddings
    if media is not None:
        accepted = embeddings.clone()
        accepted[0, media_mask(model, ids)[0].nonzero().flatten()[: len(media)]] = media
    return Written(sequences=ids, hidden_states=({0: embeddings, accepted_layer(model): accepted},))


def prepare_talker(
    model: Any, inputs: Mapping[str, Any], speaker: str, *, thinker: Mapping[str, Any], talker: Mapping[str, Any]
) -> Prepared:
    """The talker's request, ready for its first pass.

    Args:
        model: The whole model.
        inputs: Those of the prompt.
        speaker: Whose voice it is.
        thinker: Options by which the thinker generates, without their prefix; those of :func:`already_written` if it
            does not.
        talker: Options of the talker, likewise.
    """

    def hand(*args: Any, **kwargs: Any) -> None:
        raise _HandedOver(hand_over(*args, **kwargs))

    try:
        spoken(model, inputs, speaker, thinker=thinker, talker={**talker, "custom_generate": hand})
    except _HandedOver as handed:
        prepared = handed.prepared
        handed.__traceback__ = None  # it has every frame of generate
        return prepared
    raise AssertionError("The talker was not asked to generate.")


def spoken(
    model: Any, inputs: Mapping[str, Any], speaker: str, *, thinker: Mapping[str, Any], talker: Mapping[str, Any]
) -> Any:
    """What ``generate`` of the whole model returns; arguments are those of :func:`prepare_talker`."""
    read = inputs if "custom_generate" not in thinker else {
        name: value for name, value in inputs.items() if name not in _ENCODED
    }  # fmt: skip
    return model.generate(
        **read,
        speaker=speaker,
        return_audio=True,
        **{f"thinker_{name}": value for name, value in thinker.items()},
        **{f"talker_{name}": value for name, value in talker.items()},
    )


def already_written(model: Any, ids: Tensor, media: Tensor | None) -> dict[str, Any]:
    """Options of a thinker that has written all that is wanted of it.

    Args:
        model: As :func:`written` takes it.
        ids: Likewise.
        media: Likewise.
    """
    found = written(model, ids, media)

    def generate(*args: Any, **kwargs: Any) -> Written:
        return found

    return {"custom_generate": generate}


class TextRows:
    """The text as the talker reads it, a row for each of its passes after the first; it grows while the text does.

    Args:
        model: The whole model.
        prepared: The talker's request.
        known: Tokens of the text that it was made with.

    Attributes:
        over: Whether the text has come to its end.
    """

    def __init__(self, model: Any, prepared: Prepared, *, known: int) -> None:
        self._model = model
        self._known = known
        # After what is known comes the mark that there is no more.
        rows: Tensor = prepared.kwargs[_TRAILING]
        self._rows, self._end = rows[:, :-1], rows[:, -1:]
        self.over = False

    @property
    def count(self) -> int:
        """Passes that can be computed before more is known."""
        return int(self._rows.shape[1])

    def tell(self, said: Tensor, *, over: bool) -> None:
        """Takes what is known of the text by now.

        Args:
            said: Its tokens, int64 [N].
            over: Whether no more will come.
        """
        if self.over:
            return
        rows = [self._row(token) for token in said[self._known :]]
        self._known = len(said)
        if over:
            self.over = True
            rows.append(self._end)
        if rows:
            self._rows = torch.cat([self._rows, *rows], dim=1)

    def supply(self, kwargs: dict[str, Any]) -> None:
        """Has the talker's next pass read what is known."""
        kwargs[_TRAILING] = self._rows

    @torch.no_grad()
    def _row(self, token: Tensor) -> Tensor:
        return _alone(self._model.talker.text_projection, self._model.thinker.get_input_embeddings()(token[None, None]))


_ROW_COUNTS = (4, 5, 7, 13, 33, 160)
"""In how many rows it is tried out whether the number of rows matters, and how many are computed alone."""
_ALONE = 8
_independent: WeakKeyDictionary[nn.Module, dict[int, bool]] = WeakKeyDictionary()


def _alone(projection: nn.Module, row: Tensor) -> Tensor:
    """A row of the text, as it is computed among others.

    One row by itself goes through other kernels than several do: it is computed as often as the fewest are.

    Args:
        projection: The talker's ``text_projection``.
        row: An embedding of the thinker, [1, 1, H].
    """
    made: Tensor = projection(row.repeat(1, _ROLE_ROWS, 1))[:, :1]
    return made


TextReading = Literal["alone", "together", "either"]
"""How the talker's rows of a text are computed: one by one, all at once, or either way, with the same bits."""


def text_reading(model: Any) -> TextReading:
    """How the rows of a text are to be computed, so that they are the same whether the sound waits for the text or not.

    Transformers projects all rows of a text at once. How a product of matrices rounds can depend on the number of rows:
    in bfloat16 it does not, in float32 it does with several threads. Only if it does not may a row be read before all
    are there. Where weights are stored in a scheme, transformers has no bits that would have to be met, and rows are
    always computed one by one.

    Args:
        model: The whole model.
    """
    projection = model.talker.text_projection
    if not (isinstance(projection.linear_fc1, nn.Linear) and isinstance(projection.linear_fc2, nn.Linear)):
        return "alone"
    return "either" if rows_are_independent(model) else "together"


@torch.no_grad()
def rows_are_independent(model: Any) -> bool:
    """Whether a row of the text has the same bits however many there are; it is tried out, once for each model.

    Args:
        model: The whole model.
    """
    projection = model.talker.text_projection
    known = _independent.setdefault(projection, {})
    threads = torch.get_num_threads()
    if threads not in known:
        width, most = model.config.talker_config.thinker_hidden_size, _ROW_COUNTS[-1]
        rows = torch.sin(torch.arange(most * width, dtype=torch.float32) * 0.37).view(1, most, width).to(model.dtype)
        among = projection(rows)
        known[threads] = all(
            torch.equal(projection(rows[:, :count]), among[:, :count]) for count in _ROW_COUNTS
        ) and all(
            torch.equal(_alone(projection, rows[:, row : row + 1]), among[:, row : row + 1]) for row in range(_ALONE)
        )
    return known[threads]
