"""What is subtracted from an objective: total variation, and how much of it."""

import math
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
from torch import Tensor

from vitviz_hf.models.measure import PRE_ACT
from vitviz_hf.models.view import ModelView
from vitviz_hf.optimize.canvas import seeded_generator
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.objectives import Objective, Place, Target, place_of
from vitviz_hf.reading.recording import record, record_with_logits
from vitviz_hf.sites import Site, Token


def automatic_smoothness(view: ModelView, site: Site | None, strength: float, token: Token | None = None) -> float:
    """Weight of total variation that balances gradients, measured on the model and site.

    The rule: `strength` times the gradient norm of a typical feature over the gradient norm of total variation, both
    at uniform noise, where every optimization starts. The typical feature is the root mean square over all features
    of the site (of their pre-activation, for mlp_act), estimated with four random probes.

    Args:
        site: None measures the logits.
        token: where the features are read; None takes their means over patches.
    """
    generator = seeded_generator(0, str(site))
    noise = torch.rand(4, 3, *view.input_size, generator=generator).to(view.device)
    with torch.enable_grad():
        noise.requires_grad_(True)
        if site is None:
            values = record_with_logits(view, noise, ())[1].float()
        else:
            has_pre_act = site.kind == "mlp_act" and PRE_ACT in view.layers[site.layer].taps
            source = Site(site.layer, PRE_ACT) if has_pre_act else site
            acts = record(view, noise, [source])[source].in_float32()
            values = acts.scores() if token is None else acts.at(token)
        probes = torch.randn(values.shape, generator=generator).to(view.device)
        (signal,) = torch.autograd.grad((values * probes).sum(), noise)
        (roughness,) = torch.autograd.grad(total_variation(noise.unsqueeze(1)).sum(), noise)
    typical = signal.norm() / math.sqrt(values.shape[1])
    return strength * float(typical / roughness.norm())


def smoothness_weights(view: ModelView, objectives: list[Objective], config: VisualizeConfig) -> Tensor:
    """Weight [N] of total variation for each objective: the config's, or measured."""
    if config.smoothness != "auto":
        return torch.full((len(objectives),), float(config.smoothness), device=view.device)
    measured: dict[Place, float] = {}

    def weight(term: tuple[float, Target]) -> float:
        site, token = place = place_of(term[1])
        if place not in measured:
            measured[place] = automatic_smoothness(view, site, config.auto_strength, token)
        return abs(term[0]) * measured[place]

    return torch.tensor([max(map(weight, o.terms)) for o in objectives], device=view.device)


def total_variation(images: Tensor) -> Tensor:
    """Roughness of each picture: L2 norm over (H, W) of the difference image, summed over four directions.

    Args:
        images: [N, M, 3, H, W].

    Returns:
        [N], mean over copies and colors. 0 for constant images.

    Source: the code of Ghiasi et al. 2022, arXiv:2212.06727.
    """
    value: Tensor = _TotalVariation.apply(images)
    return value


_ALL, _LATER, _EARLIER = slice(None), slice(1, None), slice(None, -1)
_DIRECTIONS = (
    ((_ALL, _LATER), (_ALL, _EARLIER)),
    ((_LATER, _ALL), (_EARLIER, _ALL)),
    ((_LATER, _LATER), (_EARLIER, _EARLIER)),
    ((_LATER, _EARLIER), (_EARLIER, _LATER)),
)
"""Rows and columns of the pixels, and of those that are subtracted from them."""


class _TotalVariation(torch.autograd.Function):
    """With its gradient written out, for autograd would fill a whole picture for each slice of it."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        differences = [images[..., *a] - images[..., *b] for a, b in _DIRECTIONS]
        norms = torch.stack([torch.linalg.vector_norm(d, dim=(-2, -1)) for d in differences])
        ctx.save_for_backward(norms, *differences)
        ctx.shape = images.shape
        return norms.sum(0).mean(dim=(1, 2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        norms, *differences = ctx.saved_tensors
        n = norms.shape[2] * norms.shape[3]
        factors = torch.where(norms > 0, gradient[:, None, None] / n / norms, 0)  # 0, not NaN, for a constant
        whole: Tensor = norms.new_zeros(ctx.shape)
        for (a, b), difference, factor in zip(_DIRECTIONS, differences, factors, strict=True):
            part = difference * factor[..., None, None]
            whole[..., *a] += part
            whole[..., *b] -= part
        return whole
