"""Provenance of results, where this package keeps its own, and output that is complete or absent."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vitviz_hf.errors import OutputExistsError

_PACKAGES = ("vitviz_hf", "torch", "transformers", "timm")


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str:
    if name == "vitviz_hf":
        from vitviz_hf import __version__

        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def cache_folder() -> Path:
    """Where this package keeps what it made: `VITVIZ_CACHE`, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VITVIZ_CACHE") or Path(base) / "vitviz_hf")


def check_absent(path: str | Path) -> None:
    """Raise if there is something that would have to be overwritten.

    Raises:
        OutputExistsError: `path` exists already.
    """
    if Path(path).exists():
        raise OutputExistsError(f"'{path}' already exists; choose another --out.")


@contextmanager
def write_dir(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the name `folder` when the block succeeds and vanishes when it fails.

    Raises:
        OutputExistsError: `folder` exists already.
    """
    check_absent(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield part
        part.chmod(0o755)
        try:
            part.rename(folder)
        except OSError as error:
            raise OutputExistsError(f"'{folder}' already exists; choose another --out.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a whole new file or none.

    Raises:
        OutputExistsError: `path` exists already.
    """
    with _part(path) as part:
        part.write_bytes(data)
        try:
            os.link(part, path)
        except FileExistsError as error:
            raise OutputExistsError(f"'{path}' already exists; choose another --out.") from error


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a file to write that takes the place of `path` when the block succeeds and vanishes when it fails.

    So there is the old file or the new one at every moment, whoever is killed.
    """
    with _part(path) as part:
        yield part
        part.replace(path)


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, of the same ending; gone after the block if it still has its own name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        part.chmod(0o644)
        yield part
    finally:
        part.unlink(missing_ok=True)
