"""What the app computes, without gradio. On ZeroGPU the three jobs run in a forked process: CPU data in and out."""

import html
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, fields, replace
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitviz_hf.atlas.page import check_model, feature_page
from vitviz_hf.atlas.store import Atlas, unusual_features
from vitviz_hf.config import BUILTIN
from vitviz_hf.errors import ConfigError, DatasetAccessError
from vitviz_hf.experiments.figures import encode_figure
from vitviz_hf.experiments.neurons.filters import check_filter, patch_filters, readable_filters
from vitviz_hf.experiments.neurons.live import group_plot, split_objects, views_by_level
from vitviz_hf.experiments.neurons.occlude import look
from vitviz_hf.experiments.neurons.views import check_patches, readable_patch
from vitviz_hf.experiments.perturb import occlude, shuffle, to_photo
from vitviz_hf.experiments.registry import EXPERIMENTS
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.hub import Token, is_hub_id
from vitviz_hf.images import open_image, pixels_to_image
from vitviz_hf.inside.words import as_searched, resolve_feature
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.models.seen import seen_box
from vitviz_hf.models.view import check_feature, find_tap, list_sites, to_pixels
from vitviz_hf.reading.classification import Classification
from vitviz_hf.reading.maps import rank_values
from vitviz_hf.reading.recording import activations, record_with_logits
from vitviz_hf.reading.reference import reference_at
from vitviz_hf.reading.tokens import check_sequence
from vitviz_hf.sites import KINDS, Feature, Site
from vitviz_hf.stream import open_source
from vitviz_hf.ui.cards import (
    Card,
    MapResult,
    RankResult,
    crop_exemplars,
    deviations,
    fitting_atlas,
    made_picture,
    measure,
    usual_values,
)
from vitviz_hf.ui.growing import Frame, Wanted, grow, keep, time_step
from vitviz_hf.ui.guiding import Guiding
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.stored import Shown, judged

