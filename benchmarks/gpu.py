"""What a card does with this package, in one command: no Hub, no network, only torch, transformers and timm.

Models have random weights, whose speed is that of trained ones. Each part stands for itself: where one fails, its
error is in the result and the others go on. What does not fit in the time is left out and named.

    python benchmarks/gpu.py [--device cuda] [--out gpu.json] [--seconds 440]
    python benchmarks/gpu.py --device cpu --small     # whether everything runs, in a minute
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

START = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from vitviz_hf import (  # noqa: E402
    SearchConfig,
    VisualizeConfig,
    activations,
    load_model,
    open_image,
    open_source,
    to_pixels,
    top_features,
    visualize,
    visualize_steps,
)
from vitviz_hf.atlas.fold import SiteFold  # noqa: E402
from vitviz_hf.atlas.search import SearchState, _take_in, open_crops, search, site_list  # noqa: E402
from vitviz_hf.images import map_range, overlay  # noqa: E402
from vitviz_hf.models.device import best_device  # noqa: E402
from vitviz_hf.models.view import at_precision, find_tap, run  # noqa: E402
from vitviz_hf.reading.batches import Batch, Item  # noqa: E402
from vitviz_hf.stream import Row  # noqa: E402

COPIES = 8
LARGE = {
    "ViT-B/16": {"patch_size": 16},
    "ViT-L/14": {
        "patch_size": 14,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}
SMALL = {"ViT-B/16": {"patch_size": 16, **TINY}, "ViT-L/14": {"patch_size": 8, **TINY}}


class Bench:
    """A device, the time that is left, and what was found."""

    def __init__(self, device, small, seconds):
        self.device, self.small, self.end = torch.device(device), small, START + seconds
        self.result = {"facts": {}, "skipped": []}
        self.views = {}

    def part(self, name, work, *args, least=5.0):
        """What `work` gives, under its name; an error in its place."""
        if time.perf_counter() + least > self.end:
            self.result["skipped"].append(name)
            print(f"{name}: skipped, no time left", flush=True)
            return
        try:
            found = work(self, *args)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        finally:
            self.free()
        self.result[name] = found
        told = found.items() if isinstance(found, dict) else [("", found)]
        print(f"{name:<44} " + "  ".join(f"{k} {shown(v)}" for k, v in told), flush=True)

    def free(self):
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def sync(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, work, n=1):
        """Seconds of each of n runs."""
        self.sync()
        start = time.perf_counter()
        for _ in range(n):
            work()
        self.sync()
        return (time.perf_counter() - start) / n


def shown(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def float32_products(tf32):
    """Products of float32 in TF32, or exact."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


PRECISIONS = {"bf16": ("bfloat16", False), "tf32": ("float32", True), "fp32": ("float32", False)}


