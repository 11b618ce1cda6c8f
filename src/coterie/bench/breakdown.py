"""Where the time of a decode step goes, by what the model's modules take.

The forwards of modules are timed while a generation runs, each without what it spends in others that are timed too, so
that the parts add up to the whole step:

- ``linear``: modules that multiply by resident weights (linear layers, embeddings, convolutions), shared experts
  included;
- ``attention``: what else happens where tokens are mixed: rotary embedding, cache, scores (and the other mixers of
  hybrid models);
- ``norms``: normalisation layers;
- ``router``: the routers;
- ``experts``: finding the experts, their arithmetic, adding them up, without the waiting;
- ``waiting``: until experts were read;
- ``glue``: the rest of the forward pass: residuals, masks, Python between modules;
- ``sampling``: outside the forward pass: choosing the token, the generation loop.

Where a decoder layer is computed natively for one token, its modules are not called, and the native library says what
the same parts took.

Timing costs time itself. The same steps are run without it before, and :attr:`Breakdown.overhead` says how much longer
they took with it.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import nn

from coterie.bench.times import generate
from coterie.engine.runtime import Runtime
from coterie.errors import UnsupportedError, UsageError
from coterie.hf.banks import ExpertBank
from coterie.integration import TokenLayer
from coterie.kernels import QuantisedLinear
from coterie.native import STAGES, StageTimes
from coterie.passes.forwards import Covering, install, own, remove
from coterie.routing.locate import find_router

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Part = Literal["linear", "attention", "norms", "router", "experts", "waiting", "glue", "sampling"]
PARTS: tuple[Part, ...] = get_args(Part)

_STAGES = cast(tuple[Part, ...], STAGES)

_LINEARS = (nn.Linear, QuantisedLinear)

_DENSE: frozenset[Part] = frozenset({"linear", "attention"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Seconds per decode step by part, means over the steps.

    Attributes:
        steps: Decode steps that were timed.
        parts: Part → seconds per step.
        calls: Part → timed calls per step.
        step_s: Seconds per step, mean; the parts add up to it.
        overhead: Median time of a timed step over that of an untimed one, less one.
    """

    steps: int
    parts: dict[Part, float]
    calls: dict[Part, float]
    step_s: float
    overhead: float

    @property
    def dense_s(self) -> float:
        """Seconds per step in resident weights and attention."""
        return sum(self.parts[part] for part in _DENSE)

    @property
    def glue_s(self) -> float:
        """Seconds per step in neither weights, attention, experts nor waiting: norms, routers and all between."""
        return self.step_s - self.dense_s - self.parts["experts"] - self.parts["waiting"]


