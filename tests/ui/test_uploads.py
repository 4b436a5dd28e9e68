"""A visitor's uploads in a minute are bounded; others' are not touched."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from vitviz_hf.ui import uploads
from vitviz_hf.ui.uploads import MOST_UPLOADS, UploadLimit


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(uploads.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def post():
    """Status and text of a request of a visitor."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    limited = UploadLimit(app)

    def ask(visitor="1.2.3.4", size=1000, path="/gradio_api/upload", method="POST", proxy=""):
        sent = []

        async def send(message):
            sent.append(message)

        told = (b"transfer-encoding", b"chunked") if size is None else (b"content-length", str(size).encode())
        headers = [] if size == 0 else [told]
        headers += [(b"x-forwarded-for", visitor.encode())] if proxy else []
        scope = {"type": "http", "method": method, "path": path, "client": (proxy or visitor, 1), "headers": headers}
        with ThreadPoolExecutor(1) as thread:  # the browser's tests leave a running loop in this one
            thread.submit(asyncio.run, limited(scope, None, send)).result()
        return sent[0]["status"], json.loads(sent[1]["body"]).get("detail", "")

    return ask


def test_a_large_request_counts_as_an_upload_wherever_it_goes(clock, post):
    small = {post(path="/gradio_api/call/activations")[0] for _ in range(2 * MOST_UPLOADS)}
    large = [post(path="/gradio_api/call/activations", size=size)[0] for size in [2_000_000, None] * MOST_UPLOADS]

    assert {post(path="/gradio_api/queue/join", size=0)[0] for _ in range(2 * MOST_UPLOADS)} == {200}
    assert small == {200} and large[:18] == [200] * 18 and large[-1] == 429


def test_a_minute_has_so_many_uploads_and_the_next_one_begins_anew(clock, post):
    first = {post()[0] for _ in range(MOST_UPLOADS)}
    refused = post()
    others = post("5.6.7.8")[0], post(path="/gradio_api/queue/join")[0], post(method="GET")[0]
    clock[0] += 61

    assert (first, others, post()[0]) == ({200}, (200, 200, 200), 200)
    assert refused == (429, "too many uploads: at most 60 in a minute, 2 GB in all; wait a minute and try again.")


@pytest.mark.parametrize(("system", "status"), [("spaces", 200), ("", 429)])
def test_visitors_of_a_space_are_told_apart_behind_its_proxy(system, status, clock, post, monkeypatch):
    monkeypatch.setenv("SYSTEM", system)
    for _ in range(MOST_UPLOADS):
        assert post("1.1.1.1, 10.0.0.2", proxy="10.0.0.1")[0] == 200

    assert post("2.2.2.2", proxy="10.0.0.1")[0] == status
    assert post("1.1.1.1", proxy="10.0.0.1")[0] == 429


def test_a_minute_has_so_many_bytes_and_what_is_refused_does_not_count(clock, post):
    assert post(size=1_500_000_000)[0] == 200
    assert [post(size=600_000_000)[0] for _ in range(3)] == [429, 429, 429]
    assert post(size=400_000_000)[0] == 200


def test_an_upload_that_does_not_tell_its_size_counts_as_a_lot(clock, post):
    assert [post(size=None)[0] for _ in range(11)] == [200] * 10 + [429]
