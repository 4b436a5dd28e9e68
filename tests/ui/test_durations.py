"""What a GPU is asked for: a guess once, then what the job itself took."""

import json
import time
from types import SimpleNamespace

import pytest

from vitviz_hf.errors import ConfigError
from vitviz_hf.ui import durations as clocks
from vitviz_hf.ui.durations import Durations
from vitviz_hf.ui.lane import Lane
from vitviz_hf.ui.page import Page

SMALL, LARGE = SimpleNamespace(model_id="small"), SimpleNamespace(model_id="large")


class Clock:
    """Time that passes only when told."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(clocks.time, "monotonic", lambda: self.now)


@pytest.fixture
def asked():
    return []


@pytest.fixture
def page(asked):
    def gpu(duration):
        def decorate(job):
            def run(*args):
                asked.append(duration(*args))
                return job(*args)

            return run

        return decorate

    page = object.__new__(Page)
    page.gpu, page.lane, page.durations = gpu, Lane(), Durations()
    return page


def test_a_job_asks_by_the_guess_once_and_then_by_what_it_took_on_that_model(page, asked, monkeypatch):
    clock = Clock(monkeypatch)

    def job(snapshot):
        clock.now += 4.0
        return snapshot.model_id

    run = page.on_device(60, job)

    assert [run(SMALL), run(SMALL), run(LARGE)] == ["small", "small", "large"]
    assert asked == [60, 2 + 1.5 * 4, 60]


def test_frames_are_asked_for_by_the_first_and_by_the_work_after_it(page, asked, monkeypatch):
    clock = Clock(monkeypatch)

    def job(snapshot, n):
        clock.now += 3.0  # loading
        yield 0
        for i in range(n):
            clock.now += 0.5
            yield i + 1

    run = page.in_frames(lambda *_: 33, lambda _, n: n, job)
    for n in (10, 40, 10_000):
        for _ in run(SMALL, n):
            clock.now += 7.0  # another's turn

    assert asked == [33, 37, 120]  # 2 + 1.5 * (3 + 40 * 0.5), in whole seconds


def test_the_longest_run_counts_and_is_slowly_forgotten():
    known = Durations()

    known.took("map", 10.0)
    known.took("map", 1.0)

    assert known.ask("map", 60) == 16  # 2 + 1.5 * 9


def test_a_job_that_broke_asks_by_the_guess_again_and_a_wrong_address_changes_nothing(page, asked):
    errors = [None, ConfigError("no such patch"), None, RuntimeError("GPU task aborted"), None]

    def job(snapshot):
        if error := errors.pop(0):
            raise error

    run = page.on_device(60, job)
    for error in list(errors):
        if error:
            with pytest.raises(type(error)):
                run(SMALL)
        else:
            run(SMALL)

    assert [seconds < 60 for seconds in asked] == [False, True, True, True, False]


def test_what_was_measured_outlives_the_server_and_a_damaged_file_is_no_harm(tmp_path):
    path = tmp_path / "durations.json"
    Durations(path).took("map small", 4.0, 0.25)

    assert json.loads(path.read_text()) == {"map small": [4.0, 0.25]}
    assert Durations(path).ask("map small", 60, 8) == 11
    path.write_text('{"map small": 3}')
    assert Durations(path).ask("map small", 60) == 60


def test_time_is_taken_where_the_job_runs():
    seconds, result = clocks.timed(lambda: time.sleep(0.01) or 5)()

    assert result == 5 and seconds >= 0.01
