"""Another instance that publishes a profile, seen as something to copy from."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any

from coterie.errors import ProfileConnectionError, ProfileFormatError
from coterie.profiles.exchange import (
    EXCHANGE_SCHEMA_VERSION,
    run_from_json,
    segment_from_json,
    vocabulary_from_json,
)
from coterie.profiles.facts import Mark, RunFacts, SegmentFacts, Vocabulary

TIMEOUT_S = 30
MAX_ANSWER_BYTES = 256 << 20
_RUNS_PER_PAGE = 100
_DIGESTS_PER_PAGE = 1000
_SEGMENTS_PER_PAGE = 4
_MAX_PAGES = 100_000


class RemoteProfile:
    """The read-only HTTP interface of an instance that runs `coterie profile publish`.

    Every answer is bounded in size and time, and checked before anything of it is used.

    Args:
        url: Such as ``https://host:8383``.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._runs: dict[str, RunFacts] = {}

    @property
    def name(self) -> str:
        """The URL, without user and password."""
        parts = urllib.parse.urlsplit(self._url)
        return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def identities(self) -> dict[str, str]:
        """Fingerprints of the models that it has runs of → names."""
        answer = self._get("/v1/models", {})
        with self._expected():
            return {str(model["identity"]): str(model["model"]) for model in answer["models"]}

    def runs(self, identity: str | None = None) -> list[RunFacts]:
        """All runs, or those of a model, by UUID."""
        parameters: dict[str, str | int] = {"limit": _RUNS_PER_PAGE}
        if identity is not None:
            parameters["model"] = identity
        found = [run_from_json(value) for value in self._pages("/v1/runs", "runs", "uuid", parameters)]
        self._runs |= {run.uuid: run for run in found}
        return [run for run in found if identity is None or run.identity == identity]

    def digests(self, uuid: str) -> dict[int, str]:
        """Numbers of a run's segments → digests, ascending."""
        parameters: dict[str, str | int] = {"run": uuid, "limit": _DIGESTS_PER_PAGE, "content": "false"}
        found = list(self._pages("/v1/segments", "segments", "number", parameters))
        with self._expected():
            return {int(value["number"]): str(value["digest"]) for value in found}

    def segments(self, uuid: str, numbers: Sequence[int] | None = None) -> Iterator[SegmentFacts]:
        """Segments of a run, ascending, a few per request."""
        run = self._run(uuid)
        wanted = sorted(self.digests(uuid) if numbers is None else numbers)
        for start in range(0, len(wanted), _SEGMENTS_PER_PAGE):
            batch = wanted[start : start + _SEGMENTS_PER_PAGE]
            answer = self._get("/v1/segments", {"run": uuid, "numbers": ",".join(map(str, batch))})
            with self._expected():
                values = list(answer["segments"])
            for value in values:
                segment = segment_from_json(value, run)
                if segment.number not in batch:
                    raise ProfileFormatError(f"{self.name} sent segment {segment.number}, which was not asked for.")
                yield segment

    def vocabulary(self, uuid: str) -> Vocabulary:
        """Counts of tokens of a run; empty if the instance does not share them."""
        answer = self._get("/v1/vocabulary", {"run": uuid})
        if not answer.get("shared", False):
            return Vocabulary(banks={}, totals={})
        return vocabulary_from_json(answer.get("vocabulary"), self._run(uuid))

    def marks(self, uuid: str) -> dict[str, Mark]:
        """Empty: how far others have read their files is nobody's business."""
        return {}

    def _run(self, uuid: str) -> RunFacts:
        if uuid not in self._runs:
            self.runs()
        try:
            return self._runs[uuid]
        except KeyError:
            raise ProfileFormatError(f"{self.name} has no run {uuid}.", run=uuid) from None

    def _pages(self, path: str, name: str, key: str, parameters: dict[str, str | int]) -> Iterator[Any]:
        """All items of a paged list: each page begins after the last item of the one before."""
        seen: set[object] = set()
        for _ in range(_MAX_PAGES):
            answer = self._get(path, parameters)
            with self._expected():
                items = list(answer[name])
                keys = [item[key] for item in items]
            if any(found in seen for found in keys):
                raise ProfileFormatError(f"{self.name} sends the same {name} again and again.")
            seen.update(keys)
            yield from items
            if not items or not answer.get("more", False):
                return
            parameters = parameters | {"after": keys[-1]}

    def _get(self, path: str, parameters: dict[str, str | int]) -> dict[str, Any]:
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        request = urllib.request.Request(f"{self._url}{path}{query}", headers={"Accept": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                body = response.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise ProfileConnectionError(
                f"{self.name} answers {error.code} to {path}: {_reason(error)}",
                advice="Is that the address of `coterie profile publish`?",
                url=self.name,
                status=error.code,
            ) from error
        except (OSError, HTTPException, ValueError) as error:
            raise ProfileConnectionError(
                f"{self.name} does not answer: {getattr(error, 'reason', error)}.",
                advice="Check the address, and that `coterie profile publish` runs there.",
                url=self.name,
            ) from error
        if len(body) > MAX_ANSWER_BYTES:
            raise ProfileConnectionError(
                f"{self.name} sends more than {MAX_ANSWER_BYTES} bytes at once.", url=self.name
            )
        return self._parse(body)

    def _parse(self, body: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self._foreign() from error
        if not isinstance(answer, dict):
            raise self._foreign()
        if answer.get("schema_version") != EXCHANGE_SCHEMA_VERSION:
            raise ProfileConnectionError(
                f"{self.name} speaks version {answer.get('schema_version')!r}; this Coterie speaks "
                f"{EXCHANGE_SCHEMA_VERSION}.",
                advice="Update the older of the two.",
                expected=EXCHANGE_SCHEMA_VERSION,
                got=answer.get("schema_version"),
            )
        return answer

    @contextmanager
    def _expected(self) -> Iterator[None]:
        """What is taken from an answer in the block is there."""
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise self._foreign() from error

    def _foreign(self) -> ProfileConnectionError:
        return ProfileConnectionError(
            f"{self.name} answers something else than a profile.",
            advice="Is that the address of `coterie profile publish`?",
            url=self.name,
        )


def _reason(error: urllib.error.HTTPError) -> str:
    """The server's message, if it is one of ours."""
    try:
        return str(json.loads(error.read(65536))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)
