"""`coterie plot`: pictures of what experts do, one kind each a subcommand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from coterie.cli.console import print_note
from coterie.cli.files import write_bytes_file
from coterie.cli.options import ProfileArgument, ProfileModelOption
from coterie.errors import UsageError
from coterie.files.replacing import check_writable
from coterie.spec import DEFAULT_POLICY

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class KindGroup(TyperGroup):
    """The kinds of pictures; an unknown one is told which there are."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the subcommand that the first argument names.

        Raises:
            UsageError: If there is none.
        """
        if args and args[0] not in self.commands:
            raise UsageError.unknown("kind of picture", args[0], self.commands)
        return super().resolve_command(ctx, args)


command = typer.Typer(
    cls=KindGroup,
    add_completion=False,
    no_args_is_help=True,
    help="Draws pictures of profiles, recorded routing and curves, as PNG or SVG. The same data gives the same file.",
)

OutputOption = Annotated[
    Path,
    typer.Option("--output", "-o", dir_okay=False, metavar="FILE", show_default=False, help="A .png or .svg file."),
]
DomainOption = Annotated[
    str | None, typer.Option("--domain", "-d", metavar="NAME", show_default=False, help="Only tokens of this domain.")
]
ModalityOption = Annotated[
    str | None,
    typer.Option("--modality", "-m", metavar="NAME", show_default=False, help="Only tokens of this modality."),
]
PhaseOption = Annotated[
    str | None,
    typer.Option("--phase", metavar="NAME", show_default=False, help="Only prompt tokens, or only generated ones."),
]
ComponentOption = Annotated[
    str | None, typer.Option("--component", metavar="NAME", show_default=False, help="Only this part of the model.")
]


@command.command()
def activation(
    profile: ProfileArgument,
    output: OutputOption,
    domain: DomainOption = None,
    modality: ModalityOption = None,
    phase: PhaseOption = None,
    component: ComponentOption = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="NAME",
            show_default=False,
            help="Draw the difference to this domain; to this modality if only --modality is given.",
        ),
    ] = None,
    model: ProfileModelOption = None,
) -> None:
    """Draws the share of tokens that select each expert, layers × experts, or the difference of two."""
    _check(output)
    from coterie.analysis import activation_figure
    from coterie.profiles import Profile

    found = Profile.open(profile, model)
    _write(
        activation_figure(found, domain=domain, modality=modality, phase=phase, component=component, against=against),
        output,
    )


@command.command()
def modality(
    profile: ProfileArgument,
    output: OutputOption,
    by: Annotated[
        Literal["modality", "domain"], typer.Option("--by", help="Tell modalities apart, or domains.")
    ] = "modality",
    phase: PhaseOption = None,
    component: ComponentOption = None,
    model: ProfileModelOption = None,
) -> None:
    """Draws how far apart modalities are in each layer, above what two halves of the same modality give."""
    _check(output)
    from coterie.analysis import separation_figure
    from coterie.profiles import Profile

    _write(separation_figure(Profile.open(profile, model), by, phase=phase, component=component), output)


@command.command()
def coactivation(
    profile: ProfileArgument,
    output: OutputOption,
    layer: Annotated[int, typer.Option("--layer", min=0, metavar="N", show_default=False, help="Which layer.")],
    measure: Annotated[
        Literal["lift", "share"], typer.Option("--measure", help="Lift N_ij·N/(N_i·N_j), or share N_ij/N_i.")
    ] = "lift",
    component: ComponentOption = None,
    bank: Annotated[
        str | None, typer.Option("--bank", metavar="NAME", show_default=False, help="Where a layer has several.")
    ] = None,
    model: ProfileModelOption = None,
) -> None:
    """Draws which experts of a layer are chosen together, companions side by side."""
    _check(output)
    from coterie.analysis import coactivation_figure
    from coterie.profiles import Profile, ProfileDatabase

    with ProfileDatabase(profile) as database:
        found = Profile.read(database, model)
        figure = coactivation_figure(found, database, layer, measure=measure, component=component, bank=bank)
    _write(figure, output)


@command.command()
def load(
    profile: ProfileArgument,
    output: OutputOption,
    domain: DomainOption = None,
    modality: ModalityOption = None,
    phase: PhaseOption = None,
    component: ComponentOption = None,
    model: ProfileModelOption = None,
) -> None:
    """Draws how evenly the load is spread: Gini coefficients, the share of the busiest tenth, Lorenz curves."""
    _check(output)
    from coterie.analysis import load_figure
    from coterie.profiles import Profile

    found = Profile.open(profile, model)
    _write(load_figure(found, domain=domain, modality=modality, phase=phase, component=component), output)


@command.command()
def residency(
    trace: Annotated[
        Path,
        typer.Argument(metavar="TRACE", show_default=False, help="What `coterie generate --record-trace` wrote."),
    ],
    output: OutputOption,
    capacity: Annotated[
        str, typer.Option("--capacity", metavar="SHARE", help="How many experts fit, as a share of all: 25%.")
    ] = "25%",
    policy: Annotated[
        str, typer.Option("--policy", metavar="NAME", help="Eviction policy, as for coterie replay.")
    ] = DEFAULT_POLICY,
    phase: Annotated[
        Literal["decode", "all"], typer.Option("--phase", help="Replay decoding alone, or prefills too, as scans.")
    ] = "decode",
    component: ComponentOption = None,
) -> None:
    """Draws the hit rate over a generation, and which layers' experts are in memory, as the simulator replays it."""
    _check(output)
    from coterie.analysis import residency_figure
    from coterie.eviction import read_trace, timeline

    found = read_trace(trace, phase=phase)
    if not found.experts_known:
        print_note(f"{found.name} does not say how many experts there are; {found.experts} is what its ids show.")
    _write(residency_figure(timeline(found, _experts(capacity, found.experts), policy), component), output)


@command.command()
def curve(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT", show_default=False, help="What `coterie curve --output` wrote.")
    ],
    output: OutputOption,
) -> None:
    """Draws quality against experts, experts per token, bits and reads, and the smallest sets of experts."""
    _check(output)
    from coterie.curves import curve_figure, read_curve

    _write(curve_figure(read_curve(result)), output)


def _experts(text: str, total: int) -> int:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not text.endswith("%") or not 0 < share <= 1:
        raise UsageError(f"{text!r} is not a share of the experts.", advice="Write it like 12.5%.", got=text)
    return max(1, int(share * total))


def _check(output: Path) -> None:
    """Finds a wrong name before anything is computed."""
    from coterie.analysis import picture_format

    picture_format(output)
    check_writable(output)


def _write(figure: Figure, output: Path) -> None:
    from coterie.analysis import picture_format, render

    write_bytes_file(output, [render(figure, picture_format(output))])
    print_note(f"Wrote {output}.")
