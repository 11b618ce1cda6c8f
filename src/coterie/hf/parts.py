"""Parts of a model that only some requests need: encoders of pictures and sounds, and what speaks.

They are known by the names that their tensors have, in a checkpoint as in the model, so that what they take is known
before a model is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from coterie.spec.footprint import Part, PartUse

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ENCODERS = frozenset({"visual", "vision_tower", "vision_model", "audio_tower"})
"""What transformers calls encoders of pictures and sounds."""
_SPEECH = ("talker", "code2wav")
_WRITES = "thinker"

LEAST_TENSOR = 4096
"""Bytes from which on a tensor can leave memory: norms and biases always stay."""
LEAST_PART = 8 << 20
"""Bytes from which on a part can leave memory: less is not worth a read."""
LEAST_TABLE = 32 << 20
"""Bytes of a table of embeddings from which on its rows are read when they are asked for."""


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def part_path(name: str, *, whole: bool) -> tuple[str, PartUse] | None:
    """The path of the part that a tensor or module belongs to, and what it is for; None if it is always needed.

    Args:
        name: Its name, with dots.
        whole: Whether the model has both a thinker and a talker: a talker that is opened alone is always needed.
    """
    segments = name.split(".")
    if whole and segments[0] in _SPEECH:
        return segments[0], "speaking"
    for place, segment in enumerate(segments):
        if segment in ENCODERS:
            return ".".join(segments[: place + 1]), "encoding"
    return None


def is_whole(names: Iterable[str]) -> bool:
    """Whether a model has a thinker and something that speaks, by the names of its tensors or modules."""
    first = {name.partition(".")[0] for name in names}
    return _WRITES in first and bool(first & set(_SPEECH))


def may_leave(tensor: _Sized) -> bool:
    """Whether a tensor of a part is one that leaves memory with it."""
    return tensor.nbytes >= LEAST_TENSOR and len(tensor.shape) > 1


def leaving_parts(tensors: Mapping[str, _Sized]) -> tuple[Part, ...]:
    """The parts that can leave memory, by path.

    Args:
        tensors: By checkpoint name, those that lie in memory as they are stored.
    """
    whole = is_whole(tensors)
    found: dict[tuple[str, PartUse], int] = {}
    for name, tensor in tensors.items():
        path = part_path(name, whole=whole)
        if path is not None and may_leave(tensor):
            found[path] = found.get(path, 0) + tensor.nbytes
    return tuple(
        Part(path=path, use=use, nbytes=nbytes) for (path, use), nbytes in sorted(found.items()) if nbytes >= LEAST_PART
    )


def leaving(tensors: Mapping[str, _Sized], config: PreTrainedConfig) -> tuple[tuple[Part, ...], int]:
    """What of a model's dense part need not be in memory all the time: parts, and bytes of the table of embeddings.

    Args:
        tensors: As for :func:`leaving_parts`.
        config: The model's.
    """
    table = embedding_table(tensors, config)
    return leaving_parts(tensors), 0 if table is None else tensors[table].nbytes


def embedding_table(tensors: Mapping[str, _Sized], config: PreTrainedConfig) -> str | None:
    """The checkpoint name of a table of embeddings of which a pass needs only some rows; None if there is none.

    That of the text, where it is large and the output head has weights of its own.

    Args:
        tensors: As for :func:`leaving_parts`.
        config: The model's.
    """
    text: Any = getattr(config, "thinker_config", None) or config
    text = text.get_text_config(decoder=True)
    if getattr(text, "tie_word_embeddings", False) or getattr(config, "is_encoder_decoder", False):
        return None
    whole = is_whole(tensors)
    own = [name for name in tensors if part_path(name, whole=whole) is None]
    if not any("lm_head.weight" in name for name in own):
        return None
    tables = [name for name in own if name.endswith("embed_tokens.weight")]
    if len(tables) != 1:
        return None
    table = tensors[tables[0]]
    large = table.nbytes >= LEAST_TABLE and len(table.shape) == 2 and table.shape[0] == text.vocab_size
    return tables[0] if large else None
