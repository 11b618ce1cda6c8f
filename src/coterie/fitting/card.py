"""A card for people: what a store was made of and for, what it loses, how fast it is, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coterie.evaluate import Estimate
from coterie.evaluate.paired import Paired
from coterie.fitting.report import DomainFigures, Fit, Pruned, TakenOut
from coterie.spec import format_bytes, format_ranges
from coterie.store.names import CARD_FOLLOWS
from coterie.survey.material import MODALITY_OF

_LEAST_TOKENS = 7_680
"""Fewer that are scored say little about so small differences."""

_RULE = "\n---\n\n"
_MADE_OF = ("base_model", "base_model_relation")
"""Keys of a card's metadata, as the Hub knows them."""


def write_card(fit: Fit, original: str | None, *, hub_id: str | None = None) -> str:
    """The card of a store, in Markdown; that of the model follows it, and its metadata, such as the licence, stay.

    Args:
        fit: What was found.
        original: The card of what the store was made of; None if there is none.
        hub_id: Id of the Hub repository that it was made of, or None.
    """
    metadata, body = _divided(original or "")
    if hub_id is not None:
        metadata = [*_without(metadata, _MADE_OF), f"base_model: {hub_id}", "base_model_relation: quantized"]
    text = "\n".join(_lines(fit)) + "\n"
    if body:
        text += f"{_RULE}{CARD_FOLLOWS}\n\n{body}\n"
    return "\n".join(["---", *metadata, "---", "", text]) if metadata else text


def _divided(card: str) -> tuple[list[str], str]:
    """The lines of a card's metadata, which are YAML between two lines of dashes, and the rest."""
    lines = card.splitlines()
    if lines and lines[0].strip() == "---" and "---" in (rest := [line.rstrip() for line in lines[1:]]):
        end = rest.index("---")
        return rest[:end], "\n".join(lines[end + 2 :]).strip()
    return [], card.strip()


def _without(metadata: Sequence[str], keys: Sequence[str]) -> Iterator[str]:
    """Metadata without some keys of the highest level and what belongs to them. All else stays as it is written."""
    kept = True
    for line in metadata:
        if line[:1] not in (" ", "-", "\t", ""):
            kept = line.partition(":")[0].strip() not in keys
        if kept:
            yield line


def _lines(fit: Fit) -> Iterator[str]:
    what = f" for {_and(fit.domains)}" if fit.domains else ""
    yield f"# {fit.model}{what}, in {format_bytes(fit.memory)}"
    yield ""
    yield (
        f"A store of [Coterie](https://pypi.org/project/coterie/) that `coterie fit` made of {fit.model} for a memory "
        f"of {format_bytes(fit.memory)} and a context of {fit.context:,} tokens. `coterie-fit.json` has all figures."
    )
    yield ""
    yield f"**{verdict_in_words(fit)}**"
    if fit.advice:
        yield ""
        yield fit.advice
    yield from _section("What it is", _what(fit))
    if fit.pruned is not None:
        yield from _section("Which experts are gone", _taken_out(fit.pruned))
    yield from _section("What it loses", _losses(fit))
    yield from _section("What it costs", _costs(fit))
    yield from _section("Made by", ["```", *fit.commands, "```", "", _versions(fit)])


def verdict_in_words(fit: Fit) -> str:
    """The verdict, with the figures that it rests on."""
    row = decisive(fit)
    measured = f"KL divergence from the full model on {_called(row.domain)}: {_interval(row.kld)} nats per token"
    if row.beside is None or fit.uniform is None:
        return f"{measured}. No uniform store was made to compare with."
    size = (
        f"a uniform store of {'the same size' if fit.pruned is None else 'all experts in the same size'}"
        if fit.uniform.same_size
        else f"the nearest uniform store ({fit.uniform.name})"
    )
    ratio = "" if row.beside.ratio is None else f" ({_ratio(row.beside.ratio)} of it)"
    than = f"{_interval(row.beside.other_kld)} for {size}{ratio}"
    said = {"gain": "Gain", "no gain": "No gain", "open": _open(row.beside)}[fit.verdict]
    return f"{said}. {measured}, {than}."


def _open(beside: Paired) -> str:
    if beside.difference.low is None:
        return "No gain is shown: there is too little text for an interval"
    return "No gain is shown: the interval of the difference has 0 in it"


def decisive(fit: Fit) -> DomainFigures:
    """The figures that the verdict goes by."""
    name = fit.evaluated.decisive
    return next(row for row in fit.evaluated.figures if row.domain == name)


