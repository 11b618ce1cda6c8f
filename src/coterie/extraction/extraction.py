"""Checkpoint to store: plan, check the disk, copy what is missing, finish."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from coterie.checkpoint import Location
from coterie.errors import ExtractionError, UsageError
from coterie.extraction.allocation import Allocated, Allocation, AllocationReport, allocate
from coterie.extraction.calibrating import Calibration, ModelCalibration, calibration_facts, check_changes
from coterie.extraction.copying import Copier, worker_count
from coterie.extraction.dense_choice import default_dense_schemes, settle_dense_schemes
from coterie.extraction.expert_schemes import chosen_schemes
from coterie.extraction.four_bits import FourBits
from coterie.extraction.network import NetworkUse, checking, network_plan, network_report
from coterie.extraction.packed import schemes_of_packed
from coterie.extraction.planning import ExtractionPlan, plan_extraction, with_fingerprints
from coterie.extraction.precision import SchemesByTrust
from coterie.extraction.progress import Meter, ProgressCallback
from coterie.extraction.quantising import SchemeOf, scheme_of_store
from coterie.extraction.selection import Experts, Numbers, select_experts
from coterie.extraction.target import (
    DiskNeed,
    ShardDownload,
    check_apart,
    check_downloads,
    check_fits,
    disk_needs,
    missing_downloads,
)
from coterie.extraction.tokenizer_check import check_tokenizer
from coterie.files.naming import check_new_name
from coterie.hf.tokenizer import embedding_rows
from coterie.origins import CheckpointOrigin, Origin
from coterie.origins.store_or_checkpoint import need_checkpoint
from coterie.quant import lossy_scheme
from coterie.quant.packed import Rounded
from coterie.records.files import file_stamps, first_changed
from coterie.records.remote import RangeReader, RateLimit
from coterie.spec import BankKey
from coterie.spec.dense_schemes import DenseRequest, DenseSchemes
from coterie.spec.encodings import NATIVE
from coterie.spec.opening import check_rate
from coterie.store import CalibrationFacts, StoreWriter, Survey, SurveyedFile, is_store, names, survey
from coterie.store.manifest_file import is_unfinished, load_manifest
from coterie.store.syscalls import SystemCalls

Status = Literal["planned", "written", "resumed", "grown", "already complete"]

LARGE_NBYTES = 2**30
"""From this size on, somebody who has not said how to store a model is told what four bits would take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionReport:
    """What an extraction did, or with ``status`` ``planned`` would do.

    Attributes:
        schema_version: Version of this form.
        status: ``planned`` (a dry run), ``written``, ``resumed`` (an interrupted one was finished), ``grown`` (experts
            were added to a finished store) or ``already complete`` (nothing was missing).
        store: The store's directory.
        source: Name of the checkpoint.
        component: The part of the model that was asked for, or None for all of it.
        experts_present: Experts in the store.
        experts_total: Experts that the model, or the component, has.
        files: Every file of the store; ``present`` are those that did not have to be written.
        downloads: Shards that had to be downloaded, or would have to be.
        ignored: Checkpoint tensors that transformers does not use and that were left out.
        store_nbytes: Bytes of the whole store.
        written_nbytes: Bytes of experts and dense tensors written now; 0 for a dry run.
        dense_scheme: How linear layers outside experts are stored: one scheme, or one for each part.
        allocation: How bits were allocated to experts; None if they were not.
        rounded: What was rounded of packed weights of a quantised checkpoint, which else keep their codes, scales and
            zeros bit for bit; None if it has none.
        int4_nbytes: About what the store would take with experts in ``int4``, where it is large and nobody said how to
            store it; else None.
        int4_dense_scheme: The scheme of linear layers outside experts that is counted with in ``int4_nbytes``; None
            for what they would have by default.
        needed_nbytes: Bytes that were still needed on the store's disk before, with those that calibration keeps there
            while it runs.
        free_nbytes: Bytes that were free there before.
        disks: The same for each disk that is written: the store's, and that of the Hub's cache if it is another.
        network: What was read from the Hub by ranges, or would be; None where all is here or is downloaded.
        seconds: Time taken.
    """

    schema_version: int = 1
    status: Status
    store: Path
    source: str
    component: str | None
    experts_present: int
    experts_total: int
    files: tuple[SurveyedFile, ...]
    downloads: tuple[ShardDownload, ...]
    ignored: tuple[str, ...]
    store_nbytes: int
    dense_scheme: str
    allocation: AllocationReport | None
    rounded: Rounded | None
    int4_nbytes: int | None
    int4_dense_scheme: str | None
    written_nbytes: int
    needed_nbytes: int
    free_nbytes: int
    disks: tuple[DiskNeed, ...]
    network: NetworkUse | None
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether the store has every expert."""
        return self.experts_present == self.experts_total

    def to_json(self) -> dict[str, object]:
        """The report as JSON values."""
        disks = [{**asdict(disk), "path": str(disk.path), "fits": disk.fits} for disk in self.disks]
        return {**asdict(self), "store": str(self.store), "disks": disks, "complete": self.complete}


PlanCallback = Callable[[ExtractionReport], None]
"""Told of an extraction before it begins, with the status ``planned``."""


def extract(
    checkpoint: str | Path,
    store: str | Path,
    *,
    experts: Experts = None,
    layers: Numbers = None,
    top: str | None = None,
    profile: str | Path | None = None,
    domain: str | None = None,
    modalities: Collection[str] | None = None,
    component: str | None = None,
    scheme: str | None = None,
    expert_schemes: str | Path | Mapping[str, Any] | None = None,
    allocation: Allocation | None = None,
    dense_scheme: str | Mapping[str, str] | None = None,
    calibration: Calibration | None = None,
    revision: str | None = None,
    offline: bool = False,
    keep_download: bool = False,
    max_rate: str | int | None = None,
    dry_run: bool = False,
    restart: bool = False,
    planned: PlanCallback | None = None,
    progress: ProgressCallback | None = None,
    workers: int | None = None,
    calls: SystemCalls | None = None,
) -> ExtractionReport:
    """Makes a store of a checkpoint, goes on with an interrupted one, or adds experts to a finished one.

    Everything that is not an expert is always taken: the depth of a model is never cut. Stopped at any moment, the
    same call goes on where it was; until the end the directory is not a store (or is still the old one).

    Of a repository of the Hub only the bytes that are needed are read, by ranges, and no shard is kept. Shards that
    are in the Hub's cache are read there. With ``calibration`` or ``allocation``, which read experts several times,
    shards are downloaded first.

    Args:
        checkpoint: Directory, Hub id, or ``bundled``.
        store: The store's directory.
        experts: Which experts: ids such as ``"0-7,12"`` or a list for every layer, or by layer such as
            ``"3-5:0-18;6:0,1"`` or a mapping from layer to ids (layers not named keep all); ``"none"`` for a store of
            the depth alone; all by default.
        layers: The layers to which ``experts`` applies; other layers keep all experts.
        top: Instead of ``experts``: those that are used most, as a share of all, such as ``"25%"``; in every layer at
            least as many as a token uses. Needs ``profile``.
        profile: The model's profile, for ``top`` or a scheme by trust: a file, or a PostgreSQL URL. To see whether it
            is this model's, its routers are read, even if nothing is written.
        domain: With ``profile``: use by tokens of this domain; by default of all.
        modalities: With ``profile``: use by tokens of these modalities; by default of all.
        component: Only this part of the model, such as ``thinker``.
        scheme: How experts are stored: ``native``, or with losses, from ``int8`` down to ``int2``; or by what
            ``profile`` says of each layer's experts, such as ``"trust:top25%=native,rest=int4"``. Default: as those
            that the store has, if they are all alike, else ``native``. One store may have experts of several schemes.
        expert_schemes: How each expert is stored, and each matrix of it, instead of ``scheme``: a JSON file, or a
            mapping that is like one, such as ``{"schema_version": 1, "rest": "int3", "experts":
            {"text/mlp-layer-000/00005": {"gate_up_proj": "int2", "down_proj": "int4"}}}``. Experts that are not named
            have the scheme of ``rest``, and without that the one that ``scheme`` would have by default.
        allocation: Bits for each expert's matrices by what a profile says, within a total, instead of ``scheme``. If it
            names domains, experts that these hardly use may be left out.
        dense_scheme: How weights of linear layers outside experts are stored: one scheme, such as ``"int8"``, or one
            for each part of the model, such as ``{"attention": "int8", "encoders": "native", "rest": "int4"}``, or the
            same as a text, ``"attention=int8,encoders=native,rest=int4"``. ``rest`` is for the parts that are not
            named; one scheme for all is ``rest`` alone. Both leave out the code predictor of a model that speaks, which
            has to be named. Default: as the store has them; in a new store of a model that speaks, if its experts are
            stored with losses, ``int8`` for everything but encoders; else ``native``.
        calibration: What the codes of experts are chosen by, such as :class:`coterie.calibration.Calibration`; by
            default by their weights alone. Only for a new store.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.
        keep_download: Download whole shards into the Hub's cache, and keep them there.
        max_rate: Most bytes in a second that are read over the network, such as ``"20MB/s"``; for a repository only.
        dry_run: Write and download no weights; report what would be done.
        restart: Discard an unfinished store that was begun with another request.
        planned: Told what will be done before anything is downloaded or written.
        progress: Told about bytes and time left.
        workers: Experts in memory at once; by default as many as help and fit in memory.
        calls: The system calls that change the disk; tests pass one that fails.

    Returns:
        What was done.

    Raises:
        UsageError: If a selection or the directory is not valid.
        ProfileError: If the profile cannot be used, or is another model's.
        CheckpointError: If the checkpoint is not complete and consistent, or cannot be read.
        LoadError: If its tokenizer is another model's.
        DiskSpaceError: If the store, or what is downloaded for it, does not fit; nothing is written then.
        QuantisationError: If a weight is not finite, which a lossy scheme cannot store.
        StoreBusyError: If another process is writing the store.
        StoreError: If the directory holds something else, or cannot be written.
    """
    start = monotonic()
    check_new_name(store)
    check_rate(max_rate, offline=offline)
    if workers is not None and workers < 1:
        raise UsageError(f"At least one worker is needed, not {workers}.")
    by_trust = None if scheme is None else SchemesByTrust.parse(scheme)
    by_expert = chosen_schemes(expert_schemes, scheme)
    check_allocation(allocation, scheme, expert_schemes, store)
    _check_selection(experts, layers, top, by_trust, profile, domain, modalities)
    need_checkpoint(
        checkpoint, "`coterie quantize` makes a smaller store of a store; what one lacks is added from its checkpoint."
    )
    read_twice = calibration is not None or allocation is not None
    rate = RateLimit.of(max_rate)
    reader = None if keep_download or read_twice else RangeReader(rate=rate, noting=True)
    place = Location.find(checkpoint, revision=revision, offline=offline, reader=reader, rate=rate)
    origin = CheckpointOrigin.open(place, component=component)
    root = Path(store).expanduser().absolute()
    request = DenseRequest.parse(dense_scheme)
    undecided = scheme is None and by_expert is None and allocation is None and dense_scheme is None
    undecided = undecided and not is_store(root)
    one_scheme, otherwise = _schemes(root, None if by_trust else scheme)
    if otherwise is None:
        lossy = any(one is not None for one in (by_trust, by_expert, allocation)) or one_scheme != NATIVE
        otherwise = default_dense_schemes(origin.model.config, request, lossy_experts=lossy)
    dense_schemes = settle_dense_schemes(origin, request, otherwise)
    scheme_of: str | SchemeOf = one_scheme
    undecided = undecided and not origin.packed
    if by_trust is not None and profile is not None:
        schemes = by_trust.schemes(origin.keys(), profile, origin.identity, domain=domain, modalities=modalities)
        scheme_of = schemes.__getitem__
    if by_expert is not None:
        scheme_of = by_expert.of(origin, lambda key: one_scheme).__getitem__
    if top is None or profile is None:
        sizes = {key: bank.bank.num_experts for key, bank in origin.model.banks.items()}
        chosen = select_experts(sizes, experts, layers)
    else:
        from coterie.extraction.most_used import most_used

        chosen = most_used(origin, top, profile, domain=domain, modalities=modalities)
    options = WriteOptions(
        dry_run=dry_run,
        restart=restart,
        planned=planned,
        progress=progress,
        workers=workers,
        calls=calls,
        calibration=None
        if calibration is None
        else calibration.of(checkpoint, revision=revision, offline=offline, max_rate=max_rate),
    )
    allocated = None
    if allocation is not None:
        check_target(origin, root, options.calibration)
        keys = (key.expert(expert) for key, ids in chosen.items() for expert in ids)
        check_downloads(origin, tuple(name for key in keys for name in origin.names_of(key)), dry_run=dry_run)
        allocated = allocate(origin, chosen, allocation, progress)
        scheme_of, chosen = allocated.schemes.__getitem__, allocated.chosen(chosen)
    if origin.packed:  # what is of one scheme is copied, not computed
        scheme_of = schemes_of_packed(origin, scheme_of)
    four_bits = FourBits.of(origin, chosen) if undecided else None
    report = make_store(
        origin, root, chosen, scheme_of, dense_schemes, options, four_bits=four_bits, allocated=allocated
    )
    return replace(report, seconds=monotonic() - start)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How a store is written; the arguments of :func:`extract` that are so called."""

    dry_run: bool = False
    restart: bool = False
    planned: PlanCallback | None = None
    progress: ProgressCallback | None = None
    workers: int | None = None
    calls: SystemCalls | None = None
    calibration: ModelCalibration | None = None


