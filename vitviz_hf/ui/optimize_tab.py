"""Tab Make a picture: the pictures that excite a feature most, as they grow."""

import html
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
from cachetools import LRUCache

from vitviz_hf.errors import ConfigError, VitvizError
from vitviz_hf.optimize.config import PRESETS, WHEN
from vitviz_hf.optimize.recipe import Visualization
from vitviz_hf.sites import file_stem, parse_feature
from vitviz_hf.templates import to_data_uri
from vitviz_hf.ui.beside import Beside
from vitviz_hf.ui.compare import compare_html, comparison
from vitviz_hf.ui.events import LATEST, ONCE, Runs, one_word, open_photo, shown, whole_number
from vitviz_hf.ui.files import keep_file
from vitviz_hf.ui.growing import ALIGNED, AUTO, Frame, Wanted, gpu_passes, gpu_seconds, passes_made
from vitviz_hf.ui.growth import Growth
from vitviz_hf.ui.guiding import chosen_atlas
from vitviz_hf.ui.lane import Stopped, unless_stopped
from vitviz_hf.ui.link import Kept, one_of, or_else, whole
from vitviz_hf.ui.maps_tab import FIRST_FEATURE, MapsTab
from vitviz_hf.ui.page import Page, Values
from vitviz_hf.ui.picker import picked_js, picker, scroll_js
from vitviz_hf.ui.telling import Before, before_it, picture_label, result_of, summary
from vitviz_hf.ui.tray import Tray, TrayPicture, find, put, tray_html

MAX_STEPS, MAX_PICTURES = 1000, 4
MAKE_CSS = """
#grown img { width: 100%; height: 100%; object-fit: contain; }
"""
_HEIGHTS = {1: 480, 2: 380, 3: 260, 4: 200}
_THUMBNAIL = 80
DREAM = "accent"
"""The preset that starts from the visitor's photograph."""
_WHEN = {
    AUTO: "aligned for a feature of the atlas in use in Browse features; else fast, or with a GPU fourier",
    **WHEN,
    DREAM: "the photograph in the tab Your picture, changed until it excites the feature",
    ALIGNED: f"{WHEN[ALIGNED]}; from the atlas in use in Browse features, else from built-in photographs",
}
_TITLES = {name: "Dream my photograph" if name == DREAM else name for name in (AUTO, *PRESETS)}
_TOLD = {name: f"{title}: {_WHEN[name]}." for name, title in _TITLES.items()}


