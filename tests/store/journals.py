"""Lines of journals of unfinished stores."""

from __future__ import annotations

import json

import xxhash

HEADER = {"base": "", "files": ["config.json"], "parts": {"dense": "00" * 16}}
ENTRY = {"file": "config.json", "bytes": 3, "xxh3": ["00" * 16], "layout": ""}


def line(value: object) -> bytes:
    """A line with its checksum, of a value or of text that may be none."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(data).encode() + b" " + data + b"\n"
