"""Objectives as numbers of pictures."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from vitviz_hf.errors import ConfigError
from vitviz_hf.models.measure import PRE_ACT
from vitviz_hf.models.view import ModelView
from vitviz_hf.optimize import transforms
from vitviz_hf.optimize.canvas import seeded_generator
from vitviz_hf.optimize.objectives import Objective, can_revive, place_of, readout, run_together
from vitviz_hf.reading.recording import Acts, record, record_with_logits
from vitviz_hf.sites import Site, Token

_TOGETHER = 64
"""Images in one forward pass of a device beside the CPU."""


def score_pixels(view: ModelView, objectives: Sequence[Objective], images: Tensor) -> Tensor:
    """Objective n on each of its images [N, M, 3, H, W] in [0, 1] -> [N, M], without gradients."""
    # A CPU gains nothing by large batches, and gives so each picture the number that it has alone, to the last bit.
    together = 1 if view.device.type == "cpu" else max(1, _TOGETHER // images.shape[1])
    values = torch.zeros(images.shape[:2], device=images.device)
    with torch.no_grad():
        for rows in run_together(objectives, together):
            values[rows] = Readout(view, [objectives[r] for r in rows])(images[rows]).values
    return values


def transfer_scores(view: ModelView, objectives: Sequence[Objective], pixels: Tensor) -> Tensor:
    """Score [N] of pictures under changes no preset optimizes for: does the feature see what a person sees?

    Mean over eight fixed draws of rotation up to 20 degrees, zoom by up to e^0.25 and Gaussian blur of 1 pixel.
    """
    generators = [seeded_generator(0, "transfer") for _ in objectives]
    images = pixels.unsqueeze(1).expand(-1, 8, -1, -1, -1)
    images = transforms.rotate_and_scale(images, 20, 0.25, generators)
    blurred = tv.gaussian_blur(images.flatten(0, 1), [5, 5], [1.0, 1.0]).view_as(images)
    return score_pixels(view, objectives, blurred).mean(1)


def check_sensitive(view: ModelView, objectives: Sequence[Objective]) -> None:
    """Raise if an objective reads the class token where it is the same for every picture, before the first attention.

    Raises:
        ConfigError: it does.
    """
    for site in sorted({t.site for o in objectives for _, t in o.terms if t.site and place_of(t)[1] == "cls"}):
        generator = seeded_generator(0, f"{site}@cls")
        noise = torch.rand(1, 3, *view.input_size, generator=generator).to(view.device)
        with torch.enable_grad():
            noise.requires_grad_(True)
            values = record(view, noise, [site])[site].at("cls").float()
            probe = torch.randn(values.shape, generator=generator).to(view.device)
            (gradient,) = torch.autograd.grad((values * probe).sum(), noise)
        if not gradient.any():
            raise ConfigError(
                f"the class token is the same for every picture at '{site}', before its first attention; choose "
                f"another kind, such as '{site.layer}.mlp_act', or a later layer."
            )


class Read(NamedTuple):
    """What a `Readout` reads on M images of each of N objectives."""

    values: Tensor
    """[N, M]"""
    pre_values: Tensor | None
    """[N, M] values of the activation's inputs, where a feature can be revived."""
    patches: dict[Site, Tensor]
    """[N, M, P, F] at the sites that were asked for beside."""


class Readout:
    """Values of objectives that share sites, each on its own images [N, M, 3, H, W]."""

    def __init__(self, view: ModelView, objectives: list[Objective], beside: Collection[Site] = ()) -> None:
        self.view, self.beside = view, beside
        weights = readout(view, objectives)
        logit_weights = weights.pop((None, None), None)
        self.logit_weights = None if logit_weights is None else logit_weights.to(view.device)
        self.weights = {(s, token): _Weights.of(w, view.device) for (s, token), w in weights.items() if s is not None}
        self.revivable = torch.tensor([can_revive(view, o) for o in objectives], device=view.device)
        revivable = {place_of(o.terms[0][1]) for o in objectives if can_revive(view, o)}
        self.pre_sites = {place: Site(place[0].layer, PRE_ACT) for place in self.weights if place in revivable}
        # torch 2.13 on a CPU: the gradient of a batch norm at rest is wrong for a single image where it arrives with
        # the colors last, as in XCiT. Two copies of the image have the same mean and the right gradient.
        batch_norms = any(isinstance(m, nn.BatchNorm2d) for m in view.module.modules())
        self.twice = batch_norms and view.device.type == "cpu"

    def __call__(self, images: Tensor) -> Read:
        """Without `twice` one forward pass for all."""
        if self.twice and images.shape[:2] == (1, 1):
            values, pre, patches = self._read(images.expand(1, 2, -1, -1, -1))
            return Read(values.mean(1, keepdim=True), None if pre is None else pre.mean(1, keepdim=True), patches)
        return self._read(images)

    def _read(self, images: Tensor) -> Read:
        flat, copies = images.flatten(0, 1), images.shape[1]
        wanted = {site for site, _ in self.weights} | set(self.pre_sites.values()) | set(self.beside)
        values = torch.zeros(images.shape[:2], device=images.device)
        if self.logit_weights is None:
            acts = record(self.view, flat, wanted)
        else:
            acts, logits = record_with_logits(self.view, flat, wanted)
            values = values + torch.einsum("nmk,nk->nm", logits.float().unflatten(0, (-1, copies)), self.logit_weights)
        for (site, token), weights in self.weights.items():
            values = values + weights.sum(acts[site], token, copies)
        patches = {s: acts[s].patches.float().unflatten(0, (-1, copies)) for s in self.beside}
        if not self.pre_sites:
            return Read(values, None, patches)
        pre = [self.weights[place].sum(acts[s], place[1], copies) for place, s in self.pre_sites.items()]
        return Read(values, torch.stack(pre).sum(0), patches)


class _Weights(NamedTuple):
    """What N objectives weigh of a site's features."""

    columns: Tensor
    """[C], features with a weight: the others are not read."""
    values: Tensor
    """[N, C]"""

    @classmethod
    def of(cls, weights: Tensor, device: torch.device) -> "_Weights":
        """Of [N, F] on the CPU."""
        columns = weights.any(0).nonzero().squeeze(1)
        return cls(columns.to(device), weights[:, columns].to(device))

    def sum(self, acts: Acts, token: Token | None, copies: int) -> Tensor:
        """Weighted sum [N, M] of the features at a token, or of their means over patches."""
        read = replace(acts, values=acts.values.index_select(2, self.columns).float())
        if token is not None:
            return torch.einsum("nmf,nf->nm", read.at(token).unflatten(0, (-1, copies)), self.values)
        return torch.einsum("nmtf,nf->nmt", read.patches.unflatten(0, (-1, copies)), self.values).mean(2)
