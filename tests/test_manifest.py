"""Output that is complete or absent."""

import sqlite3
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from vitviz_hf.errors import OutputExistsError, StorageError
from vitviz_hf.manifest import finished, replace_file, write_dir, write_file


def only(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "state.npz"

    for data in (b"one", b"two"):
        with replace_file(path) as part:
            part.write_bytes(data)
            assert part.parent == path.parent and part.suffix == ".npz"
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == data and only(path.parent) == ["state.npz"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(b"old")

    with pytest.raises(ValueError, match="stop"), replace_file(path) as part:
        part.write_bytes(b"half")
        raise ValueError("stop")

    assert path.read_bytes() == b"old" and only(tmp_path) == ["state.npz"]


def test_nothing_that_exists_is_written_over(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_bytes(b"old")

    with pytest.raises(OutputExistsError, match="a' already exists; choose another --out"), write_dir(tmp_path / "a"):
        pass
    with pytest.raises(OutputExistsError, match="b' already exists; choose another --out"):
        write_file(tmp_path / "b", b"new")

    assert (tmp_path / "b").read_bytes() == b"old" and only(tmp_path) == ["a", "b"]


KILLED = """
import os, signal, sys
from pathlib import Path
from vitviz_hf.manifest import replace_file, write_dir
with {how}(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["replace_file", "write_dir"])
def test_what_a_killed_writer_left_is_deleted_by_the_next(how, tmp_path):
    path = tmp_path / ("state.npz" if how == "replace_file" else "atlas")
    subprocess.run([sys.executable, "-c", KILLED.format(how=how), str(path)])
    assert len(only(tmp_path)) == 1 and not path.exists()

    with (replace_file if how == "replace_file" else write_dir)(path):
        pass

    assert only(tmp_path) == [path.name]


def test_what_another_is_writing_stays(tmp_path):
    with replace_file(tmp_path / "state.npz") as first:
        first.write_bytes(b"first")
        with replace_file(tmp_path / "state.npz") as second:
            second.write_bytes(b"second")
        assert (tmp_path / "state.npz").read_bytes() == b"second"

    assert (tmp_path / "state.npz").read_bytes() == b"first" and only(tmp_path) == ["state.npz"]


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(b"old")

    with (
        pytest.raises(StorageError, match=r"could not be stored \(No space left.*state\.npz'.*unchanged") as caught,
        replace_file(path),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"new")

    assert path.read_bytes() == b"old" and only(tmp_path) == ["state.npz"]
    assert isinstance(caught.value, OSError) and str(tmp_path) not in caught.value.for_visitor


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("database or disk is full"), SafetensorError("os error 28")]
)
def test_other_libraries_full_disks_are_told_too(error, tmp_path):
    with pytest.raises(StorageError, match=str(error)), write_dir(tmp_path / "atlas"):
        raise error

    assert only(tmp_path) == []


def test_a_run_that_was_killed_as_it_cleaned_up_is_finished(tmp_path):
    for name in ("out", "work"):
        (tmp_path / name).mkdir()

    assert finished(tmp_path / "out", tmp_path / "work") and only(tmp_path) == ["out"]
    assert not finished(tmp_path / "out", tmp_path / "work")
