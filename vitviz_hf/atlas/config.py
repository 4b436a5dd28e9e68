"""Options of a search."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from vitviz_hf.errors import ConfigError
from vitviz_hf.sites import KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Options of a search for the most activating images.

    Raises:
        ConfigError: a value outside its range.
    """

    kinds: tuple[str, ...] = ("mlp_act",)
    """Kinds of sites, see sites.py; those of the view are checked when the search begins."""
    layers: tuple[int, ...] | None = None
    """All if None."""
    k: int = 20
    """Images kept for each feature, at either end."""
    reduce: Literal["mean", "max"] = "mean"
    """Score of an image: mean or maximum over its patches."""
    limit: int | None = None
    """Rows to read; all if None."""
    batch: int = 32
    """Images in one forward pass."""
    workers: int = 0
    """Processes that decode images; 0 decodes in threads of this one."""

    def __post_init__(self) -> None:
        if self.reduce not in ("mean", "max"):
            raise ConfigError(f"reduce must be one of mean, max; got {self.reduce!r}.")
        for name, low, high in (("k", 1, 1000), ("batch", 1, 4096), ("workers", 0, 256), ("limit", 1, 10**12)):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high
            ):
                raise ConfigError(f"{name} must be a whole number from {low} to {high}; got {value!r}.")


def check_kinds(wanted: Collection[str], known: Collection[str] = KINDS) -> None:
    """Raise unless all kinds of sites are known.

    Args:
        known: `view.kinds`, which a model that is not loaded yet has at least.

    Raises:
        ConfigError: one is not.
    """
    if unknown := [k for k in wanted if k not in known]:
        raise ConfigError(f"unknown kind {unknown[0]!r}; kinds are {', '.join(known)}.")
