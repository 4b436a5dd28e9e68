"""Tab Feature optimization: the picture that excites a feature most, as it grows."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from threading import Event
from typing import Any

import gradio as gr

from vitviz_hf.optimize.config import PRESETS
from vitviz_hf.optimize.recipe import Visualization
from vitviz_hf.sites import file_stem
from vitviz_hf.ui.events import LATEST, Runs, one_word, shown, whole_number
from vitviz_hf.ui.jobs import Frame, gpu_seconds
from vitviz_hf.ui.lane import Stopped, Waiting
from vitviz_hf.ui.link import Kept, one_of, or_else, whole
from vitviz_hf.ui.maps_tab import FIRST_FEATURE, MapsTab
from vitviz_hf.ui.page import Page, Values

MAX_STEPS = 1000
_LONGEST = 80


class OptimizeTab:
    """The recipe on the left, the growing picture on the right."""

    key, title = "optimize", "Feature optimization"

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.runs = page, page.shelf, Runs()
        self.job = page.gpu(_duration)(page.jobs.optimize)
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
            info="layer.kind:index, logit:index, or a sum such as 5.mlp_act:10 - 0.5*5.mlp_act:3; "
            "a minus in front minimizes",
        )
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
        with gr.Row():
            self.start = gr.Button("Optimize", variant="primary", elem_id="optimize", min_width=120)
            self.cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=120)

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps."""
        return [
            Kept("objective", self.objective, or_else(FIRST_FEATURE)),
            Kept("preset", self.preset, one_of(PRESETS, "auto")),
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
        maps = page.tab(MapsTab)
        moved = maps.to_optimize.click(self.take, maps.feature, [self.objective, *page.going], api_visibility="private")
        page.link(moved)

    def take(self, feature: str) -> Values:
        """A feature of the tab Activation maps."""
        return {self.objective: feature, **self.page.go(OptimizeTab)}

    def frames(
        self,
        model_id: str,
        feature: str,
        preset: str,
        steps: float | None,
        seed: float | None,
        stop: Event | None = None,
    ) -> Iterator[Waiting | Frame]:
        """A run: how it waits, and its frames.

        Raises:
            Stopped: `stop` was set.
        """
        one_word("preset", preset, ("auto", *PRESETS))
        n, seed = whole_number("steps", steps or 0, 0, MAX_STEPS), whole_number("seed", seed or 0, 0, 2**53)
        frames = self.job(self.shelf.snapshot(model_id), feature or "", preset, n, seed)
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
        """The picture as it grows."""
        with self.runs.one_for(request) as stop:
            yield {self.status: "Loading the model ...", self.download: gr.update(interactive=False)}
            try:
                for frame in self.frames(model_id, feature, preset, steps, seed, stop):
                    yield {self.status: str(frame)} if isinstance(frame, Waiting) else self.shows(frame)
            except Stopped:
                yield {self.status: "Cancelled."}

    def shows(self, frame: Frame) -> Values:
        """A moment of the run; the last one brings the file."""
        if frame.result is None:
            dead = "; the feature does not fire yet" if frame.dead else ""
            text = f"Step {frame.index + 1} of {frame.steps}, score {frame.score:.3g}{dead}"
            return {self.live: frame.picture, self.status: text}
        path = save_picture(frame.result)
        return {
            self.live: path,
            self.status: summary(frame),
            self.download: gr.update(value=str(path), interactive=True),
        }

    def stop(self, request: gr.Request) -> Any:
        """End the visitor's run, which may still be waiting."""
        return self.runs.stop(request)


def _duration(snapshot: Any, _: str, preset: str, steps: int, __: int) -> int:
    plan = PRESETS.get(preset, {})
    return gpu_seconds(snapshot, steps or int(plan.get("steps", 300)), int(plan.get("copies", 8)))


def save_picture(result: Visualization) -> Path:
    """The PNG with its recipe, in a folder of its own."""
    path = Path(mkdtemp(prefix="vitviz-"), f"{file_stem(result.recipe['address'])[:_LONGEST]}.png")
    result.save(path)
    return path


def summary(frame: Frame) -> str:
    """What came of a run."""
    if (result := frame.result) is None:
        return ""
    text = (
        f"**{result.recipe['address']}** after {frame.steps} steps: score {result.score:.3g}; "
        f"{result.transfer_score:.3g} when the picture is turned, zoomed and blurred."
    )
    if frame.photograph:
        name, best = frame.photograph
        text += f" The best of the built-in photographs, {name.replace('_', ' ')}, has {best:.3g}."
    if not result.alive:
        text += " It is dead: the feature does not fire on it. Try another seed or preset."
    return text
