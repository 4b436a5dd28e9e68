"""What a search keeps of each feature: rankings of k images and sketches of its scores, of fixed size.

See search.py for what is counted.
"""

import math
from collections.abc import Callable, Mapping
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
N_SLOTS = 512
"""Of the sketch that correlations are read from: each is off by about 1 / sqrt(512) = 0.04."""


Facts = Callable[[Tensor, Tensor], Tensor]
"""Of features [e] on images [e], which are numbers of rows and columns: what is kept beside each value, [e, n]."""


@dataclass(slots=True)
class Ranking:
    """The k highest values of each feature and the keys of their images, best first."""

    values: Tensor
    """[F, k], -inf where there is none yet."""
    keys: Tensor
    """[F, k]"""
    facts: Tensor
    """[F, k, n] what is known of each image beside its value."""

    @classmethod
    def empty(cls, n_features: int, k: int, device: torch.device, n_facts: int = 0) -> "Ranking":
        """Nothing seen yet."""
        return cls(
            torch.full((n_features, k), -math.inf, device=device),
            torch.full((n_features, k), NO_KEY, dtype=torch.int64, device=device),
            torch.zeros(n_features, k, n_facts, device=device),
        )

    def update(self, values: Tensor, keys: Tensor, facts: Facts | None = None) -> Tensor:
        """Take in values [F, B] of images with keys [F, B]; returns the keys that some feature now ranks, [n].

        A key counts once, with the highest of its values.

        Args:
            facts: asked for what enters a ranking, which is little in the long run; may be left out if n is 0.
        """
        enters = values >= self.values[:, -1:]
        rows = enters.any(1).nonzero().squeeze(1)
        known = self.facts.new_zeros(len(rows), values.shape[1], self.facts.shape[2])
        if facts:
            row, image = enters[rows].nonzero(as_tuple=True)
            known[row, image] = facts(rows[row], image)
        candidates = torch.cat([self.values[rows], values[rows]], 1)
        owners = torch.cat([self.keys[rows], keys[rows]], 1)
        order = owners.argsort(1)
        candidates, owners = candidates.gather(1, order), owners.gather(1, order)
        again = (owners[:, 1:] == owners[:, :-1]) & (owners[:, 1:] != NO_KEY)
        if again.any():  # rare
            best = candidates.argsort(dim=1, descending=True)
            best = best.gather(1, owners.gather(1, best).argsort(dim=1, stable=True))
            order, candidates = order.gather(1, best), candidates.gather(1, best)
            candidates[:, 1:].masked_fill_(again, -math.inf)
            owners[:, 1:].masked_fill_(again, NO_KEY)
        last = candidates.argsort(dim=1, descending=True, stable=True)[:, : self.values.shape[1]]
        self.values[rows], self.keys[rows] = candidates.gather(1, last), owners.gather(1, last)
        chosen = order.gather(1, last)[..., None].expand(-1, -1, self.facts.shape[2])
        self.facts[rows] = torch.cat([self.facts[rows], known], 1).gather(1, chosen)
        return self.keys[rows].flatten()


