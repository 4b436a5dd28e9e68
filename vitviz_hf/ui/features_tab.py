"""Tab Browse features: the features of a layer or of an atlas, and the page of each beside them."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import gradio as gr

from vitviz_hf.atlas.store import Atlas
from vitviz_hf.errors import AtlasError, ConfigError, FeatureError, SiteError, VitvizError
from vitviz_hf.inside.words import stored_address, written_address
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.sites import Feature, Site, has_words, parse_feature
from vitviz_hf.ui.atlas_panel import AtlasPanel
from vitviz_hf.ui.beside import Beside
from vitviz_hf.ui.drawing import feature_cards_html
from vitviz_hf.ui.events import LATEST, open_photo, shown, tried
from vitviz_hf.ui.layer_grid import LayerGrid
from vitviz_hf.ui.link import Kept, or_else
from vitviz_hf.ui.maps_tab import MapsTab
from vitviz_hf.ui.page import Page, Values
from vitviz_hf.ui.picker import asks_js, picked_js, picker, scroll_js

_SHOWN = 24


class FeaturesTab:
    """The grid of a layer and the atlas on the left, the page of a feature on the right."""

    key, title = "features", "Browse features"

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.jobs = page, page.shelf, page.jobs
        beside = Beside(page.shelf)
        self.page_job, self.cards_job = page.on_device(30, beside.page), page.on_device(30, beside.cards)
        self.find_job = page.on_device(30, page.jobs.find)
        self.shown = gr.State("")
        """The atlas that was opened; empty for the loaded model."""
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self.grid = LayerGrid(page)
                self._lay_out_atlas()
            with gr.Column(scale=1, min_width=300):
                with gr.Row():
                    self.feature = gr.Textbox(
                        label="Feature: layer.kind:index, Enter shows its page",
                        elem_id="page-feature",
                        max_lines=1,
                        scale=2,
                    )
                    self.to_map = gr.Button("Map it on my picture", elem_id="to-map", min_width=140)
                self.html = picker(
                    "page", label="Page of the feature", value="<p>Choose a feature to see its page.</p>"
                )
        self.filled = [*self.panel.told, self.results, self.shown, *self.grid.shown]

    def _lay_out_atlas(self) -> None:
        self.panel = AtlasPanel(self.page)
        self.atlas = self.panel.atlas
        self.find = gr.Button("Find the features of your picture", elem_id="find")
        self.word = gr.Textbox(
            label="Find features by a word",
            placeholder="fur, water, from above ...",
            elem_id="find-word",
            max_lines=1,
            info="in atlases whose features were named",
        )
        self.results = picker("features", label="Found features")

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps."""
        return [
            Kept("atlas", self.atlas, or_else("")),
            *self.grid.kept,
            Kept("shows", self.feature, or_else("")),
        ]

    @property
    def looking(self) -> list[Any]:
        """Inputs of `look`."""
        maps = self.page.tab(MapsTab)
        return [self.page.model, self.shown, maps.kind, maps.layer, *self.grid.asked]

    def connect(self) -> None:
        """Connect its events."""
        page, maps, grid, source = self.page, self.page.tab(MapsTab), self.grid, [self.page.model, self.shown]
        private: dict[str, Any] = {**LATEST, "api_visibility": "private"}
        shown_page = [*source, self.feature]
        self.word.submit(self.find_word, [*source, self.word], self.results, **private)
        page.link(self.feature.submit(self.feature_page, shown_page, self.html, **private))
        page.link(self.atlas.input(self.open, [self.atlas, *self.looking], self.filled, **private))
        offered, made = self.panel.connect()
        page.link(
            offered.success(self.follow, [page.tab_key, self.atlas, grid.listed, *self.looking], self.filled, **private)
        )
        renewed = [page.tab_key, self.atlas, *self.looking]
        page.link(made.success(self.renew, renewed, self.filled, **private))
        self.find.click(self.find_features, [*source, maps.photo], self.results, **private)
        quiet: dict[str, Any] = {"show_progress_on": [grid.facts], **private}
        browsing = [grid.site.input, grid.sort.input, grid.fires.input]
        page.link(gr.on(browsing, self.browse, self.looking, grid.shown, **quiet))
        gr.on([grid.pictures.input, grid.html.submit], self.refresh, self.looking, grid.shown, **quiet)
        moved = "(offset) => [window.vitvizPicked?.offset ?? offset]"
        page.link(grid.html.input(None, grid.offset, grid.offset, js=moved, api_visibility="private"))
        offset = "(...inputs) => [inputs[0], inputs[1], window.vitvizPicked.grid, window.vitvizPicked.offset]"
        asked, filled = [*shown_page, grid.offset], [self.feature, self.html, grid.offset]
        chosen = [grid.html.click(self.pick_tile, asked, filled, js=offset, **private)]
        for found in (self.results, self.html):
            js = picked_js(str(found.elem_id), 2)
            chosen.append(found.click(self.pick, shown_page, [self.feature, self.html], js=js, **private))
        for event in chosen:
            page.link(event)
            event.success(None, js=scroll_js("#page-feature"), api_visibility="private")
        taken = maps.to_page.click(
            self.take, [*source, maps.feature], [self.feature, self.shown, *page.going], api_visibility="private"
        )
        page.link(taken.success(self.feature_page, shown_page, self.html, **private))
        mapped = self.to_map.click(
            self.give, shown_page, [page.model, page.loaded, maps.feature, *page.going], api_visibility="private"
        )
        mapped.success(None, maps.feature, js=asks_js("feature"), api_visibility="private")

    def source(self, model_id: str, name: str, site: Site | None = None) -> tuple[Snapshot, Atlas | None]:
        """The model, and where its images come from: the opened atlas, or the one in use for the model.

        Args:
            site: which the atlas in use must cover.
        """
        if name:
            atlas = self.shelf.atlas(name)
            return self.shelf.snapshot_of(atlas), atlas
        snapshot = self.shelf.snapshot(model_id)
        return snapshot, self.shelf.atlas_for(snapshot, site)

    def look(self, model_id: str, name: str, kind: str, layer: float | None, *asked: Any) -> Values:
        """The grid of a site; of the first tab's layer where none is chosen."""
        chosen = self.shelf.atlas(name) if name else None
        snapshot = self.shelf.snapshot_of(chosen) if chosen else self.shelf.snapshot(model_id)
        site = f"{int(layer or 0)}.{kind}"
        return {**self.grid.values(snapshot, chosen, asked, site), self.grid.listed: name or model_id}

    def found(self, model_id: str, name: str, features: list[tuple[Feature, float]]) -> Values:
        """Features that were found, as cards."""
        snapshot, atlas = self.source(model_id, name, features[0][0].site if features else None)
        cards = self.cards_job(snapshot, atlas, [(f, f"{value:+.1f} sd") for f, value in features])
        return {self.results: feature_cards_html(cards, "Found features")}

    def with_atlas(self, model_id: str, name: str) -> tuple[Snapshot, Atlas]:
        """The model and an atlas of it.

        Raises:
            AtlasError: there is none.
        """
        snapshot, atlas = self.source(model_id, name)
        if atlas is None:
            raise AtlasError(f"no atlas of {model_id!r} is open: open one above.")
        return snapshot, atlas

    def show(self, model_id: str, name: str, feature: str) -> Values:
        """The page of a feature."""
        wanted = self.wanted(model_id, name, feature)
        return {self.html: str(self.page_job(*self.source(model_id, name, wanted.site), wanted))}

    def wanted(self, model_id: str, name: str, address: str) -> Feature:
        """The feature of an address; a text or label is that of the atlas which is opened, or in use."""
        address = (address or "").strip()
        if has_words(address):
            atlas = self.source(model_id, name)[1]
            address = stored_address(atlas.manifest if atlas else {}, address)
        return parse_feature(address, None)

    def opened(self, name: str, *asked: Any) -> Values:
        """An atlas, at the site that is asked for or the first tab's; that in use for the model without a name."""
        model_id, _, kind, layer, site, *order = asked
        known = self.panel.in_use(model_id, name)
        if known and name and site not in map(str, known.sites):
            site = ""
        looked = self.look(model_id, name, kind, layer, site, *order)
        return {**self.panel.tell(known), self.results: "", self.shown: name, **looked}

    @shown
    def open(self, name: str, *asked: Any) -> Values:
        """Another atlas."""
        return self.opened((name or "").strip(), *asked)

    @shown
    def follow(self, tab: str, name: str, listed: str, *asked: Any) -> Values:
        """After another model: its own features if the tab is open; what was of the one before goes."""
        model_id, opened, kind, layer, _, *order = asked
        if not listed or listed == model_id or self.is_of(opened, model_id):
            return gr.skip()
        if tab == self.key:
            return self.opened(name, model_id, opened, kind, layer, "", *order[:-1], 0)
        grid = self.grid
        emptied = {grid.site: gr.update(choices=[], value=""), grid.offset: 0, grid.html: "", grid.listed: ""}
        return {self.results: "", self.shown: "", **emptied}

    @shown
    def renew(self, tab: str, name: str, *asked: Any) -> Values:
        """An atlas that was just made, or has grown; when the tab is opened if it is not."""
        return self.now(name, asked) if tab == self.key else {self.grid.listed: ""}

    @shown
    def first_look(self, name: str, listed: str, *asked: Any) -> Values:
        """The atlas that is named if it is of the loaded model, or that model, when the tab does not show it yet."""
        model_id, opened = asked[:2]
        wanted = name if name == opened or self.is_of(name, model_id) else opened
        return gr.skip() if listed == (wanted or model_id) else self.now(wanted, asked)

    def now(self, name: str, asked: Sequence[Any]) -> Values:
        """As `opened`; at the first tab's site where the one that is asked for was another model's."""
        model_id, opened, kind, layer, _, *order = asked
        try:
            return self.opened(name, *asked)
        except SiteError:
            return self.opened(name, model_id, opened, kind, layer, "", *order)

    def is_of(self, name: str, model_id: str) -> bool:
        """Whether an atlas can be opened and is of a model."""
        with suppress(VitvizError):
            return bool(name) and self.shelf.atlas(name).manifest["model_id"] == model_id
        return False

    def restored(self, name: str, feature: str, *asked: Any) -> Values:
        """The grid and the page that a link shows; without the atlas if it cannot be opened."""
        values = tried(lambda: self.opened(name, *asked)) if name else {}
        values = values or tried(lambda: self.opened("", *asked))
        opened = values.get(self.shown, "")
        return values | (tried(lambda: self.show(asked[0], opened, feature)) if feature else {})

    @shown
    def browse(self, *asked: Any) -> Values:
        """Another site or order, from its start."""
        return self.look(*asked[:-1], 0)

    @shown
    def refresh(self, *asked: Any) -> Values:
        """Other pictures of the same features."""
        return self.look(*asked)

    @shown
    def feature_page(self, model_id: str, atlas: str, feature: str) -> Values:
        """The page of a feature."""
        return self.show(model_id, atlas, feature)

    @shown
    def find_features(self, model_id: str, name: str, photo: str | None) -> Values:
        """Features that the picture of the tab Your picture excites more than the atlas's images do."""
        snapshot, atlas = self.with_atlas(model_id, name)
        return self.found(model_id, name, self.find_job(snapshot, atlas, open_photo(photo), _SHOWN))

    @shown
    def find_word(self, model_id: str, name: str, word: str) -> Values:
        """The features that a word names."""
        return self.found(model_id, name, self.with_atlas(model_id, name)[1].find_word(word or "", _SHOWN))

    @shown
    def pick(self, model_id: str, name: str, feature: str) -> Values:
        """A card."""
        return {self.feature: feature, **self.show(model_id, name, feature)}

    @shown
    def pick_tile(self, model_id: str, name: str, feature: str, offset: int) -> Values:
        """A tile."""
        return {self.feature: feature, self.grid.offset: offset, **self.show(model_id, name, feature)}

    @shown
    def take(self, model_id: str, listed: str, feature: str) -> Values:
        """A feature of the tab Your picture; an atlas that has it not is closed."""
        has = bool(listed) and has_feature(self.shelf.atlas(listed), model_id, feature)
        return {self.feature: feature, self.shown: listed if has else "", **self.page.go(FeaturesTab)}

    @shown
    def give(self, model_id: str, atlas: str, feature: str) -> Values:
        """The feature to the tab Your picture, with its model."""
        wanted = self.wanted(model_id, atlas, feature)
        snapshot, known = self.source(model_id, atlas, wanted.site)
        model_id = snapshot.model_id
        values = {
            self.page.model: model_id,
            self.page.loaded: model_id,
            self.page.tab(MapsTab).feature: written_address(known.manifest if known else {}, wanted),
        }
        return {**values, **self.page.go(MapsTab)}


def has_feature(atlas: Atlas, model_id: str, address: str) -> bool:
    """Whether an atlas is of a model and has a feature of it."""
    try:
        feature = parse_feature(stored_address(atlas.manifest, (address or "").strip()), None)
    except (SiteError, ConfigError, FeatureError):
        return False
    return atlas.manifest["model_id"] == model_id and feature.index < atlas.sites.get(feature.site, 0)
