"""Tab Inside a patch: what a patch gathers over the levels, what occlusion changes, and how patches group."""

from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from vitviz_hf.config import parse_patches
from vitviz_hf.errors import ConfigError
from vitviz_hf.images import outline_patch
from vitviz_hf.ui.events import LATEST, open_photo, shown, whole_number
from vitviz_hf.ui.jobs import Viewed
from vitviz_hf.ui.link import Kept, or_else, whole
from vitviz_hf.ui.maps_tab import MapsTab
from vitviz_hf.ui.page import Page, Values

_SIDE = 448
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
        self.layout = gr.State(None)
        self.filled = [self.crop, self.editor, self.patch, self.filter, self.views, self.facts, self.layout]

    def _lay_out_patch(self) -> None:
        self.crop = gr.Image(
            label="What the model sees: click a patch",
            interactive=False,
            elem_id="view-crop",
            format="png",
            buttons=[],
            alt_text="The model's crop of your picture",
        )
        with gr.Row():
            self.patch = gr.Textbox("", label="Patch: row,column", elem_id="view-patch", max_lines=1, min_width=110)
            self.filter = gr.Number(
                -1, label="Filter (-1: readable)", precision=0, minimum=-1, elem_id="view-filter", min_width=110
            )
        self.scale = gr.Radio(
            [("linear, each view its own", "linear"), ("logarithmic, the same for all", "log")],
            value="linear",
            label="Brightness",
            elem_id="view-scale",
        )
        self.show_views = gr.Button("Show views", variant="primary", elem_id="show-views")

    def _lay_out_changes(self) -> None:
        with gr.Accordion("Mark the object", open=False):
            self.editor = gr.ImageEditor(
                label="Paint over the object, or over several",
                type="pil",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=24, colors=["#ff3b30"], color_mode="fixed"),
                format="png",
                elem_id="editor",
                canvas_size=(_SIDE, _SIDE),
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
        return [Kept("view", self.patch, or_else("")), Kept("filter", self.filter, whole(-1))]

    def connect(self) -> None:
        """Connect its events; the picture is that of the tab Your picture."""
        page, model, photo = self.page, self.page.model, self.page.tab(MapsTab).photo
        lane = {**LATEST, "show_progress_on": [self.facts]}
        private: dict[str, Any] = {**lane, "api_visibility": "private"}
        filled = self.filled
        asked, showing = [model, photo, self.patch, self.filter, self.scale], [self.show_views.click, self.patch.submit]
        page.link(gr.on(showing, self.show_view, asked, filled, **private))
        clicked = [model, photo, self.filter, self.scale, self.layout]
        page.link(self.crop.select(self.pick_patch, clicked, filled, **private))
        changed = [model, photo, self.editor, self.patch, self.filter, self.change, self.ratio, self.side, self.scale]
        self.compare.click(self.compare_with, changed, filled, **private)
        self.group.click(self.group_patches, [model, photo, self.editor, self.layer], self.plot, **private)

    def drawn(self, result: Viewed, editor_too: bool) -> Values:
        """Views of a patch; a fresh picture goes to the editor as well."""
        height = _SIDE * result.crop.height // result.crop.width
        enlarged = result.crop.resize((_SIDE, height), Image.Resampling.BICUBIC)
        values: Values = {
            self.crop: outline_patch(enlarged, result.patch, result.grid),
            self.patch: "{},{}".format(*result.patch),
            self.filter: result.filter,
            self.views: [(picture, caption) for caption, picture in result.views],
            self.facts: result.text,
            self.layout: (*result.grid, *enlarged.size),
        }
        return values | ({self.editor: enlarged} if editor_too else {})

    def look(self, model_id: str, photo: str | None, patch: str, number: int, scale: str, fresh: bool) -> Values:
        """Views of a patch of the unchanged picture."""
        asked = open_photo(photo), *_place(patch, number), scale
        result = self.view_job(self.shelf.snapshot(model_id), *asked)
        return self.drawn(result, fresh)

    @shown
    def show_view(
        self, model_id: str, image: str, patch: str, filter_number: int, brightness: str = "linear"
    ) -> Values:
        """Views of a patch."""
        return self.look(model_id, image, patch, whole_number("filter", filter_number, -1), brightness, True)

    @shown
    def first_look(
        self, model_id: str, photo: str | None, patch: str, number: float | None, scale: str, layout: Any
    ) -> Values:
        """Views when the tab is opened and shows none yet."""
        if layout or not photo:
            return gr.skip()
        return self.look(model_id, photo, patch, whole_number("filter", number, -1), scale, True)

    @shown
    def pick_patch(
        self,
        model_id: str,
        photo: str,
        number: int,
        scale: str,
        layout: tuple[int, int, int, int],
        event: gr.SelectData,
    ) -> Values:
        """A click on the crop."""
        (rows, cols, width, height), (x, y) = layout, event.index
        patch = f"{min(int(y) * rows // height, rows - 1)},{min(int(x) * cols // width, cols - 1)}"
        return self.look(model_id, photo, patch, whole_number("filter", number, -1), scale, False)

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
        asked = open_photo(photo), *_place(patch, whole_number("filter", number, -1)), scale
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


def _place(patch: str, number: int) -> tuple[tuple[int, int] | None, int | None]:
    """Patch and filter, None where the visitor leaves the choice."""
    return next(iter(parse_patches(patch or "")), None), None if number < 0 else number


def _painted(value: dict[str, Any] | None) -> Any:
    """What was painted, [h, w] of the editor's picture; None if nothing was."""
    layers = [np.asarray(x)[..., 3] > 0 for x in (value or {}).get("layers") or [] if x is not None]
    painted = np.any(layers, axis=0) if layers else np.zeros(0)
    return painted if painted.any() else None
