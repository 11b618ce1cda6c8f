"""Answers one question of a profile in a process of its own: ``python -P -m coterie.profiles.asking BYTES SECONDS``.

A profile in memory can take hundreds of megabytes, and so can the libraries that test what it shows. Whoever runs a
model under a budget has no room for that, so this process sets limits to itself, gives way to others, and ends with the
answer. The question comes on stdin and the answer goes to stdout, each a JSON text.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

_LAST_TO_RUN = 10
_FIRST_TO_GO = "1000"


def main() -> None:
    """Reads a question and writes the answer: what was asked for, or ``error``."""
    nbytes, seconds = (int(argument) for argument in sys.argv[1:3])
    _limit(nbytes, seconds)
    question = json.loads(sys.stdin.buffer.read())
    try:
        answer: dict[str, Any] = {"answer": _answer(**question)}
    except MemoryError:
        answer = {"error": "memory"}
    with open(1, "wb") as answers:
        answers.write(json.dumps(answer, default=str).encode("ascii"))


def _answer(where: str, identity: str, ask: str, **options: Any) -> dict[str, Any]:
    # After the limits are set.
    from coterie.errors import CoterieError, UsageError
    from coterie.profiles import Profile, ProfileDatabase, expert_card, rank_experts
    from coterie.profiles.inference import LEAST_BLOCKS

    with ProfileDatabase(where) as opened:
        # Its place is nobody's business who asks from elsewhere.
        database = opened.named("the profile")
        profile = Profile.read(database, identity)
        if ask == "summary":
            return {
                "model": profile.model,
                "tokens": profile.tokens,
                "domains": profile.domains,
                "modalities": profile.modalities,
                "least_blocks": LEAST_BLOCKS,
            }
        try:
            if ask == "rank":
                return asdict(rank_experts(profile, **options))
            layer, expert = options.pop("layer"), options.pop("expert")
            return asdict(expert_card(profile, database, layer, expert, **options))
        except UsageError as error:
            return {"refused": error.message}
        except CoterieError as error:
            return {"failed": error.message}


def _limit(nbytes: int, seconds: int) -> None:
    """Others come first, for the processor and for memory; and there is an end."""
    with suppress(OSError):
        os.nice(_LAST_TO_RUN)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")
    try:
        import resource
    except ImportError:  # Windows: the caller's clock is the limit
        return
    for kind, value in (
        (resource.RLIMIT_AS, nbytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    main()
