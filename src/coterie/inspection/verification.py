"""Is a store, or a checkpoint, whole and unharmed, and the same as what it was made from?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Literal

from coterie.checkpoint import Location
from coterie.errors import CoterieError, StoreError
from coterie.extraction.dense import dense_tensors
from coterie.extraction.progress import Meter, ProgressCallback
from coterie.extraction.tokenizer_check import store_tokenizer_problems, tokenizer_problems
from coterie.files.naming import model_path
from coterie.hf.tokenizer import embedding_rows
from coterie.inspection.checkpoint_problems import checksum_problems, file_problems, open_problems
from coterie.inspection.comparison import Comparison
from coterie.inspection.store_model import model_problems
from coterie.origins import CheckpointOrigin, Origin
from coterie.origins.pruned_origin import PrunedOrigin
from coterie.origins.selection import Selection
from coterie.origins.store_or_checkpoint import find_model, need_checkpoint
from coterie.origins.store_origin import tensors_about
from coterie.origins.store_place import StorePlace
from coterie.origins.stored_dense import dense_headers
from coterie.store import Leftover, Problem, Store, verify_store
from coterie.store.manifest_file import load_manifest

_MOST_DENSE = 20_000
"""More tensors than any model has outside experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVerification:
    """What verification found.

    Attributes:
        schema_version: Version of this form.
        kind: ``store`` or ``checkpoint``.
        model: What was verified.
        against: The checkpoint it was compared with, or None.
        problems: Everything that is wrong: corrupt, missing, foreign or malformed, with file and place.
        files: Files that were checked.
        experts: Experts whose checksum was compared (0 for a checkpoint, which has none).
        checked_nbytes: Bytes whose checksum was compared.
        compared_tensors: Tensors that were compared bit for bit with the checkpoint, those within experts not counted
            for a store.
        compared_experts: Experts of a store that were compared bit for bit with the checkpoint.
        absent_experts: Experts that a partial store does not have by intention; no problem.
        leftovers: Files in a store that a growth which is running, or was interrupted, has written so far; no problem.
            The next growth or extraction removes them.
        seconds: Time taken.
    """

    schema_version: int = 1
    kind: Literal["store", "checkpoint"]
    model: str
    against: str | None
    problems: tuple[Problem, ...]
    files: int
    experts: int
    checked_nbytes: int
    compared_tensors: int
    compared_experts: int
    absent_experts: int
    leftovers: tuple[Leftover, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, object]:
        """The report as JSON values."""
        return {**asdict(self), "ok": self.ok}


def verify(
    model: str | Path,
    *,
    against: str | Path | None = None,
    component: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: ProgressCallback | None = None,
) -> ModelVerification:
    """Checks a store or a checkpoint completely and reports everything that is wrong.

    Of a store every checksum, header and rule of the format is checked. Of a checkpoint, which has no checksums:
    that every file is there and whole, that headers and index agree, and that every tensor that the model needs is
    there, belongs to something and has the right size.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``.
        against: A checkpoint; every tensor is compared with it bit for bit.
        component: For a checkpoint, only this part of the model.
        revision: Branch, tag or commit, where ``model`` (or else ``against``) is on the Hub.
        offline: Use only what is on this machine.
        progress: Told about bytes and time left.

    Raises:
        StoreNotFoundError: If the directory is neither a store nor a checkpoint.
        CheckpointError: If there is no such checkpoint, or ``against`` cannot be opened.
        UnsupportedError: If the checkpoint's architecture is out of scope.
    """
    start = monotonic()
    is_here = model_path(model).is_dir()
    found = find_model(model, revision=None if is_here else revision, offline=offline)
    if against is not None:
        need_checkpoint(against, "Compare with the checkpoint that the store was made from.")
    if not isinstance(found, StorePlace):
        return _verify_checkpoint(model, found, against, component, revision, offline, progress, start)
    path = found.directory
    found.download()
    meter: Meter | None = None

    def checked(done: int, total: int) -> None:
        nonlocal meter
        meter = meter or Meter("checksums", total, progress)
        meter.reach(done)

    report = verify_store(path, progress=checked)
    problems = list(report.problems)
    tensors = experts = absent = 0
    store = _opened(path)
    if store is not None:
        absent = sum(len(bank.absent) for bank in store.banks.values())
        if not {problem.file for problem in problems} & {facts.file for facts in store.manifest.files}:
            problems += _tokenizer_problems(store)
        if not problems:
            problems += model_problems(path)
        if against is not None:
            other = _other(store, against, revision if is_here else None, offline)
            dense = sum(tensor.nbytes for tensor in dense_tensors(other, store.manifest.dense_schemes))
            comparison = Comparison(other, Meter("compare", 2 * (dense + store.manifest.expert_nbytes), progress))
            comparison.store(store)
            tensors, experts = comparison.tensors, comparison.experts
            problems += _news(comparison.problems, problems)
    return ModelVerification(
        kind="store",
        model=str(found),
        against=None if against is None else str(against),
        problems=tuple(problems),
        files=report.files,
        experts=report.experts,
        checked_nbytes=report.nbytes,
        compared_tensors=tensors,
        compared_experts=experts,
        absent_experts=absent,
        leftovers=report.leftovers,
        seconds=monotonic() - start,
    )