def make_store(
    origin: Origin,
    root: Path,
    chosen: Mapping[BankKey, tuple[int, ...]],
    scheme: str | SchemeOf,
    dense_schemes: DenseSchemes,
    options: WriteOptions,
    *,
    four_bits: FourBits | None = None,
    allocated: Allocated | None = None,
) -> ExtractionReport:
    """Writes, resumes or grows a store.

    Args:
        origin: What it is made of.
        root: The directory.
        chosen: Bank → ids of the experts that the store is to have.
        scheme: That of all experts, or of each.
        dense_schemes: Those of linear layers outside experts.
        options: How.
        four_bits: What it would take in four bits, where nobody said how to store it.
        allocated: What ``scheme`` was allocated by, if it was.

    Raises:
        CoterieError: As :func:`extract` says.
    """
    start = monotonic()
    facts = check_target(origin, root, options.calibration)
    origin.warn_left_out()
    if facts is not None:
        check_changes(origin, scheme, chosen)
    if allocated is not None and is_store(root):
        _check_allocated(root, load_manifest(root)[0].allocation == allocated.facts)
    plan = plan_extraction(origin, chosen, scheme, dense_schemes, facts, None if allocated is None else allocated.facts)
    downloads = missing_downloads(origin, plan.tensors)
    # A dry run reads headers only, unless there is something that has to be of the same model.
    cheap = origin.reader is None or not options.dry_run or is_store(root) or is_unfinished(root)
    compare = not downloads and cheap
    if compare:
        plan = with_fingerprints(plan, origin)
    found = _survey(root, plan, restart=options.restart, compare=compare)
    network = network_plan(origin, plan.store, found)
    kept = 0
    if options.calibration is not None and not found.complete:
        kept = options.calibration.kept_nbytes(origin)
    needs = disk_needs(root, found, downloads, origin.cache, kept=kept)
    check_fits(needs)
    status: Status = "planned"
    written = 0

    def report() -> ExtractionReport:
        made = _report(origin, root, plan, found, downloads, needs, status, written, monotonic() - start)
        made = replace(made, network=network)
        if allocated is not None:
            return replace(made, allocation=allocated.report)
        if four_bits is None or made.store_nbytes < max(LARGE_NBYTES, 2 * four_bits.nbytes):
            return made
        return replace(made, int4_nbytes=four_bits.nbytes, int4_dense_scheme=four_bits.dense_scheme)

    if options.planned is not None:
        options.planned(report())
    if not options.dry_run:
        plan = with_fingerprints(plan, origin)
        status, written, network = _write(origin, root, plan, found, scheme, options, network)
    return report()


