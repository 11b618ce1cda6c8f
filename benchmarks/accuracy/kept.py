"""Forecasts for the full-size model that bench_peers.py ran, on the machine where it did, beside what it measured.

Nothing runs here: the model is laid out as files without content, and results are those that were kept.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import plan_tables
from coterie.extraction.whole import plan_whole
from coterie.inspection.contents import checkpoint_contents
from coterie.inspection.what_fits import process_nbytes
from coterie.origins import CheckpointOrigin
from coterie.planner import Expected, Forecast, HitRates, Law
from coterie.planner.asked import open_asked
from coterie.planner.known_models import known_hit_rates
from coterie.planner.subject import Subject
from coterie.spec.defaults import DEFAULT_POLICY
from harness.report import RESULTS
from model_sizes import MODELS, lay_out

MODEL = "Qwen/Qwen3-30B-A3B"
_FEWEST_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A run of bench_peers.py.

    Attributes:
        case: Its name there.
        expected: The forecast, with the experts that fitted.
        tokens_per_second: Measured, over the steps that count there.
    """

    case: str
    expected: Expected
    tokens_per_second: float

    @property
    def inside(self) -> bool:
        """Whether the measured speed lay in the range."""
        speed = self.expected.speed
        assert speed is not None  # the machine is known
        return self.tokens_per_second in speed.tokens_per_second


def forecast(folder: Path) -> Forecast:
    """Of the full-size model in int4, on the machine where it was measured, by the law.

    Args:
        folder: Where the files without content go.
    """
    lay_out(next(model for model in MODELS if model.name == MODEL), folder)
    checkpoint = open_asked(folder).checkpoint
    assert checkpoint is not None  # one was laid out
    contents = checkpoint_contents(checkpoint, plan_whole(CheckpointOrigin(checkpoint), "int4", "int4"))
    subject = Subject.of(contents)
    return Forecast(
        subject=subject,
        hit_rates=Law(experts=subject.experts),
        context=4096,
        prompt_tokens=32,
        answer_tokens=48,
        machine=plan_tables.machine(),
        process=process_nbytes(),
    )


def kept() -> list[Kept]:
    """Every run that decoded, with the forecast by the law and with that of the model, which is known.

    Where all experts fit, the two are the same, and there is one.
    """
    with tempfile.TemporaryDirectory() as folder:
        by_law = forecast(Path(folder))
    known: HitRates | None = known_hit_rates(by_law.subject, DEFAULT_POLICY)
    assert known is not None  # the full-size model has the dimensions of one that is in the table
    outcomes = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))["values"]["outcomes"]
    found = [
        Kept(
            case=one["case"],
            expected=made.with_room_for(one["own"]["capacity"]),
            tokens_per_second=1 / statistics.fmean(one["steps_s"]),
        )
        for made, one in itertools.product((by_law, replace(by_law, hit_rates=known)), outcomes)
        if one["engine"] == "coterie" and len(one["steps_s"]) >= _FEWEST_STEPS
    ]
    return [one for one in found if one.expected.share < 1 or one.expected.hit_rate.grade == "law"]
