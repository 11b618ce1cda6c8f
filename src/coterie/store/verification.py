"""Checking every byte of a store against its manifest, collecting problems instead of stopping at the first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from coterie.errors import StoreFormatError
from coterie.files.below import files_below
from coterie.records import FileChanged, LocalFile, piece_buffer, pieces
from coterie.spec import FileStamp, OpenBytes
from coterie.store import names
from coterie.store.dense_index import dense_problems
from coterie.store.from_hub import is_from_hub, is_of_repository
from coterie.store.leftovers import Leftover, find_leftover
from coterie.store.manifest import FileFacts, Manifest, Record, Segment
from coterie.store.manifest_file import check_file, load_manifest
from coterie.store.padding import PaddingCheck
from coterie.store.safetensors_file import read_header

ProblemKind = Literal["corrupt", "missing", "foreign", "malformed"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a store.

    Attributes:
        kind: ``corrupt`` (bytes differ from their checksum), ``missing`` (a file is not there or unreadable),
            ``foreign`` (a file that the manifest does not name) or ``malformed`` (a MUST rule is broken).
        file: Path relative to the store.
        place: Expert, key or offset within the file.
        rule: The MUST rule of docs/format.md, such as ``"R27"``.
        message: What is wrong, for people.
    """

    kind: ProblemKind
    file: str
    place: str
    rule: str
    message: str


@dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """What the verification of a store found.

    Attributes:
        path: The store.
        problems: Everything that is wrong, ordered by file; empty for a good store.
        files: Files that were checked.
        experts: Records whose checksum was compared.
        nbytes: Bytes that were read and hashed.
        leftovers: Files of a growth that is running or was interrupted, ordered by name; harmless.
    """

    path: Path
    problems: tuple[Problem, ...]
    files: int
    experts: int
    nbytes: int
    leftovers: tuple[Leftover, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_store(path: Path | str, *, progress: Progress | None = None, threads: int = 2) -> VerificationReport:
    """Checks manifest, headers, sizes, every checksum, and that there are no other files.

    Reads in pieces of 4 MiB per thread and drops what it read from the page cache.

    Args:
        path: The store.
        progress: Called with (bytes done, bytes in all), from any thread, one call at a time.
        threads: Files that are read at a time.

    Raises:
        StoreNotFoundError: If there is no store at all. Everything else is a problem in the report.
    """
    root = Path(path).absolute()
    try:
        manifest, _ = load_manifest(root)
    except StoreFormatError as error:
        problem = _from_error(root, error)
        return VerificationReport(path=root, problems=(problem,), files=1, experts=0, nbytes=0)
    return _Verification(root, manifest, progress).run(threads)


class _Verification:
    def __init__(self, root: Path, manifest: Manifest, progress: Progress | None) -> None:
        self._root = root
        self._manifest = manifest
        self._progress = progress
        self._problems: list[Problem] = []
        self._leftovers: list[Leftover] = []
        self._experts = 0
        self._done = 0
        self._total = sum(manifest.file_sizes.values())
        self._lock = threading.Lock()

    def run(self, threads: int) -> VerificationReport:
        segments = [segment for bank in self._manifest.banks for segment in bank.segments]
        with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
            tasks = [pool.submit(self._check_segment, segment) for segment in segments]
            tasks += [pool.submit(self._check_whole, facts) for facts in self._manifest.whole_files]
            for task in tasks:
                task.result()
        self._check_dense_tensors()
        self._check_others()
        return VerificationReport(
            path=self._root,
            problems=tuple(sorted(self._problems, key=lambda one: (one.file, one.rule, one.place))),
            files=1 + len(self._manifest.file_sizes),
            experts=self._experts,
            nbytes=self._done,
            leftovers=tuple(self._leftovers),
        )

    def _check_segment(self, segment: Segment) -> None:
        file, stamp = self._usable(segment.file, segment.nbytes)
        if file is None:
            return
        largest = max(record.nbytes for record in segment.records)
        with closing(file), piece_buffer(largest) as buffer:
            self._check_segment_header(segment, links=stamp is not None and stamp.links)
            for record in segment.records:
                try:
                    self._check_record(file, segment, record, buffer)
                except FileChanged as error:
                    # Of no record more is to be learned from it.
                    self._report("malformed", segment.file, "the file itself", "R20", f"{error}; verify it again")
                    break
                except OSError as error:
                    self._report("missing", segment.file, f"expert {record.expert:05d}", "R20", _unreadable(error))
            self._advance(segment.records[0].offset)

    def _check_segment_header(self, segment: Segment, *, links: bool) -> None:
        try:
            header = read_header(self._root / segment.file, links=links)
        except StoreFormatError as error:
            self._add(_from_error(self._root, error))
            return
        except OSError as error:
            self._report("missing", segment.file, "header", "R20", _unreadable(error))
            return
        if header.metadata:
            self._report("malformed", segment.file, "header", "R24", "an expert file has no metadata")
        found = {(one.name, one.dtype, one.shape, one.offset) for one in header.tensors}
        wanted = {(f"{one.expert:05d}", "U8", (one.nbytes,), one.offset) for one in segment.records}
        for name, _, _, offset in sorted(wanted ^ found):
            what = f"the tensor {name[:80]!r} at {offset} is in the header or in the manifest, not in both"
            self._report("malformed", segment.file, "header", "R24", what)
            return

    def _check_record(self, file: OpenBytes, segment: Segment, record: Record, buffer: memoryview) -> None:
        place = f"expert {record.expert:05d}, offset {record.offset}"
        digest = xxhash.xxh3_128()
        padding = PaddingCheck(self._manifest.layouts[record.layout])
        for piece in self._pieces(file, record.offset, record.nbytes, buffer):
            digest.update(piece)
            padding.look(piece)
        with self._lock:
            self._experts += 1
        if str(digest.hexdigest()) != record.checksum:
            what = f"xxh3-128 is {digest.hexdigest()}, the manifest says {record.checksum}"
            self._report("corrupt", segment.file, place, "R27", what)
            return
        if padding.nonzero is not None:
            place = f"expert {record.expert:05d}, byte {padding.nonzero} of the record"
            self._report("malformed", segment.file, place, "R26", "padding is not zero")

    def _check_whole(self, facts: FileFacts) -> None:
        file, _ = self._usable(facts.file, facts.nbytes)
        if file is None:
            return
        digest = xxhash.xxh3_128()
        with closing(file):
            try:
                for piece in self._pieces(file, 0, facts.nbytes):
                    digest.update(piece)
            except FileChanged as error:
                self._report("malformed", facts.file, "the file itself", "R20", f"{error}; verify it again")
                return
            except OSError as error:
                self._report("missing", facts.file, "the file itself", "R20", _unreadable(error))
                return
        if str(digest.hexdigest()) != facts.checksum:
            what = f"xxh3-128 is {digest.hexdigest()}, the manifest says {facts.checksum}"
            self._report("corrupt", facts.file, "the file itself", "R28", what)

    def _check_dense_tensors(self) -> None:
        for error in dense_problems(self._root, self._manifest):
            self._add(_from_error(self._root, error))

    def _check_others(self) -> None:
        """What is in the directory beside the store's own files."""
        known = {names.MANIFEST, *self._manifest.file_sizes}
        from_hub = is_from_hub(self._root)
        for name in files_below(self._root):
            if name in known or (from_hub and is_of_repository(name)):
                continue
            try:
                leftover = find_leftover(self._root, self._manifest, name)
            except FileNotFoundError:
                continue  # a growth that is running has just finished with it
            except OSError as error:
                self._report("foreign", name, "the file itself", "R29", _unreadable(error))
                continue
            if leftover is None:
                self._report("foreign", name, "the file itself", "R29", "a file that the manifest does not name")
            else:
                self._leftovers.append(leftover)

    def _usable(self, name: str, nbytes: int) -> tuple[OpenBytes | None, FileStamp | None]:
        """The opened file and its stamp; None, with a problem noted, if it is not what the manifest says."""
        try:
            stamp = check_file(self._root, name, nbytes)
            return LocalFile(self._root / name, stamp).open("in order"), stamp
        except StoreFormatError as error:
            self._add(_from_error(self._root, error))
        except OSError as error:
            self._report("missing", name, "the file itself", "R20", _unreadable(error))
        return None, None

    def _pieces(
        self, file: OpenBytes, offset: int, nbytes: int, buffer: memoryview | None = None
    ) -> Iterator[memoryview]:
        """The bytes of a range; fewer if the file ends. What was read leaves the page cache."""
        for piece in pieces(file, offset, nbytes, buffer):
            yield piece
            self._advance(len(piece))

    def _advance(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            if self._progress is not None:
                self._progress(self._done, self._total)

    def _report(self, kind: ProblemKind, file: str, place: str, rule: str, message: str) -> None:
        self._add(Problem(kind=kind, file=file, place=place, rule=rule, message=message))

    def _add(self, problem: Problem) -> None:
        with self._lock:
            self._problems.append(problem)


def _from_error(root: Path, error: StoreFormatError) -> Problem:
    file = Path(str(error.facts["path"])).relative_to(root).as_posix()
    missing = error.facts["rule"] == "R20" and not (root / file).exists()
    return Problem(
        kind="missing" if missing else "malformed",
        file=file,
        place=str(error.facts["place"]),
        rule=str(error.facts["rule"]),
        message=error.message,
    )


def _unreadable(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or error}"
