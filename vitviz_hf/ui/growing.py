"""Pictures as they are optimized: frames of the run, its end, and how long it will take. CPU data in and out."""

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
from PIL import Image

from vitviz_hf.atlas.store import Atlas
from vitviz_hf.images import image_to_pixels, pixels_to_image
from vitviz_hf.inside.words import resolve_words
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.models.view import ModelView
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.guides import PASSES, Guide
from vitviz_hf.optimize.loop import Step, default_config, finish, seeded_steps, visualize_steps
from vitviz_hf.optimize.objectives import Logit, Objective, feature_of, number_classes, to_objective
from vitviz_hf.optimize.recipe import Visualization
from vitviz_hf.reading.reference import best_photograph, reference_at
from vitviz_hf.sites import Feature, Site

AUTO, ALIGNED = "auto", "aligned"
"""What is asked for if nothing is chosen, and what it is for a feature whose images an atlas keeps."""
_FRAME_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a visitor asked for."""

    objective: str
    preset: str
    steps: int
    """0 for the preset's."""
    seed: int
    """Of the first picture; each other one has the next."""
    pictures: int = 1
    photograph: Image.Image | None = None
    """What the preset `accent` starts from."""
    atlas: Atlas | None = None
    """Whose images `aligned` and `auto` take, if it has the feature."""

    @property
    def seeds(self) -> list[int]:
        """One for each picture."""
        return list(range(self.seed, self.seed + self.pictures))

    def passes(self, auto: str) -> int:
        """Most images that go through the model.

        Args:
            auto: the preset that `auto` is where it is not `aligned`.
        """
        return max(self._passes(name) for name in ((ALIGNED, auto) if self.preset == AUTO else (self.preset,)))

    def _passes(self, preset: str) -> int:
        plan = VisualizeConfig.preset(preset)
        return (self.steps or plan.steps) * plan.copies * self.pictures + (PASSES if plan.align else 0)

    def config(self, view: ModelView, guided: "Guided | None") -> VisualizeConfig:
        """All options; the seed is the first picture's.

        Args:
            guided: what the real images for it gave.
        """
        changes = {"seed": self.seed} | ({"steps": self.steps} if self.steps else {})
        if self.preset != AUTO:
            base = VisualizeConfig.preset(self.preset)
        else:
            base = VisualizeConfig.preset(ALIGNED) if guided and guided.guides else default_config(view)
        return VisualizeConfig.from_dict({**base.to_dict(), **changes})

    def parsed(self, view: ModelView) -> tuple[ModelView, Objective]:
        """The objective, with classes by name and texts and labels as features, and the model that has these.

        Raises:
            ConfigError: malformed.
            SiteError: no such site, feature or class.
        """
        view, address = resolve_words(view, self.objective)
        return view, to_objective(number_classes(address, view.labels), view.kinds)


@dataclass(frozen=True, slots=True)
class Guided:
    """What real images give to a run."""

    guides: Mapping[int, Guide]
    """For the picture of each seed; empty where no image excites the feature, so that they start from noise."""
    told: str
    """Which images, such as `started from your photograph`."""

    def of(self, seeds: Sequence[int]) -> list[Guide]:
        """Those of some pictures, if there are any."""
        return [self.guides[seed] for seed in seeds] if self.guides else []


@dataclass(frozen=True, slots=True)
class Grown:
    """One of the pictures of a run, as far as it is."""

    seed: int
    index: int
    """Of its last step."""
    picture: Image.Image
    score: float
    dead_steps: int
    result: Visualization | None = None
    """At the end."""

    @property
    def dead(self) -> bool:
        """Whether the feature did not fire so far."""
        return self.dead_steps > self.index


@dataclass(frozen=True, slots=True)
class Frame:
    """A moment of an optimization."""

    steps: int
    pictures: tuple[Grown, ...]
    """Those that have begun, in the order of their seeds."""
    classes: str
    """Names of the classes in the objective."""
    finished: bool = False
    """Every picture has its result."""
    photograph: tuple[str, float] | None = None
    """Built-in photograph with the highest score, and that score; with the last frame."""
    guided: Guided | None = None

    @property
    def index(self) -> int:
        """Step that every picture has made."""
        return min(grown.index for grown in self.pictures)

    def numbers(self) -> dict[str, Any]:
        """As data: of the first picture, of several each one's too."""
        each = []
        for grown in self.pictures:
            told: dict[str, Any] = {"step": grown.index + 1, "steps": self.steps, "score": grown.score}
            if self.finished and grown.result:
                told |= {"seed": grown.seed, "classes": self.classes, "transfer_score": grown.result.transfer_score}
            each.append(told)
        return each[0] | ({"pictures": each} if len(each) > 1 else {})