def facts(bench):
    found = {"device": str(bench.device), "torch": torch.__version__, "transformers": transformers.__version__}
    found |= {"python": platform.python_version(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    if bench.device.type == "cuda":
        card = torch.cuda.get_device_properties(bench.device)
        found |= {"card": card.name, "gigabytes": card.total_memory / 1e9, "cuda": torch.version.cuda}
    return found


def peak(bench, precision):
    """TFLOP/s of the best of several large products."""
    dtype, tf32 = (torch.bfloat16 if precision == "bf16" else torch.float32), PRECISIONS[precision][1]
    n = 256 if bench.small else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
    with float32_products(tf32):
        bench.time(lambda: a @ b, 3)
        seconds = min(bench.time(lambda: a @ b, 5) for _ in range(5))
    return 2 * n**3 / seconds / 1e12


def view_of(bench, name):
    if name not in bench.views:
        with TemporaryDirectory() as folder:
            save_model(bench, name, folder)
            bench.views[name] = load_model(folder, device=bench.device)
    return bench.views[name]


def save_model(bench, name, folder):
    torch.manual_seed(0)
    config = transformers.ViTConfig(**(SMALL if bench.small else LARGE)[name])
    transformers.ViTModel(config).save_pretrained(folder)
    size = {"height": config.image_size, "width": config.image_size}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)


def layer_of(view, where):
    return len(view.layers) // 2 - 1 if where == "middle" else len(view.layers) - 1


def flops_of_step(view, layer):
    """Products of one feature's step, forward and back, counted."""
    steps = visualize_steps(view, [f"{layer}.mlp_act:0"], VisualizeConfig.preset("fourier", precision="float32"))
    next(steps)
    with FlopCounterMode(display=False) as counter:
        next(steps)
    return counter.get_total_flops()


def step(bench, name, where, n, precision):
    """A step of n features x 8 copies; images that do not fit in memory at once go in several passes."""
    view = view_of(bench, name)
    layer, (own, tf32) = layer_of(view, where), PRECISIONS[precision]
    images = n * COPIES
    while True:
        try:
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            config = VisualizeConfig.preset("fourier", steps=10_000, batch=images, precision=own, smoothness=0.1)
            steps = visualize_steps(view, [f"{layer}.mlp_act:{i}" for i in range(n)], config)
            with float32_products(tf32):
                next(steps), next(steps)
                seconds = statistics.median(bench.time(partial(next, steps), 2) for _ in range(3))
            break
        except torch.OutOfMemoryError:
            if images <= COPIES:
                raise
            images //= 2
            del steps
            bench.free()
    tera = flops_of_step(view, layer) * n / seconds / 1e12
    most = bench.result.get(f"peak {precision}")
    memory = torch.cuda.max_memory_allocated() / 1e9 if bench.device.type == "cuda" else None
    return {
        "ms": 1e3 * seconds,
        "tflops": tera,
        "of_peak": tera / most if isinstance(most, float) else None,
        "features_per_minute": 60 * n / (seconds * VisualizeConfig.preset("fourier").steps),
        "images_per_pass": images,
        "gigabytes": memory,
    }


def compiled(bench, name, where, n):
    """The same step where the blocks below the one that is read are compiled, one by one."""
    view = view_of(bench, name)
    blocks = [view.module.get_submodule(layer.name) for layer in view.layers[: layer_of(view, where)]]
    start = time.perf_counter()
    for block in blocks:
        block.compile()
    try:
        ms = step(bench, name, where, n, "bf16")["ms"]
    finally:
        for block in blocks:
            block._compiled_call_impl = None
    plain = bench.result[f"step {name} {where} x{n} bf16"]["ms"]
    return {"ms": ms, "of_plain": ms / plain, "seconds_in_all": time.perf_counter() - start}


def together(bench):
    """How much faster 16 features are in one batch than one by one."""
    one, many = (bench.result.get(f"step ViT-B/16 middle x{n} bf16", {}).get("ms") for n in (1, 16))
    return {"times": 16 * one / many}


def waits(bench):
    """Places where a step waits for the device, by torch's own count."""
    if bench.device.type != "cuda":
        return {"count": None, "note": "torch counts on CUDA only"}
    view = view_of(bench, "ViT-B/16")
    config = VisualizeConfig.preset("fourier", steps=10_000, smoothness=0.1)
    steps = visualize_steps(view, [f"{layer_of(view, 'middle')}.mlp_act:{i}" for i in range(8)], config)
    next(steps), next(steps)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            next(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in told if "synchroniz" in str(w.message)})
    return {"count": len(places), "places": places}


def paper(bench):
    """The paper's recipe for a feature of a middle layer: a picture with its scores."""
    view = view_of(bench, "ViT-B/16")
    config = VisualizeConfig.preset("paper", **({"steps": 3} if bench.small else {}))
    feature = f"{layer_of(view, 'middle')}.mlp_act:10"
    return {"seconds": bench.time(lambda: visualize(view, [feature], config)), "paper_on_a_2080Ti": 90}


