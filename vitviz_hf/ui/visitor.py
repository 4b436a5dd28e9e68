"""Who asks: a visitor who signed in reads with their own token what is not open to all, and nobody else does.

The token stays with gradio: it is asked for when the Hub is, and kept nowhere. What was opened with it is kept for a
few minutes, for who comes with the same token.
"""

from collections.abc import Callable, Hashable
from hashlib import sha256
from threading import Lock
from typing import Any, TypeVar

import gradio as gr
from cachetools import TTLCache
from gradio.context import LocalContext
from gradio.helpers import special_args

from vitviz_hf.errors import DatasetAccessError, GatedModelError, HubUnreachableError, ModelNotFoundError, VitvizError
from vitviz_hf.hub import DATASET, MODEL, Token, find_commit, is_closed, is_hub_id, on_space

T = TypeVar("T")
_SECONDS, _MOST = 300, 256


def visitor_token() -> str | None:
    """The token of the visitor whose event is answered in this thread; None without one, or if they did not sign in."""
    given, *_ = special_args(_takes, [], LocalContext.request.get(None))
    return given[0].token if given[0] else None


def visitor_key() -> str:
    """What tells one visitor's token from another's in a cache, and tells nothing of it."""
    return _digest(visitor_token())


def _takes(token: gr.OAuthToken | None) -> None:
    """Gradio fills such a parameter in for whoever signed in."""


def token_for(dataset: str) -> Token:
    """What a dataset is to be read with: False where all may read it, else the visitor's own token.

    Args:
        dataset: as typed; False for what is no Hub id, which is told elsewhere.

    Raises:
        DatasetError: this visitor may not; also if the Hub failed.
    """
    token = visitor_token()
    if token is None or "/" not in dataset or not is_hub_id(dataset):
        return False
    try:
        find_commit(DATASET, dataset, False)
    except DatasetAccessError:
        find_commit(DATASET, dataset, token)
        return token
    return False


def check_open(model_id: str) -> None:
    """Raise if a model that lies on a Space's disk is not open to all, so that nobody can be let in without the Hub.

    The Hub, if it can be asked, says so itself; elsewhere the disk is that of who asks.

    Raises:
        HubUnreachableError: it was gated or private when the Hub was last asked.
    """
    if on_space() and is_closed(MODEL, model_id):
        raise HubUnreachableError(
            f"the Hub cannot be reached, and without it nobody is let in to {model_id!r}, which is gated or private.",
            "Check the connection.",
            "Choose another one, or try again later.",
        )


class Admission:
    """What visitors may see of that which is not open to all."""

    def __init__(self) -> None:
        self._kept: TTLCache[object, Any] = TTLCache(_MOST, _SECONDS)
        self._lock = Lock()

    def open(self, what: Hashable, opened: Callable[[Token], T], refusals: tuple[type[VitvizError], ...]) -> T:
        """What `opened` gives without a token; where that is refused, with the visitor's own.

        Raises:
            VitvizError: as `opened` does.
        """
        token = visitor_token()
        key = what, _digest(token)
        if token and (found := self._get(key)) is not None:
            return found
        try:
            return opened(False)
        except refusals:
            if token is None:
                raise
        return self._keep(key, opened(token))

    def may_read(self, kind: str, name: str) -> bool:
        """Whether the visitor may read a repository, a `model` or a `dataset`, as the Hub said minutes ago at most."""
        token = visitor_token()
        key = kind, name, _digest(token)
        if (known := self._get(key)) is not None:
            return bool(known)
        try:
            find_commit(MODEL if kind == "model" else DATASET, name, token or False)
        except (GatedModelError, ModelNotFoundError, DatasetAccessError):
            return bool(self._keep(key, False))
        except VitvizError:  # the Hub failed, and may not the next time
            return False
        return bool(self._keep(key, True))

    def _get(self, key: object) -> Any:
        with self._lock:
            return self._kept.get(key)

    def _keep(self, key: object, value: T) -> T:
        with self._lock:
            self._kept[key] = value
        return value


def _digest(token: str | None) -> str:
    return sha256((token or "").encode()).hexdigest()
