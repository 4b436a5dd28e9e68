"""Commands that are killed and starved: cheap ones, which store what they have as often as they can."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.stress.children import command


@dataclass(frozen=True)
class Job:
    """A command whose result lies in a folder."""

    run: Callable[[str, str, str, bool], int]
    """With the folder of the model, the data, the result, and whether it goes on with what it left."""
    needs_atlas: bool = False
    """The result is an atlas that is there before."""
    resumes: bool = True
    """It keeps what it has, to go on with."""


def search(model: str, data: str, out: str, again: bool) -> int:
    from vitviz_hf.atlas import write

    def often(*args: Any, **options: Any) -> Any:
        return searched(*args, **options, checkpoint_seconds=0)

    searched, write.search = write.search, often
    more = ["--batch", "4", "-k", "3", "--workers", "0", "--layers", "1", "--device", "cpu"]
    return command(["search", model, data, "--out", out, *more, *["--resume"] * again])


def build(model: str, data: str, out: str, again: bool) -> int:
    _few_steps()
    return command(["atlas", "build", out, "1.mlp_act:0-9", "--preset", "fast", "--device", "cpu"])


def picture(model: str, data: str, out: str, again: bool) -> int:
    more = ["--preset", "fast", "--steps", "2", "--device", "cpu", "--out", out]
    return command(["visualize", model, "1.mlp_act:5", *more])


def draw(model: str, data: str, out: str, again: bool) -> int:
    """An experiment that keeps pictures."""
    _few_steps()
    more = ["--layers", "1", "--columns", "1", "--steps", "2", "--preset", "fast", "--device", "cpu"]
    return command(["experiment", "narrow-sites", model, "--out", out, *more, *["--resume"] * again])


def compare(model: str, data: str, out: str, again: bool) -> int:
    """An experiment that keeps what it counted."""
    from vitviz_hf.experiments.accuracy import study

    study._CHECKPOINT_SECONDS = 0
    return command(["experiment", "position", model, data, "--out", out, "--batch", "4", *["--resume"] * again])


def _few_steps() -> None:
    from vitviz_hf.optimize import config

    config.PRESETS["fast"]["steps"] = 2


JOBS = {
    "search": Job(search),
    "build": Job(build, needs_atlas=True),
    "draw": Job(draw),
    "compare": Job(compare),
    "picture": Job(picture, resumes=False),
}


def start(job: Job, folder: Path, atlas: Path) -> Path:
    """A fresh place for the result; returns its path."""
    folder.mkdir(parents=True)
    if job.needs_atlas:
        shutil.copytree(atlas, folder / "out")
    return folder / "out"


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Files that one of two results lacks, or that differ; of optimized pictures by more than rounding.

    What was killed optimizes other features together than what was not.
    """
    return sorted(
        name
        for name in {*found, *expected}
        if found.get(name) != expected.get(name)
        and not (name in found and name in expected and _same_picture(found[name], expected[name]))
    )


def _same_picture(found: bytes, expected: bytes) -> bool:
    if not (found.startswith(b"\x89PNG") and expected.startswith(b"\x89PNG")):
        return False
    images = [Image.open(io.BytesIO(data)) for data in (found, expected)]
    recipes = [json.loads(image.info.get("vitviz", "{}")) for image in images]
    scores = [[recipe.pop(name, 0) for name in ("score", "transfer_score")] for recipe in recipes]
    levels = [np.asarray(image, int) for image in images]
    close = bool(np.allclose(*scores, rtol=1e-3, atol=1e-4))
    return recipes[0] == recipes[1] and close and bool(np.abs(levels[0] - levels[1]).max() <= 1)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
