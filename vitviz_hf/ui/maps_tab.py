"""Tab Activation maps: which features of a model fire where on a picture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from vitviz_hf.errors import ConfigError
from vitviz_hf.images import color_bar, heatmap, map_range, outline_patch, overlay
from vitviz_hf.sites import KINDS, Site, parse_feature
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.common import Gpu, open_photo, photo_input, shown
from vitviz_hf.ui.jobs import Jobs

_LARGE = 560
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class MapsTab:
    """The components that a link restores, and the event that fills the tab from them."""

    photo: gr.Image
    photo_key: gr.Textbox
    kind: gr.Dropdown
    layer: gr.Slider
    row: gr.Number
    column: gr.Number
    feature: gr.Textbox
    optimize: gr.Button
    connect: Callable[[Callable[[Any], Any]], None]
    refresh: Callable[[Any], Any]
    """After an event (a Dependency), rank and draw."""


def build_maps_tab(jobs: Jobs, model: gr.Dropdown, gpu: Gpu, first_feature: str) -> MapsTab:
    """Lay the tab out; events are connected by `connect(after)`, where `after` runs after each of them."""
    site = parse_feature(first_feature).site
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            photo = photo_input(
                label="Picture", sources=["upload", "webcam", "clipboard"], format="png", height=260,
                elem_id="photo", alt_text="The picture you chose",
            )  # fmt: skip
            examples = gr.Gallery(
                [(str(p), k.replace("_", " ")) for k, p in builtin_paths().items()], label="Example photographs",
                columns=5, height=210, allow_preview=False, interactive=False, format="png", elem_id="examples",
                object_fit="cover", buttons=[],
            )  # fmt: skip
            photo_key = gr.Textbox(visible="hidden", label="Example photograph", elem_id="photo-key")
            kind = gr.Dropdown(KINDS, value=site.kind, label="Kind", elem_id="kind", info="mlp_act are the neurons")
            layer = gr.Slider(0, 11, value=site.layer, step=1, label="Layer", elem_id="layer")
            rank_by = gr.Radio(
                [("unusual for photographs", "unusual"), ("plain score", "score")], value="unusual",
                label="Rank features by", elem_id="rank-by",
            )  # fmt: skip
            with gr.Row():
                row = gr.Number(None, label="Patch row", precision=0, minimum=0, elem_id="row", min_width=80)
                column = gr.Number(None, label="Patch column", precision=0, minimum=0, elem_id="column", min_width=80)
            with gr.Row():
                rank_button = gr.Button("Rank features", variant="primary", elem_id="rank", min_width=120)
                whole_button = gr.Button("Whole picture", elem_id="whole", min_width=120)
        with gr.Column(scale=2, min_width=320):
            status = gr.Markdown("Choose a picture, then click a patch of it.", elem_id="rank-status")
            with gr.Row():
                crop = gr.Image(
                    label="What the model sees: click a patch", interactive=False, format="png", elem_id="crop",
                    alt_text="The model's crop of the picture, with the chosen patch framed", buttons=["fullscreen"],
                    min_width=240,
                )  # fmt: skip
                large = gr.Image(
                    label="Activation map", interactive=False, format="png", elem_id="map", min_width=240,
                    alt_text="Activation map of the chosen feature", buttons=["download", "fullscreen"],
                )  # fmt: skip
            bar = gr.Image(
                show_label=False, interactive=False, format="png", elem_id="bar", height=52, buttons=[],
                alt_text="Color scale of the map, with the values at its ends", container=False,
            )  # fmt: skip
            facts = gr.Markdown(elem_id="map-facts")
            with gr.Row():
                feature = gr.Textbox(
                    first_feature, label="Feature: layer.kind:index, Enter draws its map", elem_id="feature", scale=2,
                    max_lines=1, min_width=200,
                )  # fmt: skip
                style = gr.Radio(["overlay", "heatmap"], value="overlay", label="Draw", elem_id="style", min_width=160)
            optimize = gr.Button("Optimize a picture for this feature", elem_id="to-optimize")
            gallery = gr.Gallery(
                label="Strongest features: choose one to see it large", columns=6, allow_preview=False,
                interactive=False, format="png", elem_id="gallery", height="auto", buttons=[],
            )  # fmt: skip
    addresses, layout = gr.State([]), gr.State((1, 1, 1, 1))
    rank_job, map_job = gpu(60)(jobs.rank), gpu(60)(jobs.map)

    @shown
    def rank_features(
        model_id: str, image: str, kind: str, layer: int, row: int | None, column: int | None, rank_by: str
    ) -> Any:
        """Rank the features of one layer by how strongly they fire on a picture, or on one patch of it.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            image: the picture.
            kind: mlp_act (neurons), mlp_in, mlp_out, attn_q, attn_k, attn_v, attn_out or resid.
            layer: layer number from 0.
            row: row of a patch from 0, or nothing for the whole picture.
            column: column of a patch from 0, or nothing for the whole picture.
            rank_by: 'unusual' (standard deviations above the built-in photographs) or 'score'.

        Returns:
            The model's crop, maps with address and value, a sentence, and the address of the first.
        """
        if (row is None) != (column is None):
            raise ConfigError("give both a patch row and a patch column, or neither.")
        patch = None if row is None or column is None else (int(row), int(column))
        unusual = rank_by == "unusual"
        picture, site = open_photo(image), Site(int(layer), kind)
        result = rank_job(jobs.prepare(model_id), picture, site, patch, unusual, _SHOWN)
        tiles = [
            (overlay(result.crop, values, map_range(values)), f"{f}  {value:.3g}{' sd' if unusual else ''}")
            for f, value, values in result.ranked
        ]
        sees = _large(result.crop)
        where = f"patch {patch[0]},{patch[1]}" if patch else "the whole picture"
        by = "standard deviations (sd) above the built-in photographs" if unusual else "plain score"
        text = f"**Layer {int(layer)}, {kind}**, {where}. Ranked by {by}."
        names = [str(f) for f, _, _ in result.ranked]
        framed = outline_patch(sees, patch, result.grid) if patch else sees
        return framed, tiles, text, names[0], names, (*result.grid, *sees.size)

    @shown
    def map_feature(model_id: str, image: str, feature: str, style: str) -> Any:
        """Draw the activation map of one feature on a picture.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            image: the picture.
            feature: address such as 5.mlp_act:10.
            style: 'overlay' on the picture, or 'heatmap' alone.

        Returns:
            The map, its color scale, and a sentence with the value range.
        """
        result = map_job(jobs.prepare(model_id), open_photo(image), parse_feature(feature or ""))
        scale, crop = map_range(result.values), _large(result.crop)
        drawn = heatmap(result.values, crop.size, scale) if style == "heatmap" else overlay(crop, result.values, scale)
        rows, cols = result.values.shape
        text = (
            f"**{result.feature}**: values {result.values.min():.3g} to {result.values.max():.3g} on {rows} x {cols} "
            f"patches, mean {result.values.mean():.3g}, {result.unusual:+.1f} sd from the built-in photographs."
        )
        return drawn, color_bar((_LARGE, 48), scale), text

    def pick_patch(layout: tuple[int, int, int, int], event: gr.SelectData) -> tuple[int, int]:
        (rows, cols, width, height), (x, y) = layout, event.index
        return min(int(y) * rows // height, rows - 1), min(int(x) * cols // width, cols - 1)

    def pick_example(event: gr.SelectData) -> tuple[str, str]:
        key, path = list(builtin_paths().items())[event.index]
        return str(path), key

    def pick_feature(addresses: list[str], event: gr.SelectData) -> str:
        return addresses[event.index]

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    lane: dict[str, Any] = {"concurrency_id": "gpu", "concurrency_limit": 1}
    rank: dict[str, Any] = {
        "fn": rank_features, "inputs": [model, photo, kind, layer, row, column, rank_by],
        "outputs": [crop, gallery, status, feature, addresses, layout], "show_progress_on": [status],
        "trigger_mode": "always_last", **lane,
    }  # fmt: skip
    draw: dict[str, Any] = {
        "fn": map_feature, "inputs": [model, photo, feature, style], "outputs": [large, bar, facts],
        "show_progress_on": [facts], "trigger_mode": "always_last", **lane,
    }  # fmt: skip
    hidden = {"api_visibility": "private"}

    def refresh(event: Any) -> Any:
        return event.success(**rank, **hidden).success(**draw, **hidden)

    def connect(after: Callable[[Any], Any]) -> None:
        example = examples.select(pick_example, None, [photo, photo_key], **private)
        upload = photo.input(lambda: "", None, photo_key, **private)
        patch = crop.select(pick_patch, layout, [row, column], **private)
        whole = whole_button.click(lambda: (None, None), None, [row, column], **private)
        for event in (example, upload, patch, whole):
            after(refresh(event))
        after(rank_button.click(**rank, api_name="rank_features").success(**draw, **hidden))
        typed = gr.on([row.submit, column.submit, kind.input, layer.release, rank_by.input], **rank, **hidden)
        after(typed.success(**draw, **hidden))
        after(feature.submit(**draw, api_name="map_feature"))
        style.input(**draw, **hidden)
        chosen = gallery.select(pick_feature, addresses, feature, **private)
        after(chosen.success(**draw, **hidden))

    return MapsTab(photo, photo_key, kind, layer, row, column, feature, optimize, connect, refresh)


def _large(crop: Image.Image) -> Image.Image:
    """The crop about 560 pixels wide, enlarged by a whole factor so that patches stay sharp."""
    factor = max(1, round(_LARGE / crop.width))
    return crop.resize((crop.width * factor, crop.height * factor), Image.Resampling.BICUBIC)
