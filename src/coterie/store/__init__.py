"""The on-disk store: its format (docs/format.md), writing, reading and verification. No torch."""

from coterie.store.bank_writer import BankWriter
from coterie.store.dense_writer import DENSE_SHARD_LIMIT, DenseTensor
from coterie.store.leftovers import Leftover
from coterie.store.manifest import (
    AllocationFacts,
    Bank,
    CalibrationFacts,
    FileFacts,
    Manifest,
    ModelFacts,
    Record,
    RecordErrors,
    Segment,
    SourceFacts,
)
from coterie.store.manifest_file import is_store, is_unfinished
from coterie.store.names import side_file_problem
from coterie.store.part import StorePart
from coterie.store.plan import BankPlan, PlannedExpert, StorePlan
from coterie.store.reader import Store
from coterie.store.refreshing import Refreshed, refresh_files
from coterie.store.survey import Survey, SurveyedFile, survey
from coterie.store.verification import Problem, VerificationReport, verify_store
from coterie.store.writer import StoreWriter

__all__ = [
    "DENSE_SHARD_LIMIT",
    "AllocationFacts",
    "Bank",
    "BankPlan",
    "BankWriter",
    "CalibrationFacts",
    "DenseTensor",
    "FileFacts",
    "Leftover",
    "Manifest",
    "ModelFacts",
    "PlannedExpert",
    "Problem",
    "Record",
    "RecordErrors",
    "Refreshed",
    "Segment",
    "SourceFacts",
    "Store",
    "StorePart",
    "StorePlan",
    "StoreWriter",
    "Survey",
    "SurveyedFile",
    "VerificationReport",
    "is_store",
    "is_unfinished",
    "refresh_files",
    "side_file_problem",
    "survey",
    "verify_store",
]
