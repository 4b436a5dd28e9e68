"""An optimized picture, and the recipe in its PNG to make it again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from vitviz_hf.errors import ConfigError, RecipeError
from vitviz_hf.images import encode, pixels_to_image
from vitviz_hf.manifest import versions, write_file
from vitviz_hf.models.device import best_device, has_bfloat16
from vitviz_hf.models.view import ModelView
from vitviz_hf.optimize.config import VisualizeConfig, told_precision
from vitviz_hf.optimize.objectives import Objective, Target, to_objective

_CHUNK = "vitviz"
_SCHEMA = 1
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Visualization:
    """An optimized picture with the recipe to make it again."""

    pixels: Tensor
    """[3, H, W] in [0, 1], on the CPU."""
    score: float
    """Value of the objective on the picture itself: mean over patches, or at the objective's token."""
    transfer_score: float
    """The same under transforms that were not optimized for, see `transfer_scores`."""
    dead_steps: int
    """Steps in which the feature did not fire."""
    recipe: Mapping[str, Any]

    @property
    def alive(self) -> bool:
        """Whether the feature fires on the picture, see `is_alive`."""
        return is_alive(self.recipe)

    @property
    def image(self) -> Image.Image:
        """As an 8-bit picture."""
        return pixels_to_image(self.pixels)

    def png(self) -> bytes:
        """PNG file that carries the recipe."""
        info = PngImagePlugin.PngInfo()
        info.add_text(_CHUNK, json.dumps(self.recipe))
        return encode(self.image, "PNG", pnginfo=info)

    def save(self, path: str | Path) -> None:
        """Write the PNG with its recipe.

        Raises:
            OutputExistsError: the file exists.
            ConfigError: the name does not end in .png.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ConfigError(f"'{path}' must end in .png: the recipe is stored in the PNG.")
        write_file(path, self.png())


def shows(recipe: Mapping[str, Any], view: ModelView, target: Objective | Target | str) -> bool:
    """Whether a recipe is of this model, as it is now, and of this objective."""
    same = recipe.get("objective") == to_objective(target, view.kinds).to_json()
    return same and not view.identity.difference(recipe)


def expected_difference(recipe: Mapping[str, Any]) -> str | None:
    """Why a replay on this machine will differ from the picture, if it is known to."""
    device = str(recipe.get("device", "cpu"))
    if device != "cpu" and recipe.get("draws") != "cpu":
        return (
            f"the picture was made by an earlier version, which drew its random numbers on {device!r}: this version "
            "draws others, so the replay is another picture of the same feature."
        )
    config = recipe.get("config")
    in_bfloat16 = isinstance(config, dict) and told_precision(config) == "bfloat16"
    differs = (
        "looks different, since rounding in bfloat16 grows over the steps" if in_bfloat16 else "differs by rounding"
    )
    if not is_here(device):
        return (
            f"the picture was made on {device!r}, which is not here: it is made again on {best_device().type!r} from "
            f"the same random numbers, and {differs}."
        )
    if device == "cpu" and in_bfloat16 and not has_bfloat16(torch.device(device)):
        return (
            "the picture was made in bfloat16, which this processor has no instructions for: it is made again in it, "
            f"slowly, from the same random numbers, and {differs}."
        )
    return None


def is_alive(recipe: Mapping[str, Any]) -> bool:
    """Whether the feature fires on the final picture: its score is above 0.

    So for a feature, a direction, or a sum of them. A logit, and anything that is minimized, has no value that stands
    for silence; its pictures count as alive.
    """
    terms = Objective.from_json(recipe["objective"]).terms
    silent_at_zero = all(weight > 0 and target.site is not None for weight, target in terms)
    return float(recipe["score"]) > 0 or not silent_at_zero


def read_recipe(source: str | Path | Image.Image) -> dict[str, Any]:
    """The recipe stored in a picture.

    Raises:
        RecipeError: there is none, or it is of another version.
    """
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source, formats=["PNG"])
        recipe = json.loads(image.info[_CHUNK])
    except (KeyError, ValueError, OSError, SyntaxError, RecursionError, Image.DecompressionBombError) as error:
        raise RecipeError(
            f"{source!s:.200} carries no vitviz recipe; give a PNG that 'vitviz visualize' saved, unchanged."
        ) from error
    if not isinstance(recipe, dict) or recipe.get("schema") != _SCHEMA:
        raise RecipeError("the recipe is of another version of vitviz_hf; update the package.")
    return recipe


def read_result(source: Path) -> dict[str, Any]:
    """The recipe stored in a picture, with what came of it: it has a score, and tells how many real images went in.

    Raises:
        RecipeError: there is none, or these are no numbers.
    """
    recipe = read_recipe(source)
    guide = recipe.get("guide", {"images": 0})
    n = guide.get("images") if isinstance(guide, dict) else None
    if type(recipe.get("score")) is not float or type(n) is not int or not 0 <= n < 1_000_000:
        raise RecipeError("the recipe is incomplete or damaged: its score or its number of real images is missing.")
    return recipe


def is_here(device: str) -> bool:
    """Whether a recipe's device is on this machine."""
    return device == "cpu" or device == best_device().type


def make_recipe(
    view: ModelView, objective: Objective, config: VisualizeConfig, score: float, transfer: float, dead_steps: int
) -> dict[str, Any]:
    """Everything that decides a picture, and what came of it."""
    return {
        "schema": _SCHEMA,
        **view.identity.to_json(),
        "objective": objective.to_json(),
        "address": str(objective),
        "config": config.to_dict(),
        "versions": versions(),
        "device": view.device.type,
        "draws": "cpu",
        "score": score,
        "transfer_score": transfer,
        "dead_steps": dead_steps,
    }
