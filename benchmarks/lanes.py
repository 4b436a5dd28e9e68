"""What a visitor waits for while another one's optimization runs: the page, and the answer to a patch.

Starts the app and opens it in a browser, as a visitor does: seconds until the page has its first ranking and map, and
from the click on a patch until its ranking is there; and the seconds of a map that several visitors ask for at once
through the API. First alone, then while an optimization of another visitor runs.

Run: python benchmarks/lanes.py [--model builtin] [--repeats 5] [--visitors 4]
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from urllib.request import urlopen

from gradio_client import Client, handle_file
from playwright.sync_api import Browser, sync_playwright

from vitviz_hf.stream import builtin_paths

FEATURE = "5.mlp_act:1059"
SHOWS_A_PATCH = r"/patch \d+,\d+/.test(document.querySelector('#rank-status').innerText)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--visitors", type=int, default=4)
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    environment = {**os.environ, "GRADIO_SERVER_PORT": url.split(":")[-1].strip("/"), "VITVIZ_MODEL": args.model}
    app = Path(__file__).parents[1] / "app.py"
    server = subprocess.Popen([sys.executable, str(app)], env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(url)
        other = Client(url, verbose=False)
        with sync_playwright() as playwright:
            path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            measure(browser, url, 1)  # loads the model and scores the built-in photographs
            alone = measure(browser, url, args.repeats) | maps(url, args)
            running = other.submit(args.model, FEATURE, "fourier", 1000, 0, api_name="/visualize")
            while not running.outputs() or "Step" not in str(running.outputs()[-1]):
                time.sleep(0.2)
            beside = measure(browser, url, args.repeats) | maps(url, args)
            assert not running.done(), "the optimization ended before the measurement"
            browser.close()
    finally:
        server.kill()
    print(f"median, 95th percentile (longest) of n, seconds, {os.cpu_count()} cores")
    print(f"{'':34}{'n':>5}{'alone':>20}{'beside a run':>20}")
    for name in alone:
        print(f"{name:34}{len(alone[name]):5}{told(alone[name]):>20}{told(beside[name]):>20}")


def wait_for(url: str) -> None:
    for _ in range(240):
        try:
            urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the app did not start")


def measure(browser: Browser, url: str, repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {"the page, its ranking and map": [], "a patch, its ranking and map": []}
    opening, clicking = seconds.values()
    for i in range(repeats):
        context = browser.new_context(viewport={"width": 1300, "height": 1000})
        page = context.new_page()
        page.set_default_timeout(120_000)
        start = time.monotonic()
        page.goto(url)
        page.wait_for_selector(".card img")
        page.wait_for_selector("#map img")
        opening.append(time.monotonic() - start)
        page.wait_for_timeout(1000)
        crop = page.locator("#crop img").bounding_box()
        start = time.monotonic()
        page.mouse.click(crop["x"] + crop["width"] * (0.3 + 0.05 * (i % 8)), crop["y"] + crop["height"] / 2)
        page.wait_for_function(SHOWS_A_PATCH)
        clicking.append(time.monotonic() - start)
        context.close()
    return seconds


def maps(url: str, args: argparse.Namespace) -> dict[str, list[float]]:
    photo = handle_file(str(builtin_paths()["chelsea"]))

    def visit(client: Client) -> list[float]:
        seconds = []
        for i in range(args.repeats):
            start = time.monotonic()
            client.predict(args.model, photo, f"{i % 12}.mlp_act:{i}", api_name="/activations")
            seconds.append(time.monotonic() - start)
        return seconds

    clients = [Client(url, verbose=False) for _ in range(args.visitors)]
    with ThreadPoolExecutor(args.visitors) as pool:
        return {f"a map, {args.visitors} visitors at once": list(chain.from_iterable(pool.map(visit, clients)))}


def told(values: list[float]) -> str:
    highest = statistics.quantiles(values, n=20, method="inclusive")[-1]
    return f"{statistics.median(values):.1f}, {highest:.1f} ({max(values):.1f})"


if __name__ == "__main__":
    main()
