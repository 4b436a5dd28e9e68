"""Tab Inside a patch: what a patch gathers over the levels, what occlusion changes, and how patches group."""

from typing import Any

import gradio as gr
import numpy as np

from vitviz_hf.errors import ConfigError
from vitviz_hf.ui.drawing import crop_html, enlarge
from vitviz_hf.ui.editor import painting_input
from vitviz_hf.ui.events import LATEST, open_photo, shown, typed_patch, whole_number
from vitviz_hf.ui.jobs import Viewed
from vitviz_hf.ui.link import Kept, one_of, or_else, whole
from vitviz_hf.ui.maps_tab import MapsTab
from vitviz_hf.ui.page import Page, Values
from vitviz_hf.ui.picker import picked_js, picker, scroll_js

_SIDE = 448
_STACKED = "innerWidth < 720"
"""JavaScript: whether the views stand below the picture."""
VIEWS_CSS = """
#views label[data-testid=block-label] { position: static; width: fit-content; }
#views .grid-wrap { max-height: none; }
#views .grid-container { padding-top: 6px; grid-auto-rows: auto; grid-template-columns: repeat(4, minmax(0, 1fr)); }
#views .thumbnail-item { height: auto; aspect-ratio: auto; }
#views .thumbnail-item > img { height: auto; aspect-ratio: 1; }
#views .caption-label { position: static; max-width: none; padding: 2px 4px; border-width: 1px 0 0; border-radius: 0;
  color: var(--body-text-color); font-size: 0.75rem; white-space: normal; overflow-wrap: anywhere; }
#views .thumbnail-item:hover .caption-label { opacity: 1; }
@media (max-width: 720px) { #views .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
"""
_CHANGES = {
    "tiles at random": "random",
    "tiles on the object": "salient",
    "tiles off the object": "non-salient",
    "shuffled tiles": "shuffle",
}