@dataclass(slots=True)
class SiteFold:
    """What is known of one site's features after some images.

    Tensors lie on the model's device, which need not have float64; arrays are float64 on the CPU.
    """

    top: Ranking
    """Beside each image the activation of its strongest patch, and the place of that in the row of patches."""
    bottom: Ranking
    """Of the negated scores."""
    counts: Tensor
    """[F, 2 * N_BINS + 1] images in each bin of the sketch."""
    slots: Tensor
    """[F + 1, N_SLOTS] count sketch of the scores, and of ones, over images (Charikar, Chen and Farach-Colton 2002)."""
    n: int
    """Images, without those left out here."""
    mean: NDArray[np.float64]
    """[F] of scores."""
    squares: NDArray[np.float64]
    """[F] sum of squared differences from the mean."""
    active: NDArray[np.float64]
    """[F] sum over images of the share of patches with a positive activation."""
    peak_mean: NDArray[np.float64]
    """[F] of the activations of strongest patches."""
    peak_squares: NDArray[np.float64]

    @classmethod
    def empty(cls, n_features: int, k: int, device: torch.device) -> "SiteFold":
        """Nothing seen yet."""
        counts = torch.zeros(n_features, 2 * N_BINS + 1, dtype=torch.int32, device=device)
        top, bottom = Ranking.empty(n_features, k, device, 2), Ranking.empty(n_features, k, device)
        slots = torch.zeros(n_features + 1, N_SLOTS, device=device)
        return cls(top, bottom, counts, slots, 0, *(np.zeros(n_features) for _ in range(5)))

    def update(
        self,
        scores: Tensor,
        active: Tensor,
        peaks: Tensor,
        places: Callable[[Tensor, Tensor], Tensor],
        keys: Tensor,
        finite: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Take in images with keys [B], but for those not `finite` [B].

        Args:
            scores: [B, F]
            active: [B, F] share of patches with a positive activation.
            peaks: [B, F] activation of the strongest patch.
            places: of features [e] on images [e], numbers of columns and rows, its place in the row of patches, [e].
            rows: [B] numbers that tell copies of an image apart, which would add up in one slot; keys if None.

        Returns:
            The keys now ranked, [n].
        """
        taken = finite[:, None]
        scores, peaks, n = scores.where(taken, 0), peaks.where(taken, 0), taken.sum(dtype=torch.float32)
        parts = [n.expand(scores.shape[1]), active.where(taken, 0).sum(0)]
        for values in (scores, peaks):
            # About the mean of the batch, float32 is exact enough; batches are then joined in float64.
            center = values.sum(0) / n.clamp(min=1)
            rest = (values - center).where(taken, 0)
            parts += [center, rest.sum(0), rest.square().sum(0)]
        count, shares, *moments = torch.stack(parts).cpu().numpy().astype(np.float64)
        if count[0]:
            mean, peak_mean = (moments[i] + moments[i + 1] / count for i in (0, 3))
            self._join(int(count[0]), mean, moments[2], shares, peak_mean, moments[5])
        columns, owners = scores.T.contiguous(), keys.where(finite, NO_KEY).expand(scores.shape[1], -1)
        signs = slot_signs(keys if rows is None else rows) * taken
        self.slots.addmm_(torch.cat([columns, finite[None].to(columns)]), signs)

        def facts(features: Tensor, images: Tensor) -> Tensor:
            at = places(features, images)  # below 2^24 it is exact in float32
            return torch.stack([peaks[images, features], at.to(peaks)], 1)

        ranked = [self.top.update(columns.where(finite, -math.inf), owners, facts)]
        ranked += [self.bottom.update((-columns).where(finite, -math.inf), owners)]
        bins = sketch_bins(columns)
        self.counts.scatter_add_(1, bins, finite.int().expand_as(bins))
        return torch.cat(ranked)

    def merge(self, other: "SiteFold") -> None:
        """Take in what another process saw of other images."""
        self.top.update(other.top.values, other.top.keys, lambda *which: other.top.facts[which])
        self.bottom.update(other.bottom.values, other.bottom.keys)
        self.counts, self.slots = self.counts + other.counts, self.slots + other.slots
        if other.n:
            self._join(other.n, *(getattr(other, name) for name in _SUMS))

    def _join(
        self,
        n: int,
        mean: NDArray[np.float64],
        squares: NDArray[np.float64],
        active: NDArray[np.float64],
        peak_mean: NDArray[np.float64],
        peak_squares: NDArray[np.float64],
    ) -> None:
        """Chan, Golub and LeVeque 1983: mean and squared differences of two sets of images together."""
        whole = self.n + n
        step, peak_step = mean - self.mean, peak_mean - self.peak_mean
        self.mean = self.mean + step * n / whole
        self.squares = self.squares + squares + step**2 * (self.n * n / whole)
        self.peak_mean = self.peak_mean + peak_step * n / whole
        self.peak_squares = self.peak_squares + peak_squares + peak_step**2 * (self.n * n / whole)
        self.active = self.active + active
        self.n = whole

    def neighbours(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The n features whose scores go most with those of each, and the correlations over images, [F, n] each.

        The correlation is -1 where a feature's scores do not vary. Each is off by about 0.04, less for few images.
        """
        slots = self.slots.cpu().numpy().astype(np.float64)
        rest = slots[:-1] - self.mean[:, None] * slots[-1]
        length = np.linalg.norm(rest, axis=1)
        varies = (self.squares > 1e-12 * self.n * self.mean**2) & (length > 0)
        unit = rest / np.where(varies, length, 1)[:, None]
        correlation = unit @ unit.T
        correlation[~varies] = correlation[:, ~varies] = -1
        np.fill_diagonal(correlation, -np.inf)
        order = np.argsort(-correlation, axis=1, kind="stable")[:, : min(n, len(unit) - 1)]
        return order, np.take_along_axis(correlation, order, 1).clip(-1, 1)

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        rankings = {f"{side}.{part}": getattr(getattr(self, side), part) for side in _SIDES for part in _PARTS}
        sums = {name: torch.from_numpy(getattr(self, name)) for name in _SUMS}
        return {**rankings, "counts": self.counts, "slots": self.slots, "n": torch.tensor(self.n), **sums}

    @classmethod
    def from_tensors(cls, t: Mapping[str, Tensor], device: torch.device) -> "SiteFold":
        """The inverse of `tensors`, from the CPU."""
        top, bottom = (Ranking(*(t[f"{side}.{part}"].to(device) for part in _PARTS)) for side in _SIDES)
        arrays = (t[name].numpy() for name in _SUMS)
        return cls(top, bottom, t["counts"].to(device), t["slots"].to(device), int(t["n"]), *arrays)


_SIDES, _PARTS = ("top", "bottom"), ("values", "keys", "facts")
_SUMS = ("mean", "squares", "active", "peak_mean", "peak_squares")


def slot_signs(keys: Tensor) -> Tensor:
    """For images with numbers [B] a row [N_SLOTS] each: 1 or -1 in the image's own slot, 0 elsewhere."""
    slots = torch.arange(N_SLOTS, device=keys.device)
    sign = ((keys // N_SLOTS) % 2 * 2 - 1).to(torch.float32)
    return (keys[:, None] % N_SLOTS == slots) * sign[:, None]


def sketch_bins(values: Tensor) -> Tensor:
    """Bin of each value: N_BINS for |x| < 1e-4, then one for each 6.5 % on either side; the outermost has no end."""
    size = (values.abs() / SMALLEST).clamp(min=1e-30).log() / math.log(GROWTH)
    steps = size.floor().clamp(-1, N_BINS - 1) + 1
    return (N_BINS + steps * values.sign()).long()


def sketch_centers() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Value that stands for each bin: within 3.2 % of everything in it that is no larger than 1000."""
    positive = SMALLEST * GROWTH ** np.arange(N_BINS) * (2 * GROWTH / (1 + GROWTH))
    return np.concatenate([-positive[::-1], [0.0], positive])
