"""Pictures to look at: the photographs that installed packages bring, and local folders."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vitviz_hf.errors import ImageError
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
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


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


def folder_images(folder: str | Path) -> Iterator[Example]:
    """Pictures of a local folder and its subfolders, in the order of their paths.

    Raises:
        ImageError: no folder, or no pictures in it.
    """
    folder = Path(folder)
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS)
    if not paths:
        raise ImageError(f"'{folder}' is no folder with pictures ({', '.join(_ENDINGS)}).")
    for path in paths:
        yield Example(str(path.relative_to(folder)), open_image(path))
