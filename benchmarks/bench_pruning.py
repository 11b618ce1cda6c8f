"""What pruning loses: the bundled model with three quarters and with half of its experts, chosen in several ways.

Each evaluation text is cut in two at the end of a paragraph near its middle. The first half is recorded into a profile
that decides which experts stay. The second half is scored, so that the halves of a text share one document at most.
The models see windows of 256 tokens, of which the first is context, beside the full model. The figures are those of
`coterie evaluate`; the ratio is the paired one, token by token.

Further rows are for comparison. *ean, global* ranks the experts of all layers together, so layers keep different
numbers. *merged* is M-SMoE, and *routers trained* is a pruned model whose routers were trained towards the full model's
logits on the recorded halves (``pruning_alternatives.py``): Coterie offers neither.

The profile has text alone, and the model takes pictures and sounds, too: `modalities=["text"]` lets these go, so the
figures are of what text loses. An exported checkpoint is opened as well, and must give the bits of its store.

Nothing here depends on the machine's speed.

    python benchmarks/bench_pruning.py [--text dialogue=FILE]
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from coterie import export, extract, load, prune
from coterie.engine.source import model_directory
from coterie.evaluate import Quality, TokenScores, encode, predict, read_text
from coterie.hf.tokenizer import load_tokenizer
from coterie.survey import gather, survey
from harness.options import options
from harness.report import Report
from perplexity import WINDOW, Passage, compare, read_passage, summarise, text_files
from pruning_alternatives import merged, with_trained_routers

KEEPS = {"75%": 0.015, "50%": 0.12}
"""Share of each layer's experts → the mean divergence that REAP must not exceed."""

MEASURES = ("reap", "ean", "frequency", "random")
WINDOWS = 15
ENOUGH = 18_000
"""Predicted tokens that a verdict takes."""