def _what(fit: Fit) -> Iterator[str]:
    made, report = fit.made.store, fit.made.allocation
    revision = "" if fit.revision is None else f", revision `{fit.revision}`"
    left_out = (
        f"; {report.facts.left_out} are left out, and it opens with `--missing mask`" if report.facts.left_out else ""
    )
    by = "the energy of the domains asked for" if report.facts.domains else "what each adds on average (REAP)"
    profile = fit.profile.profile or "recorded for this store"
    rows = [
        ("made of", f"{fit.model}{revision}"),
        *([] if fit.pruned is None else [("pruned", pruned_in_words(fit.pruned))]),
        ("size", fit.sizing.reason),
        (
            "experts",
            f"{made.experts_present} of {made.experts_total}{left_out}; {made.bits:.2f} bits per weight, "
            f"{format_bytes(made.expert_nbytes)}",
        ),
        ("the store", format_bytes(made.store_nbytes)),
        ("outside experts", made.dense_scheme),
        ("bits by", f"{by}, by a profile of {_tokens(fit.profile.tokens)} tokens ({profile})"),
        ("levels", _levels(fit)),
        ("codes by", f"calibration on {_tokens(made.calibration_tokens)} tokens"),
        (
            "verified",
            f"{fit.verified.files} files, {fit.verified.experts} experts"
            + ("" if fit.verified.against is None else f", compared with {fit.verified.against}"),
        ),
    ]
    yield from _table(("", ""), rows)


def pruned_in_words(pruned: Pruned) -> str:
    """How many experts are gone, and what decided which."""
    by = {
        "reap": "what each adds on average (REAP)",
        "ean": "what each adds in all (EAN)",
        "frequency": "how often each is chosen",
    }[pruned.by]
    among = "the experts of all layers ranked together" if pruned.ranking == "global" else "each layer by itself"
    of, where = _tokens(pruned.profile.tokens), pruned.profile.profile or "recorded for this store"
    return (
        f"{pruned.gone} of {pruned.kept + pruned.gone} experts are gone: {pruned.keep} were to stay, by {by}, {among}, "
        f"in a profile of {of} tokens ({where})"
    )


def _taken_out(pruned: Pruned) -> Iterator[str]:
    yield (
        "The routers never had these experts: the others are numbered from 0 in the store, and "
        "`coterie-selection.json` has both numbers."
    )
    yield ""
    rows = [
        [_layer(bank), str(bank.kept), str(len(bank.experts)), format_ranges(bank.experts) or "–"]
        for bank in pruned.banks
    ]
    yield from _table(("layer", "experts left", "gone", "numbers of those that are gone"), rows)


def _layer(bank: TakenOut) -> str:
    return f"{bank.component} {bank.layer}" + ("" if bank.bank == "mlp" else f" {bank.bank}")


def _losses(fit: Fit) -> Iterator[str]:
    yield (
        "Mean KL divergence from the full model, in nats per token, with 95 % intervals, on text that was not "
        "calibrated on. *Predicted* is what the errors of the experts that each text uses lead to expect beside the "
        "uniform store. "
        "The ratio is paired, token by token."
    )
    yield ""
    compared = fit.uniform is not None
    headings = ["text", "tokens", "KLD", "same top token"]
    headings += ["pruned alone"] if fit.pruned is not None else []
    headings += ["predicted", "uniform", "ratio to uniform"] if compared else []
    rows = []
    for row in fit.evaluated.figures:
        cells = [row.domain, f"{row.tokens:,}", _interval(row.kld), _share(row.same_top)]
        if fit.pruned is not None:
            cells.append("–" if row.pruned is None else _interval(row.pruned))
        if compared:
            cells += [
                "–" if row.predicted is None else f"{row.predicted:.5f}",
                "–" if row.uniform is None else _interval(row.uniform),
                "–" if row.beside is None or row.beside.ratio is None else _ratio(row.beside.ratio),
            ]
        rows.append(cells)
    yield from _table(headings, rows)
    media = [row.domain for row in fit.evaluated.figures if row.kind != "text"]
    if media:
        yield ""
        yield (
            f"{_and(media)}: of sounds and pictures that were not calibrated on. The full model answered each, and the "
            "divergence is that of the predictions of its answer. *all* is of all texts."
        )
    if fit.pruned is not None:
        yield ""
        yield (
            "*Pruned alone* is the price of the experts that are gone: the pruned model with all its bits. What the "
            "store loses beyond that is the price of fewer bits."
        )
    if fit.uniform is not None:
        of = "" if fit.pruned is None else " of the model with all its experts"
        same = "of the same size" if fit.uniform.same_size else "of the nearest size that there is"
        yield ""
        bits = f"{fit.uniform.store.bits:.2f} bits per weight"
        yield f"Uniform{of}, {same}: {fit.uniform.name}; {bits}, calibrated alike."
    if fit.domains:
        apart = (*fit.domains, "all", fit.evaluated.decisive)
        others = [row.domain for row in fit.evaluated.figures if row.domain not in apart]
        if others:
            yield ""
            yield f"The store was made for {_and(fit.domains)}. What the others lose is the price of that."
    if decisive(fit).tokens < _LEAST_TOKENS:
        yield ""
        yield f"With fewer than {_LEAST_TOKENS:,} tokens small differences are uncertain: score more text."
    yield from _answers(fit)


