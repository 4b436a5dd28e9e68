"""What an experiment gives: tables, figures, and how they came about."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.figures import Figure, encode_figure
from vitviz_hf.experiments.registry import CLAIMS, EXPERIMENTS
from vitviz_hf.experiments.tables import Table
from vitviz_hf.experiments.verdict import Found, read_found
from vitviz_hf.manifest import replace_file, versions, write_dir
from vitviz_hf.models.view import ModelView
from vitviz_hf.reading.classification import ZeroShot
from vitviz_hf.stream import Source

Progress = Callable[[int, int], None]
"""Called with what is done and its number, 0 if that is not known."""

CONTROL_NOTES = {
    "random-weights": "Control: the same architecture, initialized anew: it has learned nothing. Words and the "
    "projection to them stay.",
    "shuffled-weights": "Control: the same weights, the values of each tensor in a random order.",
}


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an experiment."""

    name: str
    tables: Mapping[str, Table]
    figures: Mapping[str, Figure]
    manifest: dict[str, Any] = field(default_factory=dict)
    """How it came about; `run_experiment` adds what `describe_run` tells."""
    data: Mapping[str, Table] = field(default_factory=dict)
    """Long tables, for programs."""

    @property
    def found(self) -> Found:
        """Its numbers, for `Claim.verdict`."""
        return Found({name: t.records() for name, t in {**self.tables, **self.data}.items()}, self.manifest)

    def save(self, folder: Path) -> None:
        """Write `.md`, `.csv` and `.json` of each table, `.png` and `.svg` of each figure, and manifest.json.

        Raises:
            OutputExistsError: `folder` exists.
        """
        with write_dir(folder) as out:
            for name, table in self.tables.items():
                (out / f"{name}.md").write_text(table.to_markdown(), "utf-8")
            for name, table in {**self.tables, **self.data}.items():
                (out / f"{name}.csv").write_text(table.to_csv(), "utf-8")
                (out / f"{name}.json").write_text(table.to_json(), "utf-8")
            for name, figure in self.figures.items():
                for kind in ("png", "svg"):
                    (out / f"{name}.{kind}").write_bytes(encode_figure(figure, kind))
            (out / "manifest.json").write_text(json.dumps(self.manifest, indent=1), "utf-8")


def describe_run(
    name: str, views: Sequence[ModelView], source: Source | None, config: Any, paper: str = ""
) -> dict[str, Any]:
    """The manifest: everything that decides the result."""
    models = [
        v.identity.to_json()
        | {"mean": list(v.mean), "std": list(v.std), "device": str(v.device)}
        | ({"zero_shot": v.head.to_json()} if isinstance(v.head, ZeroShot) else {})
        for v in views
    ]
    data = source and {"dataset": source.dataset, "revision": source.revision, "split": source.split}
    return {
        "experiment": name,
        "source": paper or EXPERIMENTS[name].source,
        "models": models,
        "data": data,
        "config": config.to_dict(),
        "boxes": _content(getattr(config, "boxes", None)),
        "preprocessing": "the checkpoint's own",
        "versions": versions(),
    }


def _content(name: str | None) -> str | None:
    """Sha256 of a file or of the XML files below a folder; None where there is none."""
    if name is None or not (path := Path(name).expanduser()).exists():
        return None
    whole = sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() == ".xml"):
        whole.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return whole.hexdigest()


def claim(work: Path, manifest: Mapping[str, Any]) -> None:
    """Make `work` the folder of one run: of these models, dataset and options.

    Raises:
        ConfigError: it holds an interrupted run of others.
    """
    own = _deciding(manifest)
    path = work / "run.json"
    if path.is_file():
        _check_same(work, json.loads(path.read_text("utf-8")), own)
    elif work.is_dir() and any(not p.name.startswith(".run-") for p in work.iterdir()):
        raise ConfigError(
            f"'{work}' holds something that is no run of this version; delete it, or choose another --out."
        )
    with replace_file(path) as part:
        part.write_text(json.dumps(own, indent=1), "utf-8")


def _deciding(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a result."""
    plain = json.loads(json.dumps({k: manifest.get(k) for k in ("experiment", "models", "data", "config", "boxes")}))
    return {k: v for k, v in _flat(plain).items() if not k.endswith(".device")}


def _check_same(folder: Path, made: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name in dict(own) | dict(made):
        if made.get(name) != own.get(name):
            raise ConfigError(
                f"'{folder}' holds a run with {name} {made.get(name)!r}, not {own.get(name)!r}; go on with the same "
                "models, dataset and options, or choose another --out."
            )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries and lists as one dictionary with names such as `models.0.revision`."""
    if not isinstance(value, dict | list | tuple):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {}
    for key, item in items:
        found |= _flat(item, f"{name}.{key}" if name else str(key))
    return found


def with_control(trained: Result, null: Result, control: str) -> Result:
    """Both in one: a column `weights` leads every table, and the control's figures are named after it."""

    def join(name: str, own: Mapping[str, Table], other: Mapping[str, Table]) -> Table:
        both = {kind: tables[name] for kind, tables in (("trained", own), (control, other)) if name in tables}
        columns = tuple(dict.fromkeys(c for table in both.values() for c in table.columns))
        rows = [
            (kind, *(dict(zip(table.columns, row, strict=True)).get(c) for c in columns))
            for kind, table in both.items()
            for row in table.rows
        ]
        notes = dict.fromkeys(note for table in both.values() for note in table.notes)
        return Table(("weights", *columns), tuple(rows), (*notes, CONTROL_NOTES[control]))

    return Result(
        trained.name,
        {name: join(name, trained.tables, null.tables) for name in {**trained.tables, **null.tables}},
        {**trained.figures, **{f"{name}-{control}": figure for name, figure in null.figures.items()}},
        trained.manifest | {"control": null.manifest},
        {name: join(name, trained.data, null.data) for name in {**trained.data, **null.data}},
    )


def report(folder: Path, failed: Mapping[str, str]) -> str:
    """All results below a folder as one markdown text.

    Args:
        failed: experiment -> why it could not be run.
    """
    parts = ["# Report\n"]
    for name, experiment in EXPERIMENTS.items():
        if not (folder / name / "manifest.json").is_file():
            if name in failed:
                parts.append(f"## {name}\n\n{experiment.title}. Not run: {failed[name]}\n")
            continue
        parts.append(f"## {name}\n\n{experiment.title}. Source: {experiment.source}.\n")
        facts = json.loads((folder / name / "manifest.json").read_text("utf-8"))
        parts.append(CLAIMS[name].to_markdown(read_found(folder / name, facts)))
        parts += [path.read_text("utf-8") for path in sorted((folder / name).glob("*.md"))]
        parts += [f"![{path.stem} of {name}]({name}/{path.name})\n" for path in sorted((folder / name).glob("*.png"))]
    return "\n".join(parts)