def grow(view: ModelView, asked: Wanted, guided: Guided | None = None) -> Generator[Frame]:
    """Frames of an optimization, at most every 0.4 s, the last one with the results.

    A GPU takes a step of all pictures in one batch. A CPU gains nothing by that: there each step is taken picture by
    picture, so that another's job need not wait for a step of all of them.
    """
    config, (view, wanted) = asked.config(view, guided), asked.parsed(view)
    groups = [asked.seeds] if steps_together(view) else [[seed] for seed in asked.seeds]
    runs = [
        seeded_steps(view, [wanted] * len(seeds), config, seeds, guided.of(seeds) if guided else ()) for seeds in groups
    ]
    steps: dict[int, Step] = {}
    shown = 0.0
    for index in range(config.steps):
        for i, run in enumerate(runs):
            steps[i] = next(run)
            last = index == config.steps - 1 and i == len(runs) - 1
            if not last and time.monotonic() - shown > _FRAME_SECONDS:
                parts = (_grown(step, groups[j]) for j, step in steps.items())
                yield Frame(config.steps, tuple(chain.from_iterable(parts)), _classes(view, wanted), guided=guided)
                shown = time.monotonic()
    made = {i: _grown(step, groups[i]) for i, step in steps.items()}
    for i, step in steps.items():
        made[i] = _ended(view, wanted, config, step, groups[i])
        if i < len(runs) - 1:
            pictures = tuple(chain.from_iterable(made.values()))
            yield Frame(config.steps, pictures, _classes(view, wanted), guided=guided)
    yield _last(view, wanted, config, chain.from_iterable(made.values()), guided)


def steps_together(view: ModelView) -> bool:
    """Whether all pictures of a run take a step in one batch."""
    return view.device.type != "cpu"


def keep(view: ModelView, asked: Wanted, frame: Frame) -> Frame:
    """The frame that a run was stopped at, with its results; the recipes say after which step."""
    config, (view, wanted) = asked.config(view, frame.guided), asked.parsed(view)

    def ended(grown: Grown) -> Grown:
        pixels = image_to_pixels(grown.picture).unsqueeze(0).to(view.device)
        scores, dead = torch.tensor([grown.score]), torch.tensor([grown.dead_steps])
        guides = frame.guided.of([grown.seed]) if frame.guided else ()
        return _ended(view, wanted, config, Step(grown.index, pixels, scores, dead, guides), [grown.seed])[0]

    return _last(view, wanted, config, (g if g.result else ended(g) for g in frame.pictures), frame.guided)


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


def gpu_passes(_: Snapshot, asked: Wanted) -> int:
    """Most images that go through the model on a GPU."""
    return asked.passes("fourier")


def passes_made(frame: Frame) -> int:
    """Images that went through the model for the last frame of a run."""
    read = PASSES if frame.guided and frame.guided.guides else 0
    return read + sum((g.index + 1) * g.result.recipe["config"]["copies"] for g in frame.pictures if g.result)


def gpu_seconds(snapshot: Snapshot, asked: Wanted) -> int:
    """GPU time to ask for the first time: loading, and 20 ms for 8 images of a model with 0.35 GB of weights."""
    gigabytes = sum(p.stat().st_size for p in snapshot.folder.glob("*.safetensors")) / 1e9
    return min(120, int(20 + 10 * gigabytes + gpu_passes(snapshot, asked) * gigabytes * 0.007))


def _grown(step: Step, seeds: Sequence[int]) -> list[Grown]:
    pictures = [pixels_to_image(p.float().cpu().numpy()) for p in step.pixels]
    numbers = zip(seeds, pictures, step.scores.tolist(), step.dead_steps.tolist(), strict=True)
    return [Grown(seed, step.index, picture, score, dead) for seed, picture, score, dead in numbers]


def _ended(
    view: ModelView, wanted: Objective, config: VisualizeConfig, step: Step, seeds: Sequence[int]
) -> list[Grown]:
    results = finish(view, [wanted] * len(seeds), config, step, seeds)
    return [
        replace(grown, picture=result.image, score=result.score, result=result)
        for grown, result in zip(_grown(step, seeds), results, strict=True)
    ]


def _last(
    view: ModelView, wanted: Objective, config: VisualizeConfig, pictures: Iterable[Grown], guided: Guided | None
) -> Frame:
    feature = feature_of(wanted)
    photograph = None
    if feature:
        photograph = best_photograph(reference_at(view, feature.site).scores, feature)
    return Frame(config.steps, tuple(pictures), _classes(view, wanted), True, photograph, guided)


def _classes(view: ModelView, wanted: Objective) -> str:
    labels = view.labels or ()
    return ", ".join(labels[t.index] for _, t in wanted.terms if isinstance(t, Logit))