def halves(path: Path, folder: Path, domain: str) -> tuple[Path, Path]:
    """A text in two files, cut at the end of the paragraph that its middle is in."""
    text = path.read_text(encoding="utf-8")
    cut = text.find("\n\n", len(text) // 2)
    if cut < 0:
        raise SystemExit(f"{path} has no paragraph that ends in its second half.")
    files = folder / f"{domain}-recorded.txt", folder / f"{domain}-scored.txt"
    for file, part in zip(files, (text[:cut], text[cut:]), strict=True):
        file.write_text(part, encoding="utf-8")
    return files


def record(profile: Path, texts: dict[str, Path]) -> int:
    """Records a profile of the full model; returns the tokens recorded."""
    model = load("bundled", component="thinker", expert_memory="64MiB")
    try:
        material = [one for domain, path in texts.items() for one in gather("text", domain, path)]
        found = survey(model, profile, material, context=256)
    finally:
        model.coterie.close()
    return sum(tokens for _, tokens in found.tokens)


def pruned_stores(folder: Path, profile: Path, *, quick: bool) -> dict[str, Path]:
    """A store for each measure and share, by name."""
    found = {}
    for keep in KEEPS:
        for by in MEASURES[::3] if quick else MEASURES:
            name = f"{by}, {keep} kept"
            found[name] = folder / f"{by}-{keep.rstrip('%')}"
            choice: dict[str, Any] = {} if by == "random" else {"profile": profile, "modalities": ["text"]}
            prune("bundled", found[name], keep=keep, by=by, component="thinker", **choice)
        name = f"ean, global, {keep} kept"
        found[name] = folder / f"global-{keep.rstrip('%')}"
        prune("bundled", found[name], keep=keep, by="ean", component="thinker", profile=profile, modalities=["text"],
              ranking="global")  # fmt: skip
    return found


def alternatives(folder: Path, profile: Path, texts: list[torch.Tensor], *, quick: bool) -> dict[str, Path]:
    """What others do instead, or after pruning, as checkpoints by name."""
    found = {}
    full = model_directory("bundled")
    for keep in list(KEEPS)[: 1 if quick else None]:
        place = folder / f"alternatives-{keep.rstrip('%')}"
        found[f"merged, {keep} kept"] = merged("bundled", place, keep=keep, profile=profile)
        prune("bundled", place / "reap", keep=keep, profile=profile, modalities=["text"])
        export(place / "reap", place / "reap-exported")
        name = f"reap, {keep} kept, routers trained"
        print(name, file=sys.stderr, flush=True)
        found[name], divergences = with_trained_routers(
            full, place / "reap-exported", place / "trained", texts, window=WINDOW, **({"steps": 2} if quick else {})
        )
        print(f"divergence {divergences[0]:.4f} → {divergences[-1]:.4f}", file=sys.stderr, flush=True)
    return found


def same_bits(folder: Path, profile: Path, passage: Passage) -> tuple[int, int]:
    """Windows for which the checkpoint of the whole pruned model gives the bits of its store, of how many."""
    store, checkpoint = folder / "whole", folder / "exported"
    prune("bundled", store, keep="thinker=75%", by="random")
    export(store, checkpoint)
    models = [load(path, component="thinker", expert_memory="64MiB") for path in (store, checkpoint)]
    try:
        logits = [[predict(model, passage.text, window) for window in passage.windows] for model in models]
    finally:
        for model in models:
            model.coterie.close()
    return sum(torch.equal(a, b) for a, b in zip(*logits, strict=True)), len(passage.windows)


def scores_of(full: Any, models: dict[str, Any], passages: list[Passage]) -> dict[str, Quality]:
    """The figures of every model over all passages together."""
    parts: list[dict[str, TokenScores]] = []
    for passage in passages:
        print(f"{passage.text.name}: {len(passage.windows)} windows", file=sys.stderr, flush=True)
        parts.append(compare(full, models, passage))
    return {name: summarise(name, [part[name] for part in parts], passages) for name in models}


def main() -> int:
    """Measures and reports; exit status 1 if something that must hold does not."""
    parser = options(__doc__)
    parser.add_argument("--text", action="append", default=[], metavar="DOMAIN=FILE", help="one more text")
    arguments = parser.parse_args()
    folder = arguments.work_dir / "pruning"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    report = Report("pruning", "Pruning", work=arguments.work_dir, quick=arguments.quick)
    texts = {domain: halves(path, folder, domain) for domain, path in text_files(arguments.text).items()}
    profile = folder / "profile.db"
    recorded = record(profile, {domain: files[0] for domain, files in texts.items()})
    stores = {"all experts": folder / "all"} | pruned_stores(folder, profile, quick=arguments.quick)
    extract("bundled", stores["all experts"], component="thinker")
    tokenizer = load_tokenizer(model_directory("bundled"))
    recorded_ids = [
        torch.tensor(encode(tokenizer, read_text(files[0]), name=domain).ids) for domain, files in texts.items()
    ]
    stores |= alternatives(folder, profile, recorded_ids, quick=arguments.quick)
    models = {name: load(path, expert_memory="64MiB") for name, path in stores.items()}
    full = models["all experts"]
    windows = 1 if arguments.quick else WINDOWS
    passages = [read_passage(tokenizer, domain, files[1], windows) for domain, files in texts.items()]
    found = scores_of(full, models, passages)
    scored = found["all experts"].tokens
    table = report.table(
        f"The bundled model over {scored:,} predicted tokens of {len(texts)} kinds of text, with a profile of "
        f"{recorded:,} tokens of their other halves:",
        ("experts", "MiB on disk", "perplexity ÷ full", "same-top", "mean KLD", "99 % of tokens below"),
    )
    for name, quality in found.items():
        compared = quality.comparison
        assert compared is not None, "every model was compared"
        size = sum(file.stat().st_size for file in stores[name].rglob("*") if file.is_file()) / 2**20
        kld = f"{compared.kld.value:.4f}"
        if compared.kld.low is not None:
            kld += f" ({compared.kld.low:.4f} to {compared.kld.high:.4f})"
        figures = (f"{compared.ratio.value:.4f}", f"{compared.same_top.value:.2%}", kld, f"{compared.kld_p99:.3f}")
        table.rows.append((name, f"{size:.1f}", *figures))
        report.values[name] = asdict(quality) | {"mib": size}
    for keep, most in KEEPS.items():
        compared = found[f"reap, {keep} kept"].comparison
        assert compared is not None, "every model was compared"
        report.require(
            f"mean KLD of reap, {keep} kept, is at most {most}, over at least {ENOUGH:,} tokens",
            f"{compared.kld.value:.4f} over {scored:,}",
            compared.kld.value <= most and (scored >= ENOUGH or arguments.quick),
        )
    for model in models.values():
        model.coterie.close()
    equal, of = same_bits(folder, profile, passages[0].first(4))
    report.require("an exported checkpoint has the bits of its store", f"{equal} of {of} windows", equal == of)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
