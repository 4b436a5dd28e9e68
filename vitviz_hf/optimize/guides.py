"""Real images that go into a picture: those whose statistics it is pulled to, or the one that it starts from."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitviz_hf.errors import ConfigError
from vitviz_hf.images import encode, image_to_pixels, open_image, pixels_to_image
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.objectives import AtToken, Objective, Target, check_objective, to_objective
from vitviz_hf.optimize.scores import score_pixels
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Feature, Site, parse_site

N_IMAGES = 9
"""Of those that excite a feature most, as many as are taken where nobody chooses them."""
_UNIFORM = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Guide:
    """What real images give to one picture."""

    n_images: int
    best: float
    """Largest score of the objective on them; above 0 where there are moments."""
    moments: Mapping[Site, Tensor] = field(default_factory=dict)
    """[2, F] mean and deviation of every feature over the images' patches, on the CPU."""
    start: bytes = b""
    """JPEG of the photograph that the picture starts from, at the model's input size."""

    def to_json(self) -> dict[str, Any]:
        """As recipes have it."""
        told: dict[str, Any] = {"images": self.n_images, "best": self.best}
        if self.start:
            told["start"] = base64.b64encode(self.start).decode()
        return told | {"moments": {str(s): _pack(m) for s, m in self.moments.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Guide":
        """The inverse of `to_json`.

        Raises:
            ValueError: numbers that no images give.
        """
        moments = {parse_site(s, None): _unpack(m) for s, m in dict(values["moments"]).items()}
        start, best = base64.b64decode(values.get("start", "")), torch.tensor(float(values["best"]))
        if not all(x.isfinite().all() for x in (best, *moments.values())) or (moments and best <= 0):
            raise ValueError("a guide's numbers must be finite, and its best score above 0")
        return cls(int(values["images"]), float(values["best"]), moments, start)

    @property
    def photograph(self) -> Tensor:
        """What the picture starts from, [3, H, W] in [0, 1]."""
        return image_to_pixels(open_image(self.start))


def guide_by_images(view: ModelView, target: Objective | Target | str, images: Tensor) -> Guide:
    """What the preset `aligned` needs: statistics of the patches of images that excite a feature.

    Patches count by how much they excite it, and a little all alike. For directions, sums and classes, images count by
    their scores, and all patches of an image alike.

    Args:
        images: [N, 3, H, W] in [0, 1] at the model's input size.

    Raises:
        ConfigError: no image, or none on which the objective is above 0; or images of another size.

    Source: after VITAL, arXiv:2503.22399, with two moments in the place of the whole distribution.
    """
    objective = to_objective(target, view.kinds)
    check_objective(view, objective)
    _check_size(view, images)
    best = _best(view, objective, images)
    maps = _maps(view, objective, images).clamp_min(0)
    maps = maps if maps.any() else torch.ones_like(maps)
    found = activations(view, images.to(view.device), _sites(view, objective))
    moments = {}
    for site, acts in found.items():
        weights = functional.interpolate(maps[:, None], acts.tap.patch_grid, mode="area").flatten()
        weights = (1 - _UNIFORM) * weights / weights.sum() + _UNIFORM / len(weights)
        values = acts.in_float32().patches.flatten(0, 1)
        mean = weights @ values
        moments[site] = torch.stack([mean, (weights @ (values - mean).square()).sqrt()]).cpu()
    return Guide(len(images), best, moments)


def guide_by_photograph(view: ModelView, target: Objective | Target | str, photograph: Tensor) -> Guide:
    """What the preset `accent` needs: the photograph that the picture starts from.

    Args:
        photograph: [3, H, W] in [0, 1] at the model's input size.

    Raises:
        ConfigError: a photograph of another size.

    Source: after Hamblin et al. 2024, "Feature Accentuation", arXiv:2402.10039.
    """
    objective = to_objective(target, view.kinds)
    check_objective(view, objective)
    _check_size(view, photograph)
    start = encode(pixels_to_image(photograph), "JPEG", quality=95, subsampling=0)
    score = float(score_pixels(view, [objective], photograph[None, None].to(view.device)))
    return Guide(1, score, start=start)


def guide_by(view: ModelView, target: Objective | Target | str, images: Tensor, config: VisualizeConfig) -> Guide:
    """What the options need of images [N, 3, H, W], the best first: the statistics of all, or the first one.

    Raises:
        ConfigError: as `guide_by_images` and `guide_by_photograph`.
    """
    return guide_by_images(view, target, images) if config.align else guide_by_photograph(view, target, images[0])


def check_guides(
    view: ModelView, config: VisualizeConfig, objectives: Sequence[Objective], guides: Sequence[Guide]
) -> None:
    """Raise unless there is what the options need, for each objective.

    Raises:
        ConfigError: there is not.
    """
    if config.align and config.keep:
        raise ConfigError(
            "a picture is pulled to images (align) or kept near a photograph (keep); set one of them to 0."
        )
    needs = needed(config)
    if not needs and guides:
        raise ConfigError("real images were given, but the options use none; take the preset 'aligned' or 'accent'.")
    if needs and (len(guides) != len(objectives) or any(not (g.moments if config.align else g.start) for g in guides)):
        raise ConfigError(
            f"these options need {needs}, for each of {len(objectives)} objectives; got {len(guides)} guides; make "
            f"them with {'guide_by_images' if config.align else 'guide_by_photograph'}."
        )
    for objective, guide in zip(objectives, guides, strict=False):
        if config.keep:
            _check_size(view, guide.photograph)
        elif {s: m.shape for s, m in guide.moments.items()} != _shapes(view, objective):
            raise ConfigError(f"a guide of '{objective}' was made for another objective or model.")
    if config.keep and config.margin >= min(view.input_size):
        raise ConfigError(f"margin must be below {min(view.input_size)} beside a photograph; got {config.margin}.")


def needed(config: VisualizeConfig) -> str:
    """The real images that options need, in words; empty without any."""
    return "images that excite the feature" if config.align else "a photograph to start from" if config.keep else ""


def misfit(reads: Mapping[Site, Tensor], guides: Sequence[Guide]) -> Tensor:
    """How far pictures are from the statistics of their real images, [N]: 0 if they have the same, about 2 at first.

    Args:
        reads: site -> values [N, M, P, F] on M copies of N pictures.
    """
    apart = []
    for site, values in reads.items():
        want = torch.stack([g.moments[site] for g in guides]).to(values.device)
        flat = values.flatten(1, 2)
        for own, wanted in ((flat.mean(1), want[:, 0]), (flat.std(1, correction=0), want[:, 1])):
            apart.append((own - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-6))
    return 2 * torch.stack(apart).mean(0)


class Photographs:
    """Photographs that pictures start from, and how far the pictures left them where their features do not fire.

    For directions, sums and classes they are kept everywhere alike.
    """

    def __init__(self, view: ModelView, objectives: Sequence[Objective], guides: Sequence[Guide], margin: int) -> None:
        pixels = torch.stack([g.photograph for g in guides]).to(view.device)
        self.pixels = functional.pad(pixels, [margin] * 4, mode="reflect")
        free, unit = [], []
        for objective, own in zip(objectives, pixels, strict=True):
            values = _maps(view, objective, own[None])
            fires = values.clamp_min(0) if values.numel() > 1 else torch.zeros_like(values)
            wide = functional.interpolate(fires[:, None], view.input_size, mode="bilinear")
            wide = wide / wide.amax().clamp_min(1e-12)
            free.append(functional.pad(wide, [margin] * 4, mode="reflect")[0])
            unit.append(values.abs().amax())
        self.held, self.unit = 1 - torch.stack(free), torch.stack(unit)
        self.usual = self.pixels.var((1, 2, 3)).clamp_min(1e-4)

    def left(self, canvases: Tensor) -> Tensor:
        """In units of the objective's largest value on the photograph: 1 for a gray one, [N].

        Args:
            canvases: [N, 3, h, w] in [0, 1], with the margin.
        """
        apart = (self.held * (canvases - self.pixels).square()).mean((1, 2, 3))
        return self.unit * apart / self.usual


def _sites(view: ModelView, objective: Objective) -> list[Site]:
    """The first blocks, which see texture and color, and those up to the objective's."""
    last = max((s.layer for s in objective.sites), default=len(view.layers) - 1)
    last = len(view.layers) - 1 if objective.needs_logits else last
    return [Site(layer, "resid") for layer in sorted({i for i in (0, 1, 3, last - 2, last) if 0 <= i <= last})]


def _shapes(view: ModelView, objective: Objective) -> dict[Site, tuple[int, int]]:
    """Of moments."""
    return {site: (2, find_tap(view, site).size) for site in _sites(view, objective)}


def _check_size(view: ModelView, pixels: Tensor) -> None:
    if (size := tuple(pixels.shape[-2:])) != view.input_size:
        raise ConfigError(f"a real image must have the input size {view.input_size}; got {size}; see to_pixels.")


def _best(view: ModelView, objective: Objective, images: Tensor) -> float:
    best = float(score_pixels(view, [objective], images[None].to(view.device)).max()) if len(images) else 0.0
    if best <= 0:
        raise ConfigError(f"'{objective}' is above 0 on none of the {len(images)} images; give some that excite it.")
    return best


def _maps(view: ModelView, objective: Objective, images: Tensor) -> Tensor:
    """Values of an objective at every patch, [N, R, C]; of directions, sums and classes the score, [N, 1, 1]."""
    weight, target = objective.terms[0]
    if isinstance(target, AtToken):
        target = target.target
    images = images.to(view.device)
    if len(objective.terms) > 1 or not isinstance(target, Feature):
        return score_pixels(view, [objective], images[None])[0][:, None, None]
    return weight * activations(view, images, [target.site])[target.site].in_float32().map(target.index)


def _pack(values: Tensor) -> str:
    return base64.b64encode(values.float().numpy().tobytes()).decode()


def _unpack(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), np.float32).reshape(2, -1).copy())