def _answers(fit: Fit) -> Iterator[str]:
    """What is asked about sounds and pictures; and what was not measured of them."""
    found = fit.evaluated.evaluation.exact_match
    if found:
        others = {one.name: one for one in (fit.evaluated.uniform.exact_match if fit.evaluated.uniform else ())}
        yield ""
        yield "Questions that are answered rightly, to the letter:"
        yield ""
        rows = []
        for one in found:
            other = others.get(one.name)
            rows.append(
                [
                    one.name,
                    str(one.questions),
                    _share(one.right),
                    "–" if one.full_right is None else _share(one.full_right),
                    "–" if other is None else _share(other.right),
                ]
            )
        yield from _table(("questions", "number", "store", "full model", "uniform"), rows)
    measured = {"text", *(MODALITY_OF[row.kind] for row in fit.evaluated.figures)}
    lacking = sorted({name.split(" of ")[0] for name in fit.profile.tokens} - measured)
    if lacking and not found:
        yield ""
        yield (
            f"Not measured: {', '.join(lacking)}. `--speech` and `--images` take several sounds and pictures, of which "
            "some are held out; `--exact-match` takes questions about them."
        )


def _costs(fit: Fit) -> Iterator[str]:
    asked = sum(one.allocation.asked_nbytes for one in fit.made.allocation.components)
    uniform = None if fit.uniform is None else fit.uniform.asked_nbytes
    rows = [
        (
            "bytes of experts that a token asks for",
            format_bytes(asked),
            "–" if uniform is None else format_bytes(round(uniform)),
        )
    ]
    yield from _table(("", "store", "uniform"), rows)
    if fit.speed is None:
        yield ""
        yield fit.speed_note or "Speed was not measured."
        return
    speed, rate = fit.speed, fit.speed.hit_rate
    expected = speed.expected
    yield ""
    yield (
        f"In {format_bytes(fit.memory)}, {speed.share:.0%} of the experts fit; hit rate by {rate.grade} "
        f"{rate.rate.low:.0%} to {rate.rate.high:.0%}."
    )
    yield ""
    yield from _table(
        ("tokens per second", "expected", "first answer", "second answer"),
        [
            (
                "decoding",
                "not known" if expected is None else f"{expected.low:.1f} to {expected.high:.1f}",
                f"{speed.cold.decode_tokens_per_s:.1f}",
                f"{speed.warm.decode_tokens_per_s:.1f}",
            )
        ],
    )


def _levels(fit: Fit) -> str:
    counts: dict[str, int] = {}
    for one in fit.made.allocation.matrices:
        for scheme, count in one.levels.items():
            counts[scheme] = counts.get(scheme, 0) + count
    listed = [f"{count:,} in {scheme}" for scheme, count in sorted(counts.items())]
    return f"of the experts' matrices {_and(listed)}"


def _section(title: str, lines: Sequence[str] | Iterator[str]) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""
    yield from lines


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|" + "---|" * len(headings)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _interval(value: Estimate) -> str:
    if value.low is None or value.high is None:
        return f"{value.value:.5f}"
    return f"{value.value:.5f} ± {(value.high - value.low) / 2:.5f}"


def _ratio(value: Estimate) -> str:
    if value.low is None or value.high is None:
        return f"{value.value:.2f} ×"
    return f"{value.value:.2f} × ({value.low:.2f} to {value.high:.2f})"


def _share(value: Estimate | None) -> str:
    return "–" if value is None else f"{100 * value.value:.1f} %"


def _tokens(counts: object) -> str:
    assert isinstance(counts, dict), "a count for each"
    return f"{sum(counts.values()):,}"


def _called(domain: str) -> str:
    return "all texts" if domain == "all" else domain


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def _versions(fit: Fit) -> str:
    return "Versions: " + ", ".join(f"{name} {value}" for name, value in fit.versions.items()) + "."