class BehaviorTab:
    """The crop and what is done to it on the left; views by level and groups on the right."""

    key, title = "views", "Inside a patch"

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.jobs = page, page.shelf, page.jobs
        self.view_job, self.group_job = page.on_device(30, page.jobs.patch_views), page.on_device(60, page.jobs.groups)
        gr.Markdown("The picture of the first tab. Click a patch to see what its token has gathered, level by level.")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self._lay_out_patch()
                self._lay_out_changes()
            with gr.Column(scale=2, min_width=320):
                self.views = gr.Gallery(
                    label="Views by level",
                    columns=4,
                    height="auto",
                    interactive=False,
                    format="png",
                    elem_id="views",
                    buttons=[],
                    object_fit="contain",
                )
                self.facts = gr.Markdown(elem_id="view-facts")
                self.plot = gr.HTML(elem_id="groups")
        self.looked = gr.State(None)
        self.filled = [self.crop, self.editor, self.patch, self.filter, self.views, self.facts, self.looked]

    def _lay_out_patch(self) -> None:
        self.crop = picker("view-crop", True, label="What the model sees")
        with gr.Row():
            self.patch = gr.Textbox("", label="Patch: row,column", elem_id="view-patch", max_lines=1, min_width=110)
            self.filter = gr.Number(
                -1, label="Filter (-1: readable)", precision=0, minimum=-1, elem_id="view-filter", min_width=110
            )
        self.scale = gr.Radio(
            [("logarithmic, the same for all", "log"), ("linear, each view its own", "linear")],
            value="log",
            label="Brightness",
            elem_id="view-scale",
        )
        self.show_views = gr.Button("Show views", variant="primary", elem_id="show-views")

    def _lay_out_changes(self) -> None:
        with gr.Accordion("Mark the object", open=False):
            self.editor = painting_input(
                _SIDE,
                label="Paint over the object, or over several",
                type="pil",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=24, colors=["#ff3b30"], color_mode="fixed"),
                format="png",
                elem_id="editor",
            )
        self.change = gr.Radio(list(_CHANGES.items()), value="random", label="Change the picture", elem_id="change")
        with gr.Row():
            self.ratio = gr.Slider(0, 1, 0.3, step=0.05, label="Share of tiles blacked out", min_width=140)
            self.side = gr.Slider(2, 16, 8, step=1, label="Shuffled tiles in a row", min_width=140)
        self.compare = gr.Button("Compare with the clean picture", elem_id="compare")
        self.layer = gr.Number(
            0, label="Layer of the groups (0: the last)", precision=0, minimum=0, elem_id="group-layer"
        )
        self.group = gr.Button("Group the patches (t-SNE)", elem_id="group")

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps."""
        return [
            Kept("view", self.patch, or_else("")),
            Kept("filter", self.filter, whole(-1)),
            Kept("brightness", self.scale, one_of(("log", "linear"), "log")),
        ]

    def connect(self) -> None:
        """Connect its events; the picture is that of the tab Your picture."""
        page, model, photo = self.page, self.page.model, self.page.tab(MapsTab).photo
        lane = {**LATEST, "show_progress_on": [self.facts]}
        private: dict[str, Any] = {**lane, "api_visibility": "private"}
        filled, quiet = self.filled, {"api_visibility": "private"}
        asked, showing = [model, photo, self.patch, self.filter, self.scale], [self.show_views.click, self.patch.submit]
        changed = [model, photo, self.editor, self.patch, self.filter, self.change, self.ratio, self.side, self.scale]
        for event in (
            gr.on([*showing, self.scale.input], self.show_view, asked, filled, **private),
            self.crop.click(self.show_view, asked, filled, js=picked_js("view-crop", 2), **private),
            self.compare.click(self.compare_with, changed, filled, **private),
        ):
            page.link(event)
            event.success(None, js=scroll_js("#views", _STACKED, "start"), **quiet)
            event.failure(lambda: ([], "", None), None, [self.views, self.facts, self.looked], queue=False, **quiet)
        grouped = self.group.click(self.group_patches, [model, photo, self.editor, self.layer], self.plot, **private)
        grouped.failure(lambda: "", None, self.plot, queue=False, **quiet)

    def drawn(self, result: Viewed, editor_too: bool) -> Values:
        """Views of a patch; a fresh picture goes to the editor as well."""
        enlarged = enlarge(result.crop)
        values: Values = {
            self.crop: crop_html(enlarged, result.grid, result.patch, whole=False),
            self.patch: "{},{}".format(*result.patch),
            self.filter: result.filter,
            self.views: [(picture, caption) for caption, picture in result.views],
            self.facts: result.text,
            self.looked: True,
        }
        return values | ({self.editor: enlarged} if editor_too else {})

    def look(self, model_id: str, photo: str | None, patch: str, number: int, scale: str, fresh: bool) -> Values:
        """Views of a patch of the unchanged picture."""
        asked = open_photo(photo), typed_patch(patch), None if number < 0 else number, scale
        result = self.view_job(self.shelf.snapshot(model_id), *asked)
        return self.drawn(result, fresh)

    @shown
    def show_view(self, model_id: str, image: str, patch: str, filter_number: int, brightness: str = "log") -> Values:
        """Views of a patch."""
        return self.look(model_id, image, patch, whole_number("filter", filter_number, -1), brightness, True)

    @shown
    def first_look(
        self, model_id: str, photo: str | None, patch: str, number: float | None, scale: str, looked: bool | None
    ) -> Values:
        """Views when the tab is opened and shows none yet."""
        if looked or not photo:
            return gr.skip()
        return self.look(model_id, photo, patch, whole_number("filter", number, -1), scale, True)

    @shown
    def compare_with(
        self,
        model_id: str,
        photo: str,
        painted: dict[str, Any],
        patch: str,
        number: int,
        change: str,
        ratio: float,
        side: int,
        scale: str,
    ) -> Values:
        """Views of the picture and of its changed form."""
        mask = _painted(painted)
        if mask is None and change in ("salient", "non-salient"):
            raise ConfigError("mark the object first: open 'Mark the object' and paint over it.")
        amount = float(side) if change == "shuffle" else float(ratio)
        filter_number = whole_number("filter", number, -1)
        asked = open_photo(photo), typed_patch(patch), None if filter_number < 0 else filter_number, scale
        result = self.view_job(self.shelf.snapshot(model_id), *asked, mask, (change, amount))
        return self.drawn(result, False)

    @shown
    def group_patches(self, model_id: str, photo: str, painted: dict[str, Any], layer: int) -> Values:
        """t-SNE of the patches."""
        arguments = (
            self.shelf.snapshot(model_id),
            open_photo(photo),
            _painted(painted),
            int(layer) - 1 if layer else None,
        )
        return {self.plot: str(self.group_job(*arguments))}


def _painted(value: dict[str, Any] | None) -> Any:
    """What was painted, [h, w] of the editor's picture; None if nothing was."""
    layers = [np.asarray(x)[..., 3] > 0 for x in (value or {}).get("layers") or [] if x is not None]
    painted = np.any(layers, axis=0) if layers else np.zeros(0)
    return painted if painted.any() else None
