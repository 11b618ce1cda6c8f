"""Salience of the tokens that a running model computes, as records and for whoever acts on it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.errors import UsageError
from coterie.files.replacing import replacing
from coterie.passes.current import current
from coterie.profiles.salience import NEUTRAL, Salience, SalienceScale, check_reward
from coterie.spec import BankKey, Event, ExpertsContributed, ExpertsSelected, Phase, StepEnded, StepStarted

SALIENCE_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSalience:
    """Salience of one token that passed a component.

    Attributes:
        step: Forward pass.
        position: Position within the forward pass's batch × tokens.
        component: Component.
        phase: ``prefill`` or ``decode``, of the forward pass.
        token_id: The token; None if the model was called with embeddings.
        surprise: See :mod:`coterie.profiles.salience`, also for the other parts; None where logits were not computed,
            as for prompts in :meth:`generate`.
        novelty: From 0 to 1.
        arousal: From 0 to 1; None where a class of experts cannot tell what each adds.
        reward: As the caller gave it; 0.5 if none was given.
        conflict: From 0 to 1.
        salience: Mean of the parts that are not None.
    """

    step: int
    position: int
    component: str
    phase: Phase
    token_id: int | None
    surprise: float | None
    novelty: float
    arousal: float | None
    reward: float
    conflict: float
    salience: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SalienceReport:
    """Salience of all tokens of a run, as it is written to files.

    Attributes:
        schema_version: Version of this structure when written as JSON.
        model: Name of the store or checkpoint.
        identity: Fingerprint of the model.
        tokens: In the order of computation.
    """

    schema_version: int = SALIENCE_SCHEMA_VERSION
    model: str
    identity: str
    tokens: tuple[TokenSalience, ...]


class _Told:
    """What was told of a forward pass."""

    def __init__(self) -> None:
        self.begun: StepStarted | None = None
        self.selected: dict[BankKey, ExpertsSelected] = {}
        self.sizes: dict[BankKey, npt.NDArray[np.float64]] = {}


class SalienceMeter:
    """An observer that scores every token when its forward pass has ended. Padding is left out.

    Sequences of a batch, and of several threads, share means and signatures of earlier tokens. Banks that only some of
    the tokens pass are left out.

    Args:
        experts: Bank → how many experts, identity experts included; of all components.
        tell: Called with the scores of each forward pass; rows that are padding have none.
        seed: See :class:`~coterie.profiles.salience.SalienceScale`.

    Attributes:
        wants_contributions: True.
        wants_losses: True.
    """

    wants_contributions = True
    wants_losses = True

    def __init__(
        self,
        experts: Mapping[BankKey, int],
        tell: Callable[[StepStarted, Sequence[Salience | None]], None],
        *,
        seed: int = 0,
    ) -> None:
        self._banks: dict[str, list[BankKey]] = {}
        for bank in sorted(experts):
            self._banks.setdefault(bank.component, []).append(bank)
        self._scales = {
            component: SalienceScale([experts[bank] for bank in banks], seed=seed)
            for component, banks in self._banks.items()
        }
        self._tell = tell
        self._reward = NEUTRAL
        self._lock = threading.Lock()

    @property
    def reward(self) -> float:
        """What tokens from now on are worth, from 0 to 1; set it between forward passes.

        Raises:
            UsageError: When it is set to anything else.
        """
        return self._reward

    @reward.setter
    def reward(self, value: float) -> None:
        self._reward = check_reward(value)
        for scale in self._scales.values():
            scale.reward = value

    def on_event(self, event: Event) -> None:
        """Keeps a pass's events until it has ended."""
        if isinstance(event, ExpertsSelected):
            self._told_by(event.bank.component).selected[event.bank] = event
        elif isinstance(event, ExpertsContributed):
            # What is left out, or absent, adds nothing.
            sizes_T: npt.NDArray[np.float64] = np.nansum(event.contributions, axis=1, dtype=np.float64)
            self._told_by(event.bank.component).sizes[event.bank] = sizes_T
        elif isinstance(event, StepStarted):
            self._told_by(event.component).begun = event
        elif isinstance(event, StepEnded):
            told = self._told_by(event.component)
            if told.begun is not None:
                self._tell(told.begun, self._scores(told, told.begun, event.losses.reshape(-1)))

    def _told_by(self, component: str) -> _Told:
        return current(component).state(self, _Told)

    def _scores(self, told: _Told, begun: StepStarted, losses_T: npt.NDArray[np.float32]) -> list[Salience | None]:
        count = begun.batch * begun.tokens
        banks = self._banks.get(begun.component, [])
        selected = [told.selected.get(bank) for bank in banks]
        rows = [one if one is not None and len(one.expert_ids) == count else None for one in selected]
        passed = [bank for bank, one in zip(banks, rows, strict=True) if one is not None]
        if not passed:
            return [None] * count
        nothing = np.zeros((count, 0))
        ids = [np.zeros((count, 0), np.int64) if one is None else one.expert_ids for one in rows]
        weights = [nothing if one is None else one.weights for one in rows]
        sizes_TL = _sizes(told.sizes, banks, passed, count)
        attended = np.ones(count, np.bool_) if begun.attended is None else begun.attended.reshape(-1)
        scale = self._scales[begun.component]
        with self._lock:
            return [
                scale.score(
                    [one[row] for one in ids],
                    [one[row] for one in weights],
                    sizes=None if sizes_TL is None else sizes_TL[row],
                    loss=None if np.isnan(losses_T[row]) else float(losses_T[row]),
                )
                if attended[row]
                else None
                for row in range(count)
            ]


