"""Results of experiments that come with the source or lie in `VITVIZ_RESULTS`, and how the page tells them."""

import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.registry import CLAIMS, EXPERIMENTS
from vitviz_hf.experiments.verdict import Claim, Found, Verdict, read_found
from vitviz_hf.templates import load_template
from vitviz_hf.ui.files import file_link

_WIDE = 3
"""Width over height above which a figure is scrolled sideways."""
PAPERS_CSS = """
.story-of h3 { margin: 0.6rem 0 0.2rem; }
.story-of figure { margin: 1rem 0; }
.story-of figure img { width: 100%; height: auto; margin: 0; background: #fff; border-radius: 4px; }
.story-of .wide img { min-width: 1100px; }
.story-of caption { text-align: left; font-weight: 600; padding: 4px 8px; color: var(--body-text-color); }
.story-of figcaption { padding-top: 4px; }
.story-of .scroll { overflow-x: auto; margin: 0.6rem 0; }
.story-of .scroll:focus-visible { outline: 3px solid var(--body-text-color); }
.story-of table { border-collapse: collapse; font-size: 0.85rem; }
.story-of th, .story-of td { padding: 4px 8px; white-space: nowrap; text-align: left;
  border-bottom: 1px solid var(--border-color-primary); color: var(--body-text-color); }
.story-of thead th { white-space: normal; vertical-align: bottom; }
.story-of tbody th { position: sticky; left: 0; background: var(--background-fill-primary); font-weight: 600; }
.story-of .verdict { padding: 8px 12px; border-left: 4px solid var(--color-accent); }
.story-of .note { font-size: 0.85rem; }
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the app shows of an experiment."""

    title: str
    experiment: str
    source: str
    tables: Mapping[str, str]
    """Name -> markdown."""
    figures: Mapping[str, bytes | Path]
    """Name -> PNG or WebP."""
    verdict: Verdict | None
    """None where no claim is known."""

    @property
    def claim(self) -> Claim | None:
        """Of the papers."""
        return CLAIMS.get(self.experiment)

    @property
    def text(self) -> str:
        """All but the figures, as markdown."""
        parts = [f"## {self.title}", f"Source: {self.source}."]
        if self.claim:
            parts.append(f"The papers say: {self.claim.text} Criterion: {self.claim.criterion}")
        return "\n\n".join([*parts, *self.tables.values(), *([f"**{self.verdict}**"] if self.verdict else [])])

    def label(self, figure: str) -> str:
        """What a figure shows."""
        return self.claim.label(figure) if self.claim else figure.replace("-", " ")

    def caption(self, table: str) -> str:
        """What a table is of."""
        part = table.removeprefix("table").strip("-").replace("-", " ")
        return f"Variant {part or 'clean'}" if self.experiment == "group" else f"Table: {part or self.experiment}"


def judged(experiment: str, found: Found) -> Verdict | None:
    """Whether the claim of an experiment holds in its numbers; None without a claim."""
    return CLAIMS[experiment].verdict(found) if experiment in CLAIMS else None


def decoded(result: Shown) -> list[tuple[Image.Image, str]]:
    """The figures with what they show."""
    data = {name: d.read_bytes() if isinstance(d, Path) else d for name, d in result.figures.items()}
    return [(Image.open(io.BytesIO(d)), result.label(name)) for name, d in data.items()]


def results_folder() -> Path:
    """Where stored results lie: `VITVIZ_RESULTS`, else those that come with the source."""
    return Path(os.environ.get("VITVIZ_RESULTS") or Path(__file__).parents[2] / "docs" / "results").resolve()


def stored_results() -> list[str]:
    """Names of the stored results."""
    return sorted(path.parent.name for path in results_folder().glob("*/manifest.json"))


def stored_result(name: str) -> Shown:
    """A stored result.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in stored_results():
        raise ConfigError(f"there is no stored result {name!r}; there are {', '.join(stored_results()) or 'none'}.")
    folder = results_folder() / name
    facts = json.loads((folder / "manifest.json").read_text("utf-8"))
    models = ", ".join(m["model_id"] for m in facts["models"])
    return Shown(
        f"{facts['experiment']} of {models}",
        facts["experiment"],
        facts["source"],
        {path.stem: path.read_text("utf-8") for path in sorted(folder.glob("*.md"), key=lambda path: path.stem)},
        {p.stem: p for p in sorted(folder.iterdir()) if p.suffix in (".png", ".webp")},
        judged(facts["experiment"], read_found(folder, facts)),
    )


def story_html(result: Shown, keep: Any) -> str:
    """Claim, verdict, figures, tables, notes.

    Args:
        keep: bytes of a figure and its name -> path of a file that gradio serves.
    """
    figures = []
    for name, data in result.figures.items():
        path = data if isinstance(data, Path) else keep(data, f"{name}.png")
        size = Image.open(path).size
        wide = size[0] > _WIDE * size[1]
        figures.append({"link": file_link(str(path)), "label": result.label(name), "size": size, "wide": wide})
    known = EXPERIMENTS.get(result.experiment)
    tables = [{"caption": result.caption(name), **split_table(text)} for name, text in result.tables.items()]
    return load_template(__package__, "result.html").render(
        result=result,
        what=known.title if known else "",
        figures=figures,
        tables=tables,
        notes=dict.fromkeys(note for table in tables for note in table["notes"]),
    )


def split_table(text: str) -> dict[str, Any]:
    """Header, rows and notes of a table that `Table.to_markdown` wrote."""
    lines = text.strip().split("\n")
    cells = [
        [part.strip().replace("\\|", "|") for part in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if line.startswith("|")
    ]
    notes = [line for line in lines if line and not line.startswith("|")]
    return {"header": cells[0] if cells else [], "rows": cells[2:], "notes": notes}
