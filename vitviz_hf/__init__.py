"""See what a vision transformer learned: optimized pictures, activation maps and ranked features of any Hub id.

Shape letters in docstrings: B batch, T tokens, P patches = R*C, R rows, C columns, F features, H and W pixels,
N pictures or objectives, M augmented copies.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitviz_hf.atlas.config import SearchConfig as SearchConfig
    from vitviz_hf.atlas.page import feature_page as feature_page
    from vitviz_hf.atlas.store import Atlas as Atlas
    from vitviz_hf.atlas.store import open_atlas as open_atlas
    from vitviz_hf.atlas.words import name_features as name_features
    from vitviz_hf.atlas.write import make_atlas as make_atlas
    from vitviz_hf.errors import VitvizError as VitvizError
    from vitviz_hf.experiments.run import run_experiment as run_experiment
    from vitviz_hf.images import open_image as open_image
    from vitviz_hf.inside.components import Components as Components
    from vitviz_hf.inside.components import token_components as token_components
    from vitviz_hf.inside.curves import Curves as Curves
    from vitviz_hf.inside.curves import CurvesConfig as CurvesConfig
    from vitviz_hf.inside.curves import curves as curves
    from vitviz_hf.inside.edits import EditEffect as EditEffect
    from vitviz_hf.inside.edits import compare_edit as compare_edit
    from vitviz_hf.inside.edits import edited as edited
    from vitviz_hf.inside.heads import head_maps as head_maps
    from vitviz_hf.inside.heads import looked_at as looked_at
    from vitviz_hf.inside.heads import rollout as rollout
    from vitviz_hf.inside.lens import Lens as Lens
    from vitviz_hf.inside.lens import logit_lens as logit_lens
    from vitviz_hf.inside.norms import Norms as Norms
    from vitviz_hf.inside.norms import token_norms as token_norms
    from vitviz_hf.inside.norms import without_outliers as without_outliers
    from vitviz_hf.inside.relevance import Relevance as Relevance
    from vitviz_hf.inside.relevance import relevance as relevance
    from vitviz_hf.inside.similarity import Match as Match
    from vitviz_hf.inside.similarity import matches as matches
    from vitviz_hf.inside.similarity import similarity as similarity
    from vitviz_hf.inside.words import with_labels as with_labels
    from vitviz_hf.inside.words import with_words as with_words
    from vitviz_hf.models.taps import ExtraTap as ExtraTap
    from vitviz_hf.models.view import ModelView as ModelView
    from vitviz_hf.models.view import at_size as at_size
    from vitviz_hf.models.view import list_sites as list_sites
    from vitviz_hf.models.view import load_model as load_model
    from vitviz_hf.models.view import to_pixels as to_pixels
    from vitviz_hf.models.view import with_taps as with_taps
    from vitviz_hf.optimize.config import VisualizeConfig as VisualizeConfig
    from vitviz_hf.optimize.guides import Guide as Guide
    from vitviz_hf.optimize.guides import builtin_images as builtin_images
    from vitviz_hf.optimize.guides import guide_by_images as guide_by_images
    from vitviz_hf.optimize.guides import guide_by_photograph as guide_by_photograph
    from vitviz_hf.optimize.loop import Step as Step
    from vitviz_hf.optimize.loop import visualize as visualize
    from vitviz_hf.optimize.loop import visualize_steps as visualize_steps
    from vitviz_hf.optimize.objectives import AtToken as AtToken
    from vitviz_hf.optimize.objectives import Direction as Direction
    from vitviz_hf.optimize.objectives import Logit as Logit
    from vitviz_hf.optimize.objectives import Objective as Objective
    from vitviz_hf.optimize.objectives import parse_objective as parse_objective
    from vitviz_hf.optimize.recipe import Visualization as Visualization
    from vitviz_hf.optimize.replay import replay as replay
    from vitviz_hf.reading.attention import attention_weights as attention_weights
    from vitviz_hf.reading.attention import joint_attention as joint_attention
    from vitviz_hf.reading.attention import window_attention as window_attention
    from vitviz_hf.reading.classification import Classification as Classification
    from vitviz_hf.reading.classification import ZeroShot as ZeroShot
    from vitviz_hf.reading.classification import classify as classify
    from vitviz_hf.reading.classification import imagenet_labels as imagenet_labels
    from vitviz_hf.reading.classification import load_zero_shot as load_zero_shot
    from vitviz_hf.reading.maps import activation_map as activation_map
    from vitviz_hf.reading.maps import top_features as top_features
    from vitviz_hf.reading.recording import Acts as Acts
    from vitviz_hf.reading.recording import activations as activations
    from vitviz_hf.reading.reference import reference_scores as reference_scores
    from vitviz_hf.sites import Feature as Feature
    from vitviz_hf.sites import Site as Site
    from vitviz_hf.sites import parse_feature as parse_feature
    from vitviz_hf.sites import parse_site as parse_site
    from vitviz_hf.stream import open_source as open_source

__version__ = "0.1.0"

# Imported when first used: torch and transformers take seconds, 'vitviz --help' must not.
_HOMES = {
    "Acts": "reading.recording",
    "AtToken": "optimize.objectives",
    "Atlas": "atlas.store",
    "Classification": "reading.classification",
    "Components": "inside.components",
    "Curves": "inside.curves",
    "CurvesConfig": "inside.curves",
    "Direction": "optimize.objectives",
    "EditEffect": "inside.edits",
    "ExtraTap": "models.taps",
    "Feature": "sites",
    "Guide": "optimize.guides",
    "Lens": "inside.lens",
    "Logit": "optimize.objectives",
    "Match": "inside.similarity",
    "ModelView": "models.view",
    "Norms": "inside.norms",
    "Objective": "optimize.objectives",
    "Relevance": "inside.relevance",
    "SearchConfig": "atlas.config",
    "Site": "sites",
    "Step": "optimize.loop",
    "Visualization": "optimize.recipe",
    "VisualizeConfig": "optimize.config",
    "VitvizError": "errors",
    "ZeroShot": "reading.classification",
    "activation_map": "reading.maps",
    "activations": "reading.recording",
    "at_size": "models.view",
    "attention_weights": "reading.attention",
    "builtin_images": "optimize.guides",
    "classify": "reading.classification",
    "compare_edit": "inside.edits",
    "curves": "inside.curves",
    "edited": "inside.edits",
    "feature_page": "atlas.page",
    "guide_by_images": "optimize.guides",
    "guide_by_photograph": "optimize.guides",
    "head_maps": "inside.heads",
    "imagenet_labels": "reading.classification",
    "joint_attention": "reading.attention",
    "list_sites": "models.view",
    "load_model": "models.view",
    "load_zero_shot": "reading.classification",
    "logit_lens": "inside.lens",
    "looked_at": "inside.heads",
    "make_atlas": "atlas.write",
    "matches": "inside.similarity",
    "name_features": "atlas.words",
    "open_atlas": "atlas.store",
    "open_image": "images",
    "open_source": "stream",
    "parse_feature": "sites",
    "parse_objective": "optimize.objectives",
    "parse_site": "sites",
    "reference_scores": "reading.reference",
    "relevance": "inside.relevance",
    "replay": "optimize.replay",
    "rollout": "inside.heads",
    "run_experiment": "experiments.run",
    "similarity": "inside.similarity",
    "to_pixels": "models.view",
    "token_components": "inside.components",
    "token_norms": "inside.norms",
    "top_features": "reading.maps",
    "visualize": "optimize.loop",
    "visualize_steps": "optimize.loop",
    "window_attention": "reading.attention",
    "with_labels": "inside.words",
    "with_taps": "models.view",
    "with_words": "inside.words",
    "without_outliers": "inside.norms",
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
