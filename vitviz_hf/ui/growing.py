"""A picture as it is optimized: frames of the run, its end, and how long it will take. CPU data in and out."""

import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from PIL import Image

from vitviz_hf.images import image_to_pixels, pixels_to_image
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.models.view import ModelView
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.loop import Step, default_config, finish, visualize_steps
from vitviz_hf.optimize.objectives import Logit, Objective, number_classes, to_objective
from vitviz_hf.optimize.recipe import Visualization
from vitviz_hf.reading.reference import best_photograph, reference_scores
from vitviz_hf.sites import Feature, Site

_FRAME_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a visitor asked for."""

    objective: str
    preset: str
    steps: int
    """0 for the preset's."""
    seed: int

    def config(self, view: ModelView) -> VisualizeConfig:
        """All options."""
        changes = {"seed": self.seed} | ({"steps": self.steps} if self.steps else {})
        base = default_config(view) if self.preset == "auto" else VisualizeConfig.preset(self.preset)
        return VisualizeConfig.from_dict({**base.to_dict(), **changes})

    def parsed(self, view: ModelView) -> Objective:
        """The objective, with classes by name.

        Raises:
            ConfigError: malformed.
            SiteError: no such site, feature or class.
        """
        return to_objective(number_classes(self.objective, view.labels), view.kinds)


@dataclass(frozen=True, slots=True)
class Frame:
    """A moment of an optimization; `result` comes with the last one."""

    index: int
    steps: int
    picture: Image.Image
    score: float
    dead_steps: int
    classes: str
    """Names of the classes in the objective."""
    result: Visualization | None = None
    photograph: tuple[str, float] | None = None
    """Built-in photograph with the highest score, and that score."""

    @property
    def dead(self) -> bool:
        """Whether the feature did not fire so far."""
        return self.dead_steps > self.index


def grow(view: ModelView, asked: Wanted) -> Generator[Frame]:
    """Frames of an optimization, at most every 0.4 s, the last one with the result."""
    config, wanted = asked.config(view), asked.parsed(view)
    shown = 0.0
    for step in visualize_steps(view, [wanted], config):
        if time.monotonic() - shown > _FRAME_SECONDS and step.index < config.steps - 1:
            yield _frame(view, wanted, config, step)
            shown = time.monotonic()
    yield _finished(view, wanted, config, step)


def keep(view: ModelView, asked: Wanted, frame: Frame) -> Frame:
    """The frame that a run was stopped at, with its result; the recipe says after which step."""
    config, wanted = asked.config(view), asked.parsed(view)
    pixels = image_to_pixels(frame.picture).unsqueeze(0).to(view.device)
    dead = torch.tensor([frame.dead_steps])
    return _finished(view, wanted, config, Step(frame.index, pixels, torch.tensor([frame.score]), dead))


def time_step(view: ModelView) -> float:
    """Seconds that one copy takes in a step for a feature of the last layer; 0 where there is a GPU."""
    if view.device.type != "cpu":
        return 0.0
    last = Feature(Site(len(view.layers) - 1, "mlp_act"), 0)
    steps = visualize_steps(view, [last], VisualizeConfig.preset("fast", steps=3, copies=1))
    next(steps)  # the first one measures how smooth it must be
    start = time.monotonic()
    n = sum(1 for _ in islice(steps, 2))
    return (time.monotonic() - start) / n


def gpu_seconds(snapshot: Snapshot, steps: int, copies: int) -> int:
    """GPU time to ask for: loading, and 20 ms for a step of 8 copies of a model with 0.35 GB of weights."""
    gigabytes = sum(p.stat().st_size for p in snapshot.folder.glob("*.safetensors")) / 1e9
    return min(120, int(20 + 10 * gigabytes + steps * copies * gigabytes * 0.007))


def _frame(view: ModelView, wanted: Objective, config: VisualizeConfig, step: Step) -> Frame:
    labels = view.labels or ()
    classes = ", ".join(labels[t.index] for _, t in wanted.terms if isinstance(t, Logit))
    picture = pixels_to_image(step.pixels[0].float().cpu().numpy())
    return Frame(step.index, config.steps, picture, float(step.scores[0]), int(step.dead_steps[0]), classes)


def _finished(view: ModelView, wanted: Objective, config: VisualizeConfig, step: Step) -> Frame:
    result = finish(view, [wanted], config, step)[0]
    photograph = None
    if len(wanted.terms) == 1 and wanted.terms[0][0] == 1 and isinstance(wanted.terms[0][1], Feature):
        photograph = best_photograph(reference_scores(view), wanted.terms[0][1])
    frame = _frame(view, wanted, config, step)
    return replace(frame, picture=result.image, score=result.score, result=result, photograph=photograph)
