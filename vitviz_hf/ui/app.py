"""The page: model box, tabs, and the link in the address bar."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware

from vitviz_hf.config import BUILTIN
from vitviz_hf.errors import VitvizError
from vitviz_hf.hub import visitors_sign_in
from vitviz_hf.images import open_image
from vitviz_hf.models.gate import SUGGESTED_MODELS, default_model
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.api import Api
from vitviz_hf.ui.behavior_tab import VIEWS_CSS, BehaviorTab
from vitviz_hf.ui.compare import COMPARE_CSS
from vitviz_hf.ui.drawing import crop_html
from vitviz_hf.ui.events import LATEST, shown, tried
from vitviz_hf.ui.experiments_tab import ExperimentsTab
from vitviz_hf.ui.features_tab import FeaturesTab
from vitviz_hf.ui.inside_api import InsideApi
from vitviz_hf.ui.inside_tab import SCRIPTS, InsideTab
from vitviz_hf.ui.layer_grid import GRID_CSS
from vitviz_hf.ui.link import OPENED_JS, OWN_PHOTO
from vitviz_hf.ui.maps_tab import MapsTab
from vitviz_hf.ui.memory import return_freed_memory
from vitviz_hf.ui.optimize_tab import DREAM, MAKE_CSS, OptimizeTab
from vitviz_hf.ui.page import Gpu, Page, Tab, Values
from vitviz_hf.ui.picker import asks_js, keyboard_help
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.stored import PAPERS_CSS, results_folder, stored_result
from vitviz_hf.ui.strip import STRIP_CSS, strip_html
from vitviz_hf.ui.tray import TRAY_CSS
from vitviz_hf.ui.uploads import UploadLimit

TABS: tuple[type[Tab], ...] = (MapsTab, InsideTab, OptimizeTab, FeaturesTab, BehaviorTab, ExperimentsTab)
MOST_THREADS = 200
"""For handlers; those that wait, for a download or for other runs, take up at most 120 (see shelf.py and lane.py)."""
_CSS = """
button[role=tab].selected { color: var(--body-text-color); }
#features .caption-label { font-size: 0.7rem; white-space: normal; max-width: 100%; }
.photographs { display: flex; gap: 4px; overflow-x: auto; padding: 3px; }
.photographs button { flex: none; padding: 0; border-radius: 4px; }
.photographs img { width: 56px; height: 56px; border-radius: 4px; display: block; margin: 0; }
.photo { position: relative; overflow: hidden; border-radius: 4px; }
.photo img { width: 100%; display: block; margin: 0; }
.photo button.ask, .photo button.seen { position: absolute; padding: 0; border-radius: 0;
  background-color: transparent; }
.photo .ask { inset: 0; width: 100%; }
.photo .seen { cursor: crosshair; box-shadow: 0 0 0 2px #fff, 0 0 0 9999px rgb(0 0 0 / 60%); background-image:
  linear-gradient(to right, rgb(255 255 255 / 16%) 1px, transparent 1px),
  linear-gradient(to bottom, rgb(255 255 255 / 16%) 1px, transparent 1px); }
.seen .frame { position: absolute; outline: 2px solid #fff; box-shadow: 0 0 0 3px #000; pointer-events: none; }
.hint { margin: 4px 0 0; font-size: 0.85rem; }
.hint button.whole { display: inline; padding: 2px 0; background: none; font: inherit; text-decoration: underline;
  min-height: 24px; color: var(--body-text-color); }
.told { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 8px; padding: 3px; }
.card { padding: 6px; border: 1px solid var(--border-color-primary); border-radius: 8px; text-align: left;
  background: var(--block-background-fill); color: var(--body-text-color); }
.card .pictures { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.card .exemplars { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; align-content: start; }
.card img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 4px; display: block; margin: 0; }
.card .name { display: block; padding-top: 2px; }
.card small { font-size: 0.75rem; }
.card[aria-pressed=true], .photographs [aria-pressed=true] { outline: 3px solid var(--color-accent); }
.card:focus-visible, .seen:focus-visible, .whole:focus-visible, .photographs button:focus-visible {
  outline: 3px solid var(--body-text-color); outline-offset: 1px;
}
/* Gradio gives the sign of an empty picture a name that its role may not have. */
[aria-label="Empty value"] { visibility: hidden; }
@media (width <= 640px) { footer .divider { display: none; } }
.bar .colors { height: 14px; border-radius: 3px; }
.bar .ticks { display: flex; justify-content: space-between; font-size: 0.8rem; color: var(--body-text-color); }
"""
_INTRO = """# vitviz: see what a vision transformer learned
See which features fire on your picture and on what else, make the picture that excites one most, repeat the papers.
"""
_NOT_HERE = (
    "This link was made with an uploaded photograph, which is not in it. Upload it again in Your picture, or choose an "
    "example there; feature, layer and patch are as they were."
)


def _theme() -> gr.themes.Base:
    """Gradio's with a contrast of 4.5 : 1 and the visitor's own fonts: gradio's are a fifth of a megabyte."""
    fill, hover = "*primary_700", "*primary_800"
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_background_fill_hover_dark="#991b1b",
        button_primary_background_fill=fill,
        button_primary_background_fill_dark=fill,
        button_primary_background_fill_hover=hover,
        button_primary_background_fill_hover_dark=hover,
    )


