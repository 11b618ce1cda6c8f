"""What a model loses when experts are left out: three stores, three policies, perplexity on the evaluation text.

Three scenarios with the bundled model (8 layers of 32 experts, 4 per token): *everything*; *few complete experts*, 0 to
7 in every layer; and an *uneven* store with three layers full, three at 59 %, one at 6 % and one at 16 %, 62 % in all.
Which experts are kept is arbitrary (the lowest ids), so this is what leaving experts out costs, not the least that it
could cost with a measured choice. The stores are made by the commands that docs/partial-stores.md shows.

Nothing here depends on the machine's speed or memory. `everything` must be bit-identical to stock transformers with
eager experts, and its losses must be those of the model's card.

    python benchmarks/bench_partial.py [--text dialogue=FILE]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from coterie import inspect, load
from coterie.engine import resolve_path
from coterie.evaluate import Comparison, Quality, TokenScores
from coterie.hf.tokenizer import load_tokenizer
from harness.options import options
from harness.report import Report
from perplexity import DOMAINS, WINDOWS, Passage, compare, differing_windows, read_passage, summarise, text_files

CARD = {"prose": 4.384, "technical": 3.618, "code": 3.620, "chinese": 5.688, "german": 3.734, "dialogue": 2.753}
CARD_TOLERANCE = 0.001
"""The card's figures are rounded to this, and bf16 sums differ in the fifth digit between processors."""
PROOF_WINDOWS = 2

