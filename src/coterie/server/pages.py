"""The dashboard's files: pages that load nothing from elsewhere, and may load nothing but these.

They are in the package, are the same for everybody, and say nothing about the model: a browser gets them without a key.
"""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).with_name("dashboard")
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

PAGES = {
    "/": "index.html",
    "/favicon.ico": "icon.svg",
    **{
        f"/dashboard/{name}": name
        for name in (
            "app.css", "app.js", "chat.js", "client.js", "figures.js", "heat.js", "icon.svg", "media.js", "profile.js",
            "sound.js",
        )
    },
}  # fmt: skip
"""Address → file."""

_POLICY = "; ".join((
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    # What somebody attaches in the chat, and what the model says, is shown and played from memory.
    "img-src 'self' blob:",
    "media-src blob:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
))  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """The files, for starlette; they are read now."""
    return [
        Route(path, partial(_send, (_FOLDER / name).read_bytes(), _KINDS[Path(name).suffix]), methods=["GET"])
        for path, name in PAGES.items()
    ]


async def _send(data: bytes, kind: str, request: Request) -> Response:
    headers = _HEADERS | {"ETag": f'"{sha256(data).hexdigest()[:32]}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=kind)
