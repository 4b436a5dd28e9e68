"""Speed of optimization against a plain loop, as ratios taken in one run.

The plain loop does what the papers' code does: the whole model runs forward, parameters collect gradients too, one
feature at a time, and the score is fetched at every step. Same number of copies and the same transforms' cost.
Each pair is timed alternately, and the medians are compared.

    python benchmarks/optimize.py [--device cuda] [--quick]
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vitviz_hf import VisualizeConfig, load_model, transforms, visualize_steps
from vitviz_hf.models.view import normalize

COPIES = 8


def random_vit_b16(device):
    import transformers

    config = transformers.ViTConfig()
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        transformers.ViTModel(config).save_pretrained(folder)
        transformers.ViTImageProcessor().save_pretrained(folder)
        return load_model(folder, device=device)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def plain_steps(view, layer, index, copies):
    """One feature, full forward, gradients of everything, host sync at every step."""
    module = view.module
    module.requires_grad_(True)
    tap = view.layers[layer].taps["mlp_act"]
    seen = {}
    handle = module.get_submodule(tap.module).register_forward_pre_hook(lambda _, args: seen.update(acts=args[0]))
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, *view.input_size, generator=generator).to(view.device).requires_grad_(True)
    optimizer = torch.optim.Adam([image], lr=0.1, betas=(0.5, 0.99))
    try:
        while True:
            optimizer.zero_grad()
            images = image[:, None].expand(-1, copies, -1, -1, -1)
            images = transforms.color_shift(images, 1.0, [generator])
            images = transforms.noise(images, 0.5, "pixel", [generator])
            images = transforms.jitter(images, 32, [generator])
            module(**view.inputs(normalize(view, images.flatten(0, 1))))
            score = seen["acts"][:, view.layers[layer].n_prefix :, index].mean()
            (4e-3 * transforms.total_variation(images).sum() - score).backward()
            optimizer.step()
            with torch.no_grad():
                image.clamp_(0, 1)
            score.item()
            yield
    finally:
        handle.remove()
        module.requires_grad_(False)
        module.zero_grad(set_to_none=True)


def time_step(steps, device):
    synchronize(device)
    start = time.perf_counter()
    next(steps)
    synchronize(device)
    return time.perf_counter() - start


def compare(view, layer, repeats):
    config = VisualizeConfig.preset("paper", steps=10_000, copies=COPIES)
    ours = visualize_steps(view, [f"{layer}.mlp_act:10"], config)
    next(ours)
    times = {"ours": [], "plain": []}
    for _ in range(repeats):
        times["ours"].append(time_step(ours, view.device))
        # A fresh plain loop each time: it turns parameter gradients on while it lives.
        plain = plain_steps(view, layer, 10, COPIES)
        next(plain)
        times["plain"].append(time_step(plain, view.device))
        plain.close()
    return {k: statistics.median(v) for k, v in times.items()}


def features_per_minute(view, n, steps):
    config = VisualizeConfig.preset("fast", steps=10_000)
    loop = visualize_steps(view, [f"5.mlp_act:{i}" for i in range(n)], config)
    next(loop)
    seconds = statistics.median([time_step(loop, view.device) for _ in range(steps)])
    return 60 * n / (seconds * VisualizeConfig.preset("fast").steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=None)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    arguments = parser.parse_args()
    repeats = 3 if arguments.quick else 7
    views = {"builtin": load_model("builtin", device=arguments.device)}
    views["random ViT-B/16"] = random_vit_b16(views["builtin"].device)
    device = views["builtin"].device
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {COPIES} copies, preset paper")
    print(f"{'model':<16} {'layer':>5} {'ours ms/step':>13} {'plain ms/step':>14} {'ratio':>6}")
    for name, view in views.items():
        for layer in (0, 5, 11):
            t = compare(view, layer, repeats)
            ours, plain = 1e3 * t["ours"], 1e3 * t["plain"]
            print(f"{name:<16} {layer:>5} {ours:>13.0f} {plain:>14.0f} {ours / plain:>6.2f}")
    for name, view in views.items():
        rates = {n: features_per_minute(view, n, repeats) for n in (1, 4, 16)}
        text = "  ".join(f"batch {n}: {rate:.2f}" for n, rate in rates.items())
        print(f"{name}: features per minute at layer 5, preset fast: {text}")


if __name__ == "__main__":
    print(f"vitviz_hf benchmark {Path(__file__).name}")
    main()
