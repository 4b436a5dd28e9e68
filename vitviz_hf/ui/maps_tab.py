"""Tab Your picture: which features of a model fire where on a picture, and what else excites them."""

import html
import re
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from PIL import Image

from vitviz_hf.errors import ConfigError
from vitviz_hf.sites import KINDS, Site, parse_feature
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.cards import MapResult, RankResult
from vitviz_hf.ui.drawing import (
    STYLES,
    cards_html,
    crop_html,
    describe,
    draw_bar,
    draw_map,
    peak_text,
    photographs_html,
    styles_for,
)
from vitviz_hf.ui.events import LATEST, open_photo, photo_input, shown, whole_number
from vitviz_hf.ui.link import OWN_PHOTO, Kept, one_of, or_else, whole
from vitviz_hf.ui.page import Page, Values
from vitviz_hf.ui.picker import picked_js, picker, scroll_js, settled

FIRST_FEATURE = "5.mlp_act:1059"
_FIRST_PHOTO = "chelsea"
_LARGE = 560
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Asked:
    """What the visitor has set, in the order of `MapsTab.asked`."""

    model_id: str
    image: str | None
    kind: str
    layer: int
    patch: str
    rank_by: str
    style: str

    @property
    def site(self) -> Site:
        """Where features are ranked."""
        return Site(whole_number("layer", self.layer), self.kind)


