"""Making a picture again from its recipe."""

import warnings
from itertools import islice
from pathlib import Path

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
from PIL import Image

from vitviz_hf.config import check_control
from vitviz_hf.errors import RecipeError, VitvizError
from vitviz_hf.models.device import best_device
from vitviz_hf.models.view import ModelView, as_control, at_size, load_model
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.guides import Guide
from vitviz_hf.optimize.loop import finish, visualize_steps
from vitviz_hf.optimize.objectives import Objective
from vitviz_hf.optimize.recipe import (
    DTYPES,
    Visualization,
    expected_difference,
    is_here,
    read_recipe,
)
from vitviz_hf.sites import KINDS


class ReplayWarning(UserWarning):
    """A replayed picture will not be the one that the recipe made."""


def replay(source: str | Path | Image.Image, view: ModelView | None = None) -> Visualization:
    """Make a picture again from the recipe in its PNG, on the recipe's device and with its dtype.

    Where the device is missing here, another is used and a `ReplayWarning` says so.

    Args:
        view: saves loading, if it is the recipe's model and revision, of its dtype, and on its device.

    Raises:
        RecipeError: no recipe, or one this version cannot follow.
        ModelError: the model cannot be loaded.
    """
    recipe = read_recipe(source)
    try:
        objective = Objective.from_json(recipe["objective"], view.kinds if view else KINDS)
        config = VisualizeConfig.from_recipe(recipe["config"])
        guides = [Guide.from_json(recipe["guide"])] if "guide" in recipe else []
        after = int(recipe.get("stopped_after", config.steps))
        if not 1 <= after <= config.steps:
            raise RecipeError(f"the picture is said to be of step {after} of {config.steps}.")
        height, width = (int(s) for s in recipe["input_size"])
        model_id, revision = str(recipe["model_id"]), recipe["revision"]
        control, _, seed = str(recipe.get("control") or "").partition(", seed ")
        control_seed = int(seed or 0)
        if control:
            check_control(control, control_seed)
        dtype, device = DTYPES[recipe["dtype"]], str(recipe["device"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, VitvizError):
            raise RecipeError(f"the recipe cannot be followed: {error}") from error
        raise RecipeError(f"the recipe is incomplete or damaged ({error!r}).") from error
    if difference := expected_difference(recipe):
        warnings.warn(difference, ReplayWarning, stacklevel=2)
    wanted = torch.device(device) if is_here(device) else best_device()
    view = view and at_size(view, (height, width))
    if view is None or view.device.type != wanted.type or view.identity.difference(recipe):
        view = load_model(model_id, revision, wanted, dtype)
        view = at_size(as_control(view, control, control_seed) if control else view, (height, width))
        if difference := view.identity.difference(recipe):
            raise RecipeError(f"{model_id!r} is not what it was: the picture was made with {difference}.")
    step = next(islice(visualize_steps(view, [objective], config, guides), after - 1, None))
    return finish(view, [objective], config, step)[0]
