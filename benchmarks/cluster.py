"""Images per second of a search in one process, and on Ray clusters of one machine and of two, all made of this one.

Each machine of a cluster has one CPU, and so has the process beside it; so two machines show what a cluster costs only
where two cores are free. Whole command lines are timed, on folders of two sizes: what the larger takes longer is the
rate, and the rest is what starting takes. Needs `vitviz_hf[ray]`.

Run: python benchmarks/cluster.py [--model builtin] [--images 160 480]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parent))
from search import jpeg

START = "import sys; from vitviz_hf.cli.main import main; sys.exit(main())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--images", type=int, nargs=2, default=(160, 480), metavar=("FEW", "MANY"))
    args = parser.parse_args()
    few, many = args.images
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory() as name:
        folders = {n: Path(name) / str(n) for n in (few, many)}
        for n, folder in folders.items():
            folder.mkdir()
            for i in range(n):
                jpeg(i, folder / f"{i:05}.jpg")
        print(f"{args.model}, {many} images less {few}, one thread each; {os.cpu_count()} cores")
        alone = None
        for machines in (0, 1, 2):
            with cluster(machines):
                took = {n: search(args.model, folder, machines) for n, folder in folders.items()}
            rate = (many - few) / (took[many] - took[few])
            alone = alone or rate
            where = f"{machines} machines of a cluster" if machines else "one process"
            print(
                f"{where}: {rate:.2f} images/s, {rate / alone:.2f}; starts in {took[few] - few / rate:.0f} s",
                flush=True,
            )


@contextmanager
def cluster(machines: int) -> Iterator[None]:
    """So many, on this one; RAY_ADDRESS says where."""
    if not machines:
        yield
        return
    node = {"num_cpus": 1, "num_gpus": 0, "node_ip_address": "127.0.0.1", "object_store_memory": 200 * 2**20}
    local = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(machines - 1):
        local.add_node(**node)
    os.environ["RAY_ADDRESS"] = local.address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        local.shutdown()


def search(model: str, folder: Path, machines: int) -> float:
    """Seconds of the command."""
    with tempfile.TemporaryDirectory() as out:
        command = ["search", model, str(folder), "--batch", "16", "--precision", "float32", "--out", f"{out}/atlas"]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", START, *command, *(["--on", "ray"] if machines else [])],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
