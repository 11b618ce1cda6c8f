"""Sequences of a tiny model, and what fails in the middle of one."""

from __future__ import annotations

from typing import Any

import torch

from coterie.generation.sequence import Sequence
from coterie.hf.generation_steps import prepare
from coterie.passes.current import Request, current
from coterie.spec import StepStarted
from zoo import ZOO

NEW = 5


def ids(seed: int, length: int = 12) -> torch.Tensor:
    return ZOO["qwen3_moe"].inputs(seed=seed, length=length)["input_ids"]


def sequence(
    model: Any, seed: int, *, new: int = NEW, prefill_chunk_size: int | None = None, **options: Any
) -> Sequence:
    wishes = {"do_sample": True, "temperature": 1.5} if "draws" in options else {"do_sample": False}
    wishes["prefill_chunk_size"] = prefill_chunk_size
    return Sequence(prepare(model, input_ids=ids(seed), max_new_tokens=new, **wishes), **options)


class Failing:
    """An observer that fails in one request's passes, after so many of them."""

    def __init__(self, request: Request, after: int, error: BaseException) -> None:
        self.request, self.left, self.error = request, after, error

    def on_event(self, event: object) -> None:
        if isinstance(event, StepStarted) and current().rows[0].request is self.request:
            self.left -= 1
            if self.left < 0:
                raise self.error
