"""Options of feature visualization, and their presets."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from vitviz_hf.config import Checked, Precision, knob
from vitviz_hf.errors import ConfigError

PresetName = Literal["paper", "paper-clip", "fourier", "fast", "aligned", "accent"]
"""Names of `PRESETS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualizeConfig(Checked):
    """Every knob of feature visualization. An option that came later is off by default: old recipes stay as they are.

    Start from a preset: `VisualizeConfig.preset("paper", steps=60, seed=0)`.

    Raises:
        ConfigError: a value outside its range.
    """

    canvas: Literal["pixels", "fourier"] = knob("fourier", "free pixels, or the spectrum of decorrelated colors")
    margin: int = knob(16, "pixels around the input; every copy is a random crop", 0, 512)
    steps: int = knob(300, "optimizer steps", 1, 10_000)
    copies: int = knob(8, "augmented copies of the picture at each step", 1, 256)
    learning_rate: float = knob(0.05, "Adam's learning rate", 1e-6, 10)
    beta1: float = knob(0.9, "Adam's decay of the mean", 0, 0.9999)
    beta2: float = knob(0.99, "Adam's decay of the variance", 0, 0.9999)
    decay: Literal["cosine", "none"] = knob("cosine", "learning rate over the run")
    rotate: float = knob(10.0, "largest rotation of a copy in degrees", 0, 180)
    zoom: float = knob(0.1, "largest zoom of a copy, as a power of e", 0, 2)
    color_shift: float = knob(0.0, "strength of random brightness and contrast per copy and color", 0, 3)
    noise: float = knob(0.1, "standard deviation of added noise, falling to 0 over the run", 0, 2)
    noise_per: Literal["pixel", "color"] = knob("pixel", "one noise draw for each pixel, or for each copy and color")
    jitter: int = knob(0, "largest shift in pixels, wrapping around", 0, 512)
    smoothness: float | Literal["auto"] = knob("auto", "weight of total variation, or 'auto': measured", 0, 1e6)
    auto_strength: float = knob(1.0, "with smoothness auto: its gradient relative to a typical feature's", 0, 1e6)
    revive: bool = knob(True, "while a feature does not fire, maximize the input of its activation function")
    contrast: float = knob(
        0.0, "deviation of gray values to which copies and the picture are stretched, 0.25 as photographs", 0, 0.5
    )
    align: float = knob(0.0, "pull to the statistics of images that excite the feature, which must be given", 0, 1e3)
    keep: float = knob(0.0, "weight of a photograph, which must be given, where the feature does not fire", 0, 1e3)
    precision: Precision = knob("auto", "what the model computes in; auto: bfloat16 if the device has it")
    batch: int = knob(64, "images in one forward pass; a limit for memory, not for the result", 1, 4096)
    seed: int = knob(0, "same seed, same picture", 0, 2**53)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "VisualizeConfig":
        """A preset of `PRESETS`, with some values changed.

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

    @classmethod
    def from_recipe(cls, values: Mapping[str, Any]) -> "VisualizeConfig":
        """From a recipe; one of an earlier version has `autocast`, or nothing, in the place of `precision`.

        Raises:
            ConfigError: as `from_dict`.
        """
        known = {name: value for name, value in values.items() if name != "autocast"}
        return cls.from_dict({**known, "precision": told_precision(values)})


def told_precision(values: Mapping[str, Any]) -> Any:
    """What the options of a recipe say that the model computed in; earlier versions have `autocast`, or nothing."""
    return values.get("precision", "bfloat16" if values.get("autocast") else "float32")


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
_SHOWN = {"contrast": 0.25}
# With one copy or a larger learning rate the deepest feature of benchmarks/presets.py loses half its score.
_FAST: Mapping[str, Any] = {**_SHOWN, "steps": 80, "copies": 2}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": _PAPER,
    "paper-clip": {**_PAPER, "learning_rate": 1.0, "smoothness": 0.4},
    "fourier": _SHOWN,
    "fast": _FAST,
    # One copy in twice the steps: what is pulled needs steps, and few copies see no less of the statistics.
    # It starts from real images, and small steps stay near them.
    "aligned": {"steps": 160, "copies": 1, "learning_rate": 0.01, "align": 15.0, "noise": 0.0, "auto_strength": 0.2},
    "accent": {**_FAST, "contrast": 0.0, "keep": 1.0, "noise": 0.0},
}
WHEN: Mapping[str, str] = {
    "paper": "the recipe of arXiv:2212.06727 for ViT, to compare with its figures",
    "paper-clip": "the recipe of arXiv:2212.06727 for CLIP",
    "fourier": "from noise, in so many passes that the feature fires most, on a GPU",
    "fast": "as fourier in a fifteenth of the passes, on a CPU",
    "aligned": "regions of real images that excite the feature, changed until they excite it more",
    "accent": "a photograph, changed until it excites the feature",
}
"""When to take which of `PRESETS`."""
