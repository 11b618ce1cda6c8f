"""Bits allocated to experts by a profile against the same bits for all: how far from the full model, at equal size.

The evaluation texts are cut into documents. Some decide: a profile is recorded on them, and codes are calibrated on
them. The others are scored (see harness/held_out.py), in windows of 256 tokens. The ratio of two stores' mean
divergence is paired: both are scored on the same windows, and its interval comes from leaving out one window after the
other (jackknife).

An allocation has the bits per weight of the uniform store that it is compared with, to the byte or below: those of
int4, of int3, and of int3 in half of the experts, drawn at random, with int2 in the others. All stores have calibrated
codes, but where a row says otherwise. The bundled model's `down` matrices have rows of 96, and so groups of 32: int4
takes 4.67 bits of it. Where groups of 64 and of 96 were possible it would be 4.44, and so on.

An allocation for code leaves experts out. That store is opened with `missing="mask"`.

Nothing here depends on the machine's speed.

    python benchmarks/bench_allocation.py [--text dialogue=FILE]
"""

from __future__ import annotations

import random
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie import Allocation, load, quantize
from coterie.calibration import DEFAULT_TOKENS, Calibration
from coterie.extraction import AllocationReport
from coterie.hf.tokenizer import load_tokenizer
from coterie.origins import CheckpointOrigin
from coterie.profiles import Usage
from coterie.spec.parameters import weight_count
from coterie.store import Store
from coterie.survey import Material, gather, survey
from harness.held_out import ratio, split_into
from harness.options import options
from harness.report import Report
from perplexity import Passage, compare, read_passage, text_files

MOST = {"int4": 0.0010, "int3": 0.0040, "int2 and int3": 0.0100}
"""Uniform scheme → the mean divergence that an allocation of its size must not exceed."""

NAMED = {"int4": 4.44, "int3": 3.44, "int2 and int3": 2.94}
"""Uniform scheme → bits per weight in whole groups of 64 and 96."""

MOST_FOR_CODE = 0.35
"""Of a uniform store's divergence on code, what an allocation of its size for code may have."""

LEAST_TOKENS = 18_000
"""That are scored."""

WINDOWS = 15
MEMORY = "64MiB"
"""All experts fit: what is measured is the store, not the cache."""


@dataclass
class Scored:
    """A store and what it was measured to be.

    Attributes:
        store: Its directory.
        bits: Bits per weight of experts, scales counted.
        asked: Bytes of experts that a token asks for.
        windows: Domain → mean divergence of each window.
    """

    store: Path
    bits: float
    asked: int | None = None
    windows: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def every(self) -> NDArray[np.float64]:
        """All windows."""
        return np.concatenate([*self.windows.values()])


class Stores:
    """Makes stores of the bundled model's thinker.

    Args:
        folder: Where.
        profile: The model's profile.
        calibration: What codes are chosen by.
    """

    def __init__(self, folder: Path, profile: Path, calibration: Calibration) -> None:
        self._folder = folder
        self._profile = profile
        self._calibration = calibration
        self.made: dict[str, Scored] = {}

    def uniform(self, scheme: str) -> None:
        """A scheme for all experts, or each of two for half of them."""
        one, _, other = scheme.partition(" and ")
        self._make(scheme, scheme=one) if not other else self._make(scheme, expert_schemes=_halves(one, other))

    def allocated(self, name: str, like: str, *, calibrated: bool = True, **asked: Any) -> None:
        """An allocation of the size of another store."""
        allocation = Allocation(bits=self.made[like].bits, profile=self._profile, modalities=("text",), **asked)
        self._make(name, calibrated=calibrated, allocation=allocation)

    def _make(self, name: str, *, calibrated: bool = True, **how: Any) -> None:
        print(f"making {name}", file=sys.stderr, flush=True)
        store = self._folder / name.replace(" ", "-").replace(",", "")
        made = quantize("bundled", store, **how, calibration=self._calibration if calibrated else None)
        bits = _bits(store) if made.allocation is None else made.allocation.bits
        self.made[name] = Scored(store, bits, _asked(made.allocation))


def _halves(one: str, other: str) -> dict[str, Any]:
    draw = random.Random(1)
    keys = sorted(map(str, CheckpointOrigin.open("bundled").keys()))
    draw.shuffle(keys)
    return {"schema_version": 1, "rest": other, "experts": dict.fromkeys(keys[::2], one)}


def _bits(path: Path) -> float:
    """Bits per weight of a store's experts, scales counted, padding not."""
    store = Store.open(path)
    layouts = [store.layout(key) for key in store.keys()]
    return 8 * sum(one.payload_nbytes for one in layouts) / sum(map(weight_count, layouts))


def _asked(report: AllocationReport | None) -> int | None:
    return None if report is None else report.components[0].allocation.asked_nbytes


def record(profile: Path, material: list[Material]) -> int:
    """Records a profile of the full model, or goes on with it; returns the tokens recorded."""
    model = load("bundled", component="thinker", expert_memory=MEMORY)
    try:
        survey(model, profile, material, context=256)
    finally:
        model.coterie.close()
    return max(int(bank.tokens.sum()) for bank in Usage.open(profile).banks.values())


