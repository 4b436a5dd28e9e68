"""Options of the experiments."""

from dataclasses import dataclass
from typing import Literal

from vitviz_hf.config import Checked, knob
from vitviz_hf.optimize.config import PresetName

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

    limit: int = knob(0, _LIMIT, 0, 10**9)
    batch: int = knob(32, "images in one forward pass", 1, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMixingConfig(_Reads):
    """Options of the experiment `token-mixing`."""

    sweep: bool = knob(False, "also isolate in the first l layers, and after l layers, for each l")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxed(_Reads):
    """Options of experiments that use bounding boxes."""

    boxes: str = knob("", "boxes: CSV or folder of XML as ILSVRC has them, or a dataset; empty: the dataset's own")
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

    tile: int = knob(0, "side of the shuffled tiles in pixels; 0: the divisor of the input nearest to 32", 0, 4096)
    seed: int = knob(0, "of the shuffling and the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class OcclusionConfig(Boxed):
    """Options of the experiment `occlusion`."""

    grid: int = knob(14, "tiles in a row and in a column", 1, 512)
    shuffles: str = knob("2,4,8", "numbers of tiles in a row for shuffling, with commas between")
    seed: int = knob(0, "of the draws and the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpatialConfig(_Reads):
    """Options of the experiment `spatial`."""

    atlas: str = knob("", _ATLAS)
    per_layer: int = knob(32, "features of each layer, drawn at random; 0 for all", 0, 10**6)
    threshold: float = knob(0.5, "a patch is active above it", 0, 1e6)
    min_active: int = knob(10, "active patches that a feature must have on its best image to be counted", 1, 10**6)
    seed: int = knob(0, "of the draws and the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressionConfig(Checked):
    """Options of the experiment `progression`."""

    features: str = knob("", _FEATURES)
    columns: int = knob(6, "pictures for each layer", 1, 64)
    preset: PresetName = knob("fast", _PRESET)
    steps: int = knob(0, _STEPS, 0, 10_000)
    seed: int = knob(0, "same seed, same pictures", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowSitesConfig(Checked):
    """Options of the experiment `narrow-sites`."""

    layers: str = knob("", "such as 2,9; empty: one at a sixth of the depth, the middle, and one at five sixths")
    columns: int = knob(0, "features of each site, drawn at random; 0: 32 on a GPU, 8 on a CPU", 0, 1024)
    preset: PresetName = knob("paper", _PRESET)
    smoothness: float | Literal["auto"] = knob(
        "auto", "weight of total variation, or 'auto': by the gradient at each site; the paper's is 0.004", 0, 1e6
    )
    steps: int = knob(0, _STEPS, 0, 10_000)
    seed: int = knob(0, "same seed, same features and pictures", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class TripletsConfig(_Reads):
    """Options of the experiments `triplets` and `concepts`."""

    atlas: str = knob("", _ATLAS)
    features: str = knob("", _FEATURES)
    rows: int = knob(6, "features, if they are chosen by the rule", 1, 256)
    preset: PresetName = knob("fast", _PRESET)
    steps: int = knob(0, _STEPS, 0, 10_000)
    seed: int = knob(0, "same seed, same pictures", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsConfig(Checked):
    """Options of the analysis `views`."""

    filters: str = knob("", "filters with commas between, from 0; empty: the four most readable")
    patches: str = knob(
        "", "patches as row,column with spaces between; empty: the corner and the two of most attention"
    )
    levels: str = knob(
        "", "levels with commas between; level 0 is before any attention; empty: about 0, 4, 8, 11 of 12"
    )
    residual: float = knob(0.5, "share of the skip connection in joint attention; 0 is the paper's formula", 0, 1)
    white: float = knob(100.0, _WHITE, 50, 100)
    scale: Literal["linear", "log"] = knob("linear", _SCALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OccludeConfig(Checked):
    """Options of the analysis `occlude`."""

    ratio: float = knob(0.2, "share of the tiles that is blacked out in the pictures", 0, 1)
    grid: int = knob(14, "tiles in a row and in a column", 1, 512)
    tiles: str = knob("", "tile numbers with commas between, blacked out too; runs as 5-9")
    shuffles: str = knob("2,8", "numbers of tiles in a row for shuffling, with commas between")
    patch: str = knob("", "patch as row,column whose view is compared; empty: the one of most attention")
    filter: int = knob(-1, "filter of the views; -1: the one in which pictures are most readable", -1, 10**6)
    attention_from: str = knob(
        "", "row whose attention all views have, such as clean, as in the paper's figure; empty: each its own"
    )
    seeds: int = knob(3, "draws for the curves", 1, 100)
    residual: float = knob(0.5, "share of the skip connection in joint attention", 0, 1)
    white: float = knob(100.0, _WHITE, 50, 100)
    scale: Literal["linear", "log"] = knob("linear", _SCALE)
    seed: int = knob(0, "of the draws", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConfig(Checked):
    """Options of the analysis `group`."""

    limit: int = knob(0, "scenes that are used; 0 for all", 0, 10**6)
    compose: Literal["paste", "tiles", "none"] = knob(
        "paste", "how scenes are made of a dataset without masks: objects on a picture, or 2 x 2 tiles"
    )
    variants: str = knob(
        "clean,shuffle 2,shuffle 8", "with commas between: clean, shuffle N, random R, salient R, non-salient R"
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
