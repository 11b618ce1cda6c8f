"""Quality of the bundled model against what is saved: experts that are there, experts per token, bits, reads.

The figures are those of `coterie curve`. Which experts are there goes by a profile of the first half of each evaluation
text; what is predicted begins a tenth of the text after that half, so that no document is in both, unless it is longer
than this gap. Windows have 256 tokens. Two more questions are asked:

*The smallest sets.* For each kind of text, the fewest experts that keep its divergence at or below a bound, along a
ranking of all the model's experts by what the domain needs (`ean`); and which experts the sets have in common.

*Why few experts behave as they do.* At the same experts, what `mask`, `drop` and `nearest` do is compared with two
variants that are no options. `drop, as they are` leaves absent experts out, and the others do not take over their
weight. `mask, as in full` takes the best experts that are there, as `mask` does, with the weights that they would have
beside the full model's choice: what absent experts lose is nobody's gain. Gate weight that is lost is counted on the
full model, over the text that is predicted, and tokens are divided by how much of theirs is.

Nothing here depends on the machine's speed. Finished points are kept in the work directory: the same command goes on.

    python benchmarks/bench_curve.py [--text dialogue=FILE]
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coterie import load
from coterie.curves import Curve, CurveAxes, CurvePoint, CurveProgress, curve
from coterie.curves.choosing import Chosen, ExpertRanking
from coterie.engine.alteration import Alteration, origin_of
from coterie.engine.opening import open_streamed
from coterie.evaluate import Estimate, TokenScores, mean_estimate, predict, score
from coterie.evaluate.confidence import block_starts
from coterie.extraction.keeping import Amount
from coterie.hf.tokenizer import load_tokenizer
from coterie.profiles import Usage
from coterie.routing import Routed, router_rows
from coterie.routing.policies import absent_pairs
from coterie.spec import BankKey, ExpertsSelected
from coterie.spec.opening import Opening
from coterie.survey import gather, survey
from harness.options import options
from harness.report import Report
from perplexity import WINDOW, Passage, read_passage, text_files

LIMIT, LIMIT_OF_SETS, LIMIT_IN_STEPS = 3_700, 2_000, 500
"""Predictions of each text: for the points, in searching, and token by token."""
ENOUGH = 18_000
BOUNDS = (0.01, 0.02, 0.05)
MEMORY = "25%"
"""Room for experts where reads are counted."""
WINDOWS = 4
"""Windows of 255 predictions of each text, for the second question."""
SETS = (("id", "25%"), ("ean", "25%"), ("id", "60%"))
QUARTERS = 4

Policy = Callable[[Tensor, Tensor], Routed]


def parts(path: Path, folder: Path, domain: str) -> tuple[Path, Path]:
    """What is recorded of a text, its first half, and what is predicted, its last two fifths, in two files."""
    text = path.read_text(encoding="utf-8")
    middle, later = (text.find("\n\n", len(text) * share // 10) for share in (5, 6))
    if min(middle, later) < 0:
        raise SystemExit(f"{path} has no paragraph that ends in its second half.")
    files = folder / f"{domain}-recorded.txt", folder / f"{domain}-predicted.txt"
    for file, part in zip(files, (text[:middle], text[later:].lstrip()), strict=True):
        file.write_text(part, encoding="utf-8")
    return files


def record(profile: Path, texts: Mapping[str, Path]) -> int:
    """Records a profile of the full model, if it is not there; returns the tokens recorded."""
    model = load("bundled", component="thinker", expert_memory="64MiB")
    try:
        material = [one for domain, path in texts.items() for one in gather("text", domain, path)]
        survey(model, profile, material, context=WINDOW)
    finally:
        model.coterie.close()
    usage = Usage.open(profile)
    return int(next(iter(usage.banks.values())).tokens.sum())


def measured(folder: Path, profile: Path, texts: Mapping[str, Path], quick: bool) -> tuple[Curve, Curve, Curve]:
    """The curve in passes of a window, the smallest sets, and the curve of reads."""
    shared: dict[str, Any] = {"context": WINDOW, "progress": _tell}
    axes = CurveAxes(
        coverage=("28%", "100%") if quick else ("28%", "60%", "100%"),
        by=("id", "frequency", "reap", "ean"),
        experts_per_token=(2,) if quick else (1, 2, 3, 4),
        schemes=("int2", "int4") if quick else ("int2", "int3", "int4", "int5", "int8"),
    )
    whole = curve(
        "bundled",
        texts,
        axes,
        profile=profile,
        limit=300 if quick else LIMIT,
        expert_memory="64MiB",
        output=folder / "curve",
        **shared,
    )
    sets = curve(
        "bundled",
        texts,
        CurveAxes(by=("ean",), smallest=BOUNDS[:1] if quick else BOUNDS),
        profile=profile,
        limit=100 if quick else LIMIT_OF_SETS,
        expert_memory="64MiB",
        output=folder / "sets",
        **shared,
    )
    reads = curve(
        "bundled",
        texts,
        CurveAxes(drop_cold=(0.1,) if quick else (0.05, 0.1, 0.25)),
        limit=50 if quick else LIMIT_IN_STEPS,
        expert_memory=MEMORY,
        output=folder / "reads",
        **shared,
    )
    return whole, sets, reads


def _tell(progress: CurveProgress) -> None:
    if progress.tokens is None:
        print(f"{progress.done} of {progress.total}: {progress.setting.label}", file=sys.stderr, flush=True)


def tabulate(report: Report, whole: Curve, reads: Curve, recorded: int) -> None:
    """Adds the tables of `coterie curve`."""
    tokens, fewer = whole.points[0].total.tokens, reads.points[0].total.tokens
    quality = ("KLD", "same top", "accuracy", "perplexity ÷ full")
    table = report.table(
        f"Experts that are there: {tokens:,} predicted tokens of {', '.join(whole.texts)}, chosen by a profile of "
        f"{recorded:,} other tokens:",
        ("experts", "chosen by", "absent", "gate weight kept", *quality),
    )
    for point in on_axis(whole, "coverage"):
        mass = "–" if point.gate_mass is None else f"{point.gate_mass:.1%}"
        how = (point.setting.chosen_by, str(point.setting.missing or "–"), mass)
        table.rows.append((share(point.experts, point.total_experts), *how, *figures(point)))
    table = report.table(
        f"Experts per token, over the same {tokens:,} tokens:",
        ("experts per token", "MiB of experts per token", *quality),
    )
    for point in on_axis(whole, "experts_per_token"):
        table.rows.append((str(point.setting.experts_per_token), f"{point.token_nbytes / 2**20:.2f}", *figures(point)))
    table = report.table(
        f"Bits per weight of experts, not calibrated, over the same {tokens:,} tokens:",
        ("scheme", "bits per weight", *quality),
    )
    for point in on_axis(whole, "bits"):
        table.rows.append((point.setting.label, f"{point.bits:.2f}", *figures(point)))
    table = report.table(
        f"Experts left out rather than read, in room for {MEMORY} of the experts, {fewer:,} tokens one by one:",
        ("drop-cold", "KiB read per token", "hit rate", *quality),
    )
    for point in on_axis(reads, "drop_cold"):
        counted = point.reads
        assert counted is not None, "tokens were computed one by one"
        read = (f"{counted.bytes_per_token / 1024:.0f}", f"{counted.hit_rate:.1%}")
        table.rows.append(
            (f"{point.setting.drop_cold:g}" if point.setting.drop_cold else "off", *read, *figures(point))
        )
    report.values |= {"curve": whole.to_json(), "reads": reads.to_json()}


def on_axis(found: Curve, axis: str) -> list[CurvePoint]:
    """The points of one axis."""
    return [point for point in found.points if point.setting.axis == axis]


def figures(point: CurvePoint) -> tuple[str, ...]:
    """The cells of quality."""
    compared = point.total.comparison
    assert compared is not None, "every point is compared"
    return (
        interval(point.kld),
        f"{compared.same_top.value:.2%}",
        f"{point.total.accuracy.value:.2%}",
        f"{compared.ratio.value:.4f}",
    )


def interval(found: Estimate, digits: int = 4) -> str:
    """A figure with its interval, where there is one."""
    text = f"{found.value:.{digits}f}"
    return text if found.low is None else f"{text} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def share(count: int, total: int) -> str:
    """A number of experts, and its share."""
    return f"{count} ({count / total:.0%})"


def tabulate_sets(report: Report, found: Curve) -> None:
    """Adds the tables of the smallest sets."""
    domains = tuple(found.texts)
    table = report.table(
        f"Fewest experts, of {found.model.total_experts}, for a divergence at or below a bound (`ean`, `mask`; each "
        f"kind of text by itself, {found.limit:,} tokens or what there is):",
        ("KLD at most", *domains),
    )
    masses = report.table(
        "Gate weight of the domain's recorded tokens that goes to these experts:", ("KLD at most", *domains)
    )
    for bound in sorted({one.bound for one in found.smallest}):
        row = {one.domain: one for one in found.smallest if one.bound == bound}
        table.rows.append((f"{bound:g}", *(share(row[name].experts, row[name].total_experts) for name in domains)))
        masses.rows.append((f"{bound:g}", *(f"{row[name].gate_mass:.1%}" for name in domains)))
    table = report.table(
        "Core and optional experts: in how many of these sets an expert is:",
        ("KLD at most", "in every set", "in several", *(f"{name} only" for name in domains), "in none"),
    )
    layers = report.table(
        "Experts in every set, by layer (32 experts each):",
        ("KLD at most", *(f"layer {number}" for number in range(len(found.shared[0].layers)))),
    )
    for shared in sorted(found.shared, key=lambda one: one.bound):
        only = (str(shared.only[name]) for name in domains)
        table.rows.append((f"{shared.bound:g}", str(shared.core), str(shared.several), *only, str(shared.none)))
        layers.rows.append((f"{shared.bound:g}", *map(str, shared.layers.values())))


# --- Why few experts behave as they do ------------------------------------------------------------------------------


class Gates:
    """Notes what routers choose: per layer the ids and weights [T, K] of the last pass."""

    def __init__(self) -> None:
        self.chosen: dict[BankKey, tuple[NDArray[Any], NDArray[Any]]] = {}

    def on_event(self, event: object) -> None:
        """Keeps what was chosen."""
        if isinstance(event, ExpertsSelected):
            self.chosen[event.bank] = event.expert_ids, event.weights

    def lost(self, chosen: Chosen) -> NDArray[np.float64]:
        """[layers, T] the share of each token's gate weight that goes to experts that are not there."""
        rows = []
        for bank, (ids, weights) in sorted(self.chosen.items()):
            gone = ~np.isin(ids, chosen[bank])
            rows.append((weights * gone).sum(axis=1) / weights.sum(axis=1))
        return np.array(rows, dtype=np.float64)


