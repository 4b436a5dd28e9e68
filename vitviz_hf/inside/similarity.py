"""Which patches are like which: cosines of their tokens, in one picture or between two."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vitviz_hf.errors import ConfigError
from vitviz_hf.reading.recording import Acts


@dataclass(frozen=True, slots=True)
class Match:
    """A patch of one picture and one of another, each the other's most similar."""

    first: tuple[int, int]
    """(row, column)."""
    second: tuple[int, int]
    cosine: float


def similarity(acts: Acts, tokens: Sequence[int], other: Acts | None = None) -> Tensor:
    """Cosine of every patch to some tokens of the first picture.

    Args:
        acts: [B, T, F].
        tokens: places among T, prefix tokens first (`token_position`); of several, each is scaled to length 1 and
            their mean is taken.
        other: pictures in place of those of `acts`, at the same site.

    Returns:
        [B, R, C] in [-1, 1], float32.

    Raises:
        ConfigError: there is no such token, or the sites have different widths.
    """
    n_tokens = acts.values.shape[1]
    if not tokens or not all(0 <= i < n_tokens for i in tokens):
        raise ConfigError(f"'{acts.site}' has tokens 0-{n_tokens - 1}; got {list(tokens)}.")
    others = acts if other is None else other
    _check_widths(acts, others)
    asked = functional.normalize(_units(acts.values[0, list(tokens)]).mean(0), dim=0)
    return (_units(others.patches) @ asked).clamp(-1, 1).reshape(-1, *others.tap.patch_grid)


def matches(first: Acts, second: Acts, k: int = 10) -> list[Match]:
    """Pairs of patches that are each other's most similar, the most similar pair first.

    Args:
        first: [1, T, F] of one picture.
        second: of another.
        k: at most so many.

    Raises:
        ConfigError: several pictures, or the sites have different widths.
    """
    if len(first.values) != 1 or len(second.values) != 1:
        raise ConfigError(f"matches takes two pictures; got {len(first.values)} and {len(second.values)}.")
    _check_widths(first, second)
    cosines = (_units(first.patches[0]) @ _units(second.patches[0]).mT).clamp(-1, 1)
    best, back = cosines.argmax(1), cosines.argmax(0)
    mutual = (back[best] == torch.arange(len(best), device=best.device)).nonzero().flatten()
    values = cosines[mutual, best[mutual]]
    order = values.argsort(descending=True, stable=True)[:k]
    cols, other_cols = first.tap.patch_grid[1], second.tap.patch_grid[1]
    return [
        Match(divmod(a, cols), divmod(b, other_cols), cosine)
        for a, b, cosine in zip(
            mutual[order].tolist(), best[mutual[order]].tolist(), values[order].tolist(), strict=True
        )
    ]


def _units(values: Tensor) -> Tensor:
    return functional.normalize(values.float(), dim=-1)


def _check_widths(first: Acts, second: Acts) -> None:
    widths = first.values.shape[-1], second.values.shape[-1]
    if widths[0] != widths[1]:
        raise ConfigError(f"'{first.site}' has {widths[0]} features and '{second.site}' {widths[1]}: take one site.")
