"""Results of experiments that come with the source or lie in `VITVIZ_RESULTS`."""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vitviz_hf.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Shown:
    """What the app shows of an experiment."""

    text: str
    """Markdown."""
    figures: dict[str, bytes]
    """Title -> PNG or WebP."""


def decoded(result: Shown) -> list[tuple[Image.Image, str]]:
    """The figures with their titles."""
    return [(Image.open(io.BytesIO(data)), title) for title, data in result.figures.items()]


def results_folder() -> Path:
    """Where stored results lie: `VITVIZ_RESULTS`, else those that come with the source."""
    return Path(os.environ.get("VITVIZ_RESULTS") or Path(__file__).parents[2] / "docs" / "results")


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
    tables = "\n".join(path.read_text("utf-8") for path in sorted(folder.glob("*.md")))
    figures = {p.stem: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in (".png", ".webp")}
    return Shown(f"## {facts['experiment']} of {models}\nSource: {facts['source']}.\n\n{tables}", figures)
