"""What the dashboard asks and is told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from coterie.server.schemas.fields import Fields

Name = Annotated[str, Field(min_length=1, max_length=256)]


class QueueState(TypedDict):
    """Requests now."""

    running: int
    waiting: int
    trouble: str | None


class TokenState(TypedDict):
    """Tokens that went through the model's text part since the start."""

    prefill: int
    decode: int


class ExpertState(TypedDict):
    """How experts were read since the start; ``left_out`` and ``bytes_not_read`` are those of ``--drop-cold``."""

    requested: int
    hits: int
    misses: int
    decode_requested: int
    decode_hits: int
    bytes_read: int
    read_wait_s: float
    evictions: int
    absent: int
    left_out: int
    bytes_not_read: int
    resident: int
    resident_bytes: int
    capacity_bytes: int
    total_bytes: int


class MemoryState(TypedDict):
    """Memory now, and what the budget is divided into; that is null without a budget.

    Requests share ``requests_total_bytes`` for keys and values, pictures and sounds, which is null where nothing bounds
    it. They hold ``requests_held_bytes`` of it, of which ``requests_lent_bytes`` were taken from experts.
    """

    process_bytes: int
    requests_total_bytes: int | None
    requests_held_bytes: int
    requests_lent_bytes: int
    budget_bytes: int | None
    plan: dict[str, int] | None


class LayerState(TypedDict):
    """A layer's experts; ``asked`` has a number for each, ``resident`` the ids of those in memory."""

    component: str
    layer: int
    bank: str
    requested: int
    hits: int
    decode_steps: int
    decode_rows: int
    decode_choices: int
    decode_union: int
    asked: list[int]
    resident: list[int]


class DashboardState(TypedDict):
    """The answer of ``/coterie/state``."""

    uptime_s: float
    queue: QueueState
    tokens: TokenState
    experts: ExpertState
    memory: MemoryState
    layers: list[LayerState]


class LayerPrecision(TypedDict):
    """How a layer's experts are stored: for each, a place in ``precisions``; null for one that the store lacks."""

    component: str
    layer: int
    bank: str
    precision: list[int | None]


class DashboardModel(TypedDict):
    """The answer of ``/coterie/model``."""

    version: str
    name: str
    context: int | None
    input_modalities: list[str]
    voices: list[str]
    can_chat: bool
    profile: bool
    precisions: list[str]
    layers: list[LayerPrecision]


class ProfileQuestion(Fields):
    """Which experts handle something."""

    domain: Name | None = None
    modality: Name | None = None
    phase: Literal["prompt", "generated"] | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 40


class ExpertQuestion(Fields):
    """What one expert does."""

    component: Name
    layer: Annotated[int, Field(ge=0, lt=1 << 16)]
    bank: Name
    expert: Annotated[int, Field(ge=0, lt=1 << 16)]


class ProfileSummary(TypedDict):
    """What was recorded: names and tokens of each."""

    model: str
    tokens: int
    domains: dict[str, int]
    modalities: dict[str, int]
    least_blocks: int


Answered = dict[str, Any]
"""What the functions of :mod:`coterie.profiles` say, as JSON."""
