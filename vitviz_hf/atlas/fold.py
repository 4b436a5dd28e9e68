"""What a search keeps of each feature: rankings of k images and a sketch of its scores, of fixed size.

See search.py for what is counted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NO_KEY = torch.iinfo(torch.int64).max
# The sketch: 256 bins on each side of zero, each 6.5 % wider than the one before it.
SMALLEST, N_BINS = 1e-4, 256
GROWTH = 1e7 ** (1 / N_BINS)
SKETCH_ERROR = (GROWTH - 1) / (GROWTH + 1)


@dataclass(slots=True)
class Ranking:
    """The k highest values of each feature and the keys of their images, best first."""

    values: Tensor
    """[F, k], -inf where there is none yet."""
    keys: Tensor
    """[F, k]"""

    @classmethod
    def empty(cls, n_features: int, k: int, device: torch.device) -> "Ranking":
        """Nothing seen yet."""
        return cls(
            torch.full((n_features, k), -math.inf, device=device),
            torch.full((n_features, k), NO_KEY, dtype=torch.int64, device=device),
        )

    def update(self, values: Tensor, keys: Tensor) -> Tensor:
        """Take in values [F, B] of images with keys [F, B]; returns the keys that some feature now ranks, [n].

        A key counts once, with the highest of its values.
        """
        rows = (values >= self.values[:, -1:]).any(1).nonzero().squeeze(1)
        candidates = torch.cat([self.values[rows], values[rows]], 1)
        owners = torch.cat([self.keys[rows], keys[rows]], 1)
        order = owners.argsort(1)
        candidates, owners = candidates.gather(1, order), owners.gather(1, order)
        again = (owners[:, 1:] == owners[:, :-1]) & (owners[:, 1:] != NO_KEY)
        if again.any():  # rare
            best = candidates.argsort(dim=1, descending=True)
            best = best.gather(1, owners.gather(1, best).argsort(dim=1, stable=True))
            candidates = candidates.gather(1, best)
            candidates[:, 1:].masked_fill_(again, -math.inf)
            owners[:, 1:].masked_fill_(again, NO_KEY)
        order = candidates.argsort(dim=1, descending=True, stable=True)[:, : self.values.shape[1]]
        self.values[rows], self.keys[rows] = candidates.gather(1, order), owners.gather(1, order)
        return self.keys[rows].flatten()


@dataclass(slots=True)
class SiteFold:
    """What is known of one site's features after some images.

    Tensors lie on the model's device, which need not have float64; arrays are float64 on the CPU.
    """

    top: Ranking
    bottom: Ranking
    """Of the negated scores."""
    counts: Tensor
    """[F, 2 * N_BINS + 1] images in each bin of the sketch."""
    n: int
    """Images, without those left out here."""
    mean: NDArray[np.float64]
    """[F] of scores."""
    squares: NDArray[np.float64]
    """[F] sum of squared differences from the mean."""
    active: NDArray[np.float64]
    """[F] sum over images of the share of patches with a positive activation."""

    @classmethod
    def empty(cls, n_features: int, k: int, device: torch.device) -> "SiteFold":
        """Nothing seen yet."""
        counts = torch.zeros(n_features, 2 * N_BINS + 1, dtype=torch.int32, device=device)
        top, bottom = (Ranking.empty(n_features, k, device) for _ in range(2))
        return cls(top, bottom, counts, 0, *(np.zeros(n_features) for _ in range(3)))

    def update(self, scores: Tensor, active: Tensor, keys: Tensor, finite: Tensor) -> Tensor:
        """Take in scores and active shares [B, F] of images with keys [B], but for those not `finite` [B].

        Returns:
            The keys now ranked, [n].
        """
        taken = finite[:, None]
        scores, n = scores.where(taken, 0), taken.sum(dtype=torch.float32)
        # About the mean of the batch, float32 is exact enough; batches are then joined in float64.
        center = scores.sum(0) / n.clamp(min=1)
        rest = (scores - center).where(taken, 0)
        parts = [n.expand_as(center), center, rest.sum(0), rest.square().sum(0), active.where(taken, 0).sum(0)]
        count, shift, excess, squares, shares = torch.stack(parts).cpu().numpy().astype(np.float64)
        if count[0]:
            self._join(int(count[0]), shift + excess / count, squares, shares)
        columns, owners = scores.T.contiguous(), keys.where(finite, NO_KEY).expand(scores.shape[1], -1)
        ranked = [self.top.update(columns.where(finite, -math.inf), owners)]
        ranked += [self.bottom.update((-columns).where(finite, -math.inf), owners)]
        bins = sketch_bins(columns)
        self.counts.scatter_add_(1, bins, finite.int().expand_as(bins))
        return torch.cat(ranked)

    def merge(self, other: "SiteFold") -> None:
        """Take in what another process saw of other images."""
        self.top.update(other.top.values, other.top.keys)
        self.bottom.update(other.bottom.values, other.bottom.keys)
        self.counts = self.counts + other.counts
        if other.n:
            self._join(other.n, other.mean, other.squares, other.active)

    def _join(
        self, n: int, mean: NDArray[np.float64], squares: NDArray[np.float64], active: NDArray[np.float64]
    ) -> None:
        """Chan, Golub and LeVeque 1983: mean and squared differences of two sets of images together."""
        whole, step = self.n + n, mean - self.mean
        self.mean = self.mean + step * n / whole
        self.squares = self.squares + squares + step**2 * (self.n * n / whole)
        self.active = self.active + active
        self.n = whole

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {
            "top.values": self.top.values,
            "top.keys": self.top.keys,
            "bottom.values": self.bottom.values,
            "bottom.keys": self.bottom.keys,
            "counts": self.counts,
            "n": torch.tensor(self.n),
            "mean": torch.from_numpy(self.mean),
            "squares": torch.from_numpy(self.squares),
            "active": torch.from_numpy(self.active),
        }

    @classmethod
    def from_tensors(cls, t: Mapping[str, Tensor], device: torch.device) -> "SiteFold":
        """The inverse of `tensors`, from the CPU."""
        top, bottom = (
            Ranking(*(t[f"{side}.{x}"].to(device) for x in ("values", "keys"))) for side in ("top", "bottom")
        )
        arrays = (t[name].numpy() for name in ("mean", "squares", "active"))
        return cls(top, bottom, t["counts"].to(device), int(t["n"]), *arrays)


def sketch_bins(values: Tensor) -> Tensor:
    """Bin of each value: N_BINS for |x| < 1e-4, then one for each 6.5 % on either side; the outermost has no end."""
    size = (values.abs() / SMALLEST).clamp(min=1e-30).log() / math.log(GROWTH)
    steps = size.floor().clamp(-1, N_BINS - 1) + 1
    return (N_BINS + steps * values.sign()).long()


def sketch_centers() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Value that stands for each bin: within 3.2 % of everything in it that is no larger than 1000."""
    positive = SMALLEST * GROWTH ** np.arange(N_BINS) * (2 * GROWTH / (1 + GROWTH))
    return np.concatenate([-positive[::-1], [0.0], positive])
