"""The public endpoints, for gradio_client and MCP: plain text and numbers in, named values out.

They stand on hidden components and not on `gr.api`, which hands a stranger's file path over as it came: a component
takes only what was uploaded.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from vitviz_hf.images import color_bar
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.sites import Feature, Site, parse_feature, parse_site
from vitviz_hf.ui.cards import Fired, MapResult
from vitviz_hf.ui.drawing import STYLES, draw_map, enlarge, map_scale
from vitviz_hf.ui.events import LATEST, answered, one_word, open_photo, photo_input, typed_patch, whole_number
from vitviz_hf.ui.experiments_tab import ExperimentsTab
from vitviz_hf.ui.growing import Frame
from vitviz_hf.ui.growth import side_by_side
from vitviz_hf.ui.jobs import SAMPLED
from vitviz_hf.ui.optimize_tab import OptimizeTab, to_wanted
from vitviz_hf.ui.page import Page
from vitviz_hf.ui.statistics import atlas_rows, atlas_statistics, model_rows
from vitviz_hf.ui.stored import Shown, decoded, stored_result
from vitviz_hf.ui.telling import before_it, summary

Json = Any
_MOST = 200
_KINDS: dict[str, Callable[..., Any]] = {
    "picture": lambda label: gr.Image(label=label, format="png", visible=False),
    "pictures": lambda label: gr.Gallery(label=label, format="png", visible=False),
    "text": lambda label: gr.Textbox(label=label, visible=False),
    "html": lambda label: gr.HTML(label=label, visible=False),
    "data": lambda label: gr.JSON(label=label, visible=False),
    "file": lambda label: gr.File(label=label, visible=False),
    "files": lambda label: gr.File(label=label, visible=False, file_count="multiple"),
}


class Api:
    """The endpoints; each is a method with its name."""

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.jobs = page, page.shelf, page.jobs
        jobs, device = page.jobs, page.on_device
        self.rank_job, self.map_job = device(60, jobs.rank), device(60, jobs.map)
        self.page_job, self.view_job = device(30, jobs.page), device(30, jobs.patch_views)
        self.rows_job = device(60, self._model_rows)
        self._takes: dict[tuple[str, Any], Any] = {}
        self._gives: dict[tuple[str, str], Any] = {}

    def connect(self) -> None:
        """Lay the hidden components out and connect them."""
        self.publish(self.rank_features, crop="picture", maps="pictures", sentence="text", features="data")
        self.publish(self.map_feature, map="picture", scale="picture", sentence="text", values="data")
        self.publish(self.activations, values="data")
        made = {"picture": "picture", "sentence": "text", "file": "file", "values": "data", "files": "files"}
        self.publish(self.visualize, **made)
        self.publish(self.browse, values="data")
        self.publish(self.sort_features, images="pictures", features="data")
        self.publish(self.find_word, images="pictures", features="data")
        self.publish(self.feature_page, page="html")
        self.publish(self.show_view, crop="picture", views="pictures", sentence="text", values="data")
        self.publish(self.show_result, tables="text", figures="pictures")
        self.publish(self.run_experiment, sentence="text", tables="text", figures="pictures")
        self.publish(self.model_facts, sentence="text", values="data")

    def publish(self, function: Callable[..., Any], **gives: str) -> None:
        """An endpoint with the function's name and parameters; `gives` is what it returns, name -> kind."""
        takes = [self._input(p) for p in inspect.signature(function).parameters.values()]
        for label, kind in gives.items():
            if (label, kind) not in self._gives:
                self._gives[label, kind] = _KINDS[kind](label)
        gr.Button(visible=False).click(
            answered(function),
            takes,
            [self._gives[label, kind] for label, kind in gives.items()],
            api_name=function.__name__,
            show_progress="hidden",
            **LATEST,
        )

    def _input(self, parameter: inspect.Parameter) -> Any:
        """The component of a parameter; one without a default must be given."""
        name, default = parameter.name, None if parameter.default is inspect.Parameter.empty else parameter.default
        if (name, default) not in self._takes:
            if name.endswith("image"):
                component: Any = photo_input(label=name, visible=False)
            elif parameter.annotation is str:
                component = gr.Textbox(default, label=name, visible=False)
            else:
                component = gr.Number(default, label=name, visible=False)  # `whole_number` refuses what it would round
            self._takes[name, default] = component
        return self._takes[name, default]

    def rank_features(
        self, model_id: str, image: str, kind: str, layer: int, patch: str = "", rank_by: str = "unusual", n: int = 12
    ) -> tuple[Any, ...]:
        """Rank the features of one layer by how strongly they fire on a picture, or on one patch of it.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            image: the picture.
            kind: mlp_act (neurons), mlp_in, mlp_out, attn_in, attn_q, attn_k, attn_v, attn_mix, attn_out or resid.
            layer: layer number from 0.
            patch: row and column of a patch from 0, such as 3,4; empty for the whole picture.
            rank_by: 'unusual' (standard deviations above the photographs of the server's atlas, or above the built-in
                ones; the sentence says which) or 'score'.
            n: how many, at most 200.

        Returns:
            The model's crop, maps with address and value, a sentence, and the same addresses and values as data.
        """
        unusual = one_word("rank_by", rank_by, ("unusual", "score")) == "unusual"
        site, at = Site(whole_number("layer", layer), kind), typed_patch(patch)
        n = whole_number("n", n, 1, _MOST)
        result = self.rank_job(self.shelf.snapshot(model_id), open_photo(image), site, at, unusual, n)
        fired = [card.fired for card in result.cards]
        maps = [(draw_map(result.crop, f, "overlay"), f"{f.feature}  {getattr(f, rank_by):.3g}") for f in fired]
        where = "patch {},{}".format(*result.patch) if result.patch else "the whole picture"
        by = f"standard deviations above {fired[0].against}" if unusual else "plain score"
        text = f"Layer {site.layer}, {site.kind}, {where}. Ranked by {by}."
        if result.classes:
            text += " The model's own guess: " + ", ".join(f"{name} {p:.0%}" for name, p in result.classes) + "."
        return result.crop, maps, text, [_told(f) for f in fired]

    def map_feature(self, model_id: str, image: str, feature: str, style: str = "overlay") -> tuple[Any, ...]:
        """Draw the activation map of one feature on a picture.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            image: the picture.
            feature: address such as 5.mlp_act:10, label:tabby, or text:"striped fur" for models with a text tower.
            style: 'overlay' on the picture, 'heatmap' alone, or 'signed' with negative values painted too.

        Returns:
            The map, its color scale, a sentence, and range, mean and place of the maximum as data.
        """
        one_word("style", style, STYLES)
        result = self._map(model_id, image, feature)
        crop = enlarge(result.crop)
        scale, told = map_scale(result.fired, style), _numbers(result.fired)
        drawn = draw_map(crop, result.fired, style)
        text = (
            f"{told['feature']}: values {told['min']:.3g} to {told['max']:.3g} on {told['rows']} x {told['columns']} "
            f"patches, mean {told['mean']:.3g}, {told['unusual']:+.1f} sd from {result.fired.against}."
        )
        return drawn, color_bar((crop.width, 48), scale), text, told

    def activations(self, model_id: str, image: str, feature: str) -> Json:
        """The activation map of one feature on a picture, as numbers.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            image: the picture.
            feature: address such as 5.mlp_act:10, label:tabby, or text:"striped fur" for models with a text tower.

        Returns:
            feature, rows and columns of the patch grid, values row by row, min, max, mean, place ([row, column] of the
            maximum, from 0), and unusual: standard deviations of the mean above that of photographs (of the server's
            atlas, or the built-in ones).
        """
        result = self._map(model_id, image, feature)
        return {**_numbers(result.fired), "values": result.fired.values.astype(float).tolist()}

    def _map(self, model_id: str, image: str, feature: str) -> MapResult:
        asked = self.shelf.snapshot(model_id), open_photo(image), feature or ""
        found: MapResult = self.map_job(*asked)
        return found

    def visualize(
        self,
        model_id: str,
        feature: str,
        preset: str = "auto",
        steps: int = 0,
        seed: int = 0,
        pictures: int = 1,
        image: str | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Optimize pictures that maximize a feature; streams them as they grow.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            feature: address such as 5.mlp_act:10, at the class token (5.mlp_act:10@cls) or a patch (5.mlp_act:10@3,4:
                row, column), logit:207 or logit:tabby, or a sum of them; a minus in front minimizes.
            preset: auto (aligned for a feature of an atlas of the server; else fast, or fourier where there is a GPU),
                paper, paper-clip, fourier, fast, aligned (made from the most activating images of the server's atlas,
                or from built-in photographs), or accent (starts from the image).
            steps: optimizer steps; 0 for the preset's.
            seed: same seed, same picture (auto: while the server has the same atlases).
            pictures: 1 to 4, with this seed and the next ones.
            image: a photograph, for the preset accent only.

        Returns:
            The picture (several side by side), a sentence with its score, at the end the first PNG, which carries its
            recipe, scores as data (those of several in 'pictures'), and all PNGs.
        """
        tab = self.page.tab(OptimizeTab)
        asked = tab.with_images(to_wanted(feature, preset, steps, seed, pictures), image)
        for moment in tab.frames(model_id, asked):
            if not isinstance(moment, Frame):
                yield None, before_it(moment), None, None, None
                continue
            text, files = f"Step {moment.index + 1} of {moment.steps}", None
            if moment.finished:
                text = summary(moment)
                files = [tab.store(g.result, len(moment.pictures) > 1) for g in moment.pictures if g.result]
            else:
                text += ", score " + ", ".join(f"{grown.score:.3g}" for grown in moment.pictures)
            several = len(moment.pictures) > 1
            one = files[0] if files else moment.pictures[0].picture
            picture = side_by_side([grown.picture for grown in moment.pictures]) if several else one
            yield picture, text, files and files[0], moment.numbers(), files

    def browse(
        self, model_id: str, site: str, offset: int = 0, n: int = 24, atlas: str = "", sort: str = "index"
    ) -> Json:
        """List the features of one site with their statistics.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'; not read with an atlas, which names its
                own.
            site: layer and kind such as 5.mlp_act.
            offset: how many to leave out first.
            n: how many, at most 200.
            atlas: Hub id of an atlas whose statistics are wanted; empty for those on the built-in photographs.
            sort: 'index', or a value, largest first: 'maximum', 'unusual' (maximum in standard deviations above the
                mean) or 'sparse' (share of patches that are not active).

        Returns:
            site, total (number of its features), offset, images (how many were read), and features: a list with
            feature, mean, std, maximum, unusual, sparse, fires (on any patch of any image), the best image, and with an
            atlas the best word.
        """
        offset, n = whole_number("offset", offset), whole_number("n", n, 1, _MOST)
        if (atlas or "").strip():
            return atlas_rows(self.shelf.atlas(atlas), parse_site(site or "", None), sort, offset, n)
        return self.rows_job(self.shelf.snapshot(model_id), site or "", sort, offset, n)

    def _model_rows(self, snapshot: Snapshot, site: str, sort: str, offset: int, n: int) -> dict[str, Any]:
        view = self.shelf.view(snapshot)
        return model_rows(view, parse_site(site, view.kinds), sort, offset, n)

    def sort_features(self, atlas: str, site: str, sort: str = "maximum") -> tuple[Any, ...]:
        """List features of an atlas with their most activating image.

        Args:
            atlas: Hub id of a dataset made by 'vitviz search'.
            site: layer and kind such as 5.mlp_act.
            sort: 'maximum', 'unusual' (maximum in standard deviations above the mean) or 'sparse' (few patches are
                active); features that fire on no patch are left out.

        Returns:
            Pictures with address and value, and the same as data.
        """
        one_word("sort", sort, ("maximum", "unusual", "sparse"))
        known = atlas_statistics(self.shelf.atlas(atlas), parse_site(site or "", None))
        values = getattr(known, sort)
        return self._tiles(
            atlas, [(Feature(known.site, int(i)), float(values[i])) for i in known.order(sort, True)[:24]]
        )

    def find_word(self, atlas: str, word: str) -> tuple[Any, ...]:
        """Find the features that a word names, in an atlas that was named.

        Args:
            atlas: Hub id of a dataset made by 'vitviz search' and 'vitviz atlas name'.
            word: a word or part of one, such as fur.

        Returns:
            Pictures with address and agreement, and the same as data.
        """
        return self._tiles(atlas, self.jobs.find_word(atlas, word, 24))

    def _tiles(self, atlas: str, ranked: list[tuple[Any, float]]) -> tuple[Any, ...]:
        crops = self.jobs.best_crops(atlas, [f for f, _ in ranked])
        pictures = [(crop, f"{f}  {x:.3g}") for (crop, _), (f, x) in zip(crops, ranked, strict=True)]
        pairs = zip(crops, ranked, strict=True)
        return pictures, [{"feature": str(f), "value": x, "word": word} for (_, word), (f, x) in pairs]

    def feature_page(self, atlas: str, feature: str) -> str:
        """The page of a feature: most and least activating images with their maps, scores, neighbours.

        Args:
            atlas: Hub id of a dataset made by 'vitviz search'.
            feature: address such as 5.mlp_act:10.

        Returns:
            HTML with the pictures inside.
        """
        opened = self.shelf.atlas(atlas)
        return str(self.page_job(self.shelf.snapshot_of(opened), atlas, parse_feature(feature or "", None)))

    def show_view(
        self, model_id: str, image: str, patch: str = "", filter_number: int = -1, brightness: str = "log"
    ) -> tuple[Any, ...]:
        """Show what the token of a patch has gathered of the picture, from the patch embedding to the last level.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            image: the picture.
            patch: row and column from 0 such as 3,4; empty for the one whose views are lit most widely.
            filter_number: filter of the patch embedding from 0; -1 for one in which pictures are readable.
            brightness: log (the same for all views) or linear (relative to the largest weight of each view).

        Returns:
            The model's crop, a picture for each level, a sentence, and patch and filter as data.
        """
        number = whole_number("filter_number", filter_number, -1)
        scale = one_word("brightness", brightness, ("linear", "log"))
        asked = open_photo(image), typed_patch(patch), None if number < 0 else number, scale
        seen = self.view_job(self.shelf.snapshot(model_id), *asked)
        views = [(picture, caption) for caption, picture in seen.views]
        return seen.crop, views, seen.text, {"patch": list(seen.patch), "filter": seen.filter}

    def show_result(self, result: str) -> tuple[Any, ...]:
        """Show a stored result of an experiment.

        Args:
            result: its name, such as token-mixing; a wrong one is answered with those that there are.

        Returns:
            Tables as markdown, and figures.
        """
        return _result(stored_result(result))

    def run_experiment(
        self, model_id: str, experiment: str, others: str = "", dataset: str = "", limit: int = 16
    ) -> Iterator[tuple[Any, ...]]:
        """Run a small sample of an experiment of the papers.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            experiment: token-mixing, background, low-pass, position, occlusion, spatial, progression, narrow-sites,
                triplets or concepts.
            others: more Hub ids to compare with, commas between.
            dataset: Hub id of a dataset, or 'builtin'; empty for experiments that need none.
            limit: images to read.

        Returns:
            A sentence, tables as markdown, and figures.
        """
        one_word("experiment", experiment, SAMPLED)
        for moment in self.page.tab(ExperimentsTab).moments(model_id, experiment, others, dataset, limit):
            if isinstance(moment, Shown):
                yield (f"{experiment}: done, a sample only.", *_result(moment))
            else:
                yield str(moment), "", []

    def model_facts(self, model_id: str, kind: str = "mlp_act", layer: int = 0) -> tuple[Any, ...]:
        """Load a model and tell its layers, patch grids and kinds.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            kind: the kind that is chosen; mlp_act is given back if the model lacks it.
            layer: the layer that is chosen; the last one is given back if the model has fewer.

        Returns:
            A sentence; and model_id, revision, input_size (height, width), patch_grids (rows, columns), layers, kinds,
            features (their number), kind and layer as data.
        """
        known = self.jobs.facts(self.shelf.snapshot(model_id))
        data = {
            "model_id": known.model_id,
            "revision": known.revision or "",
            "input_size": list(known.input_size),
            "patch_grids": [list(grid) for grid in known.grids],
            "layers": known.n_layers,
            "kinds": list(known.kinds),
            "features": known.n_features,
            "kind": kind if kind in known.kinds else "mlp_act",
            "layer": min(whole_number("layer", layer), known.n_layers - 1),
        }
        return str(known), data


def _told(fired: Fired) -> dict[str, Any]:
    return {"feature": str(fired.feature), "score": fired.score, "unusual": fired.unusual}


def _numbers(fired: Fired) -> dict[str, Any]:
    values = fired.values.astype(float)
    row, column = divmod(int(values.argmax()), values.shape[1])
    return {
        "feature": fired.name,
        "rows": values.shape[0],
        "columns": values.shape[1],
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean()),
        "place": [row, column],
        "unusual": fired.unusual,
    }


def _result(shown: Shown) -> tuple[str, list[tuple[Any, str]]]:
    return shown.text, decoded(shown)
