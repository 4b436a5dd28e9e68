"""What is found inside a picture, drawn with its numbers and in words: for the command line, the app and programs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitviz_hf.errors import ConfigError
from vitviz_hf.images import Floats, overlay, pixels_to_image, two_sided
from vitviz_hf.inside import figures
from vitviz_hf.inside.components import token_components
from vitviz_hf.inside.figures import Drawn
from vitviz_hf.inside.heads import rollout
from vitviz_hf.inside.lens import logit_lens
from vitviz_hf.inside.norms import token_norms, without_outliers
from vitviz_hf.inside.places import Place, parse_place, prefix_names
from vitviz_hf.inside.reasons import changed, explain, parse_turns
from vitviz_hf.inside.relevance import METHODS
from vitviz_hf.inside.similarity import matches, similarity
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.reading.attention import attention_weights, window_attention
from vitviz_hf.reading.recording import Acts, activations
from vitviz_hf.reading.tokens import check_sequence
from vitviz_hf.sites import Site

_MOST_LABELS = len(figures.CLASS_COLORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookConfig:
    """Where a picture is looked into, and what for."""

    layer: int | None = None
    """The last one if None."""
    kind: str = "resid"
    token: str = ""
    """See `parse_place`."""
    why: str = ""
    """What relevance is for: a class, a feature, a text."""
    method: str = "auto"
    turns: tuple[str, ...] = field(default=())
    """What is changed, as ADDRESS=FACTOR."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}.")
        if self.layer is not None and self.layer < 0:
            raise ConfigError(f"layers are numbered from 0; got {self.layer}.")


@dataclass(frozen=True, slots=True, eq=False)
class Looking:
    """A model, one picture or two, and the layer that is looked at."""

    view: ModelView
    pixels: Tensor
    """[n, 3, H, W] in [0, 1]."""
    names: tuple[str, ...]
    config: LookConfig

    @property
    def layer(self) -> int:
        """From 0."""
        last = len(self.view.layers) - 1
        return last if self.config.layer is None else self.config.layer

    @property
    def site(self) -> Site:
        """What is read."""
        return Site(self.layer, self.config.kind)

    @property
    def crops(self) -> list[Image.Image]:
        """What the model sees, enlarged."""
        return [figures.enlarged(pixels_to_image(p.float().cpu().numpy())) for p in self.pixels]

    def acts(self) -> Acts:
        """Values of the site, in float32."""
        return activations(self.view, self.pixels, [self.site])[self.site].in_float32()

    def place(self, first: str = "") -> Place:
        """The token that is asked about; `first` if none is, and there is such a one."""
        tap = find_tap(self.view, self.site)
        names = prefix_names(self.view)[: tap.n_prefix]
        return parse_place(self.config.token or (first if first in names else ""), tap.patch_grid, names)

    @property
    def title(self) -> str:
        """For a figure."""
        return f"{self.view.model_id}, {self.site}"


def look(view: ModelView, pixels: Tensor, names: Sequence[str], show: str, config: LookConfig) -> Drawn:
    """One of the `SHOWS`, drawn.

    Args:
        pixels: [n, 3, H, W] in [0, 1] of one picture or two.
        names: of the pictures.

    Raises:
        ConfigError: an unknown one, or what it needs is not given.
        VitvizError: the model has no such layer, token, class or feature, or cannot be looked into so.
    """
    if show not in SHOWS:
        raise ConfigError(f"show must be one of {', '.join(SHOWS)}; got {show!r}.")
    return SHOWS[show](Looking(view, pixels, tuple(names), config))


def in_windows(view: ModelView) -> bool:
    """Whether attention works on windows or several grids, so that it is read for one patch at a time."""
    try:
        check_sequence(view)
    except ConfigError:
        return True
    return False


