"""The experiments of the papers, by name. Importing this imports nothing heavy."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitviz_hf import config as c
from vitviz_hf.errors import ConfigError

if TYPE_CHECKING:
    from vitviz_hf.experiments.result import Result
    from vitviz_hf.model import ModelView
    from vitviz_hf.stream import Source


@dataclass(frozen=True, slots=True)
class Experiment:
    """A table and a figure of a paper."""

    title: str
    source: str
    module: str
    config: type[Any]
    dataset: Literal["labelled", "any", "none"]
    """What it reads: labelled pictures, any pictures, or nothing."""


_PAPER = "Ghiasi et al. 2022, arXiv:2212.06727"
_NEURONS = "What Neurons Tell and How Neurons Behave, arXiv:2210.07646"
EXPERIMENTS: Mapping[str, Experiment] = {
    "token-mixing": Experiment(
        "What the last layer mixes: accuracy without the class token's history, and of every patch token",
        f"{_PAPER}, section 4, Table 1 and Fig. 7", "token_mixing", c.TokenMixingConfig, "labelled",
    ),
    "background": Experiment(
        "How much of the accuracy is in the foreground, and how much in the background",
        f"{_PAPER}, section 5, Tables 2 and 3, Fig. 9b", "background", c.BackgroundConfig, "labelled",
    ),
    "low-pass": Experiment(
        "Accuracy without high frequencies", f"{_PAPER}, appendix D, Fig. 16", "low_pass", c.LowPassConfig, "labelled",
    ),
    "position": Experiment(
        "Accuracy without position embeddings, and with shuffled tiles", f"{_PAPER}, released notes", "position",
        c.PositionConfig, "labelled",
    ),
    "occlusion": Experiment(
        "Accuracy while tiles are blacked out or shuffled", _NEURONS,
        "occlusion_accuracy", c.OcclusionConfig, "labelled",
    ),
    "spatial": Experiment(
        "Whether a feature's activation stays where the picture is", f"{_PAPER}, appendix F, Fig. 63 and 64",
        "spatial", c.SpatialConfig, "any",
    ),
    "progression": Experiment(
        "Optimized pictures from the first layer to the last", f"{_PAPER}, Fig. 1 and 8", "progression",
        c.ProgressionConfig, "none",
    ),
    "narrow-sites": Experiment(
        "Wide and narrow sites: how much of an optimized picture is high-frequency", f"{_PAPER}, Fig. 4, 5 and 12",
        "narrow_sites", c.NarrowSitesConfig, "none",
    ),
    "triplets": Experiment(
        "Optimized picture, most activating image, and its activation map", f"{_PAPER}, Fig. 3, 6 and 9a", "triplets",
        c.TripletsConfig, "any",
    ),
    "concepts": Experiment(
        "Optimized picture and seven of the ten most activating images, with words", f"{_PAPER}, Fig. 2, 10 and 11",
        "concepts", c.TripletsConfig, "any",
    ),
}  # fmt: skip


def run_experiment(
    name: str,
    views: "Sequence[ModelView]",
    source: "Source | None",
    config: Any,
    work: Path,
    progress: Callable[[int, int], None] | None = None,
    control: str | None = None,
) -> "Result":
    """Run one experiment.

    Args:
        name: a key of `EXPERIMENTS`.
        views: the models that are compared; some experiments take one.
        source: the dataset, as from `open_source`.
        config: of the experiment's own class.
        work: folder for what an interrupted run goes on with; delete it when the result is saved.
        progress: called with what is done and its number, 0 if that is not known.
        control: `random-weights` or `shuffled-weights`: run it on models that have learned nothing too, and show both.

    Raises:
        ConfigError: unknown experiment or control, models and dataset that do not fit it, or `work` holds a run of
            other models, data or options.
        NoClassifierError: a model without a trained classifier where one is needed.
        DatasetError: the dataset failed, or nothing in it could be used.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"unknown experiment {name!r}; experiments are {', '.join(EXPERIMENTS)}.")
    experiment = EXPERIMENTS[name]
    if not views:
        raise ConfigError(f"{name} needs a model.")
    if source is None and experiment.dataset == "labelled":
        raise ConfigError(f"{name} needs a dataset with labels.")
    if control and getattr(config, "atlas", ""):
        raise ConfigError("a control has no atlas; give the dataset that is to be searched instead of --atlas.")
    from vitviz_hf.experiments.result import claim, describe_run, with_control
    from vitviz_hf.model import as_control

    module = importlib.import_module(f"vitviz_hf.experiments.{experiment.module}")

    def run(compared: "list[ModelView]", folder: Path) -> "Result":
        claim(folder, describe_run(name, compared, source, config))
        result: Result = module.run(compared, source, config, folder, progress)
        return result

    if control is None:
        return run(list(views), work)
    nulls = [as_control(view, control) for view in views]
    return with_control(run(list(views), work / "trained"), run(nulls, work / control), control)
