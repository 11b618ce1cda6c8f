"""`coterie fit`: from a memory budget to the best store of a model, measured, with a card."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli import options as shared
from coterie.cli.allocation import print_allocation
from coterie.cli.console import facts_table, plain_table, print_json, print_note, print_table, results
from coterie.cli.estimates import value_and_reach
from coterie.cli.generation_options import QuietOption
from coterie.cli.listed import listed
from coterie.cli.material import ImageFilesOption, SpeechFilesOption, gather_material
from coterie.cli.opening import import_engine, quiet_terminal
from coterie.cli.progress import fit_progress
from coterie.cli.pruning_options import FitByOption, FitRankingOption, keep_option
from coterie.cli.ray_messages import without_ray_messages
from coterie.cluster.connection import check_ray
from coterie.errors import UsageError
from coterie.files.text import check_text
from coterie.spec import format_bytes, parse_bytes

if TYPE_CHECKING:
    from coterie.fitting import Fit, FitPlan
    from coterie.survey import Material

_DEFAULT = "default"


def command(
    model: shared.ModelArgument,
    store: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="STORE",
            show_default=False,
            callback=shared.new_directory,
            help="The new store. Unfinished work is kept beside it, in STORE.work.",
        ),
    ],
    memory: Annotated[
        str,
        typer.Option(
            "--memory",
            metavar="SIZE",
            show_default=False,
            help="The memory that the store is for, such as 8GiB: the ceiling for the whole process that will run it.",
        ),
    ],
    domains: Annotated[
        str | None,
        shared.domains_option(
            "Only for these domains of what is recorded, such as code,german. Experts that they hardly use are "
            "left out, and all else gets worse."
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            "--bits",
            metavar="N",
            show_default=False,
            help="Bits per weight of experts, scales counted. Default: what the memory has room for.",
        ),
    ] = None,
    keep: Annotated[str | None, keep_option("Prune the model first. ")] = None,
    by: FitByOption = None,
    ranking: FitRankingOption = None,
    context: shared.PlannedContextOption = None,
    profile: shared.ProfileOption = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            "--calibrate",
            metavar="default|DOMAIN=PATH",
            show_default=False,
            help="Texts to record a profile of and to choose codes by, as `coterie quantize` takes them. Default: "
            "those that come with Coterie. May be given several times.",
        ),
    ] = None,
    speech: SpeechFilesOption = None,
    images: ImageFilesOption = None,
    modality: Annotated[
        list[str] | None,
        shared.modality_option(
            "Bits for what this modality uses, such as text, and let others get worse. Default: all that the model "
            "takes or makes."
        ),
    ] = None,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(
            "--calibration-tokens",
            min=1,
            metavar="N",
            show_default=False,
            help="About so many tokens to record and calibrate with, the same number of each domain. Default: 65536.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            "-t",
            metavar="DOMAIN=PATH",
            show_default=False,
            help="Texts to measure the result with, which must not be among those of --calibrate. Default: a quarter "
            "of the documents of those, which is held out. May be given several times.",
        ),
    ] = None,
    exact_match: Annotated[
        list[Path] | None,
        typer.Option(
            "--exact-match",
            metavar="FILE",
            show_default=False,
            help="Questions about sounds and pictures to measure it with, as `coterie evaluate` takes them.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            metavar="TOKENS",
            show_default=False,
            help="Predict at most so many per domain. Default: 2048.",
        ),
    ] = None,
    dense_scheme: Annotated[
        str | None,
        shared.dense_scheme_option(
            "For linear layers outside experts, as `coterie extract` has it. Default: as there."
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare/--no-compare",
            help="Make a uniform store of the same size, too, measure it beside this one, and remove it.",
        ),
    ] = True,
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Measure this machine, and the speed of the store.")
    ] = True,
    work_memory: Annotated[
        str | None,
        typer.Option(
            "--work-memory",
            metavar="SIZE",
            show_default=False,
            help="Ceiling for the process while it makes and measures the store. Default: as --memory.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        shared.against_option("Compare with this model, such as the one that MODEL was pruned of. Default: MODEL."),
    ] = None,
    component: shared.ComponentOption = None,
    revision: shared.RevisionOption = None,
    offline: shared.OfflineOption = False,
    threads: shared.ThreadsOption = None,
    ray: shared.RayOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the stages, and the disk and memory of each; make nothing.")
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Discard unfinished stages that another request with this output has begun."),
    ] = False,
    keep_work: Annotated[
        bool, typer.Option("--keep-work", help="Keep STORE.work: the profile, the texts, the uniform store.")
    ] = False,
    as_json: shared.JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Makes the best store of a model for a memory, and measures what it loses.

    It records a profile, decides how many bits experts get, allocates them, calibrates codes, verifies the store, and
    evaluates it on text that was held out, beside a uniform store of the same size. The store's README.md is a card
    with all of that, and coterie-fit.json has the same for programs. It may say that there is no gain.

    With --keep experts are pruned first, and the pruned model is recorded anew. The store is then compared with a
    uniform store of all experts in the same size, and the card says what pruning alone loses.

    With --ray workers of a cluster record, choose codes and evaluate, each within --memory (or --work-memory); the
    store and the figures are the same as without.

    Ctrl-C ends it with exit code 130; the same command goes on where it was. Each stage is also a command by itself:
    profile record, prune, plan, quantize, verify, evaluate, bench.
    """
    for size, name in ((memory, "memory"), (work_memory, "work memory")):
        if size is not None:
            parse_bytes(size, what=name)  # told before torch is imported
    if ray is not None:
        check_ray("Workers of a cluster")
    named = listed(domains)
    if domains is not None and not named:
        raise UsageError("--for names no domain.", advice="Write it like code,german, or leave it out for all.")
    for path in exact_match or ():
        check_text(path)
    if profile is not None:
        from coterie.profiles.database import check_file
        from coterie.profiles.location import locate

        check_file(locate(profile), create=False)
    texts = gather_material(text, None, None, option="--text") if text else []
    import_engine(quiet=quiet or as_json)
    from coterie.calibration import DEFAULT_TOKENS
    from coterie.fitting import FitRequest, fit, plan_fit
    from coterie.fitting.request import DEFAULT_LIMIT

    request = FitRequest(
        memory=memory,
        context=context,
        bits=bits,
        keep=keep,
        by=by,
        ranking=ranking,
        domains=tuple(named),
        modalities=tuple(modality or ()),
        profile=profile,
        material=tuple(_material(calibrate, speech, images)),
        texts=tuple(texts),
        exact_match=tuple(exact_match or ()),
        limit=limit or DEFAULT_LIMIT,
        calibration_tokens=calibration_tokens or DEFAULT_TOKENS,
        dense_scheme=dense_scheme,
        compare=compare,
        measure=speed,
        work_memory=work_memory,
        against=against,
        component=component,
        revision=revision,
        offline=offline,
        threads=threads,
        ray=ray,
    )
    if dry_run:
        with quiet_terminal(quiet=quiet):
            planned = plan_fit(model, store, request)
        print_json(planned.to_json()) if as_json else _print_plan(planned)
        return
    try:
        with (
            quiet_terminal(quiet=quiet),
            nullcontext() if ray is None else without_ray_messages(),
            nullcontext(None) if quiet else fit_progress() as progress,
        ):
            found = fit(model, store, request, restart=restart, keep_work=keep_work, progress=progress)
    except KeyboardInterrupt:
        print_note("Stopped. What is finished is kept beside the output; the same command goes on from there.")
        raise
    if as_json:
        print_json(found.to_json())
    else:
        _print(found, store)


