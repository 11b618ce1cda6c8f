"""`coterie replay`: what each eviction policy would have made of recorded routing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coterie.cli.console import plain_table, print_json, print_note, print_table, results
from coterie.cli.options import JsonOption, ProfileDomainOption, ProfileOption
from coterie.cli.progress import count_progress
from coterie.errors import UsageError
from coterie.spec import format_bytes, parse_bytes

if TYPE_CHECKING:
    from coterie.eviction import RecordedTrace, ReplayReport
    from coterie.spec import ExpertKey


def command(
    traces: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRACE...", show_default=False, help="What `coterie generate --record-trace` wrote, one or several."
        ),
    ],
    capacity: Annotated[
        str,
        typer.Option(
            "--capacity", metavar="LIST", help="Shares of all experts; or sizes such as 2GiB, with --expert-bytes."
        ),
    ] = "12.5%,25%,50%",
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="LIST",
            show_default=False,
            help="Policies, such as markov,lru. Default: all; trust only with --profile.",
        ),
    ] = None,
    profile: ProfileOption = None,
    domain: ProfileDomainOption = None,
    scope: Annotated[
        Literal["global", "layer"] | None,
        typer.Option(
            "--scope",
            show_default=False,
            help="One capacity for all layers, as the cache has it, or an even share for each. Default: both.",
        ),
    ] = None,
    expert_bytes: Annotated[
        str | None,
        typer.Option(
            "--expert-bytes", metavar="SIZE", show_default=False, help="Size of an expert, for bytes read per token."
        ),
    ] = None,
    phase: Annotated[
        Literal["decode", "all"], typer.Option("--phase", help="Replay decoding alone, or prefills too, as scans.")
    ] = "decode",
    as_json: JsonOption = False,
) -> None:
    """Replays recorded routing through the eviction policies, from an empty cache, and prints their hit rates.

    Beside them stand Belady's optimum, which knows the future, the share of the gap between lru and it that a policy
    closes, and the compulsory bound: every expert must be read once. With a profile of the model, trust is replayed
    too; a profile that knows the text of the trace flatters it. The knee is the point of lru's curve of hit rate
    over capacity (16 capacities, one for all layers) that is farthest above the straight line between its ends, both
    axes scaled to 1 (Satopää and others: Kneedle, 2011): more room than that buys less and less.

    A trace is also read from a plain npz with expert_ids [tokens, layers, k], sequence_lengths and num_experts.
    """
    from coterie.eviction import POLICY_NAMES, TRUST, check_policy, read_trace, replay, simulations
    from coterie.eviction.replay import SCOPES

    nbytes = None if expert_bytes is None else parse_bytes(expert_bytes, what="size of an expert")
    names: tuple[str, ...] = POLICY_NAMES if profile is None else (*POLICY_NAMES, TRUST)
    if policy is not None:
        names = tuple(name.strip() for name in policy.split(","))
    for name in names:
        check_policy(name, profile=profile is not None)
    if profile is None and domain is not None:
        raise UsageError("--domain chooses within --profile, which was not given.", advice="Add --profile PROFILE.")
    scopes = SCOPES if scope is None else (scope,)
    reports = []
    for path in traces:
        trace = read_trace(path, phase=phase)
        sizes = _capacities(capacity, trace, nbytes)
        with count_progress(trace.name, simulations(sizes, names, scopes)) as advance:
            report = replay(
                trace,
                sizes,
                policies=names,
                scopes=scopes,
                expert_nbytes=nbytes,
                expected=None if profile is None else _expected(trace, profile, domain),
                progress=advance,
            )
        reports.append(report)
        if not trace.experts_known:
            print_note(f"{trace.name} does not say how many experts there are; {trace.experts} is what its ids show.")
        if not as_json:
            _print_report(reports[-1])
    if as_json:
        print_json({"schema_version": 1, "replays": reports})


def _expected(trace: RecordedTrace, profile: str, domain: str | None) -> dict[ExpertKey, float]:
    """Uses per token of every expert, as a profile of the trace's model has them."""
    from coterie.profiles import Usage

    usage = Usage.open(profile, trace.identity)
    strange = {key.bank_key for group in trace.groups for key in group.keys} - usage.banks.keys()
    if strange:
        raise UsageError(
            f"{profile} does not know {min(strange)} of {trace.name}: it is of another model.",
            advice="Give the profile of the model that the trace was recorded with.",
            got=str(min(strange)),
        )
    return usage.expected(domain=domain).values()


def _capacities(text: str, trace: RecordedTrace, expert_nbytes: int | None) -> list[int]:
    """Experts that fit, for each item of a list of shares and sizes; ascending."""
    found = set()
    for item in (part.strip() for part in text.split(",")):
        if item.endswith("%"):
            try:
                share = float(item[:-1]) / 100
            except ValueError:
                share = 0.0
            if not 0 < share <= 1:
                raise UsageError(f"{item!r} is not a share of the experts.", advice="Write it like 12.5%.", got=item)
            count = int(share * trace.experts)
        elif expert_nbytes is None:
            raise UsageError(
                f"The capacity {item!r} is a size, but the size of an expert is not known.",
                advice="Give --expert-bytes SIZE, or shares such as 12.5%.",
                got=item,
            )
        else:
            count = min(trace.experts, parse_bytes(item, what="capacity") // expert_nbytes)
        if count < 1:
            raise UsageError(f"A capacity of {item} does not hold a single expert of {trace.name}.", got=item)
        found.add(count)
    return sorted(found)


def _print_report(report: ReplayReport) -> None:
    out = results()
    out.print(
        f"{report.trace}: {report.model}, {report.tokens} tokens, {report.requests} requests for {report.experts} "
        f"experts, {report.working_set:.0f} in a step; compulsory bound {report.compulsory_hit_rate:.1%}",
    )
    numbers = ("capacity", "experts", "hit rate", "gap closed", "reads/token", "bytes/token")
    known = report.expert_nbytes is not None
    table = plain_table("scope", *numbers[:2], "policy", *(numbers[2:] if known else numbers[2:-1]), right=numbers)
    last = None
    for row in report.rows:
        here = (row.scope, row.capacity)
        cells = [*(("", "", "") if here == last else (row.scope, f"{row.residency:.1%}", str(row.capacity)))]
        cells += [row.policy, f"{row.hit_rate:.1%}", "" if row.gap_closed is None else f"{row.gap_closed:.0%}"]
        cells.append(f"{row.reads_per_token:.1f}")
        if row.bytes_per_token is not None:
            cells.append(format_bytes(int(row.bytes_per_token)))
        table.add_row(*cells)
        last = here
    print_table(table)
    if report.knee is None:
        out.print("No knee: the hit rate does not bend.")
    else:
        found = report.knee
        out.print(
            f"Knee of {found.policy}: {found.residency:.1%} of the experts ({found.capacity}), "
            f"hit rate {found.hit_rate:.1%}"
        )
    out.print()
