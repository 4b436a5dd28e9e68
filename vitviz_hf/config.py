"""Options of feature visualization and search. No torch here, so that the command line starts at once."""

import re
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from vitviz_hf.errors import ConfigError
from vitviz_hf.sites import KINDS

PresetName = Literal["paper", "paper-clip", "fourier", "fast"]
"""Names of `PRESETS`."""
IMAGENET = "ILSVRC/imagenet-1k"
"""Dataset that is searched if none is named."""


CONTROLS = ("random-weights", "shuffled-weights")
"""Models that have learned nothing, to compare with."""


def _knob(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"help": text, "low": low, "high": high})


class _Checked:
    """Options whose fields say what they may be."""

    __slots__ = ()

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for knob in fields(self):  # type: ignore[arg-type]
            if knob.metadata:
                _check(knob, types[knob.name], getattr(self, knob.name))

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualizeConfig(_Checked):
    """Every knob of feature visualization; the defaults are the preset `fourier`.

    Start from a preset: `VisualizeConfig.preset("paper", steps=60, seed=0)`.

    Raises:
        ConfigError: a value outside its range.
    """

    canvas: Literal["pixels", "fourier"] = _knob("fourier", "free pixels, or the spectrum of decorrelated colors")
    margin: int = _knob(16, "pixels around the input; every copy is a random crop", 0, 512)
    steps: int = _knob(300, "optimizer steps", 1, 10_000)
    copies: int = _knob(8, "augmented copies of the picture at each step", 1, 256)
    learning_rate: float = _knob(0.05, "Adam's learning rate", 1e-6, 10)
    beta1: float = _knob(0.9, "Adam's decay of the mean", 0, 0.9999)
    beta2: float = _knob(0.99, "Adam's decay of the variance", 0, 0.9999)
    decay: Literal["cosine", "none"] = _knob("cosine", "learning rate over the run")
    rotate: float = _knob(10.0, "largest rotation of a copy in degrees", 0, 180)
    zoom: float = _knob(0.1, "largest zoom of a copy, as a power of e", 0, 2)
    color_shift: float = _knob(0.0, "strength of random brightness and contrast per copy and color", 0, 3)
    noise: float = _knob(0.1, "standard deviation of added noise, falling to 0 over the run", 0, 2)
    noise_per: Literal["pixel", "color"] = _knob("pixel", "one noise draw for each pixel, or for each copy and color")
    jitter: int = _knob(0, "largest shift in pixels, wrapping around", 0, 512)
    smoothness: float | Literal["auto"] = _knob("auto", "weight of total variation, or 'auto': measured", 0, 1e6)
    auto_strength: float = _knob(1.0, "with smoothness auto: its gradient relative to a typical feature's", 0, 1e6)
    revive: bool = _knob(True, "while a feature does not fire, maximize the input of its activation function")
    autocast: bool = _knob(False, "run the model in bfloat16 (for GPUs)")
    batch: int = _knob(64, "images in one forward pass; a limit for memory, not for the result", 1, 4096)
    seed: int = _knob(0, "same seed, same picture", 0, 2**53)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "VisualizeConfig":
        """`paper`, `paper-clip`, `fourier` or `fast`, with some values changed.

        Raises:
            ConfigError: unknown preset or option, or a value outside its range.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}; presets are {', '.join(PRESETS)}.")
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VisualizeConfig":
        """From `to_dict`, or any part of it.

        Raises:
            ConfigError: unknown option, or a value outside its range.
        """
        names = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise ConfigError(f"unknown option {unknown[0]!r}; options are {', '.join(names)}.")
        return cls(**values)


# Ghiasi et al. 2022, arXiv:2212.06727, section 3. Its weight of total variation is that of its code, 4e-3 * v relative
# to the mean over patches and copies (5e-4 * v, and the code divides that mean by the 8 copies once more), not the
# text's 5e-5. For ViT the code has v of 0.1 and 1, for CLIP up to 100.
_PAPER: Mapping[str, Any] = {
    "canvas": "pixels",
    "margin": 0,
    "steps": 400,
    "copies": 8,
    "learning_rate": 0.1,
    "beta1": 0.5,
    "beta2": 0.99,
    "decay": "cosine",
    "rotate": 0.0,
    "zoom": 0.0,
    "color_shift": 1.0,
    "noise": 0.5,
    "noise_per": "pixel",
    "jitter": 32,
    "smoothness": 4e-3,
    "revive": False,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": _PAPER,
    "paper-clip": {**_PAPER, "learning_rate": 1.0, "smoothness": 0.4},
    "fourier": {},
    # With one copy or a larger learning rate the deepest feature of benchmarks/presets.py loses half its score.
    "fast": {"steps": 80, "copies": 2},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Options of a search for the most activating images.

    Raises:
        ConfigError: a value outside its range.
    """

    kinds: tuple[str, ...] = ("mlp_act",)
    """Kinds of sites, see sites.py."""
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
        if unknown := [k for k in self.kinds if k not in KINDS]:
            raise ConfigError(f"unknown kind {unknown[0]!r}; kinds are {', '.join(KINDS)}.")
        if self.reduce not in ("mean", "max"):
            raise ConfigError(f"reduce must be one of mean, max; got {self.reduce!r}.")
        for name, low, high in (("k", 1, 1000), ("batch", 1, 4096), ("workers", 0, 256), ("limit", 1, 10**12)):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high
            ):
                raise ConfigError(f"{name} must be a whole number from {low} to {high}; got {value!r}.")