def check_target(origin: Origin, root: Path, calibration: ModelCalibration | None) -> CalibrationFacts | None:
    """Refuses what can be refused before any expert is read.

    Args:
        origin: What a store is made of.
        root: The store's directory.
        calibration: What codes are to be chosen by; None to round to nearest.

    Returns:
        What the store will say about its calibration; None if it has none.

    Raises:
        UsageError: If the directory, or the calibration, is not for this model.
        LoadError: If its tokenizer is another model's.
    """
    check_apart(root, origin.directory)
    check_tokenizer(origin.directory, embedding_rows(origin.model.skeleton))
    return None if calibration is None else calibration_facts(root, origin, calibration)


def check_allocation(
    allocation: Allocation | None, scheme: str | None, expert_schemes: object, store: str | Path
) -> None:
    """Refuses schemes beside an allocation of them, and to allocate what a finished store has already.

    Raises:
        UsageError: Naming both.
    """
    root = Path(store).expanduser().absolute()
    if allocation is not None and is_store(root):
        _check_allocated(root, load_manifest(root)[0].allocation is not None)
    if allocation is not None and (scheme is not None or expert_schemes is not None):
        raise UsageError(
            "Bits are to be allocated to experts, and they are given schemes, too.",
            advice="Leave out --scheme and --expert-schemes, or --bits and --expert-bytes.",
        )


