"""How much a visitor may send in a minute; the server says so before it reads it."""

import json
import os
import time
from threading import Lock
from typing import Any

from cachetools import LRUCache

MOST_UPLOADS, MOST_BYTES = 60, 2_000_000_000
"""In a minute, of one address; an upload may have many files, as a thousand photographs for a search."""
_SECONDS, _VISITORS = 60.0, 4096
_LARGE = 1_000_000
"""Bytes of a request that counts as an upload wherever it goes: a picture can stand in the request itself."""
_REFUSED = "too many uploads: at most {} in a minute, {:g} GB in all; wait a minute and try again."


class UploadLimit:
    """Middleware around an ASGI app."""

    def __init__(self, app: Any) -> None:
        self._app, self._lock = app, Lock()
        self._latest: LRUCache[str, list[tuple[float, int]]] = LRUCache(_VISITORS)
        """Address -> moment and bytes of its uploads."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or refuse an upload that is one too many."""
        if not _is_upload(scope) or self._takes(scope):
            await self._app(scope, receive, send)
            return
        text = _REFUSED.format(MOST_UPLOADS, MOST_BYTES / 1e9)
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"60")]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"detail": text}).encode()})

    def _takes(self, scope: Any) -> bool:
        """Whether the visitor may upload so much now; if so, it counts. What does not tell its size counts as a lot."""
        size, visitor, now = _size(scope), _address(scope), time.monotonic()
        with self._lock:
            latest = [(at, n) for at, n in self._latest.get(visitor, ()) if now - at < _SECONDS]
            if len(latest) >= MOST_UPLOADS or sum(n for _, n in latest) + size > MOST_BYTES:
                return False
            self._latest[visitor] = [*latest, (now, size)]
        return True


def _address(scope: Any) -> str:
    """Of the visitor: on a Space all come through one proxy, which tells theirs."""
    told = dict(scope["headers"]).get(b"x-forwarded-for", b"") if os.environ.get("SYSTEM") == "spaces" else b""
    return told.decode("latin-1").partition(",")[0].strip() or str((scope.get("client") or ("",))[0])


def _is_upload(scope: Any) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    return _size(scope) > _LARGE or scope["path"].rstrip("/").endswith("/upload")


def _size(scope: Any) -> int:
    """Bytes of a request, a lot if it has some and does not tell."""
    headers = dict(scope["headers"])
    told = headers.get(b"content-length", b"")
    if told.isdigit():
        return int(told)
    return MOST_BYTES // 10 if b"transfer-encoding" in headers else 0
