"""`coterie curve`: quality against experts, bits and reads that are saved."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coterie.cli import options as shared
from coterie.cli.console import print_json, print_note
from coterie.cli.curve_tables import print_curve
from coterie.cli.evaluation_options import ContextOption, LimitOption, ReferenceOption, StrideOption
from coterie.cli.files import write_text_file
from coterie.cli.generation_options import QuietOption
from coterie.cli.listed import listed
from coterie.cli.material import split_name
from coterie.cli.opening import import_engine, opens_model, quiet_terminal
from coterie.cli.progress import point_progress
from coterie.cli.ray_messages import without_ray_messages
from coterie.cluster.spreading import check_spreading
from coterie.errors import UsageError
from coterie.files.replacing import check_writable
from coterie.files.text import check_text
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from coterie.curves import CurveAxes


@opens_model(
    without=(
        "missing",
        "source",
        "prefetch",
        "profile",
        "warm",
        "pin",
        "experts_per_token",
        "drop_cold",
        "max_context",
        "max_rate",
    )
)
def command(
    model: shared.ModelArgument,
    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            "-t",
            metavar="[NAME=]FILE",
            show_default=False,
            help="A UTF-8 text, and what it is called; may be given several times. For --smallest the name is a domain "
            "of the profile.",
        ),
    ],
    coverage: Annotated[
        str | None,
        typer.Option(
            "--coverage",
            metavar="LIST",
            show_default=False,
            help="Keep so many experts: shares or numbers, such as 28%,60%,100%. Default, if nothing else is varied: "
            "these.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="LIST",
            show_default=False,
            help="Which are kept: id, the lowest numbers; with --profile frequency, those chosen most often; reap, "
            "with the largest mean of gate weight × output size (trust); ean, with the largest sum of it; random, any. "
            "Default: id, and with a profile id,frequency,reap.",
        ),
    ] = None,
    missing: Annotated[
        str,
        typer.Option(
            "--missing",
            metavar="LIST",
            help="What to do when the router picks an expert that is not kept, each in turn.",
        ),
    ] = "mask,drop,nearest",
    scope: Annotated[
        Literal["layer", "model"],
        typer.Option(
            "--scope",
            help="Keep as many in each layer, or rank all layers' experts together; each layer then keeps at least as "
            "many as a token uses.",
        ),
    ] = "layer",
    profile: shared.ProfileOption = None,
    domains: Annotated[
        str | None,
        shared.domains_option("With --profile: also keep what each of these domains needs, such as code,german."),
    ] = None,
    experts_per_token: Annotated[
        str | None,
        typer.Option(
            "--experts-per-token", metavar="LIST", show_default=False, help="Use so many experts per token: 1,2,4."
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option("--scheme", metavar="LIST", show_default=False, help="Quantise all experts: int2,int3,int4,int8."),
    ] = None,
    expert_schemes: Annotated[
        list[Path] | None,
        typer.Option(
            "--expert-schemes",
            metavar="FILE",
            show_default=False,
            help="Quantise each expert as a file says, as in coterie quantize; may be given several times.",
        ),
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option(
            "--store",
            metavar="STORE",
            show_default=False,
            help="Measure this store of the model, too; may be given several times.",
        ),
    ] = None,
    drop_cold: Annotated[
        str | None,
        typer.Option(
            "--drop-cold",
            metavar="LIST",
            show_default=False,
            help="Leave out experts that are not in memory below these shares of a token's highest gate weight, such "
            "as 0.05,0.1, token by token; shows what is read, also without leaving any out.",
        ),
    ] = None,
    smallest: Annotated[
        str | None,
        typer.Option(
            "--smallest",
            metavar="LIST",
            show_default=False,
            help="With --profile: search the fewest experts that keep each text's divergence (KLD, in nats per token) "
            "at or below these bounds, such as 0.01,0.05.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        shared.against_option("Compare with this model. Default: MODEL as it is."),
    ] = None,
    reference: ReferenceOption = None,
    context: ContextOption = None,
    stride: StrideOption = None,
    limit: LimitOption = None,
    *,
    opening: Opening,
    ray: shared.RayOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            dir_okay=False,
            metavar="FILE",
            show_default=False,
            help="Write the result as JSON. Finished points are kept beside it, in FILE's name with .points.jsonl.",
        ),
    ] = None,
    as_json: shared.JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measures how quality falls with fewer experts, fewer experts per token, fewer bits and fewer reads.

    Each of --coverage, --experts-per-token, --scheme, --expert-schemes, --store and --drop-cold is varied by itself,
    and every point is compared with the full model on the same tokens. Nothing is written for a point, unless quantised
    experts do not all fit in memory. Texts should not be those that the profile was recorded of.

    With --ray workers share the texts of each point; the figures are the same as without.

    Ctrl-C ends it with exit code 130; with --output the same command goes on where it was, and one with more points
    measures only these. coterie plot curve draws the result.
    """
    texts = _named(text)
    axes = _axes(
        coverage=coverage,
        by=by,
        domains=domains,
        missing=missing,
        scope=scope,
        experts_per_token=experts_per_token,
        schemes=scheme,
        expert_schemes=expert_schemes,
        stores=store,
        drop_cold=drop_cold,
        smallest=smallest,
    )
    axes.checked(profile=profile is not None)
    if ray is not None:
        check_spreading(opening)
    for one in store or []:
        shared.named_model(one)
    if profile is not None:
        from coterie.profiles.database import check_file
        from coterie.profiles.location import locate

        check_file(locate(profile), create=False)
    if output is not None:
        check_writable(output)
    for path in texts.values():
        check_text(path)
    import_engine(quiet=quiet or as_json)
    from coterie.curves.running import curve_opening

    with (
        quiet_terminal(quiet=quiet),
        nullcontext() if ray is None else without_ray_messages(),
        point_progress(quiet=quiet) as progress,
    ):
        found = curve_opening(
            model,
            texts,
            axes,
            opening,
            against=against,
            profile=profile,
            context=context,
            stride=stride,
            limit=limit,
            output=output,
            reference=reference,
            ray=ray,
            progress=progress,
        )
    if output is not None:
        write_text_file(output, [json.dumps(found.to_json(), indent=2, ensure_ascii=False)])
    if as_json:
        print_json(found.to_json())
    else:
        print_curve(found)
    if output is not None and not quiet and not as_json:
        print_note(f"Wrote {output}.")


