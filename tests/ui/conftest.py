"""The app as app.py starts it, and a real browser, one of each for all tests."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.ui.browsing import visiting
from tests.ui.test_papers import save_strip
from vitviz_hf import load_model
from vitviz_hf.experiments.config import NarrowSitesConfig
from vitviz_hf.experiments.run import run_experiment

ROOT = Path(__file__).parents[2]
# The shell is the lighter one: it loads a page in three quarters of the processor time.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="session")
def url(hub, tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    results = tmp_path_factory.mktemp("results")
    vit = load_model("tiny/vit", device="cpu")
    for name, layers in (("early", (0,)), ("late", (2,))):
        config = NarrowSitesConfig(layers=layers, columns=1, steps=1, preset="fast")
        run_experiment("narrow-sites", [vit], None, config, results / f"work-{name}").save(results / name)
    save_strip(results / "story")
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "VITVIZ_MODEL": "tiny/vit",
        "VITVIZ_RESULTS": str(results),
    }
    log = (tmp_path_factory.mktemp("app") / "log").open("w+")
    # Elsewhere, as on a Space: nothing that the page needs lies in the working folder.
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py")], cwd=elsewhere, env=environment, stdout=log, stderr=log
    )
    for _ in range(480):
        try:
            urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
            break
        except OSError:
            time.sleep(0.5)
    else:
        server.kill()
        log.seek(0)
        pytest.fail(f"app.py did not start: {log.read()}")
    yield f"http://127.0.0.1:{port}/"
    server.terminate()
    server.wait(10)
    log.seek(0)
    # A path of the package is only in tracebacks and warnings. Uvicorn's own, of a page that left while a picture was
    # on its way, are not ours.
    assert "vitviz_hf/" not in log.read()
    log.close()


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.fail("install chromium, or run 'make fast', which leaves the browser out")
    with playwright.sync_playwright() as p:
        arguments = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-background-networking",
            "--disable-sync",
        ]
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page that must log no error and ask no other host for anything."""
    with visiting(browser) as page:
        yield page
