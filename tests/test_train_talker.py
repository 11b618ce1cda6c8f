"""The recipe of the bundled talker: it goes on where it was, and what it makes is what the package has."""

import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import coterie

ROOT = Path(__file__).parents[1]
PACKAGE = Path(coterie.__file__).parent / "bundled-omni"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Gives a module of the recipe by name."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return lambda name: importlib.import_module(f"talker.{name}")


class Stopped(Exception):
    pass


def test_a_run_that_was_stopped_ends_where_another_one_does(
    recipe: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = recipe("training")
    monkeypatch.setattr(training, "_SAVE_EVERY_S", -1)  # after every step
    plan = training.Plan(steps=8, rate=0.1, least=0.1, betas=(0.9, 0.99), seed=3)

    def trained(path: Path, stop_at: int | None = None) -> nn.Linear:
        torch.manual_seed(plan.seed)
        model = nn.Linear(3, 2)

        def loss(step: int, choice: random.Random) -> Tensor:
            if step == stop_at:
                raise Stopped
            return (model(torch.tensor([[choice.random(), choice.random(), 1.0]])) - step).square().sum()

        training.train(model, loss, plan, path)
        return model

    with pytest.raises(Stopped):
        trained(tmp_path / "stopped.pt", stop_at=5)
    assert torch.load(tmp_path / "stopped.pt")["step"] == 5
    resumed, whole = trained(tmp_path / "stopped.pt"), trained(tmp_path / "whole.pt")
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)
    assert not list(tmp_path.glob("*.partial"))


def test_the_rate_rises_stays_and_falls(recipe: Callable[[str], ModuleType]) -> None:
    plan = recipe("training").Plan(steps=1000, rate=2.0, least=0.1, betas=(0.9, 0.99), seed=3)
    assert plan.rate_at(0) == pytest.approx(0.04)
    assert plan.rate_at(49) == plan.rate_at(400) == 2.0
    assert plan.rate_at(750) == pytest.approx(1.1)
    assert plan.rate_at(999) == pytest.approx(0.2, rel=0.02)


def test_codes_name_what_is_alike(recipe: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    rate, frame = recipe("synthesis").RATE, recipe("synthesis").FRAME
    times = np.arange(3 * frame) / rate
    recordings = [np.sin(2 * np.pi * hz * times).astype(np.float32) for hz in (200, 1000, 200, 3000)]
    first, other, again, last = recipe("codes").quantised(recordings, groups=2, entries=4, seed=1)
    assert first.shape == (3, 2)
    assert first.dtype == np.int64
    assert np.array_equal(first, again)
    assert len({tuple(codes[1]) for codes in (first, other, last)}) == 3
    left = [float(line.split(": ")[1].split(" %")[0]) for line in capsys.readouterr().out.splitlines()]
    assert 0 <= left[1] < left[0] < 50


def test_the_package_has_what_the_recipe_writes(recipe: Callable[[str], ModuleType]) -> None:
    configuration = recipe("configuration")
    assert json.loads((PACKAGE / "config.json").read_text()) == configuration.whole_config()
    assert (PACKAGE / "chat_template.jinja").read_text() == configuration.CHAT_TEMPLATE


def test_every_word_is_asked(recipe: Callable[[str], ModuleType]) -> None:
    words = recipe("words")
    assert sorted(words.WORDS) == sorted(path.stem for path in (ROOT / "tests/data/words").iterdir())
    assert words.HELD_OUT not in (*words.ASKING, *words.VOICES.values())
