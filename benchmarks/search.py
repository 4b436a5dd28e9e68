"""Speed of a search against the bare forward pass of the same model, batch and images, and against the papers' way.

Ratios are taken in one run, since machines are noisy. The papers' code moved every activation to the CPU as Python
lists and sorted them after every batch; here that is done for one layer only, and only its own time is counted.

Run: python benchmarks/search.py [--model builtin] [--images 128] [--batch 16] [--workers 0]
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitviz_hf import activations, load_model
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.search import search
from vitviz_hf.models.view import run
from vitviz_hf.sites import Site
from vitviz_hf.stream import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    view = load_model(args.model)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.images):
            jpeg(i, Path(folder) / f"{i:05}.jpg")
        source = open_source(folder)
        config = SearchConfig(batch=args.batch, workers=args.workers)
        pixels = torch.rand(args.batch, 3, *view.input_size, device=view.device)
        bare(view, pixels)
        forward = bare(view, pixels) * args.images / args.batch
        with tempfile.TemporaryDirectory() as work:
            times = [time.perf_counter()]
            search(view, source, config, Path(work) / "s", progress=lambda _: times.append(time.perf_counter()))
        # From the first batch on: starting the workers is no part of the rate.
        took = (times[-1] - times[1]) * args.images / (args.images - args.batch)
        sync(view)
    lists = papers_way(view, pixels) * args.images / args.batch
    sites = len(view.layers)
    print(f"{args.model} on {view.device}, {args.images} images, batch {args.batch}, {args.workers} workers")
    print(f"bare forward pass   {args.images / forward:8.2f} images/s")
    print(f"search, {sites} layers   {args.images / took:8.2f} images/s = {forward / took:.2f} of it")
    ours, theirs = (took - forward) / args.images / sites * 1000, lists / args.images * 1000
    print(
        f"beyond the forward pass, per image and layer: search {ours:.1f} ms, lists sorted each batch {theirs:.0f} ms"
    )


def jpeg(i: int, path: Path) -> None:
    noise = np.random.default_rng(i).integers(0, 255, (20, 25, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((500, 400), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue())


def bare(view, pixels) -> float:
    sync(view)
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(3):
            run(view, pixels)
    sync(view)
    return (time.perf_counter() - start) / 3


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
