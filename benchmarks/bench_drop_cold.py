"""Leaving out light experts that are not in memory: what it costs and saves, token by token.

In decode order and under a memory that holds a part of the experts, `--drop-cold TAU` leaves out an expert that would
have to be read if its gate weight is below TAU times the token's highest. What is left out depends on what was read
before, so texts are computed one token at a time, one after the other, and the cache goes from one to the next. The
reference is the same model with all experts, also token by token: a divergence is that of leaving out alone.

Two ways are compared: the weights of the experts that stay are as the router gave them (*as they are*, which is what
the option does), or they are scaled so that their sum is unchanged (*scaled*, as `--adapt-experts` does where it leaves
out the lightest experts whether or not they are in memory).

Bytes are those read from the store or checkpoint, whatever the disk: nothing here depends on the machine's speed. They
are not the bytes of the experts that were left out: what is read serves later tokens, too.

    python benchmarks/bench_drop_cold.py [--windows 15] [--memory 25% 50%]
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from coterie import load
from coterie.evaluate import Quality, Reads, TokenScores, predict_in_steps, score
from coterie.hf.tokenizer import load_tokenizer
from coterie.passes.current import current
from coterie.routing import Routed, leave_out, light_choices
from coterie.spec import BankKey
from harness.options import options
from harness.report import Report
from perplexity import Passage, read_passage, summarise, text_files

SHARES = (0.02, 0.05, 0.1, 0.25)
SCALED = (0.05,)
"""Of these, those that are also measured the other way."""
WINDOWS = 15
"""Windows of 255 predictions of each text: 19,125 of the five texts."""
SAVED, KLD = 0.4, 0.0005
"""Required of some share, at the first of the memories."""


class Scaled:
    """As the option does it, but the weights of a token's other experts take over what is left out.

    Args:
        runtime: Of the model.
        share: Of a token's highest gate weight.
    """

    def __init__(self, runtime: Any, share: float) -> None:
        self._cache = runtime.cache
        self._share = share

    def __call__(self, bank: BankKey, routed: Routed, none: int) -> Routed:
        """What is left of a router's choice for one token."""
        if not current().decode:
            return routed
        light = light_choices(routed.ids, routed.weights, none=none, min_gate=self._share)
        cold = {key.expert for key in self._cache.to_read(map(bank.expert, routed.ids[light].tolist()))}
        light &= light.new_tensor([[expert in cold for expert in row] for row in routed.ids.tolist()])
        return Routed(*leave_out(routed.ids, routed.weights, light, none), routed.absent) if light.any() else routed

    def most(self, component: str) -> None:
        """Nothing is said about it."""


@dataclass(slots=True)
class Measured:
    """What a way costs and saves."""

    quality: Quality
    reads: Reads


@contextmanager
def opened(memory: str, share: float | None, *, scaled: bool, threads: int) -> Iterator[Any]:
    """The bundled model, with experts left out in one of the two ways."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The experts have")
        model = load(
            "bundled", component="thinker", expert_memory=memory, prefetch="off", threads=threads,
            drop_cold=None if scaled else share,
        )  # fmt: skip
    with model:
        if scaled and share is not None:
            with model.coterie.limit_experts(Scaled(model.coterie, share)):
                yield model
        else:
            yield model


def run(model: Any, passages: Sequence[Passage]) -> Iterator[list[Tensor]]:
    """Logits of each passage's windows, in order."""
    for passage in passages:
        yield [predict_in_steps(model, passage.text, window) for window in passage.windows]


