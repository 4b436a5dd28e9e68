"""The page: model box, tabs, and the link in the address bar."""

import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from vitviz_hf.errors import VitvizError
from vitviz_hf.models.gate import BUILTIN, SUGGESTED_MODELS, default_model
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.api import Api
from vitviz_hf.ui.behavior_tab import BehaviorTab
from vitviz_hf.ui.events import LATEST, shown
from vitviz_hf.ui.experiments_tab import ExperimentsTab
from vitviz_hf.ui.features_tab import FeaturesTab
from vitviz_hf.ui.link import OPENED_JS
from vitviz_hf.ui.maps_tab import MapsTab
from vitviz_hf.ui.memory import return_freed_memory
from vitviz_hf.ui.optimize_tab import OptimizeTab
from vitviz_hf.ui.page import Gpu, Page, Tab, Values
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.stored import stored_result

TABS: tuple[type[Tab], ...] = (MapsTab, OptimizeTab, FeaturesTab, BehaviorTab, ExperimentsTab)
_CSS = """
#crop img { cursor: crosshair; }
#live img { width: 100%; height: 100%; object-fit: contain; }
#examples .grid-container, #gallery .grid-container { min-width: 0; }
#experiment-table { overflow-x: auto; }
#experiment-table th, #experiment-table td { overflow-wrap: normal; word-break: normal; padding: 4px 8px; }
#gallery .caption-label, #examples .caption-label, #features .caption-label, #views .caption-label {
  font-size: 0.7rem; white-space: normal; max-width: 100%;
}
"""
_INTRO = """# vitviz: see what a vision transformer learned
Any vision transformer of the Hub (ViT, CLIP, SigLIP, DINO, Swin and many more), or the built-in one. Find the features
that fire on your picture and see where, optimize the picture that excites one most, and repeat the papers' experiments.
"""


def _no_gpu(_: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda function: function


class App:
    """The model box, the tabs, and what concerns them all."""

    def __init__(self, own_model: str, gpu: Gpu, eager: bool) -> None:
        self.eager, shelf = eager, Shelf(own_model)
        with gr.Blocks(title="vitviz", analytics_enabled=False, delete_cache=(3600, 7200)) as self.demo:
            gr.Markdown(_INTRO)
            self.model = gr.Dropdown(
                list(dict.fromkeys([own_model, BUILTIN, *SUGGESTED_MODELS])),
                value=own_model,
                allow_custom_value=True,
                label="Model: any Hub id, or builtin",
                elem_id="model",
            )
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
            self.model_facts,
            [self.model, maps.kind, maps.layer],
            [self.facts, maps.kind, maps.layer],
            api_visibility="private",
            show_progress_on=[self.facts],
            **LATEST,
        )
        page.link(chosen.success(maps.move, [*maps.asked, maps.layout], maps.shown, **private))
        for key, tab_page in pages.items():
            page.link(tab_page.select(None, None, page.tab_key, js=f"() => {key!r}", api_visibility="private"))
        experiments, features = page.tab(ExperimentsTab), page.tab(FeaturesTab)
        opened = [page.tabs, self.facts, maps.photo, features.html, experiments.table, experiments.gallery]
        opened += [k.component for k in page.kept] + maps.shown
        loaded = self.demo.load(self.open, None, list(dict.fromkeys(opened)), **private)
        page.link(loaded.then(None, js=OPENED_JS, api_visibility="private"))

    @shown
    def model_facts(self, model_id: str, kind: str, layer: int) -> Values:
        """Another model."""
        return self.describe(model_id, kind, layer)

    def describe(self, model_id: str, kind: str, layer: int) -> Values:
        """A sentence about a model, its kinds and layers."""
        known, maps = self.page.jobs.facts(self.page.shelf.snapshot(model_id)), self.page.tab(MapsTab)
        name, last = html.escape(known.model_id), known.n_layers - 1
        return {
            self.facts: f"**{name}**{html.escape(str(known)).removeprefix(name)}",
            maps.kind: gr.update(choices=list(known.kinds), value=kind if kind in known.kinds else "mlp_act"),
            maps.layer: gr.update(value=min(int(layer or 0), last), label=f"Layer (0 to {last})"),
        }

    @shown
    def open(self, request: gr.Request) -> Values:
        """Restore what the link says; then, with a GPU at hand, rank and draw."""
        query = dict(request.query_params)
        values = {k.component: k.parse(query.get(k.key)) for k in self.page.kept}
        page = self.page
        maps, features, experiments = page.tab(MapsTab), page.tab(FeaturesTab), page.tab(ExperimentsTab)
        tab = values[self.page.tab_key]
        photos, key = builtin_paths(), values[maps.photo_key]
        opened = {**values, self.page.tabs: gr.update(selected=tab), maps.photo: str(photos[key]) if key else None}
        if stored := values[experiments.stored]:
            opened |= experiments.shows(stored_result(stored))
        if not self.eager:
            return opened
        try:
            facts = self.describe(values[self.model], values[maps.kind], values[maps.layer])
            at = facts[maps.kind]["value"], facts[maps.layer]["value"], values[maps.patch]
            drawn = maps.show(values[self.model], opened[maps.photo], *at, "unusual", "overlay", values[maps.feature])
            if tab == features.key and values[features.feature]:
                drawn |= features.show(values[features.atlas], values[features.feature])
        except VitvizError as error:
            gr.Warning(html.escape(error.for_visitor))
            return opened
        return {**opened, **facts, **drawn}


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
        ssr_mode=False,
        mcp_server=True,
        run_history=False,
        max_file_size="30mb",
        footer_links=["api", "settings"],
        allowed_paths=photographs,
        **options,
    )