class SalienceTrace:
    """Keeps the salience of every token.

    Args:
        model: Name of the model.
        identity: Its fingerprint.
        experts: As for :class:`SalienceMeter`.
        seed: Likewise.

    Attributes:
        meter: The observer.
    """

    def __init__(self, *, model: str, identity: str, experts: Mapping[BankKey, int], seed: int = 0) -> None:
        self._model = model
        self._identity = identity
        self._tokens: list[TokenSalience] = []
        self.meter = SalienceMeter(experts, self._keep, seed=seed)

    @property
    def reward(self) -> float:
        """As of :class:`SalienceMeter`."""
        return self.meter.reward

    @reward.setter
    def reward(self, value: float) -> None:
        self.meter.reward = value

    @property
    def tokens(self) -> tuple[TokenSalience, ...]:
        """One record per token, in the order of computation."""
        return tuple(self._tokens)

    def report(self) -> SalienceReport:
        """All that was recorded, with the name of the model."""
        return SalienceReport(model=self._model, identity=self._identity, tokens=self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return asdict(self.report())

    def save(self, path: str | Path) -> None:
        """Writes the report as JSON.

        Raises:
            UsageError: If nothing was recorded.
        """
        if not self._tokens:
            raise UsageError("Nothing was recorded.", advice="Generate at least one token first.")
        with replacing(path) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def _keep(self, begun: StepStarted, scores: Sequence[Salience | None]) -> None:
        flat = None if begun.input_ids is None else begun.input_ids.reshape(-1)
        known = flat is not None and len(flat) == len(scores)
        self._tokens += [
            TokenSalience(
                step=begun.step,
                position=position,
                component=begun.component,
                phase=begun.phase,
                token_id=int(flat[position]) if flat is not None and known else None,
                surprise=score.surprise,
                novelty=score.novelty,
                arousal=score.arousal,
                reward=score.reward,
                conflict=score.conflict,
                salience=score.overall,
            )
            for position, score in enumerate(scores)
            if score is not None
        ]


def _sizes(
    found: Mapping[BankKey, npt.NDArray[np.float64]], banks: Sequence[BankKey], passed: Sequence[BankKey], count: int
) -> npt.NDArray[np.float64] | None:
    """What experts added, [T, L]; None unless all of the banks that were passed tell."""
    if any(bank not in found for bank in passed):
        return None
    nothing = np.zeros(count)
    return np.stack([found[bank] if bank in passed else nothing for bank in banks], axis=1)
