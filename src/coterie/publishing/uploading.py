"""One commit of many files to a repository of the Hub: sent file by file, tried again, and visible all together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from coterie.checkpoint.hub.checksums import checksum_of
from coterie.checkpoint.hub.listing import Listing, list_repository
from coterie.errors import PublishError
from coterie.records.remote.attempts import Attempts
from coterie.records.remote.failures import PROBLEMS, RequestFailure, StatusProblem

_LOGIN = "Run `hf auth login` with a token that may write to this repository, or ask its owner for access."
_TRIES = 3
"""The client itself tries some failures again."""
_AGAIN = "Run the same command again: files that the Hub has are not sent again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file that is to be in a repository.

    Attributes:
        name: Its path there.
        content: The file on this machine, or its bytes.
        nbytes: Its size.
    """

    name: str
    content: Path | bytes
    nbytes: int


Result = TypeVar("Result")


class Uploader:
    """Sends files to a repository.

    Args:
        repo_id: The repository.
        branch: The branch that is committed to.
    """

    def __init__(self, repo_id: str, branch: str) -> None:
        self._api = HfApi(library_name="coterie")
        self._repo_id = repo_id
        self._branch = branch

    def prepare(self, *, private: bool | None) -> Listing:
        """Makes the repository and the branch if they are not there; returns what is there.

        Args:
            private: Whether it is to be private. None: as it is, or private if it is new.

        Raises:
            PublishError: If that cannot be, or it is there and is public or private against what was asked for.
        """
        with self._explained("could not be made"):
            hidden = private is not False
            self._tried(self._repo_id, lambda: self._api.create_repo(self._repo_id, private=hidden, exist_ok=True))
            found = self._tried(self._repo_id, lambda: self._api.repo_info(self._repo_id))
            if private is not None and bool(found.private) != private:
                raise PublishError(
                    f"{self._repo_id} is there already, and is {'private' if found.private else 'public'}.",
                    advice="Change that in its settings on the Hub, or leave the option out.",
                    repo_id=self._repo_id,
                )
            if self._branch != constants.DEFAULT_REVISION:
                self._tried(
                    self._branch, lambda: self._api.create_branch(self._repo_id, branch=self._branch, exist_ok=True)
                )
            return list_repository(self._repo_id, self._branch)

    def missing(self, files: Collection[Upload], there: Listing) -> list[Upload]:
        """Those of the files that the branch does not have yet, with these bytes.

        Args:
            files: All files.
            there: What the branch has.
        """
        found = []
        for one in files:
            listed = there.files.get(one.name)
            sha256 = listed.sha256 if listed is not None and listed.nbytes == one.nbytes else None
            if sha256 is None or isinstance(one.content, bytes) or not checksum_of(one.content, sha256).right:
                found.append(one)
        return found

    def send(
        self,
        files: Collection[Upload],
        unwanted: Collection[str],
        *,
        message: str,
        parent: str,
        advance: Callable[[int], object],
    ) -> str:
        """Uploads files one after the other, then makes one commit of all of them; returns the commit.

        Args:
            files: The files.
            unwanted: Files of the branch that go.
            message: Of the commit.
            parent: The commit that the branch has to be at.
            advance: Told how many more bytes the Hub has.

        Raises:
            PublishError: If the Hub does not take one. What was uploaded stays with the Hub for some time.
        """
        additions = []
        for one in files:
            content = str(one.content) if isinstance(one.content, Path) else one.content
            addition = CommitOperationAdd(path_in_repo=one.name, path_or_fileobj=content)
            with self._explained(f"did not take {one.name}"):
                self._tried(one.name, partial(self._preupload, addition))
            additions.append(addition)
            advance(one.nbytes)
        deletions = [CommitOperationDelete(path_in_repo=name) for name in sorted(unwanted)]
        with self._explained("did not take the commit"):
            commit = self._tried(
                "the commit",
                lambda: self._api.create_commit(
                    self._repo_id,
                    [*additions, *deletions],
                    commit_message=message,
                    revision=self._branch,
                    parent_commit=parent,
                ),
            )
        return str(commit.oid)

    def check(self, sizes: Mapping[str, int], commit: str) -> None:
        """Compares what the Hub has at a commit with what was published.

        Raises:
            PublishError: If a file is not there, or has another size.
        """
        with self._explained("could not be listed"):
            listed = list_repository(self._repo_id, commit).files
        for name, nbytes in sizes.items():
            if name not in listed or listed[name].nbytes != nbytes:
                raise PublishError(
                    f"{self._repo_id} does not have {name} as it was sent, at {commit[:12]}.",
                    advice="Run the same command again.",
                    repo_id=self._repo_id,
                )

    def _preupload(self, addition: CommitOperationAdd) -> None:
        self._api.preupload_lfs_files(self._repo_id, [addition], revision=self._branch)

    def _tried(self, what: str, ask: Callable[[], Result]) -> Result:
        """Asks again where that may help."""
        attempts = Attempts(what, tries=_TRIES)
        while True:
            try:
                return ask()
            except OfflineModeIsEnabled:
                raise
            except (*PROBLEMS, RuntimeError) as error:
                cause = error.__cause__ if isinstance(error, RuntimeError) else error  # the client wraps some of them
                if not isinstance(cause, PROBLEMS):
                    raise
                attempts.failed(_problem(cause))

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        facts = {"repo_id": self._repo_id}
        try:
            yield
        except RequestFailure as error:
            status = error.failure.status
            if status in (401, 403):
                advice = _LOGIN
            elif status in (409, 412):
                advice = f"Somebody else has committed to it meanwhile. {_AGAIN}"
            else:
                advice = _AGAIN
            subject = f"The Hub {what} of {self._repo_id}" if what.startswith("did not") else f"{self._repo_id} {what}"
            raise PublishError(f"{subject}: {error.cause}.", advice=advice, status=status, **facts) from error
        except OfflineModeIsEnabled as error:
            raise PublishError(
                f"{self._repo_id} cannot be published: HF_HUB_OFFLINE is set.", advice="Unset it.", **facts
            ) from error
        except OSError as error:
            raise PublishError(f"A file cannot be read: {error}.", advice="Check the disk.", **facts) from error
        except (RuntimeError, ValueError) as error:  # of the client, and of its transport in Rust
            said = " ".join(str(error).split())[:300]
            raise PublishError(
                f"{self._repo_id} {what}: {type(error).__name__}: {said}", advice=_AGAIN, **facts
            ) from error


def _problem(error: Exception) -> Exception:
    """What the client raised, as an answer of a server where it was one."""
    response = getattr(error, "response", None)
    if not isinstance(error, HfHubHTTPError) or response is None:
        return error
    elsewhere = urlsplit(str(response.url)).netloc != urlsplit(constants.ENDPOINT).netloc
    return StatusProblem(response.status_code, response.headers, elsewhere=elsewhere)
