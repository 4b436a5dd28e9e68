"""Changes inside a model while it runs: a feature, a direction, a head or a token off, or up by a factor."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from vitviz_hf.errors import ConfigError, FeatureError, SiteError
from vitviz_hf.models.hooks import replace_inputs_and_outputs
from vitviz_hf.models.measure import Tap
from vitviz_hf.models.view import ModelView, check_feature, find_tap, run
from vitviz_hf.optimize.objectives import AtToken, Direction, check_objective, to_objective
from vitviz_hf.reading.attention import Attending, unreadable, watch_attention
from vitviz_hf.reading.classification import classify
from vitviz_hf.reading.recording import activations, token_position
from vitviz_hf.sites import Feature, Site, Token, parse_site, parse_token

Place = str | Feature | Direction | AtToken
"""What is changed: `5.mlp_act:10`, `5.mlp_act:10@3,4`, `3.head:2`, `4.resid@3,4`, `4.attn_out`, or a direction."""
_PLACE = re.compile(r"(\d+\.\w+)(?::(\d{1,7}))?(?:@([\w,]+))?")


@dataclass(frozen=True, slots=True)
class Change:
    """Values of one site times a factor."""

    site: Site
    factor: float
    columns: slice
    """Which of its features; for a direction, all."""
    token: Token | None
    """Which token; every one if None."""
    direction: tuple[float, ...] | None = None
    """The component along it alone is changed, whatever its length."""

    def apply(self, values: Tensor, tap: Tap) -> Tensor:
        """The values [B, T, F], changed; differentiable."""
        tokens = slice(None)
        if self.token is not None:
            position = token_position(tap, self.site, self.token)
            tokens = slice(position, position + 1)
        part = values[:, tokens, self.columns]
        if self.direction is None:
            new = part * self.factor
        else:
            unit = torch.nn.functional.normalize(part.new_tensor(self.direction), dim=0)
            new = part + (self.factor - 1) * (part @ unit)[..., None] * unit
        changed = values.clone()
        changed[:, tokens, self.columns] = new
        return changed


@dataclass(frozen=True, slots=True)
class EditEffect:
    """What a change does to one picture."""

    labels: list[tuple[str, float, float]]
    """Likeliest labels before or after, with their probability before and after; none without a classifier."""
    features: list[tuple[Feature, float, float]]
    """Later `mlp_act` features that change most, with their mean over patches before and after."""


@contextmanager
def edited(view: ModelView, changes: Mapping[Place, float]) -> Iterator[tuple[Change, ...]]:
    """Change the model inside the block, for the calling thread only: whatever reads it there reads it changed.

    A factor of 0 turns off, 1 changes nothing, 2 doubles. Of several changes at one place the earlier come first.

    Args:
        changes: what is changed -> factor.
            `5.mlp_act:10` is a feature at every token, `5.mlp_act:10@3,4` and `@cls` at one; `4.resid@3,4` a whole
            token, `4.attn_out` a whole site; a `Direction` the component of every token along it. `3.head:2` is a head:
            its share of the values mixed by attention. The output projection's bias, which belongs to no head, stays.

    Raises:
        SiteError, FeatureError: the model has no such site, feature or head.
        ConfigError: a factor is not finite, there is no such token, or the site cannot be changed.
        ModelError: a head is asked for, and the attention of this architecture cannot be read.
    """
    made = parse_changes(view, changes)
    sides: dict[str, dict[str, list[Callable[[Tensor], Tensor]]]] = {"input": {}, "output": {}}
    for change in made:
        tap = _writable(view, change.site)

        def hook(value: Tensor, change: Change = change, tap: Tap = tap) -> Tensor:
            return tap.change(value, lambda values: change.apply(values, tap))

        sides[tap.side].setdefault(tap.module, []).append(hook)
    inputs, outputs = ({name: _in_turn(hooks) for name, hooks in side.items()} for side in sides.values())
    with replace_inputs_and_outputs(view.module, inputs, outputs):
        yield made


def compare_edit(view: ModelView, pixels: Tensor, changes: Mapping[Place, float], k: int = 10) -> EditEffect:
    """What changes do to the labels and to later features of one picture.

    Args:
        pixels: [1, 3, H, W] in [0, 1].
        changes: as `edited` takes them.
        k: features that are listed: `mlp_act` from the first changed layer on, by the change of their mean over patches
            in standard deviations of such means over the features of their layer. Those that were changed, or do
            not change, are left out.

    Raises:
        ConfigError: several pictures.
        VitvizError: as `edited`.
    """
    if len(pixels) != 1:
        raise ConfigError(f"compare_edit takes one picture; got a batch of {len(pixels)}.")
    made = parse_changes(view, changes)
    start = min((c.site.layer for c in made), default=0)
    sites = [Site(i, "mlp_act") for i in range(start, len(view.layers))]
    before, labels = _scores(view, pixels, sites), _probabilities(view, pixels)
    with edited(view, changes):
        after, other = _scores(view, pixels, sites), _probabilities(view, pixels)
    moved = []
    for site in sites:
        units = before[site].std(correction=0).clamp_min(torch.finfo(torch.float32).tiny)
        steps = (after[site] - before[site]).abs() / units
        for change in made:
            if change.site == site and change.direction is None:
                steps[change.columns] = 0
        best = steps.topk(min(k, len(steps)))
        moved += [(v, Feature(site, i)) for v, i in zip(best.values.tolist(), best.indices.tolist(), strict=True) if v]
    chosen = [f for _, f in sorted(moved, key=lambda pair: (-pair[0], pair[1]))[:k]]
    return EditEffect(
        _likeliest(view, labels, other),
        [(f, float(before[f.site][f.index]), float(after[f.site][f.index])) for f in chosen],
    )


def parse_changes(view: ModelView, changes: Mapping[Place, float]) -> tuple[Change, ...]:
    """The changes that places and factors mean, checked; errors as of `edited`."""
    for place, factor in changes.items():
        if not math.isfinite(factor):
            raise ConfigError(f"the factor of '{place}' must be a finite number; got {factor!r}.")
    return tuple(_parse(view, place, float(factor)) for place, factor in changes.items())


def _parse(view: ModelView, place: Place, factor: float) -> Change:
    target = place.target if isinstance(place, AtToken) else place
    if isinstance(target, Direction):
        check_objective(view, to_objective(place))
        token = place.token if isinstance(place, AtToken) else None
        return _checked(view, Change(target.site, factor, slice(None), token, target.vector))
    match = _PLACE.fullmatch(str(place).strip())
    if match is None:
        raise SiteError(
            f"{str(place)[:100]!r} cannot be changed; write a feature such as '5.mlp_act:10', a head '3.head:2', "
            "a token '4.resid@3,4' or a site '4.attn_out'."
        )
    site = parse_site(match[1], (*view.kinds, "head"))
    token = parse_token(match[3]) if match[3] else None
    if site.kind == "head":
        return _checked(view, _head(view, site.layer, match[2], factor, token))
    columns = slice(None)
    if match[2] is not None:
        check_feature(view, Feature(site, int(match[2])))
        columns = slice(int(match[2]), int(match[2]) + 1)
    return _checked(view, Change(site, factor, columns, token))


def _head(view: ModelView, layer: int, index: str | None, factor: float, token: Token | None) -> Change:
    site = Site(layer, "attn_mix")
    size, n_heads = find_tap(view, site).size, _count_heads(view)[layer]
    if index is None or int(index) >= n_heads:
        got = "no number" if index is None else index
        raise FeatureError(f"layer {layer} of {view.model_id!r} has heads 0-{n_heads - 1}; got {got}.")
    width = size // n_heads
    return Change(site, factor, slice(int(index) * width, (int(index) + 1) * width), token)


def _count_heads(view: ModelView) -> list[int]:
    found: list[int] = []

    def count(call: Attending) -> None:
        found.append(call.query.shape[1])

    with torch.no_grad(), watch_attention(view, count):
        run(view, torch.zeros(1, 3, *view.input_size, device=view.device))
    if len(found) != len(view.layers):
        raise unreadable(view)
    return found


def _checked(view: ModelView, change: Change) -> Change:
    tap = _writable(view, change.site)
    if change.token is not None:
        token_position(tap, change.site, change.token)
    return change


def _writable(view: ModelView, site: Site) -> Tap:
    tap = find_tap(view, site)
    why = ""
    if tap.function is not None:
        why = "it is computed beside the model; change what it is computed from"
    elif tap.order is not None:
        why = "its tokens lie in windows"
    elif tap.call or tap.item or sum(layer.name == view.layers[site.layer].name for layer in view.layers) > 1:
        why = "its block runs several times"
    if why:
        raise ConfigError(f"'{site}' of {view.model_id!r} cannot be changed: {why}.")
    return tap


def _in_turn(hooks: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    return lambda value: reduce(lambda x, hook: hook(x), hooks, value)


def _scores(view: ModelView, pixels: Tensor, sites: list[Site]) -> dict[Site, Tensor]:
    return {s: a.scores()[0].cpu() for s, a in activations(view, pixels, sites).items()}


def _probabilities(view: ModelView, pixels: Tensor) -> Tensor | None:
    return None if view.labels is None else classify(view, pixels).logits[0].float().softmax(0).cpu()


def _likeliest(view: ModelView, before: Tensor | None, after: Tensor | None) -> list[tuple[str, float, float]]:
    if before is None or after is None or view.labels is None:
        return []
    n = min(5, len(before))
    order = dict.fromkeys([*before.topk(n).indices.tolist(), *after.topk(n).indices.tolist()])
    return [(view.labels[i], float(before[i]), float(after[i])) for i in order]
