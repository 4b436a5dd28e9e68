"""What the tab Look inside computes, as its page takes it: numbers in 8 bits, in base64, once for each layer.

On ZeroGPU every job runs in a forked process: CPU data in and out.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitviz_hf.errors import ConfigError
from vitviz_hf.images import pixels_to_bytes, pixels_to_image
from vitviz_hf.inside.components import token_components
from vitviz_hf.inside.figures import Drawn
from vitviz_hf.inside.heads import rollout
from vitviz_hf.inside.lens import logit_lens
from vitviz_hf.inside.looks import LookConfig, in_windows, look
from vitviz_hf.inside.norms import token_norms, without_outliers
from vitviz_hf.inside.places import prefix_names
from vitviz_hf.inside.reasons import changed, explain, parse_turns
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.models.view import ModelView, find_tap, to_pixels
from vitviz_hf.reading.attention import attention_weights, window_attention
from vitviz_hf.reading.recording import Acts, activations, record_each
from vitviz_hf.sites import Site
from vitviz_hf.ui.shelf import Shelf

MOST_BYTES = 6_000_000
"""Of the values of one layer that go to the page."""


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """Pictures that a visitor looks inside of, with a model and a kind of site."""

    snapshot: Snapshot
    kind: str
    names: tuple[str, ...]
    pixels: Tensor
    """[n, 3, H, W] in [0, 1], on the CPU."""

    @property
    def key(self) -> str:
        """What tells it from others."""
        facts = f"{self.snapshot.model_id} {self.snapshot.revision} {self.kind} {self.names}"
        return sha256(facts.encode() + self.pixels.numpy().tobytes()).hexdigest()[:24]

    @property
    def crops(self) -> list[Image.Image]:
        """What the model sees of each."""
        return [pixels_to_image(p.numpy()) for p in self.pixels]


@dataclass(frozen=True, slots=True)
class InsideFacts:
    """What the page must know of the model before it asks for anything."""

    grids: tuple[tuple[int, int], ...]
    """Rows and columns, by layer."""
    prefixes: tuple[int, ...]
    """Tokens without a patch, by layer."""
    names: tuple[str, ...]
    """Of these tokens."""
    kinds: tuple[str, ...]
    """That every layer has."""
    query_grids: tuple[tuple[int, int], ...]
    """Rows and columns of the queries of attention, by layer."""
    windows: bool
    """Attention works on windows or several grids: it is read for one patch at a time."""


class InsideJobs:
    """Jobs on the models of a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def start(
        self, snapshot: Snapshot, images: Sequence[Image.Image], names: tuple[str, ...], kind: str
    ) -> tuple[Looked, InsideFacts]:
        """The pictures as the model sees them, and what is known of the kind of site.

        Args:
            kind: `resid`, or another one, is taken in its place where the model lacks it.

        Raises:
            SiteError: the model has no features.
        """
        view = self._shelf.view(snapshot)
        kinds = tuple(k for k in view.kinds if all(k in layer.taps for layer in view.layers))
        kind = kind if kind in kinds else next((k for k in ("resid", *kinds) if k in kinds), kind)
        taps = [find_tap(view, Site(i, kind)) for i in range(max(1, len(view.layers)))]
        pixels = torch.cat([to_pixels(view, image) for image in images]).float().cpu()
        facts = InsideFacts(
            tuple(t.patch_grid for t in taps),
            tuple(t.n_prefix for t in taps),
            prefix_names(view),
            kinds,
            tuple(layer.taps.get("attn_q", t).patch_grid for layer, t in zip(view.layers, taps, strict=True)),
            in_windows(view),
        )
        return Looked(snapshot, kind, names, pixels), facts

    def drawn(
        self, snapshot: Snapshot, images: Sequence[Image.Image], names: Sequence[str], show: str, config: LookConfig
    ) -> Drawn:
        """See `look`."""
        view = self._shelf.view(snapshot)
        return look(view, torch.cat([to_pixels(view, image) for image in images]), names, show, config)

    def values(self, looked: Looked, name: str, asked: Sequence[Any]) -> dict[str, Any]:
        """Values that the page asks for.

        Raises:
            VitvizError: the model does not have what is asked for.
        """
        view = self._shelf.view(looked.snapshot)
        seen = Seen(view, looked.pixels.to(view.device), looked.kind, looked.names)
        match name, list(asked):
            case "components", []:
                return seen.components()
            case "tokens", [int(layer)]:
                return seen.tokens(layer)
            case "attention", [int(layer)]:
                return seen.attention(layer)
            case "window", [int(layer), int(row), int(col)]:
                return seen.window(layer, (row, col))
            case "norms", []:
                return seen.norms()
            case "lens", []:
                return seen.lens()
            case "why", [str(target), str(method)]:
                return seen.why(target, method)
            case "change", [str(turn), float() | int() as factor, int(layer)]:
                return seen.change(turn, float(factor), layer)
            case "file", [("png" | "npz") as kind, str(show), dict() as options]:
                return seen.file(kind, show, asked_config(looked.kind, options))
        raise ConfigError("The page asks for something that this server does not know; reload it.")


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Pictures on the model's device."""

    view: ModelView
    pixels: Tensor
    kind: str
    names: tuple[str, ...]

    def components(self) -> dict[str, Any]:
        """Colors [P, 3] and foreground [P] of each picture after every layer, and what the components explain."""
        layers: dict[int, dict[str, Any]] = {}

        def use(acts: Acts) -> None:
            found = token_components(acts)
            layers[acts.site.layer] = {
                "colors": [pack(in_8_bits(c)) for c in found.paint(acts)],
                "foreground": [pack(f.cpu().numpy().astype(np.uint8)) for f in found.foreground(acts)],
                "explained": [round(float(x), 5) for x in found.explained],
            }

        with torch.no_grad():
            record_each(self.view, self.pixels, [Site(i, self.kind) for i in range(len(self.view.layers))], use)
        return {"layers": [layers[i] for i in sorted(layers)]}

    def tokens(self, layer: int) -> dict[str, Any]:
        """Tokens [n, T, F] of unit length, times 127."""
        site = Site(layer, self.kind)
        values = activations(self.view, self.pixels, [site])[site].values.float()
        _check_size(values.numel(), site)
        units = torch.nn.functional.normalize(values, dim=-1)
        n, tokens, features = values.shape
        packed = pack((units * 127).round().to(torch.int8).cpu().numpy())
        return {"n": n, "tokens": tokens, "features": features, "packed": packed}

    def attention(self, layer: int) -> dict[str, Any]:
        """Attention [T, T] of each head, each row in shares of its highest value; and joined over the layers."""
        weights = attention_weights(self.view, self.pixels, heads=True, layers=(layer,))[:, 0]
        n_heads, note = weights.shape[1], ""
        if weights.numel() > MOST_BYTES:
            weights, note = weights.mean(1, keepdim=True), "The grid is fine, so heads are shown as their mean."
        _check_size(weights.numel(), Site(layer, "attention"))
        names = [f"head {h}" for h in range(n_heads)] if not note else ["mean"]
        joined = rollout(attention_weights(self.view, self.pixels, layers=range(layer + 1)))[:, -1]
        n_prefix = self.view.layers[layer].n_prefix
        pictures = [{"heads": [in_rows(h) for h in [*w, j]]} for w, j in zip(weights.cpu(), joined.cpu(), strict=True)]
        return {
            "tokens": weights.shape[-1],
            "prefix": n_prefix,
            "names": [*names, "rollout"],
            "pictures": pictures,
            "note": note,
        }

    def window(self, layer: int, patch: tuple[int, int]) -> dict[str, Any]:
        """Attention of one patch of the first picture by head, [R, C] each, 0 outside its window."""
        weights = window_attention(self.view, self.pixels[:1], layer, patch)[0].nan_to_num(0.0)
        return {"grid": list(weights.shape[1:]), "heads": [pack(w.float().numpy()) for w in weights]}

    def norms(self) -> dict[str, Any]:
        """Length of the tokens [T] after every layer, those that outshine the others, and their rule."""
        found = token_norms(self.view, self.pixels, self.kind)
        layers = []
        for norms, outliers, n in zip(found.norms, found.outliers, found.prefixes, strict=True):
            out = outliers[0, n:]
            less = without_outliers(norms[0, n:], out).change if 0 < out.sum() < len(out) else 0.0
            layers.append(
                {
                    "prefix": n,
                    "norms": [pack(x.numpy()) for x in norms],
                    "outliers": [x.nonzero().flatten().tolist() for x in outliers],
                    "note": f"Without them the map spans {less:.0%} less." if less else "",
                }
            )
        return {"layers": layers, "rule": found.rule}

    def lens(self) -> dict[str, Any]:
        """Likeliest label [T] of each token after every layer, by number, and its probability times 255."""
        found = logit_lens(self.view, self.pixels)
        layers = [
            {
                "prefix": self.view.layers[i].n_prefix,
                "top": [pack(x.cpu().numpy().astype(np.uint16)) for x in top],
                "p": [pack(in_8_bits(x)) for x in p],
            }
            for i, (top, p) in enumerate(zip(found.top, found.p, strict=True))
        ]
        used = {int(i) for top in found.top for i in top.unique()}
        return {"layers": layers, "labels": {i: found.labels[i] for i in sorted(used)}}

    def why(self, target: str, method: str) -> dict[str, Any]:
        """Relevance of the patches of the first picture, and how the score goes as they are removed and shown."""
        found = explain(self.view, self.pixels[:1], target, method)
        values = found.relevance.map.float().cpu().numpy()
        high = float(np.abs(values).max())
        curves = found.curves
        lines = {
            name: [
                {"name": "by this map", "values": own.tolist()},
                {"name": "in random order", "values": other.tolist()},
            ]
            for name, own, other in (
                ("deletion", curves.deletion, curves.random_deletion),
                ("insertion", curves.insertion, curves.random_insertion),
            )
        }
        return {
            "map": pack(values.astype(np.float32)),
            "grid": list(values.shape),
            "scale": [-high if values.min() < 0 else 0.0, high],
            "target": found.target,
            "said": found.told,
            "curves": {**lines, "told": found.told_curves},
        }

    def change(self, turn: str, factor: float, layer: int) -> dict[str, Any]:
        """The components of the first picture before and after a change, and what else it changes."""
        turns = parse_turns([f"{address}={factor}" for address in split_turns(turn)])
        found = changed(self.view, self.pixels[:1], turns, Site(layer, self.kind))
        return {
            "before": pack(in_8_bits(found.before)),
            "after": pack(in_8_bits(found.after)),
            "grid": list(found.before.shape[:2]),
            "probabilities": found.effect.labels,
            "features": [[str(feature), before, after] for feature, before, after in found.effect.features],
            "said": found.told,
        }

    def file(self, kind: str, show: str, config: LookConfig) -> dict[str, Any]:
        """The view as a picture with its title, or its numbers."""
        # A patch of the second picture is written 1:3,4. The picture that is asked about comes first; attention in
        # windows is that of the first picture.
        second, _, token = config.token.rpartition(":")
        seen = self
        if second == "1" and in_windows(self.view):
            token = ""
        elif second == "1" and show in ("similarity", "heads"):
            seen = replace(self, pixels=self.pixels.flip(0), names=self.names[::-1])
        drawn = look(self.view, seen.pixels, seen.names, show, replace(config, token=token))
        data = drawn.to_png() if kind == "png" else drawn.to_npz()
        return {"name": f"{show}-{self.names[0]}.{kind}", "data": base64.b64encode(data).decode()}


