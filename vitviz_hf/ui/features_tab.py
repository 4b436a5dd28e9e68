"""Tab Features: an atlas to browse, and the page of each feature."""

import html
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vitviz_hf.sites import parse_feature, parse_site
from vitviz_hf.ui.common import Gpu, open_photo, shown
from vitviz_hf.ui.jobs import Jobs

_SHOWN = 24
_SORTS = {
    "highest score": "maximum", "far above its mean": "unusual", "sparse: few patches active": "sparse",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FeaturesTab:
    """The components that a link restores or other tabs fill."""

    atlas: gr.Textbox
    feature: gr.Textbox
    to_map: gr.Button
    connect: Callable[[Callable[[Any], Any], gr.Image], None]
    show: Callable[[str, str], str]
    page: gr.HTML


def build_features_tab(jobs: Jobs, gpu: Gpu) -> FeaturesTab:
    """Lay the tab out; events are connected by `connect(after, photo)`."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            atlas = gr.Textbox(
                os.environ.get("VITVIZ_ATLAS", ""), label="Atlas: a Hub dataset made by vitviz search", max_lines=1,
                elem_id="atlas", placeholder="OWNER/NAME",
            )  # fmt: skip
            open_button = gr.Button("Open", variant="primary", elem_id="open-atlas")
            facts = gr.Markdown(elem_id="atlas-facts")
            site = gr.Dropdown([], label="Site", elem_id="atlas-site")
            sort = gr.Radio(list(_SORTS.items()), value="maximum", label="Sort by", elem_id="atlas-sort")
            find = gr.Button("Find the features of the picture in Activation maps", elem_id="find")
            word = gr.Textbox(
                label="Find features by a word", placeholder="fur, water, from above ...", elem_id="find-word",
                max_lines=1, info="in atlases that were named with 'vitviz atlas name'",
            )  # fmt: skip
            gallery = gr.Gallery(
                label="Features, each with its most activating image: choose one", columns=3, allow_preview=False,
                interactive=False, format="jpeg", elem_id="features", height="auto", buttons=[], object_fit="cover",
            )  # fmt: skip
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                feature = gr.Textbox(
                    label="Feature: layer.kind:index, Enter shows its page",
                    elem_id="page-feature",
                    max_lines=1,
                    scale=2,
                )
                to_map = gr.Button("Map it on my picture", elem_id="to-map", min_width=140)
            page = gr.HTML(elem_id="page", label="Page of the feature")
    listed = gr.State([])
    page_job, find_job = gpu(30)(jobs.page), gpu(30)(jobs.find)

    def tiles(name: str, features: list[tuple[Any, str]]) -> list[Any]:
        crops = jobs.best_crops(name, [f for f, _ in features])
        return [
            [(crop, f"{f}  {text}  {word}".strip()) for (crop, word), (f, text) in zip(crops, features, strict=True)],
            [str(f) for f, _ in features],
        ]

    def browse(name: str, site: str, sort: str) -> list[Any]:
        ranked = jobs.sorted_features(name, parse_site(site), sort, _SHOWN)
        return tiles(name, [(f, f"{value:.3g}") for f, value in ranked])

    def show(name: str, feature: str) -> str:
        return str(page_job(jobs.prepare_atlas(name), name, parse_feature(feature)))

    @shown
    def open_it(name: str, sort: str) -> list[Any]:
        known = jobs.atlas(name)
        sites = [str(s) for s in known.sites]
        m = known.manifest
        text = (
            f"**{html.escape(m['model_id'])}** on {html.escape(m['dataset'])}: {sum(known.sites.values()):,} features, "
            f"{m['n_images']:,} images, the {m['k']} most and least activating of each."
        )
        chosen = sites[len(sites) // 2]
        return [text, gr.update(choices=sites, value=chosen), *browse(name, chosen, sort)]

    @shown
    def sort_features(atlas: str, site: str, sort: str) -> list[Any]:
        """List features of an atlas with their most activating image.

        Args:
            atlas: Hub id of a dataset made by 'vitviz search'.
            site: layer and kind such as 5.mlp_act.
            sort: 'maximum', 'unusual' (maximum in standard deviations above the mean) or 'sparse'.

        Returns:
            Pictures with address and value, and the addresses.
        """
        return browse(atlas, site, sort)

    @shown
    def feature_page(atlas: str, feature: str) -> str:
        """The page of a feature: most and least activating images with their maps, scores, neighbours.

        Args:
            atlas: Hub id of a dataset made by 'vitviz search'.
            feature: address such as 5.mlp_act:10.

        Returns:
            HTML with the pictures inside.
        """
        return show(atlas, feature)

    @shown
    def find_features(name: str, photo: str | None) -> list[Any]:
        found = find_job(jobs.prepare_atlas(name), name, open_photo(photo), _SHOWN)
        return tiles(name, [(f, f"+{value:.1f} sd") for f, value in found])

    @shown
    def find_word(atlas: str, word: str) -> list[Any]:
        """Find the features that a word names, in an atlas that was named.

        Args:
            atlas: Hub id of a dataset made by 'vitviz search' and 'vitviz atlas name'.
            word: a word or part of one, such as fur.

        Returns:
            Pictures with address and agreement, and the addresses.
        """
        return tiles(atlas, [(f, f"{value:.1f} sd") for f, value in jobs.find_word(atlas, word, _SHOWN)])

    @shown
    def pick(name: str, listed: list[str], event: gr.SelectData) -> list[str]:
        return [listed[event.index], show(name, listed[event.index])]

    def connect(after: Callable[[Any], Any], photo: gr.Image) -> None:
        lane: dict[str, Any] = {"concurrency_id": "gpu", "concurrency_limit": 1, "trigger_mode": "always_last"}
        private: dict[str, Any] = {**lane, "api_visibility": "private"}
        hidden = gr.Button(visible=False)
        hidden.click(sort_features, [atlas, site, sort], [gallery, listed], api_name="sort_features", **lane)
        word.submit(find_word, [atlas, word], [gallery, listed], api_name="find_word", **lane)
        after(feature.submit(feature_page, [atlas, feature], page, api_name="feature_page", **lane))
        opening = gr.on(
            [open_button.click, atlas.submit], open_it, [atlas, sort], [facts, site, gallery, listed], **private
        )
        after(opening)
        gr.on([site.input, sort.input], sort_features, [atlas, site, sort], [gallery, listed], **private)
        find.click(find_features, [atlas, photo], [gallery, listed], **private)
        after(gallery.select(pick, [atlas, listed], [feature, page], **private))

    return FeaturesTab(atlas, feature, to_map, connect, show, page)
