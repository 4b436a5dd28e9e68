"""Feature visualization: optimize images that maximize objectives. One loop for Python, command line and app."""

import base64
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from vitviz_hf.config import VisualizeConfig
from vitviz_hf.errors import ConfigError, NonFiniteError, RecipeError, VitvizError
from vitviz_hf.images import encode, pixels_to_image
from vitviz_hf.manifest import versions, write_file
from vitviz_hf.models.measure import PRE_ACT
from vitviz_hf.models.view import ModelView, as_control, at_size, best_device, load_model
from vitviz_hf.optimize import transforms
from vitviz_hf.optimize.canvas import fourier_canvas, pixel_canvas
from vitviz_hf.optimize.objectives import (
    Direction,
    Logit,
    Objective,
    Target,
    can_revive,
    check_objective,
    readout,
    to_objective,
)
from vitviz_hf.reading.maps import name_precision, split_tokens
from vitviz_hf.reading.recording import record, record_with_logits
from vitviz_hf.sites import Feature, Site, parse_feature, parse_site

_CHUNK = "vitviz"
_SCHEMA = 1
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}


class ReplayWarning(UserWarning):
    """A replayed picture will not be the one that the recipe made."""


@dataclass(frozen=True, slots=True)
class Step:
    """State after one step of N pictures. Tensors stay on the device, so that reading them is the reader's cost."""

    index: int
    """0 to `config.steps - 1`."""
    pixels: Tensor
    """[N, 3, H, W] in [0, 1] at the model's input size."""
    scores: Tensor
    """[N], mean over the augmented copies of this step."""
    dead_steps: Tensor
    """[N], steps so far in which the feature did not fire (see `VisualizeConfig.revive`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visualization:
    """An optimized picture with the recipe to make it again."""

    pixels: Tensor
    """[3, H, W] in [0, 1], on the CPU."""
    score: float
    """Value of the objective on the picture itself: mean over patches."""
    transfer_score: float
    """The same under transforms that were not optimized for, see `transfer_scores`."""
    dead_steps: int
    """Steps in which the feature did not fire."""
    recipe: Mapping[str, Any]

    @property
    def alive(self) -> bool:
        """Whether the feature fires on the picture, see `is_alive`."""
        return is_alive(self.recipe)

    @property
    def image(self) -> Image.Image:
        """As an 8-bit picture."""
        return pixels_to_image(self.pixels.numpy())

    def png(self) -> bytes:
        """PNG file that carries the recipe."""
        info = PngImagePlugin.PngInfo()
        info.add_text(_CHUNK, json.dumps(self.recipe))
        return encode(self.image, "PNG", pnginfo=info)

    def save(self, path: str | Path) -> None:
        """Write the PNG with its recipe.

        Raises:
            OutputExistsError: the file exists.
            ConfigError: the name does not end in .png.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ConfigError(f"'{path}' must end in .png: the recipe is stored in the PNG.")
        write_file(path, self.png())


def visualize(
    view: ModelView,
    objectives: Sequence[Objective | Target | str],
    config: VisualizeConfig | None = None,
) -> list[Visualization]:
    """Optimize one picture for each objective; several share the batches and come out as they would alone.

    Args:
        objectives: features, directions, logits, sums of them, or their text (see `parse_objective`).
        config: default: preset `fast` on a CPU, `fourier` elsewhere.

    Raises:
        SiteError: the model has no such site or feature.
        ConfigError: a malformed objective.

    Source: Ghiasi et al. 2022, arXiv:2212.06727, section 3 (preset `paper`).
    """
    config = config or default_config(view)
    step = None
    for step in visualize_steps(view, objectives, config):  # noqa: B007
        pass
    return [] if step is None else finish(view, objectives, config, step)


def default_config(view: ModelView) -> VisualizeConfig:
    """Preset `fast` on a CPU, `fourier` elsewhere."""
    return VisualizeConfig.preset("fast" if view.device.type == "cpu" else "fourier")


