"""API keys: read from a file, compared in a time that says nothing about them."""

from __future__ import annotations

import hmac
from hashlib import sha256
from pathlib import Path

from coterie.errors import InputError
from coterie.files.regular import read_bounded

_FILE_LIMIT = 1 << 20
_SHORTEST = 8


class Keys:
    """The keys that open a server.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Reads a file with a key on each line; empty lines and those that begin with ``#`` are none.

        Raises:
            InputError: If it cannot be read, or has no key, or one that is too short or not printable ASCII.
        """
        try:
            lines = read_bounded(path, _FILE_LIMIT).decode("ascii").splitlines()
        except OSError as error:
            raise InputError(f"The keys in {path} cannot be read: {error.strerror}.", path=path) from error
        except UnicodeDecodeError as error:
            raise InputError(f"The keys in {path} are not ASCII text.", path=path) from error
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise InputError(f"{path} has no key.", advice="Write one on a line.", path=path)
        for number, key in enumerate(keys, 1):
            if len(key) < _SHORTEST or not key.isprintable() or " " in key:
                raise InputError(
                    f"Key {number} in {path} cannot be one.",
                    advice=f"A key has {_SHORTEST} printable characters or more, and no blanks.",
                    path=path,
                )
        return cls(keys)

    def open_with(self, key: str) -> bool:
        """Whether this is one of them. All are compared, whichever it is."""
        digest, found = _digest(key), False
        for one in self._digests:
            found |= hmac.compare_digest(digest, one)
        return found


def _digest(key: str) -> bytes:
    """Of the same length for every key."""
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
