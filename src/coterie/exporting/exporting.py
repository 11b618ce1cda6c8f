"""Store to checkpoint: the standard form, which stock transformers opens with the store's bits."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import xxhash

from coterie.checkpoint import Checkpoint
from coterie.errors import DiskSpaceError, ExtractionError, StoreError, UsageError
from coterie.exporting.checks import check_exportable
from coterie.exporting.experts import ExpertFields, expert_tensors
from coterie.exporting.files import CHECKSUMS, INDEX, CheckpointWriter, check_target, shard_files
from coterie.exporting.names import checkpoint_keymap
from coterie.extraction.dense import as_stored
from coterie.extraction.linears import stored_rows
from coterie.extraction.progress import Meter, ProgressCallback
from coterie.extraction.target import check_apart
from coterie.files.naming import check_new_name
from coterie.files.nearest import nearest_directory
from coterie.files.regular import read_bounded
from coterie.hf.configs import read_config
from coterie.hf.prediction_heads import without_prediction_heads
from coterie.origins import StoreOrigin
from coterie.origins.store_or_checkpoint import find_model
from coterie.origins.store_place import StorePlace
from coterie.origins.stored_dense import StoredLinear, dense_files
from coterie.quant.dtypes import SAFETENSORS_DTYPES, tensor_bytes
from coterie.spec import RECORD_ALIGNMENT, format_bytes, round_up
from coterie.store import DenseTensor
from coterie.store.dense_writer import DENSE_SHARD_LIMIT, DenseShard, plan_shards, shard_index
from coterie.store.manifest_json import manifest_bytes
from coterie.store.names import MAX_SIDE_FILE_BYTES
from coterie.store.survey import SurveyedFile
from coterie.store.syscalls import SystemCalls

_RESERVE = 2**20
"""Bytes kept free for directories, the journal and the file system's own needs."""

_CONFIG = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export did, or with ``status`` ``planned`` would do.

    Attributes:
        schema_version: Version of this form.
        status: ``planned`` (a dry run), ``written``, or ``resumed`` (an interrupted one was finished).
        store: The store.
        checkpoint: The checkpoint's directory.
        files: Every file of it.
        experts: Component → experts in each layer.
        dequantised: Whether weights in a scheme of ours were dequantised, which leaves their losses as they are.
        left_out: Tensors of the source that the store does not have and that are not in the checkpoint either, such as
            heads that predict several tokens.
        changed_keys: Keys of the configuration that are 0 because of that.
        nbytes: Bytes of the whole checkpoint.
        written_nbytes: Bytes of weights written now; 0 for a dry run.
        needed_nbytes: Bytes that were still needed on the disk before.
        free_nbytes: Bytes that were free there before.
        seconds: Time taken.
    """

    schema_version: int = 1
    status: Literal["planned", "written", "resumed"]
    store: Path
    checkpoint: Path
    files: tuple[SurveyedFile, ...]
    experts: Mapping[str, int]
    dequantised: bool
    left_out: tuple[str, ...]
    changed_keys: tuple[str, ...]
    nbytes: int
    written_nbytes: int
    needed_nbytes: int
    free_nbytes: int
    seconds: float

    def to_json(self) -> dict[str, object]:
        """The report as JSON values."""
        return {**asdict(self), "store": str(self.store), "checkpoint": str(self.checkpoint)}


def export(
    store: str | Path,
    checkpoint: str | Path,
    *,
    dequantise: bool = False,
    dry_run: bool = False,
    restart: bool = False,
    shard_limit: int = DENSE_SHARD_LIMIT,
    progress: ProgressCallback | None = None,
    calls: SystemCalls | None = None,
) -> ExportReport:
    """Makes a standard Hugging Face checkpoint of a store; goes on with an interrupted one.

    Tensors have the names, shapes and bytes that they have in the checkpoint which the store was made from. Those of a
    pruned store have fewer experts, numbered from 0; the configuration differs in the number of experts alone.
    transformers, without Coterie, opens it with the bits that the store gives. ``SHA256SUMS`` has checksums of all
    files. ``config.json`` is written last, so what is unfinished is not taken for a checkpoint.

    Args:
        store: A store with all of a model's experts.
        checkpoint: The new checkpoint's directory.
        dequantise: Whether weights in a lossy scheme may be dequantised, which leaves their losses as they are.
        dry_run: Write nothing; report what would be done.
        restart: Discard an unfinished export of another store.
        shard_limit: Bytes of tensors per file of weights, unless one tensor alone is larger.
        progress: Told about bytes and time left.
        calls: The system calls that change the disk; tests pass one that fails.

    Returns:
        What was done.

    Raises:
        UsageError: If it is no store, a partial one, one component of a model, or in a lossy scheme without
            ``dequantise``.
        UnsupportedError: If the checkpoint's form cannot be found again.
        DiskSpaceError: If the checkpoint does not fit; nothing is written then.
        ChecksumError: If the store is damaged.
        StoreError: If the directory holds something else, or cannot be written.
    """
    start = monotonic()
    check_new_name(checkpoint)
    if shard_limit < 1:
        raise UsageError(f"A file of weights cannot have {shard_limit} bytes.")
    found = find_model(store)
    if not isinstance(found, StorePlace):
        raise UsageError(
            f"{store} is a checkpoint already.",
            advice="Export makes a checkpoint of a store: name a store.",
            path=store,
        )
    origin, path = StoreOrigin.at(found), found.directory
    lossy = check_exportable(origin, dequantise=dequantise)
    if dequantise and not lossy:
        warnings.warn(f"{path} has no weights in a scheme of Coterie's: there is nothing to dequantise.", stacklevel=2)
    root = Path(checkpoint).expanduser().absolute()
    check_apart(root, path)
    fields = ExpertFields(origin)
    try:
        plan = _plan(origin, fields, shard_limit)
        return _carry_out(
            origin, root, plan, start, dry_run=dry_run, restart=restart, lossy=lossy, progress=progress, calls=calls
        )
    finally:
        fields.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is to be written."""

    shards: tuple[DenseShard, ...]
    side_files: tuple[str, ...]
    config: bytes
    changed_keys: tuple[str, ...]
    parts: Mapping[str, str]

    @property
    def index(self) -> bytes | None:
        return shard_index(self.shards) if len(self.shards) > 1 else None


