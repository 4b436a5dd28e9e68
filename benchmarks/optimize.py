"""Speed of optimization against a plain loop and another package, as ratios taken in one run.

A pass is one augmented image forward and back. `fast` and `paper` are these presets for one feature. `bare` is the
model alone, forward to the neuron and back, with the copies of `fast`: the rest is what the loop costs. These take
`--precision`, the other two float32, as their authors do. `plain` does what the papers' code does, here with frozen
weights: the whole model runs forward, the score is fetched at every step, with the copies and transforms of `paper`.
`horama` is Horama 0.3.0 on the same model through a hook, with a canvas of 448 pixels and 6 crops; install it by hand:
`pip install --no-deps horama==0.3.0 einops matplotlib`. All take a step in turn, and medians over the rounds are
compared; behind +- stands half the distance of the quartiles of the ratios taken round by round.

    python benchmarks/optimize.py [--device cuda] [--models builtin random] [--layers 5 11] [--precision float32]
"""

import argparse
import importlib.util
import statistics
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vitviz_hf import VisualizeConfig, load_model, visualize_steps
from vitviz_hf.models.view import at_precision, normalize
from vitviz_hf.optimize import transforms
from vitviz_hf.optimize.penalties import total_variation
from vitviz_hf.reading.recording import record
from vitviz_hf.sites import Site

COPIES, CROPS, CANVAS = 8, 6, 448
FEATURE = 10


def random_vit_b16(device):
    import transformers

    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        transformers.ViTModel(transformers.ViTConfig()).save_pretrained(folder)
        transformers.ViTImageProcessor().save_pretrained(folder)
        return load_model(folder, device=device)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def ours(preset, precision, view, layer):
    config = VisualizeConfig.preset(preset, steps=10_000, precision=precision)
    for _ in visualize_steps(view, [f"{layer}.mlp_act:{FEATURE}"], config):
        yield config.copies


def bare(precision, view, layer):
    view = at_precision(view, precision)
    site, copies = Site(layer, "mlp_act"), VisualizeConfig.preset("fast").copies
    images = torch.rand(copies, 3, *view.input_size, device=view.device).requires_grad_()
    while True:
        record(view, images, [site])[site].map(FEATURE).mean().backward()
        yield copies


def reading(view, layer):
    """A hook on the last linear of a feed-forward block, and what it saw."""
    seen = {}
    module = view.module.get_submodule(view.layers[layer].taps["mlp_act"].module)
    return seen, module.register_forward_pre_hook(lambda _, args: seen.update(acts=args[0]))


def plain(view, layer):
    """One feature, full forward pass, a score fetched at every step."""
    seen, handle = reading(view, layer)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, *view.input_size, generator=generator).to(view.device).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.1, betas=(0.5, 0.99))
    try:
        while True:
            optimizer.zero_grad()
            images = image[:, None].expand(-1, COPIES, -1, -1, -1)
            images = transforms.color_shift(images, 1.0, [generator])
            images = transforms.noise(images, 0.5, "pixel", [generator])
            images = transforms.jitter(images, 32, [generator])
            view.module(**view.inputs(normalize(view, images.flatten(0, 1))))
            score = seen["acts"][:, view.layers[layer].n_prefix :, FEATURE].mean()
            (4e-3 * total_variation(images).sum() - score).backward()
            optimizer.step()
            with torch.no_grad():
                image.clamp_(0, 1)
            score.item()
            yield COPIES
    finally:
        handle.remove()


def horama(view, layer):
    """The loop of its `fourier`, a step at a time: its own functions, in its order."""
    from horama.fourier_fv import fourier_preconditionner, get_fft_scale, init_lucid_buffer
    from pictures import horama_common

    common = horama_common()
    seen, handle = reading(view, layer)

    def objective(images):
        view.module(**view.inputs(images))
        return seen["acts"][:, view.layers[layer].n_prefix :, FEATURE].mean()

    spectrum = init_lucid_buffer(CANVAS, CANVAS).to(view.device).requires_grad_()
    scale = get_fft_scale(CANVAS, CANVAS, 1.5).to(view.device)
    optimizer = torch.optim.NAdam([spectrum], lr=1.0)
    transparency = torch.zeros(3, CANVAS, CANVAS, device=view.device)
    try:
        while True:
            optimizer.zero_grad()
            image = fourier_preconditionner(spectrum, scale, (-2.5, 2.5), view.device)
            loss, image = common.optimization_step(objective, image, (0.20, 0.25), 0.05, CROPS, view.input_size[0])
            loss.backward()
            transparency += torch.abs(image.grad)
            optimizer.step()
            yield CROPS
    finally:
        handle.remove()


