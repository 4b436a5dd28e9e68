"""The image editor, which takes no more from a stranger than its canvas holds."""

import io
from collections.abc import Callable
from typing import Any

import gradio as gr
from cachetools import LRUCache
from fastapi import HTTPException
from gradio.components.image_editor import AcceptBlobs, EditorData, EditorDataBlobs
from gradio.data_classes import FileData
from PIL import Image

_LAYERS, _KEPT_BYTES = 4, 200_000_000
"""Layers of one painting; bytes of all paintings that wait for their event, the latest of them."""
_LARGER, _BYTES_PER_PIXEL, _FORMATS = 4, 32, ("PNG", "WEBP", "JPEG")
"""A screen may draw the canvas up to four times as wide; bytes for each pixel of the canvas itself."""


def painting_input(side: int, **options: Any) -> gr.ImageEditor:
    """An image editor with a canvas of side x side pixels.

    Gradio's own keeps whatever is sent to it for ever, makes room for any number of layers, and decodes any size.
    """
    component = gr.ImageEditor(canvas_size=(side, side), **options)
    component.blob_storage = LRUCache(_KEPT_BYTES, _size_of)
    accept, decode = component.accept_blobs, component.preprocess

    def accept_blobs(data: AcceptBlobs) -> None:
        index = str(data.data.get("index") or "")
        known = index in ("", "null") or (index.isdecimal() and int(index) < _LAYERS)
        if not known or len(data.files) != 1:
            raise HTTPException(400, f"a painting has one picture at a time and at most {_LAYERS} layers.")
        if told := _too_large(data.files[0][1], side):
            raise HTTPException(413, told)
        accept(data)

    def preprocess(payload: EditorData | None) -> Any:
        for part in (payload.background, *payload.layers, payload.composite) if payload else ():
            if isinstance(part, FileData) and (told := _file_too_large(part.path, side)):
                raise gr.Error(told, print_exception=False)
        return decode(payload)

    component.accept_blobs = _as_server(accept_blobs)
    component.preprocess = preprocess
    return component


def _as_server(function: Callable[..., None]) -> Any:
    """What gradio's decorator `server` does, for a function that is no method."""
    setattr(function, "_is_server_fn", True)  # noqa: B010
    return function


def _size_of(blobs: EditorDataBlobs) -> int:
    return 1 + sum(len(part) for part in (blobs.background, *(blobs.layers or ()), blobs.composite) if part)


def _file_too_large(path: str, side: int) -> str:
    with open(path, "rb") as file:
        return _too_large(file.read(_BYTES_PER_PIXEL * side * side + 1), side)


def _too_large(data: bytes, side: int) -> str:
    """What is wrong with a picture of a painting; empty for one that may be decoded."""
    if len(data) > _BYTES_PER_PIXEL * side * side:
        return f"a painting has at most {_BYTES_PER_PIXEL * side * side / 1e6:.1f} MB."
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            fits = max(image.size) <= _LARGER * side
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return f"this is no picture of a painting; use one of {', '.join(_FORMATS)}."
    return "" if fits else f"a painting has at most {_LARGER * side} pixels on a side."