def _check_allocated(root: Path, same: bool) -> None:
    if not same:
        raise UsageError(
            f"{root} is a finished store whose bits were not allocated like that.",
            advice="Write to another directory: experts that are there are never changed.",
            path=root,
        )


def _check_selection(
    experts: Experts,
    layers: Numbers,
    top: str | None,
    by_trust: SchemesByTrust | None,
    profile: str | Path | None,
    domain: str | None,
    modalities: Collection[str] | None,
) -> None:
    """A selection is by number or by use, and what chooses within a profile needs one."""
    if top is None and by_trust is None and any(one is not None for one in (profile, domain, modalities)):
        raise UsageError(
            "A profile chooses experts only where it is said how many.",
            advice="Add --top, such as 25%, or a scheme by trust, such as --scheme trust:top25%=native,rest=int4.",
        )
    if top is not None and profile is None:
        raise UsageError("--top takes what a profile says is used most.", advice="Add --profile PROFILE.")
    if by_trust is not None and profile is None:
        raise UsageError("A scheme by trust goes by what a profile says.", advice="Add --profile PROFILE.")
    if top is not None and (experts is not None or layers is not None):
        raise UsageError(
            "Experts were selected by number and by use.", advice="Leave out --top, or --experts and --layers."
        )


def _schemes(root: Path, scheme: str | None) -> tuple[str, DenseSchemes | None]:
    """The scheme of experts that was asked for, else that of the store that is grown; and this store's others."""
    if scheme is not None:
        lossy_scheme(scheme)
    if not is_store(root):
        return scheme or NATIVE, None
    manifest, _ = load_manifest(root)
    return scheme or scheme_of_store(manifest) or NATIVE, manifest.dense_schemes


