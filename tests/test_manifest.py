"""Output that is complete or absent."""

import pytest

from vitviz_hf.errors import OutputExistsError
from vitviz_hf.manifest import replace_file, write_dir, write_file


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
