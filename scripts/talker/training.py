"""A training run that can be stopped at any time, and goes on where it was."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

_SAVE_EVERY_S = 60
_TELL_EVERY = 25
_SMOOTHING = 0.97
_WARM_UP = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How something is trained, by AdamW.

    Attributes:
        steps: Steps in all.
        rate: Learning rate, which is reached after the first steps and kept for the first half.
        least: What is left of it at the end, to which it falls linearly, as a fraction.
        betas: Of AdamW.
        seed: Of the weights at the start, and of what each step is shown.
    """

    steps: int
    rate: float
    least: float
    betas: tuple[float, float]
    seed: int

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, numbered from 0."""
        left = 2 * (1 - step / self.steps)
        return self.rate * min(1.0, (step + 1) / _WARM_UP, self.least + (1 - self.least) * left)


def train(model: nn.Module, loss: Callable[[int, random.Random], Tensor], plan: Plan, path: Path) -> None:
    """Trains a model to the end of its plan.

    What a step is shown depends on its number alone, so a run that was stopped ends where another one does.

    Args:
        model: With the weights that it starts from.
        loss: Of a step's number and a source of random choices of its own.
        plan: How.
        path: Where its state is kept: model, optimiser, steps done, CPU time.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.rate, betas=plan.betas, weight_decay=0.01)
    done, spent = _restored(model, optimizer, path)
    saved_at, began, smooth = time.monotonic(), time.process_time() - spent, None
    model.train()
    for step in range(done, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        value = loss(step, random.Random(f"{plan.seed} {step}"))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        now = value.item()
        smooth = now if smooth is None else _SMOOTHING * smooth + (1 - _SMOOTHING) * now
        if (step + 1) % _TELL_EVERY == 0:
            spent = time.process_time() - began
            left = spent / (step + 1) * (plan.steps - step - 1)
            print(f"{path.stem}: step {step + 1} of {plan.steps}, loss {smooth:.3f}, {spent:.0f} s of CPU, "
                  f"about {left:.0f} s left", flush=True)  # fmt: skip
        if time.monotonic() - saved_at > _SAVE_EVERY_S:
            _save(model, optimizer, step + 1, time.process_time() - began, path)
            saved_at = time.monotonic()
    if done < plan.steps:
        _save(model, optimizer, plan.steps, time.process_time() - began, path)
    model.eval()


def spent_s(path: Path) -> float:
    """Seconds of CPU that a run took."""
    return float(torch.load(path)["spent"])


def _restored(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["spent"])


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, spent: float, path: Path) -> None:
    partial = path.with_suffix(".partial")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent}
    torch.save(state, partial)
    partial.replace(path)
