"""Tab Make a picture: the picture that excites a feature most, as it grows."""

import html
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from threading import Event
from typing import Any

import gradio as gr
from cachetools import LRUCache

from vitviz_hf.errors import VitvizError
from vitviz_hf.optimize.config import PRESETS, VisualizeConfig
from vitviz_hf.optimize.recipe import Visualization
from vitviz_hf.sites import file_stem
from vitviz_hf.ui.beside import Beside
from vitviz_hf.ui.events import LATEST, Runs, one_word, shown, whole_number
from vitviz_hf.ui.growing import Frame, Wanted, gpu_seconds
from vitviz_hf.ui.lane import Stopped, Waiting
from vitviz_hf.ui.link import Kept, one_of, or_else, whole
from vitviz_hf.ui.maps_tab import FIRST_FEATURE, MapsTab
from vitviz_hf.ui.page import Page, Values
from vitviz_hf.ui.picker import picker

MAX_STEPS = 1000


class OptimizeTab:
    """The recipe on the left, the growing picture on the right."""

    key, title = "optimize", "Make a picture"

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.runs = page, page.shelf, Runs()
        self.job, self.keep_job = page.gpu(_duration)(page.jobs.optimize), page.on_device(60, page.jobs.keep)
        self.pace_job = page.on_device(30, page.jobs.pace)
        self.card_job = page.on_device(30, Beside(page.shelf).card)
        self._paces: LRUCache[object, float] = LRUCache(256)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self._lay_out_recipe()
            with gr.Column(scale=2, min_width=320):
                self.live = gr.Image(
                    label="Optimized picture",
                    interactive=False,
                    format="png",
                    elem_id="live",
                    height=480,
                    alt_text="The picture that is being optimized",
                    buttons=["fullscreen"],
                )
                self.status = gr.Markdown(
                    "The picture starts as noise and appears within seconds.", elem_id="optimize-status"
                )
                self.download = gr.DownloadButton("Download PNG with its recipe", interactive=False, elem_id="download")

    def _lay_out_recipe(self) -> None:
        self.objective = gr.Textbox(
            FIRST_FEATURE,
            label="Feature",
            elem_id="objective",
            max_lines=1,
            info="layer.kind:index, a class such as logit:17 or logit:tabby, or a sum such as "
            "5.mlp_act:10 - 0.5*5.mlp_act:3; a minus in front minimizes",
        )
        self.card = picker("objective-card", label="The chosen feature")
        self.preset = gr.Radio(
            ["auto", *PRESETS],
            value="auto",
            label="Preset",
            elem_id="preset",
            info="auto: fast without a GPU, fourier with one; paper: the recipe of arXiv:2212.06727",
        )
        self.steps = gr.Number(
            0, label="Steps (0: the preset's)", precision=0, minimum=0, maximum=MAX_STEPS, elem_id="steps"
        )
        self.seed = gr.Number(0, label="Seed (same seed, same picture)", precision=0, minimum=0, elem_id="seed")
        self.estimated = gr.Markdown(elem_id="optimize-estimate")
        with gr.Row():
            self.start = gr.Button("Optimize", variant="primary", elem_id="optimize", min_width=120)
            self.cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=120)

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps."""
        return [
            Kept("objective", self.objective, or_else(FIRST_FEATURE)),
            Kept("preset", self.preset, one_of(PRESETS, "auto")),
            Kept("steps", self.steps, whole(0)),
            Kept("seed", self.seed, whole(0)),
        ]

    def connect(self) -> None:
        """Connect its events."""
        page = self.page
        options: dict[str, Any] = {
            "fn": self.visualize,
            "inputs": [page.model, self.objective, self.preset, self.steps, self.seed],
            "outputs": [self.live, self.status, self.download],
            "show_progress": "hidden",
            **LATEST,
        }
        self.start.click(**options, api_visibility="private")
        self.objective.submit(**options, api_visibility="private")
        page.link(self.start.click(None, api_visibility="private"))
        page.link(self.objective.submit(None, api_visibility="private"))
        self.cancel.click(self.stop, None, self.status, queue=False, api_visibility="private")
        changed = [self.preset.input, self.steps.input, self.start.click]
        gr.on(
            changed,
            self.estimate,
            [page.model, self.preset, self.steps],
            self.estimated,
            show_progress="hidden",
            api_visibility="private",
            **LATEST,
        )
        gr.on(
            [self.objective.change, page.loaded.change],
            self.show_card,
            [page.model, self.objective],
            self.card,
            show_progress="hidden",
            api_visibility="private",
            **LATEST,
        )
        maps = page.tab(MapsTab)
        moved = maps.to_optimize.click(self.take, maps.feature, [self.objective, *page.going], api_visibility="private")
        page.link(moved)

    def take(self, feature: str) -> Values:
        """A feature of the tab Your picture."""
        return {self.objective: feature, **self.page.go(OptimizeTab)}

    def frames(self, model_id: str, asked: Wanted, stop: Event | None = None) -> Iterator[Waiting | Frame]:
        """A run: how it waits, and its frames.

        Raises:
            Stopped: `stop` was set.
        """
        one_word("preset", asked.preset, ("auto", *PRESETS))
        frames = self.job(self.shelf.snapshot(model_id), asked)
        yield from self.page.lane.run(frames, stop or Event())

    @shown
    def visualize(
        self,
        model_id: str,
        feature: str,
        preset: str,
        steps: float | None,
        seed: float | None,
        request: gr.Request,
    ) -> Iterator[Values]:
        """The picture as it grows; one that is stopped is kept."""
        off = gr.update(value=None, interactive=False)
        last: Frame | None = None
        with self.runs.one_for(request) as stop:
            yield {self.status: "Loading the model ...", self.live: gr.update(value=None), self.download: off}
            try:
                asked = to_wanted(feature, preset, steps, seed)
                for frame in self.frames(model_id, asked, stop):
                    yield {self.status: str(frame)} if isinstance(frame, Waiting) else self.shows(frame)
                    last = frame if isinstance(frame, Frame) else last
            except Stopped:
                if last and last.result:
                    return
                yield {self.status: "Cancelled."}
                if last:
                    kept = self.keep_job(self.shelf.snapshot(model_id), asked, last)
                    yield {**self.shows(kept), self.status: f"Cancelled. {summary(kept)}"}
            except VitvizError as error:
                yield {self.status: html.escape(error.for_visitor)}
                raise

    def shows(self, frame: Frame) -> Values:
        """A moment of the run; the last one brings the file."""
        label = f"Optimized picture: {frame.classes}" if frame.classes else "Optimized picture"
        if frame.result is None:
            dead = "; the feature does not fire yet" if frame.dead else ""
            text = f"Step {frame.index + 1} of {frame.steps}, score {frame.score:.3g}{dead}"
            return {self.live: gr.update(value=frame.picture, label=label), self.status: text}
        path = save_picture(frame.result)
        return {
            self.live: gr.update(value=str(path), label=label),
            self.status: summary(frame),
            self.download: gr.update(value=str(path), interactive=True),
        }

    @shown
    def estimate(self, model_id: str, preset: str, steps: float | None) -> str:
        """How long it will take, where that is more than a minute."""
        snapshot = self.shelf.snapshot(model_id)
        key = snapshot.model_id, snapshot.revision
        if key not in self._paces:
            self._paces[key] = self.pace_job(snapshot)
        seconds = self._paces[key] * _copies_in_all(preset, int(steps or 0))
        return f"This takes about {seconds / 60:.0f} minutes without a GPU." if seconds > 60 else ""

    @shown
    def show_card(self, model_id: str, objective: str) -> str:
        """What else excites the feature that is entered; nothing for a sum or a class."""
        return self.card_job(self.shelf.snapshot(model_id), objective or "")

    @shown
    def first_look(self, card: str | None, model_id: str, objective: str) -> Any:
        """The card when the tab is opened and shows none yet."""
        return gr.skip() if card else self.card_job(self.shelf.snapshot(model_id), objective or "")

    def stop(self, request: gr.Request) -> Any:
        """End the visitor's run, which may still be waiting."""
        return self.runs.stop(request)