def _other(store: Store, against: str | Path, revision: str | None, offline: bool) -> Origin:
    """What a store is compared with: a checkpoint, or what is left of it where the store was pruned of it."""
    origin = CheckpointOrigin.open(
        against, component=store.manifest.model.component, revision=revision, offline=offline
    )
    selection = Selection.read(store.path)
    if selection is None or Selection.read(origin.directory) is not None:
        return origin
    if selection.banks.keys() != origin.model.banks.keys() or any(
        bank.before != origin.model.banks[key].bank.num_experts for key, bank in selection.banks.items()
    ):
        return origin
    return PrunedOrigin(origin, {key: bank.experts for key, bank in selection.banks.items()}, selection)


def _verify_checkpoint(
    model: str | Path,
    location: Location,
    against: str | Path | None,
    component: str | None,
    revision: str | None,
    offline: bool,
    progress: ProgressCallback | None,
    start: float,
) -> ModelVerification:
    problems, checked = checksum_problems(location, progress)
    problems += file_problems(location)
    checkpoint, found = open_problems(location, component, problems)
    problems += found
    tensors = 0
    if checkpoint is not None:
        problems += tokenizer_problems(location.directory, embedding_rows(checkpoint.skeleton))
    if checkpoint is not None and against is not None:
        other = CheckpointOrigin.open(against, component=component, revision=revision, offline=offline)
        total = sum(info.nbytes for info in other.tensors.values())
        comparison = Comparison(other, Meter("compare", 2 * total, progress))
        checkpoint.download(checkpoint.tensors)
        comparison.checkpoint(checkpoint.tensors)
        tensors = comparison.tensors
        problems += comparison.problems
    files = 0 if checkpoint is None else len({info.path for info in checkpoint.tensors.values()})
    return ModelVerification(
        kind="checkpoint",
        model=str(model),
        against=None if against is None else str(against),
        problems=tuple(problems),
        files=files,
        experts=0,
        checked_nbytes=checked,
        compared_tensors=tensors,
        compared_experts=0,
        absent_experts=0,
        leftovers=(),
        seconds=monotonic() - start,
    )


def _opened(path: Path) -> Store | None:
    """The store, whatever its files are like; None if its manifest is damaged, which is known by then."""
    try:
        manifest, _ = load_manifest(path.absolute())
    except StoreError:
        return None
    return Store(path.absolute(), manifest)


def _tokenizer_problems(store: Store) -> list[Problem]:
    try:
        dense = len(dense_headers(store))
    except CoterieError:
        dense = _MOST_DENSE  # how large its model may be is not known
    parts = tensors_about(dense, sum(bank.num_experts for bank in store.banks.values()))
    return store_tokenizer_problems(store.path, store.manifest.model.component, parts)


def _news(found: list[Problem], known: list[Problem]) -> list[Problem]:
    """Problems of places that were not known to be damaged: one flipped bit is one problem, not two."""
    places = {(problem.file, problem.place.partition(",")[0]) for problem in known}
    gone = {problem.file for problem in known if problem.kind == "missing"}
    return [one for one in found if one.file not in gone and (one.file, one.place) not in places]