def _material(calibrate: list[str] | None, speech: list[str] | None, images: list[str] | None) -> list[Material]:
    """What the options name; the texts that come with the package if they name no texts."""
    from coterie.calibration import default_texts

    own = [one for one in calibrate or [] if one != _DEFAULT]
    material = default_texts() if not own or _DEFAULT in (calibrate or []) else []
    if own or speech or images:
        material += gather_material(own, speech, images, option="--calibrate")
    return material


def _print_plan(plan: FitPlan) -> None:
    out = results()
    out.print(f"{plan.model} for {format_bytes(plan.memory)} and a context of {plan.context:,} tokens.")
    out.print(plan.sizing.reason)
    out.print()
    table = plain_table("stage", "what", "disk", "memory", right=("disk", "memory"))
    for one in plan.stages:
        disk = "" if not one.disk_nbytes else f"{format_bytes(one.disk_nbytes)}{'' if one.kept else ', for a while'}"
        what = f"{one.what} (done)" if one.finished else one.what
        table.add_row(one.name, what, disk, format_bytes(one.memory_nbytes))
    print_table(table)
    out.print()
    out.print(f"Scored: {', '.join(f'{name} ({format_bytes(size)})' for name, size in plan.scored.items())}.")
    if plan.scored_media:
        out.print(f"Answered: {', '.join(f'{name} ({count})' for name, count in plan.scored_media.items())}.")
    if plan.not_scored:
        print_note(f"No text to score of: {', '.join(plan.not_scored)}. Add --text DOMAIN=PATH.")
    out.print(f"Unfinished work is kept in {plan.work}.")


def _print(found: Fit, store: Path) -> None:
    from coterie.fitting.card import pruned_in_words, verdict_in_words

    out = results()
    print_allocation(found.made.allocation, histogram=False)
    out.print()
    _print_losses(found)
    out.print()
    facts = facts_table()
    made = found.made.store
    if found.pruned is not None:
        facts.add_row("pruned", pruned_in_words(found.pruned))
    facts.add_row("size", found.sizing.reason)
    facts.add_row("store", f"{format_bytes(made.store_nbytes)}, {made.bits:.2f} bits per weight of experts")
    if found.speed is not None:
        speed, expected = found.speed, found.speed.expected
        said = "" if expected is None else f"; expected {expected.low:.1f} to {expected.high:.1f}"
        facts.add_row("speed", f"{speed.warm.decode_tokens_per_s:.1f} tokens/s measured{said}")
    print_table(facts)
    if found.speed_note:
        print_note(found.speed_note)
    out.print()
    out.print(verdict_in_words(found), style="green" if found.verdict == "gain" else "yellow")
    if found.advice:
        out.print(found.advice)
    out.print(f"Wrote {store}; its README.md is the card.")
    out.print(found.commands[-1])


def _print_losses(found: Fit) -> None:
    compared = found.uniform is not None
    pruned = ("pruned alone",) if found.pruned is not None else ()
    headings = ("tokens", "KLD", *pruned, *(("predicted", "uniform", "ratio") if compared else ()))
    table = plain_table("text", *headings, right=headings)
    for row in found.evaluated.figures:
        cells = [row.domain, f"{row.tokens:,}", value_and_reach(row.kld, 5)]
        if pruned:
            cells.append("–" if row.pruned is None else value_and_reach(row.pruned, 5))
        if compared:
            ratio = None if row.beside is None else row.beside.ratio
            cells += [
                "–" if row.predicted is None else f"{row.predicted:.5f}",
                "–" if row.uniform is None else value_and_reach(row.uniform, 5),
                "–" if ratio is None else f"{ratio.value:.2f}",
            ]
        table.add_row(*cells)
    print_table(table)
