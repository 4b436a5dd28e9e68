"""Options of feature visualization and search. No torch here, so that the command line starts at once."""

from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from vitviz_hf.errors import ConfigError
from vitviz_hf.sites import KINDS

IMAGENET = "ILSVRC/imagenet-1k"
"""Dataset that is searched if none is named."""


def _knob(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"help": text, "low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualizeConfig:
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

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for knob in fields(self):
            _check(knob, types[knob.name], getattr(self, knob.name))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "VisualizeConfig":
        """`paper`, `fourier` or `fast`, with some values changed.

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

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Ghiasi et al. 2022, arXiv:2212.06727, section 3, and its code with v = 1: see smoothness below.
    "paper": {
        "canvas": "pixels", "margin": 0, "steps": 400, "copies": 8, "learning_rate": 0.1, "beta1": 0.5, "beta2": 0.99,
        "decay": "cosine", "rotate": 0.0, "zoom": 0.0, "color_shift": 1.0, "noise": 0.5, "noise_per": "pixel",
        "jitter": 32, "smoothness": 4e-3, "revive": False,
    },
    "fourier": {},
    # With one copy or a larger learning rate the deepest feature of benchmarks/presets.py loses half its score.
    "fast": {"steps": 80, "copies": 2},
}  # fmt: skip


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


def _check(knob: "Field[Any]", kind: Any, value: Any) -> None:
    name, low, high = knob.name, knob.metadata["low"], knob.metadata["high"]
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