def _survey(root: Path, plan: ExtractionPlan, *, restart: bool, compare: bool) -> Survey:
    sizes = {name: path.stat().st_size for name, path in plan.side_files.items()}
    sizes |= {name: len(content) for name, content in plan.changed_files.items()}
    return survey(root, plan.store, plan.dense, sizes, restart=restart, compare=compare)


def _write(
    origin: Origin,
    root: Path,
    plan: ExtractionPlan,
    found: Survey,
    scheme: str | SchemeOf,
    options: WriteOptions,
    network: NetworkUse | None,
) -> tuple[Status, int, NetworkUse | None]:
    """Writes what is missing; returns what that amounted to, the bytes of tensors written, and what came for it."""
    restart = options.restart and found.base is None
    with StoreWriter.open(root, plan.store, restart=restart, calls=options.calls) as writer:
        if writer.growing and not writer.missing_banks():
            return "already complete", 0, network
        before = file_stamps(info.path for info in origin.tensors.values())
        with ExitStack() as stack:
            checks = stack.enter_context(checking(origin, writer))
            meter = _meter(origin, writer, plan, options.progress)
            workers = options.workers or worker_count(origin, computed=scheme != NATIVE)
            calibrator = None
            folder = root / names.CALIBRATION
            if options.calibration is not None and writer.missing_banks():
                calibrator = stack.enter_context(options.calibration.begin(origin, folder))
                workers = 1
            elif options.calibration is not None:
                options.calibration.clear(folder)
            Copier(origin, writer, plan.dense, meter, workers=workers, scheme=scheme, calibrator=calibrator).run()
        for name in writer.missing_files():
            if name in plan.changed_files:
                writer.write_file(name, plan.changed_files[name])
            else:
                writer.copy_file(plan.side_files[name], name)
        changed = first_changed(before)
        if changed is not None:
            raise ExtractionError(
                f"{changed} changed while it was being read; the store would mix two versions.",
                advice="Wait until the checkpoint is final, then extract it with --restart.",
                path=changed,
            )
        status: Status = "grown" if writer.growing else "resumed" if found.unfinished else "written"
        writer.finish()
        came = None if origin.reader is None else origin.reader.received
        return status, meter.done, network_report(network, came, checks)


