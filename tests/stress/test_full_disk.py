"""A disk that fills up at any writing step: a sentence, nothing lost, and the same result when there is room again."""

import random
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stress.children import run
from tests.stress.jobs import JOBS, contents, differing, start
from tests.stress.sizes import AGAIN, SEED, count

SIZE = 4 * 2**20
NO_ROOM = ("No space left on device", "disk is full", "File too large", "disk I/O error")


class Disk:
    """A small tmpfs; where none may be mounted, a folder whose files may not grow over a limit."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ballast = folder, folder / "ballast"
        folder.mkdir()
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
        try:
            self.mounted = subprocess.run(mounting, capture_output=True).returncode == 0
        except OSError:
            self.mounted = False

    def leave(self, free: int) -> int | None:
        """Fill it up to so many bytes; returns the limit that takes the place of that."""
        if not self.mounted:
            return max(free, 4096)  # what a child says needs some
        with self.ballast.open("wb") as file:
            file.write(bytes(max(shutil.disk_usage(self.folder).free - free, 0)))
        return None

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    yield made
    made.close()


def limited(limit: int | None, job: Callable[..., int], *args: object) -> int:
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return job(*args)


@pytest.mark.parametrize("name", JOBS)
def test_a_full_disk_is_told_and_loses_nothing(name, tiny_folder, labelled, atlas, disk, tmp_path):
    job, random_ = JOBS[name], random.Random(f"{SEED} {name}")
    inputs, told = (str(tiny_folder("vit")), str(labelled)), set()
    straight = start(job, tmp_path / "straight", atlas)
    assert run(job.run, *inputs, str(straight), False, folder=tmp_path).code == 0
    expected = contents(tmp_path / "straight")
    total = sum(map(len, expected.values()))
    for turn in range(count(75 // len(JOBS))):
        place = disk.folder / "place"
        out = start(job, place, atlas)
        (place / "notes.txt").write_bytes(b"kept")
        before, free = contents(place), random_.randrange(2 * total) if turn else 0

        ended = run(limited, disk.leave(free), job.run, *inputs, str(out), False, folder=tmp_path)

        lines = [line for line in ended.output.splitlines() if line.startswith("vitviz:")]
        after = contents(place)
        assert not [name for name in before if after.get(name) != before[name]], f"{free}; {AGAIN}"
        if ended.code == 0:
            assert differing(after, expected | before) == [], f"{free}; {AGAIN}"
        else:
            assert ended.code == 2 and len(lines) == 1 and "Traceback" not in ended.output, (
                f"{free}: {ended.output}\n{AGAIN}"
            )
            assert any(reason in lines[0] for reason in NO_ROOM), f"{free}: {lines[0]}\n{AGAIN}"
            told.add(lines[0].rpartition(" at '")[2].partition("'")[0].replace(str(place), ""))
            halves = [n for n in after if n in expected and not n.startswith("out.") and n not in before]
            assert differing({n: after[n] for n in halves}, {n: expected[n] for n in halves}) == [], f"{free}; {AGAIN}"
        disk.ballast.unlink(missing_ok=True)
        ended = run(job.run, *inputs, str(out), True, folder=tmp_path) if ended.code else ended
        assert ended.code == 0, f"{free}: {ended.output}\n{AGAIN}"
        assert differing(contents(place), expected | before) == [], f"{free}; {AGAIN}"
        shutil.rmtree(place)
    print(f"{name}: {'tmpfs' if disk.mounted else 'limit'}; full at {sorted(told)}")
