"""Whatever a library raises over a stranger's file becomes one error that names it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoConfig

from coterie.errors import InputError, LoadError, UsageError
from coterie.hf.configs import load_config
from coterie.hf.foreign import foreign
from zoo import ZOO

PATH = Path("model") / "tokenizer.json"


class Panic(BaseException):
    """As Rust code raises."""


@pytest.mark.parametrize(
    "raised", [TypeError("x"), ZeroDivisionError(), Panic("regex"), RecursionError(), MemoryError()]
)
def test_everything_becomes_ours(raised):
    with (
        pytest.raises(LoadError, match=r"The tokenizer in .*tokenizer\.json cannot be used") as caught,
        foreign("The tokenizer", PATH),
    ):
        raise raised
    assert caught.value.__cause__ is raised
    assert caught.value.path == PATH


def test_the_class_may_be_chosen_and_long_texts_are_cut():
    with pytest.raises(InputError) as caught, foreign("The template", PATH, error=InputError, advice=None):
        raise ValueError("a\nb " * 1000)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), UsageError("ours")])
def test_interrupts_and_our_own_errors_pass(raised):
    with pytest.raises(type(raised)) as caught, foreign("The tokenizer", PATH):
        raise raised
    assert caught.value is raised


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def rotary() -> Iterator[tuple[logging.Logger, Kept]]:
    """transformers' logger of rotary embeddings, and what comes through it."""
    logger, kept = logging.getLogger("transformers.modeling_rope_utils"), Kept()
    logger.addHandler(kept)
    yield logger, kept
    logger.removeHandler(kept)


def test_remarks_on_rotary_embeddings_are_left_out_and_nothing_else_is(rotary):
    logger, kept = rotary
    with foreign("The configuration", PATH):
        logger.warning("Unrecognized keys")
        logger.error("broken")
        other = threading.Thread(target=logger.warning, args=["of another thread"])
        other.start()
        other.join()
    logger.warning("afterwards")
    assert kept.lines == ["broken", "of another thread", "afterwards"]


RELEASED = {
    "qwen3_omni": ("thinker_config", {"interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"}),
    "phimoe": ("", {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "short_mscale": 1.2,
                    "long_mscale": 1.2, "original_max_position_embeddings": 64}),
}  # fmt: skip
"""As the released configurations have it."""


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_are_read_in_silence(name, rotary, tmp_path):
    part, rope = RELEASED[name]
    made = ZOO[name].config().to_dict()
    text = (made[part] if part else made).get("text_config", made)
    text["rope_parameters"] = {"rope_theta": 10000.0} | rope
    (tmp_path / "config.json").write_text(json.dumps(made))
    kept = rotary[1]
    AutoConfig.from_pretrained(tmp_path)
    assert kept.lines, "nothing is to be left out"
    kept.lines.clear()
    load_config(tmp_path)
    assert not kept.lines
