"""Which patches an objective rests on, by its gradients: to attention (Chefer, LeGrad) or to the picture."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vitviz_hf.errors import ConfigError, ModelError, NonFiniteError
from vitviz_hf.models.hooks import replace_inputs_and_outputs
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.optimize.objectives import Objective, Target, check_objective, readout, to_objective
from vitviz_hf.optimize.scores import Readout
from vitviz_hf.reading.attention import Attending, unreadable, watch_attention
from vitviz_hf.reading.maps import name_precision
from vitviz_hf.reading.recording import Acts, record, record_with_logits
from vitviz_hf.sites import Site

METHODS = ("auto", "legrad", "chefer", "gradient-input")


@dataclass(frozen=True, slots=True, eq=False)
class Relevance:
    """What each patch of one picture contributes to an objective, as one method tells."""

    map: Tensor
    """[R, C] in float32 on the CPU; `gradient-input` has negative values too, the others have none."""
    method: str
    """Which, where `auto` chose."""
    score: float
    """The objective's value on the picture."""


def relevance(view: ModelView, pixels: Tensor, objective: Objective | Target | str, method: str = "auto") -> Relevance:
    """Relevance of the patches of one picture for an objective.

    - `chefer`: in each layer the positive part of gradient x attention, mean over heads, is joined with that of the
      layers before by R <- R + A R, from R = 1. The map is the row of R - 1 of the token that the objective is read
      from; of several tokens, the mean of their rows, weighted by the length of the objective's gradient to each: all
      patches alike for a feature's mean over patches, the class token alone for a logit that is read from it.
    - `legrad`: in each layer the positive part of the gradient to its attention, mean over heads and query tokens,
      summed over layers and scaled to 0-1. As in the paper, the gradient is that of the objective as it would be if
      the layers after this one were skipped: tokens after the layer go at once to the layer of the objective's site,
      or to what follows the last layer for a logit, and only this layer's attention is differentiated. (The
      authors' code takes the mean of all tokens of CLIP's last two layers there; here all layers count, and the tokens
      are read as the model reads its last ones.)
    - `gradient-input`: gradient x (pixel - mean color of the model's normalization), summed over colors and the
      pixels of each patch of the first layer's grid. For any family; for a linear model the sum of the map is the
      score less that of a picture of the mean color.
    - `auto`: `legrad` where the attention can be read and comes before the objective, else `gradient-input`.

    Args:
        pixels: [1, 3, H, W] in [0, 1].

    Raises:
        ConfigError: an unknown method, several pictures, or the objective is read before the first attention, or
            layers work on windows or several grids, with `chefer` and `legrad`.
        ModelError: the attention of this architecture cannot be read.
        NonFiniteError: the map is NaN or infinite.
        SiteError, FeatureError: the model does not have what the objective asks for.

    Source: Chefer et al. 2021, arXiv:2103.15679, section 3.2; Bousselham et al. 2024, arXiv:2404.03214, section 3.
    """
    objective = to_objective(objective, view.kinds)
    check_objective(view, objective)
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    if len(pixels) != 1:
        raise ConfigError(f"relevance takes one picture; got a batch of {len(pixels)}.")
    if method == "auto":
        try:
            return relevance(view, pixels, objective, "legrad")
        except NonFiniteError:
            raise
        except (ConfigError, ModelError):
            method = "gradient-input"
    with torch.enable_grad():
        values, score = _METHODS[method](view, pixels.detach(), objective)
    if not values.isfinite().all():
        raise NonFiniteError(f"the relevance by {name_precision(view)} is NaN or infinite. Load it in float32.")
    return Relevance(values.detach().float().cpu(), method, float(score.detach()))


