"""`coterie profile record`: run a model over files and count what its experts do."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli import options as shared
from coterie.cli.console import plain_table, print_json, print_note, print_table, print_warning
from coterie.cli.generation_options import QuietOption
from coterie.cli.interrupts import EXIT_INTERRUPTED, ctrl_c_requests_stop
from coterie.cli.material import ImageFilesOption, SpeechFilesOption, gather_material
from coterie.cli.opening import import_engine, open_model, opens_model, quiet_terminal, remote_model
from coterie.cli.progress import work_progress
from coterie.cli.ray_messages import without_ray_messages
from coterie.spec import DEFAULT_LABEL
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from coterie.cluster.workers import RemoteModel
    from coterie.generation.opened import OpenModel
    from coterie.survey import Survey


@opens_model(without=("prefetch", "profile", "warm", "pin", "drop_cold", "verify_reads"))
def record(
    model: shared.ModelArgument,
    profile: Annotated[
        str,
        typer.Option(
            "--db",
            "-o",
            metavar="DB",
            show_default=False,
            help="The profile: a file, which is made if it is not there, or postgresql://USER@HOST/DATABASE.",
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            "-t",
            metavar="DOMAIN=PATH",
            show_default=False,
            help="UTF-8 texts of a domain, such as code=src: a file, a directory with all below it, or a pattern in "
            "quotes. May be given several times.",
        ),
    ] = None,
    speech: SpeechFilesOption = None,
    images: ImageFilesOption = None,
    label: Annotated[
        str, typer.Option("--label", metavar="TEXT", help="Names the run; one of this label goes on where it was.")
    ] = DEFAULT_LABEL,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            min=1,
            metavar="TOKENS",
            show_default=False,
            help="Tokens of a text that are computed together. Default: 512, or what the model was made for if less.",
        ),
    ] = None,
    max_tokens_per_file: Annotated[
        int | None,
        typer.Option(
            "--max-tokens-per-file", min=1, metavar="TOKENS", show_default=False, help="Read no more of each text."
        ),
    ] = None,
    contributions: Annotated[
        bool,
        typer.Option(
            "--contributions/--no-contributions",
            help="Measure what experts add to their layers' output, for REAP scores and trust.",
        ),
    ] = True,
    vocabulary: Annotated[
        int,
        typer.Option(
            "--vocabulary", min=0, metavar="N", help="Input tokens kept per expert; 0 keeps no trace of what was read."
        ),
    ] = 64,
    segment_tokens: Annotated[
        int | None,
        typer.Option(
            "--segment-tokens",
            min=1,
            metavar="TOKENS",
            show_default=False,
            help="Tokens of a segment, of which any finding takes four. Default: as many as give each domain about 32 "
            "segments, and 1024 at most.",
        ),
    ] = None,
    several_models: Annotated[
        bool, typer.Option("--several-models", help="Allow a profile that is about other models, too.")
    ] = False,
    *,
    opening: Opening,
    ray: shared.RayOption = None,
    as_json: shared.JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Runs a model over texts, sounds and pictures, and records what every expert does.

    How far each file has come is kept in the profile. Killed, or stopped with Ctrl-C (exit code 130), the same command
    goes on where it was; more files may be added to it. A file that was recorded under a label is not recorded again
    under that label. Of a whole omni model the thinker is recorded.

    With --ray each worker opens the model and reads some of the material; the profile is the same as without.
    """
    if opening.max_context is None and context is not None:
        opening = replace(opening, max_context=max(context, 4096))
    remote = remote_model(model, opening, ray)
    material = gather_material(text, speech, images, option="--text")
    import_engine(quiet=quiet or as_json)
    from coterie.survey import WorkDone, survey, without_repetitions

    files = without_repetitions(material)
    total = sum(one.work for one in files)
    work = WorkDone(files)
    with ExitStack() as stack:
        if remote is None:
            which: OpenModel | RemoteModel = stack.enter_context(open_model(model, opening, quiet=quiet))
        else:
            stack.enter_context(quiet_terminal(quiet=quiet))
            stack.enter_context(without_ray_messages())
            which = remote
        pressed = stack.enter_context(ctrl_c_requests_stop())
        shown = nullcontext(lambda amount: None) if quiet else work_progress("Recording", total)
        with shown as progress:
            found = survey(
                which,
                profile,
                material,
                label=label,
                context=context,
                limit=max_tokens_per_file,
                contributions=contributions,
                vocabulary=vocabulary,
                segment_tokens=segment_tokens,
                several_models=several_models,
                should_stop=pressed,
                progress=lambda nbytes: progress(work.add(nbytes)),
            )
    _print(found, as_json=as_json, quiet=quiet)
    if found.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def _print(found: Survey, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        tokens = [{**group._asdict(), "tokens": tokens} for group, tokens in found.tokens]
        few = [{**group._asdict(), "segments": segments} for group, segments in found.too_few]
        facts: dict[str, object] = {name: getattr(found, name) for name in found.__slots__}
        print_json(facts | {"tokens": tokens, "too_few": few})
        return
    table = plain_table("modality", "domain", "phase", "tokens", right=("tokens",))
    for group, count in found.tokens:
        table.add_row(group.modality, group.domain, group.phase, f"{count:,}")
    if found.tokens:
        print_table(table)
    if quiet:
        return
    if found.interrupted:
        print_note(f"Stopped: {found.finished} of {found.files} files are recorded. The same command goes on.")
    elif not found.tokens:
        print_note(f"All of it is recorded under the label {found.label!r} already. --label NAME begins another run.")
    else:
        print_note(f"{found.profile}: run {found.run}, {found.finished} of {found.files} files.")
    if not found.interrupted:
        _warn_of_few_segments(found)


def _warn_of_few_segments(found: Survey) -> None:
    from coterie.profiles.inference import LEAST_BLOCKS, LEAST_SEGMENTS

    names = [f"{group.modality} of {group.domain} ({segments})" for group, segments in found.too_few]
    if names:
        print_warning(
            f"Too few segments for much to be said of: {', '.join(names)}. Findings take at least {LEAST_BLOCKS} of a "
            f"domain or modality, and the report {LEAST_SEGMENTS}. Record more files, or record these again into a new "
            "profile with fewer tokens in a segment: --segment-tokens 64, or less for pictures and sounds."
        )
