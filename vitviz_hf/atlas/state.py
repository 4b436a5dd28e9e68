"""What a search knows while it runs, and how it is kept on disk."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitviz_hf.atlas.fold import NO_KEY, SiteFold
from vitviz_hf.config import Precision
from vitviz_hf.errors import ConfigError
from vitviz_hf.manifest import replace_file, storing
from vitviz_hf.sites import Site, parse_site

STATE = "state.safetensors"
"""File of a checkpoint in its folder."""
LISTED = 1000
"""Skipped images that are named."""


@dataclass(slots=True)
class SearchState:
    """Everything that a search knows; it is what a checkpoint stores."""

    folds: dict[Site, SiteFold]
    n_images: int = 0
    """Rows that the model saw."""
    n_rows: int = 0
    """Images and what was skipped."""
    n_skipped: int = 0
    """Rows that are no usable picture."""
    n_non_finite: int = 0
    """Images with a value that is no finite number at some site; each site leaves out its own."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of what was skipped or not finite, the first 1000 by name."""
    position: Any = None
    """Where the source goes on."""
    done: bool = False

    def merge(self, other: "SearchState") -> None:
        """Take in what was found in other rows; the position stays."""
        for site, fold in other.folds.items():
            self.folds[site].merge(fold)
        for name in ("n_images", "n_rows", "n_skipped", "n_non_finite"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.skipped = sorted(self.skipped + other.skipped)[:LISTED]


Floors = Mapping[Site, tuple[Tensor, Tensor]]
"""Scores [F] that an image must reach to be ranked, at the top and, negated, at the bottom."""


@contextmanager
def open_crops(folder: Path) -> Iterator[sqlite3.Connection]:
    """The crops of ranked images: key, name, label, JPEG.

    Raises:
        StorageError: the disk is full.
    """
    path = folder / "crops.sqlite"
    with storing(path), closing(sqlite3.connect(path)) as crops:
        crops.execute("CREATE TABLE IF NOT EXISTS crops (key INTEGER PRIMARY KEY, name TEXT, label TEXT, jpeg BLOB)")
        yield crops


def _whose(recipe: Mapping[str, Any]) -> str:
    """Who does the search of a recipe, in words."""
    if recipe.get("rank") == "all":
        return "a cluster (--on ray)"
    return "one process" if recipe.get("n_ranks", 1) == 1 else f"process {recipe['rank']} of {recipe['n_ranks']}"


def load_state(path: Path, recipe: Mapping[str, Any], device: torch.device) -> SearchState:
    """A checkpoint.

    Raises:
        ConfigError: it is of another search.
    """
    with safe_open(path, "pt", device="cpu") as file:
        facts = _facts(file)
        made = facts["recipe"]
        if different := [k for k, v in recipe.items() if made.get(k) != v]:
            name = different[0]
            if name in ("rank", "n_ranks"):
                raise ConfigError(
                    f"'{path.parent}' holds a search of {_whose(made)}, not of {_whose(recipe)}; go on as it was "
                    "begun, or give another --out."
                )
            raise ConfigError(
                f"'{path.parent}' holds a search with {name} {made.get(name)!r}, not {recipe[name]!r}; "
                "give the same options, or another --out."
            )
        names: dict[Site, dict[str, Tensor]] = {}
        for name in file.keys():  # noqa: SIM118  a safetensors file is no dict
            site, _, part = name.partition("/")
            names.setdefault(parse_site(site, None), {})[part] = file.get_tensor(name)
    folds = {site: SiteFold.from_tensors(parts, device) for site, parts in sorted(names.items())}
    return SearchState(folds, **{k: facts[k] for k in _FACTS}, skipped=[(a, b) for a, b in facts["skipped"]])


def stored_recipe(path: Path) -> dict[str, Any]:
    """What a checkpoint is of, as `search_recipe` tells."""
    with safe_open(path, "pt") as file:
        return dict(_facts(file)["recipe"])


def _facts(file: Any) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(file.metadata()["state"])
    return facts | {"recipe": {"precision": "float32"} | facts["recipe"]}  # earlier versions knew no other


def kept_precision(path: Path, wanted: Precision) -> Precision:
    """What a search computes in: `auto` is what a checkpoint was computed in, if there is one to go on with."""
    if wanted != "auto" or not path.is_file():
        return wanted
    kept: Precision = stored_recipe(path)["precision"]
    return kept


_FACTS = ("n_images", "n_rows", "n_skipped", "n_non_finite", "position", "done")


def checkpoint(state: SearchState, recipe: Mapping[str, Any], path: Path, crops: sqlite3.Connection) -> None:
    """Crops first: a state never names one that is not stored."""
    _prune(state, crops)
    crops.commit()
    facts = {k: getattr(state, k) for k in (*_FACTS, "skipped")} | {"recipe": dict(recipe)}
    tensors = {f"{s}/{n}": t.contiguous().cpu() for s, f in state.folds.items() for n, t in f.tensors().items()}
    with replace_file(path) as part:
        save_file(tensors, part, {"state": json.dumps(facts)})


def _prune(state: SearchState, crops: sqlite3.Connection) -> None:
    n_stored = crops.execute("SELECT COUNT(*) FROM crops").fetchone()[0]
    ranked = ranked_keys(state)
    if state.done or n_stored > 2 * len(ranked) + 1000:
        unranked = {key for (key,) in crops.execute("SELECT key FROM crops")} - ranked
        crops.executemany("DELETE FROM crops WHERE key = ?", [(k,) for k in unranked])


def ranked_keys(state: SearchState) -> set[int]:
    """Keys of the images that some feature ranks."""
    keys = [r.keys.unique().cpu() for f in state.folds.values() for r in (f.top, f.bottom)]
    return set(torch.cat(keys).unique().tolist()) - {NO_KEY}