Policy = Literal["mask", "drop", "nearest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A store and how it is opened.

    Attributes:
        name: For people.
        experts: What ``coterie extract --experts`` is given; None for all.
        policies: Values of ``missing`` to open it with.
    """

    name: str
    experts: str | None
    policies: tuple[Policy | None, ...]

    def make(self, folder: Path) -> Path:
        """Extracts the store, into a new directory."""
        store = folder / self.name.replace(" ", "-")
        shutil.rmtree(store, ignore_errors=True)
        command = [sys.executable, "-m", "coterie", "extract", "bundled", str(store)]
        if self.experts is not None:
            command += ["--experts", self.experts]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
        return store


POLICIES: tuple[Policy, ...] = ("mask", "drop", "nearest")
SCENARIOS = (
    Scenario(name="everything", experts=None, policies=(None,)),
    Scenario(name="8 of 32", experts="0-7", policies=POLICIES),
    Scenario(name="uneven", experts="3-5:0-18;6:0-1;7:0-4", policies=POLICIES),
)


@dataclass(kw_only=True)
class Run:
    """One model opened and measured.

    Attributes:
        scenario: Its store's name.
        policy: What is done about absent experts.
        model: The open model.
        held: Experts in the store, and their bytes.
        scores: By domain.
        absent: Share of the routers' choices, before the policy, that were absent; None where the mask kept them from
            being chosen.
    """

    scenario: str
    policy: Policy | None
    model: Any
    held: str
    scores: dict[str, TokenScores]
    absent: float | None = None


def open_all(folder: Path) -> list[Run]:
    """Makes the stores and opens each with its policies; the full model comes first."""
    runs = []
    for scenario in SCENARIOS:
        store = scenario.make(folder)
        facts = inspect(store)
        held = f"{facts.present} of {facts.experts} ({facts.present / facts.experts:.0%})"
        held += f", {facts.expert_nbytes / 2**20:.1f} MiB"
        for policy in scenario.policies:
            # All experts fit: what is measured is the store, not the cache.
            model = load(store, missing=policy, expert_memory="64MiB")
            runs.append(Run(scenario=scenario.name, policy=policy, model=model, held=held, scores={}))
    return runs


def prove_exact(full: Any, passages: dict[str, Passage]) -> tuple[int, int]:
    """Windows compared with stock transformers, and how many of them differ."""
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

    stock = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
        resolve_path("bundled"), dtype=torch.bfloat16, experts_implementation="eager"
    )
    proofs = [passage.first(PROOF_WINDOWS) for passage in passages.values()]
    differing = sum(len(list(differing_windows(full, stock, proof))) for proof in proofs)
    return sum(len(proof.windows) for proof in proofs), differing


def absent_share(run: Run) -> float | None:
    """Share of (token, expert) choices that named an absent expert."""
    if run.policy == "mask":
        return None
    stats = run.model.coterie.stats()
    chosen = sum(bank.top_k or 0 for bank in inspect(run.model.coterie.source.directory).banks)
    return float(stats.total.absent / (chosen * sum(stats.prefill_tokens.values())))


def quality(run: Run, domains: list[str], passages: dict[str, Passage]) -> tuple[Quality, Comparison]:
    """A run's figures over some domains together."""
    name = ", ".join(domains)
    found = summarise(name, [run.scores[domain] for domain in domains], [passages[domain] for domain in domains])
    if found.comparison is None:
        raise SystemExit(f"{run.scenario} was not compared with the full model.")
    return found, found.comparison


def tabulate(report: Report, runs: list[Run], passages: dict[str, Passage]) -> None:
    """Adds both tables and the plain values."""
    shipped = [domain for domain in DOMAINS if domain in passages]
    full, _ = quality(runs[0], shipped, passages)
    overall = report.table(
        f"Together, over {full.tokens:,} predicted tokens of {full.name}:",
        (
            "store",
            "experts held",
            "missing",
            "chosen but absent",
            "nats/token",
            "perplexity",
            "÷ full",
            "same-top",
            "KLD",
        ),
    )
    split = report.table(
        "Perplexity by domain (÷ full):",
        ("store", "missing", *(f"{domain}, {len(scores.loss):,} tokens" for domain, scores in runs[0].scores.items())),
    )
    for run in runs:
        policy = run.policy or "–"
        total, compared = quality(run, shipped, passages)
        absent = "–" if run.absent is None else f"{run.absent:.0%}"
        figures = (f"{total.loss.value:.3f}", f"{total.perplexity.value:.1f}", f"{compared.ratio.value:.2f}")
        overall.rows.append(
            (
                run.scenario,
                run.held,
                policy,
                absent,
                *figures,
                f"{compared.same_top.value:.1%}",
                f"{compared.kld.value:.3f}",
            )
        )
        parts = {domain: quality(run, [domain], passages) for domain in passages}
        cells = [f"{part.perplexity.value:.1f} ({other.ratio.value:.2f})" for part, other in parts.values()]
        split.rows.append((run.scenario, policy, *cells))
        report.values[f"{run.scenario}, {policy}"] = {
            "absent": run.absent,
            "together": asdict(total),
            **{domain: asdict(part) for domain, (part, _) in parts.items()},
        }


def require(report: Report, runs: list[Run], proof: tuple[int, int], passages: dict[str, Passage]) -> None:
    """Adds what must hold: exactness, and the card's losses."""
    windows, differing = proof
    report.require(
        "everything is bit-identical to stock transformers, eager",
        f"{windows} windows, {differing} differ",
        not differing,
    )
    losses = {domain: quality(runs[0], [domain], passages)[0].loss.value for domain in runs[0].scores if domain in CARD}
    report.require(
        "losses of the model's card: " + ", ".join(f"{domain} {CARD[domain]:.3f}" for domain in losses),
        ", ".join(f"{domain} {loss:.4f}" for domain, loss in losses.items()),
        all(abs(loss - CARD[domain]) < CARD_TOLERANCE for domain, loss in losses.items()),
    )


def main() -> int:
    """Measures and reports; exit status 1 if something that must hold does not."""
    parser = options(__doc__)
    parser.add_argument("--text", action="append", default=[], metavar="DOMAIN=FILE", help="one more text to measure")
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    report = Report("partial", "Partial stores", work=arguments.work_dir, quick=arguments.quick)
    runs = open_all(arguments.work_dir / "partial")
    full = runs[0].model
    tokenizer = load_tokenizer(full.coterie.source.directory)
    count = 4 if arguments.quick else WINDOWS
    passages = {
        domain: read_passage(tokenizer, domain, path, count) for domain, path in text_files(arguments.text).items()
    }
    models = {str(number): run.model for number, run in enumerate(runs)}
    for domain, passage in passages.items():
        print(f"{domain}: {len(passage.windows)} windows", file=sys.stderr, flush=True)
        for number, scores in compare(full, models, passage).items():
            runs[int(number)].scores[domain] = scores
    for run in runs:
        run.absent = absent_share(run)
    tabulate(report, runs, passages)
    proof = prove_exact(full, passages)
    if arguments.quick:
        report.require("everything is bit-identical to stock transformers, eager", f"{proof[1]} differ", not proof[1])
    else:
        require(report, runs, proof, passages)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