def _pca(asked: Looking) -> Drawn:
    acts = asked.acts()
    found = token_components(acts)
    colors, front = found.paint(acts).cpu().numpy(), found.foreground(acts).cpu().numpy()
    drawn: dict[str, Image.Image] = {}
    for name, crop, c, f in zip(asked.names, asked.crops, colors, front, strict=True):
        drawn |= {name: crop, f"{name}: components": figures.paint(crop, c, 1.0)}
        drawn[f"{name}: foreground"] = figures.paint(crop, np.where(f[..., None], c, 0.0), 0.9)
    shares = [float(x) for x in found.explained]
    told = f"The first three components hold {', '.join(f'{x:.0%}' for x in shares)} of the variance of {asked.site}"
    told += f"; the foreground is {front.mean():.0%} of the patches."
    numbers = {"colors": colors, "foreground": front, "explained": shares}
    return Drawn(figures.tiles(drawn, 3, f"{asked.title}: three components as red, green, blue"), numbers, told)


def _similarity(asked: Looking) -> Drawn:
    acts, place = asked.acts(), asked.place()
    maps = similarity(acts, place.tokens).cpu().numpy()
    title = f"{asked.title}: cosine to {place.told}" + (f" of {asked.names[0]}" if len(maps) > 1 else "")
    rest = maps[0].copy()
    corner = place.box[:2] if place.box else None
    if place.box and len(place.tokens) < rest.size:
        top, left, bottom, right = place.box
        rest[top : bottom + 1, left : right + 1] = -1
    told = f"Cosine to {place.told}: of {asked.names[0]} {figures.peak(rest)}"
    low = max(0.0, float(maps.min()))
    painted = [overlay(crop, m - low, (0.0, 1 - low)) for crop, m in zip(asked.crops, maps, strict=True)]
    numbers: dict[str, Any] = {"cosine": maps, "tokens": place.tokens}
    if len(maps) == 1:
        sheet = figures.beside(asked.crops[0], figures.mark(painted[0], [corner] if corner else [], maps.shape[1:]))
        return Drawn(figures.titled(sheet, title), numbers, f"{told}.")
    row, col = divmod(int(maps[1].argmax()), maps.shape[2])
    first, second = (replace(acts, values=values[None]) for values in acts.values)
    pairs = matches(first, second, 8)
    numbers["matches"] = [(*pair.first, *pair.second, pair.cosine) for pair in pairs]
    sheet = figures.match_lines(painted[0], painted[1], [(corner, (row, col))] if corner else [], maps.shape[1:])
    return Drawn(figures.titled(sheet, title), numbers, f"{told}; of {asked.names[1]} {figures.peak(maps[1])}.")


def _heads(asked: Looking) -> Drawn:
    if in_windows(asked.view):
        return _window_heads(asked)
    layer, place = asked.layer, asked.place("cls")
    weights = attention_weights(asked.view, asked.pixels, heads=True, layers=(layer,))[:, 0]
    n_prefix, grid = asked.view.layers[layer].n_prefix, asked.view.layers[layer].patch_grid
    tokens = list(place.tokens)
    rows = weights[:, :, tokens].mean(2)
    joined = rollout(attention_weights(asked.view, asked.pixels, layers=range(layer + 1)))[:, -1]
    maps = _head_maps(rows[..., n_prefix:].unflatten(-1, grid))
    maps["rollout"] = joined[:, tokens, n_prefix:].mean(1).unflatten(-1, grid).numpy()
    told = f"Attention of {place.told} in layer {layer}, mean over heads: {figures.peak(maps['mean'][0])}"
    if n_prefix:
        told += f"; {float(rows[0, :, :n_prefix].sum(-1).mean()):.0%} goes to tokens without a patch"
    return _draw_heads(asked, maps, place.told, told, {"tokens": place.tokens, "rows": rows.cpu().numpy()})


def _window_heads(asked: Looking) -> Drawn:
    # Clicked or named on the grid of the queries, whatever kind of site is shown elsewhere.
    place = replace(asked, config=replace(asked.config, kind="attn_q")).place()
    if place.box is None:
        raise ConfigError(f"attention in windows is that of a patch; got {place.told}.")
    row, col = place.box[:2]
    weights = window_attention(asked.view, asked.pixels, asked.layer, (row, col))
    maps = _head_maps(weights.nan_to_num(0.0))
    told = f"Attention of patch {row},{col} in layer {asked.layer} to its window, mean over heads: "
    told += figures.peak(maps["mean"][0])
    inside = ~weights[0, 0].isnan().numpy()
    return _draw_heads(asked, maps, f"patch {row},{col} in its window", told, {"inside": inside})