def _plan(origin: StoreOrigin, fields: ExpertFields, shard_limit: int) -> _Plan:
    keymap = checkpoint_keymap(origin)
    tensors = [*_dense_tensors(origin), *expert_tensors(origin, keymap, fields)]
    shards = plan_shards(tensors, shard_limit, shard_files)
    raw = read_config(origin.directory)
    changed, keys = without_prediction_heads(raw, origin.model.skeleton)
    config = read_bounded(origin.directory / _CONFIG, MAX_SIDE_FILE_BYTES)
    if keys:
        config = json.dumps(changed, indent=2).encode() + b"\n"
    manifest = origin.store.manifest
    layout = "/".join(_layout(shard) for shard in shards)
    return _Plan(
        shards=shards,
        side_files=tuple(facts.file for facts in manifest.files if facts.file != _CONFIG),
        config=config,
        changed_keys=keys,
        parts={
            "export of": xxhash.xxh3_128_hexdigest(manifest_bytes(manifest)),
            "files": xxhash.xxh3_128_hexdigest(layout.encode()),
        },
    )


def _dense_tensors(origin: StoreOrigin) -> Iterator[DenseTensor]:
    """Everything that is not an expert; what is in a scheme of ours dequantised."""
    for name in origin.model.keymap.dense:
        linear = origin.linears.get(name)
        if linear is None:
            yield as_stored(origin.tensors[name])
            continue
        dtype = SAFETENSORS_DTYPES[origin.model.dtype]
        rows, columns = linear.codes.shape[0], linear.scheme.form.values(linear.codes.shape[1])
        yield DenseTensor(name=name, dtype=dtype, shape=(rows, columns), chunks=partial(_rows, origin, linear))


def _rows(origin: StoreOrigin, linear: StoredLinear) -> Iterator[memoryview]:
    for rows in stored_rows(*linear.tensors, linear.scheme, origin.model.dtype):
        yield tensor_bytes(rows)


def _layout(shard: DenseShard) -> str:
    return str(xxhash.xxh3_128_hexdigest(shard.header))


