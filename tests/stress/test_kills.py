"""kill -9 at random moments: what is resumed ends as what was never interrupted, but for rounding."""

import random
import time

import pytest

from tests.stress.children import changes, run
from tests.stress.jobs import JOBS, contents, differing, start
from tests.stress.sizes import AGAIN, SEED, SHARE, count

KILLED = -9


@pytest.mark.parametrize("name", [n for n, job in JOBS.items() if job.resumes and (SHARE == 1 or n != "compare")])
def test_what_was_killed_goes_on_to_the_same_result(name, tiny_folder, labelled, atlas, tmp_path):
    job, random_ = JOBS[name], random.Random(f"{SEED} {name}")
    inputs = str(tiny_folder("vit")), str(labelled)
    straight = start(job, tmp_path / "straight", atlas)
    run(int, folder=tmp_path)  # the first one waits for all imports
    began = time.monotonic()
    n_changes = changes(job.run, *inputs, str(straight), False, folder=tmp_path)
    seconds, expected = time.monotonic() - began, contents(tmp_path / "straight")
    killed, told = 0, []
    while killed < count(52) / 4:
        folder = tmp_path / str(len(told))
        out, moments = start(job, folder, atlas), []
        for again in range(random_.randint(1, 3)):
            change, after = random_.randint(1, n_changes + 1), None
            if random_.random() < 0.4:
                change, after = 0, random_.uniform(0, seconds)
            moments.append(f"change {change}" if change else f"{after:.3f} s")
            ended = run(job.run, *inputs, str(out), again > 0, folder=tmp_path, seconds=after, change=change)
            assert ended.code in (0, KILLED), f"{moments}: {ended.output}\n{AGAIN}"
            killed += ended.code == KILLED
            if ended.code == 0:
                break
        else:
            ended = run(job.run, *inputs, str(out), True, folder=tmp_path)
        told.append(", ".join(moments))

        assert ended.code == 0, f"after {told[-1]}: {ended.output}\n{AGAIN}"
        assert differing(contents(folder), expected) == [], f"after {told[-1]}; {AGAIN}"
    print(f"{name}: {killed} times killed, {len(told)} results, {seconds:.1f} s each")
