"""Every error that Coterie raises on purpose, in one tree.

::

    CoterieError
    ├── UsageError                 a value that the caller passed is not valid (says the nearest valid one)
    ├── CheckpointError            a Hugging Face checkpoint cannot be used
    │   ├── CheckpointNotFoundError    no such directory or Hub repository
    │   ├── CheckpointFileError        a file is missing, truncated or malformed
    │   ├── TensorMissingError         a tensor that the model needs is not in the checkpoint
    │   └── UnclaimedTensorError       a tensor of the checkpoint belongs to nothing in the model
    ├── UnsupportedError           the model, router, quantisation or operation is out of scope (named)
    │   └── ContractError              the installed transformers does otherwise than Coterie relies on
    ├── StoreError                 a store cannot be used
    │   ├── StoreNotFoundError         the directory is not a (finished) store
    │   ├── StoreFormatError           a MUST rule of docs/format.md is broken: file, rule, place
    │   ├── ChecksumError              bytes differ from the checksum in the manifest
    │   └── StoreBusyError             another process is writing this store
    ├── ExtractionError            extraction cannot start or go on
    │   ├── DiskSpaceError             the result does not fit on the disk
    │   └── QuantisationError          weights cannot be stored in the scheme asked for
    ├── MemoryBudgetError          the byte budget is below the minimum (says what would do)
    ├── CoverageError              a partial store was opened without saying what to do about absent experts
    ├── ExpertMissingError         an absent expert was routed to under missing="error"
    ├── LoadError                  loading would have left weights uninitialised or foreign
    ├── ReadError                  an expert could not be read while running
    ├── ContextLengthError         more tokens than the budget was made for
    ├── EngineError                an engine does not work on a request (any longer)
    │   ├── QueueFullError             too many wait already (says when to ask again)
    │   ├── QueueTimeoutError          its turn did not come in time
    │   ├── RequestCancelledError      nobody wants it any more
    │   └── EngineStoppedError         the engine takes nothing on, or has been ended
    ├── SpeechError                an answer could not be spoken to its end (has what was spoken)
    ├── OutputError                a file that was asked for cannot be written
    ├── PublishError               the Hub does not take what is to be published there (status, and what to do)
    ├── InputError                 a prompt, picture or sound cannot be turned into model inputs
    ├── ReplicaError               a copy of a model cannot be started in another process, or cannot go on
    ├── ClusterError               work cannot be spread over the machines of a cluster, or cannot go on there
    ├── MissingPackageError        an optional package is not installed (says the line that installs it)
    └── ProfileError               a database of what experts do cannot be used
        ├── ProfileNotFoundError       there is no such profile, or nothing was recorded in it
        ├── ProfileFormatError         not a profile, or a damaged one
        ├── ProfileVersionError        its schema is of a newer Coterie, or of none
        ├── ProfileIdentityError       it is about another model (names both)
        ├── ProfileWriteError          it cannot be written: permission, disk, another writer
        └── ProfileConnectionError     a server does not answer, or answers something else

Each error carries its facts as attributes (``path``, ``tensor``, ``expected``, ``got``, ...) and its message says
what to do about it. Everything that Coterie raises on purpose is a :class:`CoterieError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CoterieError(Exception):
    """Base class of every error raised on purpose by Coterie.

    Args:
        message: What is wrong, naming the thing.
        advice: What to do about it; appended to the message after a blank space.
        **facts: Values worth reading by a program; each becomes an attribute.
    """

    def __init__(self, message: str, *, advice: str | None = None, **facts: object) -> None:
        self.message = _encodable(message)
        self.advice = None if advice is None else _encodable(advice)
        self.facts = facts
        super().__init__(self.message if self.advice is None else f"{self.message} {self.advice}")

    def __getattr__(self, name: str) -> object:
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.advice, self.facts))


def _encodable(text: str) -> str:
    """A name or value of a strange file may have halves of surrogate pairs, which nothing can print or send."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _rebuild(
    error_class: type[CoterieError], message: str, advice: str | None, facts: dict[str, object]
) -> CoterieError:
    return error_class(message, advice=advice, **facts)


