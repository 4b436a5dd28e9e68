"""Tab Activation maps: which features of a model fire where on a picture."""

import html
import re
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
from vitviz_hf.ui.jobs import Jobs, RankResult

_LARGE = 560
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class MapsTab:
    """The components that a link restores, and the event that fills the tab from them."""

    photo: gr.Image
    photo_key: gr.Textbox
    kind: gr.Dropdown
    layer: gr.Number
    patch: gr.Textbox
    feature: gr.Textbox
    optimize: gr.Button
    to_page: gr.Button
    connect: Callable[[Callable[[Any], Any]], None]
    show: Callable[..., list[Any]]
    """(model_id, image, kind, layer, patch, rank_by, style, feature) -> values of `shown`."""
    shown: list[Any]
    """Components that `show` fills."""
    move: Callable[..., list[Any]]
    """As `show` for another layer, kind or model: the patch keeps its place in the picture."""
    move_inputs: list[Any]
    moved: list[Any]
    draw: Callable[..., list[Any]]
    """Draws the chosen feature alone."""
    draw_inputs: list[Any]
    drawn: list[Any]


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
                columns=3, height=210, allow_preview=False, interactive=False, format="png", elem_id="examples",
                object_fit="cover", buttons=[],
            )  # fmt: skip
            photo_key = gr.Textbox(visible="hidden", label="Example photograph", elem_id="photo-key")
            kind = gr.Dropdown(KINDS, value=site.kind, label="Kind", elem_id="kind", info="mlp_act are the neurons")
            layer = gr.Number(site.layer, label="Layer", precision=0, minimum=0, elem_id="layer")
            rank_by = gr.Radio(
                [("unusual for photographs", "unusual"), ("plain score", "score")], value="unusual",
                label="Rank features by", elem_id="rank-by",
            )  # fmt: skip
            patch = gr.Textbox(
                "", label="Patch as row,column from 0 (empty: the whole picture)", elem_id="patch", max_lines=1,
                placeholder="3,4",
            )  # fmt: skip
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
            with gr.Row():
                optimize = gr.Button("Optimize a picture for this feature", elem_id="to-optimize", min_width=200)
                to_page = gr.Button("Its page in the atlas", elem_id="to-page", min_width=140)
            gallery = gr.Gallery(
                label="Strongest features: choose one to see it large", columns=4, allow_preview=False,
                interactive=False, format="png", elem_id="gallery", height="auto", buttons=[],
            )  # fmt: skip
    ranked, layout = gr.JSON(visible="hidden", label="Ranked features"), gr.State(None)
    rank_job, map_job = gpu(60)(jobs.rank), gpu(60)(jobs.map)

    def rank(
        model_id: str, image: str | None, kind: str, layer: int, patch: str, rank_by: str,
        chosen_on: tuple[int, int] | None = None,
    ) -> tuple[RankResult, list[Any]]:  # fmt: skip
        unusual, site, at = rank_by == "unusual", Site(int(layer), kind), _parse_patch(patch)
        result: RankResult = rank_job(jobs.prepare(model_id), open_photo(image), site, at, unusual, _SHOWN, chosen_on)
        at = result.patch
        tiles = [
            (overlay(result.crop, values, map_range(values)), f"{f}  {value:.3g}{' sd' if unusual else ''}")
            for f, value, values in result.ranked
        ]
        sees = _large(result.crop)
        where = f"patch {at[0]},{at[1]}" if at else "the whole picture"
        by = "standard deviations (sd) above the built-in photographs" if unusual else "plain score"
        text = f"**Layer {int(layer)}, {kind}**, {where}. Ranked by {by}."
        if result.classes:
            text += " The model's own guess: " + ", ".join(f"{html.escape(n)} {p:.0%}" for n, p in result.classes) + "."
        data = [{"feature": str(f), rank_by: value} for f, value, _ in result.ranked]
        framed = outline_patch(sees, at, result.grid) if at else sees
        return result, [framed, tiles, text, data, (*result.grid, *sees.size)]

    def draw(model_id: str, image: str | None, feature: str, style: str) -> list[Any]:
        result = map_job(jobs.prepare(model_id), open_photo(image), parse_feature(feature or ""))
        scale, crop = map_range(result.values), _large(result.crop)
        drawn = heatmap(result.values, crop.size, scale) if style == "heatmap" else overlay(crop, result.values, scale)
        rows, cols = result.values.shape
        text = (
            f"**{result.feature}**: values {result.values.min():.3g} to {result.values.max():.3g} on {rows} x {cols} "
            f"patches, mean {result.values.mean():.3g}, {result.unusual:+.1f} sd from the built-in photographs."
        )
        return [drawn, color_bar((_LARGE, 48), scale), text]

    def show(
        model_id: str, image: str | None, kind: str, layer: int, patch: str, rank_by: str,
        style: str, feature: str = "",
    ) -> list[Any]:  # fmt: skip
        result, values = rank(model_id, image, kind, layer, patch, rank_by)
        feature = feature or str(result.ranked[0][0])
        return [*values, feature, *draw(model_id, image, feature, style)]

    def move(
        model_id: str, image: str | None, kind: str, layer: int, patch: str, rank_by: str,
        style: str, layout: tuple[int, int, int, int] | None,
    ) -> list[Any]:  # fmt: skip
        result, values = rank(model_id, image, kind, layer, patch, rank_by, layout[:2] if layout else None)
        at = "{},{}".format(*result.patch) if result.patch else ""
        feature = str(result.ranked[0][0])
        return [at, *values, feature, *draw(model_id, image, feature, style)]

    @shown
    def rank_features(model_id: str, image: str, kind: str, layer: int, patch: str, rank_by: str) -> list[Any]:
        """Rank the features of one layer by how strongly they fire on a picture, or on one patch of it.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            image: the picture.
            kind: mlp_act (neurons), mlp_in, mlp_out, attn_in, attn_q, attn_k, attn_v, attn_mix, attn_out or resid.
            layer: layer number from 0.
            patch: row and column of a patch from 0, such as 3,4; empty for the whole picture.
            rank_by: 'unusual' (standard deviations above the built-in photographs) or 'score'.

        Returns:
            The model's crop, maps with address and value, a sentence, and the same addresses and values as data.
        """
        return rank(model_id, image, kind, layer, patch, rank_by)[1]

    @shown
    def map_feature(model_id: str, image: str, feature: str, style: str) -> list[Any]:
        """Draw the activation map of one feature on a picture.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            image: the picture.
            feature: address such as 5.mlp_act:10.
            style: 'overlay' on the picture, or 'heatmap' alone.

        Returns:
            The map, its color scale, and a sentence with the value range.
        """
        return draw(model_id, image, feature, style)

    @shown
    def pick_patch(
        model_id: str, image: str, kind: str, layer: int, rank_by: str, style: str,
        layout: tuple[int, int, int, int], event: gr.SelectData,
    ) -> list[Any]:  # fmt: skip
        (rows, cols, width, height), (x, y) = layout, event.index
        row, column = min(int(y) * rows // height, rows - 1), min(int(x) * cols // width, cols - 1)
        patch = f"{row},{column}"
        return [patch, *show(model_id, image, kind, layer, patch, rank_by, style)]

    @shown
    def pick_whole(model_id: str, image: str, kind: str, layer: int, rank_by: str, style: str) -> list[Any]:
        return ["", *show(model_id, image, kind, layer, "", rank_by, style)]

    @shown
    def pick_upload(model_id: str, image: str, kind: str, layer: int, rank_by: str, style: str) -> list[Any]:
        if image is None:  # the picture was removed
            return ["", "", *[gr.skip()] * len(show_outputs)]
        return ["", "", *show(model_id, image, kind, layer, "", rank_by, style)]

    @shown
    def pick_example(
        model_id: str, kind: str, layer: int, rank_by: str, style: str, event: gr.SelectData
    ) -> list[Any]:  # fmt: skip
        key, path = list(builtin_paths().items())[event.index]
        return [str(path), key, "", *show(model_id, str(path), kind, layer, "", rank_by, style)]

    @shown
    def pick_feature(
        model_id: str, image: str, style: str, ranked: list[dict[str, Any]], event: gr.SelectData
    ) -> list[Any]:  # fmt: skip
        feature = str(ranked[event.index]["feature"])
        return [feature, *draw(model_id, image, feature, style)]

    map_outputs = [large, bar, facts]
    rank_outputs = [crop, gallery, status, ranked, layout]
    show_outputs = [*rank_outputs, feature, *map_outputs]
    show_inputs = [model, photo, kind, layer, patch, rank_by, style]
    place = [model, photo, kind, layer, rank_by, style]

    def connect(after: Callable[[Any], Any]) -> None:
        # One handler for each gesture: a chain would ask for the GPU at every link.
        lane: dict[str, Any] = {
            "concurrency_id": "gpu", "concurrency_limit": 1, "trigger_mode": "always_last",
            "show_progress_on": [status],
        }  # fmt: skip
        private: dict[str, Any] = {**lane, "api_visibility": "private"}
        # The public events come first: gradio numbers the names of later ones.
        gr.Button(visible=False).click(rank_features, show_inputs[:-1], rank_outputs, api_name="rank_features", **lane)
        after(feature.submit(map_feature, [model, photo, feature, style], map_outputs, api_name="map_feature", **lane))
        style.input(map_feature, [model, photo, feature, style], map_outputs, **private)
        after(
            gr.on([rank_button.click, patch.submit, rank_by.input], shown(show), show_inputs, show_outputs, **private)
        )
        after(gr.on([kind.input, layer.submit], shown(move), [*show_inputs, layout], [patch, *show_outputs], **private))
        after(crop.select(pick_patch, [*place, layout], [patch, *show_outputs], **private))
        after(whole_button.click(pick_whole, place, [patch, *show_outputs], **private))
        after(photo.input(pick_upload, place, [photo_key, patch, *show_outputs], **private))
        chosen = [model, kind, layer, rank_by, style]
        after(examples.select(pick_example, chosen, [photo, photo_key, patch, *show_outputs], **private))
        after(gallery.select(pick_feature, [model, photo, style, ranked], [feature, *map_outputs], **private))

    return MapsTab(
        photo, photo_key, kind, layer, patch, feature, optimize, to_page, connect, show, show_outputs,
        move, [*show_inputs, layout], [patch, *show_outputs],
        draw, [model, photo, feature, style], map_outputs,
    )  # fmt: skip


def _large(crop: Image.Image) -> Image.Image:
    """The crop about 560 pixels wide, enlarged by a whole factor so that patches stay sharp."""
    factor = max(1, round(_LARGE / crop.width))
    return crop.resize((crop.width * factor, crop.height * factor), Image.Resampling.BICUBIC)


def _parse_patch(text: str) -> tuple[int, int] | None:
    if not (text or "").strip():
        return None
    match = re.fullmatch(r"\s*(\d{1,4})\s*[, ]\s*(\d{1,4})\s*", text)
    if match is None:
        raise ConfigError(f"{text!r} is not a patch; write row,column such as 3,4, or nothing for the whole picture.")
    return int(match[1]), int(match[2])