@contextmanager
def opened(chosen: Chosen, policy: str) -> Iterator[Any]:
    """The model with some of its experts, and what is done about the others."""
    missing = {"drop, as they are": "drop", "mask, as in full": "mask"}.get(policy, policy)
    opening = Opening(expert_memory="64MiB", component="thinker", missing=missing)  # type: ignore[arg-type]
    model = open_streamed("bundled", opening, Alteration(experts=chosen))
    for streamed in model.coterie._attachment.banks.values():
        present = torch.zeros(streamed.bank.num_experts, dtype=torch.bool)
        present[list(chosen[streamed.bank.key])] = True
        if policy == "drop, as they are":
            streamed.missing = left_as_they_are(present)
        elif policy == "mask, as in full":
            block = model.get_submodule(streamed.bank.router_block)
            streamed.route = weighed_as_in_full(streamed, router_rows(block.gate, streamed.bank.num_experts), present)
    try:
        yield model
    finally:
        model.coterie.close()


def left_as_they_are(present: Tensor) -> Policy:
    """Leaves absent experts out; the weights of the others stay."""

    def policy(ids_TK: Tensor, weights_TK: Tensor) -> Routed:
        gone_TK = absent_pairs(ids_TK, present)
        return Routed(
            ids_TK.masked_fill(gone_TK, len(present)), weights_TK.masked_fill(gone_TK, 0.0), int(gone_TK.sum())
        )

    return policy


