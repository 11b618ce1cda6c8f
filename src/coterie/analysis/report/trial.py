"""A short run of a model, for what a profile does not keep: single tokens, and attention heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coterie.analysis.report.findings import (
    Answer,
    Picture,
    claim_above,
    claim_described,
    estimate_windows,
    shown,
)
from coterie.analysis.report.salience import SalienceOfWindows, SalientTokens
from coterie.errors import UsageError
from coterie.profiles import Estimate, gini, top_share
from coterie.profiles.inference import Floats
from coterie.spec import Event, ExpertsContributed, ExpertsSelected

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TRIAL_TOKENS = 4096
"""The most tokens of a trial: enough for figures of layers, and little beside a recording."""
_WINDOWS = 16
_TOP = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heads:
    """The attention heads of one layer.

    Attributes:
        name: Of the module.
        norms: [W, H] mean norm of what each head adds to the residual stream, in each window.
    """

    name: str
    norms: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """What a short run showed.

    Attributes:
        tokens: Tokens that the model read.
        gate: Mean share that the largest of a token's gate weights has of their sum.
        gate_low: The share that a tenth of the tokens are below.
        gate_high: The share that a tenth of the tokens are above.
        output: Mean share that the largest contribution (gate weight × ‖output‖₂) has of a token's sum of them.
        heads: By layer; empty where they cannot be measured.
        why_no_heads: Why not.
        salience: Of every token; None if no router saw them.
    """

    tokens: int
    gate: Estimate
    gate_low: float | None
    gate_high: float | None
    output: Estimate
    heads: tuple[Heads, ...]
    why_no_heads: str = ""
    salience: SalientTokens | None = None


class _Shares:
    """Keeps the largest share of each token's gate weights, and of its contributions, for each window."""

    wants_contributions = True

    def __init__(self, component: str) -> None:
        self._component = component
        self.gate: list[list[Floats]] = []
        self.output: list[list[Floats]] = []

    def begin(self) -> None:
        self.gate.append([])
        self.output.append([])

    def on_event(self, event: Event) -> None:
        if isinstance(event, ExpertsSelected) and event.bank.component == self._component:
            self.gate[-1].append(_largest_shares(event.weights))
        elif isinstance(event, ExpertsContributed) and event.bank.component == self._component:
            self.output[-1].append(_largest_shares(event.contributions))


def _largest_shares(values: Any) -> Floats:
    """[T] of [T, K]; rows that sum to nothing, or are not known, are left out."""
    sums = values.sum(axis=1)
    known = np.isfinite(sums) & (sums > 0)
    shares: Floats = (values[known].max(axis=1) / sums[known]).astype(np.float64)
    return shares


