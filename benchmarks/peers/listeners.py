"""Streams of answers over HTTP, and when each piece of them came."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from fullsize.walk import TOKEN_LENGTH, token_of


class Listener:
    """Has a prompt continued, and listens in a thread of its own.

    Args:
        port: Of a server with ``/v1/completions``.
        prompt: Text of the prompt.
        most: New tokens after which it ends.
        hear: Called with every piece of text, in the listener's thread.

    Attributes:
        times: When each token was there.
        ended: Why there will be no more; None while there may be.
    """

    def __init__(self, port: int, prompt: str, most: int, hear: Callable[[str], None] | None = None) -> None:
        self.times: list[float] = []
        self.ended: str | None = None
        self._left = False
        self._text = ""
        self._hear = hear
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        body = {"prompt": prompt, "max_tokens": most, "temperature": 0, "stream": True, "ignore_eos": True}
        self._connection.request(
            "POST", "/v1/completions", body=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def tokens(self) -> list[int]:
        """What has come; -1 for what is no token's text."""
        text = self._text
        pieces = [text[at : at + TOKEN_LENGTH] for at in range(0, len(text), TOKEN_LENGTH)]
        return [token_of(piece) if piece.isalnum() and piece.isascii() else -1 for piece in pieces]

    def leave(self) -> None:
        """Wants no more, and says so by going."""
        self._left = True
        with suppress(OSError):
            if self._connection.sock is not None:
                self._connection.sock.shutdown(2)
        self._thread.join()
        self._connection.close()

    def wait(self, timeout_s: float) -> None:
        """Until it has ended, or so long."""
        self._thread.join(timeout_s)

    def _listen(self) -> None:
        try:
            response = self._connection.getresponse()
            if response.status != 200:
                self.ended = f"{response.status}: {response.read(500).decode(errors='replace')}"
                return
            for line in response:
                now = time.perf_counter()
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    self.ended = str(event["error"])
                    return
                text = "".join(choice.get("text") or "" for choice in event.get("choices", ()))
                self._text += text
                if text and self._hear is not None:
                    self._hear(text)
                while len(self.times) < len(self._text) // TOKEN_LENGTH:
                    self.times.append(now)
            self.ended = "finished"
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.ended = "left" if self._left else f"{type(error).__name__}: {error}"
