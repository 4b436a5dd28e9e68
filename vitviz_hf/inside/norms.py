"""Length of tokens by layer, and those that outshine the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitviz_hf.errors import ConfigError
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.reading.recording import Acts, record_each
from vitviz_hf.sites import Site

OUTSHINES = 3.0
"""Times the median patch of its picture and layer: a token that is longer is an outlier."""


@dataclass(frozen=True, slots=True, eq=False)
class Norms:
    """Euclidean length of every token after every layer."""

    norms: tuple[Tensor, ...]
    """By layer [B, T], float32 on the CPU: prefix tokens, then patches."""
    outliers: tuple[Tensor, ...]
    """By layer [B, T] bool, by the `rule`."""
    prefixes: tuple[int, ...]
    """Prefix tokens, by layer."""

    @property
    def rule(self) -> str:
        """What makes an outlier, in words."""
        return f"longer than {OUTSHINES:g} times the median patch"


@dataclass(frozen=True, slots=True, eq=False)
class Cleaned:
    """A map without some patches."""

    map: Tensor
    """[R, C] with the median of the others in their place."""
    change: float
    """Share of the range of the map (highest - lowest value) that only they span: 0 none, 1 all of it."""


def token_norms(view: ModelView, pixels: Tensor, kind: str = "resid") -> Norms:
    """Length of every token at one kind of site of every layer, and which of them outshine the patches.

    Such tokens hold facts about the whole picture instead of their patch (Darcet et al. 2023, arXiv:2309.16588).

    Args:
        pixels: [B, 3, H, W] in [0, 1].
        kind: that every layer has.

    Raises:
        SiteError: a layer has none.
    """
    sites = [Site(i, kind) for i in range(max(1, len(view.layers)))]
    prefixes = tuple(find_tap(view, site).n_prefix for site in sites)
    found: dict[int, Tensor] = {}

    def use(acts: Acts) -> None:
        found[acts.site.layer] = acts.values.float().norm(dim=-1).cpu()

    with torch.no_grad():
        record_each(view, pixels, sites, use)
    norms = tuple(found[i] for i in range(len(sites)))
    outliers = tuple(
        x > OUTSHINES * x[:, n:].median(1, keepdim=True).values for x, n in zip(norms, prefixes, strict=True)
    )
    return Norms(norms, outliers, prefixes)


def without_outliers(values: Tensor, outliers: Tensor) -> Cleaned:
    """A map without the patches that outshine the others, and how much of its range was theirs.

    Args:
        values: [R, C].
        outliers: [R, C] or [P] bool.

    Raises:
        ConfigError: of another size, or no patch is left.
    """
    if outliers.numel() != values.numel() or outliers.all():
        raise ConfigError(
            f"{int(outliers.sum())} of {outliers.numel()} patches cannot be left out of {values.numel()}."
        )
    outliers = outliers.reshape(values.shape).to(values.device)
    kept = values[~outliers]
    spread = float(values.max() - values.min())
    change = 1 - float(kept.max() - kept.min()) / spread if spread else 0.0
    return Cleaned(values.where(~outliers, kept.median()), change)