def _chefer(view: ModelView, pixels: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    last: list[Tensor] = []

    def keep(tokens: Tensor) -> Tensor:
        last.append(tokens)
        return tokens

    with _open_attention(view) as weights, replace_inputs_and_outputs(view.module, {}, {view.layers[-1].name: keep}):
        read = _read(view, pixels, objective)
    _check_weights(view, objective, weights)
    score = _value(view, objective, read)
    tokens = [a.values for a in read.acts.values()] + (last if objective.needs_logits else [])
    gradients = torch.autograd.grad(score, [*weights, *tokens])
    joined = start = torch.eye(weights[0].shape[-1], device=score.device)
    for attention, gradient in zip(weights, gradients, strict=False):
        joined = joined + (gradient * attention)[0].clamp_min(0).mean(0) @ joined
    lengths = torch.stack([g[0].float().norm(dim=-1) for g in gradients[len(weights) :]]).sum(0)
    return _on_grid(view, functional.normalize(lengths, p=1, dim=0) @ (joined - start)), score


def _legrad(view: ModelView, pixels: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    parts = [Objective(tuple(t for t in objective.terms if t[1].site == site)) for site in _sites(objective)]
    n_resids = [_count_resids(view, part) for part in parts]
    resids = [Site(i, "resid") for i in range(max(n_resids))]
    alone = {layer.name: Tensor.detach for layer in view.layers}
    with _open_attention(view) as weights, replace_inputs_and_outputs(view.module, alone, {}):
        read = _read(view, pixels, objective, resids)
    _check_weights(view, objective, weights)
    total = torch.zeros((), device=pixels.device)
    for part, n in zip(parts, n_resids, strict=True):
        if _is_inside(view, part):
            total = total + _value(view, part, read)
        if n:
            tokens = torch.cat([read.acts[site].values for site in resids[:n]])
            total = total + _value(view, part, _read_from(view, pixels, part, tokens))
    found = torch.zeros(weights[0].shape[-1], device=total.device)
    for gradient in torch.autograd.grad(total, weights):
        found = found + gradient[0].clamp_min(0).mean((0, 1))
    values = _on_grid(view, found)
    spread = (values.max() - values.min()).clamp_min(torch.finfo(values.dtype).tiny)
    return (values - values.min()) / spread, _value(view, objective, read)


def _gradient_input(view: ModelView, pixels: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    pixels = pixels.clone().requires_grad_()
    score = Readout(view, [objective])(pixels[None]).values.sum()
    (gradient,) = torch.autograd.grad(score, pixels)
    change = (gradient * (pixels - pixels.new_tensor(view.mean)[:, None, None])).sum(1)
    height, width = change.shape[1:]
    rows, cols = view.layers[0].patch_grid if view.layers else (height // 16, width // 16)
    return functional.adaptive_avg_pool2d(change, (rows, cols))[0] * (height * width / (rows * cols)), score


_METHODS: dict[str, Callable[[ModelView, Tensor, Objective], tuple[Tensor, Tensor]]] = {
    "legrad": _legrad,
    "chefer": _chefer,
    "gradient-input": _gradient_input,
}


@contextmanager
def _open_attention(view: ModelView) -> Iterator[list[Tensor]]:
    """Attention of the layers that run in the block, each [B, heads, T, T] and a part of the graph."""
    weights: list[Tensor] = []

    def attend(call: Attending) -> Tensor:
        attention = call.weights()
        if not attention.requires_grad:
            attention.requires_grad_()
        weights.append(attention)
        return attention.to(call.value.dtype) @ call.value

    with watch_attention(view, attend):
        yield weights


def _check_weights(view: ModelView, objective: Objective, weights: list[Tensor]) -> None:
    most = len(view.layers) if objective.needs_logits else max(objective.sites).layer + 1
    if not weights and most == 1:
        raise ConfigError(f"no attention comes before '{objective}'; choose gradient-input, or a later site.")
    if len(weights) not in {most, most - (not objective.needs_logits)}:
        raise unreadable(view)


class _Read(NamedTuple):
    acts: dict[Site, Acts]
    logits: Tensor | None


def _read(view: ModelView, pixels: Tensor, objective: Objective, beside: Collection[Site] = ()) -> _Read:
    wanted = objective.sites | set(beside)
    if objective.needs_logits:
        return _Read(*record_with_logits(view, pixels, wanted))
    return _Read(record(view, pixels, wanted), None)


def _value(view: ModelView, objective: Objective, read: _Read) -> Tensor:
    """The objective's value, summed over pictures."""
    total = torch.zeros((), device=view.device)
    for (site, token), weights in readout(view, [objective]).items():
        if site is None:
            assert read.logits is not None
            values = read.logits.float()
        else:
            acts = read.acts[site]
            values = acts.patches.float().mean(1) if token is None else acts.at(token).float()
        total = total + (values @ weights[0]).sum()
    return total


def _sites(objective: Objective) -> set[Site | None]:
    return {target.site for _, target in objective.terms}


def _is_inside(view: ModelView, part: Objective) -> bool:
    """Whether the site of a part of an objective is inside of a block, and not what the block puts out."""
    (site,) = _sites(part)
    return site is not None and find_tap(view, site).module != view.layers[site.layer].name


def _count_resids(view: ModelView, part: Objective) -> int:
    """Number of the first layers after which the tokens can go at once to where a part of an objective is read."""
    (site,) = _sites(part)
    return len(view.layers) if site is None else site.layer + (not _is_inside(view, part))


def _read_from(view: ModelView, pixels: Tensor, part: Objective, tokens: Tensor) -> _Read:
    """As if tokens [N, T, F] came to the block of the part's site, or out of the block whose output it is."""
    (site,) = _sites(part)
    name = view.layers[-1 if site is None else site.layer].name
    # What runs before them runs for one picture.
    inputs: dict[str, Callable[[Tensor], Tensor]] = {view.layers[0].name: lambda x: x[:1]}
    outputs: dict[str, Callable[[Tensor], Tensor]] = {}
    (inputs if _is_inside(view, part) else outputs)[name] = lambda _: tokens
    with replace_inputs_and_outputs(view.module, inputs, outputs):
        return _read(view, pixels.expand(len(tokens), -1, -1, -1), part)


def _on_grid(view: ModelView, values: Tensor) -> Tensor:
    """Values of tokens [T] at the patches [R, C]."""
    layer = view.layers[0]
    return values[layer.n_prefix :].view(layer.patch_grid)
