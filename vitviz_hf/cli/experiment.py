"""The command experiment: tables and figures of the papers."""

import argparse
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from vitviz_hf.cli.options import add_knobs, add_model_options, add_verb, counter, load_view, read_knobs
from vitviz_hf.config import CONTROLS, IMAGENET
from vitviz_hf.errors import ConfigError, OutputExistsError, VitvizError
from vitviz_hf.experiments.config import Boxed
from vitviz_hf.experiments.registry import EXPERIMENTS, Experiment
from vitviz_hf.manifest import check_absent, finished

ALL = "all"


def add_experiment_commands(verbs: Any) -> None:
    """One subcommand for each experiment, and `all`."""
    group = verbs.add_parser(
        "experiment",
        help="make a table and a figure of a paper for any model",
        description="Make a table and a figure of a paper for any model. Options: 'vitviz experiment NAME --help'.",
    )
    names = group.add_subparsers(title="experiments", required=True, metavar="NAME")
    for name, experiment in EXPERIMENTS.items():
        verb = add_verb(names, name, _run, experiment.title)
        verb.epilog = f"source: {experiment.source}"
        verb.set_defaults(experiment=name)
        _add_inputs(verb, experiment)
        verb.add_argument("--control", choices=CONTROLS, help="run it on models that have learned nothing too")
        add_knobs(verb, experiment.config, "of this experiment", defaults=True)
    verb = add_verb(names, ALL, _run_all, "run all of them and write a report")
    _add_inputs(verb, EXPERIMENTS["token-mixing"])
    add_knobs(verb, Boxed, "of all experiments that have them", defaults=True)


def _add_inputs(verb: argparse.ArgumentParser, experiment: Experiment) -> None:
    if experiment.dataset == "none":
        verb.add_argument("words", nargs=1, metavar="MODEL")
    elif experiment.dataset == "any":
        help_text = "a dataset to search; default: --atlas, else the built-in photographs"
        verb.add_argument("words", nargs="+", metavar="MODEL [DATASET]", help=help_text)
    else:
        help_text = f"one or more classifiers or CLIP-like models, then a labelled dataset such as {IMAGENET}"
        verb.add_argument("words", nargs="+", metavar="MODEL ... DATASET", help=help_text)
    if experiment.dataset != "none":
        verb.add_argument("--split", help="default: validation if there is one")
    verb.add_argument("--out", required=True, metavar="DIR", help="new folder for tables, figures and manifest")
    verb.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    add_model_options(verb)


def _run(args: Any) -> None:
    experiment = EXPERIMENTS[args.experiment]
    config = experiment.config(**read_knobs(args, experiment.config))
    out = Path(args.out)
    if not (args.resume and finished(out, _work_folder(out))):
        check_absent(out)
        _run_anew(args, experiment, config, out)
    print(", ".join(str(p) for p in sorted(out.iterdir())))


def _run_anew(args: Any, experiment: Experiment, config: Any, out: Path) -> None:
    models, source = _inputs(args, experiment)
    result = _run_one(args.experiment, models, source, config, out, args.resume, args.control)
    for name, table in result.tables.items():
        if name == "table":
            print(table.to_markdown())
    print(experiment.claim.to_markdown(result.found))


def _work_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.experiment")


def _inputs(args: Any, experiment: Experiment) -> tuple[list[Any], Any]:
    from vitviz_hf.stream import open_source

    models, data = args.words, None
    if experiment.dataset != "none" and len(models) > 1:
        *models, data = models
    elif experiment.dataset == "labelled":
        raise ConfigError(f"give a model and then a dataset, such as {models[0]} {IMAGENET}; got only {models[0]!r}.")
    source = open_source(data, args.split) if data else None
    return [load_view(args, model) for model in models], source


def _run_one(
    name: str, views: list[Any], source: Any, config: Any, out: Path, resume: bool, control: str | None = None
) -> Any:
    from vitviz_hf.experiments.run import run_experiment

    work = _work_folder(out)
    if work.exists() and not resume:
        raise OutputExistsError(f"'{work}' holds an interrupted run; go on with --resume, or delete it.")
    with counter(name, "", keep=True) as show:
        result = run_experiment(name, views, source, config, work, show, control)
    result.save(out)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _run_all(args: Any) -> None:
    from vitviz_hf.experiments.result import claim, describe_run, report
    from vitviz_hf.manifest import replace_file

    out = Path(args.out)
    if not args.resume:
        check_absent(out)
    views, source = _inputs(args, EXPERIMENTS["token-mixing"])
    given = read_knobs(args, Boxed)
    claim(out, describe_run(ALL, views, source, Boxed(**given), "both papers"))
    classifiers = _classifiers(views, source)
    failed = {}
    for name, experiment in EXPERIMENTS.items():
        if (out / name).is_dir():
            finished(out / name, _work_folder(out / name))
            continue
        known = {f.name for f in fields(experiment.config)}
        config = experiment.config(**{k: v for k, v in given.items() if k in known})
        try:
            if name == "token-mixing":
                able = _plain_ones(classifiers)
            elif experiment.dataset == "labelled":
                able = _all_of(classifiers)
            else:
                able = [v for v in views if v.layers][:1]
            _run_one(name, able, source, config, out / name, args.resume)
        except VitvizError as error:
            failed[name] = str(error)
            print(f"{name}: {error}")
    if len(failed) == len(EXPERIMENTS):
        raise ConfigError("no experiment could be run.")
    with replace_file(out / "report.md") as part:
        part.write_text(report(out, failed), "utf-8")
    print(out / "report.md")


def _classifiers(views: list[Any], source: Any) -> list[Any]:
    """Each model as a classifier, or why it is none."""
    from vitviz_hf.experiments.accuracy.classifiers import as_classifiers

    found: list[Any] = []
    for view in views:
        try:
            found += as_classifiers([view], source)
        except VitvizError as error:
            found.append(error)
    return found


def _all_of(classifiers: list[Any]) -> list[Any]:
    """Every one.

    Raises:
        VitvizError: a model is none.
    """
    for classifier in classifiers:
        if isinstance(classifier, VitvizError):
            raise classifier
    return classifiers


def _plain_ones(classifiers: list[Any]) -> list[Any]:
    """Those of one sequence of tokens."""
    from vitviz_hf.reading.tokens import check_plain

    able, reasons = [], []
    for classifier in classifiers:
        try:
            if isinstance(classifier, VitvizError):
                raise classifier
            check_plain(classifier)
            able.append(classifier)
        except VitvizError as error:
            reasons.append(str(error))
    if not able:
        raise ConfigError(" ".join(reasons))
    return able
