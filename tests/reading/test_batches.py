"""The one reader of batches: order, limit, positions, what is left out, and how far it runs ahead."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitviz_hf import open_image, to_pixels
from vitviz_hf.images import encode, pixels_to_bytes
from vitviz_hf.reading.batches import decoders, read_batches
from vitviz_hf.stream import Row


def rows_of(n, asked=None):
    """Rows named by their number; the position after one is the next number."""
    for i in range(n):
        if asked is not None:
            asked.append(i)
        yield Row(str(i), "", b""), lambda i=i: i + 1


def at_once(row):
    done = Future()
    done.set_result((int(row.name), "") if int(row.name) % 3 else (None, f"{row.name} is a third"))
    return done


def test_batches_are_the_rows_in_order_with_the_position_after_each():
    batches = list(read_batches(rows_of(11), at_once, 4))

    assert [[int(i.row.name) for i in b.items] for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert [b.position for b in batches] == [4, 8, 11]


def test_what_is_left_out_says_why_and_the_rest_is_usable():
    (batch,) = read_batches(rows_of(5), at_once, 9)

    assert [(row.name, why) for row, why in batch.left_out] == [("0", "0 is a third"), ("3", "3 is a third")]
    assert [(row.name, value) for row, value in batch.usable] == [("1", 1), ("2", 2), ("4", 4)]


@pytest.mark.parametrize(("limit", "sizes"), [(0, []), (3, [3]), (5, [4, 1]), (8, [4, 4]), (None, [4, 4, 2])])
def test_no_row_beyond_the_limit_is_asked_for(limit, sizes):
    asked = []

    batches = list(read_batches(rows_of(10, asked), at_once, 4, limit))

    assert [len(b.items) for b in batches] == sizes and len(asked) == sum(sizes)


def test_three_batches_are_on_their_way_while_one_is_used():
    asked = []
    batches = read_batches(rows_of(100, asked), at_once, 4)

    next(batches)

    assert len(asked) == 4 * 4


def test_results_keep_their_order_though_the_first_is_the_slowest():
    from threading import Event

    last = Event()

    def work(row):
        if row.name == "0":
            assert last.wait(20)
        if row.name == "3":
            last.set()
        return row.name, ""

    with ThreadPoolExecutor(2) as pool:
        (batch,) = read_batches(rows_of(4), lambda row: pool.submit(work, row), 4)

    assert [value for _, value in batch.usable] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("n_processes", [0, 1])
def test_threads_and_processes_decode_to_what_the_model_sees(n_processes, tiny_view):
    view = tiny_view("vit")
    data = encode(Image.effect_noise((50, 40), 90).convert("RGB"), "PNG")
    with decoders(view, n_processes) as submit:
        found, why = submit(Row("a", "", data)).result()
        broken = submit(Row("b", "", data[:60])).result()

    assert np.array_equal(found, pixels_to_bytes(to_pixels(view, open_image(data))[0])) and not why
    assert broken[0] is None and "image" in broken[1]


DECODING = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from threading import Thread
from vitviz_hf.reading.batches import _end_with_parent

def begin():
    Thread(target=_end_with_parent, daemon=True).start()

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), begin) as processes:
        print(processes.submit(os.getpid).result(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_decoding_processes_end_with_a_reader_that_is_killed(tmp_path):
    (tmp_path / "decoding.py").write_text(DECODING)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "decoding.py")]

    with (tmp_path / "pids").open("w") as file:  # not a pipe, which the processes would keep open
        run = subprocess.run(command, env=environment, stdout=file)

    assert run.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids
    deadline = time.monotonic() + 60
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)


def is_alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
