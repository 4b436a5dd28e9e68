"""Tab Your picture: which features of a model fire where on a picture, and what else excites them."""

import html
import json
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from typing import Any

import gradio as gr

from vitviz_hf.atlas.store import Atlas
from vitviz_hf.errors import VitvizError
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
    enlarge,
    peak_text,
    photographs_html,
    styles_for,
)
from vitviz_hf.ui.events import LATEST, open_photo, photo_input, tell, typed_patch, whole_number
from vitviz_hf.ui.link import OWN_PHOTO, Kept, one_of, or_else, whole
from vitviz_hf.ui.page import Page, Values
from vitviz_hf.ui.picker import asker, asks_js, pick_js, picker, scroll_js, settled, take_js, taken_js

FIRST_FEATURE = "5.mlp_act:1059"
_FIRST_PHOTO = "chelsea"
_SHOWN = 12
# What is on its way while another model is loaded may still have a layer that this one lacks, and the box may be empty:
# handlers say so, where gradio's check is an error without a way on. Of the class, since gradio makes a component anew
# when its maximum changes.
gr.Slider.preprocess = lambda self, payload: payload


@dataclass(frozen=True, slots=True)
class Asked:
    """What the visitor has set, in the order of `MapsTab.asked`."""

    model_id: str
    image: str | None
    kind: str
    layer: int
    patch: str
    rank_by: str
    style: str = "overlay"
    feature: str = ""
    atlas: str = ""

    @property
    def site(self) -> Site:
        """Where features are ranked."""
        return Site(whole_number("layer", self.layer), self.kind)

    @property
    def ranking(self) -> tuple[Any, ...]:
        """What decides the cards."""
        return (*astuple(self)[:6], self.atlas)


@dataclass(frozen=True, slots=True)
class Listed:
    """What the page shows."""

    asked: Asked
    grid: tuple[int, int]


