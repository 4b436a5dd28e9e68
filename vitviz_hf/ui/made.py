"""Atlases that were made on this server, in the cache folder: their places, names and disk space.

    atlases/KEY/            last used when it was last changed
        search/             of a search that is not at its end: its checkpoint, and rows that were read ahead
        00000132/           the atlas of the first 132 images; the last one counts

KEY is a digest of what decides the result of the search, so that whoever asks for the same finds it.
"""

import json
import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from vitviz_hf.manifest import cache_folder

UPLOADED = "uploaded photographs"
"""What their atlas has for its dataset; it is listed for nobody, and opened by its name only."""
_NAME = "made:"


def made_name(recipe: Mapping[str, Any]) -> str:
    """Name of the atlas that a search with this recipe makes, such as `made:0f3a5c7e9b1d2f40`."""
    return _NAME + sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def is_made(name: str) -> bool:
    """Whether the text is the name of an atlas made here, there or not."""
    return re.fullmatch(f"{_NAME}[0-9a-f]{{16}}", name) is not None


def made_folder(name: str) -> Path:
    """Where the search and the atlases of a name lie."""
    return cache_folder() / "atlases" / name.removeprefix(_NAME)


def newest_atlas(name: str) -> Path | None:
    """Folder of the atlas with most images of a name; None if there is none."""
    return max(made_folder(name).glob("[0-9]*"), default=None)


def list_made() -> dict[str, Path]:
    """Name -> folder of every atlas that was made here, those of uploaded photographs too."""
    names = [_NAME + path.name for path in sorted(cache_folder().glob("atlases/*"))]
    return {name: folder for name in names if (folder := newest_atlas(name))}


def mark_used(name: str) -> None:
    """What was used last is put away last."""
    os.utime(made_folder(name))
