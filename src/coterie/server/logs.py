"""The server's log: a line of JSON for each request and each trouble. Never what was asked or answered."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

from starlette.types import Scope

_log = logging.getLogger("coterie.server")
_FACTS = "facts"
_LONGEST_PATH = 200
_POLLED = frozenset({"/coterie/state"})
"""What a dashboard asks every second: worth a line only if there was no answer."""


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. What clients wrote is escaped: it cannot begin another one."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, _FACTS, {}),
        }
        if (request_id := getattr(record, "request_id", None)) is not None:
            line["request_id"] = request_id
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__
            # Where it came from, not its message: that may quote what was asked.
            line["frames"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
            ]
        return json.dumps(line)


def log_failure(request_id: str, error: BaseException) -> None:
    """Notes why a request got no answer."""
    _log.error("request failed", exc_info=error, extra={"request_id": request_id})


def log_request(scope: Scope, *, status: int, seconds: float) -> None:
    """Notes a request that is over.

    Args:
        scope: Its scope; ``state["facts"]`` holds what the route has to say of it.
        status: Of the answer; 0 where none was begun.
        seconds: How long it took.
    """
    state = scope["state"]
    facts = {
        "request_id": state["request_id"],
        "method": scope["method"],
        "path": scope["path"][:_LONGEST_PATH],
        "status": status,
        "seconds": round(seconds, 4),
        **state.get("facts", {}),
    }
    error = state.get("error")
    usual = logging.DEBUG if status == 200 and scope["path"] in _POLLED else logging.INFO
    _log.log(logging.ERROR if error else usual, "request", exc_info=error, extra={_FACTS: facts})
