"""Running an experiment of the papers by its name."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.accuracy.classifiers import as_classifiers
from vitviz_hf.experiments.registry import EXPERIMENTS
from vitviz_hf.experiments.result import Progress, Result, claim, describe_run, with_control
from vitviz_hf.models.view import ModelView, as_control
from vitviz_hf.stream import Source


def run_experiment(
    name: str,
    views: Sequence[ModelView],
    source: Source | None,
    config: Any,
    work: Path,
    progress: Progress | None = None,
    control: str | None = None,
) -> Result:
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
        NoClassifierError: a model without a trained classifier or a text tower where one is needed.
        DatasetError: the dataset failed, or nothing in it could be used.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"unknown experiment {name!r}; experiments are {', '.join(EXPERIMENTS)}.")
    experiment = EXPERIMENTS[name]
    if not views:
        raise ConfigError(f"{name} needs a model.")
    if source is None and experiment.dataset == "labelled":
        raise ConfigError(f"{name} needs a dataset with labels.")
    if control and getattr(config, "atlas", None):
        raise ConfigError("a control has no atlas; give the dataset that is to be searched instead of --atlas.")
    module = importlib.import_module(f"vitviz_hf.experiments.{experiment.module}")
    if experiment.dataset == "labelled" and source is not None:
        views = as_classifiers(views, source)

    def run(compared: list[ModelView], folder: Path) -> Result:
        manifest = describe_run(name, compared, source, config)
        claim(folder, manifest)
        result: Result = module.run(compared, source, config, folder, progress)
        return replace(result, manifest=manifest | result.manifest)

    if control is None:
        return run(list(views), work)
    nulls = [as_control(view, control) for view in views]
    return with_control(run(list(views), work / "trained"), run(nulls, work / control), control)
