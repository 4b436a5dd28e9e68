"""What a picture that is made from real images starts from."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

MOST = 36
"""Images that the pictures of all seeds start from, at most: nine collages that share none."""
_REGIONS = 4
_SEAM = 7
"""Of a collage: regions, two by two; they overlap by this part of a side."""


def collages(images: Tensor, maps: Tensor) -> Iterator[Tensor]:
    """The regions that excite a feature most, of four images, two by two in one, where they pass into each other.

    Each is a little more than half as high and wide as an image. Where fewer than four images excite the feature, the
    next ones fill up. Of fewer than four images, each one that does by itself.

    Args:
        images: [N, 3, H, W] in [0, 1].
        maps: [N, R, C], 0 or more.

    Yields:
        [3, H, W]: of the best four, of those that follow, and so on round the images that excite the feature, as often
        as others come together, or the same in another order.
    """
    size = images.shape[-2:]
    overlap = [n // _SEAM + (n - n // _SEAM) % 2 for n in size]
    height, width = ((n + o) // 2 for n, o in zip(size, overlap, strict=True))
    steps = [max(1, n // 28) for n in size]
    wide = functional.interpolate(maps[:, None], size, mode="bilinear")
    means = functional.avg_pool2d(wide, (height, width), steps)[:, 0]
    away = [torch.linspace(-1, 1, n).square() for n in means.shape[1:]]
    # The middle where an image is alike everywhere.
    means = means - 1e-4 * means.amax((1, 2), keepdim=True) * (away[0][:, None] + away[1])
    values, places = means.flatten(1).max(1)
    ranked = values.argsort(descending=True, stable=True).tolist()
    n = min(int((values > 0).sum()), MOST)
    if len(ranked) < _REGIONS:
        yield from images[ranked[: max(1, n)]]
        return
    n = max(n, _REGIONS)
    weight = _ramp(height, overlap[0])[:, None] * _ramp(width, overlap[1])
    for first in _rounds(n):
        drawn, total = torch.zeros(images.shape[1:]), torch.zeros(size)
        for i in range(_REGIONS):
            image = ranked[(first + i) % n]
            top, left = (at * step for at, step in zip(divmod(int(places[image]), means.shape[2]), steps, strict=True))
            rows = slice(None, height) if i < 2 else slice(-height, None)
            cols = slice(None, width) if i % 2 == 0 else slice(-width, None)
            drawn[:, rows, cols] += weight * images[image, :, top : top + height, left : left + width]
            total[rows, cols] += weight
        yield drawn / total


def _rounds(n: int) -> list[int]:
    """Where to begin for the next four in a ring of n, so that every place comes once: round by round."""
    shared = math.gcd(n, _REGIONS)
    return [(_REGIONS * i + shift) % n for shift in range(shared) for i in range(n // shared)]


def _ramp(length: int, overlap: int) -> Tensor:
    """Weights along an axis: 1 in the middle, falling over the overlap at both ends."""
    at = torch.arange(1.0, length + 1)
    return torch.minimum(at, at.flip(0)).clamp(max=overlap + 1) / (overlap + 1)
