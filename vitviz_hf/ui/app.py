"""The page: model box, tabs, and the link in the address bar."""

import html
import os
from collections.abc import Callable
from typing import Any

import gradio as gr

from vitviz_hf.config import PRESETS
from vitviz_hf.errors import VitvizError
from vitviz_hf.hub import BUILTIN, SUGGESTED_MODELS, default_model
from vitviz_hf.sites import KINDS, parse_feature
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.behavior_tab import build_behavior_tab
from vitviz_hf.ui.common import LINK_JS, OPENED_JS, Gpu, shown
from vitviz_hf.ui.experiments_tab import build_experiments_tab
from vitviz_hf.ui.features_tab import build_features_tab
from vitviz_hf.ui.jobs import Jobs, stored_results
from vitviz_hf.ui.maps_tab import build_maps_tab
from vitviz_hf.ui.optimize_tab import build_optimize_tab

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
_FIRST_FEATURE = "5.mlp_act:1059"
_FIRST_PHOTO = "chelsea"


def _no_gpu(_: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda function: function


def build(own_model: str | None = None, gpu: Gpu = _no_gpu, eager: bool = True) -> gr.Blocks:
    """The app.

    Args:
        own_model: model to start with; default as `hub.default_model`.
        gpu: takes a duration, returns a decorator for the jobs that need the GPU.
        eager: rank the features of a first photograph when the page opens.
    """
    own_model = own_model or default_model()
    jobs = Jobs(own_model)
    with gr.Blocks(title="vitviz", analytics_enabled=False, delete_cache=(3600, 7200)) as demo:
        gr.Markdown(_INTRO)
        model = gr.Dropdown(
            list(dict.fromkeys([own_model, BUILTIN, *SUGGESTED_MODELS])), value=own_model, allow_custom_value=True,
            label="Model: any Hub id, or builtin", elem_id="model",
        )  # fmt: skip
        facts = gr.Markdown(elem_id="model-facts")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Activation maps", id="maps") as maps_page:
                maps = build_maps_tab(jobs, model, gpu, _FIRST_FEATURE)
            with gr.Tab("Feature optimization", id="optimize") as optimize_page:
                optimization = build_optimize_tab(jobs, model, gpu, _FIRST_FEATURE)
            with gr.Tab("Features", id="features") as features_page:
                features = build_features_tab(jobs, gpu)
            with gr.Tab("Views and groups", id="views") as views_page:
                behavior = build_behavior_tab(jobs, model, gpu)
            with gr.Tab("Experiments", id="experiments") as experiments_page:
                experiments = build_experiments_tab(jobs, model, gpu)
        tab_key = gr.Textbox("maps", visible="hidden", label="Tab", elem_id="tab-key")

        def describe(model_id: str, kind: str, layer: int) -> list[Any]:
            known = jobs.facts(jobs.prepare(model_id))
            grids = " to ".join(f"{r} x {c}" for r, c in dict.fromkeys((max(known.grids), min(known.grids))))
            text = (
                f"**{html.escape(known.model_id)}** {(known.revision or '')[:8]}: {known.n_layers} layers, "
                f"{grids} patches at {known.input_size[0]} x {known.input_size[1]} pixels, "
                f"{known.n_features:,} features."
            )
            last = known.n_layers - 1
            return [
                text,
                gr.update(choices=list(known.kinds), value=kind if kind in known.kinds else "mlp_act"),
                gr.update(value=min(int(layer or 0), last), label=f"Layer (0 to {last})"),
            ]

        @shown
        def model_facts(model_id: str, kind: str, layer: int) -> list[Any]:
            """Load a model and tell its layers, patch grid and kinds.

            Args:
                model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
                kind: the kind that is chosen; mlp_act is given back if the model lacks it.
                layer: the layer that is chosen; the last one is given back if the model has fewer.

            Returns:
                A sentence, the kinds to choose from, and the layer.
            """
            return describe(model_id, kind, layer)

        link = [tab_key, model, maps.photo_key, maps.kind, maps.layer, maps.patch, maps.feature,
                optimization.objective, optimization.preset, optimization.seed, features.atlas,
                features.feature, experiments.stored, behavior.patch, behavior.filter]  # fmt: skip

        def after(event: Any) -> Any:
            return event.then(None, link, None, js=LINK_JS, api_visibility="private")

        maps.connect(after)
        optimization.connect(after)
        features.connect(after, maps.photo)
        experiments.connect(after)
        behavior.connect(after, maps.photo)
        after(
            model.input(
                model_facts, [model, maps.kind, maps.layer], [facts, maps.kind, maps.layer], api_name="model_facts",
                concurrency_id="gpu", concurrency_limit=1, trigger_mode="always_last", show_progress_on=[facts],
            ).success(shown(maps.move), maps.move_inputs, maps.moved, api_visibility="private", concurrency_id="gpu")
        )  # fmt: skip
        pages = {
            "maps": maps_page,
            "optimize": optimize_page,
            "features": features_page,
            "views": views_page,
            "experiments": experiments_page,
        }
        for key, page in pages.items():
            after(page.select(None, None, tab_key, js=f"() => {key!r}", api_visibility="private"))
        after(
            maps.optimize.click(
                lambda feature: (feature, gr.update(selected="optimize"), "optimize"), maps.feature,
                [optimization.objective, tabs, tab_key], api_visibility="private",
            )
        )  # fmt: skip
        after(
            maps.to_page.click(
                lambda feature: (feature, gr.update(selected="features"), "features"), maps.feature,
                [features.feature, tabs, tab_key], api_visibility="private",
            ).success(shown(features.show), [features.atlas, features.feature], features.page,
                      api_visibility="private", concurrency_id="gpu")
        )  # fmt: skip

        @shown
        def to_map(atlas: str, feature: str) -> list[Any]:
            model_id = jobs.atlas(atlas).manifest["model_id"]
            return [model_id, str(parse_feature(feature)), gr.update(selected="maps"), "maps"]

        after(
            features.to_map.click(
                to_map, [features.atlas, features.feature],
                [model, maps.feature, tabs, tab_key], api_visibility="private",
            ).success(shown(maps.draw), maps.draw_inputs, maps.drawn, api_visibility="private", concurrency_id="gpu")
        )  # fmt: skip
        drawn_only = [i for i, component in enumerate(maps.shown) if component is not maps.feature]
        opened = [tabs, *link, maps.photo, facts, *(maps.shown[i] for i in drawn_only), features.page]
        opened += experiments.result

        @shown
        def open_page(request: gr.Request) -> list[Any]:
            """Restore what the link says; then, with a GPU at hand, rank and draw."""
            values = _from_link(dict(request.query_params), own_model)
            result = values[1 + link.index(experiments.stored)]
            stored = experiments.show(result) if result else [gr.skip()] * len(experiments.result)
            nothing = [*[gr.skip()] * (len(opened) - len(values) - len(stored)), *stored]
            if not eager:
                return [*values, *nothing]
            _, tab, model_id, _, kind, layer, patch, feature, *_, atlas, page_feature, _, _, _, photo = values
            try:
                text, kind_update, layer_update = describe(model_id, kind, layer)
                values[4:6] = kind_update, layer_update
                kind, layer = kind_update["value"], layer_update["value"]
                drawn = maps.show(model_id, photo, kind, layer, patch, "unusual", "overlay", feature)
                page = features.show(atlas, page_feature) if tab == "features" and page_feature else gr.skip()
            except VitvizError as error:
                gr.Warning(html.escape(str(error)))
                return [*values, *nothing]
            values[7] = drawn[maps.shown.index(maps.feature)]
            return [*values, text, *(drawn[i] for i in drawn_only), page, *stored]

        loaded = demo.load(open_page, None, opened, api_visibility="private", concurrency_id="gpu", concurrency_limit=1)
        after(loaded.then(None, js=OPENED_JS, api_visibility="private"))
    demo.queue(max_size=30, default_concurrency_limit=2)
    return demo


def launch(
    host: str | None = None, port: int | None = None, gpu: Gpu = _no_gpu, eager: bool = True, **options: Any
) -> None:
    """Build the app and serve it until it is stopped.

    Args:
        options: passed on to `gr.Blocks.launch`.
    """
    build(None, gpu, eager).launch(
        server_name=host, server_port=port, css=_CSS, ssr_mode=False, mcp_server=True, run_history=False,
        max_file_size="30mb", footer_links=["api", "settings"], **options,
    )  # fmt: skip


def _from_link(query: dict[str, str], own_model: str) -> list[Any]:
    """Values of the tabs, the link's components and the photograph, from the address bar; odd ones are ignored."""
    photos = builtin_paths()
    photo = query.get("photo", "")
    if photo not in photos:
        photo = _FIRST_PHOTO if _FIRST_PHOTO in photos else next(iter(photos), "")
    tab = query["tab"] if query.get("tab") in ("optimize", "features", "views", "experiments") else "maps"
    number = _whole(query.get("filter"))
    results, result = stored_results(), query.get("result")
    kind, preset = query.get("kind"), query.get("preset")
    site = parse_feature(_FIRST_FEATURE).site
    layer, seed = _whole(query.get("layer")), _whole(query.get("seed"))
    return [
        gr.update(selected=tab), tab, query.get("model", own_model), photo, kind if kind in KINDS else site.kind,
        site.layer if layer is None else layer, query.get("patch", ""), query.get("feature", ""),
        query.get("objective", _FIRST_FEATURE), preset if preset in PRESETS else "auto", seed or 0,
        query.get("atlas", os.environ.get("VITVIZ_ATLAS", "")), query.get("shows", ""),
        result if result in results else next(iter(results), None), query.get("view", ""),
        -1 if number is None else number,
        str(photos[photo]) if photo else None,
    ]  # fmt: skip


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 10 else None