def run_trial(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    component: str,
    prefix: Sequence[int] = (),
    text_of: Callable[[int], str] | None = None,
) -> Trial:
    """Reads a text with a model, in 16 windows, and measures what a profile does not keep.

    Args:
        model: From :func:`coterie.load`.
        token_ids: Of the text; of more than 4,096 the first are read.
        component: The part of the model.
        prefix: Tokens that every window begins with.
        text_of: Token id → its text, for the tables of tokens.

    Raises:
        UsageError: If there are too few tokens for two windows.
        CoterieError: As reading experts does.
    """
    # Here, because most who ask this package do not run a model.
    import torch

    ids = list(token_ids[:TRIAL_TOKENS])
    if len(ids) < 2 * _WINDOWS:
        raise UsageError(f"{len(ids)} tokens are too few for a trial.", advice="Give a longer text.", got=len(ids))
    runtime: Any = model.coterie
    shares = _Shares(component)
    salient = SalienceOfWindows(component, {bank.key: bank.num_experts for bank in runtime.expert_banks})
    modules, why = attention_outputs(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for observer in (shares, salient):
            runtime.add_observer(observer)
            stack.callback(runtime.remove_observer, observer)
        scores = stack.enter_context(runtime.salience())
        seen = 0
        meter = stack.enter_context(_measuring(modules))
        for part in np.array_split(np.array(ids), _WINDOWS):
            shares.begin()
            for norms in meter.values():
                norms.append([])
            model(input_ids=torch.tensor([[*prefix, *part.tolist()]]), use_cache=False)
            scored = scores.tokens[seen:]
            seen += len(scored)
            salient.end_window([token for token in scored if token.component == component], len(prefix))
    heads = tuple(
        Heads(name=name, norms=np.stack([np.concatenate(window).mean(axis=0) for window in norms]))
        for name, norms in meter.items()
        if all(norms)
    )
    every = np.concatenate([one for window in shares.gate for one in window] or [np.zeros(0)])
    low, high = np.quantile(every, (0.1, 0.9)) if len(every) else (None, None)
    return Trial(
        tokens=len(ids),
        gate=_over_windows(shares.gate),
        gate_low=None if low is None else float(low),
        gate_high=None if high is None else float(high),
        output=_over_windows(shares.output),
        heads=heads,
        why_no_heads=why,
        salience=salient.result(text_of) if seen else None,
    )


def _over_windows(windows: list[list[Floats]]) -> Estimate:
    """The mean over windows, its interval between them, and the mean of each half of them."""
    means = np.array([np.concatenate(window).mean() for window in windows if window and sum(map(len, window))])
    return estimate_windows(means)


def attention_outputs(model: Any) -> tuple[dict[str, tuple[Any, int]], str]:
    """The projections that add up the heads of decoder layers: name → (module, heads); and why there are none."""
    import torch

    found: dict[str, tuple[Any, int]] = {}
    for name, module in model.named_modules():
        projection, size = getattr(module, "o_proj", None), getattr(module, "head_dim", None)
        if projection is None or not isinstance(size, int):
            continue
        if not isinstance(projection, torch.nn.Linear) or not projection.weight.is_floating_point():
            return {}, f"{name}.o_proj is a {type(projection).__name__}, whose weight cannot be split by heads"
        if projection.in_features % size:
            return {}, f"{name}.o_proj reads {projection.in_features} numbers, which are no heads of {size}"
        found[name] = (projection, projection.in_features // size)
    return found, "" if found else f"{type(model).__name__} has no attention with an o_proj and a head_dim"


@contextmanager
def _measuring(modules: dict[str, tuple[Any, int]]) -> Iterator[dict[str, list[list[Floats]]]]:
    """While it lasts, what passes each projection is measured: for each window, [T, H] norms of each call."""
    import torch

    meter: dict[str, list[list[Floats]]] = {name: [] for name in modules}
    with ExitStack() as stack:
        for name, (projection, heads) in modules.items():
            weight = projection.weight.detach().float().unflatten(1, (heads, -1))
            # ‖W x‖² = xᵀ (Wᵀ W) x, which takes d × d numbers for each head in place of D × d.
            products = torch.einsum("ohd,ohe->hde", weight, weight)

            def measure(_: Any, inputs: tuple[Any, ...], name: str = name, products: torch.Tensor = products) -> None:
                x = inputs[0].detach().float().flatten(0, -2).unflatten(1, (products.shape[0], -1))
                squares = torch.einsum("thd,hde,the->th", x, products, x)
                meter[name][-1].append(squares.clamp_min(0).sqrt().numpy().astype(np.float64))

            handle = projection.register_forward_pre_hook(measure)
            stack.callback(handle.remove)
        yield meter


def attention(trial: Trial | None) -> Answer:
    """Which attention heads matter."""
    question = "Which attention heads matter, for comparison?"
    if trial is None or not trial.heads:
        why = "no text was given for a short run of the model (`--text`)" if trial is None else trial.why_no_heads
        return Answer(key="heads", question=question, answer=f"Not measured: {why}.")
    windows = len(trial.heads[0].norms)
    first, second = slice(0, windows // 2), slice(windows // 2, None)
    top = [_top_heads(trial, part) for part in (slice(None), first, second)]
    shares = np.array([[top_share(layer.norms[w], _TOP) for layer in trial.heads] for w in range(windows)]).mean(axis=1)
    even = np.array([[gini(layer.norms[w]) for layer in trial.heads] for w in range(windows)]).mean(axis=1)
    alike = np.mean(
        [_correlation(layer.norms[first].mean(axis=0), layer.norms[second].mean(axis=0)) for layer in trial.heads]
    )
    claims = (
        claim_above(
            "share of a layer's head norms of its largest tenth",
            estimate_windows(shares),
            (_TOP, _TOP, _TOP),
            tokens=trial.tokens,
            unit="%",
        ),
        claim_described("Gini coefficient of head norms", estimate_windows(even), tokens=trial.tokens),
    )
    both = [head for head in top[1] if head in top[2]]
    listed = ", ".join(f"{layer}:{head}" for layer, head in both) or "none"
    answer = (
        f"The largest tenth of a layer's heads have {shown(claims[0].value, '%')} of its sum of head norms (Gini "
        f"{shown(claims[1].value)}); norms of heads in the two halves correlate at {alike:.2f}; among the ten largest "
        f"relative to their layer in both halves are {listed}."
    )
    return Answer(
        key="heads",
        question=question,
        answer=answer,
        claims=claims,
        pictures=(Picture(name="heads", title="Share of each head in its layer's head norms"),),
        notes=(
            "A head's contribution is what it adds to the residual stream through its columns of o_proj; its "
            "norm is the mean over tokens. Heads may cancel each other: norms tell of size, not of use. Heads are "
            "LAYER:HEAD.",
        ),
    )


def head_shares(trial: Trial) -> Floats:
    """[L, H] share of each head in its layer's norms; NaN where a layer has fewer heads."""
    most = max(layer.norms.shape[1] for layer in trial.heads)
    shares = np.full((len(trial.heads), most), np.nan)
    for index, layer in enumerate(trial.heads):
        norms = layer.norms.mean(axis=0)
        shares[index, : len(norms)] = norms / max(norms.sum(), 1e-30)
    return shares


def _top_heads(trial: Trial, part: slice) -> list[tuple[int, int]]:
    """The ten largest, each against the mean of its layer."""
    places = []
    for index, layer in enumerate(trial.heads):
        norms = layer.norms[part].mean(axis=0)
        places += [(-float(n / max(norms.mean(), 1e-30)), index, head) for head, n in enumerate(norms)]
    return [(layer, head) for _, layer, head in sorted(places)[:10]]


def _correlation(one: Floats, two: Floats) -> float:
    return float(np.corrcoef(one, two)[0, 1]) if one.std() > 0 and two.std() > 0 else 0.0
