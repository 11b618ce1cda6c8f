"""What experts do, measured: a database of counters, and the questions that it answers. No models, no torch.

Recording counts into a :class:`Recording`; :class:`ProfileDatabase` keeps runs in an SQLite file or in PostgreSQL;
:func:`merge` and :func:`sync` bring databases together; :class:`Profile` is one model's counters in memory, of which
the functions ask. docs/profiles.md has the formulas, and says what the figures mean.
"""

from coterie.profiles.accumulator import Accumulator
from coterie.profiles.card import ExpertCard, expert_card
from coterie.profiles.claims import Claim
from coterie.profiles.contrast import Contrast, ExpertDifference, compare_domains, jensen_shannon
from coterie.profiles.database import ProfileDatabase
from coterie.profiles.error_weights import ErrorWeights, WeightMeasure, error_weights
from coterie.profiles.facts import (
    BankCounts,
    BankShape,
    Group,
    GroupCounts,
    Mark,
    Modality,
    RunFacts,
    SegmentFacts,
    TokenCounts,
    TokenPhase,
    Vocabulary,
    join_segments,
)
from coterie.profiles.halves import Estimate, Statistic, Stretches, profile_halves
from coterie.profiles.importance import Importance, ImportanceMeasure, importance
from coterie.profiles.kinds import ExpertKind, Kinds, expert_kinds
from coterie.profiles.load import LayerLoad, Load, expert_load, gini, lorenz_curve, top_share
from coterie.profiles.location import Location, locate
from coterie.profiles.merging import MergeReport, ProfileSource, copy_runs, merge, sync
from coterie.profiles.profile import BankTable, Profile
from coterie.profiles.ranking import RankedExpert, Ranking, rank_experts
from coterie.profiles.recording import Recording, resumable
from coterie.profiles.remote import RemoteProfile
from coterie.profiles.salience import Salience, SalienceScale
from coterie.profiles.separation import LayerSeparation, Separation, separation
from coterie.profiles.sharing import SharedExpert, SharedProfile, json_lines, share_profile
from coterie.profiles.sparing import SpareExpert, Sparing, spare_experts
from coterie.profiles.specialisation import Specialisation, specialisation
from coterie.profiles.trust import Trust, trust
from coterie.profiles.usage import BankUsage, ExpectedUse, Measure, Usage

__all__ = [
    "Accumulator",
    "BankCounts",
    "BankShape",
    "BankTable",
    "BankUsage",
    "Claim",
    "Contrast",
    "ErrorWeights",
    "Estimate",
    "ExpectedUse",
    "ExpertCard",
    "ExpertDifference",
    "ExpertKind",
    "Group",
    "GroupCounts",
    "Importance",
    "ImportanceMeasure",
    "Kinds",
    "LayerLoad",
    "LayerSeparation",
    "Load",
    "Location",
    "Mark",
    "Measure",
    "MergeReport",
    "Modality",
    "Profile",
    "ProfileDatabase",
    "ProfileSource",
    "RankedExpert",
    "Ranking",
    "Recording",
    "RemoteProfile",
    "RunFacts",
    "Salience",
    "SalienceScale",
    "SegmentFacts",
    "Separation",
    "SharedExpert",
    "SharedProfile",
    "SpareExpert",
    "Sparing",
    "Specialisation",
    "Statistic",
    "Stretches",
    "TokenCounts",
    "TokenPhase",
    "Trust",
    "Usage",
    "Vocabulary",
    "WeightMeasure",
    "compare_domains",
    "copy_runs",
    "error_weights",
    "expert_card",
    "expert_kinds",
    "expert_load",
    "gini",
    "importance",
    "jensen_shannon",
    "join_segments",
    "json_lines",
    "locate",
    "lorenz_curve",
    "merge",
    "profile_halves",
    "rank_experts",
    "resumable",
    "separation",
    "share_profile",
    "spare_experts",
    "specialisation",
    "sync",
    "top_share",
    "trust",
]
