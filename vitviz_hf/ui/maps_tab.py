"""Tab Activation maps: which features of a model fire where on a picture."""

import html
import re
from typing import Any

import gradio as gr
from PIL import Image

from vitviz_hf.errors import ConfigError
from vitviz_hf.images import color_bar, heatmap, map_range, outline_patch, overlay
from vitviz_hf.sites import KINDS, Site, parse_feature
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.events import LATEST, open_photo, photo_input, shown, whole_number
from vitviz_hf.ui.jobs import RankResult
from vitviz_hf.ui.link import OWN_PHOTO, Kept, one_of, or_else, whole
from vitviz_hf.ui.page import Page, Values

FIRST_FEATURE = "5.mlp_act:1059"
_FIRST_PHOTO = "chelsea"
_LARGE = 560
_SHOWN = 12


class MapsTab:
    """The picture and its controls on the left; the crop, the map and the strongest features on the right."""

    key, title = "maps", "Activation maps"

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.jobs = page, page.shelf, page.jobs
        self.rank_job, self.map_job = page.on_device(60, page.jobs.rank), page.on_device(60, page.jobs.map)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self._lay_out_picture()
                self._lay_out_ranking()
            with gr.Column(scale=2, min_width=320):
                self._lay_out_maps()
        self.ranked, self.layout = gr.JSON(visible="hidden", label="Ranked features"), gr.State(None)
        self.rank_outputs = [self.crop, self.gallery, self.status, self.ranked, self.layout]
        self.map_outputs = [self.large, self.bar, self.facts]
        self.shown = [self.patch, *self.rank_outputs, self.feature, *self.map_outputs]
        self.asked = [page.model, self.photo, self.kind, self.layer, self.patch, self.rank_by, self.style]

    def _lay_out_picture(self) -> None:
        self.photo = photo_input(
            label="Picture",
            sources=["upload", "webcam", "clipboard"],
            format="png",
            height=260,
            elem_id="photo",
            alt_text="The picture you chose",
        )
        self.examples = gr.Gallery(
            [(str(p), k.replace("_", " ")) for k, p in builtin_paths().items()],
            label="Example photographs",
            columns=3,
            height=210,
            allow_preview=False,
            interactive=False,
            format="png",
            elem_id="examples",
            object_fit="cover",
            buttons=[],
        )
        self.photo_key = gr.Textbox(visible="hidden", label="Example photograph", elem_id="photo-key")

    def _lay_out_ranking(self) -> None:
        site = parse_feature(FIRST_FEATURE).site
        self.kind = gr.Dropdown(KINDS, value=site.kind, label="Kind", elem_id="kind", info="mlp_act are the neurons")
        self.layer = gr.Number(site.layer, label="Layer", precision=0, minimum=0, elem_id="layer")
        self.rank_by = gr.Radio(
            [("unusual for photographs", "unusual"), ("plain score", "score")],
            value="unusual",
            label="Rank features by",
            elem_id="rank-by",
        )
        self.patch = gr.Textbox(
            "",
            label="Patch as row,column from 0 (empty: the whole picture)",
            elem_id="patch",
            max_lines=1,
            placeholder="3,4",
        )
        with gr.Row():
            self.rank_button = gr.Button("Rank features", variant="primary", elem_id="rank", min_width=120)
            self.whole_button = gr.Button("Whole picture", elem_id="whole", min_width=120)

    def _lay_out_maps(self) -> None:
        self.status = gr.Markdown("Choose a picture, then click a patch of it.", elem_id="rank-status")
        with gr.Row():
            self.crop = gr.Image(
                label="What the model sees: click a patch",
                interactive=False,
                format="png",
                elem_id="crop",
                alt_text="The model's crop of the picture, with the chosen patch framed",
                buttons=["fullscreen"],
                min_width=240,
            )
            self.large = gr.Image(
                label="Activation map",
                interactive=False,
                format="png",
                elem_id="map",
                min_width=240,
                alt_text="Activation map of the chosen feature",
                buttons=["download", "fullscreen"],
            )
        self.bar = gr.Image(
            show_label=False,
            interactive=False,
            format="png",
            elem_id="bar",
            height=52,
            buttons=[],
            alt_text="Color scale of the map, with the values at its ends",
            container=False,
        )
        self.facts = gr.Markdown(elem_id="map-facts")
        with gr.Row():
            self.feature = gr.Textbox(
                FIRST_FEATURE,
                label="Feature: layer.kind:index, Enter draws its map",
                elem_id="feature",
                scale=2,
                max_lines=1,
                min_width=200,
            )
            self.style = gr.Radio(["overlay", "heatmap"], value="overlay", label="Draw", elem_id="style", min_width=160)
        with gr.Row():
            self.to_optimize = gr.Button("Optimize a picture for this feature", elem_id="to-optimize", min_width=200)
            self.to_page = gr.Button("Its page in the atlas", elem_id="to-page", min_width=140, visible=False)
        self.gallery = gr.Gallery(
            label="Strongest features: choose one to see it large",
            columns=4,
            allow_preview=False,
            interactive=False,
            format="png",
            elem_id="gallery",
            height="auto",
            buttons=[],
        )

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps; a picture of one's own is not in it."""
        photos, site = list(builtin_paths()), parse_feature(FIRST_FEATURE).site
        first = _FIRST_PHOTO if _FIRST_PHOTO in photos else next(iter(photos), "")
        return [
            Kept("photo", self.photo_key, one_of((*photos, OWN_PHOTO), first), OWN_PHOTO),
            Kept("kind", self.kind, one_of(KINDS, site.kind)),
            Kept("layer", self.layer, whole(site.layer)),
            Kept("patch", self.patch, or_else("")),
            Kept("feature", self.feature, or_else("")),
        ]

    def connect(self) -> None:
        """One handler for each gesture: a chain would ask for the GPU at every link."""
        page, model = self.page, self.page.model
        lane = {**LATEST, "show_progress_on": [self.status]}
        private: dict[str, Any] = {**lane, "api_visibility": "private"}
        mapped = [model, self.photo, self.feature, self.style]
        place = [model, self.photo, self.kind, self.layer, self.rank_by, self.style]
        page.link(self.feature.submit(self.map_feature, mapped, self.map_outputs, **private))
        self.style.input(self.map_feature, mapped, self.map_outputs, **private)
        ranking = [self.rank_button.click, self.patch.submit, self.rank_by.input]
        page.link(gr.on(ranking, self.rank, self.asked, self.shown, **private))
        moving = [self.kind.input, self.layer.submit]
        page.link(gr.on(moving, self.move, [*self.asked, self.layout], self.shown, **private))
        page.link(self.crop.select(self.pick_patch, [*place, self.layout], self.shown, **private))
        page.link(self.whole_button.click(self.pick_whole, place, self.shown, **private))
        page.link(self.photo.input(self.pick_upload, place, [self.photo_key, *self.shown], **private))
        chosen = [model, self.kind, self.layer, self.rank_by, self.style]
        picture = [self.photo, self.photo_key, *self.shown]
        page.link(self.examples.select(self.pick_example, chosen, picture, **private))
        picked = [model, self.photo, self.style, self.ranked]
        page.link(self.gallery.select(self.pick_feature, picked, self.shown, **private))

    def ranking(
        self,
        model_id: str,
        image: str | None,
        kind: str,
        layer: int,
        patch: str,
        rank_by: str,
        chosen_on: tuple[int, int] | None = None,
    ) -> tuple[RankResult, Values]:
        """The strongest features, and how they are shown."""
        unusual, site, at = rank_by == "unusual", Site(whole_number("layer", layer), kind), _parse_patch(patch)
        snapshot = self.shelf.snapshot(model_id)
        result: RankResult = self.rank_job(snapshot, open_photo(image), site, at, unusual, _SHOWN, chosen_on)
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
        return result, {
            self.crop: outline_patch(sees, at, result.grid) if at else sees,
            self.gallery: tiles,
            self.status: text,
            self.ranked: [{"feature": str(f), rank_by: value} for f, value, _ in result.ranked],
            self.layout: (*result.grid, *sees.size),
        }

    def draw(self, model_id: str, image: str | None, feature: str, style: str) -> Values:
        """The map of one feature."""
        result = self.map_job(self.shelf.snapshot(model_id), open_photo(image), parse_feature(feature or ""))
        scale, crop = map_range(result.values), _large(result.crop)
        drawn = heatmap(result.values, crop.size, scale) if style == "heatmap" else overlay(crop, result.values, scale)
        rows, cols = result.values.shape
        text = (
            f"**{result.feature}**: values {result.values.min():.3g} to {result.values.max():.3g} on {rows} x {cols} "
            f"patches, mean {result.values.mean():.3g}, {result.unusual:+.1f} sd from the built-in photographs."
        )
        return {self.large: drawn, self.bar: color_bar((_LARGE, 48), scale), self.facts: text}

    def show(
        self,
        model_id: str,
        image: str | None,
        kind: str,
        layer: int,
        patch: str,
        rank_by: str,
        style: str,
        feature: str = "",
    ) -> Values:
        """The ranking, and the map of `feature` or of the first one."""
        result, values = self.ranking(model_id, image, kind, layer, patch, rank_by)
        feature = feature or str(result.ranked[0][0])
        return {**values, self.feature: feature, **self.draw(model_id, image, feature, style)}

    @shown
    def rank(
        self, model_id: str, image: str | None, kind: str, layer: int, patch: str, rank_by: str, style: str
    ) -> Values:
        """The ranking, and the map of the first one."""
        return self.show(model_id, image, kind, layer, patch, rank_by, style)

    @shown
    def move(
        self,
        model_id: str,
        image: str | None,
        kind: str,
        layer: int,
        patch: str,
        rank_by: str,
        style: str,
        layout: tuple[int, int, int, int] | None,
    ) -> Values:
        """As `rank` for another layer, kind or model: the patch keeps its place in the picture."""
        chosen_on = layout[:2] if layout else None
        result, values = self.ranking(model_id, image, kind, layer, patch, rank_by, chosen_on)
        at = "{},{}".format(*result.patch) if result.patch else ""
        feature = str(result.ranked[0][0])
        return {self.patch: at, **values, self.feature: feature, **self.draw(model_id, image, feature, style)}

    @shown
    def map_feature(self, model_id: str, image: str, feature: str, style: str) -> Values:
        """The map of one feature."""
        return self.draw(model_id, image, feature, style)

    @shown
    def pick_patch(
        self,
        model_id: str,
        image: str,
        kind: str,
        layer: int,
        rank_by: str,
        style: str,
        layout: tuple[int, int, int, int],
        event: gr.SelectData,
    ) -> Values:
        """A click on the crop."""
        (rows, cols, width, height), (x, y) = layout, event.index
        row, column = min(int(y) * rows // height, rows - 1), min(int(x) * cols // width, cols - 1)
        patch = f"{row},{column}"
        return {self.patch: patch, **self.show(model_id, image, kind, layer, patch, rank_by, style)}

    @shown
    def pick_whole(self, model_id: str, image: str, kind: str, layer: int, rank_by: str, style: str) -> Values:
        """No patch any more."""
        return {self.patch: "", **self.show(model_id, image, kind, layer, "", rank_by, style)}

    @shown
    def pick_upload(self, model_id: str, image: str, kind: str, layer: int, rank_by: str, style: str) -> Values:
        """A picture of one's own; None if it was removed."""
        values = {self.photo_key: "", self.patch: ""}
        return values if image is None else {**values, **self.show(model_id, image, kind, layer, "", rank_by, style)}

    @shown
    def pick_example(
        self, model_id: str, kind: str, layer: int, rank_by: str, style: str, event: gr.SelectData
    ) -> Values:
        """An example photograph."""
        key, path = list(builtin_paths().items())[event.index]
        values = {self.photo: str(path), self.photo_key: key, self.patch: ""}
        return {**values, **self.show(model_id, str(path), kind, layer, "", rank_by, style)}

    @shown
    def pick_feature(
        self, model_id: str, image: str, style: str, ranked: list[dict[str, Any]], event: gr.SelectData
    ) -> Values:
        """A tile of the ranking."""
        feature = str(ranked[event.index]["feature"])
        return {self.feature: feature, **self.draw(model_id, image, feature, style)}


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
