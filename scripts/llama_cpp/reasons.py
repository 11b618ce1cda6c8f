"""Which of llama.cpp's tests do not apply to `coterie serve`, and why."""

from __future__ import annotations

import re

FILES: dict[str, str] = {
    f"test_{name}.py": "x"
    for name in (
        "embedding",
        "infill",
        "kv_keep_only_active",
        "lora",
        "mcp_servers",
        "rerank",
        "router",
        "sleep",
        "slot_save",
        "speculative",
        "tools_builtin",
        "proxy",
        "compat_gcp",
    )
}
DROPPED = (
    re.compile(r"== n_prompt\b"),
    re.compile(r"system_fingerprint.*startswith\(\"b\"\)"),
)
DIFFERS: dict[str, str] = {}
REASONS: dict[str, str] = {}


def reason_of(name: str) -> str:
    """Why a test does not apply; empty if it does."""
    return next((why for pattern, why in REASONS.items() if re.search(pattern, name)), "")
