"""What strangers put into a request itself passes the same gate as a file; a painting has bounds of its own."""

import base64
import io
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from fastapi import HTTPException
from gradio.components.image_editor import EditorData
from gradio.data_classes import FileData, ImageData
from PIL import Image

from vitviz_hf.errors import ImageError
from vitviz_hf.ui import editor
from vitviz_hf.ui.editor import painting_input
from vitviz_hf.ui.events import open_photo, photo_input


def encoded(size=(32, 24), kind="PNG", mode="RGB"):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def inline(data, head="data:image/png;base64,"):
    return ImageData(url=head + base64.b64encode(data).decode())


def test_a_picture_in_the_request_is_the_one_that_was_sent():
    data = encoded()

    path = photo_input().preprocess(inline(data))

    with Image.open(io.BytesIO(data)) as sent:
        assert np.array_equal(np.asarray(open_photo(path)), np.asarray(sent))
    assert photo_input().preprocess(None) is photo_input().preprocess(ImageData(url="http://127.0.0.1/a.png")) is None


def test_a_picture_in_the_request_is_decoded_by_the_gate_alone(monkeypatch):
    with Image.new("L", (8000, 8000)) as large:
        buffer = io.BytesIO()
        large.save(buffer, "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))

    for data, told in ((buffer.getvalue(), "at most 50 million"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a supported")):
        path = photo_input().preprocess(inline(data))
        with pytest.raises(ImageError, match=told):
            open_photo(path)


@pytest.mark.parametrize("url", ["data:image/png;base64,####", "data:image/png,abc", "data:"])
def test_what_is_no_picture_in_the_request_is_told_in_one_sentence(url):
    with pytest.raises(gr.Error, match="the picture in the request cannot be read"):
        photo_input().preprocess(ImageData(url=url))


def blob(data, index="null", kind="background", name="a"):
    return SimpleNamespace(data={"type": kind, "index": index, "id": name}, files=[("blob", data)])


def painting():
    return painting_input(64, type="pil", layers=False)


def test_a_painting_is_put_together_of_what_was_sent():
    component = painting()

    component.accept_blobs(blob(encoded((64, 64))))
    component.accept_blobs(blob(encoded((64, 64), mode="RGBA"), "0", "layer"))
    component.accept_blobs(blob(encoded((64, 64)), kind="composite"))

    found = component.preprocess(EditorData(id="a"))
    assert found["background"].size == found["composite"].size == (64, 64) and len(found["layers"]) == 1
    assert component.accept_blobs._is_server_fn


@pytest.mark.parametrize("index", ["300000000", "4", "-1", "x", "1e9"])
def test_a_painting_has_few_layers(index):
    component = painting()

    with pytest.raises(HTTPException, match="at most 4 layers"):
        component.accept_blobs(blob(encoded(), index, "layer"))
    assert not component.blob_storage


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (encoded((300, 8)), "at most 256 pixels"),
        (encoded((64, 64)) + b"0" * 140_000, "at most 0.1 MB"),
        (encoded(kind="TGA"), "no picture of a painting"),
        (b"", "no picture of a painting"),
    ],
)
def test_a_painting_larger_than_its_canvas_is_refused_before_it_is_decoded(data, told, tmp_path):
    component, file = painting(), tmp_path / "a.png"
    file.write_bytes(data)

    with pytest.raises(HTTPException, match=told):
        component.accept_blobs(blob(data))
    part = FileData(path=str(file))
    for given in ({"background": part}, {"composite": part}, {"layers": [part]}):
        with pytest.raises(gr.Error, match=told):
            component.preprocess(EditorData(**given))


def test_paintings_that_nobody_asks_for_are_forgotten(monkeypatch):
    data = encoded((64, 64))
    monkeypatch.setattr(editor, "_KEPT_BYTES", 3 * len(data) + 100)
    component = painting()

    for i in range(5):
        component.accept_blobs(blob(data, name=str(i)))

    assert list(component.blob_storage) == ["2", "3", "4"]