def _head_maps(heads: Tensor) -> dict[str, Floats]:
    """Maps [n, heads, R, C] -> [n, R, C] of their mean, their maximum and each."""
    named = {f"head {h}": heads[:, h] for h in range(heads.shape[1])}
    return {name: x.cpu().numpy() for name, x in {"mean": heads.mean(1), "maximum": heads.amax(1), **named}.items()}


def _draw_heads(asked: Looking, maps: Mapping[str, Floats], whose: str, told: str, numbers: Mapping[str, Any]) -> Drawn:
    crops = [figures.enlarged(c, figures.SIDE // 2) for c in asked.crops]
    drawn = {
        f"{name}, {asked.names[i]}" if len(crops) > 1 else name: overlay(crop, m[i], (0.0, float(m[i].max())))
        for i, crop in enumerate(crops)
        for name, m in maps.items()
    }
    title = f"{asked.view.model_id}, layer {asked.layer}: attention of {whose}, each map on its own scale"
    sheet = figures.tiles(drawn, len(maps) if len(crops) > 1 else min(len(maps), 6), title)
    return Drawn(sheet, {**{k.replace(" ", "_"): v for k, v in maps.items()}, **numbers}, f"{told}.")


def _norms(asked: Looking) -> Drawn:
    found, n = token_norms(asked.view, asked.pixels, asked.config.kind), len(asked.pixels)
    patches = [x[:, p:].numpy() for x, p in zip(found.norms, found.prefixes, strict=True)]
    lines = {
        "longest patch": np.array([x[0].max() for x in patches]),
        "median patch": np.array([np.median(x[0]) for x in patches]),
    }
    if min(found.prefixes):
        lines["class token"] = np.array([float(x[0, 0]) for x in found.norms])
    grid, prefix = find_tap(asked.view, asked.site).patch_grid, found.prefixes[asked.layer]
    maps = patches[asked.layer].reshape(n, *grid)
    low = float(maps.min())
    drawn = []
    for crop, values, out in zip(asked.crops, maps, found.outliers[asked.layer], strict=True):
        places = [divmod(int(i), grid[1]) for i in out[prefix:].nonzero().flatten()]
        painted = overlay(crop, values - low, (0.0, max(1e-12, float(maps.max()) - low)))
        drawn.append(figures.mark(painted, places, grid))
    chart = figures.chart(lines, f"Length of the tokens of {asked.names[0]}", ("layer 0", "last layer"), log=True)
    n_out = int(found.outliers[asked.layer][0, prefix:].sum())
    told = f"Length of the tokens of {asked.site}: {figures.peak(maps[0])}; {n_out} outshine the others ({found.rule})"
    if 0 < n_out < maps[0].size:
        out = found.outliers[asked.layer][0, prefix:]
        told += f"; without them the map spans {without_outliers(torch.from_numpy(maps[0]), out).change:.0%} less"
    numbers = {f"norms_{i}": x.numpy() for i, x in enumerate(found.norms)}
    numbers |= {f"outliers_{i}": x.numpy() for i, x in enumerate(found.outliers)}
    return Drawn(figures.titled(figures.beside(*drawn, chart), f"{asked.title}: length of tokens"), numbers, f"{told}.")


def _relevance(asked: Looking) -> Drawn:
    found = explain(asked.view, asked.pixels[:1], asked.config.why, asked.config.method)
    values, lines = found.relevance.map.float().cpu().numpy(), found.curves
    scale = two_sided(values) if values.min() < 0 else (0.0, float(values.max()))
    charts = [
        figures.chart({"by this map": own.numpy(), "in random order": other.numpy()}, title, ends)
        for title, ends, own, other in (
            ("Score as patches are removed", ("none", "all"), lines.deletion, lines.random_deletion),
            ("Score as patches are shown", ("none", "all"), lines.insertion, lines.random_insertion),
        )
    ]
    sheet = figures.beside(asked.crops[0], overlay(asked.crops[0], values, scale), figures.below(*charts))
    title = f"{asked.view.model_id}: relevance for {found.target} by {found.relevance.method}"
    numbers = {
        "relevance": values,
        **{
            name: getattr(lines, name).numpy()
            for name in ("deletion", "insertion", "random_deletion", "random_insertion")
        },
    }
    return Drawn(figures.titled(sheet, title), numbers, f"{found.told}. {found.told_curves}")


def _lens(asked: Looking) -> Drawn:
    check_sequence(asked.view)
    find_tap(asked.view, Site(asked.layer, "resid"))
    found, layers = logit_lens(asked.view, asked.pixels[:1]), asked.view.layers
    if asked.config.layer is None:
        chosen = sorted({round(i) for i in np.linspace(0, len(layers) - 1, 6)})
    else:
        chosen = [asked.layer]
    tops, shares = ([x[0].cpu().numpy() for x in column] for column in (found.top, found.p))
    patches = np.concatenate([tops[i][layers[i].n_prefix :] for i in chosen])
    order = [int(label) for label in np.argsort(-np.bincount(patches), kind="stable")[:_MOST_LABELS]]
    order = [label for label in order if (patches == label).any()]
    crop = figures.enlarged(asked.crops[0], figures.SIDE // (1 if len(chosen) == 1 else 2))
    drawn = {}
    for i in chosen:
        top, p = (x[layers[i].n_prefix :].reshape(layers[i].patch_grid) for x in (tops[i], shares[i]))
        drawn[f"layer {i}"] = figures.label_map(crop, top, p, order)
    short = [label.partition(",")[0] for label in found.labels]
    names = [(short[label], float((patches == label).mean())) for label in order]
    sheet = figures.tiles(drawn, min(3, len(drawn)), f"{asked.view.model_id}: the head on each token after a layer")
    told = f"Likeliest label of the patches: {', '.join(f'{name} {share:.0%}' for name, share in names[:3])}"
    if found.reads_class_token:
        told += f"; of the class token at the end {short[int(tops[-1][0])]} {shares[-1][0]:.0%}"
    numbers: dict[str, Any] = {"labels": list(found.labels)}
    numbers |= {f"top_{i}": x for i, x in enumerate(tops)} | {f"p_{i}": x for i, x in enumerate(shares)}
    return Drawn(figures.beside(sheet, figures.legend(names)), numbers, f"{told}.")


def _change(asked: Looking) -> Drawn:
    found = changed(asked.view, asked.pixels[:1], parse_turns(asked.config.turns), asked.site)
    effect, crop = found.effect, asked.crops[0]
    drawn = {
        "as it was": figures.paint(crop, found.before.cpu().numpy(), 1.0),
        "changed": figures.paint(crop, found.after.cpu().numpy(), 1.0),
    }
    lines = [f"{name}: {before:.1%} to {after:.1%}" for name, before, after in effect.labels]
    lines += [f"{feature}: {before:.3g} to {after:.3g}" for feature, before, after in effect.features]
    sheet = figures.beside(
        figures.tiles(drawn, 2, f"{asked.title}: {', '.join(asked.config.turns)}"), figures.text_sheet(lines)
    )
    numbers = {
        "components_before": found.before.cpu().numpy(),
        "components_after": found.after.cpu().numpy(),
        "labels": [name for name, _, _ in effect.labels],
        "probabilities": [[before, after] for _, before, after in effect.labels],
        "features": [str(feature) for feature, _, _ in effect.features],
        "values": [[before, after] for _, before, after in effect.features],
    }
    return Drawn(sheet, numbers, found.told)


SHOWS: Mapping[str, Callable[[Looking], Drawn]] = {
    "pca": _pca,
    "similarity": _similarity,
    "heads": _heads,
    "norms": _norms,
    "relevance": _relevance,
    "lens": _lens,
    "change": _change,
}
"""What can be shown, by name."""