def weighed_as_in_full(streamed: Any, rows_EH: Tensor, present: Tensor) -> Callable[..., Routed]:
    """Gives the experts that a masked router chose the weights that they would have if none were absent.

    The model's routers take the softmax over all experts and divide by the sum over those that they choose. Here the
    divisor is the sum over those that they would have chosen.
    """
    route, k = streamed.route, streamed.bank.top_k

    def weighed(now: Any, hidden: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Routed:
        logits_TE = (hidden.reshape(-1, hidden.shape[-1]) @ rows_EH.T.to(hidden.dtype)).float()
        shares_TE = logits_TE.softmax(-1)
        full_T1 = shares_TE.topk(k, dim=-1).values.sum(-1, keepdim=True)
        there_T1 = shares_TE.masked_fill(~present, 0.0).topk(k, dim=-1).values.sum(-1, keepdim=True)
        found: Routed = route(now, hidden, ids_TK, (weights_TK.float() * (there_T1 / full_T1)).to(weights_TK.dtype))
        return found

    return weighed


POLICIES = ("mask", "mask, as in full", "drop", "drop, as they are", "nearest")


def explain(report: Report, profile: Path, texts: Mapping[str, Path], quick: bool) -> None:
    """Adds the tables of the second question."""
    full = load("bundled", component="thinker", expert_memory="64MiB")
    tokenizer = load_tokenizer(full.coterie.source.directory)
    count = 1 if quick else WINDOWS
    passages = [read_passage(tokenizer, domain, path, count) for domain, path in texts.items()]
    banks = {key: found.bank for key, found in origin_of(full.coterie.source).model.banks.items()}
    usage = Usage.open(profile)
    sets = {
        (by, given): ExpertRanking(banks, by, usage).take(Amount.parse(given), "layer")  # type: ignore[arg-type]
        for by, given in SETS[: 2 if quick else None]
    }
    logits, lost = full_model(full, passages, sets)
    full.coterie.close()
    tokens = sum(window.tokens for passage in passages for window in passage.windows)
    table = report.table(
        f"Few experts, {tokens:,} tokens: gate weight that the full model gives to absent experts, choices of a layer "
        "of which none is there, and the divergence of each way to go on:",
        ("experts", "chosen by", "gate weight lost", "nothing left", *POLICIES),
    )
    paired = report.table(
        "How much more than with `mask`, paired token by token:",
        ("experts", "chosen by", *POLICIES[1:]),
    )
    split = report.table(
        "The same by how much of its gate weight a token loses, a quarter of the tokens each:",
        ("experts", "chosen by", "gate weight lost", *POLICIES),
    )
    for (by, given), chosen in sets.items():
        mean_T = lost[by, given].mean(axis=0)
        scores = {policy: divergences(chosen, policy, passages, logits) for policy in POLICIES}
        starts = [block_starts([window.tokens for window in passage.windows], WINDOW) for passage in passages]
        klds = {name: [found(one.kld) for one in scores[name]] for name in POLICIES}
        cells = [interval(mean_estimate(klds[name], starts), 3) for name in POLICIES]
        more = [
            interval(mean_estimate([a - b for a, b in zip(klds[name], klds["mask"], strict=True)], starts), 3)
            for name in POLICIES[1:]
        ]
        paired.rows.append((given, by, *more))
        nothing = float((lost[by, given] > 1 - 1e-6).mean())
        table.rows.append((given, by, f"{mean_T.mean():.1%}", f"{nothing:.1%}", *cells))
        order = np.array_split(np.argsort(mean_T, kind="stable"), QUARTERS)
        for part in order:
            means = [float(np.concatenate(klds[name])[part].mean()) for name in POLICIES]
            bounds = f"{mean_T[part].min():.0%} to {mean_T[part].max():.0%}"
            split.rows.append((given, by, bounds, *(f"{mean:.3f}" for mean in means)))
        report.values[f"few experts: {given} by {by}"] = dict(zip(POLICIES, cells, strict=True))


def found(kld: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """The divergences of a text's tokens, which were compared."""
    assert kld is not None, "every window is compared"
    return kld


def full_model(
    full: Any, passages: list[Passage], sets: Mapping[tuple[str, str], Chosen]
) -> tuple[list[list[Tensor]], dict[tuple[str, str], NDArray[np.float64]]]:
    """Logits of all windows, and for each set the gate weight that tokens lose [layers, T]."""
    gates, logits = Gates(), []
    lost: dict[tuple[str, str], list[NDArray[np.float64]]] = {name: [] for name in sets}
    full.coterie.add_observer(gates)
    for passage in passages:
        logits.append([])
        for window in passage.windows:
            logits[-1].append(predict(full, passage.text, window))
            for name, chosen in sets.items():
                lost[name].append(gates.lost(chosen))
    full.coterie.remove_observer(gates)
    return logits, {name: np.concatenate(found, axis=1) for name, found in lost.items()}


def divergences(chosen: Chosen, policy: str, passages: list[Passage], logits: list[list[Tensor]]) -> list[TokenScores]:
    """The scores of each passage."""
    print(f"few experts: {policy}", file=sys.stderr, flush=True)
    found = []
    with opened(chosen, policy) as model:
        for passage, expected in zip(passages, logits, strict=True):
            parts = [
                score(predict(model, passage.text, window), passage.text.ids[window.predicted], full)
                for window, full in zip(passage.windows, expected, strict=True)
            ]
            found.append(TokenScores.join(parts))
    return found


def main() -> int:
    """Measures and reports; exit status 1 if something that must hold does not."""
    parser = options(__doc__)
    parser.add_argument("--text", action="append", default=[], metavar="DOMAIN=FILE", help="one more text")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "The experts have")
    folder = arguments.work_dir / ("curve-quick" if arguments.quick else "curve")
    folder.mkdir(parents=True, exist_ok=True)
    report = Report("curve", "Quality against what is saved", work=arguments.work_dir, quick=arguments.quick)
    texts = {domain: parts(path, folder, domain) for domain, path in text_files(arguments.text).items()}
    profile = folder / "profile.db"
    recorded = record(profile, {domain: files[0] for domain, files in texts.items()})
    predicted = {domain: files[1] for domain, files in texts.items()}
    whole, sets, reads = measured(folder, profile, predicted, arguments.quick)
    tabulate(report, whole, reads, recorded)
    tabulate_sets(report, sets)
    explain(report, profile, predicted, arguments.quick)
    everything = next(point for point in whole.points if point.experts == point.total_experts)
    report.require("all experts, nothing changed", f"KLD {everything.kld.value}", everything.kld.value == 0)
    report.require(
        f"at least {ENOUGH:,} predicted tokens",
        f"{everything.total.tokens:,}",
        everything.total.tokens >= ENOUGH or arguments.quick,
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
