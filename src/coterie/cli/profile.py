"""`coterie profile`: record, show, merge, exchange and publish what is known of a model's experts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coterie.cli.console import notes, plain_table, print_json, print_json_lines, print_note, print_table, results
from coterie.cli.files import write_text_file
from coterie.cli.options import JsonOption, ProfileArgument, ProfileModelOption
from coterie.cli.recording import record
from coterie.errors import UsageError
from coterie.files.replacing import check_writable

if TYPE_CHECKING:
    from coterie.profiles import MergeReport, Profile, ProfileSource

command = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Records, shows, merges, exchanges and publishes what is known of a model's experts.",
)
command.command("record")(record)


@command.command()
def show(profile: ProfileArgument, model: ProfileModelOption = None, as_json: JsonOption = False) -> None:
    """Shows what a profile holds: models, runs, tokens by domain and modality."""
    from coterie.profiles import Profile, ProfileDatabase

    with ProfileDatabase(profile) as database:
        identities = [database.identity(model)] if model is not None else list(database.identities())
        if not identities:
            print_note(f"Nothing was recorded in {database.name} yet.")
        profiles = [Profile.read(database, identity) for identity in identities]
        name = database.name
    if as_json:
        print_json({"schema_version": 1, "profile": name, "models": [_contents(found) for found in profiles]})
        return
    for found in profiles:
        _print_contents(found)


def _contents(profile: Profile) -> dict[str, object]:
    return {
        "identity": profile.identity,
        "model": profile.model,
        "model_class": profile.model_class,
        "tokens": profile.tokens,
        "segments": len(profile.segments),
        "domains": profile.domains,
        "modalities": profile.modalities,
        "banks": [
            {**table.shape.bank._asdict(), "experts": table.shape.experts, "top_k": table.shape.top_k}
            for table in profile.banks.values()
        ],
        "runs": [
            {name: getattr(run, name) for name in ("uuid", "started", "label", "tokenizer", "tool_version")}
            for run in profile.runs
        ],
    }


def _print_contents(profile: Profile) -> None:
    out = results()
    out.print(f"{profile.model} ({profile.model_class}), fingerprint {profile.identity}")
    experts = sum(table.shape.experts for table in profile.banks.values())
    out.print(
        f"{len(profile.runs)} runs, {len(profile.segments)} segments, {profile.tokens:,} tokens; "
        f"{len(profile.banks)} banks, {experts:,} experts"
    )
    table = plain_table("modality", "domain", "phase", "tokens", right=("tokens",))
    for group, tokens in profile.group_tokens.items():
        table.add_row(group.modality, group.domain, group.phase, f"{tokens:,}")
    print_table(table)
    out.print()


@command.command()
def merge(
    profiles: Annotated[
        list[str],
        typer.Argument(
            metavar="PROFILE...",
            show_default=False,
            help="Files or postgresql:// URLs. Without --into: into the first.",
        ),
    ],
    into: Annotated[
        str | None,
        typer.Option("--into", metavar="PROFILE", show_default=False, help="Where to; made if it is not there."),
    ] = None,
    several_models: Annotated[
        bool, typer.Option("--several-models", help="Allow profiles of different models in one database.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Merges profiles: all runs of all of them, each once.

    The order does not matter, and merging again changes nothing. Interrupted, the same command finishes it.
    """
    from contextlib import ExitStack

    from coterie.profiles import ProfileDatabase, merge

    sources = profiles if into is not None else profiles[1:]
    if not sources:
        raise UsageError("There is nothing to merge.", advice="Give a second profile, or --into NEW.")
    with ExitStack() as stack:
        opened: list[ProfileSource] = [stack.enter_context(ProfileDatabase(name)) for name in sources]
        target = stack.enter_context(
            ProfileDatabase(into if into is not None else profiles[0], create=into is not None)
        )
        with _token_progress("Merging") as progress:
            reports = merge(opened, target, several_models=several_models, progress=progress)
    _print_reports(reports, as_json)


