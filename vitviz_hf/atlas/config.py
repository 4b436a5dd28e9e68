"""Options of a search."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from vitviz_hf.config import Checked, Precision, knob, parse_runs, parse_words
from vitviz_hf.errors import ConfigError
from vitviz_hf.sites import KINDS

MOST_WORKERS = 256


def _parse_layers(text: str, name: str) -> tuple[int, ...]:
    return tuple(sorted(set(parse_runs(text, name))))


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig(Checked):
    """Options of a search for the most activating images.

    Raises:
        ConfigError: a value outside its range.
    """

    kinds: tuple[str, ...] = knob(("mlp_act",), "default: mlp_act, the neurons", parse=parse_words, metavar="A,B")
    """Kinds of sites, see sites.py; those of the view are checked when the search begins."""
    layers: tuple[int, ...] | None = knob(
        None, "for example 3-7,11 (default: all)", blank="", parse=_parse_layers, metavar="A-B,C"
    )
    limit: int | None = knob(None, "rows to read (default: all)", 1, 10**12)
    k: int = knob(20, "images for each feature at either end", 1, 1000)
    reduce: Literal["mean", "max"] = knob("mean", "score over patches", metavar="{mean,max}")
    batch: int = knob(32, "images in a forward pass", 1, 4096)
    precision: Precision = knob("auto", "what the model computes in; auto: bfloat16 if the device has it")
    workers: int = knob(
        0, "processes that decode (default: none on a CPU, beside a GPU all cores but one)", 0, MOST_WORKERS
    )
    """0 decodes in threads of this process, which only the command line does not beside a GPU."""


def check_kinds(wanted: Collection[str], known: Collection[str] = KINDS) -> None:
    """Raise unless all kinds of sites are known.

    Args:
        known: `view.kinds`, which a model that is not loaded yet has at least.

    Raises:
        ConfigError: one is not.
    """
    if unknown := [k for k in wanted if k not in known]:
        raise ConfigError(f"unknown kind {unknown[0]!r}; kinds are {', '.join(known)}.")
