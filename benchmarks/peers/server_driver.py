"""Starts llama.cpp's server, has a prompt continued over HTTP, prints each token's text: a process that is measured.

The server is a child, so that one memory cgroup holds both.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from peers.coterie_driver import options
from peers.listeners import Listener
from peers.servers import LlamaServer, Room, end, free_port, until_ready

_PATIENCE_S = 3600.0
"""Whoever runs this ends it sooner."""


def main() -> int:
    """Runs what the command line describes."""
    began = time.perf_counter()
    parser = options(__doc__)
    parser.add_argument("--program", type=Path, required=True, help="the server")
    parser.add_argument("--context", type=int, required=True, help="tokens of prompt and answer")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    given = parser.parse_args()
    server = LlamaServer(given.program, given.model, given.threads)
    port = free_port()
    command = server.command(Room(limit=given.memory, streams=1, context=given.context), port)
    # What it says goes to standard error: what this process prints there is the reason of a failure.
    process = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
    try:
        if not until_ready(process, port, server.ready, _PATIENCE_S):
            return 1
        asked = time.perf_counter()
        own = {"prompt_tokens": given.prompt_tokens, "ready_s": asked - began}

        def hear(text: str) -> None:
            print(text, end="", flush=True)
            if "prefill_s" not in own:
                own["prefill_s"] = time.perf_counter() - asked
                given.report.write_text(json.dumps(own))

        listener = Listener(port, given.prompt, given.new_tokens, hear)
        listener.wait(_PATIENCE_S)
        if listener.ended != "finished":
            print(listener.ended, file=sys.stderr)
            return 1
    finally:
        end(process)
    return 0


if __name__ == "__main__":
    sys.exit(main())