def breakdown(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    new_tokens: int,
    *,
    seed: int | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Breakdown:
    """Generates twice, the second time with every module timed.

    Args:
        model: From :func:`coterie.load`.
        prompt: Token ids, int64 [1, T].
        new_tokens: At least 3.
        seed: Draw tokens instead of taking the likeliest; both generations are the same.
        on_token: Told after each new token of either generation how many that one has.

    Raises:
        UsageError: For fewer tokens.
    """
    if new_tokens < 3:
        raise UsageError(f"A breakdown takes at least 3 new tokens, not {new_tokens}.", got=new_tokens)
    runtime: Runtime = model.coterie
    _, plain = generate(model, prompt, new_tokens, seed=seed, on_token=on_token)
    watch = _Stopwatch()
    native: list[tuple[StageTimes, Counter[Part]]] = []
    waited = 0.0

    def note(count: int) -> None:
        nonlocal waited
        if count == 1:
            watch.reset()
            for times, _ in native:
                times.reset()
            waited = runtime.stats().total.wait_s
        if on_token is not None:
            on_token(count)

    with _timed(model, runtime.expert_banks, watch, native):
        _, timed = generate(model, prompt, new_tokens, seed=seed, on_token=note)
        waited = runtime.stats().total.wait_s - waited
    for times, calls in native:
        watch.add(times, calls)
    steps = timed.steps_s
    seconds = dict.fromkeys(PARTS, 0.0) | watch.seconds
    # The scheduler's clock and this one may differ by a little.
    seconds["waiting"] = min(waited, seconds["experts"])
    seconds["experts"] -= seconds["waiting"]
    seconds["sampling"] = sum(steps) - sum(seconds.values())
    counts = dict.fromkeys(PARTS, 0) | watch.calls
    return Breakdown(
        steps=len(steps),
        parts={part: seconds[part] / len(steps) for part in PARTS},
        calls={part: counts[part] / len(steps) for part in PARTS},
        step_s=sum(steps) / len(steps),
        overhead=statistics.median(steps) / statistics.median(plain.steps_s) - 1,
    )


class _Stopwatch:
    """Adds up time by part, without what nested parts take. For the thread that made it; others are let through."""

    def __init__(self) -> None:
        self.seconds: dict[Part, float] = {}
        self.calls: dict[Part, int] = {}
        self._thread = threading.get_ident()
        self._nested: list[float] = []

    def reset(self) -> None:
        """Forgets what was added up, between two passes."""
        self.seconds.clear()
        self.calls.clear()

    def run(self, part: Part, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a forward computes, timed."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        nested = self._nested
        nested.append(0.0)
        began = time.perf_counter()
        try:
            return forward(*args, **kwargs)
        finally:
            took = time.perf_counter() - began
            self.seconds[part] = self.seconds.get(part, 0.0) + took - nested.pop()
            self.calls[part] = self.calls.get(part, 0) + 1
            if nested:
                nested[-1] += took

    def add(self, times: StageTimes, calls: Mapping[Part, int]) -> None:
        """What the stages of a native layer took within the model's own forward; ``calls`` are those of one pass."""
        for part, took in zip(_STAGES, times.seconds, strict=True):
            self.seconds[part] = self.seconds.get(part, 0.0) + took
            self.seconds["glue"] -= took
        for part, count in calls.items():
            self.calls[part] = self.calls.get(part, 0) + count * times.passes
        self.calls["experts"] = self.calls.get("experts", 0) + times.with_experts


class _Timed(Covering):
    """A forward that is timed."""

    def __init__(self, watch: _Stopwatch, part: Part, forward: Callable[..., Any]) -> None:
        self._watch = watch
        self._part: Part = part
        self.beneath = forward
        functools.update_wrapper(self, forward, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._watch.run(self._part, self.beneath, args, kwargs)


@contextlib.contextmanager
def _timed(
    model: PreTrainedModel, banks: list[ExpertBank], watch: _Stopwatch, native: list[tuple[StageTimes, Counter[Part]]]
) -> Iterator[None]:
    """Times the modules of a model inside the context; native layers time themselves, and what they stand for."""
    begun: list[nn.Module] = []
    forwards = [own(module) for module in model.modules()]
    layers = [forward for forward in forwards if isinstance(forward, TokenLayer) and forward.intact]
    parts = dict(_parts(model, banks))
    try:
        for module, part in parts.items():
            begun.append(module)
            install(module, "timing", _Timed(watch, part, module.forward))
        for layer in layers:
            layer.examine()
            layer.times = StageTimes()
            native.append((layer.times, Counter(parts[one] for one in layer.stands_for if one in parts)))
        yield
    finally:
        for module in begun:
            remove(module, "timing")
        for layer in layers:
            layer.examine()
            layer.times = None


def _parts(model: PreTrainedModel, banks: list[ExpertBank]) -> Iterator[tuple[nn.Module, Part]]:
    """Every module that is timed, with its part; no module twice."""
    modules = dict(model.named_modules())
    parts: dict[nn.Module, Part] = {model: "glue"}
    for bank in banks:
        for path in (bank.path, *bank.tied):
            parts[modules[path]] = "experts"
        block = modules[bank.router_block]
        with contextlib.suppress(UnsupportedError):  # a block that routes by itself: its time is glue
            parts.setdefault(find_router(block).module, "router")
        layer = modules[bank.router_block.rpartition(".")[0]]
        for child in layer.children():
            if child is not block and any(isinstance(module, _LINEARS) for module in child.modules()):
                parts.setdefault(child, "attention")
    inside = {below for module, part in parts.items() if part in ("experts", "router") for below in module.modules()}
    for module in modules.values():
        weightless = not isinstance(module, QuantisedLinear) and not any(True for _ in module.parameters(recurse=False))
        if module in inside or module in parts or weightless:
            continue
        if "norm" in type(module).__name__.lower():
            parts[module] = "norms"
        elif not any(True for _ in module.children()):
            parts[module] = "linear"
    yield from parts.items()
