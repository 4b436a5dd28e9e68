"""What an experiment gives: tables, figures, and how they came about."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitviz_hf.experiments import EXPERIMENTS
from vitviz_hf.figures import Figure, encode_figure
from vitviz_hf.manifest import versions, write_dir
from vitviz_hf.model import ModelView
from vitviz_hf.stream import Source
from vitviz_hf.tables import Table


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an experiment."""

    name: str
    tables: Mapping[str, Table]
    figures: Mapping[str, Figure]
    manifest: dict[str, Any]
    data: Mapping[str, Table] = field(default_factory=dict)
    """Long tables, for programs."""

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
        {
            "model_id": v.model_id, "revision": v.revision, "input_size": list(v.input_size), "mean": list(v.mean),
            "std": list(v.std), "dtype": str(v.dtype).removeprefix("torch."), "device": str(v.device),
        }
        for v in views
    ]  # fmt: skip
    data = source and {"dataset": source.dataset, "revision": source.revision, "split": source.split}
    return {
        "experiment": name, "source": paper or EXPERIMENTS[name].source, "models": models, "data": data,
        "config": config.to_dict(), "preprocessing": "the checkpoint's own", "versions": versions(),
    }  # fmt: skip


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
        parts += [path.read_text("utf-8") for path in sorted((folder / name).glob("*.md"))]
        parts += [f"![{path.stem} of {name}]({name}/{path.name})\n" for path in sorted((folder / name).glob("*.png"))]
    return "\n".join(parts)
