"""What handlers share: shown errors, runs that a visitor can stop, the picture input."""

import base64
import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from vitviz_hf.config import parse_patch
from vitviz_hf.errors import ConfigError, ImageError, VitvizError
from vitviz_hf.images import open_image

LATEST: dict[str, Any] = {"trigger_mode": "always_last", "concurrency_limit": None}
"""Of clicks that wait, the last counts. Whose turn it is on the device, lane.py says."""


ONCE: dict[str, Any] = {**LATEST, "trigger_mode": "once"}
"""Of the button of a long run: what is pressed while it runs does not run it again."""


class Runs:
    """The visitors' long runs, one each.

    A flag that is read between frames ends one in order; gradio's own `cancels` ends it with an error badge.
    """

    def __init__(self) -> None:
        self._running: dict[str, Event] = {}

    @contextmanager
    def one_for(self, request: gr.Request) -> Iterator[Event]:
        """The flag of a run that goes on inside the block."""
        session, stop = str(request.session_hash), Event()
        self._running[session] = stop
        try:
            yield stop
        finally:
            if self._running.get(session) is stop:
                del self._running[session]

    def stop(self, request: gr.Request) -> Any:
        """Raise the flag of a visitor's run; what the status then says, nothing new if nothing runs."""
        stop = self._running.get(str(request.session_hash))
        if stop is None:
            return gr.skip()
        stop.set()
        return "Stopping ..."


_log = logging.getLogger(__name__)


def photo_input(**options: Any) -> gr.Image:
    """An image input that hands over the file as it came, sent as a file or in the request: `open_image` decodes it."""
    component = gr.Image(type="filepath", image_mode=None, **options)

    def preprocess(payload: ImageData | None) -> str | None:
        if payload and payload.url and payload.url.startswith("data:"):
            return _keep_inline(payload.url, component.GRADIO_CACHE)
        return payload.path if payload else None

    component.preprocess = preprocess
    return component


def _keep_inline(url: str, folder: str) -> str:
    """The bytes of a `data:` URL as a file, as if it had been uploaded."""
    head, _, text = url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it is not in base64")
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise gr.Error(f"the picture in the request cannot be read: {error}.", print_exception=False) from error
    return save_bytes_to_cache(data, "picture.png", folder)


def open_photo(path: str | None) -> Image.Image:
    """The visitor's picture.

    Raises:
        ImageError: none given, or not usable.
    """
    if not path:
        raise ImageError("there is no picture yet: upload one or choose an example photograph.")
    return open_image(path)


def whole_number(name: str, value: float | None, least: int = 0, most: int | None = None) -> int:
    """A whole number that a visitor gave; None is an empty box.

    Raises:
        ConfigError: empty, not whole, or out of range.
    """
    span = f"from {least}" + (f" to {most}" if most is not None else "")
    if value is None or value % 1 != 0 or value < least or (most is not None and value > most):
        raise ConfigError(f"{name} must be a whole number {span}; got {'nothing' if value is None else f'{value:g}'}.")
    return int(value)


def typed_patch(text: str | None) -> tuple[int, int] | None:
    """A patch that a visitor typed; None is an empty box.

    Raises:
        ConfigError: it is not row,column.
    """
    return parse_patch(text, "patch") if text and text.strip() else None


def one_word(name: str, value: str, known: Iterable[str]) -> str:
    """One of some words.

    Raises:
        ConfigError: it is none of them.
    """
    if value not in (words := tuple(known)):
        raise ConfigError(f"{name} must be one of {', '.join(words)}; got {value!r}.")
    return value


def shown(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Show a user's error on the page, which reads it as HTML; log any other and say one neutral sentence."""
    return _telling(handler, html.escape)


def answered(handler: Callable[..., Any]) -> Callable[..., Any]:
    """As `shown`, for programs that call an endpoint: plain text."""
    return _telling(handler, str)


def tell(error: Exception) -> str:
    """Warn of what went wrong, without an end to the event: of what waits for it the last is lost if it fails.

    Returns:
        The warning as HTML; one neutral sentence if the error is not a user's, which is logged.
    """
    text = html.escape(said(error))
    gr.Warning(text, title="Error")
    return text


def said(error: Exception) -> str:
    """What a visitor is told of an error, as plain text; one that is not a user's is logged."""
    if isinstance(error, VitvizError):
        return error.for_visitor
    _log.error("a part of the page failed", exc_info=error)
    return "Something went wrong on the server; it has been logged."


def tried(part: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
    """What a part of the page shows; nothing but a word of warning if it fails, so that the others can be shown."""
    try:
        return part()
    except Exception as error:
        tell(error)
    return {}


def _telling(handler: Callable[..., Any], to_text: Callable[[str], str]) -> Callable[..., Any]:
    def told(error: Exception) -> gr.Error:
        if isinstance(error, VitvizError):
            return gr.Error(to_text(error.for_visitor), print_exception=False)
        if isinstance(error, gr.Error):
            return error
        _log.exception("handler %s failed", handler.__name__)
        return gr.Error("Something went wrong on the server; it has been logged.", print_exception=False)

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*args: Any, **kwargs: Any) -> Any:
            try:
                yield from handler(*args, **kwargs)
            except Exception as error:
                raise told(error) from error

        return stream

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Exception as error:
            raise told(error) from error

    return call
