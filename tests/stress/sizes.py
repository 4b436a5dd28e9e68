"""How much a run tries, and from which seed.

`VITVIZ_STRESS` is the share of everything: 1 in `make stress`, a few percent in `make check`. `VITVIZ_STRESS_SEED` is
the seed: drawn in `make stress`, 0 in `make check`. Whatever fails tells its seed.
"""

import os
import random

SHARE = float(os.environ.get("VITVIZ_STRESS", "0.02"))
SEED = int(os.environ.get("VITVIZ_STRESS_SEED", 0 if SHARE < 1 else random.SystemRandom().randrange(10**6)))
AGAIN = f"again with VITVIZ_STRESS={SHARE:g} VITVIZ_STRESS_SEED={SEED}"


def count(full: int, least: int = 1) -> int:
    """Cases of this run, of so many of a full one."""
    return max(least, round(full * SHARE))
