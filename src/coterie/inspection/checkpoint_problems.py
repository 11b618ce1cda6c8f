"""Everything that is wrong with a checkpoint's files, headers and claims, without stopping at the first."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from coterie.checkpoint import Checkpoint, Location, read_header
from coterie.errors import (
    CheckpointError,
    CheckpointFileError,
    CoterieError,
    TensorMissingError,
    UnclaimedTensorError,
    UnsupportedError,
)
from coterie.extraction.progress import Meter, ProgressCallback
from coterie.hf.configs import read_config
from coterie.store import Problem


def file_problems(location: Location) -> list[Problem]:
    """Shards that are missing, truncated or malformed, and tensors that index and shards disagree about.

    Shards of a Hub repository that are not on this machine are left out.
    """
    problems: list[Problem] = []
    try:
        files = location.weight_files(read_config(location.directory).get("transformers_weights"))
    except CheckpointFileError as error:
        return [_problem("malformed", _file_of(error, location.directory), error)]
    except UnsupportedError:
        return []  # which opening it says
    listed = files.weight_map
    found: dict[str, str] = {}
    readable: set[str] = set()
    for file in files.shards:
        path = location.directory / file
        if location.repo_id is not None and not path.exists():
            continue
        try:
            found.update(dict.fromkeys(read_header(path), file))
            readable.add(file)
        except CheckpointFileError as error:
            problems.append(_problem("malformed" if path.exists() else "missing", file, error))
    for name, file in sorted(listed.items()):
        if file in readable and found.get(name) != file:
            message = f"{files.index} says that {name!r} is in {file}, which does not have it"
            problems.append(Problem(kind="missing", file=file, place=name, rule="", message=message))
    for name, file in sorted(found.items()):
        if listed and name not in listed:
            message = f"{file} has a tensor {name!r} that {files.index} does not list"
            problems.append(Problem(kind="foreign", file=file, place=name, rule="", message=message))
    return problems


def checksum_problems(location: Location, progress: ProgressCallback | None) -> tuple[list[Problem], int]:
    """Files of a repository, as far as they are on this machine, whose bytes are not those of the Hub.

    Returns:
        The problems, and the bytes that were compared. A directory has no checksums.
    """
    repository = location.repository
    if repository is None:
        return [], 0
    sizes = {n: (location.directory / n).stat().st_size for n in repository.file_names() if repository.is_here(n)}
    meter = Meter("checksums", sum(sizes.values()), progress)
    problems: list[Problem] = []
    for name in sizes:
        wrong = repository.checksum_problem(name, meter.advance)
        if wrong is not None:
            blob = (location.directory / name).resolve()
            message = f"{wrong}; remove {blob}, and it is downloaded again"
            problems.append(Problem(kind="corrupt", file=name, place="the file itself", rule="", message=message))
    return problems, meter.done


def open_problems(
    location: Location, component: str | None, known: list[Problem]
) -> tuple[Checkpoint | None, list[Problem]]:
    """Opens the checkpoint; if it cannot be opened, every tensor that is missing or belongs to nothing is a problem.

    Args:
        location: Its files.
        component: Part of the model to check, or None.
        known: Problems of its files. If there are some, that it cannot be opened is no news.

    Raises:
        CoterieError: If it cannot be opened for a reason that is not its files' fault.
    """
    source = location.repo_id or location.directory
    try:
        found = Checkpoint.open(source, component=component, revision=location.revision, offline=location.offline)
        return found, [_tensor_problem("foreign", name) for name in found.keymap.left_out]
    except TensorMissingError as error:
        if known:
            return None, []
        names = error.facts.get("missing") or [error.facts.get("tensor", "")]
        return None, [_tensor_problem("missing", str(name)) for name in _listed(names)]
    except UnclaimedTensorError as error:
        return None, [] if known else [
            _tensor_problem("foreign", str(name)) for name in _listed(error.facts.get("unclaimed"))
        ]
    except CheckpointError as error:
        return None, [] if known else [_problem("malformed", _file_of(error, location.directory), error)]


def _listed(names: object) -> list[object]:
    return list(names) if isinstance(names, list | tuple) else [names]


def _tensor_problem(kind: Literal["missing", "foreign"], name: str) -> Problem:
    what = "the model needs it, the checkpoint lacks it" if kind == "missing" else "it belongs to nothing in the model"
    return Problem(kind=kind, file="", place=name, rule="", message=f"{name!r}: {what}")


def _problem(kind: Literal["missing", "malformed"], file: str, error: CoterieError) -> Problem:
    place = str(error.facts.get("tensor") or "the file itself")
    return Problem(kind=kind, file=file, place=place, rule="", message=error.message)


def _file_of(error: CoterieError, directory: Path) -> str:
    path = Path(str(error.facts.get("path") or directory))
    return path.relative_to(directory).as_posix() if path.is_relative_to(directory) and path != directory else ""
