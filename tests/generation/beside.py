"""Sequences whose tokens and logits are compared with what they are alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from coterie.generation.draws import Draws
from coterie.generation.sequence import Sequence
from coterie.generation.shared_pass import SharedPass
from coterie.generation.steps import Steps, generated
from coterie.hf.generation_steps import last_logits, prepare
from zoo.sizes import TEXT_IDS


class Beside:
    """A sequence that notes the logits of its steps.

    Args:
        model: The model.
        seed: Of its prompt, and of its draws.
        new: Tokens to be generated.
        sampled: Whether they are drawn.
        inputs: Its prompt, where that is no text that the seed says.
    """

    def __init__(
        self, model: Any, seed: int, *, new: int = 6, sampled: bool = False, inputs: Mapping[str, Any] | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, TEXT_IDS, (1, 2 + 5 * seed % 13), generator=generator)
        wishes = {"do_sample": True, "temperature": 1.5} if sampled else {"do_sample": False}
        self.logits: list[torch.Tensor] = []
        prepared = prepare(model, **(inputs or {"input_ids": ids}), max_new_tokens=new, **wishes)
        first, logits = prepared.ids, self.logits
        self.sequence = Sequence(
            prepared,
            draws=Draws(seed) if sampled else None,
            keep=lambda outputs: logits.append(last_logits(outputs, first)),
        )

    def alone(self) -> Beside:
        """Taken to its end with nobody beside it."""
        generated(self.sequence)
        return self

    def begins(self, whole: Beside) -> bool:
        """Whether all that came of it, to the bit, is what another one begins with."""
        ids, logits = self.sequence.new_ids, self.logits
        return torch.equal(ids, whole.sequence.new_ids[: len(ids)]) and all(
            torch.equal(ours, theirs) for ours, theirs in zip(logits, whole.logits, strict=False)
        )

    def is_as(self, whole: Beside) -> bool:
        """Whether it is the same to the end."""
        self.sequence.check()
        return len(self.logits) == len(whole.logits) and self.begins(whole)


def begun(model: Any, count: int, *, new: int = 6, steps: Steps | None = None) -> tuple[Steps, list[Beside]]:
    """Sequences whose prompts have been computed."""
    steps = Steps() if steps is None else steps
    found = [Beside(model, seed, new=new) for seed in range(count)]
    for one in found:
        alone = Steps()
        alone.add(one.sequence)
        alone.step()
        steps.add(one.sequence)
    return steps, found


def count_shared(monkeypatch: Any) -> list[int]:
    """The sequences of every pass that is shared from now on."""
    counts: list[int] = []
    original = SharedPass.run

    def run(self: SharedPass) -> list[Any]:
        counts.append(len(self.sequences))
        return original(self)

    monkeypatch.setattr(SharedPass, "run", run)
    return counts