def _meter(origin: Origin, writer: StoreWriter, plan: ExtractionPlan, progress: ProgressCallback | None) -> Meter:
    """Adds up what is written of what is missing."""
    wanted = {(bank.key, one.expert): one.layout.nbytes for bank in plan.store.banks for one in bank.experts}
    total = sum(wanted[key, e] for key in writer.missing_banks() for e in writer.missing_experts(key))
    if not writer.dense_done:
        total += sum(tensor.nbytes for tensor in plan.dense)
    reader = origin.reader
    return Meter("extract", total, progress, None if reader is None else lambda: reader.received.nbytes)


def _report(
    origin: Origin,
    root: Path,
    plan: ExtractionPlan,
    found: Survey,
    downloads: tuple[ShardDownload, ...],
    needs: tuple[DiskNeed, ...],
    status: Status,
    written: int,
    seconds: float,
) -> ExtractionReport:
    present = 0
    for bank in plan.store.banks:
        ids = {planned.expert for planned in bank.experts}
        if found.base is not None:
            ids |= found.base.banks_by_key[bank.key].records.keys()
        present += len(ids)
    files = found.files
    if status != "planned":
        files = tuple(replace(file, nbytes=(root / file.file).stat().st_size) for file in files)
    return ExtractionReport(
        status=status,
        store=root,
        source=origin.model.name,
        component=plan.store.model.component,
        experts_present=present,
        experts_total=sum(bank.num_experts - len(bank.weightless) for bank in plan.store.banks),
        files=files,
        downloads=downloads,
        ignored=plan.store.ignored,
        store_nbytes=sum(file.nbytes for file in files),
        dense_scheme=str(plan.store.dense_schemes),
        allocation=None,
        rounded=origin.rounded if origin.packed else None,
        int4_nbytes=None,
        int4_dense_scheme=None,
        written_nbytes=written,
        needed_nbytes=needs[0].needed,
        free_nbytes=needs[0].free,
        disks=needs,
        network=None,
        seconds=seconds,
    )
