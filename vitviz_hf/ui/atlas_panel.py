"""The atlas that is in use, and the search that makes another one."""

import html
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from vitviz_hf.atlas.store import Atlas, push_atlas
from vitviz_hf.config import BUILTIN
from vitviz_hf.errors import AtlasError, VitvizError
from vitviz_hf.hub import visitors_sign_in
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.events import LATEST, ONCE, Runs, shown, whole_number
from vitviz_hf.ui.lane import Stopped, unless_stopped
from vitviz_hf.ui.made import UPLOADED, is_made
from vitviz_hf.ui.maps_tab import MapsTab
from vitviz_hf.ui.page import Page, Values
from vitviz_hf.ui.searching import MAX_UPLOADS, Asked, Searches, keep_uploads
from vitviz_hf.ui.visitor import token_for

DATASETS: dict[str, tuple[str | None, str]] = {
    "benjamin-paine/imagenet-1k-256x256": ("validation", "ImageNet, 1,000 classes, 256 pixels"),
    "detection-datasets/coco": ("val", "COCO, everyday scenes"),
    "zh-plus/tiny-imagenet": ("valid", "Tiny ImageNet, 200 classes, 64 pixels"),
    BUILTIN: (None, "The built-in photographs"),
}
"""Hub id -> split and description: what is offered; public and not gated."""
_LIMITS = (500, 2000, 10_000)
_EXPLAINED = "What rankings and pages compare with. Choose one, or type the Hub id of a dataset made by vitviz search."


