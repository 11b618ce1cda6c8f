"""What is said about a plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from coterie.inspection.dense_parts import DensePartFacts
from coterie.inspection.report import Model
from coterie.inspection.what_fits import MemoryFit
from coterie.planner.hit_rates import HitRate
from coterie.planner.machine import Machine
from coterie.planner.ranges import Range
from coterie.planner.speed import Limit

PLAN_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a model would run under a budget.

    Attributes:
        tokens_per_second: While decoding, once the cache has filled.
        cold_tokens_per_second: While not one expert is in memory.
        first_token_s: Seconds from a prompt to the first token: from a full cache to an empty one.
        answer_s: Seconds of the whole answer, the prompt included.
        limit: What would have to be faster, or larger, first of all.
    """

    tokens_per_second: Range
    cold_tokens_per_second: Range
    first_token_s: Range
    answer_s: Range
    limit: Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What to expect of a model that is open, to stand beside what is measured of it.

    Attributes:
        share: Share of the experts of its component that fits.
        hit_rate: The forecast.
        read_per_token: Bytes of experts read for a token.
        speed: None if the machine was not measured.
    """

    share: float
    hit_rate: HitRate
    read_per_token: Range
    speed: Speed | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What a change would buy.

    Attributes:
        change: In words.
        tokens_per_second: With the change.
        ratio: To the likeliest speed without it.
        note: What the change costs, or why it is not possible; empty if there is nothing to say.
    """

    change: str
    tokens_per_second: Range
    ratio: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPlan:
    """What a memory budget would give.

    Attributes:
        memory: Its bytes by part and phase, and the smallest budget that would do.
        why_not: Why the model will not run in it; None if it will.
        share: Share of the experts of the component that answers in text, that fits while text is written.
        hit_rate: The forecast; None if the model will not run.
        read_per_token: Bytes of experts read for a token; None likewise.
        speed: None if the model will not run, or the machine was not measured.
        largest_context: The longest context in tokens with which the model runs in the budget, however few experts are
            left; 0 if there is none.
        gains: What changes would buy; empty where there is no speed.
        command: The command to type.
    """

    memory: MemoryFit
    why_not: str | None
    share: float
    hit_rate: HitRate | None
    read_per_token: Range | None
    speed: Speed | None
    largest_context: int
    gains: tuple[Gain, ...]
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """The same model stored in another precision, under the first of the budgets.

    Attributes:
        scheme: Of experts.
        dense_scheme: Of linear layers outside experts.
        store_nbytes: Bytes of the store.
        minimum: The smallest budget that would do.
        share: As in :class:`BudgetPlan`; 0 if the model will not run.
        tokens_per_second: None if it will not run, or the machine was not measured.
        divergence: Mean KL divergence in nats per token of the bundled model in these schemes, measured; None if that
            was not measured. Another model has another one.
    """

    scheme: str
    dense_scheme: str
    store_nbytes: int
    minimum: int
    share: float
    tokens_per_second: Range | None
    divergence: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainPlan:
    """What a domain of a profile finds in memory.

    Attributes:
        domain: Its name.
        tokens: Tokens of it that were recorded.
        hit_rates: By budget; None where the model will not run.
        most: A share of all that the domain asks for.
        memory_for_most: The smallest budget in which the experts fit that have this share.
    """

    domain: str
    tokens: int
    hit_rates: tuple[HitRate | None, ...]
    most: float
    memory_for_most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskNeed:
    """Disk and time before the first answer.

    Attributes:
        path: Where the store would lie, or lies.
        free_nbytes: Bytes that are free there.
        download_nbytes: Bytes of the checkpoint that have to be had first; 0 of what is on this machine.
        store_nbytes: Bytes of the store; 0 if none is made.
        enough: Whether the store fits, or, if none is made, what is downloaded.
        preparing_s: Seconds to make the store from what is downloaded; None if none is made or nothing was measured.
    """

    path: str
    free_nbytes: int
    download_nbytes: int
    store_nbytes: int
    enough: bool
    preparing_s: Range | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """The budget beyond which more memory adds fewer and fewer hits.

    It is the point of the curve of hits over memory that is farthest above the straight line between the curve's ends,
    as ``coterie replay`` has it.

    Attributes:
        memory: Bytes for the process.
        share: Share of the experts that fits.
        hit_rate: The likeliest hit rate there.
    """

    memory: int
    share: float
    hit_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a model would take, and how fast it would run.

    Attributes:
        schema_version: Version of this form.
        model: Which model it is.
        planned: Whether it is about a store of the checkpoint that is not made yet.
        scheme: How experts are stored: a scheme, or several.
        dense_scheme: How linear layers outside experts are.
        dense_parts: Bytes outside experts by part.
        component: The component whose speed is meant, where there are several.
        working_set_nbytes: Bytes of the experts that one token asks for.
        expert_nbytes: Bytes of all experts of the component.
        context: Tokens that budgets provide for.
        longest_context: Tokens that the model was made for; None if that is not known.
        prompt_tokens: Tokens of the prompt that times are for.
        answer_tokens: Tokens of the answer.
        eviction: The policy.
        experts_per_token: What was asked for instead of the model's own number; None if nothing was.
        machine: What was measured; None if nothing was.
        attainable: Bytes that a process could come to hold on this machine.
        budgets: By budget, in the order of the question.
        domains: The domains that were asked for, or of a profile all of which enough was recorded; empty without one.
        precisions: The same in other precisions; empty of a store.
        disk: Disk and time to prepare.
        all_experts: The smallest budget in which all experts of the component stay, once each was used.
        knee: None if all experts fit in the smallest budget in which the model runs.
        preparing: The commands to type before the model can be used; empty if it can be at once.
    """

    schema_version: int = PLAN_SCHEMA_VERSION
    model: Model
    planned: bool
    scheme: str
    dense_scheme: str
    dense_parts: tuple[DensePartFacts, ...]
    component: str
    working_set_nbytes: float
    expert_nbytes: int
    context: int
    longest_context: int | None
    prompt_tokens: int
    answer_tokens: int
    eviction: str
    experts_per_token: int | None
    machine: Machine | None
    attainable: int
    budgets: tuple[BudgetPlan, ...]
    domains: tuple[DomainPlan, ...]
    precisions: tuple[PrecisionPlan, ...]
    disk: DiskNeed
    all_experts: int
    knee: Knee | None
    preparing: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """The plan as JSON values."""
        return asdict(self)
