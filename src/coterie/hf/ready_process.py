"""Stands ready to run a script for programs of strangers: what the script needs is imported before anybody asks.

Run as a script, with the script and folders that its packages are in. Requests come on stdin, and what becomes of each
goes to stdout. Each has a process of its own, a fork of this one, which limits itself and ends with the request; this
one has nothing to do with what strangers wrote. It ends when stdin does.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from struct import Struct

_REQUEST = Struct("<QQQ")
"""Bytes of memory, seconds of processor time, bytes of the request."""
_ANSWER = Struct("<iQ")
"""How the process ended, bytes that it has written."""


def _in_a_fork(answer: Callable[[bytes], bytes], limit: Callable[[], None], request: bytes) -> tuple[int, bytes]:
    """How a process ended that answers one request, and what it wrote."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            # What others ask is none of its business.
            for descriptor in (0, 1, source):
                os.close(descriptor)
            limit()
            with open(sink, "wb") as answers:
                answers.write(answer(request))
            status = 0
        finally:
            os._exit(status)
    os.close(sink)
    with open(source, "rb") as answers:
        written = answers.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), written


def main() -> None:
    """Answers until stdin ends."""
    place, *folders = sys.argv[1:]
    sys.path[:0] = folders
    limit = runpy.run_path(str(Path(__file__).with_name("limited_process.py")))["limit"]
    script = runpy.run_path(place)
    script["prepare"]()
    with open(0, "rb") as requests, open(1, "wb") as answers:
        while len(head := requests.read(_REQUEST.size)) == _REQUEST.size:
            memory, seconds, length = _REQUEST.unpack(head)
            status, written = _in_a_fork(script["answer"], partial(limit, memory, seconds), requests.read(length))
            answers.write(_ANSWER.pack(status, len(written)) + written)
            answers.flush()


if __name__ == "__main__":
    main()