def _carry_out(
    origin: StoreOrigin,
    root: Path,
    plan: _Plan,
    start: float,
    *,
    dry_run: bool,
    restart: bool,
    lossy: bool,
    progress: ProgressCallback | None,
    calls: SystemCalls | None,
) -> ExportReport:
    finished = check_target(root, plan.parts, restart=restart)
    files = _files(origin, root, plan, finished)
    needed = sum(round_up(file.nbytes, RECORD_ALIGNMENT) for file in files if not file.present) + _RESERVE
    free = shutil.disk_usage(nearest_directory(root)).free
    if needed > free:
        raise DiskSpaceError(
            f"The checkpoint needs {format_bytes(needed)} on the disk of {root}; {format_bytes(free)} are free.",
            advice=f"Free {format_bytes(needed - free)}, or choose another disk.",
            path=root,
            needed=needed,
            free=free,
        )
    report = ExportReport(
        status="planned",
        store=origin.directory,
        checkpoint=root,
        files=files,
        experts={key.component: bank.bank.num_experts for key, bank in origin.model.banks.items()},
        dequantised=lossy,
        left_out=tuple(origin.store.manifest.ignored),
        changed_keys=plan.changed_keys,
        nbytes=sum(file.nbytes for file in files),
        written_nbytes=0,
        needed_nbytes=needed,
        free_nbytes=free,
        seconds=monotonic() - start,
    )
    if dry_run:
        return report
    written = _write(origin, root, plan, restart=restart, progress=progress, calls=calls)
    _check_written(origin, root, lossy=lossy)
    sizes = {file.file: (root / file.file).stat().st_size for file in files}
    return replace(
        report,
        status="resumed" if any(file.present for file in files) else "written",
        files=tuple(replace(file, nbytes=sizes[file.file]) for file in files),
        nbytes=sum(sizes.values()),
        written_nbytes=written,
        seconds=monotonic() - start,
    )


def _files(origin: StoreOrigin, root: Path, plan: _Plan, finished: Mapping[str, Any]) -> tuple[SurveyedFile, ...]:
    sizes = {shard.file: shard.nbytes for shard in plan.shards}
    if plan.index is not None:
        sizes[INDEX] = len(plan.index)
    known = {facts.file: facts.nbytes for facts in origin.store.manifest.files}
    sizes |= {name: known[name] for name in plan.side_files} | {_CONFIG: len(plan.config)}
    sizes[CHECKSUMS] = sum(len(name) + 67 for name in sizes)

    def present(name: str, nbytes: int) -> bool:
        return name in finished and (root / name).is_file() and (root / name).stat().st_size == nbytes

    return tuple(
        SurveyedFile(file=name, nbytes=nbytes, present=present(name, nbytes)) for name, nbytes in sizes.items()
    )


def _write(
    origin: StoreOrigin,
    root: Path,
    plan: _Plan,
    *,
    restart: bool,
    progress: ProgressCallback | None,
    calls: SystemCalls | None,
) -> int:
    """Writes what is missing; returns the bytes of weights written."""
    for file in dense_files(origin.store):
        # What is damaged must not get a new checksum that matches.
        file.check()
    with CheckpointWriter(root, plan.parts, restart=restart, calls=calls) as writer:
        wanted = [shard for shard in plan.shards if not writer.finished(shard.file, _layout(shard))]
        meter = Meter("export", sum(tensor.nbytes for shard in wanted for tensor in shard.tensors), progress)
        for shard in wanted:
            metered = tuple(replace(one, chunks=partial(_metered, one, meter)) for one in shard.tensors)
            writer.write_shard(replace(shard, tensors=metered), _layout(shard))
        for name in plan.side_files:
            writer.write_file(name, _side_file(origin.directory / name))
        last = {} if plan.index is None else {INDEX: plan.index}
        for name, data in (last | {_CONFIG: plan.config}).items():
            writer.write_file(name, data)
        origin.store.check_unchanged()
        writer.finish([*(shard.file for shard in plan.shards), *plan.side_files, *last, _CONFIG])
        return meter.done


def _metered(tensor: DenseTensor, meter: Meter) -> Iterator[memoryview | bytes]:
    for piece in tensor.chunks():
        yield piece
        meter.advance(memoryview(piece).nbytes)


def _side_file(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_SIDE_FILE_BYTES)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.", path=path) from error


def _check_written(origin: StoreOrigin, root: Path, *, lossy: bool) -> None:
    """Opens the checkpoint as a stranger's: every tensor has a place, and it is the store's model."""
    identity = Checkpoint.open(root, offline=True).identity
    if identity != origin.identity and not lossy:
        raise ExtractionError(
            f"{root} was written, and is another model than the store.",
            advice="This is a fault of Coterie; do not use the checkpoint, and report the model's name.",
            path=root,
            expected=origin.identity,
            got=identity,
        )
