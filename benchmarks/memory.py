"""Memory of the app over mixed use: `python benchmarks/memory.py [--model builtin] [--calls 60 | --minutes 120]`.

Starts app.py, calls its endpoints in turn through gradio_client from several threads, as visitors would; one call in
eleven is refused, and one is left in the middle. Prints what the server holds as it goes: resident memory, open files,
threads, and files in its folders of temporary files; after minutes, the slope of the second half too.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from vitviz_hf.stream import builtin_paths

ROOT = Path(__file__).parents[1]
VISITORS = 4


def start(temporary: str) -> tuple[subprocess.Popen[bytes], str]:
    """The app in a process of its own, with a folder for its temporary files, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT), "TMPDIR": temporary}
    server = subprocess.Popen([sys.executable, str(ROOT / "app.py")], env=environment)
    url = f"http://127.0.0.1:{port}/"
    for _ in range(1200):
        try:
            urlopen(url, timeout=1).close()
            return server, url
        except OSError:
            time.sleep(0.5)
    server.kill()
    raise SystemExit("app.py did not start")


def resident(pid: int) -> float:
    """Megabytes of a process that lie in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def held(pid: int, temporary: str) -> tuple[float, int, int, int]:
    """Megabytes in memory, open files, threads, and temporary files of a process."""
    files, threads = (len(list(Path(f"/proc/{pid}/{name}").iterdir())) for name in ("fd", "task"))
    return resident(pid), files, threads, sum(path.is_file() for path in Path(temporary).rglob("*"))


def call(url: str, model: str, i: int) -> None:
    """The i-th call: maps, rankings, views and short optimizations of changing layers and pictures."""
    with tempfile.TemporaryDirectory() as folder:
        client = Client(url, verbose=False, download_files=folder, httpx_kwargs={"timeout": 600})
        photos = list(builtin_paths().values())
        photo = handle_file(str(photos[i % len(photos)]))
        layer, index = i % 12, i % 1536
        match i % 11:
            case 0 | 1 | 5 | 8:
                client.predict(model, photo, "mlp_act", layer, "", "unusual", api_name="/rank_features")
            case 2 | 6:
                client.predict(model, photo, f"{layer}.mlp_act:{index}", "overlay", api_name="/map_feature")
            case 3 | 7:
                client.predict(model, f"{layer}.mlp_act:{index}", "fast", 4, i, api_name="/visualize")
            case 4:
                client.predict(model, photo, "3,4", -1, "linear", api_name="/show_view")
            case 9:
                with suppress(AppError):
                    client.predict(model, f"{layer}.mlp_act:99999", "fast", 4, i, api_name="/visualize")
            case 10:
                left = client.submit(model, f"{layer}.mlp_act:{index}", "fast", 900, i, api_name="/visualize")
                while not left.outputs():
                    if left.done():
                        left.result()  # raises why there is none
                    time.sleep(0.2)
                left.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--minutes", type=float, help="in place of a number of calls")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        server, url = start(temporary)
        try:
            rows = list(measured(server.pid, url, temporary, args))
        finally:
            server.terminate()
            server.wait(20)
    if args.minutes:
        minutes, megabytes = np.array([(at, facts[0]) for at, facts in rows[len(rows) // 2 :]]).T
        slope = np.polyfit(minutes, megabytes, 1)[0]
        print(f"second half: {slope:+.2f} MB a minute, {megabytes.min():.0f} to {megabytes.max():.0f} MB")


def measured(
    pid: int, url: str, temporary: str, args: argparse.Namespace
) -> Iterator[tuple[float, tuple[float, int, int, int]]]:
    """Minutes since the start and what is held then, after every round of calls; each is a line of the table too."""
    print(f"{'minute':>7}{'calls':>7}{'MB':>7}{'files':>7}{'threads':>9}{'temporary':>11}", flush=True)
    begun, done = time.monotonic(), 0
    with ThreadPoolExecutor(VISITORS) as pool:
        while True:
            at, facts = (time.monotonic() - begun) / 60, held(pid, temporary)
            print(f"{at:7.1f}{done:7}{facts[0]:7.0f}{facts[1]:7}{facts[2]:9}{facts[3]:11}", flush=True)
            yield at, facts
            if at >= args.minutes if args.minutes else done >= args.calls:
                return
            list(pool.map(lambda i: call(url, args.model, i), range(done, done + 2 * VISITORS)))
            done += 2 * VISITORS


if __name__ == "__main__":
    main()
