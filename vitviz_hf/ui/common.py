"""What both tabs share: shown errors, the picture input, the link in the address bar."""

import functools
import html
import inspect
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from vitviz_hf.errors import ImageError, VitvizError
from vitviz_hf.images import open_image

Gpu = Callable[[Any], Callable[[Callable[..., Any]], Callable[..., Any]]]
"""Duration in seconds, or a function of the job's arguments -> decorator, as spaces.GPU."""

LINK_KEYS = (
    "tab", "model", "photo", "kind", "layer", "patch", "feature", "objective", "preset", "seed", "atlas", "shows",
    "result", "view", "filter",
)  # fmt: skip
# Keeps the address bar in step; a Space's page is told as well, since the app lives in a frame there. Until the page
# has read its own link, nothing may write it: the request that opens the page sends the address bar as it is then.
LINK_JS = f"""(...values) => {{
  if (!window.vitvizOpened) return;
  const keys = {list(LINK_KEYS)}, query = new URLSearchParams();
  keys.forEach((key, i) => {{
    const value = values[i];
    if (value !== null && value !== undefined && value !== "") query.set(key, value);
  }});
  history.replaceState(null, "", "?" + query.toString());
  if (window.parent !== window) window.parent.postMessage({{queryString: query.toString()}}, "*");
}}"""
OPENED_JS = "() => { window.vitvizOpened = true; }"

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