def asked_config(kind: str, options: dict[str, Any]) -> LookConfig:
    """What the page has set, in its words."""
    turn, factor = str(options.get("turn") or ""), options.get("factor") or 0
    return LookConfig(
        layer=int(options["layer"]),
        kind=kind,
        token=str(options.get("token") or ""),
        why=str(options.get("why") or ""),
        method=str(options.get("method") or "auto"),
        turns=tuple(f"{address}={factor}" for address in split_turns(turn)),
    )


def split_turns(text: str) -> list[str]:
    """Addresses with semicolons or spaces between them."""
    return [address for address in re.split(r"[;\s]+", text) if address]


def pack(values: NDArray[Any]) -> str:
    """The bytes of an array in base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def in_8_bits(values: Tensor) -> NDArray[np.uint8]:
    """Shares in [0, 1] as 0 to 255."""
    return pixels_to_bytes(values.float()).cpu().numpy()


def in_rows(weights: Tensor) -> dict[str, str]:
    """Rows [T, T] in shares of their highest value, with these values."""
    top = weights.amax(-1)
    return {"packed": pack(in_8_bits(weights / top.clamp_min(1e-12)[:, None])), "top": pack(top.numpy())}


def _check_size(size: int, site: Site) -> None:
    if size > MOST_BYTES:
        raise ConfigError(
            f"{site} has {size / 1e6:.0f} million values here; a page takes {MOST_BYTES / 1e6:.0f} million. Choose a "
            "later layer or a smaller input."
        )
