"""Feature visualization: optimize images that maximize objectives. One loop for Python, command line and app."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from vitviz_hf.errors import NonFiniteError
from vitviz_hf.models.view import ModelView, at_precision
from vitviz_hf.optimize import transforms
from vitviz_hf.optimize.canvas import Canvas, make_canvas, seeded_generator
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.draws import drawing, turn
from vitviz_hf.optimize.guides import Guide, Photographs, check_guides, misfit
from vitviz_hf.optimize.objectives import Objective, Target, check_objective, run_together, to_objective
from vitviz_hf.optimize.penalties import smoothness_weights, total_variation
from vitviz_hf.optimize.recipe import Visualization, make_recipe
from vitviz_hf.optimize.scores import Readout, check_sensitive, score_pixels, transfer_scores
from vitviz_hf.reading.maps import name_precision


@dataclass(frozen=True, slots=True)
class Step:
    """State after one step of N pictures. Tensors stay on the device, so that reading them is the reader's cost."""

    index: int
    """0 to `config.steps - 1`."""
    pixels: Tensor
    """[N, 3, H, W] in [0, 1] at the model's input size, with the contrast to show them with."""
    scores: Tensor
    """[N], mean over the augmented copies of this step."""
    dead_steps: Tensor
    """[N], steps so far in which the feature did not fire (see `VisualizeConfig.revive`)."""
    guides: Sequence[Guide] = ()
    """Real images that go into the pictures."""


def visualize(
    view: ModelView,
    objectives: Sequence[Objective | Target | str],
    config: VisualizeConfig | None = None,
    guides: Sequence[Guide] = (),
) -> list[Visualization]:
    """Optimize one picture for each objective; several share the batches and come out as they would alone.

    Args:
        objectives: features, directions, logits, sums of them, or their text (see `parse_objective`).
        config: default: preset `fast` on a CPU, `fourier` elsewhere.
        guides: real images for each objective, which the presets `aligned` (see `guide_by_images`, to which the seed of
            `config` is given too) and `accent` (see `guide_by_photograph`) need.

    Raises:
        SiteError: the model has no such site or feature.
        ConfigError: guides are missing or not used; a malformed objective, or one at a token that is not there, or that
            no picture changes.

    Source: Ghiasi et al. 2022, arXiv:2212.06727, section 3 (preset `paper`).
    """
    config, wanted = config or default_config(view), [to_objective(o, view.kinds) for o in objectives]
    step = None
    for step in visualize_steps(view, wanted, config, guides):  # noqa: B007
        pass
    return [] if step is None else finish(view, wanted, config, step)


def default_config(view: ModelView) -> VisualizeConfig:
    """Preset `fast` on a CPU, `fourier` elsewhere."""
    return VisualizeConfig.preset("fast" if view.device.type == "cpu" else "fourier")


def visualize_steps(
    view: ModelView,
    objectives: Sequence[Objective | Target | str],
    config: VisualizeConfig,
    guides: Sequence[Guide] = (),
) -> Iterator[Step]:
    """As `visualize`, one step at a time. Abandoning the iterator leaves the model as it was."""
    wanted = [to_objective(o, view.kinds) for o in objectives]
    yield from seeded_steps(view, wanted, config, [config.seed] * len(wanted), guides)


def seeded_steps(
    view: ModelView,
    objectives: Sequence[Objective],
    config: VisualizeConfig,
    seeds: Sequence[int],
    guides: Sequence[Guide] = (),
) -> Iterator[Step]:
    """As `visualize_steps`, each picture with a seed of its own: it comes out as with that seed alone."""
    for objective in objectives:
        check_objective(view, objective)
    check_sensitive(view, objectives)
    check_guides(view, config, objectives, guides)
    if objectives:
        yield from _optimize(view, list(objectives), config, seeds, guides)


