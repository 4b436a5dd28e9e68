"""The page: model box, tabs, and the link in the address bar."""

import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from vitviz_hf.config import BUILTIN
from vitviz_hf.errors import VitvizError
from vitviz_hf.models.gate import SUGGESTED_MODELS, default_model
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.behavior_tab import BehaviorTab
from vitviz_hf.ui.events import LATEST, shown
from vitviz_hf.ui.experiments_tab import ExperimentsTab
from vitviz_hf.ui.features_tab import FeaturesTab
from vitviz_hf.ui.link import OPENED_JS
from vitviz_hf.ui.maps_tab import Asked, MapsTab
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
            api_name="model_facts",
            show_progress_on=[self.facts],
            **LATEST,
        )
        page.link(chosen.success(maps.move, [*maps.asked, maps.grid], maps.shown, **private))
        for key, tab_page in pages.items():
            page.link(tab_page.select(None, None, page.tab_key, js=f"() => {key!r}", api_visibility="private"))
        experiments, features = page.tab(ExperimentsTab), page.tab(FeaturesTab)
        opened = [page.tabs, self.facts, maps.photo, features.html, experiments.table, experiments.gallery]
        opened += [k.component for k in page.kept] + maps.shown
        loaded = self.demo.load(self.open, None, list(dict.fromkeys(opened)), **private)
        page.link(loaded.then(None, js=OPENED_JS, api_visibility="private"))

    @shown
    def model_facts(self, model_id: str, kind: str, layer: int) -> Values:
        """Load a model and tell its layers, patch grid and kinds.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            kind: the kind that is chosen; mlp_act is given back if the model lacks it.
            layer: the layer that is chosen; the last one is given back if the model has fewer.

        Returns:
            A sentence, the kinds to choose from, and the layer.
        """
        return self.describe(model_id, kind, layer)

    def describe(self, model_id: str, kind: str, layer: int) -> Values:
        """A sentence about a model, its kinds and layers."""
        known, maps = self.page.jobs.facts(self.page.shelf.snapshot(model_id)), self.page.tab(MapsTab)
        grids = " to ".join(f"{r} x {c}" for r, c in dict.fromkeys((max(known.grids), min(known.grids))))
        text = (
            f"**{html.escape(known.model_id)}** {(known.revision or '')[:8]}: {known.n_layers} layers, "
            f"{grids} patches at {known.input_size[0]} x {known.input_size[1]} pixels, "
            f"{known.n_features:,} features."
        )
        last = known.n_layers - 1
        return {
            self.facts: text,
            maps.kind: gr.update(choices=list(known.kinds), value=kind if kind in known.kinds else "mlp_act"),
            maps.layer: gr.update(value=min(int(layer or 0), last), maximum=last, label=f"Layer (0 to {last})"),
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
            asked = Asked(values[self.model], opened[maps.photo], *at, "unusual", "overlay")
            drawn = maps.show(asked, values[maps.feature])
            if tab == features.key and values[features.feature]:
                drawn |= features.show(values[features.atlas], values[features.feature])
        except VitvizError as error:
            gr.Warning(html.escape(str(error)))
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
        **options,
    )
