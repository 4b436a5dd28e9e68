"""Many visitors at once: maps, rankings, optimizations, other models, uploads, nonsense, and pages that are closed.

With VITVIZ_STRESS=1 50 visitors, else six. What each does follows from a seed, which is printed.
"""

import io
import json
import os
import random
import re
import resource
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import httpx2 as httpx
import pytest

from tests.conftest import draw_noise
from vitviz_hf.models.view import load_snapshot
from vitviz_hf.ui.app import App
from vitviz_hf.ui.lane import Lane
from vitviz_hf.ui.shelf import kept_bytes, weight_bytes

pytestmark = pytest.mark.slow
FULL = os.environ.get("VITVIZ_STRESS") in ("1", "full")
VISITORS, ACTS = (50, 8) if FULL else (6, 3)
SEED = int(os.environ.get("VITVIZ_STRESS_SEED", "0"))
FAMILIES = ("vit", "deit", "dinov2", "beit", "swin", "clip", "siglip", "dinov2-registers")
LONG = {"preset": "paper", "steps": 1000}


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    name: str
    seconds: float
    texts: tuple[str, ...]
    """All data that was streamed, as JSON."""
    refused: str
    """The sentence, if it was refused."""


class Visitor:
    """One of them."""

    def __init__(self, address, seed):
        self.http = httpx.Client(base_url=address, timeout=600)
        self.draw, self.answers = random.Random(seed), []

    def visit(self):
        acts = [self.map, self.rank, self.optimize, self.switch, self.upload, self.leave, self.nonsense]
        for act in self.draw.choices(acts, [4, 2, 2, 2, 1, 1, 2], k=ACTS):
            act()
        return self.answers

    def picture(self):
        data = io.BytesIO()
        draw_noise(self.draw.randrange(50)).save(data, "PNG")
        sent = self.http.post("gradio_api/upload", files={"files": ("a.png", data.getvalue(), "image/png")})
        return {"path": sent.raise_for_status().json()[0], "meta": {"_type": "gradio.FileData"}}

    def model(self):
        return f"tiny/{self.draw.choice(FAMILIES)}"

    def map(self):
        self.ask(
            "activations", model_id=self.model(), image=self.picture(), feature=f"1.mlp_act:{self.draw.randrange(9)}"
        )

    def rank(self):
        self.ask("rank_features", model_id=self.model(), image=self.picture(), kind="mlp_act", layer=1, n=3)

    def optimize(self):
        self.ask("visualize", model_id=self.model(), feature="1.mlp_act:5", preset="fast", steps=12)

    def switch(self):
        self.ask("model_facts", model_id=self.model())

    def upload(self):
        for _ in range(3):
            self.picture()

    def leave(self):
        """Close the page in the middle of a long run."""
        with (
            suppress(StopIteration),
            self.events("visualize", model_id=self.model(), feature="0.mlp_act:1", **LONG) as lines,
        ):
            for _ in range(self.draw.randrange(1, 9)):
                next(lines)

    def nonsense(self):
        name, wrong = self.draw.choice(
            [
                ("visualize", {"seed": 1.5}),
                ("visualize", {"steps": 10**6}),
                ("visualize", {"feature": "1.mlp_act:99999"}),
                ("visualize", {"model_id": "tiny/none"}),
                ("model_facts", {"model_id": "../../etc"}),
                ("browse", {"site": "99.mlp_act"}),
                ("browse", {"site": "1.mlp_act", "n": 10**9}),
            ]
        )
        asked = {"model_id": self.model(), **({"feature": "1.mlp_act:1"} if name == "visualize" else {}), **wrong}
        assert self.ask(name, **asked).refused, (name, wrong)

    def ask(self, name, **arguments):
        start, texts, refused, event = time.monotonic(), [], "", ""
        with self.events(name, **arguments) as lines:
            for line in lines:
                if line.startswith("event:"):
                    event = line.removeprefix("event:").strip()
                elif line.startswith("data:") and event == "error":
                    refused = json.loads(line.removeprefix("data:"))["error"]
                elif line.startswith("data:") and event != "heartbeat":
                    texts.append(line.removeprefix("data:"))
        assert event in ("complete", "error"), (name, event)
        self.answers.append(Answer(name, time.monotonic() - start, tuple(texts), refused))
        return self.answers[-1]

    def events(self, name, **arguments):
        started = self.http.post(f"gradio_api/call/v2/{name}", json=arguments).raise_for_status().json()
        return _Lines(self.http, f"gradio_api/call/{name}/{started['event_id']}")