class UsageError(CoterieError, ValueError):
    """A value that the caller passed is not valid."""

    @classmethod
    def unknown(cls, what: str, got: str, valid: Iterable[str]) -> UsageError:
        """Builds the error for a name that is not among the valid ones, with the nearest valid name."""
        choices = sorted(valid)
        near = difflib.get_close_matches(got, choices, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        return cls(
            f"Unknown {what} {got!r}.", advice=f"{hint}Valid: {', '.join(map(repr, choices))}.", got=got, valid=choices
        )


class CheckpointError(CoterieError):
    """A Hugging Face checkpoint cannot be used."""


class CheckpointNotFoundError(CheckpointError):
    """There is no such directory or Hub repository."""


class CheckpointFileError(CheckpointError):
    """A file of the checkpoint is missing, truncated or malformed."""


class TensorMissingError(CheckpointError):
    """A tensor that the model needs is not in the checkpoint."""


class UnclaimedTensorError(CheckpointError):
    """A tensor of the checkpoint belongs to nothing in the model and is not known to be ignored."""


class UnsupportedError(CoterieError):
    """The model, router, quantisation or operation is out of scope; the message names it."""


class ContractError(UnsupportedError):
    """The installed transformers does otherwise than Coterie relies on; facts ``release`` and ``contract``.

    Going on would give wrong output, or take more memory than was promised.
    """


class StoreError(CoterieError):
    """A store cannot be used."""


class StoreNotFoundError(StoreError):
    """The directory is not a store, or its extraction has not finished."""


class StoreFormatError(StoreError):
    """A MUST rule of the store format is broken.

    Facts: ``path`` (file), ``rule`` (such as ``"R12"``), ``place`` (key or offset within the file).
    """


class ChecksumError(StoreError):
    """Bytes on disk differ from the checksum in the manifest."""


class StoreBusyError(StoreError):
    """Another process is writing this store."""


class ExtractionError(CoterieError):
    """Extraction cannot start or go on."""


class DiskSpaceError(ExtractionError):
    """The result does not fit on the disk."""


class QuantisationError(ExtractionError):
    """Weights cannot be stored in the scheme that was asked for: not finite, or not a matrix."""


class MemoryBudgetError(CoterieError):
    """The byte budget is below what is needed; facts ``budget`` and ``minimum`` in bytes."""


class CoverageError(CoterieError):
    """A partial store was opened without saying what to do about absent experts."""


class ExpertMissingError(CoterieError):
    """An absent expert was routed to under ``missing="error"``."""


class LoadError(CoterieError):
    """Loading would have left weights uninitialised, or the parts do not belong together."""


class ReadError(CoterieError):
    """An expert could not be read while the model was running."""


class ContextLengthError(CoterieError):
    """More tokens were passed than the memory budget was made for."""


class EngineError(CoterieError):
    """An engine does not work on a request, or no longer."""


class QueueFullError(EngineError):
    """Too many requests wait already; fact ``retry_after``, seconds after which to ask again."""


class QueueTimeoutError(EngineError):
    """A request has waited for too long without its turn coming; fact ``retry_after``."""


class RequestCancelledError(EngineError):
    """A request was given up by whoever made it."""


class EngineStoppedError(EngineError):
    """An engine takes nothing on, or was ended; fact ``stopping``, whether that was asked for."""


class InputError(CoterieError):
    """A prompt, picture or sound cannot be turned into model inputs."""


class SpeechError(CoterieError):
    """An answer in speech ended before its time, by another error; ``speech`` has what was spoken."""


class OutputError(CoterieError):
    """A file that was asked for cannot be written; what was there before is unchanged."""


class PublishError(CoterieError):
    """The Hub does not take what is to be published there; facts ``repo_id`` and ``status``, an HTTP status or None."""


class ReplicaError(CoterieError):
    """A copy of a model, in another process or on another machine, cannot be started or cannot go on."""


class ClusterError(CoterieError):
    """Work cannot be spread over the machines of a cluster, or cannot go on there."""


class MissingPackageError(CoterieError):
    """An optional package is not installed; fact ``package``, the name that it is imported by."""


class ProfileError(CoterieError):
    """A database of what experts do cannot be used."""


class ProfileNotFoundError(ProfileError):
    """There is no such profile, or nothing was recorded in it yet."""


class ProfileFormatError(ProfileError):
    """The file is not a profile, or its content is damaged: truncated, overwritten, contradicting itself."""


class ProfileVersionError(ProfileError):
    """The schema is of a newer Coterie or unknown; facts ``expected`` and ``got``, revisions of the schema."""


class ProfileIdentityError(ProfileError):
    """The profile is about another model; facts ``expected`` and ``got``, fingerprints of the two."""


class ProfileWriteError(ProfileError):
    """The profile cannot be written: no permission, a full disk, or another process that writes the same run."""


class ProfileConnectionError(ProfileError):
    """A server does not answer, or its answer is not what was asked for."""
