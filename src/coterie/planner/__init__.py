"""What a model would take and how fast it would run, before it is downloaded or opened.

:func:`plan` reads headers alone. Memory is computed as opening a model computes it. A hit rate is a forecast, and says
of which kind: a law that holds for any model, curves that are known of this one, a profile, or a probe with your own
text. Speed
follows from the hit rate and from what was measured of the machine. docs/planning.md says how.
"""

from coterie.planner.forecast import Forecast
from coterie.planner.hit_rates import HitRate, HitRates, Law
from coterie.planner.machine import DiskSpeed, Machine, ProductSpeed, measure_machine
from coterie.planner.planning import forecast_for, plan
from coterie.planner.ranges import Range
from coterie.planner.report import BudgetPlan, DiskNeed, DomainPlan, Expected, Gain, Knee, Plan, PrecisionPlan, Speed

__all__ = [
    "BudgetPlan",
    "DiskNeed",
    "DiskSpeed",
    "DomainPlan",
    "Expected",
    "Forecast",
    "Gain",
    "HitRate",
    "HitRates",
    "Knee",
    "Law",
    "Machine",
    "Plan",
    "PrecisionPlan",
    "ProductSpeed",
    "Range",
    "Speed",
    "forecast_for",
    "measure_machine",
    "plan",
]
