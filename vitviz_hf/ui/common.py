"""What the tabs share: the page they stand on, shown errors, the picture input, the link in the address bar."""

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol, TypeVar, cast

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from vitviz_hf.errors import ImageError, VitvizError
from vitviz_hf.images import open_image
from vitviz_hf.ui.jobs import Jobs

Gpu = Callable[[Any], Callable[[Callable[..., Any]], Callable[..., Any]]]
"""Duration in seconds, or a function of the job's arguments -> decorator, as spaces.GPU."""

Values = dict[Any, Any]
"""Component -> its new value; the others stay as they are."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A component that the address bar keeps."""

    key: str
    component: Any
    parse: Callable[[str | None], Any]
    """Text in the link, None if it has none -> value; what cannot be used gives the default."""


def or_else(default: str) -> Callable[[str | None], str]:
    """Any text."""
    return lambda text: default if text is None else text


def one_of(choices: Iterable[str], default: str | None) -> Callable[[str | None], str | None]:
    """One of some words."""
    known = tuple(choices)
    return lambda text: text if text in known else default


def whole(default: int) -> Callable[[str | None], int]:
    """A whole number of at most nine digits."""
    return lambda text: int(text) if text and text.isdecimal() and len(text) < 10 else default


def link_js(keys: Sequence[str]) -> str:
    """Keeps the address bar in step with the components of these keys.

    A Space's page is told as well, since the app lives in a frame there. Until the page has read its own link, nothing
    may write it: the request that opens the page sends the address bar as it is then.
    """
    return f"""(...values) => {{
  if (!window.vitvizOpened) return;
  const keys = {list(keys)}, query = new URLSearchParams();
  keys.forEach((key, i) => {{
    const value = values[i];
    if (value !== null && value !== undefined && value !== "") query.set(key, value);
  }});
  history.replaceState(null, "", "?" + query.toString());
  if (window.parent !== window) window.parent.postMessage({{queryString: query.toString()}}, "*");
}}"""


OPENED_JS = "() => { window.vitvizOpened = true; }"

LANE: dict[str, Any] = {"concurrency_id": "gpu", "concurrency_limit": 1, "trigger_mode": "always_last"}
"""One job at a time on the device; of clicks that wait, the last counts."""


class Tab(Protocol):
    """A tab: components are attributes, handlers are methods that return `Values`."""

    key: str
    """In the link."""
    title: str

    def __init__(self, page: "Page") -> None:
        """Lay it out."""

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps of it."""

    def connect(self) -> None:
        """Connect its events, when all tabs are laid out."""


T = TypeVar("T")


class Page:
    """What stands around the tabs, and how they find each other."""

    def __init__(self, jobs: Jobs, gpu: Gpu, model: gr.Dropdown, facts: gr.Markdown) -> None:
        self.jobs, self.gpu, self.model, self.facts = jobs, gpu, model, facts
        self.tabs: gr.Tabs
        self.tab_key: gr.Textbox
        self.laid_out: list[Tab] = []

    def tab(self, kind: type[T]) -> T:
        """The tab of a class."""
        return cast(T, next(tab for tab in self.laid_out if isinstance(tab, kind)))

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps, in its order."""
        keys = [tab.key for tab in self.laid_out]
        own = [Kept("tab", self.tab_key, one_of(keys, keys[0])), Kept("model", self.model, or_else(self.model.value))]
        return own + [kept for tab in self.laid_out for kept in tab.kept]

    def go(self, kind: type[Tab]) -> Values:
        """Opens the tab of a class."""
        return {self.tabs: gr.update(selected=kind.key), self.tab_key: kind.key}

    @property
    def going(self) -> list[Any]:
        """The components of `go`."""
        return [self.tabs, self.tab_key]

    def link(self, event: Any) -> None:
        """Write the address bar after an event."""
        kept = self.kept
        event.then(None, [k.component for k in kept], None, js=link_js([k.key for k in kept]), api_visibility="private")


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

    def stop(self, request: gr.Request) -> None:
        """Raise the flag of a visitor's run, if there is one."""
        if stop := self._running.get(str(request.session_hash)):
            stop.set()


_log = logging.getLogger(__name__)


def photo_input(**options: Any) -> gr.Image:
    """An image input that hands over the file as it came: `open_image` is the gate that decodes it."""
    component = gr.Image(type="filepath", image_mode=None, **options)
    decode = component.preprocess

    def preprocess(payload: ImageData | None) -> Any:
        if payload is None or payload.path is None or (payload.url and payload.url.startswith("data:")):
            return decode(payload)
        return payload.path

    component.preprocess = preprocess
    return component


def open_photo(path: str | None) -> Image.Image:
    """The visitor's picture.

    Raises:
        ImageError: none given, or not usable.
    """
    if not path:
        raise ImageError("there is no picture yet: upload one or choose an example photograph.")
    return open_image(path)


def shown(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Show a user's error with its text; log anything else and say one neutral sentence."""

    def told(error: Exception) -> gr.Error:
        if isinstance(error, VitvizError):
            return gr.Error(html.escape(str(error)), print_exception=False)
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
