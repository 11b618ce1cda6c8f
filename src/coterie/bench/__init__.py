"""How fast a model runs here, and where the time goes."""

from coterie.bench.breakdown import Breakdown, breakdown
from coterie.bench.measurement import Measurement, measure
from coterie.bench.prompt import TEXT, prompt_of
from coterie.bench.times import TokenTimes, generate

__all__ = ["TEXT", "Breakdown", "Measurement", "TokenTimes", "breakdown", "generate", "measure", "prompt_of"]
