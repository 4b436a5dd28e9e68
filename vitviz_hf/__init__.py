"""See what a vision transformer learned: optimized pictures, activation maps and ranked features of any Hub id.

Shape letters in docstrings: B batch, T tokens, P patches = R*C, R rows, C columns, F features, H and W pixels,
N pictures or objectives, M augmented copies.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitviz_hf.atlas import Atlas as Atlas
    from vitviz_hf.atlas import make_atlas as make_atlas
    from vitviz_hf.atlas import open_atlas as open_atlas
    from vitviz_hf.attention import attention_weights as attention_weights
    from vitviz_hf.attention import joint_attention as joint_attention
    from vitviz_hf.classification import Classification as Classification
    from vitviz_hf.classification import ZeroShot as ZeroShot
    from vitviz_hf.classification import classify as classify
    from vitviz_hf.classification import imagenet_labels as imagenet_labels
    from vitviz_hf.classification import load_zero_shot as load_zero_shot
    from vitviz_hf.config import SearchConfig as SearchConfig
    from vitviz_hf.config import VisualizeConfig as VisualizeConfig
    from vitviz_hf.errors import VitvizError as VitvizError
    from vitviz_hf.experiments import run_experiment as run_experiment
    from vitviz_hf.images import open_image as open_image
    from vitviz_hf.maps import activation_map as activation_map
    from vitviz_hf.maps import top_features as top_features
    from vitviz_hf.model import ModelView as ModelView
    from vitviz_hf.model import at_size as at_size
    from vitviz_hf.model import list_sites as list_sites
    from vitviz_hf.model import load_model as load_model
    from vitviz_hf.model import to_pixels as to_pixels
    from vitviz_hf.naming import name_features as name_features
    from vitviz_hf.objectives import Direction as Direction
    from vitviz_hf.objectives import Logit as Logit
    from vitviz_hf.objectives import Objective as Objective
    from vitviz_hf.objectives import parse_objective as parse_objective
    from vitviz_hf.optimization import Step as Step
    from vitviz_hf.optimization import Visualization as Visualization
    from vitviz_hf.optimization import replay as replay
    from vitviz_hf.optimization import visualize as visualize
    from vitviz_hf.optimization import visualize_steps as visualize_steps
    from vitviz_hf.page import feature_page as feature_page
    from vitviz_hf.recording import activations as activations
    from vitviz_hf.reference import reference_scores as reference_scores
    from vitviz_hf.sites import Feature as Feature
    from vitviz_hf.sites import Site as Site
    from vitviz_hf.sites import parse_feature as parse_feature
    from vitviz_hf.sites import parse_site as parse_site
    from vitviz_hf.stream import open_source as open_source

__version__ = "0.1.0"

# Imported when first used: torch and transformers take seconds, 'vitviz --help' must not.
_HOMES = {
    "Atlas": "atlas",
    "Classification": "classification",
    "Direction": "objectives",
    "Feature": "sites",
    "Logit": "objectives",
    "ModelView": "model",
    "Objective": "objectives",
    "SearchConfig": "config",
    "Site": "sites",
    "Step": "optimization",
    "Visualization": "optimization",
    "VisualizeConfig": "config",
    "VitvizError": "errors",
    "ZeroShot": "classification",
    "activation_map": "maps",
    "activations": "recording",
    "at_size": "model",
    "attention_weights": "attention",
    "classify": "classification",
    "feature_page": "page",
    "imagenet_labels": "classification",
    "joint_attention": "attention",
    "list_sites": "model",
    "load_model": "model",
    "load_zero_shot": "classification",
    "make_atlas": "atlas",
    "name_features": "naming",
    "open_atlas": "atlas",
    "open_image": "images",
    "open_source": "stream",
    "parse_feature": "sites",
    "parse_objective": "objectives",
    "parse_site": "sites",
    "reference_scores": "reference",
    "replay": "optimization",
    "run_experiment": "experiments",
    "to_pixels": "model",
    "top_features": "maps",
    "visualize": "optimization",
    "visualize_steps": "optimization",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitviz_hf' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vitviz_hf.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
