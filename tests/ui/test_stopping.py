"""A client that cancels a run or goes away: the computing stops, and the next one starts soon."""

import json
import time
from threading import Event, Timer
from urllib.request import Request, urlopen

import pytest
from gradio_client import Client

from vitviz_hf.ui.app import App
from vitviz_hf.ui.lane import Stopped
from vitviz_hf.ui.optimize_tab import OptimizeTab, to_wanted

pytestmark = pytest.mark.slow
JSON = {"Content-Type": "application/json"}
LONG = {"model_id": "tiny/vit", "feature": "1.mlp_act:5", "preset": "paper", "steps": 1000}


@pytest.fixture(scope="module")
def app(hub):
    return App("tiny/vit", lambda _: lambda job: job, True)


@pytest.fixture(scope="module")
def served(app):
    _, address, _ = app.demo.launch(mcp_server=True, prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield app.page.tab(OptimizeTab).page.lane, address
    app.demo.close()


def wait_until(true, seconds):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def test_a_run_that_a_client_cancels_leaves_the_lane(served):
    lane, address = served
    client = Client(address, verbose=False)
    job = client.submit(**LONG, api_name="/visualize")
    wait_until(lambda: len(job.outputs()) > 1, 20)
    assert lane._runs

    job.cancel()

    wait_until(lambda: not lane._runs, 3)
    assert "after 2 steps" in client.predict(**{**LONG, "preset": "fast", "steps": 2}, api_name="/visualize")[1]


def test_a_run_is_cancelled_while_its_model_is_downloaded(hub, tiny_folder, app):
    hub.publish("stopping/slow", tiny_folder("deit"))
    held, stop = hub.held.setdefault("stopping/slow", Event()), Event()
    Timer(0.5, stop.set).start()

    with pytest.raises(Stopped):
        next(app.page.tab(OptimizeTab).frames("stopping/slow", to_wanted("1.mlp_act:5", "fast", 2, 0), stop))

    assert not held.is_set()
    hub.held.pop("stopping/slow").set()


def test_a_run_whose_client_is_gone_leaves_the_lane(served):
    lane, address = served
    started = Request(f"{address}gradio_api/call/v2/visualize", json.dumps(LONG).encode(), JSON)
    event = json.load(urlopen(started))["event_id"]
    answers = urlopen(f"{address}gradio_api/call/visualize/{event}", timeout=30)
    answers.readline()
    wait_until(lambda: lane._runs, 20)

    answers.close()

    wait_until(lambda: not lane._runs, 5)