_FRAME_SECONDS = 0.4
MAX_SAMPLE = 64
SAMPLED = {name: e for name, e in EXPERIMENTS.items() if e.least_images <= MAX_SAMPLE}
"""Experiments that a small sample is enough for."""
_SAMPLE = {"columns": 1, "rows": 3, "per_layer": 4, "preset": "fast", "steps": 24}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the app shows of a model."""

    model_id: str
    revision: str | None
    input_size: tuple[int, int]
    grids: tuple[tuple[int, int], ...]
    """The different patch grids, in order of the layers."""
    n_layers: int
    kinds: tuple[str, ...]
    n_features: int

    def __str__(self) -> str:
        grids = " to ".join(f"{r} x {c}" for r, c in dict.fromkeys((max(self.grids), min(self.grids))))
        name = f"{self.model_id} {self.revision[:8]}" if self.revision else self.model_id
        return (
            f"{name}: {self.n_layers} layers, {grids} patches at "
            f"{self.input_size[0]} x {self.input_size[1]} pixels, {self.n_features:,} features."
        )


@dataclass(frozen=True, slots=True)
class Viewed:
    """Views of one patch of a picture."""

    crop: Image.Image
    grid: tuple[int, int]
    patch: tuple[int, int]
    filter: int
    views: list[tuple[str, Image.Image]]
    text: str


class _Stopped(BaseException):
    """A visitor cancelled."""


class Jobs:
    """Jobs on the models and atlases of a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._guiding = Guiding(shelf)

    def best_crops(self, name: str, features: list[Feature]) -> list[tuple[Image.Image, str]]:
        """The most activating image of each feature, and its best word if it has one."""
        atlas = self._shelf.atlas(name)
        words = [atlas.best_word(f) for f in features]
        crops = [open_image(atlas.image(atlas.hits(f)[0].row).jpeg) for f in features]
        return list(zip(crops, words, strict=True))

    def find_word(self, name: str, word: str, n: int) -> list[tuple[Feature, float]]:
        """The n features that a word names best, with the agreement."""
        return self._shelf.atlas(name).find_word(word or "", n)

    def page(self, snapshot: Snapshot, name: str, feature: Feature) -> str:
        """The page of a feature as HTML."""
        atlas = self._shelf.atlas(name)
        return feature_page(as_searched(self._shelf.view(snapshot), atlas.manifest), atlas, feature)

    def find(self, snapshot: Snapshot, atlas: Atlas, image: Image.Image, n: int) -> list[tuple[Feature, float]]:
        """The features whose statistics in an atlas a picture exceeds most, with the deviations above the mean."""
        view = as_searched(self._shelf.view(snapshot), atlas.manifest)
        check_model(view, atlas)
        sites = list(atlas.sites)
        acts = activations(view, to_pixels(view, image), sites)
        reduce = atlas.manifest["reduce"]
        scores = {s: acts[s].scores(reduce)[0].cpu().numpy() for s in sites}
        return unusual_features(atlas, scores, n)

    def facts(self, snapshot: Snapshot) -> ModelFacts:
        """Layers, kinds and sizes of a model. Needs no GPU."""
        view = self._shelf.described(snapshot)
        find_tap(view, Site(0, "mlp_act"))
        kinds = tuple(k for k in view.kinds if any(k in layer.taps for layer in view.layers))
        return ModelFacts(
            view.model_id,
            view.revision,
            view.input_size,
            tuple(dict.fromkeys(layer.patch_grid for layer in view.layers)),
            len(view.layers),
            kinds,
            sum(n for _, n in list_sites(view)),
        )

    def rank(
        self,
        snapshot: Snapshot,
        image: Image.Image,
        site: Site,
        patch: tuple[int, int] | None,
        unusual: bool,
        k: int,
        chosen_on: tuple[int, int] | None = None,
        chosen: Atlas | None = None,
    ) -> RankResult:
        """The k features of a site that fire most on a picture or one of its patches.

        Args:
            chosen_on: the patch grid that `patch` was chosen on, if it is to be moved to the same place on this one.
            chosen: whose photographs count as usual, where it fits.
        """
        view = self._shelf.view(snapshot)
        pixels, reference = to_pixels(view, image), self._shelf.reference(view)
        atlas = fitting_atlas(self._shelf, view, site, chosen)
        classes: list[tuple[str, float]] = []
        if view.labels:
            with torch.no_grad():
                acts, logits = record_with_logits(view, pixels, [site])
            classes = Classification(logits, view.labels).top(3)[0]
        else:
            acts = activations(view, pixels, [site])
        own = acts[site]
        grid = own.tap.patch_grid
        if patch and chosen_on:
            patch = (patch[0] * grid[0] // chosen_on[0], patch[1] * grid[1] // chosen_on[1])
        usual = usual_values(reference, atlas, site, patch is not None)
        scores = (own.at(patch).float() if patch else own.scores())[0].cpu()
        ranked = rank_values(view, site, deviations(scores, usual) if unusual else scores, k)
        fired = measure(own, [f for f, _ in ranked], usual, patch)
        cards = [
            Card(
                f,
                crop_exemplars(self._shelf, view, atlas, f.feature),
                made_picture(atlas, f.feature),
                atlas.agreement(f.feature) if atlas else None,
            )
            for f in fired
        ]
        return RankResult(_picture(pixels[0]), grid, patch, cards, classes, seen_box(view, image.size))

    def map(
        self,
        snapshot: Snapshot,
        image: Image.Image,
        address: str,
        at: tuple[Site, tuple[int, int]] | None = None,
        chosen: Atlas | None = None,
    ) -> MapResult:
        """The activation map of one feature, and what it does on the picture or on one patch.

        Args:
            address: of a feature, or a text or label that is one.
            at: a patch, for a feature of this site only.
            chosen: as in `rank`.
        """
        view, feature = resolve_feature(self._shelf.view(snapshot), address)
        check_feature(view, feature)
        patch = at[1] if at and at[0] == feature.site else None
        pixels = to_pixels(view, image)
        acts = activations(view, pixels, [feature.site])[feature.site]
        atlas = fitting_atlas(self._shelf, view, feature.site, chosen)
        words = "" if feature.site.kind in KINDS else address
        reference = reference_at(view, feature.site, self._shelf.reference)
        usual = usual_values(reference, atlas, feature.site, patch is not None)
        fired = measure(acts, [feature], usual, patch)[0]
        return MapResult(_picture(pixels[0]), replace(fired, words=words))

    def patch_views(
        self,
        snapshot: Snapshot,
        image: Image.Image,
        patch: tuple[int, int] | None,
        index: int | None,
        scale: str = "linear",
        painted: NDArray[np.bool_] | None = None,
        change: tuple[str, float] | None = None,
    ) -> Viewed:
        """What the token of a patch has gathered by level, of a picture and of its changed form.

        Args:
            patch: (row, column); the one whose views are lit most widely if None.
            index: filter; one in which pictures are readable if None.
            scale: of brightness, `linear` or `log`.
            painted: what the visitor marked on the crop, at any size.
            change: `random`, `salient` or `non-salient` and the share that is blacked out, or `shuffle` and the tiles
                in a row.
        """
        view = self._shelf.view(snapshot)
        filters, grid, n = patch_filters(view), view.layers[0].patch_grid, view.layers[0].n_prefix
        index = readable_filters(filters, 1)[0] if index is None else index
        check_filter(filters, index)
        photo = to_photo(view, image)
        seen = {"clean": look(view, photo, 0.5)}
        readable, sink, outshone = readable_patch(seen["clean"].joint)
        row, col = patch or divmod(readable, grid[1])
        check_patches([(row, col)], grid)
        pictures = {"clean": photo}
        mask = None if painted is None else split_objects(painted, view.input_size)
        how, amount = change or ("", 0.0)
        if how == "shuffle":
            pictures[f"shuffled {amount:.0f} x {amount:.0f}"] = shuffle(photo, mask, int(amount)).photo
        elif how:
            pictures[f"{how} {amount:.0%} black"] = occlude(photo, mask, how, amount, min(14, *grid)).photo
        token = n + row * grid[1] + col
        seen |= {name: look(view, other, 0.5) for name, other in pictures.items() if name not in seen}
        views = views_by_level(view, filters, pictures, seen, index, token, scale)
        own = seen["clean"].joint.views[:, token, row * grid[1] + col]
        chosen = "" if patch else " (chosen since its views are lit most widely)"
        text = f"Patch {row},{col}{chosen} through filter {index}. "
        if 2 * outshone > grid[0] * grid[1]:
            text += f"At the end patch {sink // grid[1]},{sink % grid[1]} outshines most others, in the views of "
            text += f"{outshone} patches: nearly black where brightness is linear. "
        text += "Its own part of what it holds: " + ", ".join(
            f"{x:.0%}" for x in (own / seen["clean"].joint.views[:, token].sum(-1).clamp_min(1e-12)).tolist()
        )
        for name, what in seen.items():
            if what.probabilities is not None and view.labels:
                (label, p), *_ = Classification(what.probabilities[None].log(), view.labels).top(1)[0]
                text += f". {name}: {html.escape(label)} {p:.0%}"
        return Viewed(_picture(to_pixels(view, image)[0]), grid, (row, col), index, views, text + ".")

    def groups(
        self, snapshot: Snapshot, image: Image.Image, painted: NDArray[np.bool_] | None, layer: int | None
    ) -> str:
        """t-SNE of the patches of a picture after a layer, from 0, as HTML; after the last if None."""
        view = self._shelf.view(snapshot)
        check_sequence(view)
        layer = len(view.layers) - 1 if layer is None else layer
        if not 0 <= layer < len(view.layers):
            raise ConfigError(f"layers go from 1 to {len(view.layers)} here, 0 is the last; got {layer + 1}.")
        photo = to_photo(view, image)
        mask = np.zeros(view.input_size, np.int64) if painted is None else split_objects(painted, view.input_size)
        return group_plot(view, photo, mask, layer)

    def experiment(
        self, snapshots: list[Snapshot], name: str, dataset: str, limit: int, token: Token = False
    ) -> Generator["tuple[int, int] | Shown"]:
        """A small sample of an experiment: how far it is, every 0.4 s, and at the end what it found.

        Args:
            token: the visitor's own, where the dataset needs it.

        Raises:
            VitvizError: what does not fit, see `run_experiment`.
        """
        experiment = EXPERIMENTS[name]
        if dataset and dataset != BUILTIN and not is_hub_id(dataset):
            raise DatasetAccessError(f"{dataset!r} is not a Hub id; write OWNER/NAME, or 'builtin'.")
        known = {f.name for f in fields(experiment.config)}
        wanted = {"limit": max(1, min(limit, MAX_SAMPLE)), "batch": 16, **_SAMPLE}
        config = experiment.config(**{k: v for k, v in wanted.items() if k in known})
        views = self._shelf.views(snapshots)
        told: Queue[tuple[int, int]] = Queue()
        going, stop = threading.Event(), threading.Event()

        def progress(done: int, n: int) -> None:
            going.wait()  # between two frames it is another job's turn
            if stop.is_set():
                raise _Stopped
            told.put((done, n))

        def work() -> Shown:
            source = open_source(dataset, token=token) if dataset and experiment.dataset != "none" else None
            with TemporaryDirectory(prefix="vitviz-") as folder:
                result = run_experiment(name, views, source, config, Path(folder), progress)
            figures = {title: encode_figure(figure, "png") for title, figure in result.figures.items()}
            title = f"{name} of {', '.join(view.model_id for view in views)}, a small sample"
            tables = {"table": result.tables["table"].to_markdown()}
            return Shown(title, name, experiment.source, tables, figures, judged(name, result.found))

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(work)
            try:
                latest = 0, 0
                while not running.done():
                    going.set()
                    wait([running], timeout=_FRAME_SECONDS)
                    going.clear()
                    while not told.empty():
                        latest = told.get()
                    yield latest  # while it downloads too: others have the device between two frames
                yield running.result()
            finally:
                stop.set()
                going.set()

    def optimize(self, snapshot: Snapshot, asked: Wanted) -> Generator[tuple[int, int] | Frame]:
        """How many of how many real images it has read, then the frames of an optimization, see `grow`."""
        view = self._shelf.view(snapshot)
        guided = yield from self._guiding.guide_run(view, asked)
        yield from grow(view, asked, guided)

    def keep(self, snapshot: Snapshot, asked: Wanted, frame: Frame) -> Frame:
        """The picture of a run that was stopped, see `keep`."""
        return keep(self._shelf.view(snapshot), asked, frame)

    def pace(self, snapshot: Snapshot) -> float:
        """Seconds that a copy takes in a step, see `time_step`."""
        return time_step(self._shelf.view(snapshot))


def experiment_seconds(name: str) -> int:
    """GPU time to ask for the first time."""
    return 60 if EXPERIMENTS[name].dataset == "labelled" else 120


def _picture(pixels: Tensor) -> Image.Image:
    return pixels_to_image(pixels.float().cpu().numpy())
