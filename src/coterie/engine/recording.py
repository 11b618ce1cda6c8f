"""Observers that keep what they see: routing per token, and traces for replay."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coterie.engine.statistics import TokenStats
from coterie.errors import UsageError
from coterie.eviction.recorded import ABSENT, TRACE_SCHEMA_VERSION
from coterie.files.replacing import replacing
from coterie.spec import BankKey, Event, ExpertsSelected, StepStarted

_PHASES = ("prefill", "decode")


@dataclass(slots=True)
class TokenRecorder:
    """Keeps, per token and layer, the experts, their gate weights and the dominant expert's share."""

    events: list[ExpertsSelected] = field(default_factory=list)

    def on_event(self, event: Event) -> None:
        """Keeps routing events."""
        if isinstance(event, ExpertsSelected):
            self.events.append(event)

    def tokens(self) -> tuple[TokenStats, ...]:
        """One entry per token and layer, in order of computation."""
        return tuple(entry for event in self.events for entry in _token_stats(event))


def _token_stats(event: ExpertsSelected) -> list[TokenStats]:
    dominant = event.weights.argmax(axis=1)
    sums = event.weights.sum(axis=1)
    entries = []
    for position, (ids, weights) in enumerate(zip(event.expert_ids.tolist(), event.weights.tolist(), strict=True)):
        best = int(dominant[position])
        entries.append(
            TokenStats(
                step=event.step,
                position=position,
                component=event.bank.component,
                layer=event.bank.layer,
                bank=event.bank.bank,
                experts=tuple(ids),
                weights=tuple(weights),
                dominant=ids[best],
                dominant_share=weights[best] / float(sums[position]) if sums[position] else 0.0,
            )
        )
    return entries


@dataclass(slots=True)
class _Step:
    phase: str
    batch: int
    ids: dict[BankKey, npt.NDArray[np.uint16]] = field(default_factory=dict)
    weights: dict[BankKey, npt.NDArray[np.float32]] = field(default_factory=dict)


class TraceRecorder:
    """Records the routing of a run for replay.

    Args:
        model: Name of the model.
        identity: Its fingerprint.
        num_experts: Bank → E.
    """

    def __init__(self, *, model: str, identity: str, num_experts: dict[BankKey, int]) -> None:
        self._model = model
        self._identity = identity
        self._num_experts = num_experts
        self._steps: dict[str, dict[int, _Step]] = defaultdict(dict)

    def on_event(self, event: Event) -> None:
        """Keeps step and routing events."""
        if isinstance(event, StepStarted):
            self._steps[event.component][event.step] = _Step(event.phase, event.batch)
        elif isinstance(event, ExpertsSelected):
            steps = self._steps[event.bank.component]
            step = steps.setdefault(event.step, _Step("prefill", 1))
            step.ids[event.bank] = event.expert_ids
            step.weights[event.bank] = event.weights

    @property
    def recorded(self) -> bool:
        """Whether there is anything to save."""
        return any(step.ids for steps in self._steps.values() for step in steps.values())

    def save(self, path: str | Path) -> None:
        """Writes the trace: ``.npz`` for programs, ``.jsonl`` for reading.

        An npz holds, per component ``C``: ``C.expert_ids`` uint16 [tokens, layers, k] (65535 where a layer was not
        run), ``C.weights`` float32 of the same shape, ``C.phase`` uint8 [tokens] (0 prefill, 1 decode), ``C.step``
        int64 [tokens], ``C.layers`` int64 [layers], ``C.banks`` text [layers], ``C.num_experts`` int64; and
        ``schema_version``, ``model``, ``identity``, ``components``.

        Raises:
            UsageError: For another ending, or if nothing was recorded.
        """
        target = Path(path)
        if target.suffix not in (".npz", ".jsonl"):
            raise UsageError(f"A trace is written as .npz or .jsonl, not {target.name!r}.", path=target)
        components = {name: self._arrays(name) for name in sorted(self._steps) if self._banks(name)}
        if not components:
            raise UsageError("Nothing was recorded.", advice="Generate at least one token first.")
        head = {"schema_version": TRACE_SCHEMA_VERSION, "model": self._model, "identity": self._identity}
        flat = {f"{name}.{key}": value for name, arrays in components.items() for key, value in arrays.items()}
        with replacing(target) as partial:
            if target.suffix == ".npz":
                with partial.open("wb") as file:
                    np.savez_compressed(file, components=list(components), **head, **flat)  # type: ignore[arg-type]
            else:
                with partial.open("w", encoding="utf-8") as text:
                    self._write_lines(text, components)

    def _banks(self, component: str) -> list[BankKey]:
        return sorted({bank for step in self._steps[component].values() for bank in step.ids})

    def _arrays(self, component: str) -> dict[str, npt.NDArray[np.generic]]:
        banks = self._banks(component)
        ids, weights, phases, numbers = [], [], [], []
        width = max(a.shape[1] for step in self._steps[component].values() for a in step.ids.values())
        for number, step in sorted(self._steps[component].items()):
            if not step.ids:
                continue
            tokens = max(array.shape[0] for array in step.ids.values())
            block = np.full((tokens, len(banks), width), ABSENT, dtype=np.uint16)
            gates = np.zeros((tokens, len(banks), width), dtype=np.float32)
            for index, bank in enumerate(banks):
                if bank in step.ids:
                    count, k = step.ids[bank].shape
                    block[:count, index, :k] = step.ids[bank]
                    gates[:count, index, :k] = step.weights[bank]
            ids.append(block)
            weights.append(gates)
            phases.append(np.full(tokens, _PHASES.index(step.phase), dtype=np.uint8))
            numbers.append(np.full(tokens, number, dtype=np.int64))
        return {
            "expert_ids": np.concatenate(ids),
            "weights": np.concatenate(weights),
            "phase": np.concatenate(phases),
            "step": np.concatenate(numbers),
            "layers": np.array([bank.layer for bank in banks], dtype=np.int64),
            "banks": np.array([bank.bank for bank in banks]),
            "num_experts": np.array([self._num_experts[bank] for bank in banks], dtype=np.int64),
        }

    def _write_lines(self, text: object, components: dict[str, dict[str, npt.NDArray[np.generic]]]) -> None:
        write = text.write  # type: ignore[attr-defined]
        head = {"schema_version": TRACE_SCHEMA_VERSION, "model": self._model, "identity": self._identity}
        write(json.dumps(head) + "\n")
        for name, arrays in components.items():
            layers, banks = arrays["layers"].tolist(), arrays["banks"].tolist()
            for row in range(arrays["phase"].shape[0]):
                for index, layer in enumerate(layers):
                    line = {
                        "component": name,
                        "layer": layer,
                        "bank": banks[index],
                        "step": int(arrays["step"][row]),
                        "token": row,
                        "phase": _PHASES[int(arrays["phase"][row])],
                        "expert_ids": arrays["expert_ids"][row, index].tolist(),
                        "weights": arrays["weights"][row, index].tolist(),
                    }
                    write(json.dumps(line) + "\n")