def to_wanted(feature: str, preset: str, steps: float | None, seed: float | None) -> Wanted:
    """What a visitor asks for, from boxes that may be empty.

    Raises:
        ConfigError: steps or seed out of range.
    """
    n, seed = whole_number("steps", steps or 0, 0, MAX_STEPS), whole_number("seed", seed or 0, 0, 2**53)
    return Wanted(feature or "", preset, n, seed)


def _duration(snapshot: Any, asked: Wanted) -> int:
    plan = PRESETS.get(asked.preset, {})
    return gpu_seconds(snapshot, asked.steps or int(plan.get("steps", 300)), int(plan.get("copies", 8)))


def _copies_in_all(preset: str, steps: int) -> int:
    config = VisualizeConfig.preset("fast" if preset == "auto" else preset)
    return (steps or config.steps) * config.copies


def save_picture(result: Visualization) -> Path:
    """The PNG with its recipe, in a folder of its own."""
    path = Path(mkdtemp(prefix="vitviz-"), f"{file_stem(result.recipe['address'])}.png")
    result.save(path)
    return path


def summary(frame: Frame) -> str:
    """What came of a run."""
    if (result := frame.result) is None:
        return ""
    after, named = frame.index + 1, f" ({html.escape(frame.classes)})" if frame.classes else ""
    steps = f"{after} of {frame.steps}" if after < frame.steps else str(after)
    text = (
        f"**{result.recipe['address']}**{named} after {steps} steps: score {result.score:.3g}; "
        f"{result.transfer_score:.3g} when the picture is turned, zoomed and blurred."
    )
    if frame.photograph:
        name, best = frame.photograph
        text += f" The best of the built-in photographs, {name.replace('_', ' ')}, has {best:.3g}."
    if not result.alive:
        text += " It is dead: the feature does not fire on it. Try another seed or preset."
    return text
