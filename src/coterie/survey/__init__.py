"""Runs a model over texts, sounds and pictures, and records in a profile what its experts do."""

from coterie.survey.material import Material, MaterialKind, gather, without_repetitions, work_done
from coterie.survey.running import Survey, survey

__all__ = ["Material", "MaterialKind", "Survey", "gather", "survey", "without_repetitions", "work_done"]
