"""Options of the experiments."""

import re
from dataclasses import dataclass
from typing import Literal

from vitviz_hf.config import Checked, knob, parse_features, parse_numbers, parse_patch, parse_patches, parse_runs
from vitviz_hf.errors import ConfigError
from vitviz_hf.optimize.config import PresetName
from vitviz_hf.sites import Feature

MODES = ("random", "salient", "non-salient")
"""Tiles that can be blacked out: any, those on an object, those off it."""
_LIMIT = "rows of the dataset to read; 0 for all"
_ATLAS = "folder or Hub id of an atlas of the model; without one the dataset is searched first"
_FEATURES = "addresses with commas between, such as 5.mlp_act:10,9.mlp_act:3; empty: chosen by the rule in the table"
_PRESET = "recipe of the optimized pictures"
_WHITE = "percentile of a picture and of weights that is drawn white; 100: the largest, as in the paper; less brightens"
_SCALE = "of the patches' weights: linear, relative to the largest of each row, or log, the same for all, with its bar"
_STEPS = "optimizer steps; 0 for the preset's"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reads(Checked):
    """Options of every experiment that reads a dataset."""

    limit: int | None = knob(None, _LIMIT, 1, 10**9, blank=0)
    batch: int = knob(32, "images in one forward pass", 1, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMixingConfig(_Reads):
    """Options of the experiment `token-mixing`."""

    sweep: bool = knob(False, "also isolate in the first l layers, and after l layers, for each l")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxed(_Reads):
    """Options of experiments that use bounding boxes."""

    boxes: str | None = knob(
        None, "boxes: CSV or folder of XML as ILSVRC has them, or a dataset; empty: the dataset's own", blank=""
    )
    box_format: Literal["xyxy", "xywh"] = knob("xyxy", "of a dataset's boxes: corners, or corner and size")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundConfig(Boxed):
    """Options of the experiment `background`."""

    controls: bool = knob(True, "other fills than black, random boxes, and masks if there are any: four times as long")
    seed: int = knob(0, "of the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class LowPassConfig(_Reads):
    """Options of the experiment `low-pass`."""

    filter_at: Literal["input", "original"] = knob(
        "input", "what is filtered: the model's input, after resize and crop, or the original picture"
    )
    keep: Literal["low", "high", "band"] = knob(
        "low", "frequencies up to r, above r, or from half of r to r, where 1 is the highest"
    )
    seed: int = knob(0, "of the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionConfig(_Reads):
    """Options of the experiment `position`."""

    tile: int | None = knob(
        None, "side of the shuffled tiles in pixels; 0: the divisor of the input nearest to 32", 1, 4096, blank=0
    )
    seed: int = knob(0, "of the shuffling and the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class OcclusionConfig(Boxed):
    """Options of the experiment `occlusion`."""

    grid: int = knob(14, "tiles in a row and in a column", 1, 512)
    shuffles: tuple[int, ...] = knob(
        (2, 4, 8), "numbers of tiles in a row for shuffling, with commas between", parse=parse_numbers
    )
    seed: int = knob(0, "of the draws and the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpatialConfig(_Reads):
    """Options of the experiment `spatial`."""

    atlas: str | None = knob(None, _ATLAS, blank="")
    per_layer: int | None = knob(32, "features of each layer, drawn at random; 0 for all", 1, 10**6, blank=0)
    threshold: float = knob(0.5, "a patch is active above it", 0, 1e6)
    min_active: int = knob(10, "active patches that a feature must have on its best image to be counted", 1, 10**6)
    seed: int = knob(0, "of the draws and the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressionConfig(Checked):
    """Options of the experiment `progression`."""

    features: tuple[Feature, ...] | None = knob(None, _FEATURES, blank="", parse=parse_features)
    columns: int = knob(6, "pictures for each layer", 1, 64)
    preset: PresetName = knob("fast", _PRESET)
    steps: int | None = knob(None, _STEPS, 1, 10_000, blank=0)
    seed: int = knob(0, "same seed, same pictures", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowSitesConfig(Checked):
    """Options of the experiment `narrow-sites`."""

    layers: tuple[int, ...] | None = knob(
        None,
        "such as 2,9; empty: one at a sixth of the depth, the middle, and one at five sixths",
        blank="",
        parse=parse_numbers,
    )
    columns: int | None = knob(
        None, "features of each site, drawn at random; 0: 32 on a GPU, 8 on a CPU", 1, 1024, blank=0
    )
    preset: PresetName = knob("paper", _PRESET)
    smoothness: float | Literal["auto"] = knob(
        "auto", "weight of total variation, or 'auto': by the gradient at each site; the paper's is 0.004", 0, 1e6
    )
    steps: int | None = knob(None, _STEPS, 1, 10_000, blank=0)
    seed: int = knob(0, "same seed, same features and pictures", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class TripletsConfig(_Reads):
    """Options of the experiments `triplets` and `concepts`."""

    atlas: str | None = knob(None, _ATLAS, blank="")
    features: tuple[Feature, ...] | None = knob(None, _FEATURES, blank="", parse=parse_features)
    rows: int = knob(6, "features, if they are chosen by the rule", 1, 256)
    preset: PresetName = knob("fast", _PRESET)
    steps: int | None = knob(None, _STEPS, 1, 10_000, blank=0)
    seed: int = knob(0, "same seed, same pictures", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementConfig(_Reads):
    """Options of the experiment `agreement`."""

    judge: str | None = knob(None, "Hub id, folder or builtin-cnn: a network that is not the model", blank="")
    features: tuple[Feature, ...] | None = knob(
        None,
        "addresses with commas between; empty: all with a picture in the atlas, else live neurons, drawn at random",
        blank="",
        parse=parse_features,
    )
    layers: tuple[int, ...] | None = knob(
        None, "such as 3,7; empty: six from a sixth of the depth to the end", blank="", parse=parse_numbers
    )
    per_layer: int = knob(10, "features of each layer", 1, 10_000)
    atlas: str | None = knob(
        None,
        "folder or Hub id of an atlas of the model: its pictures are judged, by its images if no dataset is given",
        blank="",
    )
    preset: PresetName = knob("fast", _PRESET)
    steps: int | None = knob(None, _STEPS, 1, 10_000, blank=0)
    seeds: int = knob(1, "pictures of each feature", 1, 64)
    seed: int = knob(0, "of the features, the bootstrap and the first pictures", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsConfig(Checked):
    """Options of the analysis `views`."""

    filters: tuple[int, ...] | None = knob(
        None, "filters with commas between, from 0; empty: the four most readable", blank="", parse=parse_numbers
    )
    patches: tuple[tuple[int, int], ...] | None = knob(
        None,
        "patches as row,column with spaces between; empty: the corner and the two of most attention",
        blank="",
        parse=parse_patches,
    )
    levels: tuple[int, ...] | None = knob(
        None,
        "levels with commas between; level 0 is before any attention; empty: about 0, 4, 8, 11 of 12",
        blank="",
        parse=parse_numbers,
    )
    residual: float = knob(0.5, "share of the skip connection in joint attention; 0 is the paper's formula", 0, 1)
    white: float = knob(100.0, _WHITE, 50, 100)
    scale: Literal["linear", "log"] = knob("linear", _SCALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OccludeConfig(Checked):
    """Options of the analysis `occlude`."""

    ratio: float = knob(0.2, "share of the tiles that is blacked out in the pictures", 0, 1)
    grid: int = knob(14, "tiles in a row and in a column", 1, 512)
    tiles: tuple[int, ...] | None = knob(
        None, "tile numbers with commas between, blacked out too; runs as 5-9", blank="", parse=parse_runs
    )
    shuffles: tuple[int, ...] = knob(
        (2, 8), "numbers of tiles in a row for shuffling, with commas between", parse=parse_numbers
    )
    patch: tuple[int, int] | None = knob(
        None,
        "patch as row,column whose view is compared; empty: the one of most attention",
        blank="",
        parse=parse_patch,
    )
    filter: int | None = knob(
        None, "filter of the views; -1: the one in which pictures are most readable", 0, 10**6, blank=-1
    )
    attention_from: str | None = knob(
        None,
        "row whose attention all views have, such as clean, as in the paper's figure; empty: each its own",
        blank="",
    )
    seeds: int = knob(3, "draws for the curves", 1, 100)
    residual: float = knob(0.5, "share of the skip connection in joint attention", 0, 1)
    white: float = knob(100.0, _WHITE, 50, 100)
    scale: Literal["linear", "log"] = knob("linear", _SCALE)
    seed: int = knob(0, "of the draws", 0, 2**53)


@dataclass(frozen=True, slots=True)
class Variant:
    """How pictures are changed before they are grouped; `str(variant)` is such as `shuffle 8`.

    Raises:
        ConfigError: another kind.
    """

    kind: str
    """`clean`, `shuffle` or one of `MODES`."""
    amount: float | None = None
    """Tiles in a row, or share of the tiles; None for `clean`."""

    def __post_init__(self) -> None:
        if self.kind not in ("clean", "shuffle", *MODES) or (self.kind == "clean") != (self.amount is None):
            raise ConfigError(f"a variant is clean, or shuffle or one of {', '.join(MODES)} with a number; got {self}.")

    def __str__(self) -> str:
        return self.kind if self.amount is None else f"{self.kind} {self.amount:.15g}"


def parse_variants(text: str, name: str = "variants") -> tuple[Variant, ...]:
    """Variants such as `clean,shuffle 8,salient 0.5`.

    Raises:
        ConfigError: something else.
    """
    variants = []
    for part in (" ".join(part.split()) for part in text.split(",")):
        match = re.fullmatch(rf"(clean)|(shuffle) ([1-9]\d*)|({'|'.join(MODES)}) (\d*\.?\d+)", part)
        if match is None:
            raise ConfigError(
                f"{name} are clean, 'shuffle 8', 'random 0.2', 'salient 0.5' or 'non-salient 1'; got {part!r}."
            )
        kind, _, amount = part.partition(" ")
        variants.append(Variant(kind, float(amount) if amount else None))
    return tuple(dict.fromkeys(variants))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConfig(Checked):
    """Options of the analysis `group`."""

    limit: int | None = knob(None, "scenes that are used; 0 for all", 1, 10**6, blank=0)
    compose: Literal["paste", "tiles", "none"] = knob(
        "paste", "how scenes are made of a dataset without masks: objects on a picture, or 2 x 2 tiles"
    )
    variants: tuple[Variant, ...] = knob(
        (Variant("clean"), Variant("shuffle", 2), Variant("shuffle", 8)),
        "with commas between: clean, shuffle N, random R, salient R, non-salient R",
        parse=parse_variants,
    )
    markers: Literal["attention", "fixed"] = knob(
        "attention", "size of the points of t-SNE: attention of the class token, or one size and a panel with attention"
    )
    min_area: float = knob(0.0196, "least share of the picture for an object", 0, 1)
    cover: float = knob(0.4, "least share of a patch that an object must cover to own it", 0, 1)
    overlap: Literal["larger", "sum"] = knob(
        "larger",
        "a patch of two objects goes to the larger part, or, as in the released code, to the object whose "
        "number is the sum of theirs",
    )
    seed: int = knob(0, "of the order of Pascal VOC, of composed scenes, changes, controls and t-SNE", 0, 2**31)
