"""Which tensors belong to parts that only some requests need, by their names alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any

import pytest

from coterie.hf import parts
from coterie.hf.parts import embedding_table, is_whole, leaving, leaving_parts, part_path
from coterie.spec.footprint import Part


@dataclass(frozen=True)
class Sized:
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return 2 * prod(self.shape)


MATRIX, VECTOR, TABLE = Sized((4096, 2048)), Sized((4096,)), Sized((32768, 512))


def config(*, tied: bool = False, vocabulary: int = 32768) -> Any:
    text = SimpleNamespace(tie_word_embeddings=tied, vocab_size=vocabulary)
    return SimpleNamespace(get_text_config=lambda decoder: text)


@pytest.mark.parametrize(
    ("name", "whole", "expected"),
    [
        ("thinker.visual.blocks.0.attn.qkv.weight", True, ("thinker.visual", "encoding")),
        ("model.visual.blocks.0.attn.qkv.weight", False, ("model.visual", "encoding")),
        ("vision_tower.vision_model.x.weight", False, ("vision_tower", "encoding")),
        ("thinker.model.layers.0.self_attn.q_proj.weight", True, None),
        ("talker.model.layers.0.self_attn.q_proj.weight", True, ("talker", "speaking")),
        ("talker.model.layers.0.self_attn.q_proj.weight", False, None),
        ("code2wav.decoder.0.conv.weight", True, ("code2wav", "speaking")),
        ("model.visualiser.weight", False, None),
    ],
)
def test_the_part_of_a_name(name: str, whole: bool, expected: tuple[str, str] | None) -> None:
    assert part_path(name, whole=whole) == expected


def test_a_talker_alone_is_always_needed() -> None:
    assert is_whole(["thinker.a", "talker.b"])
    assert not is_whole(["talker.b", "code2wav.c"])
    assert not is_whole(["thinker.a"])


def test_large_matrices_leave_and_small_parts_stay() -> None:
    tensors = {"thinker.lm_head.weight": MATRIX, "thinker.visual.a.weight": MATRIX, "thinker.visual.norm": VECTOR,
               "thinker.audio_tower.b.weight": Sized((64, 64)), "talker.c.weight": MATRIX}  # fmt: skip
    assert leaving_parts(tensors) == (
        Part(path="talker", use="speaking", nbytes=MATRIX.nbytes),
        Part(path="thinker.visual", use="encoding", nbytes=MATRIX.nbytes),
    )


def test_a_table_whose_rows_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"model.embed_tokens.weight": TABLE, "lm_head.weight": TABLE}
    assert embedding_table(tensors, config()) == "model.embed_tokens.weight"
    assert leaving(tensors, config()) == ((), TABLE.nbytes)
    assert embedding_table(tensors, config(tied=True)) is None
    assert embedding_table(tensors, config(vocabulary=9)) is None
    assert embedding_table({"model.embed_tokens.weight": TABLE}, config()) is None
    assert embedding_table(tensors | {"other.embed_tokens.weight": TABLE}, config()) is None
    monkeypatch.setattr(parts, "LEAST_TABLE", TABLE.nbytes + 1)
    assert embedding_table(tensors, config()) is None
    assert leaving(tensors, config()) == ((), 0)
