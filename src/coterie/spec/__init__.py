"""Keys, layouts, sizes and events: frozen values that every other package may use. No torch."""

# What is not public is imported from its module: encodings, parameters, opening, footprint.

from coterie.spec.adaptation import ADAPTATION_PRESETS, AdaptiveExperts
from coterie.spec.context import LAST_POSITIONS, ContextShape
from coterie.spec.defaults import (
    DEFAULT_BATCHING,
    DEFAULT_DOMAIN,
    DEFAULT_LABEL,
    DEFAULT_PARALLEL,
    DEFAULT_POLICY,
    DEFAULT_PREFETCH,
    DEFAULT_WARM,
    PREFIX_DIR_NBYTES,
    Batching,
    Missing,
    Prefetch,
)
from coterie.spec.encodings import SCHEME_NAMES
from coterie.spec.events import (
    Event,
    ExpertsContributed,
    ExpertsSelected,
    ExpertsServed,
    Observer,
    Phase,
    StepEnded,
    StepStarted,
)
from coterie.spec.extras import install_advice, optional_package
from coterie.spec.keys import BankKey, ExpertKey
from coterie.spec.layout import DTYPE_BYTES, FIELD_ALIGNMENT, RECORD_ALIGNMENT, Field, RecordLayout, round_up
from coterie.spec.sizes import format_bytes, format_ranges, parse_bytes, parse_ranges, parse_rate, share_nbytes
from coterie.spec.source import Access, ByteSource, ExpertSource, Extent, OpenBytes
from coterie.spec.stamp import FileStamp

__all__ = [
    "ADAPTATION_PRESETS",
    "DEFAULT_BATCHING",
    "DEFAULT_DOMAIN",
    "DEFAULT_LABEL",
    "DEFAULT_PARALLEL",
    "DEFAULT_POLICY",
    "DEFAULT_PREFETCH",
    "DEFAULT_WARM",
    "DTYPE_BYTES",
    "FIELD_ALIGNMENT",
    "LAST_POSITIONS",
    "PREFIX_DIR_NBYTES",
    "RECORD_ALIGNMENT",
    "SCHEME_NAMES",
    "Access",
    "AdaptiveExperts",
    "BankKey",
    "Batching",
    "ByteSource",
    "ContextShape",
    "Event",
    "ExpertKey",
    "ExpertSource",
    "ExpertsContributed",
    "ExpertsSelected",
    "ExpertsServed",
    "Extent",
    "Field",
    "FileStamp",
    "Missing",
    "Observer",
    "OpenBytes",
    "Phase",
    "Prefetch",
    "RecordLayout",
    "StepEnded",
    "StepStarted",
    "format_bytes",
    "format_ranges",
    "install_advice",
    "optional_package",
    "parse_bytes",
    "parse_ranges",
    "parse_rate",
    "round_up",
    "share_nbytes",
]
