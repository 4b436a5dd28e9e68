"""The page: model box, tabs, and the link in the address bar."""

import html
from collections.abc import Callable
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware

from vitviz_hf.config import BUILTIN
from vitviz_hf.models.gate import SUGGESTED_MODELS, default_model
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.api import Api
from vitviz_hf.ui.behavior_tab import BehaviorTab
from vitviz_hf.ui.events import LATEST, shown, tried
from vitviz_hf.ui.experiments_tab import ExperimentsTab
from vitviz_hf.ui.features_tab import FeaturesTab
from vitviz_hf.ui.link import OPENED_JS, OWN_PHOTO
from vitviz_hf.ui.maps_tab import Asked, MapsTab
from vitviz_hf.ui.memory import return_freed_memory
from vitviz_hf.ui.optimize_tab import OptimizeTab
from vitviz_hf.ui.page import Gpu, Page, Tab, Values
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.stored import stored_result

TABS: tuple[type[Tab], ...] = (MapsTab, OptimizeTab, FeaturesTab, BehaviorTab, ExperimentsTab)
_CSS = """
button[role=tab].selected { color: var(--body-text-color); }
#live img { width: 100%; height: 100%; object-fit: contain; }
#experiment-table { overflow-x: auto; }
#experiment-table th, #experiment-table td { overflow-wrap: normal; word-break: normal; padding: 4px 8px; }
#features .caption-label, #views .caption-label { font-size: 0.7rem; white-space: normal; max-width: 100%; }
.photographs { display: flex; gap: 4px; overflow-x: auto; padding: 3px; }
.photographs button { flex: none; padding: 0; border-radius: 4px; }
.photographs img { width: 56px; height: 56px; border-radius: 4px; display: block; margin: 0; }
#crop { padding: 0; }
#crop .told { bottom: 0; }
.seen { position: relative; display: block; width: 100%; padding: 0; cursor: crosshair; }
.seen img { width: 100%; display: block; margin: 0; }
.seen .frame { position: absolute; outline: 2px solid #fff; box-shadow: 0 0 0 3px #000; pointer-events: none; }
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
.card:focus-visible, .seen:focus-visible, .photographs button:focus-visible {
  outline: 3px solid var(--body-text-color); outline-offset: 1px;
}
.bar .colors { height: 14px; border-radius: 3px; }
.bar .ticks { display: flex; justify-content: space-between; font-size: 0.8rem; color: var(--body-text-color); }
"""
_INTRO = """# vitviz: see what a vision transformer learned
See which features fire on your picture and on what else, make the picture that excites one most, repeat the papers.
"""
_NOT_HERE = (
    "This link was made with an uploaded photograph, which is not in it. Upload it again, or choose an example; "
    "feature, layer and patch are as they were."
)


