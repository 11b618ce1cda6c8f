"""Fewer experts for some tokens: what that costs and saves, by salience and by plainer ways.

A token that gets fewer of its router's K experts asks for fewer bytes, and its logits differ. Three ways to choose:

- by salience: the presets of `--adapt-experts`, between a quarter, half or three quarters of K and all K, by the rank
  of the salience of the token before. Text is then read token by token, as in generation.
- plain: the same k for every token.
- by gate: experts whose weight is below a share of the token's highest are left out. It asks each token's own router,
  layer by layer, and has no state.

In all of them the lightest experts go, and the others take over their weight. The control of a preset gives the same
tokens the same numbers of experts in an order drawn at random: what salience knows is the difference between the two.

Each preset's divergence is compared, token by token, with that of the plainer ways at the same bytes, on the straight
line between neighbouring points. Divergence is convex in bytes: the line is above the curve, which favours salience;
between two plain numbers of experts it is what a mixture of both would cost. Differences have 95 % confidence intervals
of blocks of tokens. Bytes are those of the experts asked for, whatever a cache has of them: nothing here depends on the
machine's speed.

    python benchmarks/bench_salience.py [--windows 1] [--text dialogue=FILE]
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from coterie import load
from coterie.evaluate import Estimate, TokenScores, block_starts, mean_estimate, predict, predict_in_steps, score
from coterie.hf.tokenizer import load_tokenizer
from coterie.routing import Routed, leave_out, light_choices
from coterie.spec import ADAPTATION_PRESETS, AdaptiveExperts
from harness.options import options
from harness.report import Report
from perplexity import WINDOW, Passage, read_passage, summarise, text_files

GATES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
WINDOWS = 1
"""Windows of 255 predictions of each text."""


class Drawn:
    """Gives tokens of a text numbers of experts in an order drawn at random, the same in all layers.

    Args:
        numbers: How many tokens get each number.
    """

    def __init__(self, numbers: Mapping[int, int]) -> None:
        given = torch.tensor([number for number, tokens in sorted(numbers.items()) for _ in range(tokens)])
        self._counts = given[torch.randperm(len(given), generator=torch.Generator().manual_seed(0))]
        self.chosen = self.kept = 0

    def __call__(self, bank: Any, routed: Routed, none: int) -> Routed:
        """What is left of a router's choice."""
        light = light_choices(routed.ids, routed.weights, none=none, most=self._counts)
        self.chosen += routed.ids.numel()
        self.kept += routed.ids.numel() - int(light.sum())
        return Routed(*leave_out(routed.ids, routed.weights, light, none), routed.absent)

    def most(self, component: str) -> int:
        """The most that a token gets."""
        return int(self._counts.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to leave experts out.

    Attributes:
        kind: ``salience``, ``plain k``, ``gate``, ``drawn``, or ``all``.
        open: Context in which it is in force; gives what counts pairs.
        in_steps: Whether tokens have to be computed one by one.
    """

    kind: str
    open: Callable[[], Any]
    in_steps: bool = False


@dataclass(slots=True)
class Measured:
    """What a way costs and saves.

    Attributes:
        share: Of the pairs of tokens and experts that routers chose, those computed.
        kld: Mean divergence, with its interval.
        same_top: Share of tokens with the same most probable next one.
    """

    share: float
    kld: Estimate
    same_top: Estimate


def ways(model: Any, k: int) -> dict[str, Way]:
    """All that are compared, by name."""
    runtime = model.coterie

    given: dict[str, Mapping[int, int]] = {}

    @contextmanager
    def salient(name: str) -> Iterator[Any]:
        with runtime.adapt_experts(name) as adaptation:
            yield adaptation
        given[name] = adaptation.tokens

    @contextmanager
    def drawn(name: str) -> Iterator[Drawn]:
        limit = Drawn(given[name])
        with runtime.limit_experts(limit):
            yield limit

    everything = AdaptiveExperts(k_max=k)
    found = {f"all {k}, token by token": Way(kind="all", open=lambda: runtime.adapt_experts(everything), in_steps=True)}
    for name in ADAPTATION_PRESETS:
        found[f"salience: {name}"] = Way(kind="salience", open=lambda name=name: salient(name), in_steps=True)
    for name in ADAPTATION_PRESETS:
        # After the preset, on the same window.
        found[f"drawn at random as {name}"] = Way(kind="drawn", open=lambda name=name: drawn(name))
    for fewer in range(k - 1, 0, -1):
        settings = AdaptiveExperts(k_max=fewer)
        found[f"plain: {fewer} of {k}"] = Way(
            kind="plain k", open=lambda settings=settings: runtime.adapt_experts(settings)
        )
    for share in GATES:
        found[f"gate below {share:g} of the highest"] = Way(
            kind="gate", open=lambda share=share: runtime.adapt_experts(f"gate:{share}")
        )
    return found


def run(
    model: Any, tried: Mapping[str, Way], passages: Sequence[Passage]
) -> tuple[dict[str, list[TokenScores]], dict[str, float]]:
    """Scores of each way, by passage, and its share of pairs computed. Every window begins without a memory."""
    scores: dict[str, list[TokenScores]] = {name: [] for name in tried}
    pairs = {name: [0, 0] for name in tried}
    for passage in passages:
        print(f"{passage.text.name}: {len(passage.windows)} windows", file=sys.stderr, flush=True)
        parts: dict[str, list[TokenScores]] = {name: [] for name in tried}
        for window in passage.windows:
            following = passage.text.ids[window.predicted]
            full: Tensor = predict(model, passage.text, window)
            for name, way in tried.items():
                with way.open() as limit:
                    logits = (predict_in_steps if way.in_steps else predict)(model, passage.text, window)
                parts[name].append(score(logits, following, full))
                pairs[name][0] += limit.kept
                pairs[name][1] += limit.chosen
        for name, found in parts.items():
            scores[name].append(TokenScores.join(found))
    return scores, {name: kept / chosen for name, (kept, chosen) in pairs.items()}


def on_the_line(points: Mapping[str, float], share: float) -> dict[str, float] | None:
    """The neighbouring points at a share of the bytes, and their weights; None beyond the points."""
    ordered = sorted(points, key=points.__getitem__)
    for low, high in itertools.pairwise(ordered):
        if points[low] <= share <= points[high]:
            weight = (share - points[low]) / (points[high] - points[low])
            return {low: 1 - weight, high: weight}
    return None


def difference(
    ours: Sequence[TokenScores], others: Sequence[tuple[float, Sequence[TokenScores]]], passages: Sequence[Passage]
) -> Estimate:
    """Mean over tokens of our divergence less the weighted sum of others."""
    columns = []
    for number, one in enumerate(ours):
        theirs = sum(weight * _divergences(parts[number]) for weight, parts in others)
        columns.append(_divergences(one) - theirs)
    starts = [block_starts([window.tokens for window in passage.windows], WINDOW) for passage in passages]
    return mean_estimate(columns, starts)


def _divergences(scores: TokenScores) -> Any:
    assert scores.kld is not None, "every way was compared"
    return scores.kld


def verdict(theirs: float, more: Estimate) -> str:
    """Another way's divergence at the same bytes, and how salience differs from it."""
    if more.low is None or more.high is None:
        relation = "no interval"
    elif more.high < 0:
        relation = "salience is better"
    elif more.low > 0:
        relation = "salience is worse"
    else:
        relation = "no difference shown"
    return f"{theirs:.4f}, {relation} ({_reach(more)})"


def _reach(more: Estimate) -> str:
    return f"{more.value:+.4f}" if more.low is None else f"{more.low:+.4f} to {more.high:+.4f}"


def judge(
    report: Report,
    tried: Mapping[str, Way],
    found: Mapping[str, Measured],
    scores: Mapping[str, Sequence[TokenScores]],
    passages: Sequence[Passage],
) -> None:
    """Adds the table that holds salience against the other ways, and what came out of it."""
    table = report.table(
        "Mean KLD of salience, and of the other ways at the same bytes (in brackets: salience less the other way):",
        ("preset", "salience", "drawn at random", "plain k", "by gate"),
    )
    everything = next(name for name, way in tried.items() if way.kind == "all")
    best = []
    for preset in ADAPTATION_PRESETS:
        name = f"salience: {preset}"
        lines: dict[str, dict[str, float] | None] = {"drawn": {f"drawn at random as {preset}": 1.0}}
        for kind in ("plain k", "gate"):
            points = {one: found[one].share for one, way in tried.items() if way.kind == kind}
            lines[kind] = on_the_line(points | {everything: 1.0}, found[name].share)
        cells, better = [], []
        for kind, line in lines.items():
            if line is None:
                cells.append("-")
                better.append(False)
                continue
            theirs = sum(weight * found[one].kld.value for one, weight in line.items())
            more = difference(scores[name], [(weight, scores[one]) for one, weight in line.items()], passages)
            cells.append(verdict(theirs, more))
            better.append(more.high is not None and more.high < 0)
            report.values[f"{name} less {kind}"] = asdict(more)
        table.rows.append((preset, _kld(found[name].kld), *cells))
        best.append(all(better[1:]))
    report.values["salience beats the plain ways"] = best
    outcome = report.table("Outcome:", ("question", "answer"))
    outcome.rows.append(("Presets that beat both plain ways at the same bytes", f"{sum(best)} of {len(best)}"))


def _kld(estimate: Estimate) -> str:
    text = f"{estimate.value:.4f}"
    return text if estimate.low is None else f"{text} ({estimate.low:.4f} to {estimate.high:.4f})"


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--text", action="append", default=[], metavar="DOMAIN=FILE", help="one more text to measure")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="windows of each text (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    given.work_dir.mkdir(parents=True, exist_ok=True)
    report = Report("salience", "Fewer experts by salience", work=given.work_dir, quick=given.quick)
    model = load("bundled", component="thinker", expert_memory="100%", threads=given.threads)
    tokenizer = load_tokenizer(model.coterie.source.directory)
    files = text_files(given.text)
    if given.quick:
        files = dict(list(files.items())[:1])
    passages = [read_passage(tokenizer, domain, path, given.windows) for domain, path in files.items()]
    k = model.coterie.expert_banks[0].choices
    layers = len(model.coterie.banks)
    tried = ways(model, k)
    scores, shares = run(model, tried, passages)
    found: dict[str, Measured] = {}
    tokens = 0
    for name, parts in scores.items():
        total = summarise(name, parts, passages)
        tokens = total.tokens
        assert total.comparison is not None, "every way was compared"
        found[name] = Measured(shares[name], total.comparison.kld, total.comparison.same_top)
        report.values[name] = {"share": shares[name], **asdict(total)}
    table = report.table(
        f"The bundled model, {layers} layers, {k} experts per token, over {tokens:,} predicted tokens of "
        f"{len(passages)} texts; of every token, {model.coterie.working_set / 2**20:.2f} MiB of experts are asked for:",
        ("way", "experts per layer", "MiB per token", "saved", "same-top", "mean KLD"),
    )
    for name, one in found.items():
        size = model.coterie.working_set * one.share / 2**20
        figures = (f"{k * one.share:.2f}", f"{size:.2f}", f"{1 - one.share:.1%}", f"{one.same_top.value:.2%}")
        table.rows.append((name, *figures, _kld(one.kld)))
    judge(report, tried, found, scores, passages)
    model.coterie.close()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
