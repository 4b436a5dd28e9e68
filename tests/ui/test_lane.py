"""Turns on the device: short jobs between the frames of long ones, long ones one after the other."""

import threading
import time
from itertools import pairwise

import pytest

from tests.ui.signing_in import visitor
from vitviz_hf.errors import BusyError
from vitviz_hf.ui.lane import Lane, Stopped, Waiting, unless_stopped
from vitviz_hf.ui.visitor import visitor_token


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


def wait_until(true):
    while not true():
        time.sleep(0.001)


def test_turns_do_not_overlap_and_come_in_the_order_of_asking():
    lane, spans, order = Lane(), [], []

    def job(name):
        with lane.turn():
            order.append(name)
            start = time.monotonic()
            time.sleep(0.02)
            spans.append((start, time.monotonic()))

    threads = []
    with lane.turn():
        for name in range(5):
            threads.append(in_thread(job, name))
            wait_until(lambda: len(lane._turns) == len(threads))
    for thread in threads:
        thread.join()

    assert order == [0, 1, 2, 3, 4]
    assert all(a[1] <= b[0] for a, b in pairwise(sorted(spans)))


def test_a_short_job_waits_for_one_frame_of_a_long_one():
    lane, happened = Lane(), []

    def frames():
        for i in range(6):
            happened.append(i)
            if i == 1:
                threads.append(in_thread(short))
                wait_until(lambda: lane._turns)
            yield i

    def short():
        with lane.turn():
            happened.append("short")

    threads = []
    assert list(lane.run(frames(), threading.Event())) == [0, 1, 2, 3, 4, 5]
    threads[0].join()
    assert happened == [0, 1, "short", 2, 3, 4, 5]


def test_long_jobs_go_one_after_the_other_and_say_how_many_are_before():
    lane, order, heard = Lane(), [], []

    def frames(name):
        for _ in range(3):
            order.append(name)
            time.sleep(0.05)
            yield name

    def second():
        heard.extend(lane.run(frames("b"), threading.Event()))

    first = lane.run(frames("a"), threading.Event())
    next(first)
    thread = in_thread(second)
    wait_until(lambda: heard)
    assert list(first) == ["a", "a"]
    thread.join()

    assert order == ["a"] * 3 + ["b"] * 3
    assert heard[0] == Waiting(1, 0.0) and str(heard[0]) == "Waiting: one run before yours."
    assert heard[-3:] == ["b"] * 3
    assert str(Waiting(2, 31.4)) == "Waiting: 2 runs before yours, about 31 s."


def test_the_wait_is_estimated_by_the_time_of_the_last_runs():
    lane = Lane()

    def frames():
        time.sleep(0.2)
        yield 0

    start = time.monotonic()
    assert list(lane.run(frames(), threading.Event())) == [0]
    took = time.monotonic() - start
    running = lane.run(frames(), threading.Event())
    next(running)
    waits = lane.run(frames(), threading.Event())

    told = next(waits)
    waits.close()

    assert told.before == 1 and 0.2 <= told.seconds <= took


def test_a_stopped_run_that_waits_never_starts_and_one_that_runs_ends_at_its_frame():
    lane, made, stop = Lane(), [], threading.Event()

    def frames(name):
        for i in range(5):
            made.append((name, i))
            yield i

    first = lane.run(frames("first"), stop)
    next(first)
    waiting_stop = threading.Event()
    waits = lane.run(frames("waiting"), waiting_stop)
    assert isinstance(next(waits), Waiting)
    waiting_stop.set()
    with pytest.raises(Stopped):
        next(waits)
    stop.set()
    with pytest.raises(Stopped):
        next(first)

    assert made == [("first", 0)]
    assert list(lane.run(frames("next"), threading.Event())) == [0, 1, 2, 3, 4]


def test_a_job_that_fails_or_is_abandoned_leaves_the_device():
    lane = Lane()

    def failing():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(lane.run(failing(), threading.Event()))
    closed = []

    def frames():
        try:
            yield from (1, 2, 3)
        finally:
            closed.append(True)

    abandoned = lane.run(frames(), threading.Event())
    next(abandoned)
    abandoned.close()

    with lane.turn():
        pass
    assert closed == [True]
    assert list(lane.run(frames(), threading.Event())) == [1, 2, 3]


def test_jobs_inside_a_turn_are_part_of_it():
    lane, happened = Lane(), []

    def other():
        with lane.turn():
            happened.append("other")

    with lane.turn():
        with lane.turn():
            happened.append("first")
        thread = in_thread(other)
        time.sleep(0.05)
        with lane.turn():
            happened.append("second")
    thread.join()

    assert happened == ["first", "second", "other"]


def test_a_frame_is_made_while_nobody_else_has_the_device():
    lane, spans, threads = Lane(), [], []

    def span(name, seconds):
        start = time.monotonic()
        time.sleep(seconds)
        spans.append((start, time.monotonic(), name))

    def short():
        with lane.turn():
            span("short", 0.02)

    def frames():
        for i in range(3):
            threads.append(in_thread(short))
            span("frame", 0.05)
            yield i

    assert list(lane.run(frames(), threading.Event())) == [0, 1, 2]
    for thread in threads:
        thread.join()

    assert sorted(name for *_, name in spans) == ["frame"] * 3 + ["short"] * 3
    assert all(a[1] <= b[0] for a, b in pairwise(sorted(spans)))


def test_who_stops_leaves_a_download_which_goes_on():
    begun, go_on, stop, ended = (threading.Event() for _ in range(4))

    def download():
        begun.set()
        go_on.wait()
        ended.set()

    def leave():
        begun.wait()
        stop.set()

    threading.Thread(target=leave).start()
    with pytest.raises(Stopped):
        unless_stopped(stop, download)

    assert not ended.is_set()
    go_on.set()
    assert ended.wait(10)


def test_a_download_that_ends_gives_what_it_found_or_its_error_to_the_same_visitor():
    with visitor("hf_mine"):
        assert unless_stopped(threading.Event(), visitor_token) == "hf_mine"
    with pytest.raises(ZeroDivisionError):
        unless_stopped(threading.Event(), lambda: 1 / 0)


def test_what_is_no_exception_ends_the_waiting_too():
    class PanicException(BaseException):
        pass

    def download():
        raise PanicException("index out of bounds")

    late = threading.Event()
    timer = threading.Timer(5, late.set)
    timer.start()
    with pytest.raises(PanicException, match="index out of bounds"):
        unless_stopped(late, download)
    timer.cancel()


def test_no_more_runs_wait_than_the_server_has_threads_for(monkeypatch):
    monkeypatch.setattr("vitviz_hf.ui.lane.MOST_RUNS", 2)
    lane, stop = Lane(), threading.Event()
    running = lane.run(iter([1, 2]), stop)
    waiting = [lane.run(iter([1]), stop) for _ in range(2)]

    assert next(running) == 1 and all(isinstance(next(run), Waiting) for run in waiting)
    with pytest.raises(BusyError, match="2 runs are waiting already; try again later"):
        next(lane.run(iter([1]), stop))
    waiting[0].close()
    assert isinstance(next(lane.run(iter([1]), stop)), Waiting)