def visualize_steps(
    view: ModelView, objectives: Sequence[Objective | Target | str], config: VisualizeConfig
) -> Iterator[Step]:
    """As `visualize`, one step at a time. Abandoning the iterator leaves the model as it was."""
    wanted = [to_objective(o) for o in objectives]
    for objective in wanted:
        check_objective(view, objective)
    if wanted:
        yield from _optimize(view, wanted, config)


def finish(
    view: ModelView,
    objectives: Sequence[Objective | Target | str],
    config: VisualizeConfig,
    step: Step,
) -> list[Visualization]:
    """Results from the last step of `visualize_steps`.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    wanted = [to_objective(o) for o in objectives]
    scores = score_pixels(view, wanted, step.pixels.unsqueeze(1)).squeeze(1).tolist()
    if wrong := [str(o) for o, score in zip(wanted, scores, strict=True) if not math.isfinite(score)]:
        raise NonFiniteError(
            f"the score of {wrong[0]} in {name_precision(view)} is NaN or infinite, so there is no picture. Check its "
            "weights, or load it in float32."
        )
    transfer = transfer_scores(view, wanted, step.pixels).tolist()
    return [
        Visualization(
            pixels=picture.detach().float().cpu(),
            score=score,
            transfer_score=transferred,
            dead_steps=int(dead),
            recipe=_recipe(view, objective, config, score, transferred, int(dead)),
        )
        for picture, objective, score, transferred, dead in zip(
            step.pixels, wanted, scores, transfer, step.dead_steps.tolist(), strict=True
        )
    ]


def score_pixels(view: ModelView, objectives: Sequence[Objective], images: Tensor) -> Tensor:
    """Objective n on each of its images [N, M, 3, H, W] in [0, 1] -> [N, M], without gradients."""
    with torch.no_grad():
        values = [_Readout(view, [o])(image[None])[0] for o, image in zip(objectives, images, strict=True)]
    return torch.cat(values)


def transfer_scores(view: ModelView, objectives: Sequence[Objective], pixels: Tensor) -> Tensor:
    """Score [N] of pictures under changes no preset optimizes for: does the feature see what a person sees?

    Mean over eight fixed draws of rotation up to 20 degrees, zoom by up to e^0.25 and Gaussian blur of 1 pixel.
    """
    generators = [_generator(0, "transfer") for _ in objectives]
    images = pixels.unsqueeze(1).expand(-1, 8, -1, -1, -1)
    images = transforms.rotate_and_scale(images, 20, 0.25, generators)
    blurred = tv.gaussian_blur(images.flatten(0, 1), [5, 5], [1.0, 1.0]).view_as(images)
    return score_pixels(view, objectives, blurred).mean(1)


def replay(source: str | Path | Image.Image, view: ModelView | None = None) -> Visualization:
    """Make a picture again from the recipe in its PNG, on the recipe's device and with its dtype.

    Where the device is missing here, another is used and a `ReplayWarning` says so.

    Args:
        view: saves loading, if it is the recipe's model and revision, of its dtype, and on its device.

    Raises:
        RecipeError: no recipe, or one this version cannot follow.
        ModelError: the model cannot be loaded.
    """
    recipe = read_recipe(source)
    try:
        objective = _objective_from(recipe["objective"])
        config = VisualizeConfig.from_dict(recipe["config"])
        height, width = (int(s) for s in recipe["input_size"])
        model_id, revision = str(recipe["model_id"]), recipe["revision"]
        control, _, control_seed = str(recipe.get("control") or "").partition(", seed ")
        dtype, device = _DTYPES[recipe["dtype"]], str(recipe["device"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, VitvizError):
            raise RecipeError(f"the recipe cannot be followed: {error}") from error
        raise RecipeError(f"the recipe is incomplete or damaged ({error!r}).") from error
    if difference := expected_difference(recipe):
        warnings.warn(difference, ReplayWarning, stacklevel=2)
    wanted = torch.device(device) if _is_here(device) else best_device()
    view = view and at_size(view, (height, width))
    if view is None or view.device.type != wanted.type or view.identity.difference(recipe):
        view = load_model(model_id, revision, wanted, dtype)
        view = at_size(as_control(view, control, int(control_seed or 0)) if control else view, (height, width))
        if difference := view.identity.difference(recipe):
            raise RecipeError(f"{model_id!r} is not what it was: the picture was made with {difference}.")
    return visualize(view, [objective], config)[0]


def shows(recipe: Mapping[str, Any], view: ModelView, target: Objective | Target | str) -> bool:
    """Whether a recipe is of this model, as it is now, and of this objective."""
    same = recipe.get("objective") == _terms_to_json(to_objective(target))
    return same and not view.identity.difference(recipe)


def expected_difference(recipe: Mapping[str, Any]) -> str | None:
    """Why a replay on this machine will differ from the picture, if it is known to."""
    device = str(recipe.get("device", "cpu"))
    if device != "cpu" and recipe.get("draws") != "cpu":
        return (
            f"the picture was made by an earlier version, which drew its random numbers on {device!r}: this version "
            "draws others, so the replay is another picture of the same feature."
        )
    if not _is_here(device):
        return (
            f"the picture was made on {device!r}, which is not here: it is made again on {best_device().type!r} from "
            "the same random numbers, and differs by rounding."
        )
    return None


def is_alive(recipe: Mapping[str, Any]) -> bool:
    """Whether the feature fires on the final picture: its score is above 0.

    So for a feature, a direction, or a sum of them. A logit, and anything that is minimized, has no value that stands
    for silence; its pictures count as alive.
    """
    silent_at_zero = all(t["weight"] > 0 and not str(t.get("target")).startswith("logit:") for t in recipe["objective"])
    return float(recipe["score"]) > 0 or not silent_at_zero


def read_recipe(source: str | Path | Image.Image) -> dict[str, Any]:
    """The recipe stored in a picture.

    Raises:
        RecipeError: there is none, or it is of another version.
    """
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source, formats=["PNG"])
        recipe = json.loads(image.info[_CHUNK])
    except (KeyError, ValueError, OSError, SyntaxError) as error:
        raise RecipeError(
            f"{source!s:.200} carries no vitviz recipe; give a PNG that 'vitviz visualize' saved, unchanged."
        ) from error
    if not isinstance(recipe, dict) or recipe.get("schema") != _SCHEMA:
        raise RecipeError("the recipe is of another version of vitviz_hf; update the package.")
    return recipe


def automatic_smoothness(view: ModelView, site: Site | None, strength: float) -> float:
    """Weight of total variation that balances gradients, measured on the model and site.

    The rule: `strength` times the gradient norm of a typical feature over the gradient norm of total variation, both
    at uniform noise, where every optimization starts. The typical feature is the root mean square over all features
    of the site (of their pre-activation, for mlp_act), estimated with four random probes.

    Args:
        site: None measures the logits.
    """
    generator = _generator(0, str(site))
    noise = torch.rand(4, 3, *view.input_size, generator=generator).to(view.device)
    with torch.enable_grad():
        noise.requires_grad_(True)
        if site is None:
            values = record_with_logits(view, noise, ())[1].float()
        else:
            has_pre_act = site.kind == "mlp_act" and PRE_ACT in view.layers[site.layer].taps
            source = Site(site.layer, PRE_ACT) if has_pre_act else site
            values = split_tokens(view, record(view, noise, [source])[source], source)[1].float().mean(1)
        probes = torch.randn(values.shape, generator=generator).to(view.device)
        (signal,) = torch.autograd.grad((values * probes).sum(), noise)
        (roughness,) = torch.autograd.grad(transforms.total_variation(noise.unsqueeze(1)).sum(), noise)
    typical = signal.norm() / math.sqrt(values.shape[1])
    return strength * float(typical / roughness.norm())


def _optimize(view: ModelView, objectives: list[Objective], config: VisualizeConfig) -> Iterator[Step]:
    generators = [_generator(config.seed, str(o)) for o in objectives]
    size = (view.input_size[0] + 2 * config.margin, view.input_size[1] + 2 * config.margin)
    canvas = (fourier_canvas if config.canvas == "fourier" else pixel_canvas)(size, generators, view.device)
    params = canvas.params.requires_grad_(True)
    optimizer = torch.optim.Adam([params], config.learning_rate, (config.beta1, config.beta2), eps=1e-8)
    smoothness = _smoothness(view, objectives, config)
    chunks = [
        (
            torch.tensor(rows, device=view.device),
            _Readout(view, [objectives[r] for r in rows]),
            [generators[r] for r in rows],
        )
        for rows in _chunks(objectives, config)
    ]
    precision = torch.autocast(view.device.type, torch.bfloat16) if config.autocast else nullcontext()
    dead_steps = torch.zeros(len(objectives), dtype=torch.long, device=view.device)
    for index in range(config.steps):
        progress = index / config.steps
        if config.decay == "cosine":
            optimizer.param_groups[0]["lr"] = config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
        scores = torch.zeros(len(objectives), device=view.device)
        with torch.enable_grad():
            for rows, read, own in chunks:
                pixels = canvas.to_pixels(params[rows])
                images = _augment(pixels, view.input_size, config, progress, own)
                with precision:
                    values, pre_values = read(images)
                scores[rows] = values.detach().mean(1)
                dead = read.revivable & (scores[rows] <= 0)
                dead_steps[rows] += dead
                target = values.mean(1)
                if config.revive and pre_values is not None:
                    target = torch.where(dead, pre_values.mean(1), target)
                roughness = transforms.total_variation(images) if config.smoothness else 0.0 * target
                (smoothness[rows] * roughness - target).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            canvas.constrain(params)
            pixels = tv.center_crop(canvas.to_pixels(params), list(view.input_size)).detach()
        yield Step(index, pixels.clone(), scores, dead_steps.clone())


class _Readout:
    """Values of objectives that share sites, each on its own images: [N, M, 3, H, W] -> [N, M]."""

    def __init__(self, view: ModelView, objectives: list[Objective]) -> None:
        self.view = view
        self.weights, self.logit_weights = readout(view, objectives)
        self.revivable = torch.tensor([can_revive(view, o) for o in objectives], device=view.device)
        sites = [t.site for o in objectives if can_revive(view, o) for _, t in o.terms if isinstance(t, Feature)]
        self.pre_sites = {Site(s.layer, PRE_ACT): s for s in sites}
        # torch 2.13 on a CPU: the gradient of a batch norm at rest is wrong for a single image where it arrives with
        # the colors last, as in XCiT. Two copies of the image have the same mean and the right gradient.
        batch_norms = any(isinstance(m, nn.BatchNorm2d) for m in view.module.modules())
        self.twice = batch_norms and view.device.type == "cpu"

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values, and values of the activation's inputs where a feature can be revived."""
        if self.twice and images.shape[:2] == (1, 1):
            values, pre = self._read(images.expand(1, 2, -1, -1, -1))
            return values.mean(1, keepdim=True), None if pre is None else pre.mean(1, keepdim=True)
        return self._read(images)

    def _read(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        flat, copies = images.flatten(0, 1), images.shape[1]
        wanted = set(self.weights) | set(self.pre_sites)
        values = torch.zeros(images.shape[:2], device=images.device)
        if self.logit_weights is None:
            acts = record(self.view, flat, wanted)
        else:
            acts, logits = record_with_logits(self.view, flat, wanted)
            values = values + torch.einsum("nmk,nk->nm", logits.float().unflatten(0, (-1, copies)), self.logit_weights)
        for site, weights in self.weights.items():
            values = values + self._mean_over_patches(acts[site], site, weights, copies)
        if not self.pre_sites:
            return values, None
        pre = [self._mean_over_patches(acts[p], s, self.weights[s], copies) for p, s in self.pre_sites.items()]
        return values, torch.stack(pre).sum(0)

    def _mean_over_patches(self, acts: Tensor, site: Site, weights: Tensor, copies: int) -> Tensor:
        patches = split_tokens(self.view, acts, site)[1].float().unflatten(0, (-1, copies))
        return torch.einsum("nmtf,nf->nmt", patches, weights).mean(2)


def _chunks(objectives: list[Objective], config: VisualizeConfig) -> list[list[int]]:
    """Rows that are run together: they read the same sites, so none computes layers only another needs."""
    groups: dict[Any, list[int]] = {}
    for row, objective in enumerate(objectives):
        groups.setdefault((objective.sites, objective.needs_logits), []).append(row)
    n = max(1, config.batch // config.copies)
    return [rows[i : i + n] for rows in groups.values() for i in range(0, len(rows), n)]


def _augment(
    pixels: Tensor, size: tuple[int, int], config: VisualizeConfig, progress: float, generators: list[torch.Generator]
) -> Tensor:
    """Copies of each picture [n, 3, h, w] -> [n, M, 3, H, W], re-drawn at every step."""
    images = pixels.unsqueeze(1).expand(-1, config.copies, -1, -1, -1)
    if config.rotate or config.zoom:
        images = transforms.rotate_and_scale(images, config.rotate, config.zoom, generators)
    images = transforms.random_crop(images, size, generators)
    if config.color_shift:
        images = transforms.color_shift(images, config.color_shift, generators)
    if config.noise:
        images = transforms.noise(images, config.noise * (1 - progress), config.noise_per, generators)
    if config.jitter:
        images = transforms.jitter(images, config.jitter, generators)
    return images


def _smoothness(view: ModelView, objectives: list[Objective], config: VisualizeConfig) -> Tensor:
    if config.smoothness != "auto":
        return torch.full((len(objectives),), float(config.smoothness), device=view.device)
    measured: dict[Site | None, float] = {}

    def weight(term: tuple[float, Target]) -> float:
        site = None if isinstance(term[1], Logit) else term[1].site
        if site not in measured:
            measured[site] = automatic_smoothness(view, site, config.auto_strength)
        return abs(term[0]) * measured[site]

    return torch.tensor([max(map(weight, o.terms)) for o in objectives], device=view.device)


def _is_here(device: str) -> bool:
    return device == "cpu" or device == best_device().type


def _generator(seed: int, address: str) -> torch.Generator:
    """Of the CPU, so that draws are the same whatever device makes the picture."""
    digest = sha256(f"{seed} {address}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _recipe(
    view: ModelView, objective: Objective, config: VisualizeConfig, score: float, transfer: float, dead_steps: int
) -> dict[str, Any]:
    return {
        "schema": _SCHEMA,
        **view.identity.to_json(),
        "objective": _terms_to_json(objective),
        "address": str(objective),
        "config": config.to_dict(),
        "versions": versions(),
        "device": view.device.type,
        "draws": "cpu",
        "score": score,
        "transfer_score": transfer,
        "dead_steps": dead_steps,
    }


def _terms_to_json(objective: Objective) -> list[dict[str, Any]]:
    return [_term_to_json(w, t) for w, t in objective.terms]


def _term_to_json(weight: float, target: Target) -> dict[str, Any]:
    if isinstance(target, Direction):
        packed = torch.tensor(target.vector, dtype=torch.float32).numpy().tobytes()
        vector = base64.b64encode(packed).decode()
        return {"weight": weight, "site": str(target.site), "float32": vector, "name": target.name}
    return {"weight": weight, "target": str(target)}


def _objective_from(terms: Any) -> Objective:
    return Objective(tuple((float(t["weight"]), _target_from(t)) for t in terms))


def _target_from(term: dict[str, Any]) -> Target:
    if "float32" in term:
        vector = torch.frombuffer(bytearray(base64.b64decode(term["float32"])), dtype=torch.float32)
        return Direction(parse_site(term["site"]), tuple(vector.tolist()), str(term["name"]))
    if str(term["target"]).startswith("logit:"):
        return Logit(int(str(term["target"])[6:]))
    return parse_feature(term["target"])
