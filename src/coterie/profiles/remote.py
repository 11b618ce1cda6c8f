"""Another instance that publishes a profile, seen as something to copy from."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from typing import Any, TypeVar

from coterie.errors import ProfileConnectionError, ProfileFormatError
from coterie.files.json_text import JsonLimits, JsonProblem, parse_json
from coterie.profiles.bounded_get import BoundedClient, RefusedError, TooLargeError
from coterie.profiles.exchange import (
    EXCHANGE_SCHEMA_VERSION,
    digest_from_json,
    model_from_json,
    run_from_json,
    segment_from_json,
    vocabulary_from_json,
)
from coterie.profiles.facts import Mark, RunFacts, SegmentFacts, Vocabulary

MAX_ANSWER_BYTES = 64 << 20
MAX_ANSWER_VALUES = 1_000_000
_DEPTH = 16
_RUNS_PER_PAGE = 100
_DIGESTS_PER_PAGE = 1000
_SEGMENTS_PER_PAGE = 4
_MOST_RUNS = 10_000
_MOST_RUN_BANKS = 400_000
"""Banks of all runs together."""
_MOST_SEGMENTS = 500_000
"""Of a run."""
_MOST_SHORT_PAGES = 10
"""Pages of a list that are not full although more follows."""
_SHOWN = 200
"""Characters of a server's own words that a message shows."""

_Item = TypeVar("_Item")