def compare(model: Any, passages: Sequence[Passage], full: Sequence[Sequence[Tensor]], name: str) -> Measured:
    """A model against the full one's logits."""
    before = model.coterie.stats()
    scores = []
    for passage, logits, expected in zip(passages, run(model, passages), full, strict=True):
        windows = zip(passage.windows, logits, expected, strict=True)
        scores.append(
            TokenScores.join([score(ours, passage.text.ids[w.predicted], theirs) for w, ours, theirs in windows])
        )
    tokens = sum(len(part.loss) for part in scores)
    return Measured(summarise(name, scores, passages), Reads.between(before, model.coterie.stats(), tokens))


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--text", action="append", default=[], metavar="DOMAIN=FILE", help="one more text to measure")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="windows of each text (%(default)s)")
    parser.add_argument("--memory", nargs="+", default=["25%", "50%"], help="expert memory (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    given.work_dir.mkdir(parents=True, exist_ok=True)
    report = Report("drop_cold", "Leaving out light experts that are not in memory", work=given.work_dir,
                    quick=given.quick)  # fmt: skip
    files = text_files(given.text)
    shares: Sequence[float] = SHARES
    if given.quick:
        files, shares, given.windows, given.memory = dict(list(files.items())[:1]), (0.05, 0.25), 1, given.memory[:1]
    with opened("100%", None, scaled=False, threads=given.threads) as model:
        tokenizer = load_tokenizer(model.coterie.source.directory)
        passages = [read_passage(tokenizer, domain, path, given.windows) for domain, path in files.items()]
        full = list(run(model, passages))
        layers, k = len(model.coterie.banks), model.coterie.expert_banks[0].choices
    best = ""
    for memory in given.memory:
        found: dict[tuple[float | None, bool], Measured] = {}
        scaled_too = SCALED if memory == given.memory[0] else ()
        for share, scaled in [(None, False), *((s, False) for s in shares), *((s, True) for s in scaled_too)]:
            name = f"{memory}, {share}, {'scaled' if scaled else 'as they are'}"
            print(name, file=sys.stderr, flush=True)
            with opened(memory, share, scaled=scaled, threads=given.threads) as model:
                one = found[share, scaled] = compare(model, passages, full, name)
            report.values[name] = {"reads": asdict(one.reads), **asdict(one.quality)}
        everything = found[None, False].reads
        table = report.table(
            f"The bundled model, {layers} layers, {k} experts per token, room for {memory} of the experts; "
            f"{everything.tokens:,} predicted tokens of {len(passages)} texts:",
            ("TAU", "KiB read per token", "saved", "left out per token", "KLD", "99 %", "same-top",
             *(("scaled: saved", "scaled: KLD") if scaled_too else ())),
        )  # fmt: skip
        blank = ("", "") if scaled_too else ()
        table.rows.append(
            ("–", f"{everything.bytes_per_token / 1024:.0f}", "", "", *_quality(found[None, False]), *blank)
        )
        for share in shares:
            one = found[share, False]
            saved, scaled_figures = _saved(one, everything), blank
            if (other := found.get((share, True))) is not None:
                scaled_figures = (f"{_saved(other, everything):.0%}", _quality(other)[0])
            left_out = f"{one.reads.left_out / one.reads.tokens:.2f}"
            figures = (f"{one.reads.bytes_per_token / 1024:.0f}", f"{saved:.0%}", left_out, *_quality(one))
            table.rows.append((f"{share:g}", *figures, *scaled_figures))
            kld = _kld(one).value
            if memory == given.memory[0] and kld <= KLD and saved >= SAVED:
                best = f"TAU {share:g}: {saved:.0%} fewer for {kld:.5f}"
    report.require(
        f"room for {given.memory[0]}: at some TAU at least {SAVED:.0%} fewer bytes for a KLD of at most {KLD}",
        best or "at none", bool(best),
    )  # fmt: skip
    return report.finish()


def _saved(one: Measured, everything: Reads) -> float:
    """Share of the bytes that were not read."""
    return 1 - one.reads.bytes_per_token / everything.bytes_per_token


def _kld(one: Measured) -> Any:
    assert one.quality.comparison is not None, "every way was compared"
    return one.quality.comparison.kld


def _quality(one: Measured) -> tuple[str, str, str]:
    compared = one.quality.comparison
    assert compared is not None, "every way was compared"
    kld = compared.kld
    reach = "" if kld.high is None or kld.low is None else f" ± {max(kld.high - kld.value, kld.value - kld.low):.5f}"
    return f"{kld.value:.5f}{reach}", f"{compared.kld_p99:.4f}", f"{compared.same_top.value:.2%}"


if __name__ == "__main__":
    sys.exit(main())
