"""Speed of a search against the bare forward pass of the same model, batch and images, and against the papers' way.

Ratios are taken in one run, since machines are noisy. The papers' code moved every activation to the CPU as Python
lists and sorted them after every batch; here that is done for one layer only, and only its own time is counted. At the
start of a search every image enters every ranking, later few do, so its first and last third are told apart; a bare
pass follows each batch.

Run: python benchmarks/search.py [--model builtin] [--images 768] [--batch 16] [--workers 0] [--precision float32]
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitviz_hf import activations, load_model
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.search import search
from vitviz_hf.models.view import at_precision, run
from vitviz_hf.sites import Site
from vitviz_hf.stream import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", default="auto", help="of both: float32, bfloat16 (default: auto)")
    args = parser.parse_args()
    if args.images < 9 * args.batch:
        parser.error(f"--images must be at least 9 batches, here {9 * args.batch}")
    view = at_precision(load_model(args.model), args.precision)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.images):
            jpeg(i, Path(folder) / f"{i:05}.jpg")
        source = open_source(folder)
        config = SearchConfig(batch=args.batch, workers=args.workers, precision=view.precision)
        pixels = torch.rand(args.batch, 3, *view.input_size, device=view.device)
        bare(view, pixels)
        begun, took, forward = time.perf_counter(), [], []

        def between(_) -> None:
            nonlocal begun
            sync(view)
            took.append(time.perf_counter() - begun)
            forward.append(bare(view, pixels))
            begun = time.perf_counter()

        with tempfile.TemporaryDirectory() as work:
            search(view, source, config, Path(work) / "s", progress=between)
    lists, sites, third = papers_way(view, pixels), len(view.layers), len(took) // 3
    where = f"on {view.device} in {view.precision}; batch {args.batch}, {args.workers} workers"
    print(f"{args.model}, {sites} layers, {where}")
    print(f"bare forward pass {args.batch / statistics.median(forward):.2f} images/s; search, in parts of it:")
    # Starting the workers is no part of the rate.
    for name, part in (("first", slice(1, third)), ("last", slice(-third, None))):
        pairs = list(zip(forward[part], took[part], strict=True))
        low, middle, high = statistics.quantiles(bare / own for bare, own in pairs)
        beyond = statistics.median(own - bare for bare, own in pairs) / args.batch / sites * 1000
        print(f"  {name} third {middle:.2f} ({low:.2f} to {high:.2f}), {beyond:.1f} ms more per image and layer")
    print(f"lists sorted each batch: {lists / args.batch * 1000:.0f} ms more per image and layer")


def jpeg(i: int, path: Path) -> None:
    noise = np.random.default_rng(i).integers(0, 255, (20, 25, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((500, 400), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue())


def bare(view, pixels) -> float:
    sync(view)
    start = time.perf_counter()
    with torch.no_grad():
        run(view, pixels)
    sync(view)
    return time.perf_counter() - start


def papers_way(view, pixels) -> float:
    site = Site(len(view.layers) // 2, "mlp_act")
    acts = activations(view, pixels, [site])[site]
    best: list[list[tuple[float, int]]] = [[] for _ in range(acts.tap.size)]
    start = time.perf_counter()
    values = acts.patches.cpu().tolist()
    for image, tokens in enumerate(values):
        for feature, column in enumerate(zip(*tokens, strict=True)):
            best[feature].append((sum(column) / len(column), image))
    for ranked in best:
        ranked.sort(reverse=True)
        del ranked[20:]
    return time.perf_counter() - start


def sync(view) -> None:
    if view.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