@command.command()
def sync(
    profile: ProfileArgument,
    other: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            show_default=False,
            help="Another profile: postgresql://USER@HOST/DATABASE, a file, or http(s)://HOST that publishes one.",
        ),
    ],
    model: ProfileModelOption = None,
    direction: Annotated[
        Literal["both", "pull", "push"], typer.Option("--direction", help="What to copy; from http(s) only pull.")
    ] = "both",
    as_json: JsonOption = False,
) -> None:
    """Exchanges runs of one model between a profile and another place, both ways.

    PROFILE is made if it is not there. Only segments that the other side lacks are sent.
    """
    from coterie.profiles import ProfileDatabase, RemoteProfile, locate, sync

    location = locate(other)
    if location.kind == "http" and direction == "push":
        raise UsageError(
            f"{location.name} can only be read.", advice="Pull from it, or push to its database.", got=direction
        )
    with ProfileDatabase(profile, create=direction != "push") as local, _token_progress("Exchanging") as progress:
        if location.kind == "http":
            reports = sync(local, RemoteProfile(other), identity=model, push=False, progress=progress)
        else:
            with ProfileDatabase(other, create=direction != "pull") as remote:
                reports = sync(
                    local,
                    remote,
                    identity=model,
                    pull=direction != "push",
                    push=direction != "pull",
                    progress=progress,
                )
    _print_reports(reports, as_json)


@command.command()
def export(
    profile: Annotated[
        str | None,
        typer.Argument(metavar="PROFILE", show_default=False, help="A file, or postgresql://USER@HOST/DATABASE."),
    ] = None,
    model: ProfileModelOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", dir_okay=False, metavar="FILE", show_default=False, help="Where to. Default: stdout."
        ),
    ] = None,
    form: Annotated[
        Literal["json", "jsonl"], typer.Option("--format", help="One object, or one line per expert.")
    ] = "json",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the form instead.")] = False,
) -> None:
    """Writes what is known of every expert in a form for sharing: rates, scores and companions.

    Neither token ids nor names of files nor labels of runs are in it. In jsonl the first line is about the whole
    profile, and each further one about an expert.
    """
    from coterie.profiles import Profile, ProfileDatabase, SharedProfile, json_lines, share_profile
    from coterie.spec.json_schema import json_schema

    if output is not None:
        check_writable(output)
    if schema:
        lines = iter([json.dumps(json_schema(SharedProfile), indent=2, ensure_ascii=False)])
    elif profile is None:
        raise UsageError("A profile is needed.", advice="Give its file, or --schema for the form alone.")
    else:
        with ProfileDatabase(profile) as database:
            shared = share_profile(Profile.read(database, model), database)
        whole = json.dumps(dataclasses.asdict(shared), indent=2, ensure_ascii=False)
        lines = json_lines(shared) if form == "jsonl" else iter([whole])
    if output is None:
        print_json_lines(lines)
    else:
        write_text_file(output, lines)


@command.command()
def publish(
    profile: ProfileArgument,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, metavar="N", help="Port to listen at.")] = 8383,
    share_vocabulary: Annotated[
        bool, typer.Option("--share-vocabulary", help="Give away counts of token ids, which show what was read.")
    ] = False,
    share_labels: Annotated[bool, typer.Option("--share-labels", help="Give away labels of runs.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            show_default=False,
            help="Also answer requests for this name, which a proxy on this machine passes on.",
        ),
    ] = None,
) -> None:
    """Lets other instances ask this profile and pull from it over HTTP; nothing can be changed through it.

    GET /v1/experts?domain=code is the ranked list; /v1/models, /v1/domains, /v1/runs, /v1/segments are for
    `coterie profile sync`. There is no encryption and no password: put a proxy before it that has them. Ctrl-C ends it.
    """
    from coterie.profiles import ProfileDatabase
    from coterie.profiles.publication import serve

    with ProfileDatabase(profile) as database:
        print_note(f"{database.name} at http://{host}:{port}/v1/ (read-only). Ctrl-C ends it.")
        serve(
            database,
            host=host,
            port=port,
            share_vocabulary=share_vocabulary,
            share_labels=share_labels,
            allow_hosts=allow_host or (),
        )


@contextmanager
def _token_progress(description: str) -> Iterator[Callable[[int], None]]:
    """Shows in a terminal how many tokens' counters have been copied."""
    copied = 0
    with notes().status(f"{description} …") as status:

        def advance(tokens: int) -> None:
            nonlocal copied
            copied += tokens
            status.update(f"{description}: {copied:,} tokens")

        yield advance


def _print_reports(reports: list[MergeReport], as_json: bool) -> None:
    if as_json:
        print_json({"schema_version": 1, "copied": reports})
        return
    table = plain_table("from", "into", "runs", "segments", "there already", "tokens", right=("runs", "segments"))
    for report in reports:
        figures = (report.runs, report.segments, report.same, report.tokens)
        table.add_row(report.source, report.into, *(f"{figure:,}" for figure in figures))
    print_table(table)
