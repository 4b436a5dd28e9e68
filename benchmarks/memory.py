"""Memory of the app over a session of mixed calls: `python benchmarks/memory.py [MODEL] [CALLS]`.

Starts app.py, calls its endpoints in turn through gradio_client from several threads, as visitors would, and prints the
resident memory of the server as it goes.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

from gradio_client import Client, handle_file

from vitviz_hf.stream import builtin_paths

ROOT = Path(__file__).parents[1]
VISITORS = 4


def start() -> tuple[subprocess.Popen[bytes], str]:
    """The app in a process of its own, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([sys.executable, str(ROOT / "app.py")], env=environment)
    url = f"http://127.0.0.1:{port}/"
    for _ in range(240):
        try:
            urlopen(url, timeout=1).close()
            return server, url
        except OSError:
            time.sleep(0.5)
    raise SystemExit("app.py did not start")


def resident(pid: int) -> float:
    """Megabytes of a process that lie in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def call(url: str, model: str, i: int) -> None:
    """The i-th call: maps, rankings, views and short optimizations of changing layers and pictures."""
    with tempfile.TemporaryDirectory() as folder:
        client = Client(url, verbose=False, download_files=folder)
        photos = list(builtin_paths().values())
        photo = handle_file(str(photos[i % len(photos)]))
        layer = i % 12
        match i % 5:
            case 0 | 1:
                client.predict(model, photo, "mlp_act", layer, "", "unusual", api_name="/rank_features")
            case 2:
                client.predict(model, photo, f"{layer}.mlp_act:{i}", "overlay", api_name="/map_feature")
            case 3:
                client.predict(model, f"{layer}.mlp_act:{i}", "fast", 4, i, api_name="/visualize")
            case 4:
                client.predict(model, photo, "3,4", -1, "linear", api_name="/show_view")


def main(model: str = "builtin", n_calls: str = "60") -> None:
    """Print a table `calls | MB`."""
    server, url = start()
    try:
        print(f"{0:5} {resident(server.pid):8.0f} MB", flush=True)
        with ThreadPoolExecutor(VISITORS) as pool:
            for done in range(0, int(n_calls), 2 * VISITORS):
                list(pool.map(lambda i: call(url, model, i), range(done, min(done + 2 * VISITORS, int(n_calls)))))
                print(f"{done + 2 * VISITORS:5} {resident(server.pid):8.0f} MB", flush=True)
    finally:
        server.terminate()
        server.wait(20)


if __name__ == "__main__":
    main(*sys.argv[1:])
