"""The server's memory."""

import json
import subprocess
import sys

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from vitviz_hf.ui.app import launch
from vitviz_hf.ui.lane import MOST_RUNS
from vitviz_hf.ui.shelf import MOST_DOWNLOADS

GROWTH = """
import sys
import threading
import time
from pathlib import Path
import numpy as np
from vitviz_hf.ui.memory import return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024

if sys.argv[1] == "yes":
    assert return_freed_memory()
before, kept = resident(), []

def work():
    for size in (30, 20, 10):
        large = np.ones(size << 17)
        kept.append(np.ones(1000))
        del large

gate = threading.Barrier(8)

def visit():
    gate.wait()
    work()
    gate.wait()  # all threads are there at once

threads = [threading.Thread(target=visit) for _ in range(8)]
for t in threads:
    t.start()
for t in threads:
    t.join()
time.sleep(1.5)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_tensors_of_many_threads_go_back_to_the_system():
    def growth(bounded):
        out = subprocess.run([sys.executable, "-c", GROWTH, bounded], capture_output=True, text=True, check=True)
        return float(out.stdout)

    assert growth("no") > 2 * growth("yes")


FORK = """
import os
from pathlib import Path
from vitviz_hf.ui.memory import return_freed_memory

return_freed_memory()
if os.fork():
    os.wait()
else:
    print(len(list(Path("/proc/self/task").iterdir())), flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_forked_job_gives_its_memory_back_too():
    out = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)

    assert int(out.stdout) == 2


def test_what_is_kept_of_all_visitors_together_is_bounded(monkeypatch):
    launched = {}
    monkeypatch.setattr(gr.Blocks, "launch", lambda demo, **options: launched.update(options, demo=demo))

    launch(eager=False)

    page = json.dumps(SessionState(launched["demo"]).config_values, default=str)
    assert 100e3 < len(page) < 300e6 / launched["state_session_capacity"]
    assert launched["max_threads"] >= MOST_RUNS + MOST_DOWNLOADS + 40  # who waits leaves as many as gradio has for all