_LIMIT = "rows of the dataset to read; 0 for all"
_ATLAS = "folder or Hub id of an atlas of the model; without one the dataset is searched first"
_FEATURES = "addresses with commas between, such as 5.mlp_act:10,9.mlp_act:3; empty: chosen by the rule in the table"
_PRESET = "recipe of the optimized pictures"
_WHITE = "percentile of a picture and of weights that is drawn white; 100: the largest, as in the paper; less brightens"
_SCALE = "of the patches' weights: linear, relative to the largest of each row, or log, the same for all, with its bar"
_STEPS = "optimizer steps; 0 for the preset's"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reads(_Checked):
    """Options of every experiment that reads a dataset."""

    limit: int = _knob(0, _LIMIT, 0, 10**9)
    batch: int = _knob(32, "images in one forward pass", 1, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMixingConfig(_Reads):
    """Options of the experiment `token-mixing`."""

    sweep: bool = _knob(False, "also isolate in the first l layers, and after l layers, for each l")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxed(_Reads):
    """Options of experiments that use bounding boxes."""

    boxes: str = _knob("", "boxes: CSV or folder of XML as ILSVRC has them, or a dataset; empty: the dataset's own")
    box_format: Literal["xyxy", "xywh"] = _knob("xyxy", "of a dataset's boxes: corners, or corner and size")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundConfig(Boxed):
    """Options of the experiment `background`."""

    controls: bool = _knob(True, "other fills than black, random boxes, and masks if there are any: four times as long")
    seed: int = _knob(0, "of the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class LowPassConfig(_Reads):
    """Options of the experiment `low-pass`."""

    filter_at: Literal["input", "original"] = _knob(
        "input", "what is filtered: the model's input, after resize and crop, or the original picture"
    )
    keep: Literal["low", "high", "band"] = _knob(
        "low", "frequencies up to r, above r, or from half of r to r, where 1 is the highest"
    )
    seed: int = _knob(0, "of the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionConfig(_Reads):
    """Options of the experiment `position`."""

    tile: int = _knob(0, "side of the shuffled tiles in pixels; 0: the divisor of the input nearest to 32", 0, 4096)
    seed: int = _knob(0, "of the shuffling and the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class OcclusionConfig(Boxed):
    """Options of the experiment `occlusion`."""

    grid: int = _knob(14, "tiles in a row and in a column", 1, 512)
    shuffles: str = _knob("2,4,8", "numbers of tiles in a row for shuffling, with commas between")
    seed: int = _knob(0, "of the draws and the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpatialConfig(_Reads):
    """Options of the experiment `spatial`."""

    atlas: str = _knob("", _ATLAS)
    per_layer: int = _knob(32, "features of each layer, drawn at random; 0 for all", 0, 10**6)
    threshold: float = _knob(0.5, "a patch is active above it", 0, 1e6)
    min_active: int = _knob(10, "active patches that a feature must have on its best image to be counted", 1, 10**6)
    seed: int = _knob(0, "of the draws and the bootstrap", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressionConfig(_Checked):
    """Options of the experiment `progression`."""

    features: str = _knob("", _FEATURES)
    columns: int = _knob(6, "pictures for each layer", 1, 64)
    preset: PresetName = _knob("fast", _PRESET)
    steps: int = _knob(0, _STEPS, 0, 10_000)
    seed: int = _knob(0, "same seed, same pictures", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowSitesConfig(_Checked):
    """Options of the experiment `narrow-sites`."""

    layers: str = _knob("", "such as 2,9; empty: one at a sixth of the depth, the middle, and one at five sixths")
    columns: int = _knob(0, "features of each site, drawn at random; 0: 32 on a GPU, 8 on a CPU", 0, 1024)
    preset: PresetName = _knob("paper", _PRESET)
    smoothness: float | Literal["auto"] = _knob(
        "auto", "weight of total variation, or 'auto': by the gradient at each site; the paper's is 0.004", 0, 1e6
    )
    steps: int = _knob(0, _STEPS, 0, 10_000)
    seed: int = _knob(0, "same seed, same features and pictures", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class TripletsConfig(_Reads):
    """Options of the experiments `triplets` and `concepts`."""

    atlas: str = _knob("", _ATLAS)
    features: str = _knob("", _FEATURES)
    rows: int = _knob(6, "features, if they are chosen by the rule", 1, 256)
    preset: PresetName = _knob("fast", _PRESET)
    steps: int = _knob(0, _STEPS, 0, 10_000)
    seed: int = _knob(0, "same seed, same pictures", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsConfig(_Checked):
    """Options of the analysis `views`."""

    filters: str = _knob("", "filters with commas between, from 0; empty: the four most readable")
    patches: str = _knob(
        "", "patches as row,column with spaces between; empty: the corner and the two of most attention"
    )
    levels: str = _knob(
        "", "levels with commas between; level 0 is before any attention; empty: about 0, 4, 8, 11 of 12"
    )
    residual: float = _knob(0.5, "share of the skip connection in joint attention; 0 is the paper's formula", 0, 1)
    white: float = _knob(100.0, _WHITE, 50, 100)
    scale: Literal["linear", "log"] = _knob("linear", _SCALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OccludeConfig(_Checked):
    """Options of the analysis `occlude`."""

    ratio: float = _knob(0.2, "share of the tiles that is blacked out in the pictures", 0, 1)
    grid: int = _knob(14, "tiles in a row and in a column", 1, 512)
    tiles: str = _knob("", "tile numbers with commas between, blacked out too; runs as 5-9")
    shuffles: str = _knob("2,8", "numbers of tiles in a row for shuffling, with commas between")
    patch: str = _knob("", "patch as row,column whose view is compared; empty: the one of most attention")
    filter: int = _knob(-1, "filter of the views; -1: the one in which pictures are most readable", -1, 10**6)
    attention_from: str = _knob(
        "", "row whose attention all views have, such as clean, as in the paper's figure; empty: each its own"
    )
    seeds: int = _knob(3, "draws for the curves", 1, 100)
    residual: float = _knob(0.5, "share of the skip connection in joint attention", 0, 1)
    white: float = _knob(100.0, _WHITE, 50, 100)
    scale: Literal["linear", "log"] = _knob("linear", _SCALE)
    seed: int = _knob(0, "of the draws", 0, 2**53)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConfig(_Checked):
    """Options of the analysis `group`."""

    limit: int = _knob(0, "scenes that are used; 0 for all", 0, 10**6)
    compose: Literal["paste", "tiles", "none"] = _knob(
        "paste", "how scenes are made of a dataset without masks: objects on a picture, or 2 x 2 tiles"
    )
    variants: str = _knob(
        "clean,shuffle 2,shuffle 8", "with commas between: clean, shuffle N, random R, salient R, non-salient R"
    )
    markers: Literal["attention", "fixed"] = _knob(
        "attention", "size of the points of t-SNE: attention of the class token, or one size and a panel with attention"
    )
    min_area: float = _knob(0.0196, "least share of the picture for an object", 0, 1)
    cover: float = _knob(0.4, "least share of a patch that an object must cover to own it", 0, 1)
    overlap: Literal["larger", "sum"] = _knob(
        "larger",
        "a patch of two objects goes to the larger part, or, as in the released code, to the object whose "
        "number is the sum of theirs",
    )
    seed: int = _knob(0, "of the order of Pascal VOC, of composed scenes, changes, controls and t-SNE", 0, 2**31)


def parse_numbers(text: str, name: str) -> list[int]:
    """Numbers with commas between.

    Raises:
        ConfigError: something else.
    """
    if not re.fullmatch(r"\s*(\d+\s*(,\s*\d+\s*)*)?", text):
        raise ConfigError(f"{name} must be numbers with commas between, such as 3,714; got {text!r}.")
    return [int(part) for part in text.split(",") if part.strip()]


def _check(knob: "Field[Any]", kind: Any, value: Any) -> None:
    name, low, high = knob.name, knob.metadata["low"], knob.metadata["high"]
    if kind is str:
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be text; got {value!r}.")
        return
    choices = [c for part in (kind, *get_args(kind)) for c in get_args(part) if isinstance(c, str)]
    if low is None:
        allowed: list[Any] = list(choices) or [True, False]
        if value not in allowed or (not choices and not isinstance(value, bool)):
            raise ConfigError(f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}.")
        return
    if value in choices:
        return
    whole = kind is int
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        auto = f" or {' or '.join(map(repr, choices))}" if choices else ""
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} must be {what} from {low:g} to {high:g}{auto}; got {value!r}.")