def _theme() -> gr.themes.Base:
    """Gradio's with a contrast of 4.5 : 1 and the visitor's own fonts: gradio's are a fifth of a megabyte."""
    fill, hover = "*primary_700", "*primary_800"
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
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
            self.page = Page(shelf, gpu, self.model, self.facts)
            pages = {}
            with gr.Tabs(elem_id="tabs") as self.page.tabs:
                for kind in TABS:
                    with gr.Tab(kind.title, id=kind.key) as pages[kind.key]:
                        self.page.laid_out.append(kind(self.page))
            Api(self.page).connect()
            self.page.tab_key = gr.Textbox(TABS[0].key, visible="hidden", label="Tab", elem_id="tab-key")
            self._connect(pages)
        self.demo.queue(max_size=30, default_concurrency_limit=8)

    def _connect(self, pages: dict[str, gr.Tab]) -> None:
        page, maps = self.page, self.page.tab(MapsTab)
        for tab in page.laid_out:
            tab.connect()
        private: dict[str, Any] = {**LATEST, "api_visibility": "private"}
        chosen = self.model.input(
            self.choose,
            [page.loaded, *maps.asked, maps.grid],
            [page.loaded, self.facts, maps.kind, maps.layer, *maps.shown],
            show_progress_on=[self.facts],
            **private,
        )
        page.link(chosen)
        chosen.failure(lambda: "", None, self.facts, queue=False, api_visibility="private")
        features, behavior = page.tab(FeaturesTab), page.tab(BehaviorTab)
        asked = [features.atlas, features.sort, features.shown, self.model]
        pages[features.key].select(features.first_look, asked, features.filled, **private)
        asked = [self.model, maps.photo, behavior.patch, behavior.filter, behavior.scale, behavior.layout]
        pages[behavior.key].select(behavior.first_look, asked, behavior.filled, **private)
        for key, tab_page in pages.items():
            page.link(tab_page.select(None, None, page.tab_key, js=f"() => {key!r}", api_visibility="private"))
        experiments = page.tab(ExperimentsTab)
        opened = [page.tabs, page.loaded, self.facts, maps.photo, experiments.table, experiments.gallery]
        opened += [*features.filled, features.html, *behavior.filled]
        opened += [k.component for k in page.kept] + maps.shown
        loaded = self.demo.load(self.open, None, list(dict.fromkeys(opened)), **private)
        page.link(loaded.then(None, js=OPENED_JS, api_visibility="private"))

    @shown
    def choose(self, loaded: str, *asked: Any) -> Values:
        """Another model, and its ranking; nothing where the box was left as it was."""
        maps, (*values, grid) = self.page.tab(MapsTab), asked
        given = dict(zip(maps.asked, values, strict=True))
        model_id = given[self.model]
        if model_id == loaded:
            return gr.skip()
        facts = {self.page.loaded: model_id, **self.describe(model_id, given[maps.kind], given[maps.layer])}
        if given[maps.photo] is None:
            return facts
        given |= {maps.kind: facts[maps.kind]["value"], maps.layer: facts[maps.layer]["value"]}
        return facts | maps.move(*given.values(), grid)

    def describe(self, model_id: str, kind: str, layer: int) -> Values:
        """A sentence about a model, its kinds and layers."""
        known, maps = self.page.jobs.facts(self.page.shelf.snapshot(model_id)), self.page.tab(MapsTab)
        name, last = html.escape(known.model_id), known.n_layers - 1
        return {
            self.facts: f"**{name}**{html.escape(str(known)).removeprefix(name)}",
            maps.kind: gr.update(choices=list(known.kinds), value=kind if kind in known.kinds else "mlp_act"),
            maps.layer: gr.update(value=min(int(layer or 0), last), maximum=last, label=f"Layer (0 to {last})"),
        }

    @shown
    def open(self, request: gr.Request) -> Values:
        """Restore what the link says; then rank, draw and open the atlas. What fails leaves the rest as it is."""
        query = dict(request.query_params)
        values = {k.component: k.parse(query.get(k.key)) for k in self.page.kept}
        maps, experiments = self.page.tab(MapsTab), self.page.tab(ExperimentsTab)
        if own := values[maps.photo_key] == OWN_PHOTO:
            values |= {maps.photo_key: "", maps.status: _NOT_HERE}
        photos, key = builtin_paths(), values[maps.photo_key]
        opened = {**values, self.page.tabs: gr.update(selected=values[self.page.tab_key])}
        opened |= {maps.photo: str(photos[key]) if key else None, self.page.loaded: values[self.page.model]}
        if stored := values[experiments.stored]:
            opened |= tried(lambda: experiments.shows(stored_result(stored)))
        if own:
            opened |= tried(lambda: self.describe(opened[self.model], opened[maps.kind], opened[maps.layer]))
        elif self.eager:
            opened |= tried(lambda: self._mapped(opened))
        return opened | tried(lambda: self._atlas(opened)) | tried(lambda: self._views(opened))

    def _mapped(self, opened: Values) -> Values:
        """The first ranking and map."""
        maps = self.page.tab(MapsTab)
        model_id = opened[self.model]
        facts = self.describe(model_id, opened[maps.kind], opened[maps.layer])
        at = facts[maps.kind]["value"], facts[maps.layer]["value"], opened[maps.patch]
        asked = Asked(model_id, opened[maps.photo], *at, "unusual", "overlay")
        return facts | maps.show(asked, opened[maps.feature])

    def _atlas(self, opened: Values) -> Values:
        """The atlas of the tab that is opened, and the page of its feature."""
        features = self.page.tab(FeaturesTab)
        name, feature = opened[features.atlas], opened[features.feature]
        if not name or opened[self.page.tab_key] != features.key:
            return {}
        found = features.opened(name, "maximum", opened[self.model])
        return found | (features.show(name, feature) if feature and self.eager else {})

    def _views(self, opened: Values) -> Values:
        """The views of the tab that is opened."""
        behavior, photo = self.page.tab(BehaviorTab), opened[self.page.tab(MapsTab).photo]
        if not self.eager or opened[self.page.tab_key] != behavior.key or not photo:
            return {}
        patch, number = opened[behavior.patch], opened[behavior.filter]
        return behavior.look(opened[self.model], photo, patch, number, "linear", True)


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
    build(None, gpu, eager).launch(
        server_name=host,
        server_port=port,
        css=_CSS,
        theme=_theme(),
        ssr_mode=False,
        mcp_server=True,
        run_history=False,
        max_file_size="30mb",
        footer_links=["api", "settings"],
        allowed_paths=photographs,
        # A page of gradio has 0.4 MB of text, which it serves as it is.
        app_kwargs={"middleware": [Middleware(GZipMiddleware, minimum_size=2000)]},
        **options,
    )