class MapsTab:
    """The picture and its controls on the left; the crop, the map and the strongest features on the right."""

    key, title = "maps", "Your picture"

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.jobs = page, page.shelf, page.jobs
        self.rank_job, self.map_job = page.on_device(60, page.jobs.rank), page.on_device(60, page.jobs.map)
        with gr.Row():
            with gr.Column(scale=5, min_width=260):
                self._lay_out_picture()
                self._lay_out_ranking()
            with gr.Column(scale=6, min_width=280):
                self._lay_out_maps()
            with gr.Column(scale=10, min_width=300):
                self.status = gr.Markdown("Choose a picture, then click a patch of it.", elem_id="rank-status")
                self.cards = picker("cards", label="Strongest features")
        self.ranked, self.grid = gr.JSON(visible="hidden", label="Ranked features"), gr.State(None)
        self.rank_outputs = [self.crop, self.cards, self.status, self.ranked]
        self.map_outputs = [self.large, self.bar, self.facts]
        self.shown = [self.patch, *self.rank_outputs, self.grid, self.feature, *self.map_outputs, self.style]
        self.asked = [page.model, self.photo, self.kind, self.layer, self.patch, self.rank_by, self.style]

    def _lay_out_picture(self) -> None:
        self.photo = photo_input(
            label="Picture",
            sources=["upload", "webcam", "clipboard"],
            format="png",
            height=240,
            elem_id="photo",
            alt_text="The picture you chose",
        )
        self.examples = picker("examples", value=photographs_html(builtin_paths()), label="Example photographs")
        self.photo_key = gr.Textbox(visible="hidden", label="Example photograph", elem_id="photo-key")

    def _lay_out_ranking(self) -> None:
        site = parse_feature(FIRST_FEATURE).site
        self.layer = gr.Slider(
            0,
            11,
            site.layer,
            step=1,
            label="Layer",
            elem_id="layer",
            info="from early (edges, colors) to late (things)",
            buttons=[],
        )
        self.layer_set = settled("layer")
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self.kind = gr.Dropdown(
                KINDS, value=site.kind, label="Kind", elem_id="kind", info="mlp_act are the neurons"
            )
            self.patch = gr.Textbox(
                "",
                label="Patch as row,column from 0 (empty: the whole picture)",
                elem_id="patch",
                max_lines=1,
                placeholder="3,4",
            )
            self.rank_by = gr.Radio(
                [("unusual for photographs", "unusual"), ("plain score", "score")],
                value="unusual",
                label="Rank features by",
                elem_id="rank-by",
            )
            self.rank_button = gr.Button("Rank features", variant="primary", elem_id="rank", min_width=120)

    def _lay_out_maps(self) -> None:
        self.crop = picker("crop", True, label="What the model sees: click a patch", container=True, show_label=True)
        self.whole_button = gr.Button("Whole picture", elem_id="whole", size="sm")
        self.large = gr.Image(
            label="Activation map",
            interactive=False,
            format="jpeg",
            elem_id="map",
            alt_text="Activation map of the chosen feature",
            buttons=["download", "fullscreen"],
        )
        self.bar = gr.HTML(elem_id="bar", label="Color scale")
        self.facts = gr.Markdown(elem_id="map-facts")
        self.style = gr.Radio(STYLES, value="overlay", label="Draw", elem_id="style")
        self.feature = gr.Textbox(
            FIRST_FEATURE, label="Feature: layer.kind:index, Enter draws its map", elem_id="feature", max_lines=1
        )
        with gr.Row():
            self.to_optimize = gr.Button("Optimize a picture for this feature", elem_id="to-optimize", min_width=130)
            self.to_page = gr.Button("Its page", elem_id="to-page", min_width=130)

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
        page = self.page
        lane = {**LATEST, "show_progress_on": [self.status]}
        private: dict[str, Any] = {**lane, "api_visibility": "private"}
        asked, one = self.asked, [*self.asked, self.feature]
        mapped = [*self.map_outputs, self.style]
        page.link(gr.on([self.feature.submit, self.style.input], self.redraw, one, mapped, **private))
        ranking = [self.rank_button.click, self.patch.submit, self.rank_by.input]
        page.link(gr.on(ranking, self.rank, asked, self.shown, **private))
        moving = [self.kind.input, self.layer_set.click]
        page.link(gr.on(moving, self.move, [*asked, self.grid], self.shown, **private))
        page.link(self.crop.click(self.rank, asked, self.shown, js=picked_js("crop", 4), **private))
        page.link(self.whole_button.click(self.pick_whole, asked, self.shown, **private))
        picture = [self.photo, self.photo_key, *self.shown]
        example = [self.photo_key, *asked]
        picked = self.examples.click(self.pick_example, example, picture, js=picked_js("examples", 0), **private)
        for event in (self.photo.input(self.pick_upload, asked, [self.photo_key, *self.shown], **private), picked):
            page.link(event)
            event.success(None, js=scroll_js("#map"), api_visibility="private")
        chosen = self.cards.click(
            self.pick_feature, one, [self.feature, *mapped], js=picked_js("cards", len(asked)), **private
        )
        page.link(chosen)
        chosen.success(None, js=scroll_js("#map"), api_visibility="private")

    def ranking(self, asked: Asked, chosen_on: tuple[int, int] | None = None) -> RankResult:
        """The strongest features."""
        unusual, at = asked.rank_by == "unusual", _parse_patch(asked.patch)
        snapshot = self.shelf.snapshot(asked.model_id)
        return self.rank_job(snapshot, open_photo(asked.image), asked.site, at, unusual, _SHOWN, chosen_on)

    def mapping(self, asked: Asked, feature: str) -> MapResult:
        """The map of one feature; what it does at the chosen patch, if it is of the layer that is ranked."""
        wanted = parse_feature(feature or "")
        at = _parse_patch(asked.patch) if wanted.site == asked.site else None
        return self.map_job(self.shelf.snapshot(asked.model_id), open_photo(asked.image), wanted, at)

    def list_cards(self, asked: Asked, result: RankResult) -> Values:
        """How the strongest features are shown."""
        fired = [card.fired for card in result.cards]
        words = self.shelf.words(self.shelf.snapshot(asked.model_id), [f.feature for f in fired])
        return {
            self.crop: crop_html(_large(result.crop), result.grid, result.patch),
            self.cards: cards_html(result, words),
            self.status: _sentence(asked, result),
            self.ranked: [{"feature": str(f.feature), "score": f.score, "unusual": f.unusual} for f in fired],
            self.grid: result.grid,
        }

    def draw(self, asked: Asked, result: MapResult) -> Values:
        """How a map is shown."""
        known = styles_for(result.fired)
        style = asked.style if asked.style in known else known[0]
        return {
            self.large: gr.update(
                value=draw_map(_large(result.crop), result.fired, style), alt_text=peak_text(result.fired)
            ),
            self.bar: draw_bar(result.fired, style),
            self.facts: describe(result.fired, style != "signed"),
            self.style: gr.update(choices=known, **({} if style == asked.style else {"value": style})),
        }

    def show(self, asked: Asked, feature: str = "", chosen_on: tuple[int, int] | None = None) -> Values:
        """The ranking, and the map of `feature` or of the first one, in one turn."""
        self.shelf.snapshot(asked.model_id)  # a download takes no turn
        with self.page.lane.turn():
            ranked = self.ranking(asked, chosen_on)
            asked = replace(asked, patch="{},{}".format(*ranked.patch) if ranked.patch else "")
            feature = feature or str(ranked.cards[0].fired.feature)
            mapped = self.mapping(asked, feature)
        listed = self.list_cards(asked, ranked)
        return {self.patch: asked.patch, **listed, self.feature: feature, **self.draw(asked, mapped)}

    @shown
    def rank(self, *asked: Any) -> Values:
        """The ranking, and the map of the first one."""
        return self.show(Asked(*asked))

    @shown
    def move(self, *asked: Any) -> Values:
        """As `rank` for another layer, kind or model: the patch keeps its place in the picture."""
        *settings, grid = asked
        return self.show(Asked(*settings), chosen_on=grid)

    @shown
    def redraw(self, *asked: Any) -> Values:
        """The map of the typed feature."""
        *settings, feature = asked
        own = Asked(*settings)
        return self.draw(own, self.mapping(own, feature))

    @shown
    def map_feature(self, model_id: str, image: str | None, feature: str, style: str) -> Values:
        """The map of one feature on the whole picture."""
        site = parse_feature(feature or "").site
        asked = Asked(model_id, image, site.kind, site.layer, "", "unusual", style)
        drawn = self.draw(asked, self.mapping(asked, feature))
        return {component: drawn[component] for component in self.map_outputs}

    @shown
    def pick_whole(self, *asked: Any) -> Values:
        """No patch any more."""
        return self.show(replace(Asked(*asked), patch=""))

    @shown
    def pick_upload(self, *asked: Any) -> Values:
        """A picture of one's own; None if it was removed."""
        own = replace(Asked(*asked), patch="")
        return {self.photo_key: "", self.patch: "", **(self.show(own) if own.image else {})}

    @shown
    def pick_example(self, key: str, *asked: Any) -> Values:
        """An example photograph."""
        path = str(builtin_paths()[key])
        own = replace(Asked(*asked), image=path, patch="")
        return {self.photo: path, self.photo_key: key, **self.show(own)}

    @shown
    def pick_feature(self, *asked: Any) -> Values:
        """A card."""
        *settings, feature = asked
        own = Asked(*settings)
        return {self.feature: feature, **self.draw(own, self.mapping(own, feature))}


def _sentence(asked: Asked, result: RankResult) -> str:
    where = "patch {},{}".format(*result.patch) if result.patch else "the whole picture"
    more = "most strongly"
    if asked.rank_by == "unusual":
        against = html.escape(result.cards[0].fired.against)
        more = f"unusually strongly against {against}, the most unusual first"
    text = (
        f"**Layer {int(asked.layer)}, {asked.kind}, {where}**: each card is a feature that fires here {more}. It fires "
        "where your picture is bright; the framed patches of photographs excite it most. Look for what they share."
    )
    if result.classes:
        text += " The model's own guess: " + ", ".join(f"{html.escape(n)} {p:.0%}" for n, p in result.classes) + "."
    return text


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
