"""Provenance of results, where this package keeps its own, and output that is complete or absent."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from safetensors import SafetensorError

from vitviz_hf.errors import OutputExistsError, StorageError, VitvizError, first_line

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


def finished(out: Path, work: Path) -> bool:
    """Whether `out` is complete and only its work folder is left, of a run that was killed as it deleted it."""
    if not (out.exists() and work.exists()):
        return False
    shutil.rmtree(work, ignore_errors=True)
    return True


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Tell in a sentence that a file or folder could not be written.

    Raises:
        StorageError: the disk is full, or something may not be written.
    """
    try:
        yield
    except (OSError, sqlite3.Error, SafetensorError) as error:
        if isinstance(error, VitvizError):
            raise
        raise StorageError(
            f"a result could not be stored ({getattr(error, 'strerror', None) or first_line(error)}).",
            f"Make room at '{path}', or choose another place; what was there before is unchanged.",
            "Try again later.",
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder that may be there already.

    Raises:
        StorageError: it cannot be made.
    """
    with storing(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def write_dir(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the name `folder` when the block succeeds and vanishes when it fails.

    Raises:
        OutputExistsError: `folder` exists already.
        StorageError: the disk is full, or the folder may not be written.
    """
    check_absent(folder)
    with storing(folder), _part(folder, is_folder=True) as part:
        yield part
        part.chmod(0o755)
        try:
            part.rename(folder)
        except OSError:
            check_absent(folder)
            raise


def write_file(path: Path, data: bytes) -> None:
    """Write a whole new file or none.

    Raises:
        OutputExistsError: `path` exists already.
        StorageError: the disk is full, or the file may not be written.
    """
    with storing(path), _part(path) as part:
        part.write_bytes(data)
        try:
            os.link(part, path)
        except FileExistsError as error:
            raise OutputExistsError(f"'{path}' already exists; choose another --out.") from error


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a file to write that takes the place of `path` when the block succeeds and vanishes when it fails.

    So there is the old file or the new one at every moment, whoever is killed.

    Raises:
        StorageError: the disk is full, or the file may not be written.
    """
    with storing(path), _part(path) as part:
        yield part
        part.replace(path)


def clear_left(folder: Path, stem: str = "*", suffix: str = "*") -> None:
    """Delete what killed writers of files in a folder left, also those that were killed after all was written.

    Args:
        stem: pattern of the files' names.
        suffix: pattern of their endings.
    """
    for left in folder.glob(f".{stem}-{'?' * 8}{suffix}"):
        with _lock(left, wait=False) as is_ours:
            if is_ours:
                _delete(left)


@contextmanager
def _part(path: Path, is_folder: bool = False) -> Iterator[Path]:
    """An empty file or folder beside `path`, of the same ending; gone after the block if it still has its own name.

    Its writer holds a lock on it; the next writer of `path` deletes what those left that were killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stem, suffix = (path.name, "") if is_folder else (path.stem, path.suffix)
    clear_left(path.parent, escape(stem), escape(suffix))
    while True:
        part = _make_part(path.parent, f".{stem}-", suffix, is_folder)
        with _lock(part, wait=True):
            if not part.exists():  # taken for what was left, before it was locked
                continue
            try:
                yield part
            finally:
                _delete(part)
            return


def _make_part(parent: Path, prefix: str, suffix: str, is_folder: bool) -> Path:
    if is_folder:
        return Path(tempfile.mkdtemp(suffix, prefix, parent))
    handle, name = tempfile.mkstemp(suffix, prefix, parent)
    os.close(handle)
    Path(name).chmod(0o644)
    return Path(name)


@contextmanager
def _lock(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process holds the lock of a file or folder, inside the block; it ends with the process."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield _locked(handle, wait)
    finally:
        os.close(handle)


def _locked(handle: int, wait: bool) -> bool:
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # somebody else's, or a system without
        return False
    return True


def _delete(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
