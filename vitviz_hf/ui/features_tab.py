"""Tab Browse features: an atlas to browse, and the page of each feature."""

from typing import Any

import gradio as gr

from vitviz_hf.atlas.store import Atlas
from vitviz_hf.errors import SiteError
from vitviz_hf.sites import Feature, parse_feature, parse_site
from vitviz_hf.ui.atlas_panel import AtlasPanel
from vitviz_hf.ui.events import LATEST, open_photo, shown
from vitviz_hf.ui.link import Kept, or_else
from vitviz_hf.ui.maps_tab import MapsTab
from vitviz_hf.ui.page import Page, Values

_SHOWN = 24
_SORTS = {
    "highest score": "maximum",
    "far above its mean": "unusual",
    "sparse: few patches active": "sparse",
}


class FeaturesTab:
    """The atlas and its tiles on the left, the page of a feature on the right."""

    key, title = "features", "Browse features"

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.jobs = page, page.shelf, page.jobs
        self.page_job, self.find_job = page.on_device(30, page.jobs.page), page.on_device(30, page.jobs.find)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self._lay_out_atlas()
            with gr.Column(scale=2, min_width=320):
                with gr.Row():
                    self.feature = gr.Textbox(
                        label="Feature: layer.kind:index, Enter shows its page",
                        elem_id="page-feature",
                        max_lines=1,
                        scale=2,
                    )
                    self.to_map = gr.Button("Map it on my picture", elem_id="to-map", min_width=140)
                self.html = gr.HTML(elem_id="page", label="Page of the feature")
        self.listed, self.shown = gr.State([]), gr.State("")
        self.filled = [*self.panel.told, self.site, self.gallery, self.listed, self.shown]

    def _lay_out_atlas(self) -> None:
        self.panel = AtlasPanel(self.page)
        self.atlas = self.panel.atlas
        self.site = gr.Dropdown([], label="Site", elem_id="atlas-site")
        self.sort = gr.Radio(list(_SORTS.items()), value="maximum", label="Sort by", elem_id="atlas-sort")
        self.find = gr.Button("Find the features of your picture", elem_id="find")
        self.word = gr.Textbox(
            label="Find features by a word",
            placeholder="fur, water, from above ...",
            elem_id="find-word",
            max_lines=1,
            info="in atlases whose features were named",
        )
        self.gallery = gr.Gallery(
            label="Features, each with its most activating image: choose one",
            columns=3,
            allow_preview=False,
            interactive=False,
            format="jpeg",
            elem_id="features",
            height="auto",
            buttons=[],
            object_fit="cover",
        )

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps."""
        return [
            Kept("atlas", self.atlas, or_else("")),
            Kept("shows", self.feature, or_else("")),
        ]

    def connect(self) -> None:
        """Connect its events."""
        page, maps, tiles = self.page, self.page.tab(MapsTab), [self.gallery, self.listed]
        private: dict[str, Any] = {**LATEST, "api_visibility": "private"}
        quiet: dict[str, Any] = {"queue": False, "api_visibility": "private"}
        sorting = [self.shown, self.site, self.sort]
        self.word.submit(self.find_word, [self.shown, self.word], tiles, **private)
        shown_page = [self.shown, self.feature]
        page.link(self.feature.submit(self.feature_page, shown_page, self.html, **private))
        opened = self.atlas.input(self.open, [self.atlas, self.sort, page.model], self.filled, **private)
        page.link(opened)
        opened.failure(lambda: ("", [], [], ""), None, [self.panel.facts, *tiles, self.shown], **quiet)
        following = [page.tab_key, self.atlas, self.sort, page.model]
        for changed in self.panel.connect():
            page.link(changed.success(self.follow, following, self.filled, **private))
        offered = [self.shown.change, maps.feature.change, page.loaded.change]
        gr.on(
            offered, self.offer, [self.shown, page.model, maps.feature], maps.to_page, show_progress="hidden", **quiet
        )
        gr.on([self.site.input, self.sort.input], self.sort_features, sorting, tiles, **private)
        self.find.click(self.find_features, [self.shown, maps.photo], tiles, **private)
        picked = self.gallery.select(self.pick, [self.shown, self.listed], [self.feature, self.html], **private)
        page.link(picked)
        taken = maps.to_page.click(self.take, maps.feature, [self.feature, *page.going], api_visibility="private")
        page.link(taken.success(self.feature_page, shown_page, self.html, **private))
        mapped = self.to_map.click(
            self.give, shown_page, [page.model, page.loaded, maps.feature, *page.going], api_visibility="private"
        )
        drawn = [page.model, maps.photo, maps.feature, maps.style]
        page.link(mapped.success(maps.map_feature, drawn, maps.map_outputs, **private))

    def tiles(self, name: str, features: list[tuple[Feature, str]]) -> Values:
        """Features as their most activating images."""
        crops = self.jobs.best_crops(name, [f for f, _ in features])
        captioned = [
            (crop, f"{f}  {text}  {word}".strip()) for (crop, word), (f, text) in zip(crops, features, strict=True)
        ]
        return {self.gallery: captioned, self.listed: [str(f) for f, _ in features]}

    def browse(self, name: str, site: str, sort: str) -> Values:
        """The first features of a site."""
        ranked = self.jobs.sorted_features(name, parse_site(site, None), sort, _SHOWN)
        return self.tiles(name, [(f, f"{value:.3g}") for f, value in ranked])

    def show(self, name: str, feature: str) -> Values:
        """The page of a feature."""
        return {
            self.html: str(
                self.page_job(self.shelf.snapshot_of(self.shelf.atlas(name)), name, parse_feature(feature, None))
            )
        }

    def opened(self, name: str, sort: str, model_id: str) -> Values:
        """An atlas, at the middle one of its sites; that in use for the model without a name."""
        known = self.panel.in_use(model_id, name)
        told = self.panel.tell(known)
        if known is None:
            empty = gr.update(choices=[], value=None)
            return {**told, self.site: empty, self.gallery: [], self.listed: [], self.shown: ""}
        sites = [str(s) for s in known.sites]
        chosen = sites[len(sites) // 2]
        values = {**told, self.site: gr.update(choices=sites, value=chosen), self.shown: known.name}
        return values | self.browse(known.name, chosen, sort)

    @shown
    def open(self, name: str, sort: str, model_id: str) -> Values:
        """Another atlas."""
        return self.opened((name or "").strip(), sort, model_id)

    @shown
    def follow(self, tab: str, name: str, sort: str, model_id: str) -> Values:
        """The atlas that is now in use, where the tab is open."""
        return self.opened(name, sort, model_id) if tab == self.key else gr.skip()

    @shown
    def first_look(self, name: str, sort: str, listed: str, model_id: str) -> Values:
        """The atlas in use, when the tab is opened and does not show it yet."""
        known = self.panel.in_use(model_id, name)
        if known and known.name == listed:
            return gr.skip()
        return self.opened(name, sort, model_id)

    @shown
    def offer(self, listed: str, model_id: str, feature: str) -> Any:
        """The way to the page of a feature, where the atlas that is open has it."""
        has = bool(listed) and has_feature(self.shelf.atlas(listed), model_id, feature)
        return gr.update(visible=has)

    @shown
    def sort_features(self, atlas: str, site: str, sort: str) -> Values:
        """Another site or order."""
        return self.browse(atlas, site, sort)

    @shown
    def feature_page(self, atlas: str, feature: str) -> Values:
        """The page of a feature."""
        return self.show(atlas, feature)

    @shown
    def find_features(self, name: str, photo: str | None) -> Values:
        """Features that the picture of the tab Your picture excites more than the atlas's images do."""
        found = self.find_job(self.shelf.snapshot_of(self.shelf.atlas(name)), name, open_photo(photo), _SHOWN)
        return self.tiles(name, [(f, f"+{value:.1f} sd") for f, value in found])

    @shown
    def find_word(self, atlas: str, word: str) -> Values:
        """The features that a word names."""
        return self.tiles(atlas, [(f, f"{value:.1f} sd") for f, value in self.jobs.find_word(atlas, word, _SHOWN)])

    @shown
    def pick(self, name: str, listed: list[str], event: gr.SelectData) -> Values:
        """A tile."""
        return {self.feature: listed[event.index], **self.show(name, listed[event.index])}

    def take(self, feature: str) -> Values:
        """A feature of the tab Your picture."""
        return {self.feature: feature, **self.page.go(FeaturesTab)}

    @shown
    def give(self, atlas: str, feature: str) -> Values:
        """The feature to the tab Your picture, with its model."""
        model_id = self.shelf.atlas(atlas).manifest["model_id"]
        values = {
            self.page.model: model_id,
            self.page.loaded: model_id,
            self.page.tab(MapsTab).feature: str(parse_feature(feature, None)),
        }
        return {**values, **self.page.go(MapsTab)}


def has_feature(atlas: Atlas, model_id: str, address: str) -> bool:
    """Whether an atlas is of a model and has a feature of it."""
    try:
        feature = parse_feature(address or "", None)
    except SiteError:
        return False
    return atlas.manifest["model_id"] == model_id and feature.index < atlas.sites.get(feature.site, 0)
