"""Visitors who signed in, without the packages that gradio needs for that."""

from contextlib import contextmanager
from types import SimpleNamespace

from gradio.context import LocalContext
from starlette.middleware import Middleware


def on_a_space(patch, folder):
    """As on a Space with `hf_oauth: true`; the session comes from `SESSIONS` instead of a signed cookie."""
    for name in ("itsdangerous", "authlib"):
        (folder / "extra" / name).mkdir(parents=True)
        (folder / "extra" / name / "__init__.py").touch()
    patch.syspath_prepend(folder / "extra")
    patch.setattr("gradio.routes.attach_oauth", lambda app: None)
    for name, value in {"SYSTEM": "spaces", "SPACE_ID": "owner/space", "OAUTH_CLIENT_ID": "id"}.items():
        patch.setenv(name, value)


def session(token):
    info = {"access_token": token, "scope": "read-repos gated-repos", "expires_at": 2**40, "userinfo": {}}
    return {"oauth_info": info} if token else {}


class _Sessions:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            scope["session"] = session(dict(scope["headers"]).get(b"x-test-token", b"").decode())
        await self.app(scope, receive, send)


SESSIONS = Middleware(_Sessions)
"""The visitor with the header `x-test-token` has signed in."""


@contextmanager
def visitor(token=None):
    """The block answers an event of a visitor who signed in with a token, or did not."""
    before = LocalContext.request.set(SimpleNamespace(session=session(token)))
    try:
        yield
    finally:
        LocalContext.request.reset(before)