def time_pass(steps, device):
    """Seconds of a step for each of its passes."""
    synchronize(device)
    start = time.perf_counter()
    passes = next(steps)
    synchronize(device)
    return (time.perf_counter() - start) / passes


def compare(view, layer, rounds, precision):
    """Seconds a pass of each loop, in each round."""
    loops = {name: partial(ours, name, precision) for name in ("fast", "paper")}
    loops |= {"bare": partial(bare, precision), "plain": plain}
    if importlib.util.find_spec("horama"):
        loops["horama"] = horama
    running = {name: loop(view, layer) for name, loop in loops.items()}
    for steps in running.values():
        next(steps), next(steps)
    times = {name: [] for name in running}
    for _ in range(rounds):
        for name, steps in running.items():
            times[name].append(time_pass(steps, view.device))
    for steps in running.values():
        steps.close()
    return times


def shown(times, loop):
    return f"{1e3 * statistics.median(times[loop]):.0f}" if loop in times else "missing"


def ratio(times, own, other):
    """Time of one loop over that of another as text, with half the distance of the quartiles of the rounds."""
    if other not in times:
        return "missing"
    whole = statistics.median(times[own]) / statistics.median(times[other])
    low, _, high = statistics.quantiles([a / b for a, b in zip(times[own], times[other], strict=True)])
    return f"{whole:.2f} +- {(high - low) / 2:.2f}"


def features_per_minute(view, n, rounds, precision):
    config = VisualizeConfig.preset("fast", steps=10_000, precision=precision)
    loop = visualize_steps(view, [f"5.mlp_act:{i}" for i in range(n)], config)
    next(loop)
    times = []
    for _ in range(rounds):
        synchronize(view.device)
        start = time.perf_counter()
        next(loop)
        synchronize(view.device)
        times.append(time.perf_counter() - start)
    return 60 * n / (statistics.median(times) * VisualizeConfig.preset("fast").steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--models", nargs="+", default=["builtin", "random"], help="Hub ids, builtin, random: ViT-B/16")
    parser.add_argument("--layers", nargs="+", type=int, default=[5, 11])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", default="auto", help="of fast, paper, bare: float32, bfloat16, auto")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4, 16], help="features at once, none to skip")
    args = parser.parse_args()
    for name in args.models:
        view = random_vit_b16(args.device) if name == "random" else load_model(name, device=args.device)
        what = f"{at_precision(view, args.precision).precision}, plain and horama float32"
        print(f"{name} on {view.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {what}")
        print("milliseconds of a pass, and ratios")
        print("layer     fast    paper     bare    plain   horama      fast/bare   paper/plain   fast/horama")
        for layer in args.layers:
            times = compare(view, layer, args.rounds, args.precision)
            ms = "".join(f"{shown(times, loop):>9}" for loop in ("fast", "paper", "bare", "plain", "horama"))
            pairs = (("fast", "bare"), ("paper", "plain"), ("fast", "horama"))
            ratios = "".join(f"{ratio(times, own, other):>14}" for own, other in pairs)
            print(f"{layer:>5}{ms} {ratios}", flush=True)
        rates = {n: features_per_minute(view, n, args.rounds, args.precision) for n in args.batches}
        text = "  ".join(f"batch {n}: {rate:.2f}" for n, rate in rates.items())
        print(f"features per minute at layer 5, preset fast: {text}")


if __name__ == "__main__":
    print(f"vitviz_hf benchmark {Path(__file__).name}")
    main()
