"""Reading a model's activations, computing nothing after the last one that is asked for."""

import itertools
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitviz_hf.errors import ConfigError
from vitviz_hf.models.hooks import Reader, read_inputs_and_outputs
from vitviz_hf.models.measure import Tap
from vitviz_hf.models.view import ModelView, autocast, check_index, find_tap, run, to_site
from vitviz_hf.sites import Feature, Site, Token


@dataclass(frozen=True, slots=True, eq=False)
class Acts:
    """Values of one site on B pictures, which know which of their tokens are patches, and where these lie."""

    values: Tensor
    """[B, T, F]: prefix tokens, then the patches row by row, whatever order the model keeps them in."""
    tap: Tap
    """What they were read with: number of prefix tokens, patch grid."""
    site: Site

    @property
    def prefix(self) -> Tensor:
        """Prefix tokens [B, n_prefix, F]."""
        return self.values[:, : self.tap.n_prefix]

    @property
    def patches(self) -> Tensor:
        """Patch tokens [B, P, F]."""
        return self.values[:, self.tap.n_prefix :]

    def in_float32(self) -> "Acts":
        """The same in float32, for sums over half-precision values."""
        return replace(self, values=self.values.float())

    def map(self, index: int) -> Tensor:
        """One feature on the patch grid, [B, R, C].

        Raises:
            FeatureError: `index` >= F.
        """
        check_index(Feature(self.site, index), self.tap)
        return self.patches[..., index].reshape(-1, *self.tap.patch_grid)

    def scores(self, reduce: str = "mean") -> Tensor:
        """Score of every feature: `mean` or `max` over patch tokens, [B, F], in float32 whatever the values are in."""
        return self.patches.mean(1, dtype=torch.float32) if reduce == "mean" else self.patches.amax(1).float()

    def at(self, token: Token) -> Tensor:
        """Every feature at one patch (row, column) of the grid, or at the first prefix token (`cls`), [B, F].

        Raises:
            ConfigError: outside the grid, or there are no prefix tokens.
        """
        return self.values[:, token_position(self.tap, self.site, token)]


def token_position(tap: Tap, site: Site, token: Token) -> int:
    """Place of a token among all that a tap reads, T.

    Raises:
        ConfigError: outside the grid, or there are no prefix tokens.
    """
    rows, cols = tap.patch_grid
    if token == "cls":
        if not tap.n_prefix:
            raise ConfigError(
                f"'{site}' has no class token, only the patches of a grid of {rows} rows and {cols} columns; leave "
                "'@cls' out for their mean, or name one of them, such as '@0,0'."
            )
        return 0
    row, col = token
    if not (0 <= row < rows and 0 <= col < cols):
        raise ConfigError(
            f"patch {row},{col} is outside the grid of {rows} rows (0-{rows - 1}) and {cols} columns (0-{cols - 1}) "
            f"of '{site}'."
        )
    return tap.n_prefix + row * cols + col


class _Done(BaseException):
    """Everything asked for has been read. Not an Exception, so that no model code swallows it."""


def activations(view: ModelView, pixels: Tensor, sites: Iterable[Site | str]) -> dict[Site, Acts]:
    """Values at some sites, without gradients.

    Args:
        pixels: [B, 3, H, W] in [0, 1], as given by `to_pixels`.

    Returns:
        {site: Acts}; `.values` are [B, T, F], `.patches` [B, P, F], `.map(index)` is [B, R, C].

    Raises:
        SiteError: the model has no such site.
    """
    with torch.no_grad():
        return record(view, pixels, [to_site(view, s) for s in sites])


def record(view: ModelView, pixels: Tensor, sites: Iterable[Site]) -> dict[Site, Acts]:
    """As `activations`, with gradients to `pixels`. The forward pass ends at the last of the sites."""
    found: dict[Site, Acts] = {}
    record_each(view, pixels, sites, lambda acts: found.update({acts.site: acts}))
    return found


def record_each(view: ModelView, pixels: Tensor, sites: Iterable[Site], use: Callable[[Acts], None]) -> None:
    """As `record`, but hands the values of each site to `use` as soon as they are there, and keeps none."""
    if wanted := set(sites):
        with suppress(_Done):
            _read(view, pixels, wanted, use, stop=True)


def record_with_logits(view: ModelView, pixels: Tensor, sites: Iterable[Site]) -> tuple[dict[Site, Acts], Tensor]:
    """As `record`, but runs to the end and also returns the logits [B, N]."""
    found: dict[Site, Acts] = {}
    output = _read(view, pixels, set(sites), lambda acts: found.update({acts.site: acts}), stop=False)
    return found, view.head(output)


def _read(view: ModelView, pixels: Tensor, sites: set[Site], use: Callable[[Acts], None], stop: bool) -> Any:
    inputs: dict[str, list[Reader]] = {}
    outputs: dict[str, list[Reader]] = {}
    waiting = set(sites)

    def reader(site: Site, tap: Tap) -> Reader:
        runs = itertools.count()

        def read(value: Any) -> None:
            if next(runs) == tap.call:
                acts = Acts(tap.read(value, len(pixels)), tap, site)
                with autocast(view, on=False):  # what is made of the values is no part of it
                    use(acts)
                waiting.discard(site)
                if stop and not waiting:
                    raise _Done

        return read

    for site in sites:
        tap = find_tap(view, site)
        (inputs if tap.side == "input" else outputs).setdefault(tap.module, []).append(reader(site, tap))
    with read_inputs_and_outputs(view.module, inputs, outputs):
        return run(view, pixels)