def _named(given: list[str]) -> dict[str, Path]:
    """NAME=FILE; without a name, or where the equals sign belongs to the path, the path is the name."""
    texts: dict[str, Path] = {}
    for place in given:
        name, path = split_name(place)
        name = place if name is None else name
        if name in texts:
            raise UsageError(
                f"Two texts are called {name}.", advice="Give each a name of its own: NAME=FILE.", got=name
            )
        texts[name] = Path(path)
    return texts


def _axes(
    *,
    coverage: str | None,
    by: str | None,
    domains: str | None,
    missing: str,
    scope: Literal["layer", "model"],
    experts_per_token: str | None,
    schemes: str | None,
    expert_schemes: list[Path] | None,
    stores: list[str] | None,
    drop_cold: str | None,
    smallest: str | None,
) -> CurveAxes:
    from coterie.curves.settings import CurveAxes

    return CurveAxes(
        coverage=listed(coverage),
        by=None if by is None else listed(by),  # type: ignore[arg-type]
        domains=listed(domains),
        missing=listed(missing),  # type: ignore[arg-type]
        scope=scope,
        experts_per_token=[_whole(one) for one in listed(experts_per_token)],
        schemes=listed(schemes),
        expert_schemes=expert_schemes or [],
        stores=stores or [],
        drop_cold=[_number(one, "--drop-cold") for one in listed(drop_cold)],
        smallest=[_number(one, "--smallest") for one in listed(smallest)],
    )


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            f"--experts-per-token: {text!r} is no whole number.", advice="Write them like 1,2,4.", got=text
        ) from None


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option}: {text!r} is no number.", advice="Write them like 0.05,0.1.", got=text) from None
