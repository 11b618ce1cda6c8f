"""What writing a plan to a directory would take, found out without changing anything there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import StoreError
from coterie.files.below import files_below
from coterie.spec import RECORD_ALIGNMENT, round_up
from coterie.store import names
from coterie.store.continuation import check_growth, refuse_foreign, refuse_other_plan
from coterie.store.dense_writer import DENSE_SHARD_LIMIT, DenseTensor, plan_shards
from coterie.store.journal import JournalHeader, read_journal
from coterie.store.manifest import Manifest
from coterie.store.manifest_file import is_store, load_manifest
from coterie.store.manifest_json import manifest_bytes
from coterie.store.plan import StorePlan, plan_segments


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyedFile:
    """A file that a store, or a checkpoint of it, will have.

    Attributes:
        file: Path relative to its directory.
        nbytes: Its size; for the manifest an upper estimate.
        present: Whether it is there already and will not be written again.
    """

    file: str
    nbytes: int
    present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What writing a plan would take.

    Attributes:
        base: Manifest of the finished store that would be grown, or None.
        unfinished: Whether an interrupted extraction would be continued.
        files: Every file of the store that would result.
        reclaimable: Bytes of left-overs that the writer removes first.
    """

    base: Manifest | None
    unfinished: bool
    files: tuple[SurveyedFile, ...]
    reclaimable: int

    @property
    def missing_nbytes(self) -> int:
        """Bytes that would be written, each file rounded up to whole pages."""
        return sum(round_up(file.nbytes, RECORD_ALIGNMENT) for file in self.files if not file.present)

    @property
    def complete(self) -> bool:
        """Whether there is nothing to do."""
        return all(file.present for file in self.files)


def survey(
    path: Path | str,
    plan: StorePlan,
    dense: Sequence[DenseTensor],
    side_files: Mapping[str, int],
    *,
    restart: bool = False,
    compare: bool = True,
    shard_limit: int = DENSE_SHARD_LIMIT,
) -> Survey:
    """Looks at a directory as :meth:`StoreWriter.open` would, without locking or changing it.

    Args:
        path: The store's directory; need not exist.
        plan: What the store is to hold.
        dense: Everything that is not an expert.
        side_files: Size in bytes of each side file of the plan.
        restart: Whether an unfinished store of another plan would be discarded.
        compare: Whether the fingerprints in the plan are real ones; if not, whatever is there is taken to belong.
        shard_limit: Bytes of tensors per dense file.

    Raises:
        UsageError: If the plan breaks the store format.
        StoreError: If the writer would refuse the directory.
    """
    root = Path(path).absolute()
    parts = plan.digests()
    refuse_foreign(root)
    base, digest = load_manifest(root) if is_store(root) else (None, "")
    if base is not None and compare:
        check_growth(root, base, plan)
    journal = read_journal(root / names.JOURNAL)
    header = None if journal is None else journal[0]
    if base is None and not restart and compare and (root / names.JOURNAL).exists():
        refuse_other_plan(root, header, parts)
    continued = header is not None and not restart and (not compare or _continues(header, digest, parts))
    finished = {} if journal is None or not continued else journal[1]
    old = {} if base is None else base.file_sizes

    def entry(file: str, nbytes: int) -> SurveyedFile:
        done = finished.get(file)
        there = done is not None and done.nbytes == nbytes and _size(root / file) == nbytes
        return SurveyedFile(file=file, nbytes=nbytes, present=file in old or there)

    segments = plan_segments(plan, base)
    files = [SurveyedFile(file=file, nbytes=nbytes, present=True) for file, nbytes in old.items()]
    files += [entry(one.segment.file, one.segment.nbytes) for one in segments.values()]
    if base is None:
        shards = plan_shards(dense, shard_limit)
        files += [entry(shard.file, shard.nbytes) for shard in shards]
        if len(shards) > 1:
            # Per tensor: its name, the shard's name, quotes and separators.
            index = sum(len(tensor.name) + len(shard.file) + 8 for shard in shards for tensor in shard.tensors)
            files.append(entry(names.DENSE_INDEX, index + 64))
        files += [entry(file, nbytes) for file, nbytes in side_files.items()]
    written = base is not None and not segments
    manifest = len(manifest_bytes(plan.draft())) + (0 if base is None else len(manifest_bytes(base)))
    files.append(SurveyedFile(file=names.MANIFEST, nbytes=manifest, present=written))
    kept = {file.file for file in files if file.present} | {names.MANIFEST}
    return Survey(base=base, unfinished=continued, files=tuple(files), reclaimable=_leftovers(root, kept))


def _continues(header: JournalHeader, digest: str, parts: Mapping[str, str]) -> bool:
    return header.base == digest and header.parts == dict(parts)


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _leftovers(root: Path, kept: set[str]) -> int:
    """Allocated bytes of the writer's own files that it removes or replaces."""
    total = 0
    if not root.is_dir():
        return 0
    try:
        for name in files_below(root):
            if name not in kept and (
                names.is_partial_file(name)
                or names.is_segment_file(name)
                or names.is_dense_file(name)
                or name.startswith(f"{names.CALIBRATION}/")
            ):
                total += (root / name).lstat().st_blocks * 512
    except OSError as error:
        raise StoreError(f"{root} cannot be listed: {error.strerror}.", path=root) from error
    return total