def finish(
    view: ModelView,
    objectives: Sequence[Objective],
    config: VisualizeConfig,
    step: Step,
    seeds: Sequence[int] | None = None,
) -> list[Visualization]:
    """Results from the last step of `visualize_steps`, or from an earlier one, which the recipe then tells.

    Args:
        seeds: of the pictures, if not the config's for all.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    scores = score_pixels(view, objectives, step.pixels.unsqueeze(1)).squeeze(1).tolist()
    if wrong := [str(o) for o, score in zip(objectives, scores, strict=True) if not math.isfinite(score)]:
        raise NonFiniteError(
            f"the score of {wrong[0]} in {name_precision(view)} is NaN or infinite, so there is no picture. Check its "
            "weights, or load it in float32."
        )
    transfer = transfer_scores(view, objectives, step.pixels).tolist()
    precision = at_precision(view, config.precision).precision
    configs = [replace(config, seed=seed, precision=precision) for seed in seeds or [config.seed] * len(objectives)]
    return [
        Visualization(
            pixels=picture.detach().float().cpu(),
            score=score,
            transfer_score=transferred,
            dead_steps=int(dead),
            recipe=make_recipe(view, objective, own, score, transferred, int(dead)) | _also(step, own, guide),
        )
        for picture, objective, own, score, transferred, dead, guide in zip(
            step.pixels,
            objectives,
            configs,
            scores,
            transfer,
            step.dead_steps.tolist(),
            step.guides or repeat(None, len(objectives)),
            strict=True,
        )
    ]


def _also(step: Step, config: VisualizeConfig, guide: Guide | None) -> dict[str, Any]:
    stopped = {"stopped_after": step.index + 1} if step.index + 1 < config.steps else {}
    return stopped | ({"guide": guide.to_json()} if guide else {})


def _optimize(
    view: ModelView,
    objectives: list[Objective],
    config: VisualizeConfig,
    seeds: Sequence[int],
    guides: Sequence[Guide],
) -> Iterator[Step]:
    generators = [seeded_generator(seed, str(o)) for seed, o in zip(seeds, objectives, strict=True)]
    canvas = make_canvas(config, view.input_size, generators, view.device, [g.photograph for g in guides])
    params = canvas.params.requires_grad_(True)
    optimizer = torch.optim.Adam([params], config.learning_rate, (config.beta1, config.beta2), eps=1e-8)
    smoothness = smoothness_weights(view, objectives, config)
    with drawing(generators, view.device) as sources:
        chunks = [
            _Chunk(view, objectives, config, rows, sources, guides, smoothness)
            for rows in run_together(objectives, max(1, config.batch // config.copies))
        ]
        dead_steps = torch.zeros(len(objectives), dtype=torch.long, device=view.device)
        drawn = _draw(canvas)
        for index in range(config.steps):
            progress = index / config.steps
            if config.decay == "cosine":
                optimizer.param_groups[0]["lr"] = config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
            scores, dead = _backward(drawn, chunks, progress)
            dead_steps += dead
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                canvas.constrain(params)
            drawn = _draw(canvas)
            yield Step(index, _shown(drawn, view.input_size, config), scores, dead_steps.clone(), guides)


def _draw(canvas: Canvas) -> Tensor:
    """Pixels of all pictures [N, 3, h, w]: those that a step shows are those that the next one changes."""
    with torch.enable_grad():
        return canvas.to_pixels(canvas.params)


def _shown(drawn: Tensor, size: tuple[int, int], config: VisualizeConfig) -> Tensor:
    pixels = tv.center_crop(drawn.detach(), list(size))
    return transforms.stretch(pixels, config.contrast) if config.contrast else pixels.clone()


def _backward(drawn: Tensor, chunks: "Sequence[_Chunk]", progress: float) -> tuple[Tensor, Tensor]:
    """Gradients of the canvas; the scores [N], and which features do not fire [N]."""
    scores = torch.zeros(len(drawn), device=drawn.device)
    dead = torch.zeros(len(drawn), dtype=torch.bool, device=drawn.device)
    with torch.enable_grad():
        pixels = drawn.detach().requires_grad_()
        for chunk in chunks:
            loss, scores[chunk.rows], dead[chunk.rows] = chunk.loss(pixels.index_select(0, chunk.rows), progress)
            loss.backward()
        drawn.backward(pixels.grad)
    return scores, dead


class _Chunk:
    """Pictures that are run together, and what is minimized for them."""

    def __init__(
        self,
        view: ModelView,
        objectives: Sequence[Objective],
        config: VisualizeConfig,
        rows: Sequence[int],
        generators: transforms.Generators,
        guides: Sequence[Guide],
        smoothness: Tensor,
    ) -> None:
        self.view, self.config = view, config
        self.rows = torch.tensor(rows, device=view.device)
        self.generators = [generators[r] for r in rows]
        self.guides = [guides[r] for r in rows] if guides else []
        own = [objectives[r] for r in rows]
        self.read = Readout(
            at_precision(view, config.precision), own, list(self.guides[0].moments) if config.align else ()
        )
        self.smoothness = smoothness[self.rows]
        if self.guides:
            self.best = torch.tensor([g.best for g in self.guides], device=view.device)
        self.photographs = Photographs(view, own, self.guides, config.margin) if config.keep else None

    def loss(self, pixels: Tensor, progress: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of canvases [n, 3, h, w]: what is minimized, the scores [n], and which features do not fire [n]."""
        config = self.config
        images = _augment(pixels, self.view.input_size, config, progress, self.generators)
        seen = transforms.contrast(images, config.contrast, self.generators) if config.contrast else images
        turn(self.generators)
        read = self.read(seen)
        scores = read.values.detach().mean(1)
        dead = self.read.revivable & (scores <= 0)
        target = read.values.mean(1)
        if config.align:
            target = self.best * torch.tanh(target / self.best)  # the best image has as much, the rest is pulled
        if config.revive and read.pre_values is not None:
            target = torch.where(dead, read.pre_values.mean(1), target)
        if config.align:
            target = target - config.align * self.best * misfit(read.patches, self.guides)
        if self.photographs:
            target = target - config.keep * self.photographs.left(pixels)
        roughness = total_variation(images) if config.smoothness else 0.0 * target
        return (self.smoothness * roughness - target).sum(), scores, dead


def _augment(
    pixels: Tensor, size: tuple[int, int], config: VisualizeConfig, progress: float, generators: transforms.Generators
) -> Tensor:
    """Copies of each picture [n, 3, h, w] -> [n, M, 3, H, W], re-drawn at every step."""
    images = pixels.unsqueeze(1).expand(-1, config.copies, -1, -1, -1)
    if config.rotate or config.zoom:
        images = transforms.rotate_and_scale(images, config.rotate, config.zoom, generators, size)
    else:
        images = transforms.random_crop(images, size, generators)
    if config.color_shift:
        images = transforms.color_shift(images, config.color_shift, generators)
    if config.noise:
        images = transforms.noise(images, config.noise * (1 - progress), config.noise_per, generators)
    if config.jitter:
        images = transforms.jitter(images, config.jitter, generators)
    return images
