"""Pictures to look at: the photographs that installed packages bring."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vitviz_hf.images import open_image

# Photographs, not drawings or diagrams, of scikit-image and gradio.
_BUILTIN = {
    "skimage": (
        "data", ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
                 "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png",
                 "retina.jpg", "rocket.jpg"),
    ),
    "gradio": ("media_assets/images", ("cheetah.jpg", "groot.jpeg", "lion.jpg", "tower.jpg")),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    """One item of a dataset; `key` names it stably."""

    key: str
    image: Image.Image
    label: str | None = None


def builtin_paths() -> dict[str, Path]:
    """Photographs of the installed packages by key; those of a package that is absent are left out."""
    paths: dict[str, Path] = {}
    for package, (folder, names) in _BUILTIN.items():
        spec = importlib.util.find_spec(package)
        for root in spec.submodule_search_locations or () if spec else ():
            paths |= {Path(n).stem: Path(root, folder, n) for n in names if Path(root, folder, n).is_file()}
    return paths


def builtin_photographs() -> Iterator[Example]:
    """The photographs themselves."""
    for key, path in builtin_paths().items():
        yield Example(key, open_image(path))
