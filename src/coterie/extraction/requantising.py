"""A store in fewer bits, made of another store or of a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from coterie.errors import UsageError
from coterie.extraction.allocation import Allocation, allocate
from coterie.extraction.calibrating import Calibration
from coterie.extraction.dense import parts_with_linears
from coterie.extraction.dense_choice import settle_dense_schemes
from coterie.extraction.expert_schemes import chosen_schemes
from coterie.extraction.extraction import (
    ExtractionReport,
    WriteOptions,
    check_allocation,
    check_target,
    extract,
    make_store,
)
from coterie.extraction.precision import SchemesByTrust
from coterie.extraction.progress import ProgressCallback
from coterie.extraction.quantising import check_smaller
from coterie.files.naming import check_new_name
from coterie.origins import StoreOrigin
from coterie.origins.store_or_checkpoint import find_model
from coterie.origins.store_place import StorePlace
from coterie.origins.stored_dense import dense_files
from coterie.quant import lossy_scheme
from coterie.spec.dense_schemes import REST, DenseRequest
from coterie.spec.encodings import NATIVE
from coterie.store import Store
from coterie.store.syscalls import SystemCalls


def quantize(
    model: str | Path,
    store: str | Path,
    *,
    scheme: str | None = None,
    expert_schemes: str | Path | Mapping[str, Any] | None = None,
    allocation: Allocation | None = None,
    dense_scheme: str | Mapping[str, str] | None = None,
    calibration: Calibration | None = None,
    profile: str | Path | None = None,
    offline: bool = False,
    dry_run: bool = False,
    restart: bool = False,
    progress: ProgressCallback | None = None,
    workers: int | None = None,
    calls: SystemCalls | None = None,
) -> ExtractionReport:
    """Makes a store in a smaller scheme of a store, or of a checkpoint; goes on with an interrupted one.

    It has the experts that the source has. Of a store whose weights are the checkpoint's own it is byte for byte the
    store that :func:`extract` makes of the checkpoint in these schemes; of one that is lossy already, its losses stay.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``. It is not changed.
        store: The new store's directory.
        scheme: How experts are stored: from ``int8`` down to ``int2``, or by what ``profile`` says of each layer's
            experts, such as ``"trust:top25%=native,rest=int4"``. Default: each as it is.
        expert_schemes: How each expert is stored, and each matrix of it, instead of ``scheme``: a file or a mapping, as
            in :func:`extract`. Experts that it says nothing of stay as they are.
        allocation: Bits for each expert's matrices by what a profile says, within a total, instead of ``scheme``, as in
            :func:`extract`.
        dense_scheme: How weights of linear layers outside experts are stored: one scheme, or schemes by part, as in
            :func:`extract`. Default: each as it is.
        calibration: What the codes of experts are chosen by, such as :class:`coterie.calibration.Calibration`; by
            default by their weights alone. Codes then differ a little between machines.
        profile: The model's profile, for a scheme by trust.
        offline: Use only what is on this machine.
        dry_run: Write no weights; report what would be done.
        restart: Discard an unfinished store that was begun with another request.
        progress: Told about bytes and time left.
        workers: Experts in memory at once; by default as many as help and fit in memory.
        calls: The system calls that change the disk; tests pass one that fails.

    Returns:
        What was done.

    Raises:
        UsageError: If no scheme is given, or one that has more bits than what there is.
        ChecksumError: If the source store is damaged.
        CoterieError: Else as :func:`extract` says.
    """
    start = monotonic()
    check_new_name(store)
    by_trust = None if scheme is None else SchemesByTrust.parse(scheme)
    by_expert = chosen_schemes(expert_schemes, scheme)
    check_allocation(allocation, scheme, expert_schemes, store)
    if (by_trust is None) != (profile is None):
        raise UsageError(
            "A profile and a scheme by trust go together.",
            advice="Write --profile PROFILE --scheme trust:top25%=native,rest=int4, or leave out the profile.",
        )
    if scheme is not None and by_trust is None:
        lossy_scheme(scheme)
    request = DenseRequest.parse(dense_scheme)
    if scheme in (None, NATIVE) and by_expert is None and allocation is None and request.only_native:
        raise UsageError(
            "Nothing is to be quantised.",
            advice="Say how experts are to be stored (--scheme int4), or linear layers "
            "outside experts (--dense-scheme int4), or both.",
        )
    if workers is not None and workers < 1:
        raise UsageError(f"At least one worker is needed, not {workers}.")
    found = find_model(model, offline=offline)
    if not isinstance(found, StorePlace):
        return extract(
            model,
            store,
            scheme=None if by_expert or allocation else scheme or NATIVE,
            expert_schemes=expert_schemes,
            allocation=allocation,
            dense_scheme={REST: NATIVE, **request.named} if request.rest is None else dense_scheme,
            calibration=calibration,
            profile=profile,
            offline=offline,
            dry_run=dry_run,
            restart=restart,
            progress=progress,
            workers=workers,
            calls=calls,
        )
    options = WriteOptions(
        dry_run=dry_run,
        restart=restart,
        progress=progress,
        workers=workers,
        calls=calls,
        calibration=None if calibration is None else calibration.of(model, offline=offline),
    )
    origin = StoreOrigin.at(found, download=not dry_run)
    dense = origin.dense_schemes
    dense_wanted = settle_dense_schemes(origin, request, dense)
    have = {key: origin.store.scheme(key) for key in origin.keys()}
    want = have if scheme is None else dict.fromkeys(have, scheme)
    if by_trust is not None and profile is not None:
        want = by_trust.schemes(have, profile, origin.identity)
    if by_expert is not None:
        want = by_expert.of(origin, have.__getitem__)
    chosen = {key: tuple(sorted(bank.records)) for key, bank in origin.store.banks.items()}
    allocated = None
    if allocation is not None:
        check_target(origin, Path(store).expanduser().absolute(), options.calibration)
        allocated = allocate(origin, chosen, allocation, progress)
        want, chosen = dict(allocated.schemes), allocated.chosen(chosen)
    changes = sorted({(have[key], want[key]) for key in want})
    for old, new in changes:
        check_smaller("Some experts are", old, new)
    changes += [(dense.of(part), dense_wanted.of(part)) for part in parts_with_linears(origin)]
    if any(old not in (NATIVE, new) for old, new in changes):
        _warn_lossy(found)
    if not dry_run:
        _check_dense(origin.store)
    report = make_store(
        origin,
        Path(store).expanduser().absolute(),
        chosen,
        want.__getitem__,
        dense_wanted,
        options,
        allocated=allocated,
    )
    return replace(report, seconds=monotonic() - start)


def _warn_lossy(place: StorePlace) -> None:
    warnings.warn(
        f"{place} is lossy already, and what it has lost stays lost: a store made of the checkpoint is better where a "
        "scheme changes, and 'coterie verify --against' the checkpoint will find differences.",
        stacklevel=3,
    )


def _check_dense(store: Store) -> None:
    """Compares the dense shards with their checksums: what is damaged must not get a new, matching one."""
    for file in dense_files(store):
        file.check()
