"""Keys, layouts, sizes and events: frozen values that every other package may use. No torch."""

from coterie.spec.adaptation import ADAPTATION_PRESETS, AdaptiveExperts
from coterie.spec.context import ContextShape
from coterie.spec.defaults import (
    DEFAULT_DOMAIN,
    DEFAULT_LABEL,
    DEFAULT_POLICY,
    DEFAULT_PREFETCH,
    DEFAULT_WARM,
    Missing,
    Prefetch,
)
from coterie.spec.encodings import (
    CHECKPOINT_ENCODINGS,
    FP8,
    GROUP,
    MXFP4,
    NATIVE,
    SCHEME_FORMATS,
    SCHEME_NAMES,
    Encoding,
    SchemeFormat,
    group_count,
    group_size,
)
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
from coterie.spec.extras import install_advice
from coterie.spec.footprint import READS_AT_ONCE, BankRecords, Footprint
from coterie.spec.keys import BankKey, ExpertKey
from coterie.spec.layout import DTYPE_BYTES, FIELD_ALIGNMENT, RECORD_ALIGNMENT, Field, RecordLayout, round_up
from coterie.spec.opening import Opening
from coterie.spec.parameters import (
    StoredParameter,
    checkpoint_encoding,
    dequantised_nbytes,
    encoded_names,
    plan_record,
    uses_scheme,
)
from coterie.spec.sizes import format_bytes, format_ranges, parse_bytes, parse_ranges, share_nbytes
from coterie.spec.source import ExpertSource, Extent
from coterie.spec.stamp import FileStamp

__all__ = [
    "ADAPTATION_PRESETS",
    "CHECKPOINT_ENCODINGS",
    "DEFAULT_DOMAIN",
    "DEFAULT_LABEL",
    "DEFAULT_POLICY",
    "DEFAULT_PREFETCH",
    "DEFAULT_WARM",
    "DTYPE_BYTES",
    "FIELD_ALIGNMENT",
    "FP8",
    "GROUP",
    "MXFP4",
    "NATIVE",
    "READS_AT_ONCE",
    "RECORD_ALIGNMENT",
    "SCHEME_FORMATS",
    "SCHEME_NAMES",
    "AdaptiveExperts",
    "BankKey",
    "BankRecords",
    "ContextShape",
    "Encoding",
    "Event",
    "ExpertKey",
    "ExpertSource",
    "ExpertsContributed",
    "ExpertsSelected",
    "ExpertsServed",
    "Extent",
    "Field",
    "FileStamp",
    "Footprint",
    "Missing",
    "Observer",
    "Opening",
    "Phase",
    "Prefetch",
    "RecordLayout",
    "SchemeFormat",
    "StepEnded",
    "StepStarted",
    "StoredParameter",
    "checkpoint_encoding",
    "dequantised_nbytes",
    "encoded_names",
    "format_bytes",
    "format_ranges",
    "group_count",
    "group_size",
    "install_advice",
    "parse_bytes",
    "parse_ranges",
    "plan_record",
    "round_up",
    "share_nbytes",
    "uses_scheme",
]
