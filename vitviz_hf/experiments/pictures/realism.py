"""How far pictures are from photographs, without the weights that such distances usually need."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def kernel_distance(own: Floats, photographs: Floats) -> float:
    """Kernel distance of two sets of values [n, D], [m, D]: unbiased, with the kernel (x . y / D + 1)^3.

    0 in the mean for two samples of one distribution.

    Source: Bińkowski et al. 2018, arXiv:1801.01401 (KID), in the judge's values instead of Inception's.
    """
    size = own.shape[1]

    def kernel(x: Floats, y: Floats) -> NDArray[np.float64]:
        return np.asarray((x.astype(np.float64) @ y.astype(np.float64).T / size + 1) ** 3)

    within = mean_of_pairs(kernel(own, own)) + mean_of_pairs(kernel(photographs, photographs))
    return within - 2 * float(kernel(own, photographs).mean())


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
