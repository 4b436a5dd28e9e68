"""Feature visualization: optimize images that maximize objectives. One loop for Python, CLI and app."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from vitviz_hf import transforms
from vitviz_hf.activations import record, record_with_logits
from vitviz_hf.canvas import Canvas, fourier_canvas, pixel_canvas
from vitviz_hf.errors import ConfigError
from vitviz_hf.measure import PRE_ACT
from vitviz_hf.model import ModelView, find_tap
from vitviz_hf.objectives import (
    Objective,
    Target,
    can_revive,
    check_objective,
    readout,
    sites_of,
    to_objective,
)
from vitviz_hf.sites import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualizeConfig:
    """Every knob of feature visualization. The defaults are the preset `fast`... """

    preset_name: str = "custom"
    canvas: Literal["pixels", "fourier"] = "fourier"
    margin: int = 16
    steps: int = 160
    copies: int = 4
    learning_rate: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.99
    decay: Literal["cosine", "none"] = "cosine"
    color_shift: float = 0.0
    noise: float = 0.0
    noise_per: Literal["pixel", "color"] = "pixel"
    jitter: int = 0
    rotate: float = 0.0
    scale: float = 0.0
    smoothness: float | Literal["auto"] = "auto"
    auto_smoothness: float = 0.1
    revive: bool = True
    autocast: bool = False
    batch: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    index: int
    pixels: Tensor
    scores: Tensor
    dead: Tensor


def visualize_steps(view, objectives, config):
    objectives = [to_objective(o) for o in objectives]
    for o in objectives:
        check_objective(view, o)
    generators = [_generator(config.seed, str(o), view.device) for o in objectives]
    size = tuple(s + 2 * config.margin for s in view.input_size)
    canvas = (fourier_canvas if config.canvas == "fourier" else pixel_canvas)(size, generators, view.device)
    params = canvas.params.requires_grad_(True)
    optimizer = torch.optim.Adam([params], lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=1e-8)
    chunks = _chunks(view, objectives, config)
    weights = _smoothness(view, objectives, config)
    for index in range(config.steps):
        done = index / max(1, config.steps)
        for group in optimizer.param_groups:
            if config.decay == "cosine":
                group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.zero_grad(set_to_none=True)
        scores = params.new_zeros(len(objectives))
        dead = params.new_zeros(len(objectives), dtype=torch.bool)
        for rows, chunk in chunks:
            with torch.enable_grad():
                images = _ensemble(canvas.to_pixels(params[rows]), view, config, done, [generators[r] for r in rows])
                loss, s, d = chunk(images, weights[rows])
                loss.backward()
            scores[rows] = s; dead[rows] = d
        optimizer.step()
        with torch.no_grad():
            canvas.constrain(params)
            pixels = _center(canvas.to_pixels(params), view.input_size)
        yield Step(index, pixels, scores, dead)


def _generator(seed, address, device):
    digest = hashlib.sha256(f"{seed} {address}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "big"))


def _center(pixels, size):
    t, l = (pixels.shape[-2] - size[0]) // 2, (pixels.shape[-1] - size[1]) // 2
    return pixels[..., t : t + size[0], l : l + size[1]]


def _chunks(view, objectives, config):
    groups = {}
    for n, o in enumerate(objectives):
        groups.setdefault((o.sites, o.needs_logits), []).append(n)
    per = max(1, config.batch // config.copies)
    return [
        (rows[i : i + per], partial(_chunk_loss, view, *_readers(view, [objectives[r] for r in rows[i : i + per]], config)))
        for rows in groups.values()
        for i in range(0, len(rows), per)
    ]


def _readers(view, objectives, config):
    weights, logits = readout(view, objectives)
    revive = torch.tensor([config.revive and can_revive(view, o) for o in objectives], device=view.device)
    return weights, logits, revive, bool(revive.any())


def _value(acts, weights, n, n_prefix):
    patches = acts.unflatten(0, (n, -1))[..., n_prefix:, :].float()
    return torch.einsum("nmtf,nf->nm", patches, weights) / patches.shape[2]


def _chunk_loss(view, weights, logit_weights, revive, any_revive, images, smoothness):
    n = images.shape[0]
    sites = set(weights)
    pre = {Site(s.layer, PRE_ACT): s for s in sites} if any_revive else {}
    flat = images.flatten(0, 1)
    if logit_weights is None:
        acts = record(view, flat, sites | set(pre))
        value = 0
    else:
        acts, logits = record_with_logits(view, flat, sites)
        value = torch.einsum("nmk,nk->nm", logits.float().unflatten(0, (n, -1)), logit_weights)
    for site, w in weights.items():
        value = value + _value(acts[site], w, n, view.layers[site.layer].n_prefix)
    score = value.mean(1)
    target = score
    dead = torch.zeros(n, dtype=torch.bool, device=score.device)
    for pre_site, site in pre.items():
        pv = _value(acts[pre_site], weights[site], n, view.layers[site.layer].n_prefix).mean(1)
        dead = revive & (score.detach() <= 0)
        target = torch.where(dead, pv, score)
    loss = (smoothness * transforms.total_variation(images)).sum() - target.sum()
    return loss, score.detach(), dead


def _ensemble(pixels, view, config, done, generators):
    images = pixels.unsqueeze(1).expand(-1, config.copies, -1, -1, -1)
    if config.rotate or config.scale:
        images = transforms.rotate_and_scale(images, config.rotate, config.scale, generators)
    images = transforms.random_crop(images, view.input_size, generators)
    if config.color_shift:
        images = transforms.color_shift(images, config.color_shift, generators)
    if config.noise:
        images = transforms.noise(images, config.noise * (1 - done), config.noise_per, generators)
    if config.jitter:
        images = transforms.jitter(images, config.jitter, generators)
    return images


def site_gradient(view, site, n=4, seed=0):
    """RMS over features of grad norm."""
    g = _generator(0, str(site), view.device)
    noise = torch.rand(n, 3, *view.input_size, generator=g, device=view.device).requires_grad_(True)
    kind = PRE_ACT if site.kind == "mlp_act" and PRE_ACT in view.layers[site.layer].taps else site.kind
    s = Site(site.layer, kind)
    acts = record(view, noise, [s])[s]
    probes = torch.randn(n, acts.shape[-1], generator=g, device=view.device)
    v = torch.einsum("ntf,nf->n", acts[:, view.layers[site.layer].n_prefix:], probes) / (acts.shape[1] - view.layers[site.layer].n_prefix)
    (grad,) = torch.autograd.grad(v.sum(), noise)
    signal = (grad.square().sum((1, 2, 3)).mean() / acts.shape[-1]).sqrt()
    tv = transforms.total_variation(noise[:, None])
    (tg,) = torch.autograd.grad(tv.sum(), noise)
    return float(signal), float(tg.square().sum((1, 2, 3)).mean().sqrt())


def _smoothness(view, objectives, config):
    if config.smoothness != "auto":
        return torch.full((len(objectives),), float(config.smoothness), device=view.device)
    out = []
    for o in objectives:
        v = 0.0
        for site in o.sites:
            s, t = site_gradient(view, site)
            v += s / t
        out.append(config.auto_smoothness * v)
    return torch.tensor(out, device=view.device)
