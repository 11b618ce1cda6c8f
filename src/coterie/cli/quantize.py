"""`coterie quantize`: make a smaller store of a store or a checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.allocation import AllocationDomainsOption, BitsOption, ExpertBytesOption, requested_allocation
from coterie.cli.extract import print_report
from coterie.cli.material import ImageFilesOption, SpeechFilesOption, gather_material
from coterie.cli.options import (
    DryRunOption,
    ExpertSchemesOption,
    GroupOption,
    JsonOption,
    MemoryOption,
    ModelArgument,
    NewStoreArgument,
    OfflineOption,
    ProfileOption,
    RayOption,
    RestartOption,
    dense_scheme_option,
    known_scheme,
    modality_option,
)
from coterie.cli.ray_messages import without_ray_messages
from coterie.cli.transfer import resumable_progress
from coterie.cluster.connection import check_ray
from coterie.errors import UsageError
from coterie.spec.scheme_names import with_group

if TYPE_CHECKING:
    from coterie.calibration import Calibration

_DEFAULT = "default"
"""Stands for the texts that come with the package. Texts of a user have a domain, so it is no file's name."""


def command(
    model: ModelArgument,
    store: NewStoreArgument,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            callback=known_scheme,
            metavar="SCHEME",
            show_default=False,
            help="For experts: int8, int6, int5, int4, int3 or int2; or, with --profile, by trust, such as "
            "trust:top25%=native,rest=int4. Default: as they are.",
        ),
    ] = None,
    group: GroupOption = None,
    expert_schemes: ExpertSchemesOption = None,
    bits: BitsOption = None,
    expert_bytes: ExpertBytesOption = None,
    domains: AllocationDomainsOption = None,
    dense_scheme: Annotated[
        str | None,
        dense_scheme_option(
            "For linear layers outside experts: one of these for all, or by part, as `coterie extract` has it. "
            "Default: as they are."
        ),
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            "--calibrate",
            metavar="default|DOMAIN=PATH",
            show_default=False,
            help="Choose the codes of experts by what they are given while the model reads texts. `default`: those "
            "that come with Coterie, of many kinds and languages. DOMAIN=PATH: your own, in UTF-8, such as code=src: a "
            "file, a directory with all below it, or a pattern in quotes. Give texts of every kind that the model is "
            "for: it gets worse at others. May be given several times.",
        ),
    ] = None,
    speech: SpeechFilesOption = None,
    images: ImageFilesOption = None,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(
            "--calibration-tokens",
            min=1,
            metavar="N",
            show_default=False,
            help="Tokens to calibrate with, the same number of each domain. Default: 65536.",
        ),
    ] = None,
    memory: MemoryOption = None,
    ray: RayOption = None,
    profile: ProfileOption = None,
    modality: Annotated[
        list[str] | None,
        modality_option(
            "With --bits or --expert-bytes: bits for what this modality uses, such as text. "
            "Default: all that the model takes or makes, and each must be in the profile."
        ),
    ] = None,
    offline: OfflineOption = False,
    dry_run: DryRunOption = False,
    restart: RestartOption = False,
    as_json: JsonOption = False,
) -> None:
    """Makes a new store with weights in fewer bits. The source is not changed, and its selection of experts is kept.

    Of a store that has the checkpoint's own weights the result is the one that `coterie extract` would make of the
    checkpoint in these schemes. An interrupted run goes on where it stopped when the same command is given again.

    With --bits, experts and matrices that matter more by a profile get more bits, within a total.

    With --calibrate the store has the same size, and is nearer to the full model: about half as far in int4. It takes
    longer: the model is run over the texts, one layer after the other, within --memory. --calibrate default needs no
    texts of yours. Speech and pictures count only if you give some. With --ray workers of a cluster choose the codes,
    which takes most of the time; they need no model, and less than --memory.
    """
    from coterie.extraction import quantize

    calibration = _calibration(calibrate, speech, images, calibration_tokens, memory, ray)
    allocation = requested_allocation(bits, expert_bytes, profile, domains, modality)
    if allocation is None and modality:
        raise UsageError("--modality says what bits are allocated for.", advice="Add --bits, such as 3.5.")
    with nullcontext() if ray is None else without_ray_messages(), resumable_progress(store) as progress:
        report = quantize(
            model,
            store,
            scheme=with_group(scheme, group),
            expert_schemes=expert_schemes,
            dense_scheme=dense_scheme,
            calibration=calibration,
            allocation=allocation,
            profile=profile if allocation is None else None,
            offline=offline,
            dry_run=dry_run,
            restart=restart,
            progress=progress,
        )
    print_report(report, as_json=as_json, dry_run=dry_run)


def _calibration(
    texts: list[str] | None,
    speech: list[str] | None,
    images: list[str] | None,
    tokens: int | None,
    memory: str | None,
    ray: str | None,
) -> Calibration | None:
    """What the options say; None if codes are not to be calibrated."""
    if not (texts or speech or images):
        for option, value in (("--calibration-tokens", tokens), ("--memory", memory), ("--ray", ray)):
            if value is not None:
                raise UsageError(
                    f"{option} is about calibration, and nothing is given to calibrate with.",
                    advice="Add --calibrate default, or leave it out.",
                )
        return None
    if ray is not None:
        check_ray("Workers of a cluster")
    from coterie.calibration import DEFAULT_TOKENS, Calibration, default_texts

    own = [text for text in texts or [] if text != _DEFAULT]
    material = default_texts() if _DEFAULT in (texts or []) else []
    if own or speech or images:
        material += gather_material(own, speech, images, option="--calibrate")
    return Calibration(material=material, tokens=tokens or DEFAULT_TOKENS, memory=memory, ray=ray)
