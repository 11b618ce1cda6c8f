"""`coterie plan`: will a model run here, how fast, and what would make it faster?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.console import notes, print_json
from coterie.cli.listed import listed
from coterie.cli.opening import quiet_terminal
from coterie.cli.options import (
    ComponentOption,
    ExpertsPerTokenOption,
    GroupOption,
    JsonOption,
    ModelArgument,
    OfflineOption,
    PlannedContextOption,
    ProfiledEvictionOption,
    ProfileOption,
    RevisionOption,
    dense_scheme_option,
    domains_option,
    known_scheme,
)
from coterie.files.text import prompt_or_file
from coterie.spec import DEFAULT_POLICY, parse_bytes
from coterie.spec.defaults import PLANNED_ANSWER_TOKENS, PLANNED_PROMPT_TOKENS
from coterie.spec.scheme_names import with_group

if TYPE_CHECKING:
    from coterie.planner import Plan


def command(
    model: ModelArgument,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            show_default=False,
            help="A ceiling for the whole process, such as 8GiB. Several are shown as a table. Default: what this "
            "machine allows.",
        ),
    ] = None,
    context: PlannedContextOption = None,
    disk: Annotated[
        Path | None,
        typer.Option(
            "--disk",
            metavar="PATH",
            show_default=False,
            help="A directory on the disk where the store would lie. Default: where the model lies, or the current "
            "directory.",
        ),
    ] = None,
    component: ComponentOption = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            callback=known_scheme,
            metavar="SCHEME",
            show_default=False,
            help="Of a checkpoint: plan for a store whose experts are in this scheme, as `coterie extract` takes it.",
        ),
    ] = None,
    group: GroupOption = None,
    dense_scheme: Annotated[
        str | None,
        dense_scheme_option("The same of linear layers outside experts; as `coterie extract` takes it."),
    ] = None,
    experts_per_token: ExpertsPerTokenOption = None,
    eviction: ProfiledEvictionOption = DEFAULT_POLICY,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=1, metavar="N", help="Tokens of the prompt that times are for.")
    ] = PLANNED_PROMPT_TOKENS,
    answer_tokens: Annotated[
        int,
        typer.Option("--answer-tokens", min=1, metavar="N", help="Tokens of the answer; 270 are about 200 words."),
    ] = PLANNED_ANSWER_TOKENS,
    probe: Annotated[
        str | None,
        typer.Option(
            "--probe",
            metavar="TEXT|FILE",
            show_default=False,
            help="A text of yours, or a UTF-8 file that it is in. Its first 128 tokens go through the model, which has "
            "to be on this machine, and their routing is replayed for every budget.",
        ),
    ] = None,
    profile: ProfileOption = None,
    domains: Annotated[
        str | None,
        domains_option(
            "With --profile: forecast hits for these domains of it, such as code,german, and say how much memory "
            "each needs. Default: all of which enough was recorded."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure nothing, and say nothing about speed.")] = False,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Says whether a model will run here, how fast, and what would make it faster, before it is downloaded.

    It reads manifests and headers, of the Hub, too, and no weights. Memory is what opening the model takes. Everything
    that is a forecast is given as a range, and the hit rate says what it rests on: law (dimensions alone), known model
    (routing that was recorded from this model), profile (what was recorded of your domains) or probe (routing of your
    own text).

    Speed follows from what is measured here: reads of the disk, with a temporary file of 128 MiB, and products of
    matrices. The exit code is 1 if the model will not run in any of the budgets.
    """
    from coterie.eviction import check_policy

    for budget in memory or ():
        parse_bytes(budget, what="memory")  # told before torch is imported, as the next
    check_policy(eviction, profile=profile is not None)
    text = None if probe is None else prompt_or_file(probe)
    with notes().status("starting") as status, quiet_terminal():
        from coterie.cli.plan_pages import print_plan
        from coterie.planner import plan

        found = plan(
            model,
            memory=memory,
            context=context,
            disk=disk,
            component=component,
            scheme=with_group(scheme, group),
            dense_scheme=dense_scheme,
            experts_per_token=experts_per_token,
            eviction=eviction,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            probe=text,
            profile=profile,
            domains=listed(domains),
            measure=not quick,
            revision=revision,
            offline=offline,
            tell=lambda line: status.update(line),
        )
    if as_json:
        print_json(found.to_json())
    else:
        print_plan(found)
    if not _runs(found):
        raise typer.Exit(1)


def _runs(plan: Plan) -> bool:
    return any(one.why_not is None for one in plan.budgets)