class AtlasPanel:
    """Chooser, search and download."""

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.runs = page, page.shelf, Runs()
        self.searches = Searches(page.shelf, page.lane, page.gpu)
        self.atlas = page.atlas.render()
        self.facts = gr.Markdown(elem_id="atlas-facts")
        self.news = gr.State("")
        """Name of an atlas that was just made, and its images."""
        self.offered = gr.State("")
        """The model that the choices are for."""
        with gr.Accordion("Search photographs for this model", open=False, elem_id="search"):
            self._lay_out_search()
        with gr.Row():
            self.zip = gr.Button("Prepare a ZIP of this atlas", elem_id="atlas-zip", size="sm", visible=False)
            self.file = gr.DownloadButton("Download", elem_id="atlas-file", size="sm", visible=False)
        self._lay_out_push()

    def _lay_out_search(self) -> None:
        self.dataset = gr.Dropdown(
            [(text, name) for name, (_, text) in DATASETS.items()],
            value=next(iter(DATASETS)),
            allow_custom_value=True,
            label="Photographs",
            info="or the id of any public dataset on the Hub with a column of images",
            elem_id="search-dataset",
        )
        self.uploads = gr.File(
            file_count="multiple",
            file_types=["image"],
            label="Or your own photographs",
            height=120,
            elem_id="search-uploads",
        )
        self.limit = gr.Radio(
            [(f"{n:,}", n) for n in _LIMITS], value=_LIMITS[0], label="At most", elem_id="search-limit"
        )
        self.layers = gr.Radio(
            [("all layers", "all"), ("the layer of Your picture", "one")],
            value="all",
            label="Neurons of",
            elem_id="search-layers",
        )
        with gr.Row():
            self.start = gr.Button("Search", variant="primary", elem_id="search-start", min_width=120)
            self.cancel = gr.Button("Stop", variant="stop", elem_id="search-stop", min_width=120)
        self.status = gr.Markdown(
            f"When you stop, what was read is kept. Up to {MAX_UPLOADS:,} photographs of your own can be searched "
            "instead; their atlas is listed for nobody else.",
            elem_id="search-status",
        )

    def _lay_out_push(self) -> None:
        """To the visitor's own account where the Space lets visitors sign in; elsewhere the command says how."""
        self.repository = self.push_button = None
        self.shared = gr.Markdown(elem_id="atlas-shared")
        if visitors_sign_in():
            with gr.Accordion("Share this atlas from your account", open=False):
                self.repository = gr.Textbox(label="Dataset to make", placeholder="OWNER/NAME", max_lines=1)
                self.push_button = gr.Button("Upload it", elem_id="atlas-push")

    def connect(self) -> list[Any]:
        """Connect its events; returns those after which the atlas is to be opened."""
        page, quiet = self.page, {"api_visibility": "private", "show_progress": "hidden"}
        maps = page.tab(MapsTab)
        self.start.click(
            self.search,
            [page.model, self.dataset, self.uploads, self.limit, self.layers, maps.layer],
            [self.status, self.news],
            **ONCE,
            **quiet,
        )
        self.cancel.click(self.runs.stop, None, self.status, queue=False, api_visibility="private")
        self.zip.click(self.pack, [page.model, self.atlas], self.file, api_visibility="private")
        if self.push_button:
            self.push_button.click(
                self.push, [page.model, self.atlas, self.repository], self.shared, api_visibility="private"
            )
        offered = [self.atlas, self.offered, *self.told]
        return [
            page.loaded.change(self.offer, [page.loaded, self.atlas, self.offered], offered, **LATEST, **quiet),
            self.news.change(self.take_news, [self.news, page.loaded], offered, **LATEST, **quiet),
        ]

    @property
    def told(self) -> list[Any]:
        """What `tell` changes."""
        return [self.facts, self.zip, self.file, self.shared]

    def in_use(self, model_id: str, name: str) -> Atlas | None:
        """The atlas of a name; that in use for the model without a name.

        Raises:
            AtlasError: it cannot be opened.
        """
        return self.shelf.atlas(name) if name else self.shelf.atlas_for(self.shelf.snapshot(model_id))

    def tell(self, atlas: Atlas | None) -> Values:
        """What is used, and whether it can be downloaded."""
        here = atlas is not None and is_made(atlas.name)
        text = f"In use: the {len(builtin_paths())} built-in photographs, a rough yardstick. Search more below."
        if atlas is not None:
            model, what = html.escape(atlas.manifest["model_id"]), html.escape(described(atlas))
            text = f"In use: statistics of {what}, for **{model}**, {_origin(atlas, self._own(atlas))}."
        command = "To share it: unpack the ZIP, then `vitviz atlas push FOLDER OWNER/NAME`."
        shared = command if here and not self.push_button else ""
        return {
            self.facts: text,
            self.zip: gr.update(visible=here),
            self.file: gr.update(visible=False, value=None),
            self.shared: shared,
        }

    def choices(self, model_id: str, name: str) -> Any:
        """The atlases of a model: the server's own, those made here, those on the Hub, and the one that is named."""
        snapshot = self.shelf.snapshot(model_id)
        known = [*self.shelf.own_atlases(snapshot), *self.shelf.made_atlases(snapshot)]
        best = described(known[0]) if known else f"{len(builtin_paths())} built-in photographs"
        found, note = self.shelf.found_atlases(model_id)
        options = {"": f"Automatic: {best}"}
        options |= {a.name: f"{described(a)}, {_origin(a, self._own(a))}" for a in known}
        options |= {i: f"{i}, on the Hub" for i in found}
        if is_made(name) and name not in options:
            atlas = self.shelf.atlas(name)
            options[name] = f"{described(atlas)}, {_origin(atlas, False)}"
        info = f"{_EXPLAINED} {note}".strip()
        return gr.update(choices=[(text, value) for value, text in options.items()], value=name, info=info)

    def _own(self, atlas: Atlas) -> bool:
        return atlas.name == os.environ.get("VITVIZ_ATLAS")

    @shown
    def offer(self, model_id: str, name: str, offered: str) -> Values:
        """The atlases of the model that was loaded; after another model, what was chosen for that is left."""
        name = "" if offered and offered != model_id else name
        values: Values = {self.atlas: self.choices(model_id, name), self.offered: model_id}
        with suppress(VitvizError):  # of a link's atlas, which the page tells
            values |= self.tell(self.in_use(model_id, name))
        return values

    @shown
    def take_news(self, news: str, model_id: str) -> Values:
        """An atlas that was just made, unless the visitor went on to another model."""
        atlas = self.shelf.atlas(news.split()[0])
        if atlas.manifest["model_id"] != model_id:
            return gr.skip()
        return {self.atlas: self.choices(model_id, atlas.name), self.offered: model_id, **self.tell(atlas)}

    @shown
    def search(
        self,
        model_id: str,
        dataset: str,
        uploads: list[str] | None,
        limit: int,
        layers: str,
        layer: float,
        request: gr.Request,
    ) -> Iterator[Values]:
        """A search, with an atlas as soon as there is one; who stops it keeps what was read."""
        dataset = (dataset or "").strip()
        with self.runs.one_for(request) as stop:
            yield {self.status: "Loading the model ..."}
            try:
                most = MAX_UPLOADS if uploads else whole_number("images to read", limit, 1)
                one = whole_number("layer", layer) if layers == "one" else None
                snapshot = unless_stopped(stop, lambda: self.shelf.snapshot(model_id))
                split = DATASETS.get(dataset, (None, ""))[0]
                own = keep_uploads(uploads) if uploads else None
                asked = Asked("" if own else dataset, split, most, one, own)
                written = 0
                for seen in self.searches.watch(snapshot, asked, stop, token_for(asked.dataset)):
                    values: Values = {self.status: html.escape(seen.doing)}
                    if seen.written > written:
                        written = seen.written
                        values[self.news] = f"{seen.name} {written}"
                    yield values
            except Stopped:
                yield {self.status: "Stopped."}
            except VitvizError as error:
                yield {self.status: html.escape(error.for_visitor)}
                raise

    @shown
    def pack(self, model_id: str, name: str) -> Values:
        """A ZIP of an atlas that was made here."""
        atlas = self._made(model_id, name)
        with TemporaryDirectory() as folder:
            path = shutil.make_archive(str(Path(folder, "atlas")), "zip", atlas.folder)
            size = Path(path).stat().st_size
            kept = save_file_to_cache(path, self.file.GRADIO_CACHE)
        return {self.file: gr.update(value=kept, visible=True, label=f"Download atlas.zip ({size / 1e6:.1f} MB)")}

    @shown
    def push(self, model_id: str, name: str, repository: str, token: gr.OAuthToken | None) -> str:
        """Upload an atlas that was made here to the visitor's account."""
        if token is None:
            raise AtlasError("sign in first: the atlas is uploaded from your account.")
        url = push_atlas(self._made(model_id, name).folder, (repository or "").strip(), token=token.token)
        return f"Uploaded: {html.escape(url)}"

    def _made(self, model_id: str, name: str) -> Atlas:
        atlas = self.in_use(model_id, name)
        if atlas is None or not is_made(atlas.name):
            raise AtlasError("only an atlas that was made on this server can be downloaded here; search first.")
        return atlas


def described(atlas: Atlas) -> str:
    """What an atlas holds, such as `2,000 photographs of owner/name in 12 layers`."""
    m, layers = atlas.manifest, sorted({site.layer for site in atlas.sites})
    n = f"{m['n_images']:,}"
    own = {BUILTIN: f"{n} built-in photographs", UPLOADED: f"{n} photographs"}
    photographs = own.get(m["dataset"], f"{n} photographs of {m['dataset']}")
    return f"{photographs} in " + (f"{len(layers)} layers" if len(layers) > 1 else f"layer {layers[0]}")


def _origin(atlas: Atlas, own: bool) -> str:
    if atlas.manifest["dataset"] == UPLOADED:
        return "uploaded"
    return "this server's own" if own else "made on this server" if is_made(atlas.name) else "from the Hub"
