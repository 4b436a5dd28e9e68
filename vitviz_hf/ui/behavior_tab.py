"""Tab Views and groups: what a patch gathers over the levels, what occlusion changes, and how patches group."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from vitviz_hf.errors import ConfigError
from vitviz_hf.images import outline_patch
from vitviz_hf.ui.common import Gpu, open_photo, shown
from vitviz_hf.ui.jobs import Jobs, Viewed

_SIDE = 448
_CHANGES = {
    "tiles at random": "random", "tiles on the object": "salient", "tiles off the object": "non-salient",
    "shuffled tiles": "shuffle",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BehaviorTab:
    """The components that a link restores, and the events."""

    patch: gr.Textbox
    filter: gr.Number
    connect: Callable[[Callable[[Any], Any], gr.Image], None]


def build_behavior_tab(jobs: Jobs, model: gr.Dropdown, gpu: Gpu) -> BehaviorTab:
    """Lay the tab out; events are connected by `connect(after, photo)`, with the picture of the first tab."""
    gr.Markdown("The picture of Activation maps. Click a patch to see what its token has gathered, level by level.")
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            crop = gr.Image(
                label="What the model sees: click a patch", interactive=False, elem_id="view-crop", format="png",
                buttons=[], alt_text="The model's crop of your picture",
            )  # fmt: skip
            with gr.Row():
                patch = gr.Textbox("", label="Patch: row,column", elem_id="view-patch", max_lines=1, min_width=110)
                number = gr.Number(
                    -1, label="Filter (-1: readable)", precision=0, minimum=-1, elem_id="view-filter", min_width=110
                )
            scale = gr.Radio(
                [("linear, each view its own", "linear"), ("logarithmic, the same for all", "log")], value="linear",
                label="Brightness", elem_id="view-scale",
            )  # fmt: skip
            show_views = gr.Button("Show views", variant="primary", elem_id="show-views")
            with gr.Accordion("Mark the object", open=False):
                editor = gr.ImageEditor(
                    label="Paint over the object, or over several", type="pil", sources=(), transforms=(), layers=False,
                    brush=gr.Brush(default_size=24, colors=["#ff3b30"], color_mode="fixed"), format="png",
                    elem_id="editor", canvas_size=(_SIDE, _SIDE),
                )  # fmt: skip
            change = gr.Radio(list(_CHANGES.items()), value="random", label="Change the picture", elem_id="change")
            with gr.Row():
                ratio = gr.Slider(0, 1, 0.3, step=0.05, label="Share of tiles blacked out", min_width=140)
                side = gr.Slider(2, 16, 8, step=1, label="Shuffled tiles in a row", min_width=140)
            compare = gr.Button("Compare with the clean picture", elem_id="compare")
            layer = gr.Number(
                0, label="Layer of the groups (0: the last)", precision=0, minimum=0, elem_id="group-layer"
            )
            group = gr.Button("Group the patches (t-SNE)", elem_id="group")
        with gr.Column(scale=2, min_width=320):
            views = gr.Gallery(
                label="Views by level", columns=4, height="auto", interactive=False, format="png", elem_id="views",
                buttons=[], object_fit="contain",
            )  # fmt: skip
            facts = gr.Markdown(elem_id="view-facts")
            plot = gr.HTML(elem_id="groups")
    layout = gr.State(None)
    view_job, group_job = gpu(30)(jobs.views), gpu(60)(jobs.groups)

    def mask_of(value: dict[str, Any] | None) -> Any:
        """What was painted, as instance numbers of the editor's picture; None if nothing was."""
        layers = [np.asarray(x)[..., 3] > 0 for x in (value or {}).get("layers") or [] if x is not None]
        painted = np.any(layers, axis=0) if layers else np.zeros(0)
        return painted if painted.any() else None

    def drawn(result: Viewed, editor_too: bool) -> list[Any]:
        enlarged = result.crop.resize(
            (_SIDE, _SIDE * result.crop.height // result.crop.width), Image.Resampling.BICUBIC
        )
        framed = outline_patch(enlarged, result.patch, result.grid)
        tiles = [(picture, caption) for caption, picture in result.views]
        return [
            framed, enlarged if editor_too else gr.skip(), "{},{}".format(*result.patch), result.filter, tiles,
            result.text, (*result.grid, *enlarged.size),
        ]  # fmt: skip

    def look(model_id: str, photo: str | None, patch: str, number: int, scale: str, fresh: bool) -> list[Any]:
        options = ("", 0.0, 0, scale)
        return drawn(view_job(jobs.prepare(model_id), open_photo(photo), None, patch, number, *options), fresh)

    @shown
    def show_view(model_id: str, image: str, patch: str, filter_number: int, brightness: str = "linear") -> list[Any]:
        """Show what the token of a patch has gathered of the picture, from the patch embedding to the last level.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            image: the picture.
            patch: row and column from 0 such as 3,4; empty for the one of most attention.
            filter_number: filter of the patch embedding from 0; -1 for one in which pictures are readable.
            brightness: linear (relative to the largest weight of each view) or log (the same for all views).

        Returns:
            The model's crop, the same to paint on, the patch, the filter, a picture for each level, and a sentence.
        """
        return look(model_id, image, patch, int(filter_number), brightness, True)

    @shown
    def pick_patch(
        model_id: str, photo: str, number: int, scale: str, layout: tuple[int, int, int, int], event: gr.SelectData
    ) -> list[Any]:  # fmt: skip
        (rows, cols, width, height), (x, y) = layout, event.index
        patch = f"{min(int(y) * rows // height, rows - 1)},{min(int(x) * cols // width, cols - 1)}"
        return look(model_id, photo, patch, int(number), scale, False)

    @shown
    def compare_with(
        model_id: str, photo: str, painted: dict[str, Any], patch: str, number: int, change: str, ratio: float,
        side: int, scale: str,
    ) -> list[Any]:  # fmt: skip
        mask = mask_of(painted)
        if mask is None and change in ("salient", "non-salient"):
            raise ConfigError("mark the object first: open 'Mark the object' and paint over it.")
        arguments = (open_photo(photo), mask, patch, int(number), change, float(ratio), int(side), scale)
        return drawn(view_job(jobs.prepare(model_id), *arguments), False)

    @shown
    def group_patches(model_id: str, photo: str, painted: dict[str, Any], layer: int) -> str:
        return str(group_job(jobs.prepare(model_id), open_photo(photo), mask_of(painted), int(layer or 0)))

    def connect(after: Callable[[Any], Any], photo: gr.Image) -> None:
        lane: dict[str, Any] = {
            "concurrency_id": "gpu", "concurrency_limit": 1, "trigger_mode": "always_last", "show_progress_on": [facts],
        }  # fmt: skip
        private: dict[str, Any] = {**lane, "api_visibility": "private"}
        filled = [crop, editor, patch, number, views, facts, layout]
        showing = gr.on(
            [show_views.click, patch.submit],
            show_view,
            [model, photo, patch, number, scale],
            filled,
            api_name="show_view",
            **lane,
        )
        after(showing)
        after(crop.select(pick_patch, [model, photo, number, scale, layout], filled, **private))
        inputs = [model, photo, editor, patch, number, change, ratio, side, scale]
        compare.click(compare_with, inputs, filled, **private)
        group.click(group_patches, [model, photo, editor, layer], plot, **private)

    return BehaviorTab(patch, number, connect)
