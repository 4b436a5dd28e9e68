"""How far pictures are from photographs, without the weights that such distances usually need."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


_FOR_DISTANCE = 1000


def distance_to(photographs: Floats, seed: int) -> Callable[[Floats], float]:
    """Kernel distance of sets of values [n, D] to at most 1,000 of the photographs [m, D], drawn by the seed."""
    drawn = np.random.default_rng(seed).permutation(len(photographs))[:_FOR_DISTANCE]
    some = photographs[drawn]
    within = mean_of_pairs(_kernel(some, some))

    def distance(own: Floats) -> float:
        return mean_of_pairs(_kernel(own, own)) + within - 2 * float(_kernel(own, some).mean())

    return distance


def kernel_distance(own: Floats, photographs: Floats) -> float:
    """Kernel distance of two sets of values [n, D], [m, D]: unbiased, with the kernel (x . y / D + 1)^3.

    0 in the mean for two samples of one distribution.

    Source: Bińkowski et al. 2018, arXiv:1801.01401 (KID), in the judge's values instead of Inception's.
    """
    within = mean_of_pairs(_kernel(own, own)) + mean_of_pairs(_kernel(photographs, photographs))
    return within - 2 * float(_kernel(own, photographs).mean())


def _kernel(x: Floats, y: Floats) -> NDArray[np.float64]:
    return np.asarray((x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3)


def mean_of_pairs(inner: NDArray[Any]) -> float:
    """Mean of a square matrix without its diagonal: over pairs of different things."""
    n = len(inner)
    return float((inner.sum() - np.trace(inner)) / (n * (n - 1)))


def percentile(value: float, among: NDArray[np.floating]) -> float:
    """Share of numbers below a value, in %; equal ones count half."""
    return float(100 * ((among < value).mean() + 0.5 * (among == value).mean()))


def spectrum_distance(own: Floats, photographs: Floats) -> float:
    """Root mean square over rings of the difference of mean log spectra, [n, R] and [m, R]; brightness is left out."""
    apart = own.mean(0) - photographs.mean(0)
    return float(np.sqrt(np.mean((apart - apart.mean()) ** 2)))