class MapsTab:
    """The picture and its controls on the left, then the map, then the strongest features.

    All gestures are one event of one hidden component (`asker`): of gestures that wait, the last of each sort counts,
    and no answer can come after that to a later one. The handler compares what is set with what is shown.
    """

    key, title = "maps", "Your picture"

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.jobs = page, page.shelf, page.jobs
        self.rank_job, self.map_job = page.on_device(60, page.jobs.rank), page.on_device(60, page.jobs.map)
        self.photo, self.listed = gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(scale=6, min_width=260):
                self._lay_out_picture()
                self._lay_out_ranking()
            with gr.Column(scale=6, min_width=280):
                self._lay_out_maps()
            with gr.Column(scale=10, min_width=300):
                self.status = gr.Markdown("Choose a picture, then click a patch of it.", elem_id="rank-status")
                self.cards = picker("cards", label="Strongest features")
        self.ranked = gr.JSON(visible="hidden", label="Ranked features")
        self.asker, self.picked = asker(), gr.Textbox("{}", visible="hidden", label="Picked")
        self.shown = [
            *(page.loaded, page.facts, self.kind, self.layer, self.photo, self.photo_key, self.patch),
            *(
                self.crop,
                self.cards,
                self.status,
                self.ranked,
                self.feature,
                self.large,
                self.bar,
                self.facts,
                self.style,
            ),
            self.listed,
        ]
        self.asked = [page.model, self.photo, self.kind, self.layer, self.patch, self.rank_by, self.style, self.feature]
        self.asked.append(page.atlas)

    def _lay_out_picture(self) -> None:
        self.crop = picker("crop", True, label="Your picture", container=False)
        self.examples = picker("examples", value=photographs_html(builtin_paths()), label="Example photographs")
        self.upload = photo_input(
            label="A picture of your own",
            sources=["upload", "webcam", "clipboard"],
            format="png",
            height=120,
            elem_id="photo",
            alt_text="The picture that is being read",
        )
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
            FIRST_FEATURE,
            label="Feature: layer.kind:index, Enter draws its map",
            elem_id="feature",
            max_lines=1,
            info='or a class, label:tabby; or for a model with a text tower a text, text:"striped fur"',
        )
        with gr.Row(equal_height=True):
            self.to_optimize = gr.Button("Optimize a picture for this feature", elem_id="to-optimize", min_width=130)
            self.to_dream = gr.Button("Dream my photograph", elem_id="to-dream", min_width=130)
            self.to_page = gr.Button("Its page", elem_id="to-page", min_width=130)

    def connect(self) -> None:
        """Gestures ask; what is asked for is answered by one handler."""
        quiet: dict[str, Any] = {"api_visibility": "private"}
        asking = self.page.model.input, self.page.atlas.change, self.kind.input, self.rank_by.input, self.style.input
        for event in asking:
            event(None, js=asks_js(), **quiet)
        self.layer_set.click(None, js=asks_js(), **quiet)
        self.upload.input(None, js=asks_js("photo"), **quiet)
        for picked, name in ((self.examples, "photo"), (self.crop, "patch"), (self.cards, "feature")):
            picked.click(None, js=pick_js(name, picked.elem_id), **quiet)
        for event in (self.patch.submit, self.rank_button.click):
            event(None, self.patch, js=asks_js("patch"), **quiet)
        self.feature.submit(None, self.feature, js=asks_js("feature"), **quiet)
        answered = self.asker.click(
            self.answer,
            [self.picked, self.upload, self.listed, *self.asked],
            self.shown,
            js=take_js(),
            show_progress_on=[self.status],
            **LATEST,
            **quiet,
        )
        self.page.link(answered)
        answered.then(None, self.upload, self.upload, js=taken_js(), **quiet)
        answered.success(None, js=scroll_js("#map", "window.vitvizAsk.moved"), **quiet)

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

    def answer(self, picked: str, upload: str | None, listed: Listed | None, *settings: Any) -> Values:
        """What the page shows for what is set on it and picked; what could not be made is empty, with the reason."""
        asked, values = Asked(*settings), dict[Any, Any]()
        try:
            asked, values = self.take(asked, json.loads(picked or "{}"), upload)
            if listed is None or listed.asked.model_id != asked.model_id:
                values |= {self.page.facts: ""}
                known, asked = self.describe(asked)
                values |= known
            if asked.image is None:
                return values or gr.skip()
            if listed and listed.asked.ranking == asked.ranking:
                asked = replace(asked, feature=asked.feature or listed.asked.feature)
                return values | self.redraw(asked, listed) or gr.skip()
            if listed and listed.asked.ranking[:-1] == asked.ranking[:-1]:  # only the atlas is another
                asked = replace(asked, feature=asked.feature or listed.asked.feature)
            return values | self.show(asked, listed.grid if listed else None)
        except Exception as error:
            return values | self.emptied(asked, tell(error))

    def take(self, asked: Asked, picked: dict[str, str | None], upload: str | None) -> tuple[Asked, Values]:
        """What was picked, in place of what is set; a new picture has no patch yet, a new ranking no feature."""
        image, values = asked.image, dict[Any, Any]()
        if key := picked.get("photo"):
            image = str(builtin_paths()[key])
            values = {self.photo: image, self.photo_key: key}
        elif upload:
            image = upload
            values = {self.photo: image, self.photo_key: ""}
        patch = picked.get("patch", "" if values else asked.patch) or ""
        if patch != asked.patch:
            values[self.patch] = patch
        return replace(asked, image=image, patch=patch, feature=picked.get("feature") or ""), values

    def describe(self, asked: Asked) -> tuple[Values, Asked]:
        """A sentence about the model; its kinds and layers, and what is asked for as near to that as it has."""
        known = self.jobs.facts(self.shelf.snapshot(asked.model_id))
        name, last = html.escape(known.model_id), known.n_layers - 1
        kind = asked.kind if asked.kind in known.kinds else "mlp_act"
        layer = min(whole_number("layer", asked.layer), last)
        values = {
            self.page.loaded: asked.model_id,
            self.page.facts: f"**{name}**{html.escape(str(known)).removeprefix(name)}",
            self.kind: gr.update(choices=list(known.kinds), **_if_new(kind, asked.kind)),
            self.layer: gr.update(maximum=last, label=f"Layer (0 to {last})", **_if_new(layer, asked.layer)),
        }
        return values, replace(asked, kind=kind, layer=layer)

    def ranking(self, asked: Asked, chosen_on: tuple[int, int] | None = None) -> RankResult:
        """The strongest features."""
        unusual, at = asked.rank_by == "unusual", typed_patch(asked.patch)
        snapshot = self.shelf.snapshot(asked.model_id)
        image, atlas = open_photo(asked.image), self.chosen_atlas(asked)
        return self.rank_job(snapshot, image, asked.site, at, unusual, _SHOWN, chosen_on, atlas)

    def chosen_atlas(self, asked: Asked) -> Atlas | None:
        """The atlas that was chosen; None without one, or where it cannot be opened, which its own tab tells."""
        with suppress(VitvizError):
            return self.shelf.atlas(asked.atlas) if asked.atlas else None
        return None

    def mapping(self, asked: Asked) -> MapResult:
        """The map of one feature; what it does at the chosen patch, if it is of the layer that is ranked."""
        at = typed_patch(asked.patch)
        snapshot, atlas = self.shelf.snapshot(asked.model_id), self.chosen_atlas(asked)
        return self.map_job(snapshot, open_photo(asked.image), asked.feature, at and (asked.site, at), atlas)

    def list_cards(self, asked: Asked, result: RankResult) -> Values:
        """How the strongest features are shown."""
        fired = [card.fired for card in result.cards]
        snapshot, atlas = self.shelf.snapshot(asked.model_id), self.chosen_atlas(asked)
        words = self.shelf.words(snapshot, [f.feature for f in fired], atlas)
        return {
            self.crop: crop_html(open_photo(asked.image), result.grid, result.patch, result.box),
            self.cards: cards_html(result, words, asked.feature),
            self.status: _sentence(asked, result),
            self.ranked: [{"feature": str(f.feature), "score": f.score, "unusual": f.unusual} for f in fired],
        }

    def draw(self, asked: Asked, result: MapResult) -> Values:
        """How a map is shown."""
        known = styles_for(result.fired)
        style = asked.style if asked.style in known else known[0]
        return {
            self.large: gr.update(
                value=draw_map(enlarge(result.crop), result.fired, style), alt_text=peak_text(result.fired)
            ),
            self.bar: draw_bar(result.fired, style),
            self.facts: describe(result.fired, style != "signed"),
            self.style: gr.update(choices=known, **_if_new(style, asked.style)),
        }

    def show(self, asked: Asked, chosen_on: tuple[int, int] | None = None) -> Values:
        """The ranking, and the map of the feature or of the first one, in one turn.

        Args:
            chosen_on: patch grid that the patch was chosen on; it keeps its place in the picture.
        """
        _ = self.shelf.snapshot(asked.model_id), self.chosen_atlas(asked)  # a download takes no turn
        with self.page.lane.turn():
            ranked = self.ranking(asked, chosen_on)
            patch = "{},{}".format(*ranked.patch) if ranked.patch else ""
            asked = replace(asked, patch=patch, feature=asked.feature or str(ranked.cards[0].fired.feature))
            mapped = self.mapping(asked)
        listed = {**self.list_cards(asked, ranked), self.listed: Listed(asked, ranked.grid)}
        return {self.patch: patch, **listed, self.feature: asked.feature, **self.draw(asked, mapped)}

    def redraw(self, asked: Asked, listed: Listed) -> Values:
        """Another map of the picture whose features are listed; nothing where it is shown."""
        if asked == listed.asked:
            return {}
        try:
            drawn = self.draw(asked, self.mapping(asked))
        except Exception as error:
            emptied = {self.large: None, self.bar: "", self.facts: tell(error)}
            return {**emptied, self.listed: replace(listed, asked=replace(asked, style=""))}
        return {self.feature: asked.feature, **drawn, self.listed: replace(listed, asked=asked)}

    def emptied(self, asked: Asked, reason: str) -> Values:
        """Nothing to be seen of an earlier answer."""
        gone = {self.cards: "", self.ranked: None, self.large: None, self.bar: "", self.facts: "", self.listed: None}
        try:
            crop = crop_html(open_photo(asked.image))
        except VitvizError:
            crop = ""
        return {**gone, self.crop: crop, self.status: reason}


def _if_new(value: Any, asked: Any) -> dict[str, Any]:
    """For an update: what the visitor may have set meanwhile stays, unless it had to be changed."""
    return {} if value == asked else {"value": value}


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
