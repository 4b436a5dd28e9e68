"""What a visitor waits for while another one's optimization runs: the page, and the answer to a patch.

Starts the app, asks as a visitor does (the page with its first ranking and map; then a ranking of one patch and its
map), first alone, then while an optimization of another visitor runs.

Run: python benchmarks/lanes.py [--model builtin] [--repeats 5]
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

from gradio_client import Client, handle_file

from vitviz_hf.stream import builtin_paths

FEATURE = "5.mlp_act:1059"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    environment = {**os.environ, "GRADIO_SERVER_PORT": url.split(":")[-1].strip("/"), "VITVIZ_MODEL": args.model}
    app = Path(__file__).parents[1] / "app.py"
    server = subprocess.Popen([sys.executable, str(app)], env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(url)
        visitor, other = (Client(url, verbose=False) for _ in range(2))
        measure(url, visitor, args.model, 1)  # loads the model and scores the built-in photographs
        alone = measure(url, visitor, args.model, args.repeats)
        running = other.submit(args.model, FEATURE, "fourier", 1000, 0, api_name="/visualize")
        while not running.outputs() or "Step" not in str(running.outputs()[-1]):
            time.sleep(0.2)
        beside = measure(url, visitor, args.model, args.repeats)
        assert not running.done(), "the optimization ended before the measurement"
    finally:
        server.kill()
    print(f"median (longest) of {args.repeats}, seconds, {os.cpu_count()} cores")
    print(f"{'':34}{'alone':>16}{'beside a run':>18}")
    for name in alone:
        print(f"{name:34}{told(alone[name]):>16}{told(beside[name]):>18}")


def wait_for(url: str) -> None:
    for _ in range(240):
        try:
            urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the app did not start")


def measure(url: str, client: Client, model: str, repeats: int) -> dict[str, list[float]]:
    photo = handle_file(str(builtin_paths()["chelsea"]))
    seconds: dict[str, list[float]] = {"the page, its ranking and map": [], "a patch, its ranking and map": []}
    for i in range(repeats):
        for name, patch in zip(seconds, ("", f"{i % 8},{3 + i % 8}"), strict=True):
            start = time.monotonic()
            if not patch:
                urlopen(url, timeout=60).read()
            client.predict(model, photo, "mlp_act", 5, patch, "unusual", api_name="/rank_features")
            client.predict(model, photo, FEATURE, "overlay", api_name="/map_feature")
            seconds[name].append(time.monotonic() - start)
    return seconds


def told(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({max(values):.1f})"


if __name__ == "__main__":
    main()