class OptimizeTab:
    """The recipe on the left; the growing pictures, side by side, and those of the session on the right."""

    key, title = "optimize", "Make a picture"

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.runs = page, page.shelf, Runs()
        self.job = page.in_frames(gpu_seconds, gpu_passes, page.jobs.optimize, passes_made)
        self.keep_job = page.on_device(60, page.jobs.keep)
        self.pace_job = page.on_device(30, page.jobs.pace)
        beside = Beside(page.shelf)
        self.card_job, self.page_job = page.on_device(30, beside.card), page.on_device(30, beside.card_page)
        self._paces: LRUCache[object, float] = LRUCache(256)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self._lay_out_recipe()
            with gr.Column(scale=2, min_width=320):
                with gr.Row(elem_id="grown"):
                    places = [self._lay_out_place(i) for i in range(MAX_PICTURES)]
                self.compared = comparison()
                self.status = gr.Markdown("The picture appears within seconds and grows.", elem_id="optimize-status")
                self.growth = gr.DownloadButton("Download the growth (WebP)", interactive=False, elem_id="growth")
                self.tray = picker("tray", label="Pictures of this session", container=True, show_label=True)
                self.about = picker("objective-page", label="Page of the chosen feature")
        self.picked = gr.Textbox(visible="hidden", label="Picked picture")
        self.kept_pictures = gr.State(())
        """A `Tray`."""
        self.places, self.lives, self.downloads = (list(some) for some in zip(*places, strict=True))
        self.grown = [*self.places, *self.lives, *self.downloads, self.compared, self.status, self.growth]

    def _lay_out_place(self, i: int) -> tuple[gr.Column, gr.Image, gr.DownloadButton]:
        ending = f"-{i + 1}" if i else ""
        with gr.Column(min_width=150, visible=not i) as place:
            live = gr.Image(
                label="Optimized picture",
                interactive=False,
                format="png",
                elem_id=f"live{ending}",
                height=_HEIGHTS[1],
                alt_text="The picture that is being optimized",
                buttons=["fullscreen"],
            )
            download = gr.DownloadButton(
                "Download PNG with its recipe", interactive=False, elem_id=f"download{ending}", min_width=100
            )
        return place, live, download

    def _lay_out_recipe(self) -> None:
        self.objective = gr.Textbox(
            FIRST_FEATURE,
            label="Feature",
            elem_id="objective",
            max_lines=1,
            info="layer.kind:index, with @cls at the class token or @3,4 at one patch (row, column from 0); a class "
            "such as logit:17 or logit:tabby; or a sum such as 5.mlp_act:10 - 0.5*5.mlp_act:3; a minus in front "
            "minimizes",
        )
        self.card = picker("objective-card", label="The chosen feature")
        choices = [(title, name) for name, title in _TITLES.items()]
        self.preset = gr.Radio(choices, value=AUTO, label="Preset", elem_id="preset")
        self.when = gr.Markdown(_TOLD[AUTO], elem_id="preset-when")
        self.steps = gr.Number(
            0, label="Steps (0: the preset's)", precision=0, minimum=0, maximum=MAX_STEPS, elem_id="steps"
        )
        self.seed = gr.Number(0, label="Seed (same seed, same picture)", precision=0, minimum=0, elem_id="seed")
        self.pictures = gr.Radio(
            list(range(1, MAX_PICTURES + 1)),
            value=1,
            label="Pictures",
            elem_id="pictures",
            info="side by side, with this seed and the next ones",
        )
        self.estimated = gr.Markdown(elem_id="optimize-estimate")
        with gr.Row():
            self.start = gr.Button("Optimize", variant="primary", elem_id="optimize", min_width=120)
            self.cancel = gr.Button("Cancel", elem_id="cancel", min_width=120)

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps."""
        return [
            Kept("objective", self.objective, or_else(FIRST_FEATURE)),
            Kept("preset", self.preset, one_of(PRESETS, AUTO)),
            Kept("steps", self.steps, whole(0)),
            Kept("seed", self.seed, whole(0, 16)),
            Kept("pictures", self.pictures, lambda text: min(max(whole(1)(text), 1), MAX_PICTURES)),
        ]

    def connect(self) -> None:
        """Connect its events."""
        page, maps = self.page, self.page.tab(MapsTab)
        told = f"(preset) => ({json.dumps(_TOLD)})[preset]"
        self.preset.change(None, self.preset, self.when, js=told, api_visibility="private")
        # First: what a click starts is awaited before its next event.
        for started in (self.start.click, self.objective.submit):
            page.link(started(None, js=scroll_js("#grown"), api_visibility="private"))
        asked = [page.model, self.objective, self.preset, self.steps, self.seed, self.pictures]
        # One event, which runs once at a time: two runs at once would each add to the same tray.
        run = gr.on(
            [self.start.click, self.objective.submit],
            self.visualize,
            [*asked, self.kept_pictures, maps.photo, page.atlas],
            [*self.grown, self.kept_pictures, self.tray, self.start],
            show_progress="hidden",
            api_visibility="private",
            **ONCE,
        )
        run.then(lambda: gr.update(interactive=True), None, self.start, queue=False, api_visibility="private")
        self.cancel.click(self.stop, None, self.status, queue=False, api_visibility="private")
        changed = [self.preset.input, self.steps.input, self.pictures.input, self.start.click]
        gr.on(
            changed,
            self.estimate,
            [page.model, self.preset, self.steps, self.pictures],
            self.estimated,
            show_progress="hidden",
            api_visibility="private",
            **LATEST,
        )
        gr.on(
            [self.objective.change, page.loaded.change],
            self.show_card,
            [page.model, self.objective, page.atlas],
            self.card,
            show_progress="hidden",
            api_visibility="private",
            **LATEST,
        )
        for chosen in (self.card, self.about):
            asked, js = [page.model, self.objective, page.atlas], picked_js(str(chosen.elem_id), 1)
            told = chosen.click(self.show_page, asked, self.about, js=js, api_visibility="private", **LATEST)
            told.success(None, js=scroll_js("#objective-page", block="start"), api_visibility="private")
        neighbour = "() => [window.vitvizPicked['objective-page']]"
        page.link(self.about.click(None, None, self.objective, js=neighbour, api_visibility="private"))
        again = self.tray.click(
            self.show_again,
            [self.picked, self.kept_pictures],
            self.grown,
            js=picked_js("tray", 0),
            show_progress="hidden",
            api_visibility="private",
            **LATEST,
        )
        again.success(None, js=scroll_js("#live"), api_visibility="private")
        taken = [self.objective, self.preset, *page.going]
        for moves, how in ((maps.to_optimize, self.take), (maps.to_dream, self.take_photograph)):
            page.link(moves.click(how, [maps.feature, self.preset], taken, api_visibility="private"))

    def take(self, feature: str, preset: str) -> Values:
        """A feature of the tab Your picture, for a picture that does not start from the photograph there."""
        preset = AUTO if preset == DREAM else preset
        return {self.objective: feature, self.preset: preset, **self.page.go(OptimizeTab)}

    def take_photograph(self, feature: str, _: str) -> Values:
        """A feature of the tab Your picture, for a picture that starts from the photograph there."""
        return {self.objective: feature, self.preset: DREAM, **self.page.go(OptimizeTab)}

    def frames(self, model_id: str, asked: Wanted, stop: Event | None = None) -> Iterator[Before | Frame]:
        """A run: what comes before it, and its frames.

        Raises:
            Stopped: `stop` was set.
        """
        one_word("preset", asked.preset, (AUTO, *PRESETS))
        frames = self.job(unless_stopped(stop := stop or Event(), lambda: self.shelf.snapshot(model_id)), asked)
        yield from self.page.lane.run(frames, stop)

    def with_images(self, asked: Wanted, photo: str | None, atlas: str = "") -> Wanted:
        """With the real images that its preset takes.

        Raises:
            ConfigError: it takes a photograph, and there is none.
            ImageError: the photograph cannot be used.
            AtlasError: it needs an atlas, and that cannot be opened.
        """
        if asked.preset == DREAM:
            if not photo:
                raise ConfigError(
                    f"the preset '{DREAM}' starts from a photograph: choose or upload one in Your picture; a program "
                    "gives it as 'image'."
                )
            return replace(asked, photograph=open_photo(photo))
        return replace(asked, atlas=chosen_atlas(self.shelf, asked.preset, atlas))

    @shown
    def visualize(
        self,
        model_id: str,
        feature: str,
        preset: str,
        steps: float | None,
        seed: float | None,
        pictures: float | None,
        tray: Tray,
        request: gr.Request,
        photo: str | None = None,
        atlas: str = "",
    ) -> Iterator[Values]:
        """The pictures as they grow; those that are stopped are kept."""
        last: Frame | None = None
        with self.runs.one_for(request) as stop:
            try:
                asked = self.with_images(to_wanted(feature, preset, steps, seed, pictures), photo, atlas)
                # Until the end of the run, which after Cancel keeps the picture, a click would not be heard.
                loading = {self.status: "Loading the model ...", self.start: gr.update(interactive=False)}
                yield {**loading, **self._cleared(asked.pictures)}
                growth = Growth(asked.pictures)
                for frame in self.frames(model_id, asked, stop):
                    if not isinstance(frame, Frame):
                        yield {self.status: before_it(frame)}
                        continue
                    last = frame
                    growth.add([grown.picture for grown in frame.pictures])
                    yield self.ended(model_id, asked, frame, growth, tray) if frame.finished else self.shows(frame)
            except Stopped:
                if last and last.finished:
                    return
                yield {self.status: "Cancelled. The picture is being kept ..." if last else "Cancelled."}
                if last:
                    kept = self.keep_job(self.shelf.snapshot(model_id), asked, last)
                    values = self.ended(model_id, asked, kept, growth, tray)
                    yield {**values, self.status: f"Cancelled. {summary(kept)}"}
            except VitvizError as error:
                yield {self.status: html.escape(error.for_visitor), **({} if last else self._cleared(1))}
                raise

    def _cleared(self, n: int) -> Values:
        """Some empty places."""
        values: Values = {place: gr.update(visible=i < n) for i, place in enumerate(self.places)}
        values |= {live: gr.update(value=None, label="Optimized picture", height=_HEIGHTS[n]) for live in self.lives}
        values |= {button: gr.update(value=None, interactive=False) for button in (*self.downloads, self.growth)}
        return values | {self.compared: ""}

    def shows(self, frame: Frame) -> Values:
        """A moment of the run."""
        n = len(frame.pictures)
        several = ", ".join(f"{grown.score:.3g}" for grown in frame.pictures)
        dead = sum(grown.dead for grown in frame.pictures)
        text = f"Step {frame.index + 1} of {frame.steps}, score{'s' if n > 1 else ''} {several}"
        if dead:
            text += "; the feature does not fire yet" + (f" on {dead} of them" if n > 1 else "")
        values: Values = {self.status: text}
        for live, grown in zip(self.lives, frame.pictures, strict=False):
            values[live] = gr.update(value=grown.picture, label=picture_label(frame, grown))
        return values

    def ended(self, model_id: str, asked: Wanted, frame: Frame, growth: Growth, tray: Tray) -> Values:
        """The last moment of a run, with its files, which go on the tray."""
        # All of it again: gradio's page can lose a place that was shown a moment before the pictures came.
        values = self._cleared(len(frame.pictures)) | self.shows(frame) | {self.status: summary(frame)}
        film, name = growth.webp(), file_stem(result_of(frame.pictures[0]).recipe["address"])
        film_path = keep_file(self.growth, film, f"{name}-growth.webp") if film else None
        made = []
        for i, grown in enumerate(frame.pictures):
            result = result_of(grown)
            path = self.store(result, len(frame.pictures) > 1)
            values |= self._filed(
                i, path, picture_label(frame, grown), f"{result.recipe['address']}, seed {grown.seed}"
            )
            small = grown.picture.copy()
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            made.append(
                TrayPicture(
                    (tray[0].number if tray else 0) + i + 1,
                    model_id,
                    result.recipe["address"],
                    grown.seed,
                    ALIGNED if asked.preset == AUTO and result.recipe.get("guide") else asked.preset,
                    grown.score,
                    picture_label(frame, grown),
                    summary(frame),
                    to_data_uri(small, 70),
                    path,
                    film_path,
                )
            )
        kept = put(tray, made)
        film_button = gr.update(value=film_path, interactive=bool(film_path))
        values[self.compared] = compare_html([m.path for m in made])
        return {**values, self.growth: film_button, self.kept_pictures: kept, self.tray: tray_html(kept)}

    def store(self, result: Visualization, with_seed: bool = False) -> str:
        """The PNG with its recipe, where gradio serves it."""
        seed = f"-seed-{result.recipe['config']['seed']}" if with_seed else ""
        return keep_file(self.downloads[0], result.png(), f"{file_stem(result.recipe['address'])}{seed}.png")

    def _filed(self, i: int, path: str, label: str, what: str) -> Values:
        return {
            self.lives[i]: gr.update(value=path, label=label, alt_text=f"Optimized picture of {what}"),
            self.downloads[i]: gr.update(value=path, interactive=True),
        }

    @shown
    def show_again(self, number: str, tray: Tray) -> Values:
        """A picture of the tray."""
        kept = find(tray, number)
        film = kept.growth if kept.growth and Path(kept.growth).is_file() else None
        return {
            **self._cleared(1),
            **self._filed(0, kept.path, kept.label, f"{kept.address}, seed {kept.seed}"),
            self.compared: compare_html([kept.path]),
            self.growth: gr.update(value=film, interactive=bool(film)),
            self.status: kept.sentence,
        }

    @shown
    def estimate(self, model_id: str, preset: str, steps: float | None, pictures: float | None = 1) -> str:
        """How long it will take, where that is more than a minute."""
        snapshot = self.shelf.snapshot(model_id)
        key = snapshot.model_id, snapshot.revision
        if key not in self._paces:
            self._paces[key] = self.pace_job(snapshot)
        asked = Wanted("", preset, int(steps or 0), 0, int(pictures or 1))
        seconds = self._paces[key] * asked.passes("fast")
        return f"This takes about {seconds / 60:.0f} min without a GPU." if seconds > 60 else ""

    @shown
    def show_card(self, model_id: str, objective: str, atlas: str = "") -> str:
        """What else excites the feature that is entered; nothing for a sum or a class."""
        return self.card_job(self.shelf.snapshot(model_id), objective or "", chosen_atlas(self.shelf, AUTO, atlas))

    @shown
    def show_page(self, model_id: str, address: str, atlas: str = "") -> str:
        """The page of the feature of a card."""
        snapshot, feature = self.shelf.snapshot(model_id), parse_feature(address, None)
        return self.page_job(snapshot, feature, chosen_atlas(self.shelf, AUTO, atlas))

    @shown
    def first_look(self, card: str | None, *asked: str) -> Any:
        """The card when the tab is opened and shows none yet."""
        return gr.skip() if card else self.show_card(*asked)

    def stop(self, request: gr.Request) -> Any:
        """End the visitor's run, which may still be waiting."""
        return self.runs.stop(request)


def to_wanted(feature: str, preset: str, steps: float | None, seed: float | None, pictures: float | None = 1) -> Wanted:
    """What a visitor asks for, from boxes that may be empty.

    Raises:
        ConfigError: steps, seed or pictures out of range.
    """
    many = whole_number("pictures", pictures, 1, MAX_PICTURES)
    n, seed = whole_number("steps", steps or 0, 0, MAX_STEPS), whole_number("seed", seed or 0, 0, 2**53 - MAX_PICTURES)
    return Wanted(feature or "", preset, n, seed, many)
