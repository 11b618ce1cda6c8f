"""Asks a profile which experts do what: one question at a time, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from coterie.server.refusals import Refusal

_NBYTES = 1 << 30
"""Address space of the process that answers; its libraries take a third of it, and little memory."""
_SECONDS = 60
_log = logging.getLogger("coterie.server")


class Explorer:
    """A profile of the served model.

    Args:
        where: The profile.
        identity: The model's fingerprint.
    """

    def __init__(self, where: str | Path, identity: str) -> None:
        self._where = os.fspath(where)
        self._identity = identity
        self._turn = asyncio.Lock()

    async def ask(self, ask: str, **options: Any) -> dict[str, Any]:
        """The answer to a question.

        Args:
            ask: ``summary``, ``rank`` or ``expert``.
            options: Of the function that answers, :func:`~coterie.profiles.rank_experts` or
                :func:`~coterie.profiles.expert_card`.

        Raises:
            Refusal: If there is none.
        """
        question = {"where": self._where, "identity": self._identity, "ask": ask, **options}
        async with self._turn:
            data = await _run(json.dumps(question).encode())
        try:
            said = json.loads(data)
        except ValueError:
            # It ended without a word: the profile is damaged, or is no longer there, or memory did not even suffice for
            # that. Its own words are in the log.
            raise Refusal(500, "The profile cannot be asked; the server's log says why.") from None
        if "error" in said:
            raise Refusal(
                503, "The profile is too large to be asked here: `coterie experts` has no such limit.",
                code="insufficient_memory",
            )  # fmt: skip
        answer: dict[str, Any] = said["answer"]
        if (message := answer.get("refused")) is not None:
            raise Refusal(400, message)
        if (message := answer.get("failed")) is not None:
            raise Refusal(500, message)
        return answer


async def _run(question: bytes) -> bytes:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    process = await asyncio.create_subprocess_exec(
        # -P: whatever lies in the folder that the server was started in is no package of it.
        sys.executable, "-P", "-m", "coterie.profiles.asking", str(_NBYTES), str(_SECONDS),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=os.environ | threads,
    )  # fmt: skip
    try:
        async with asyncio.timeout(2 * _SECONDS):
            answer, words = await process.communicate(question)
    except TimeoutError:
        raise Refusal(503, "The profile takes too long to answer.", code="too_slow", retry_after=60) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not answer:
        _log.error("the profile cannot be asked", extra={"facts": {"words": words.decode(errors="replace")[-2000:]}})
    return answer
