"""A store with fewer experts in each layer, made of another store or of a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, get_args

from coterie.errors import UsageError
from coterie.extraction.extraction import ExtractionReport, WriteOptions, make_store
from coterie.extraction.keeping import Keep, counts_by_rank, draw_scores, take_best
from coterie.extraction.progress import ProgressCallback
from coterie.files.naming import check_new_name
from coterie.hf.banks import ExpertBank
from coterie.hf.expert_counts import RouterGroups, router_groups
from coterie.hf.modalities import served_modalities
from coterie.origins import CheckpointOrigin, Origin, StoreOrigin
from coterie.origins.pruned_origin import Kept, PrunedOrigin
from coterie.origins.selection import KeptExperts, Selection
from coterie.origins.store_or_checkpoint import find_model
from coterie.origins.store_place import StorePlace
from coterie.origins.stored_dense import dense_files
from coterie.spec import BankKey
from coterie.store.syscalls import SystemCalls

if TYPE_CHECKING:
    from coterie.extraction.keeping import Scores
    from coterie.profiles import ImportanceMeasure

PruneBy = Literal["reap", "ean", "frequency", "random"]
"""What decides which experts stay: see :data:`coterie.profiles.ImportanceMeasure`, or a draw."""

PruneRanking = Literal["layer", "global"]
"""``layer``: experts are ranked within their layer, and every layer keeps the same number. ``global``: those of all
layers are ranked together."""

PRUNE_BY: tuple[PruneBy, ...] = get_args(PruneBy)


def prune(
    model: str | Path,
    store: str | Path,
    *,
    keep: str | int,
    by: PruneBy = "reap",
    profile: str | Path | None = None,
    domains: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    ranking: PruneRanking = "layer",
    least: int | None = None,
    seed: int = 0,
    component: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    dry_run: bool = False,
    restart: bool = False,
    progress: ProgressCallback | None = None,
    workers: int | None = None,
    calls: SystemCalls | None = None,
) -> ExtractionReport:
    """Makes a store of a model that has fewer experts in each layer; goes on with an interrupted one.

    The experts that stay are renumbered from 0 in their old order, the routers keep the rows of these, and the
    configuration says the new number. What results is another model: its router normalises over the experts that it
    has. It is complete, unlike a partial store, and has a fingerprint of its own.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``. It is not changed.
        store: The new store's directory.
        keep: Experts of each layer to keep: a number, a share such as ``"75%"``, or by component such as
            ``"thinker=75%,talker=96"``, where components that are not named keep all.
        by: What decides which: ``reap``, ``ean`` or ``frequency``, by what ``profile`` recorded, or ``random``.
        profile: The model's profile: a file, or a PostgreSQL URL.
        domains: Only what these domains use counts, each as much as the others; by default all tokens.
        modalities: Only these modalities are protected; by default all that the model takes or makes, of which the
            profile must know each.
        ranking: ``layer``: every layer of a component keeps the same number. ``global``: a component keeps as many in
            all, of its layers' experts ranked together, so layers keep different numbers. No configuration of
            transformers can say that, so the store cannot be exported.
        least: With ``global``, how many experts each layer keeps at least; by default as many as its router needs.
        seed: For ``random``.
        component: Of a checkpoint, only this part of the model.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.
        dry_run: Write and download no weights; report what would be done.
        restart: Discard an unfinished store that was begun with another request.
        progress: Told about bytes and time left.
        workers: Experts in memory at once; by default as many as help and fit in memory.
        calls: The system calls that change the disk; tests pass one that fails.

    Returns:
        What was done.

    Raises:
        UsageError: If ``keep`` leaves a router too few, or the profile lacks a modality, a domain or a layer.
        ProfileError: If the profile cannot be used, or is another model's.
        UnsupportedError: If the model depends on its number of experts in a way that is not known.
        ChecksumError: If the source store is damaged.
        CoterieError: Else as :func:`extract` says.
    """
    start = monotonic()
    check_new_name(store)
    wanted = Keep.parse(keep)
    _check_request(by, profile, domains, modalities)
    _check_ranking(ranking, least)
    if workers is not None and workers < 1:
        raise UsageError(f"At least one worker is needed, not {workers}.")
    origin = _open(model, component=component, revision=revision, offline=offline, download=not dry_run)
    _check_complete(origin)
    request = PruneRequest(
        by=by,
        profile=profile,
        domains=tuple(domains or ()),
        modalities=tuple(modalities or ()),
        ranking=ranking,
        least=least,
        seed=seed,
    )
    pruned = pruned_origin(origin, wanted, request)
    if isinstance(origin, StoreOrigin) and not dry_run:
        for file in dense_files(origin.store):
            # What is damaged must not get a new checksum that matches.
            file.check()
    options = WriteOptions(dry_run=dry_run, restart=restart, progress=progress, workers=workers, calls=calls)
    chosen = {key: tuple(range(bank.bank.num_experts)) for key, bank in pruned.model.banks.items()}
    report = make_store(
        pruned, Path(store).expanduser().absolute(), chosen, pruned.scheme, pruned.dense_schemes, options
    )
    return replace(report, seconds=monotonic() - start)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRequest:
    """What experts are chosen by; the arguments of :func:`prune` that are so called."""

    by: PruneBy
    profile: str | Path | None
    domains: tuple[str, ...]
    modalities: tuple[str, ...]
    seed: int
    ranking: PruneRanking = "layer"
    least: int | None = None


def pruned_origin(origin: Origin, keep: Keep, request: PruneRequest) -> PrunedOrigin:
    """Chooses the experts of a model that stay, and gives the model that has these only.

    Raises:
        CoterieError: As :func:`prune` says.
    """
    banks = {key: bank.bank for key, bank in origin.model.banks.items()}
    groups = {name: router_groups(origin.model.config, name) for name in {key.component for key in banks}}
    counts = keep.counts(banks, groups)
    kept, step = _choose(origin, banks, groups, counts, request)
    return PrunedOrigin(origin, kept, _before(origin).then(kept, step))


def _check_request(by: str, profile: object, domains: Sequence[str] | None, modalities: Sequence[str] | None) -> None:
    if by not in PRUNE_BY:
        raise UsageError.unknown("measure", by, PRUNE_BY)
    if by == "random" and not (profile is None and domains is None and modalities is None):
        raise UsageError(
            "A random choice of experts goes by no profile.", advice="Leave out --profile, --for and --modality."
        )
    if by != "random" and profile is None:
        raise UsageError(
            f"Pruning by {by} goes by what a profile has recorded.",
            advice="Add --profile PROFILE; `coterie profile record` makes one.",
        )
    for what, names in (("domain", domains), ("modality", modalities)):
        if names is not None and not names:
            raise UsageError(f"No {what} is named.", advice="Name at least one, or leave it out for all.")


def _check_ranking(ranking: str, least: int | None) -> None:
    if ranking not in get_args(PruneRanking):
        raise UsageError.unknown("ranking", ranking, get_args(PruneRanking))
    if least is None:
        return
    if ranking == "layer":
        raise UsageError(
            "Every layer keeps the same number of experts: that is already the least that one keeps.",
            advice="Leave the least number out, or rank the experts of all layers together (--ranking global).",
        )
    if least < 1:
        raise UsageError(f"Every layer keeps at least one expert, not {least}.", got=least)


def _open(model: str | Path, *, component: str | None, revision: str | None, offline: bool, download: bool) -> Origin:
    found = find_model(model, revision=revision, offline=offline)
    if not isinstance(found, StorePlace):
        return CheckpointOrigin.open(found, component=component)
    if component is not None:
        raise UsageError(
            f"{found} is a store, and is pruned as it is.",
            advice="Leave out --component. --keep thinker=75% prunes one component only.",
        )
    return StoreOrigin.at(found, download=download)


def _check_complete(origin: Origin) -> None:
    """A partial store lacks experts that a choice may fall on."""
    total = sum(bank.bank.num_experts for bank in origin.model.banks.values())
    present = len(origin.keys())
    if present < total:
        raise UsageError(
            f"{origin.directory} is a partial store: it has {present} of {total} experts.",
            advice="Prune a store that has them all, or the checkpoint itself.",
            present=present,
            total=total,
        )


def _choose(
    origin: Origin,
    banks: Mapping[BankKey, ExpertBank],
    groups: Mapping[str, RouterGroups],
    counts: Mapping[BankKey, int],
    request: PruneRequest,
) -> tuple[Kept, dict[str, Any]]:
    """The experts that stay, and what is written down of how they were chosen."""
    if request.by == "random":
        scores, step = draw_scores(banks, request.seed), {"by": "random", "seed": request.seed}
    else:
        scores, step = _measured(origin, banks, counts, request.by, request)
    if request.ranking == "global":
        counts = counts_by_rank(banks, scores, counts, groups, request.least)
        step["ranking"] = "global"
        if request.least is not None:
            step["least"] = request.least
    return take_best(scores, counts, groups), step


def _measured(
    origin: Origin,
    banks: Mapping[BankKey, ExpertBank],
    counts: Mapping[BankKey, int],
    by: ImportanceMeasure,
    request: PruneRequest,
) -> tuple[Scores, dict[str, Any]]:
    """The scores of the experts that are chosen from, by what a profile recorded."""
    # Imported where it is needed: extraction without a profile shall not pay for a database.
    from coterie.profiles import Usage, importance
    from coterie.profiles.importance import FEW_OBSERVATIONS

    usage = Usage.open(request.profile or "", origin.identity)
    pruned = [key for key, bank in banks.items() if counts[key] < bank.num_experts]
    required = {name: served_modalities(origin.model.config, name) for name in {key.component for key in pruned}}
    found = importance(usage, pruned, by, required, domains=request.domains, modalities=request.modalities)
    if found.activations < FEW_OBSERVATIONS:
        warnings.warn(
            f"In some layer, an expert was chosen {found.activations:.1f} times on average for one of the kinds of "
            f"tokens that decide: below {FEW_OBSERVATIONS}, which experts stay is mostly chance. Record more.",
            stacklevel=5,
        )
    claims = {component: [str(claim) for claim in of] for component, of in sorted(found.claims.items())}
    return found.scores, {"by": by, "tokens_of": claims}


def _before(origin: Origin) -> Selection:
    """What a model says of earlier prunings; all its experts if it was never pruned."""
    found = Selection.read(origin.directory)
    banks = {key: bank.bank.num_experts for key, bank in origin.model.banks.items()}
    if found is not None:
        own = {key: bank for key, bank in found.banks.items() if key in banks}
        if {key: len(bank.experts) for key, bank in own.items()} == banks:
            return replace(found, banks=own)
        warnings.warn(
            f"{origin.directory} has a list of earlier pruning that is of another model. It is left out.", stacklevel=5
        )
    return Selection(
        source=origin.model.name,
        revision=origin.model.revision,
        identity=origin.identity,
        steps=(),
        banks={key: KeptExperts(before=n, experts=tuple(range(n))) for key, n in banks.items()},
    )