def jpeg(seed, size=(500, 400)):
    noise = np.random.default_rng(seed).integers(0, 255, (20, 25, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def bare(bench, view, batch):
    """Images a second of the model alone."""
    pixels = torch.rand(batch, 3, *view.input_size, device=bench.device)
    with torch.no_grad():
        bench.time(lambda: run(view, pixels), 2)
        return batch / statistics.median(bench.time(lambda: run(view, pixels), 3) for _ in range(3))


def fold_only(bench, precision, batch):
    """A search of ViT-B/16 whose pictures are decoded already, beside the forward pass."""
    config = SearchConfig(batch=batch, precision=PRECISIONS[precision][0])
    view = at_precision(view_of(bench, "ViT-B/16"), config.precision)
    sites = site_list(view, config)
    folds = {s: SiteFold.empty(find_tap(view, s).size, config.k, bench.device) for s in sites}
    state, random = SearchState(folds), np.random.default_rng(0)
    pictures = random.integers(0, 255, (batch, 3, *view.input_size), dtype=np.uint8)
    turn = iter(range(10**6))

    def take_in():
        items = [Item(Row(f"{(i := next(turn))}", "", str(i).encode()), p, "") for p in pictures]
        _take_in(view, state, sites, config.reduce, Batch(items, None), crops)

    with TemporaryDirectory() as folder, open_crops(Path(folder)) as crops:
        for _ in range(4):  # at first every picture enters a ranking
            take_in()
        rate = batch / bench.time(take_in, 2 if bench.small else 12)
    alone = bare(bench, view, batch)
    return {"images_per_s": rate, "bare": alone, "share": rate / alone}


def whole_search(bench, precision):
    """A search over JPEG files, decoding in processes."""
    n, batch = (16, 4) if bench.small else (4096, 128)
    view = view_of(bench, "ViT-B/16")
    with TemporaryDirectory() as folder:
        made = [jpeg(i) for i in range(min(n, 256))]
        for i in range(n):  # bytes that differ: what is the same is ranked once
            Path(folder, f"{i:05}.jpg").write_bytes(made[i % 256] + str(i).encode())
        workers = 0 if bench.small else min(os.cpu_count() or 1, 16)
        config = SearchConfig(batch=batch, workers=workers, precision=PRECISIONS[precision][0])
        with TemporaryDirectory() as work:
            times = []
            source = open_source(folder)
            search(view, source, config, Path(work, "s"), progress=lambda _: times.append(time.perf_counter()))
    rate = batch * (len(times) - 1) / (times[-1] - times[0])
    return {"images_per_s": rate, "workers": workers, "batch": batch}


def upload_to_maps(bench):
    """From the bytes of a photograph to the overlays of the 8 features that fire most."""
    view = view_of(bench, "ViT-B/16")
    data = jpeg(0, (160, 120) if bench.small else (1600, 1200))
    site = f"{layer_of(view, 'middle')}.mlp_act"

    def maps():
        image = open_image(data)
        pixels = to_pixels(view, image)
        ranked = top_features(view, pixels, site, 8)
        ((_, acts),) = activations(view, pixels, [site]).items()
        found = [acts.map(feature.index)[0].float().cpu().numpy() for feature, _ in ranked]
        return [overlay(image, values, map_range(values)) for values in found]

    maps()
    return {"ms": 1e3 * statistics.median(bench.time(maps) for _ in range(5))}


def cold_start(bench):
    """A new process: seconds until torch and the package are there, the model, the first step, the picture."""
    with TemporaryDirectory() as folder:
        save_model(bench, "ViT-B/16", folder)
        command = [sys.executable, __file__, "--device", str(bench.device), "--first-picture", folder]
        start = time.time()
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return {k: v - start for k, v in json.loads(done.stdout.splitlines()[-1]).items()}


def first_picture(folder, device):
    """The other process of `cold_start`: times of day."""
    found = {"imported": time.time()}
    view = load_model(folder, device=device)
    found["loaded"] = time.time()
    for i, made in enumerate(visualize_steps(view, ["0.mlp_act:1"], VisualizeConfig.preset("fast"))):
        if i == 0:
            made.pixels.cpu()
            found["first_step"] = time.time()
    made.pixels.cpu()
    print(json.dumps({**found, "picture": time.time()}))


def run_all(bench):
    bench.part("facts", facts, least=0)
    for precision in PRECISIONS:
        bench.part(f"peak {precision}", peak, precision)
    sizes = (1, 2) if bench.small else (1, 8, 16, 64)
    bench.part("cold start", cold_start, least=30)
    bench.part("upload to maps", upload_to_maps)
    bench.part("waits in a step", waits)
    bench.part("paper preset, middle layer", paper)
    for name in LARGE:
        for where in ("middle", "last"):
            for n in sizes:
                bench.part(f"step {name} {where} x{n} bf16", step, name, where, n, "bf16", least=8)
    if not bench.small:
        bench.part("16 features together", together, least=0)
    if bench.device.type == "cuda":
        for name in LARGE:
            title = f"step {name} last x{sizes[-1]} bf16, blocks compiled"
            bench.part(title, compiled, name, "last", sizes[-1], least=60)
    for precision in ("bf16", "tf32") if bench.device.type == "cuda" else ("fp32",):
        for batch in (4,) if bench.small else (32, 128, 256):
            bench.part(f"search without decoding, batch {batch} {precision}", fold_only, precision, batch)
    bench.part("search of JPEG files", whole_search, "bf16" if bench.device.type == "cuda" else "fp32", least=40)
    for precision in ("tf32", "fp32"):
        for name in LARGE:
            for where in ("middle", "last"):
                for n in sizes:
                    bench.part(f"step {name} {where} x{n} {precision}", step, name, where, n, precision, least=12)
    bench.result["seconds"] = time.perf_counter() - START


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=str(best_device()))
    parser.add_argument("--out", default="gpu.json", help="JSON of all numbers")
    parser.add_argument("--seconds", type=float, default=440, help="time after which no part is begun")
    parser.add_argument("--small", action="store_true", help="tiny models: whether everything runs")
    parser.add_argument("--first-picture", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.first_picture:
        first_picture(args.first_picture, args.device)
        return
    bench = Bench(args.device, args.small, args.seconds)
    run_all(bench)
    Path(args.out).write_text(json.dumps(bench.result, indent=1))
    errors = [name for name, found in bench.result.items() if isinstance(found, dict) and "error" in found]
    told = f"failed: {', '.join(errors) or 'none'}; skipped: {len(bench.result['skipped'])}"
    print(f"{args.out} written after {bench.result['seconds']:.0f} s; {told}")


if __name__ == "__main__":
    main()
