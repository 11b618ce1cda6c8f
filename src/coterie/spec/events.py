"""What an Observer is told while a model runs. Arrays are numpy; shapes use T tokens, K experts per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from coterie.spec.keys import BankKey

if TYPE_CHECKING:
    # Named in annotations only: numpy would be a third of what `coterie --help` takes.
    import numpy as np
    import numpy.typing as npt

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """A forward pass of one component begins.

    Attributes:
        step: Number of the forward pass since the model was opened.
        component: Component whose forward it is, such as ``thinker``.
        phase: ``prefill`` if any sequence has more than one new token or nothing is cached, else ``decode``.
        batch: Sequences.
        tokens: New tokens per sequence.
        input_ids: int64 [batch, tokens], or None if the call was made with embeddings.
        attended: bool [batch, tokens], False for padding; None if nothing is known to be padding.
    """

    step: int
    component: str
    phase: Phase
    batch: int
    tokens: int
    input_ids: npt.NDArray[np.int64] | None
    attended: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSelected:
    """What the router of one bank chose for T = batch × tokens positions.

    Attributes:
        step: Forward pass.
        bank: Which bank.
        expert_ids: uint16 [T, K], before any substitution of absent experts.
        weights: float32 [T, K], as the experts module received them.
    """

    step: int
    bank: BankKey
    expert_ids: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsContributed:
    """What each of the experts chosen added to the output of its layer. Only where an observer wants it.

    It comes after the layer's experts are computed and before :class:`ExpertsServed`. It does not come where a class of
    experts cannot tell.

    Attributes:
        step: Forward pass.
        bank: Which bank.
        contributions: float32 [T, K], gate weight × ‖expert output‖₂ in the order of ``expert_ids`` of
            :class:`ExpertsSelected`; NaN where that expert did not compute: no expert's id, or an absent one.
    """

    step: int
    bank: BankKey
    contributions: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsServed:
    """How the experts that one bank needed in one forward pass became resident.

    Attributes:
        step: Forward pass.
        bank: Which bank.
        requested: Distinct experts asked for.
        hits: Of these, found resident.
        misses: Of these, read.
        bytes_read: Bytes read from disk.
        wait_s: Seconds that compute waited for reads.
        evictions: Experts evicted to make room.
        absent: Routed (token, expert) pairs whose expert is not in the store, handled by the missing policy.
    """

    step: int
    bank: BankKey
    requested: int
    hits: int
    misses: int
    bytes_read: int
    wait_s: float
    evictions: int
    absent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """A forward pass of one component has ended. Only where an observer wants it; it does not come after an error.

    Attributes:
        step: Forward pass.
        component: Component.
        losses: float32 [batch, tokens], −log p in nats of each of the pass's input tokens, given those before it; NaN
            where the component did not compute the logits that predict it, as for a prompt in :meth:`generate`. That
            of a pass's first token is known if the pass before, on the same thread, was of the same sequences and
            computed their last logits. Reordered sequences, as in beam search, are not followed.
    """

    step: int
    component: str
    losses: npt.NDArray[np.float32]


Event = StepStarted | ExpertsSelected | ExpertsContributed | ExpertsServed | StepEnded


class Observer(Protocol):
    """Receives events in order, on the thread that runs the model. It must not keep it waiting.

    Events of a prompt come as they happen. Those of a decode step's banks come together, when its forward pass is over.

    One that also has ``wants_contributions = True`` is told :class:`ExpertsContributed`, which costs a little compute;
    with ``wants_losses = True`` it is told :class:`StepEnded`. It is asked once at the beginning of each forward pass.
    """

    def on_event(self, event: Event) -> None:
        """Called for every event; an exception raised here ends the forward pass."""
        ...