class _Lines:
    def __init__(self, http, path):
        self._stream = http.stream("GET", path)

    def __enter__(self):
        return self._stream.__enter__().iter_lines()

    def __exit__(self, *error):
        return self._stream.__exit__(*error)


class Watched(Lane):
    """Keeps how many turns were before one at most when it was asked for."""

    def __init__(self):
        super().__init__()
        self.longest = 0

    def turn(self):
        return _Turn(self, super().turn())


class _Turn:
    def __init__(self, lane, turn):
        self.lane, self.inner = lane, turn

    def __enter__(self):
        with self.lane._changed:
            before = len(self.lane._turns) + self.lane._busy
            self.lane.longest = max(self.lane.longest, before)
        return self.inner.__enter__()

    def __exit__(self, *error):
        return self.inner.__exit__(*error)


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def count_hooks(view):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in view.module.modules())


def left_behind():
    return sorted(str(p) for p in Path(tempfile.gettempdir()).glob("vitviz-*"))


@pytest.fixture
def served(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("VITVIZ_MAX_GB", "0.0006")  # so that the models that visitors name do not fit in at once
    monkeypatch.setenv("VITVIZ_KEEP_GB", "0.0006")
    monkeypatch.setattr("vitviz_hf.ui.page.Lane", Watched)
    app = App("tiny/vit", lambda _: lambda job: job, True)
    _, address, _ = app.demo.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield app.page, address
    app.demo.close()


def test_every_visitor_is_answered_or_refused_in_a_sentence_and_nothing_is_left(served):
    page, address = served
    print(f"\nseed {SEED}, {VISITORS} visitors with {ACTS} acts each")
    temporary, memory = left_behind(), resident()
    Visitor(address, SEED).switch()
    threads = threading.active_count()

    start = time.monotonic()
    with ThreadPoolExecutor(VISITORS) as pool:
        visits = [pool.submit(Visitor(address, SEED + i).visit) for i in range(VISITORS)]
        answers = [answer for visit in visits for answer in visit.result()]
    took = time.monotonic() - start

    wait_until(lambda: not (page.lane._runs or page.lane._turns or page.lane._busy))  # those who left
    report(answers, took, memory)
    for answer in answers:
        assert not re.search("Traceback|went wrong|/vitviz_hf/", answer.refused), answer
        assert "\n" not in answer.refused and len(answer.refused) < 400, answer
    views = list(page.shelf._views.values())
    assert views and sum(map(weight_bytes, views)) <= kept_bytes()
    assert len(views) < len(FAMILIES)
    for view in views:
        assert count_hooks(view) == count_hooks(load_snapshot(view.snapshot, "cpu"))
    assert page.lane.longest <= VISITORS  # each has one request: nobody waits for more turns than there are others
    assert left_behind() == temporary
    assert threading.active_count() <= threads + 45  # gradio's own
    assert not Visitor(address, SEED).ask("model_facts", model_id="tiny/vit").refused


def test_a_run_that_waits_says_how_many_are_before_it_and_how_long(served):
    visitors = [Visitor(served[1], i) for i in range(3)]
    visitors[0].optimize()

    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(v.ask, "visualize", model_id="tiny/vit", feature="1.mlp_act:5", preset="paper", steps=60)
            for v in visitors
        ]
        told = " ".join(text for run in runs for text in run.result().texts)

    assert re.search(r"Waiting: (one run|2 runs) before yours, about \d+ s\.", told)


def test_a_download_that_takes_long_keeps_nobody_from_a_map(served, hub, tiny_folder):
    hub.publish("stress/slow", tiny_folder("deit"))
    hub.held["stress/slow"] = threading.Event()
    slow, quick = Visitor(served[1], 0), Visitor(served[1], 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(slow.ask, "model_facts", model_id="stress/slow")
        wait_until(lambda: any("stress/slow/resolve" in path for _, path, _ in hub.log))

        quick.map()

        assert not quick.answers[0].refused and not waiting.done()
        hub.held.pop("stress/slow").set()
        assert not waiting.result().refused


def report(answers, took, memory):
    print(f"{len(answers)} answers in {took:.0f} s, {sum(bool(a.refused) for a in answers)} refused")
    for name in sorted({a.name for a in answers}):
        seconds = sorted(a.seconds for a in answers if a.name == name and not a.refused)
        if len(seconds) > 1:
            worst = quantiles(seconds, n=20)[-1]
            print(f"{name:14} {len(seconds):4}  median {median(seconds):6.2f} s, 95 % {worst:6.2f}, {seconds[-1]:6.2f}")
    for sentence in sorted({a.refused for a in answers if a.refused}):
        print("  ", sentence)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"resident {memory:.0f} MB before, {resident():.0f} after, {peak:.0f} at most")
