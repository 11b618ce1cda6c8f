"""An observer that counts into a profile what a running model's routers choose."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.hf.token_roles import TokenRoles
from coterie.passes.current import current
from coterie.profiles import Group
from coterie.profiles.counters import NO_EXPERT
from coterie.profiles.facts import check_group
from coterie.profiles.observations import Counting
from coterie.spec import BankKey, Event, ExpertsContributed, ExpertsSelected, ExpertsServed, StepStarted

_TOWERS = {"vision": "image", "audio": "audio"}
"""Components whose tokens are patches or frames, whatever the input ids are."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is known of the tokens of a step: T rows, of which some are padding."""

    count: int
    groups: npt.NDArray[np.uint8] | int
    token_ids: npt.NDArray[np.int64] | int | None
    kept: npt.NDArray[np.intp] | None
    """Rows that are no padding; None for all."""


class _Told:
    """What was told of a forward pass, and of the banks that are not computed yet."""

    def __init__(self) -> None:
        self.rows: _Rows | None = None
        self.selected: dict[BankKey, ExpertsSelected] = {}
        self.contributions: dict[BankKey, npt.NDArray[np.float32]] = {}


class ProfileRecorder:
    """Counts every token that passes a router, by modality, domain and phase.

    The modality of a token is that of the placeholder that it is, else text; of a talker's generated tokens it is
    speech, of a vision or audio tower's patches and frames image or audio. Tokens of a decode step count as generated,
    all others as prompt. Padding is left out: what the attention mask leaves out, and padding tokens that finished
    sequences of a batch go on with. A forward pass that is stopped in its middle counts as far as it came.

    Args:
        recording: Where to: counters, or observations that are counted later.
        roles: Component → what its input ids stand for.
        domain: Name of what the model is working on, where a request does not name its own; see :attr:`domain`.
        contributions: Whether gate weight × ‖expert output‖₂ is measured as well.
        boundaries: Whether segments may end at every step. Not where inputs are marked
            (:meth:`coterie.profiles.Recording.mark`) and one input takes several steps.

    Attributes:
        recording: That given.
        wants_contributions: As given.

    Raises:
        UsageError: If the domain's name cannot be.
    """

    def __init__(
        self,
        recording: Counting,
        roles: Mapping[str, TokenRoles],
        *,
        domain: str,
        contributions: bool = True,
        boundaries: bool = True,
    ) -> None:
        self.recording = recording
        self.wants_contributions = contributions
        self._roles = roles
        self._boundaries = boundaries
        self._lock = threading.Lock()
        # Where every expert may be chosen, one may be named more than once: NLLB-MoE's routers do so.
        self._repeating = {shape.bank for shape in recording.banks if shape.top_k == shape.experts}
        self._tokens: Counter[Group] = Counter()
        self._groups: dict[Group, int] = {}
        self.domain = domain

    @property
    def domain(self) -> str:
        """What the model is working on; set it between forward passes.

        Raises:
            UsageError: When it is set to a name that cannot be.
        """
        return self._domain

    @domain.setter
    def domain(self, name: str) -> None:
        self._domain = check_group("text", name, "prompt").domain

    @property
    def tokens(self) -> Mapping[Group, int]:
        """Tokens so far by group, padding left out; those that towers see are not counted again."""
        with self._lock:
            return dict(self._tokens)

    def on_event(self, event: Event) -> None:
        """Counts a bank when its experts have been served."""
        if isinstance(event, ExpertsSelected):
            self._told_by(event.bank.component).selected[event.bank] = event
        elif isinstance(event, ExpertsContributed):
            self._told_by(event.bank.component).contributions[event.bank] = event.contributions
        elif isinstance(event, ExpertsServed):
            told = self._told_by(event.bank.component)
            selected = told.selected.pop(event.bank, None)
            if selected is not None:
                self._count(told.rows, selected, told.contributions.pop(event.bank, None))
        elif isinstance(event, StepStarted):
            self._told_by(event.component).rows = self._rows(event)
            if self._boundaries:
                with self._lock:
                    self.recording.boundary()

    def _told_by(self, component: str) -> _Told:
        return current(component).state(self, _Told)

    def _rows(self, event: StepStarted) -> _Rows:
        count, component = event.batch * event.tokens, event.component
        domains = self._domains(event)
        if len(set(domains)) > 1:
            return self._rows_of_several(event, domains)
        domain = domains[0] if domains else self._domain
        generated = event.phase == "decode"
        phase = "generated" if generated else "prompt"
        usual = "speech" if component == "talker" and generated else "text"
        ids = event.input_ids
        if component in _TOWERS:
            return _Rows(-1, self._group(_TOWERS[component], domain, phase), None, None)
        if ids is None or ids.size != count:
            self._add_tokens(usual, domain, phase, count)
            return _Rows(count, self._group(usual, domain, phase), None, None)
        roles, flat = self._roles.get(component, TokenRoles()), ids.reshape(-1)
        if count == 1 and event.attended is None:
            modality = roles.media.get(int(flat[0]), usual)
            self._add_tokens(modality, domain, phase, 1)
            return _Rows(1, self._group(modality, domain, phase), int(flat[0]), None)
        attended = np.ones(count, np.bool_) if event.attended is None else event.attended.reshape(-1)
        if generated and event.batch > 1 and roles.padding is not None:
            attended = attended & (flat != roles.padding)
        groups = np.full(count, self._group(usual, domain, phase), np.uint8)
        left = attended.copy()
        for token, modality in roles.media.items():
            found = flat == token
            if found.any():
                groups[found] = self._group(modality, domain, phase)
                self._add_tokens(modality, domain, phase, int((found & attended).sum()))
                left &= ~found
        self._add_tokens(usual, domain, phase, int(left.sum()))
        return _Rows(count, groups, flat, None if attended.all() else np.flatnonzero(attended))

    def _domains(self, event: StepStarted) -> list[str]:
        """Of each sequence, the domain of its request."""
        rows = current(event.component).rows
        return [self._domain if row.request is None else row.request.domain or self._domain for row in rows]

    def _rows_of_several(self, event: StepStarted, domains: list[str]) -> _Rows:
        """As :meth:`_rows`, of sequences of different domains: next tokens, none of which is padding."""
        generated = event.phase == "decode"
        phase = "generated" if generated else "prompt"
        usual = "speech" if event.component == "talker" and generated else "text"
        count = event.batch * event.tokens
        ids = event.input_ids
        flat = None if ids is None or ids.size != count else ids.reshape(-1)
        media = self._roles.get(event.component, TokenRoles()).media
        groups = np.empty(count, np.uint8)
        for number in range(count):
            modality = usual if flat is None else media.get(int(flat[number]), usual)
            domain = domains[number // event.tokens]
            groups[number] = self._group(modality, domain, phase)
            self._add_tokens(modality, domain, phase, 1)
        return _Rows(count, groups, flat, None)

    def _count(
        self, rows: _Rows | None, selected: ExpertsSelected, contributions: npt.NDArray[np.float32] | None
    ) -> None:
        bank, ids, weights = selected.bank, selected.expert_ids, selected.weights
        if bank in self._repeating:
            ids, weights, contributions = _named_once(ids, weights, contributions)
        if rows is None or rows.count != len(ids):
            # A tower's rows; or a bank for some of the tokens alone, which does not say for which.
            of_pictures = "vision" in bank.bank
            modality = _TOWERS.get(bank.component, "image" if of_pictures else "text")
            self.recording.add(bank, ids, weights, contributions, self._group(modality, self._domain, "prompt"))
            return
        groups, token_ids, kept = rows.groups, rows.token_ids, rows.kept
        if kept is not None:
            if not len(kept):
                return
            ids, weights = ids[kept], weights[kept]
            contributions = None if contributions is None else contributions[kept]
            groups = groups if isinstance(groups, int) else groups[kept]
            token_ids = token_ids[kept] if isinstance(token_ids, np.ndarray) else token_ids
        self.recording.add(bank, ids, weights, contributions, groups, token_ids)

    def _group(self, modality: str, domain: str, phase: str) -> int:
        group = check_group(modality, domain, phase)
        number = self._groups.get(group)
        if number is None:
            number = self._groups[group] = self.recording.group(*group)
        return number

    def _add_tokens(self, modality: str, domain: str, phase: str, count: int) -> None:
        if count:
            with self._lock:
                self._tokens[check_group(modality, domain, phase)] += count


def _named_once(
    ids_TK: npt.NDArray[np.uint16],
    weights_TK: npt.NDArray[np.float32],
    contributions_TK: npt.NDArray[np.float32] | None,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """Choices with each expert once per token, with the sum of its weights and of what it added each time."""
    same_TKK = ids_TK[:, :, None] == ids_TK[:, None, :]
    again_TK = np.tril(same_TKK, -1).any(axis=2)

    def added(values_TK: npt.NDArray[np.float32], nothing: float) -> npt.NDArray[np.float32]:
        sums_TK = np.where(same_TKK, values_TK[:, None, :], 0).sum(axis=2, dtype=np.float32)
        return np.where(again_TK, np.float32(nothing), sums_TK)

    ids_TK = np.where(again_TK, np.uint16(NO_EXPERT), ids_TK)
    contributions_TK = None if contributions_TK is None else added(contributions_TK, np.nan)
    return ids_TK, added(weights_TK, 0), contributions_TK