def score_all(stores: dict[str, Scored], passages: list[Passage]) -> None:
    """Scores every store beside the full model."""
    full = load("bundled", component="thinker", expert_memory=MEMORY)
    models = {
        name: load(one.store, component="thinker", expert_memory=MEMORY, missing="mask") for name, one in stores.items()
    }
    try:
        for passage in passages:
            print(f"{passage.text.name}: {len(passage.windows)} windows", file=sys.stderr, flush=True)
            for name, scores in compare(full, models, passage).items():
                assert scores.kld is not None, "every model was compared"
                stores[name].windows[passage.text.name] = scores.kld.reshape(len(passage.windows), -1).mean(axis=1)
    finally:
        for model in (full, *models.values()):
            model.coterie.close()


def main() -> int:
    """Measures and reports; exit status 1 if something that must hold does not."""
    parser = options(__doc__)
    parser.add_argument("--text", action="append", default=[], metavar="DOMAIN=FILE", help="a further text")
    parser.add_argument("--memory", default="2GiB", help="budget of the calibration (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with what an interrupted run has made")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of each text, at most (%(default)s)")
    arguments = parser.parse_args()
    report = Report("allocation", "Allocated bits", work=arguments.work_dir, quick=arguments.quick)
    folder = arguments.work_dir / "allocation"
    if not arguments.resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {domain: split_into(path, folder, domain) for domain, path in text_files(arguments.text).items()}
    material = [one for domain, (own, _) in texts.items() for one in gather("text", domain, own)]
    calibration = Calibration(
        material=material, tokens=4_000 if arguments.quick else DEFAULT_TOKENS, memory=arguments.memory
    )
    recorded = record(folder / "profile.db", material)
    stores = Stores(folder, folder / "profile.db", calibration)
    for uniform in MOST:
        stores.uniform(uniform)
        stores.allocated(f"allocated as {uniform}", uniform)
    stores.allocated("allocated as int3, to nearest", "int3", calibrated=False)
    stores.allocated("allocated for code", "int2 and int3", domains=("code",))
    full = load("bundled", component="thinker", expert_memory=MEMORY)
    tokenizer = load_tokenizer(full.coterie.source.directory)
    full.coterie.close()
    windows = 2 if arguments.quick else arguments.windows
    score_all(stores.made, [read_passage(tokenizer, domain, scored, windows) for domain, (_, scored) in texts.items()])
    tabulate(report, stores.made, list(texts), recorded, windows)
    status = report.finish()
    shutil.rmtree(folder)
    return status


def tabulate(report: Report, stores: dict[str, Scored], domains: list[str], recorded: int, windows: int) -> None:
    """The table and the verdicts."""
    tokens = 255 * len(stores["int4"].every)
    table = report.table(
        f"The bundled model over {tokens:,} predicted tokens of documents that neither the profile ({recorded:,} "
        "tokens) nor calibration saw; mean KLD, and its ratio to that of the uniform store of the same size, with 95 % "
        "intervals. Windows worse: those in which the uniform store is nearer to the full model.",
        ("experts", "bits per weight", "KLD", "ratio", "windows worse", "asked per token", *domains),
    )
    for name, one in stores.items():
        base = next((stores[uniform] for uniform in MOST if name.startswith(f"allocated as {uniform}")), None)
        base = stores["int2 and int3"] if name == "allocated for code" else base
        value = ratio(one.every, base.every) if base is not None else None
        table.rows.append(
            (
                name,
                f"{one.bits:.2f}",
                f"{one.every.mean():.5f}",
                "" if value is None else f"{value[0]:.3f} ± {value[1]:.3f}",
                "" if base is None else f"{int((one.every > base.every).sum())} of {len(one.every)}",
                "" if one.asked is None else f"{one.asked / 2**10:.0f} KiB",
                *(f"{one.windows[domain].mean():.5f}" for domain in domains),
            )
        )
        report.values[name] = {
            "kld": float(one.every.mean()),
            "ratio": value,
            "bits": one.bits,
            "tokens": tokens,
            "domains": {domain: float(one.windows[domain].mean()) for domain in domains},
        }
    for uniform, most in MOST.items():
        one, base = stores[f"allocated as {uniform}"], stores[uniform]
        kld = float(one.every.mean())
        report.require(
            f"allocated as {uniform} ({NAMED[uniform]}): mean KLD at most {most:.4f}", f"{kld:.5f}", kld <= most
        )
        worse = [domain for domain in domains if one.windows[domain].mean() > base.windows[domain].mean()]
        report.require(f"allocated as {uniform}: no domain worse than uniform", ", ".join(worse) or "none", not worse)
    value, half = ratio(stores["allocated for code"].windows["code"], stores["int2 and int3"].windows["code"])
    requirement = f"allocated for code (2.94): at most {MOST_FOR_CODE} × as far as uniform on code"
    report.require(requirement, f"{value:.3f} ± {half:.3f}", value <= MOST_FOR_CODE)
    report.require(f"at least {LEAST_TOKENS:,} tokens", f"{tokens:,}", tokens >= LEAST_TOKENS or windows < WINDOWS)


if __name__ == "__main__":
    sys.exit(main())
