"""Atlases that were made on this server, in the cache folder: their places, names and disk space.

    atlases/KEY/            last used when it was last changed
        search/             of a search that is not at its end: its checkpoint, and rows that were read ahead
        closed.json         models and datasets that it is made of and not everybody may read, if any
        00000132/           the atlas of the first 132 images; the one of most images counts

KEY is a digest of what decides the result of the search, so that whoever asks for the same finds it.
"""

import json
import math
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from vitviz_hf.errors import ConfigError
from vitviz_hf.manifest import cache_folder, replace_file

UPLOADED = "uploaded photographs"
"""What their atlas has for its dataset; it is listed for nobody, and opened by its name only."""
_NAME, _CLOSED = "made:", "closed.json"
_IN_USE_SECONDS = 600


def made_name(recipe: Mapping[str, Any]) -> str:
    """Name of the atlas that a search with this recipe makes, such as `made:0f3a5c7e9b1d2f40`."""
    return _NAME + sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def is_made(name: str) -> bool:
    """Whether the text is the name of an atlas made here, there or not."""
    return re.fullmatch(f"{_NAME}[0-9a-f]{{16}}", name) is not None


def made_folder(name: str) -> Path:
    """Where the search and the atlases of a name lie."""
    return cache_folder() / "atlases" / name.removeprefix(_NAME)


def close_atlas(name: str, parts: Sequence[tuple[str, str]]) -> None:
    """The atlas of a name is for those who may read all of some repositories, (`model` or `dataset`, id)."""
    with replace_file(made_folder(name) / _CLOSED) as path:
        path.write_text(json.dumps(parts))


def closed_parts(name: str) -> list[tuple[str, str]]:
    """What was given to `close_atlas`; nothing for an atlas that is open to all."""
    path = made_folder(name) / _CLOSED
    return [(kind, part) for kind, part in json.loads(path.read_text())] if path.is_file() else []


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


def disk_limit() -> int:
    """Most bytes that atlases made here may take: `VITVIZ_ATLAS_GB` (default 4); 0 keeps none.

    Raises:
        ConfigError: that is no such number.
    """
    given, size = os.environ.get("VITVIZ_ATLAS_GB", "4"), math.nan
    with suppress(ValueError):
        size = float(given)
    if not 0 <= size < math.inf:
        raise ConfigError(
            f"the disk space for atlases must be a number of GB, 0 or more; got {given!r}.",
            "Set the environment variable VITVIZ_ATLAS_GB to one, such as 4, or unset it.",
            "Tell whoever runs this server.",
        )
    return int(size * 1e9)


def make_room(running: Collection[str]) -> int:
    """Put away what was not used for longest until the rest is within the limit; returns the bytes that are left.

    Args:
        running: names that are searched for; they stay, as does what was used in the last ten minutes.

    Raises:
        ConfigError: see `disk_limit`.
    """
    folders = [path for path in cache_folder().glob("atlases/*") if path.is_dir()]
    for folder in folders:
        if _NAME + folder.name not in running:
            drop_superseded(folder, 1)
    taken = {folder: _bytes(folder) for folder in folders}
    left = sum(taken.values())
    for folder in sorted(folders, key=lambda f: f.stat().st_mtime):
        if left <= disk_limit():
            break
        if _NAME + folder.name not in running and time.time() - folder.stat().st_mtime > _IN_USE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
            left -= taken[folder]
    return left


def drop_superseded(folder: Path, kept: int) -> None:
    """Delete the atlases of a name but for the newest ones."""
    for old in sorted(folder.glob("[0-9]*"))[:-kept]:
        shutil.rmtree(old, ignore_errors=True)


def _bytes(folder: Path) -> int:
    sizes = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # put away or replaced meanwhile
            sizes += path.stat().st_size
    return sizes