class RemoteProfile:
    """The read-only HTTP interface of an instance that runs `coterie profile publish`.

    Every answer is bounded in size and time, all of them together as well, and checked before anything of it is used.

    Args:
        url: Such as ``https://host:8383``.
    """

    def __init__(self, url: str) -> None:
        self._client = BoundedClient(url)
        self._runs: dict[str, RunFacts] = {}

    @property
    def name(self) -> str:
        """The URL, without user and password."""
        return self._client.name

    def identities(self) -> dict[str, str]:
        """Fingerprints of the models that it has runs of → names."""
        answer = self._get("/v1/models", {})
        try:
            return dict(model_from_json(value) for value in self._list(answer, "models", _MOST_RUNS))
        except ProfileFormatError as error:
            raise self._foreign() from error

    def runs(self, identity: str | None = None) -> list[RunFacts]:
        """All runs, or those of a model, by UUID."""
        parameters: dict[str, str | int] = {} if identity is None else {"model": identity}
        found: dict[str, RunFacts] = {}
        banks = 0
        for run in self._pages("/v1/runs", "runs", _RUNS_PER_PAGE, parameters, run_from_json, lambda run: run.uuid):
            banks += len(run.banks)
            if len(found) >= _MOST_RUNS or banks > _MOST_RUN_BANKS:
                raise self._endless("runs")
            found[run.uuid] = run
        self._runs |= found
        return [run for run in found.values() if identity is None or run.identity == identity]

    def digests(self, uuid: str) -> dict[int, str]:
        """Numbers of a run's segments → digests, ascending."""
        found: dict[int, str] = {}
        parameters: dict[str, str | int] = {"run": uuid, "content": "false"}
        pages = self._pages(
            "/v1/segments", "segments", _DIGESTS_PER_PAGE, parameters, digest_from_json, lambda item: item[0]
        )
        for number, digest in pages:
            if len(found) >= _MOST_SEGMENTS:
                raise self._endless("segments")
            found[number] = digest
        return found

    def segments(self, uuid: str, numbers: Sequence[int] | None = None) -> Iterator[SegmentFacts]:
        """Segments of a run, ascending, a few per request, or one where they are large."""
        run = self._run(uuid)
        wanted = sorted(self.digests(uuid) if numbers is None else numbers)
        start, at_once = 0, _SEGMENTS_PER_PAGE
        while start < len(wanted):
            batch = wanted[start : start + at_once]
            try:
                answer = self._get("/v1/segments", {"run": uuid, "numbers": ",".join(map(str, batch))})
            except ProfileConnectionError as error:
                if at_once == 1 or not isinstance(error.__cause__, TooLargeError):
                    raise
                at_once = 1
                continue
            for value in self._list(answer, "segments", len(batch)):
                segment = segment_from_json(value, run)
                if segment.number not in batch:
                    raise ProfileFormatError(f"{self.name} sent segment {segment.number}, which was not asked for.")
                yield segment
            start += len(batch)

    def vocabulary(self, uuid: str) -> Vocabulary:
        """Counts of tokens of a run; empty if the instance does not share them."""
        answer = self._get("/v1/vocabulary", {"run": uuid})
        if answer.get("shared") is not True:
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

    def _pages(
        self,
        path: str,
        name: str,
        limit: int,
        parameters: dict[str, str | int],
        decode: Callable[[Any], _Item],
        key: Callable[[_Item], str | int],
    ) -> Iterator[_Item]:
        """All items of a paged list: each page begins after the last item of the one before, and ascends from it."""
        last: str | int | None = None
        short = 0
        parameters = parameters | {"limit": limit}
        while True:
            answer = self._get(path, parameters)
            values = self._list(answer, name, limit)
            for item in map(decode, values):
                if last is not None and not last < key(item):  # type: ignore[operator]
                    raise ProfileFormatError(f"{self.name} sends the same {name} again and again.")
                last = key(item)
                yield item
            if answer.get("more") is not True:
                return
            short += len(values) < limit
            if last is None or short > _MOST_SHORT_PAGES:
                raise self._foreign()
            parameters = parameters | {"after": last}

    def _get(self, path: str, parameters: dict[str, str | int]) -> dict[str, Any]:
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        try:
            body = self._client.get(path + query, MAX_ANSWER_BYTES)
        except TooLargeError as error:
            raise ProfileConnectionError(
                f"{self.name} sends more than {MAX_ANSWER_BYTES} bytes at once.", url=self.name
            ) from error
        except RefusedError as error:
            raise ProfileConnectionError(
                f"{self.name} answers {error.status} to {path}: {_reason(error)}",
                advice="Is that the address of `coterie profile publish`?",
                url=self.name,
                status=error.status,
            ) from error
        except (OSError, HTTPException, ValueError) as error:
            said = str(getattr(error, "reason", error)) or type(error).__name__
            raise ProfileConnectionError(
                f"{self.name} does not answer: {said[:_SHOWN]}.",
                advice="Check the address, and that `coterie profile publish` runs there.",
                url=self.name,
            ) from error
        return self._parse(body)

    def _parse(self, body: bytes) -> dict[str, Any]:
        limits = JsonLimits(nbytes=MAX_ANSWER_BYTES, depth=_DEPTH, values=MAX_ANSWER_VALUES)
        try:
            answer = parse_json(body, limits)
        except JsonProblem as error:
            raise self._foreign() from error
        if not isinstance(answer, dict):
            raise self._foreign()
        version = answer.get("schema_version")
        if version != EXCHANGE_SCHEMA_VERSION:
            raise ProfileConnectionError(
                f"{self.name} speaks version {repr(version)[:_SHOWN]}; this Coterie speaks {EXCHANGE_SCHEMA_VERSION}.",
                advice="Update the older of the two.",
                expected=EXCHANGE_SCHEMA_VERSION,
                got=version,
            )
        return answer

    def _list(self, answer: dict[str, Any], name: str, most: int) -> list[Any]:
        values = answer.get(name)
        if not isinstance(values, list) or len(values) > most:
            raise self._foreign()
        return values

    def _foreign(self) -> ProfileConnectionError:
        return ProfileConnectionError(
            f"{self.name} answers something else than a profile.",
            advice="Is that the address of `coterie profile publish`?",
            url=self.name,
        )

    def _endless(self, what: str) -> ProfileConnectionError:
        return ProfileConnectionError(
            f"{self.name} lists more {what} than this program can hold.",
            advice="Ask whoever publishes it for the file, and merge that.",
            url=self.name,
        )


def _reason(error: RefusedError) -> str:
    """The server's message, if it is one of ours."""
    try:
        said = parse_json(error.body)["error"]
    except (JsonProblem, KeyError, TypeError):
        said = error.reason
    return str(said)[:_SHOWN]
