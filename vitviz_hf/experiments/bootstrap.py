"""Confidence intervals by drawing again."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitviz_hf.experiments.tables import Interval

_DRAWS = 2000


def bootstrap(statistic: Callable[[NDArray[Any]], float], n: int, seed: int) -> Interval | None:
    """A statistic of n things with its 95 % interval, percentiles over 2000 draws of n of them with replacement.

    Args:
        statistic: of the things with some numbers, [m] -> value.

    Returns:
        None for fewer than two things.
    """
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(_DRAWS)]
    low, high = np.nanquantile(values, (0.025, 0.975))
    return Interval(statistic(np.arange(n)), float(low), float(high))