def _no_gpu(_: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda function: function


class App:
    """The model box, the tabs, and what concerns them all."""

    def __init__(self, own_model: str, gpu: Gpu, eager: bool) -> None:
        self.eager, shelf = eager, Shelf(own_model)
        with gr.Blocks(title="vitviz", analytics_enabled=False, delete_cache=(3600, 7200)) as self.demo:
            gr.Markdown(_INTRO)
            with gr.Row(equal_height=True):
                self.model = gr.Dropdown(
                    list(dict.fromkeys([own_model, BUILTIN, *SUGGESTED_MODELS])),
                    value=own_model,
                    allow_custom_value=True,
                    label="Model: any Hub id, or builtin",
                    elem_id="model",
                    min_width=260,
                )
                with gr.Column(min_width=260):
                    self.facts = gr.Markdown(elem_id="model-facts")
                    if visitors_sign_in():
                        gr.LoginButton("Sign in for gated and private models", elem_id="sign-in", size="sm")
            self.page = Page(shelf, gpu, self.model, self.facts)
            pages = {}
            with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as self.page.tabs:
                for kind in TABS:
                    with gr.Tab(kind.title, id=kind.key) as pages[kind.key]:
                        self.page.laid_out.append(kind(self.page))
                        if kind is TABS[0] and (strip := strip_html()):
                            gr.HTML(strip, elem_id="strip")
            keyboard_help()
            api = Api(self.page)
            api.connect()
            InsideApi(self.page).connect(api)
            self.page.tab_key = gr.Textbox(TABS[0].key, visible="hidden", label="Tab", elem_id="tab-key")
            self._connect(pages)
        self.demo.queue(max_size=30, default_concurrency_limit=8)

    def _connect(self, pages: dict[str, gr.Tab]) -> None:
        page, maps = self.page, self.page.tab(MapsTab)
        for tab in page.laid_out:
            tab.connect()
        private: dict[str, Any] = {**LATEST, "api_visibility": "private"}
        features, behavior = page.tab(FeaturesTab), page.tab(BehaviorTab)
        optimize = page.tab(OptimizeTab)
        asked = [optimize.card, self.model, optimize.objective, page.atlas]
        pages[optimize.key].select(optimize.first_look, asked, optimize.card, show_progress="hidden", **private)
        asked = [features.atlas, features.grid.listed, *features.looking]
        pages[features.key].select(features.first_look, asked, features.filled, **private)
        asked = [self.model, maps.photo, behavior.patch, behavior.filter, behavior.scale, behavior.looked]
        pages[behavior.key].select(behavior.first_look, asked, behavior.filled, **private)
        inside = page.tab(InsideTab)
        asked = [inside.looked, *inside.asked]
        pages[inside.key].select(inside.first_look, asked, inside.filled, show_progress_on=[inside.about], **private)
        for key, tab_page in pages.items():
            page.link(tab_page.select(None, None, page.tab_key, js=f"() => {key!r}", api_visibility="private"))
        experiments = page.tab(ExperimentsTab)
        opened = [page.tabs, maps.photo, maps.status, maps.crop, experiments.story]
        opened += [*features.filled, features.html, *behavior.filled, optimize.status, *inside.filled]
        opened += [k.component for k in page.kept]
        loaded = self.demo.load(self.open, None, list(dict.fromkeys(opened)), **private)
        page.link(loaded.then(None, js=OPENED_JS, api_visibility="private"))
        if self.eager:
            loaded.then(None, maps.feature, js=asks_js("feature", gesture=False), api_visibility="private")

    def warm_up(self) -> None:
        """Load the first model, and what its features do on the built-in photographs, before a visitor asks."""
        shelf = self.page.shelf
        with suppress(VitvizError):  # the visitor is told
            shelf.reference(shelf.view(shelf.snapshot(self.model.value)))

    @shown
    def open(self, request: gr.Request) -> Iterator[Values]:
        """Restore what the link says, then open its atlas or views. What fails leaves the rest as it is."""
        query = dict(request.query_params)
        values = {k.component: k.parse(query.get(k.key)) for k in self.page.kept}
        maps, experiments = self.page.tab(MapsTab), self.page.tab(ExperimentsTab)
        optimize = self.page.tab(OptimizeTab)
        if values[maps.photo_key] == OWN_PHOTO:
            values |= {maps.photo_key: "", maps.status: _NOT_HERE}
            values |= {optimize.status: _NOT_HERE} if values[optimize.preset] == DREAM else {}
        photos, key = builtin_paths(), values[maps.photo_key]
        opened = {**values, self.page.tabs: gr.update(selected=values[self.page.tab_key])}
        opened[maps.photo] = str(photos[key]) if key else None
        opened[maps.crop] = crop_html(open_image(photos[key])) if key else ""
        if stored := values[experiments.stored]:
            opened |= tried(lambda: experiments.shows(stored_result(stored)))
        yield opened
        parts = (self._features, values), (self._views, opened), (self._inside, opened)
        if filled := {k: v for part, given in parts for k, v in tried(partial(part, given)).items()}:
            yield filled

    def _features(self, values: Values) -> Values:
        """The grid and the page of the tab that is opened."""
        features = self.page.tab(FeaturesTab)
        if not self.eager or values[self.page.tab_key] != features.key:
            return {}
        asked = [values.get(component, component.value) for component in features.looking]
        asked[1] = ""
        return features.restored(values[features.atlas], values[features.feature], *asked)

    def _inside(self, opened: Values) -> Values:
        """The pictures of the tab that is opened."""
        inside = self.page.tab(InsideTab)
        if not self.eager or opened[self.page.tab_key] != inside.key or not opened[self.page.tab(MapsTab).photo]:
            return {}
        return inside.opened(*(opened.get(component) for component in inside.asked))

    def _views(self, opened: Values) -> Values:
        """The views of the tab that is opened."""
        behavior, photo = self.page.tab(BehaviorTab), opened[self.page.tab(MapsTab).photo]
        if not self.eager or opened[self.page.tab_key] != behavior.key or not photo:
            return {}
        patch, number = opened[behavior.patch], opened[behavior.filter]
        return behavior.look(opened[self.model], photo, patch, number, opened[behavior.scale], True)


def build(own_model: str | None = None, gpu: Gpu = _no_gpu, eager: bool = True) -> gr.Blocks:
    """The app.

    Args:
        own_model: model to start with; default as `hub.default_model`.
        gpu: takes a duration, returns a decorator for the jobs that need the GPU.
        eager: rank the features of a first photograph when the page opens.
    """
    return App(own_model or default_model(), gpu, eager).demo


def launch(
    host: str | None = None, port: int | None = None, gpu: Gpu = _no_gpu, eager: bool = True, **options: Any
) -> None:
    """Build the app and serve it until it is stopped.

    Args:
        options: passed on to `gr.Blocks.launch`.
    """
    return_freed_memory()
    # Gradio serves files of the working and the temporary folder only; on a Space packages lie elsewhere.
    photographs = sorted({str(path.parent) for path in builtin_paths().values()})
    app = App(default_model(), gpu, eager)
    if eager:
        Thread(target=app.warm_up, daemon=True).start()
    app.demo.launch(
        server_name=host,
        server_port=port,
        css=_CSS + GRID_CSS + MAKE_CSS + COMPARE_CSS + TRAY_CSS + PAPERS_CSS + STRIP_CSS + VIEWS_CSS,
        theme=_theme(),
        ssr_mode=False,
        mcp_server=True,
        run_history=False,
        max_threads=MOST_THREADS,
        # Gradio keeps a copy of the page for every visitor, half a megabyte, and of 10,000 by default.
        state_session_capacity=500,
        max_file_size="30mb",
        footer_links=["api", "settings"],
        allowed_paths=[*photographs, str(results_folder()), str(SCRIPTS)],
        # A page of gradio has 0.4 MB of text, which it serves as it is.
        app_kwargs={"middleware": [Middleware(UploadLimit), Middleware(GZipMiddleware, minimum_size=2000)]},
        **options,
    )
