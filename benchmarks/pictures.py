"""Do pictures tell what a neuron sees? Our presets and other packages' recipes on the same neurons.

Neurons (mlp_act) are drawn at random from six layers among those that fire in a dataset. Each recipe makes a picture of
each, from as many passes: images that go through the model, forward and backward. A judge, which is another network,
must then choose by the picture which of two photographs the neuron likes, as in `vitviz experiment agreement`. A
picture and the photographs that were read are kept under --out as soon as they are there, so that an interrupted run
goes on, and a later one with other recipes makes only these. Beside the table lie the figures of each feature, of which
any other difference can be made.

    python benchmarks/pictures.py ILSVRC/imagenet-1k --limit 5000
    python benchmarks/pictures.py FOLDER --recipes fast,paper,horama-maco,lucent --skip 3 --passes 160,640

Other packages run as their authors meant, with their own transforms and learning rates; only the number of steps is
changed. They are for this comparison alone and installed by hand; what to type is said where one is missing.
"""

import argparse
import importlib
import io
import json
import math
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from vitviz_hf import VisualizeConfig, load_model, visualize
from vitviz_hf.cli.options import parse_pair
from vitviz_hf.config import Precision
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.bootstrap import bootstrap
from vitviz_hf.experiments.pictures.agreement import (
    Judged,
    embed_all,
    guide_of,
    judge_pictures,
    layers_of,
    table_of_features,
    table_of_shares,
)
from vitviz_hf.experiments.pictures.judge import Judge, open_judge
from vitviz_hf.experiments.pictures.realism import distance_to
from vitviz_hf.experiments.pictures.trials import (
    LEAST_IMAGES,
    Depths,
    Photographs,
    choose_depths,
    draw_candidates,
    live_features,
    look_of,
    queries,
    read_photographs,
)
from vitviz_hf.experiments.tables import Cell, Table
from vitviz_hf.images import contact_sheet, cover, encode, image_to_pixels, open_image, pixels_to_image
from vitviz_hf.manifest import replace_file
from vitviz_hf.models.view import ModelView, at_precision, at_size, find_tap, run
from vitviz_hf.optimize.config import PRESETS
from vitviz_hf.optimize.guides import PASSES, Guide, builtin_images, guide_by_images, needed
from vitviz_hf.sites import Feature, Site, file_stem
from vitviz_hf.stream import open_source

DRAWN = 20
"""Features of a layer for which candidates are drawn, if no more are wanted, so that the judge's depth is the same."""
BATCH = 64
FOR_SPECTRUM = 512
"""Photographs whose mean spectrum is taken."""
SHEET, ROW, LARGEST = 150, 176, 1_000_000
"""Side of a picture in a recipe's sheet and in a comparison, in pixels; size of a file in bytes."""
Pictures = dict[Feature, Tensor]
"""Feature -> [1, 3, H, W] in [0, 1] at the model's input size, in 8 bits."""
Run = tuple[str, int]
"""Recipe, and the passes that were asked for."""
Make = Callable[[ModelView, Feature, int, Photographs, int], Image.Image | Tensor]
"""Model, feature, steps, photographs, seed -> picture, or [3, H, W] in [0, 1] of any size."""


@dataclass(frozen=True)
class Recipe:
    make: Make
    per_step: int
    """Images that go through the model at each step."""
    needs: str = ""
    """What pip installs for it."""
    note: str = ""
    """What is not as its authors have it."""
    center: float | None = None
    """Side of the middle part that the model sees at once, as a share of the picture's, if it never sees more."""
    before: int = 0
    """Passes before the first step; an image that goes forward only is a third."""


def preset(
    name: str, view: ModelView, feature: Feature, steps: int, photographs: Photographs, seed: int
) -> Image.Image:
    config = VisualizeConfig.preset(name, steps=steps, seed=seed, precision=view.precision)
    if not needed(config):
        return visualize(view, [feature], config)[0].image
    return guided(view, feature, config, photographs, lambda: guide_of(view, photographs, feature, config))


def aligned_builtin(view: ModelView, feature: Feature, steps: int, photographs: Photographs, seed: int) -> Image.Image:
    config = VisualizeConfig.preset("aligned", steps=steps, seed=seed, precision=view.precision)

    def guide() -> Guide:
        return guide_by_images(view, feature, builtin_images(view, feature), seed)

    return guided(view, feature, config, photographs, guide)


def guided(
    view: ModelView, feature: Feature, config: VisualizeConfig, photographs: Photographs, guide: Callable[[], Guide]
) -> Image.Image:
    """From noise where none of the images excites it, as with `auto` in the app."""
    try:
        guides = [guide()]
    except ConfigError as error:
        if "is above 0 nowhere" not in str(error):
            raise
        return preset("fast", view, feature, max(1, config.steps // 2), photographs, config.seed)
    return visualize(view, [feature], config, guides)[0].image


class Tokens(nn.Module):
    """A model as other packages take it: pixels [B, 3, H, W] in [0, 1] -> one site's values as maps [B, F, R, C].

    These are the output of its layer `tokens` too. The model itself is no part of it, since some packages remove all
    hooks that they find.
    """

    def __init__(self, view: ModelView, site: Site):
        super().__init__()
        self.view, self.tap, self.tokens = view, find_tap(view, site), nn.Identity()
        # They ask the first parameter for the device.
        self.place = nn.Parameter(torch.zeros(1, device=view.device), requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        seen: list[Tensor] = []
        below = self.view.module.get_submodule(self.tap.module)
        hook = below.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            run(self.view, pixels)
        finally:
            hook.remove()
        values = self.tap.read(seen[0], len(pixels))[:, self.tap.n_prefix :]
        return self.tokens(values.mT.reshape(len(pixels), -1, *self.tap.patch_grid))


def horama(method: str, view: ModelView, feature: Feature, steps: int, photographs: Photographs, seed: int) -> Tensor:
    """It works in the model's normalized colors, in a range of 5 by default."""
    from horama import maco_fv

    horama_common()
    mean, std = (torch.tensor(values, device=view.device)[:, None, None] for values in (view.mean, view.std))
    tokens = Tokens(view, feature.site)
    with TemporaryDirectory() as folder:
        maco_fv.MACO_SPECTRUM_FILENAME = f"{folder}/spectrum.npy"
        if method == "maco":
            some = tuple(islice(photographs.crops.values(), FOR_SPECTRUM))
            np.save(maco_fv.MACO_SPECTRUM_FILENAME, mean_magnitude(some))
        image, _ = getattr(importlib.import_module("horama"), method)(
            lambda images: tokens(images * std + mean)[:, feature.index].mean(),
            total_steps=steps,
            model_input_size=view.input_size[0],
            device=view.device,
        )
    return image * std + mean


def horama_common() -> Any:
    """Its module `common`, where torchvision lacks `roi_align` with what stands in."""
    from horama import common

    if not hasattr(torch.ops.torchvision, "roi_align"):
        common.roi_align = crop_boxes
    return common


def crop_boxes(image: Tensor, boxes: Tensor, output_size: tuple[int, int]) -> Tensor:
    """What torchvision's operator `roi_align` gives; its slow version in Python, which stands in, needs a compiler.

    Args:
        image: [1, 3, H, W].
        boxes: [K, 5]: 0, then x0, y0, x1, y1 in pixels, where whole numbers are the centers of pixels.
    """
    return torch.cat([crop_box(image, box[1:3], box[3:5], output_size) for box in boxes])


def crop_box(image: Tensor, low: Tensor, high: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Each bin is the mean of bilinear samples, as many along an axis as it has pixels; 0 far outside.

    The edge goes on for a pixel.
    """
    axes = []
    for axis, (n, size) in enumerate(zip(output_size[::-1], image.shape[:1:-1], strict=True)):
        length = high[axis] - low[axis]
        samples = n * math.ceil(float(length) / n)
        places = low[axis] + (torch.arange(samples, device=image.device) + 0.5) / samples * length
        axes.append((2 * places / (size - 1) - 1, (places >= -1) & (places <= size)))
    (x, x_inside), (y, y_inside) = axes
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)[None]
    found = functional.grid_sample(image, grid, padding_mode="border", align_corners=True)
    return functional.adaptive_avg_pool2d(found * (y_inside[:, None] & x_inside), output_size)


@lru_cache(maxsize=1)
def mean_magnitude(jpegs: tuple[bytes, ...]) -> Any:
    """Mean magnitude of the spectra of pictures in the package's decorrelated colors, [3, H, W // 2 + 1].

    Of deviations from the mean color: the lowest frequencies are then as in the template that its authors publish.
    """
    from horama import common

    pixels = torch.stack([image_to_pixels(open_image(jpeg)) for jpeg in jpegs])
    to_colors = torch.linalg.inv(common.get_color_correlation_svd_sqrt(torch.device("cpu")))
    apart = pixels - pixels.mean((0, 2, 3), keepdim=True)
    spectra = (torch.fft.rfft2(torch.einsum("bchw,cd->bdhw", some, to_colors)) for some in apart.split(BATCH))
    return (sum(spectrum.abs().sum(0) for spectrum in spectra) / len(pixels)).numpy()


def lucent(view: ModelView, feature: Feature, steps: int, photographs: Photographs, seed: int) -> Tensor:
    from lucent.optvis import objectives, param, render

    height, width = view.input_size
    images = render.render_vis(
        Tokens(view, feature.site),
        objectives.channel("tokens", feature.index),
        lambda: param.image(width, height),
        thresholds=(steps,),
        preprocess=False,  # the colors: `Tokens` does it
        progress=False,
        show_image=False,
        fixed_image_size=view.input_size,
    )
    return torch.from_numpy(images[-1][0]).permute(2, 0, 1)


def dreamlens(view: ModelView, feature: Feature, steps: int, photographs: Photographs, seed: int) -> Tensor:
    from dreamlens import FeatureTarget, FeatureVisualizer, RenderConfig

    height, width = view.input_size
    visualizer = FeatureVisualizer(Tokens(view, feature.site), quiet=True, device=view.device, normalize=False)
    target = FeatureTarget.for_channel("tokens", feature.index)
    return visualizer.maximize(target, RenderConfig(width=width, height=height, steps=steps)).as_chw()


def faccent(view: ModelView, feature: Feature, steps: int, photographs: Photographs, seed: int) -> Tensor:
    from faccent import objectives, param, render

    canvas = param.fourier(device=view.device)
    render.render_vis(
        Tokens(view, feature.site),
        objectives.channel("tokens", feature.index),
        parameterizer=canvas,
        out_thresholds=[steps - 1],
        inline_thresholds=[],
        progress=False,
        model_input_size=view.input_size,
        model_input_range=(0, 1),
    )
    with torch.no_grad():  # what it hands out is from before the last step
        return canvas.params_to_img()[0]


_ROI = "where torchvision lacks its operator roi_align, as beside a CPU build of torch, an equal one of grid_sample"
_TEMPLATE = "the template of magnitudes, a download, is the mean over crops of the photographs instead"
_MIDDLE = "-center"
_BEFORE = {"aligned": 9}
_HORAMA = {
    "horama-fourier": Recipe(partial(horama, "fourier"), 6, "horama==0.3.0", f"{_ROI}.", 0.275),
    "horama-maco": Recipe(partial(horama, "maco"), 6, "horama==0.3.0", f"{_ROI}; {_TEMPLATE}.", 0.275),
}
_SEES = "the model sees crops of a quarter of the side, so this is the middle {:.0%}; the same run"
RECIPES: Mapping[str, Recipe] = {
    **{
        name: Recipe(partial(preset, name), VisualizeConfig.preset(name).copies, before=_BEFORE.get(name, 0))
        for name in PRESETS
    },
    "aligned-builtin": Recipe(
        aligned_builtin,
        1,
        before=PASSES,
        note="made from the built-in photographs, no image of the dataset; `fast` where none excites.",
    ),
    **_HORAMA,
    **{
        f"{name}{_MIDDLE}": replace(recipe, note=f"{_SEES.format(recipe.center)} as {name}.")
        for name, recipe in _HORAMA.items()
    },
    "lucent": Recipe(
        lucent,
        1,
        "--no-deps torch-lucent==0.1.8 kornia==0.4.1 && pip install decorator ipython",
        "its picture has the model's input size instead of 128 pixels, and is scaled to it after the transforms.",
    ),
    "dreamlens": Recipe(
        dreamlens, 1, "dreamlens==0.1.1", "its picture has the model's input size instead of 256 pixels."
    ),
    "faccent": Recipe(
        faccent,
        16,
        "--no-deps faccent==1.0.3 kornia==0.4.1 && pip install decorator einops imageio ipywidgets",
        "it starts from noise.",
    ),
}


@contextmanager
def quiet() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pictures_of(
    name: str,
    passes: int,
    out: Path,
    view: ModelView,
    features: Sequence[Feature],
    photographs: Photographs,
    seed: int,
) -> tuple[Pictures, float]:
    """A picture of each feature, and the seconds that one took; those that are there are read."""
    folder, recipe = out / f"{name.removesuffix(_MIDDLE)}-{passes}", RECIPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    clock = folder / "seconds.json"
    seconds: dict[str, float] = json.loads(clock.read_text("utf-8")) if clock.exists() else {}
    stems = {f: file_stem(f) for f in features}
    for feature, stem in stems.items():
        if (folder / f"{stem}.png").exists():
            continue
        torch.manual_seed(seed + feature.index)
        np.random.seed(seed + feature.index)
        start = time.perf_counter()
        try:
            with quiet():
                picture = recipe.make(view, feature, steps_of(name, passes), photographs, seed)
        except ModuleNotFoundError as error:
            raise SystemExit(f"{name} needs another package ({error}): pip install {recipe.needs}") from error
        seconds[stem] = time.perf_counter() - start
        image = pixels_to_image(picture) if isinstance(picture, Tensor) else picture
        saved = {stem: image}
        if recipe.center:
            side = round(recipe.center * image.width)
            saved = {f"{stem}{_MIDDLE}": center_crop(image, side), **saved}
        with replace_file(clock) as part:
            part.write_text(json.dumps(seconds), "utf-8")
        for file, whole in saved.items():  # the one that says that it is done comes last
            with replace_file(folder / f"{file}.png") as part:
                cover(whole, view.input_size).save(part)
        print(f"{name} {feature} {seconds[stem]:.1f} s", flush=True)
    ending = f"{_MIDDLE}.png" if name.endswith(_MIDDLE) else ".png"
    read = {f: image_to_pixels(open_image(folder / f"{stem}{ending}"))[None] for f, stem in stems.items()}
    return read, float(np.mean([seconds[stem] for stem in stems.values() if stem in seconds]))


def steps_of(name: str, passes: int) -> int:
    """Steps that come nearest to so many passes."""
    recipe = RECIPES[name]
    return max(1, round((passes - recipe.before) / recipe.per_step))


def passes_of(name: str, passes: int) -> int:
    """What is nearest to so many passes, with those before the first step."""
    return RECIPES[name].before + steps_of(name, passes) * RECIPES[name].per_step


def center_crop(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def read_once(arguments: argparse.Namespace, view: ModelView, judge: Judge) -> Photographs:
    """The photographs, from OUT if they were read for this model, judge and dataset."""
    source = open_source(arguments.dataset)
    sites = [Site(layer, "mlp_act") for layer in layers_of(view, None)]
    n_drawn = max(DRAWN, arguments.skip + arguments.per_layer)
    candidates = draw_candidates(view, sites, n_drawn, arguments.seed)
    what = (source.dataset, source.revision, arguments.limit, n_drawn, view.identity.key, judge.view.identity.key)
    path = arguments.out / f"photographs-{sha256(repr(what).encode()).hexdigest()[:16]}.pickle"
    if path.exists():
        return pickle.loads(path.read_bytes())
    photographs = read_photographs(view, judge, source, candidates, arguments.limit, BATCH, show)
    with replace_file(path) as part:
        part.write_bytes(pickle.dumps(photographs))
    return photographs


def show(done: int, n: int) -> None:
    if done % 1000 < BATCH:
        print(f"{done:,} of {f'{n:,}' if n else '?'} images", flush=True)


def chosen_features(photographs: Photographs, per_layer: int, skip: int) -> list[Feature]:
    live = live_features(photographs, skip + per_layer)
    sites = dict.fromkeys(f.site for f in live)
    return [f for site in sites for f in [f for f in live if f.site == site][skip:]]


@dataclass(frozen=True)
class Found:
    """What a recipe gave."""

    passes: int
    pictures: Pictures
    seconds: float
    judged: list[Judged]

    def shares(self, way: str) -> Any:
        """Of right choices for each feature, in %."""
        return np.array([100 * one.right[way].plain for one in self.judged])


def table_of(
    found: Mapping[Run, Found], judge: Judge, photographs: Photographs, depths: Depths, seed: int, notes: Sequence[str]
) -> Table:
    """A row for each recipe, then one for each way to do without an optimized picture of the feature."""
    first, passes = next(iter(found))
    reference = "fast" if ("fast", passes) in found else first
    to_natural = distance_to(photographs.seen(depths), seed)
    rows: list[tuple[Cell, ...]] = []
    for (name, wanted), own in found.items():
        base = found[reference, wanted].shares("picture")
        pixels, n = torch.cat(list(own.pictures.values())), len(own.judged)
        seen, looks = photographs.compare(depths, embed_all(judge, pixels)), look_of(pixels).mean(0)
        tables = tables_of(own.judged, seed)
        measures: list[Cell] = [
            difference(own.shares("picture"), own.shares("another's picture"), seed),
            *(float(np.median([getattr(o, what) for o in own.judged])) for what in ("transfer", "rank", "percentile")),
            1000 * to_natural(seen) if n > 1 else None,
            *looks[6:8].tolist(),
            own.seconds,
        ]
        apart = difference(own.shares("picture"), base, seed) if name != reference else None
        rows.append((name, own.passes, n, *last_of(tables, "picture"), apart, *measures))
    judged = found[reference, passes].judged
    base, beside = found[reference, passes].shares("picture"), tables_of(judged, seed)
    for way in ("1 exemplar", "9 exemplars", "another's picture", "noise"):
        title = f"{way} of {reference}" if way == "another's picture" else way
        apart = difference(found[reference, passes].shares(way), base, seed)
        rows.append((title, None, len(judged), *last_of(beside, way), apart, *[None] * len(measures)))
    columns = ("recipe", "passes", "features", "agreement, %", "alike, %", "deeper half, %", f"minus {reference}")
    names = ("minus another's", "transfer", "own rank", "percentile", "KID x 1000", "saturation", "contrast", "seconds")
    usual = photographs.looks.mean(0)
    told = f"The photographs have saturation {usual[6]:.2f} and contrast {usual[7]:.2f}."
    return Table((*columns, *names), tuple(rows), (told, *notes))


def tables_of(judged: Sequence[Judged], seed: int) -> list[Table]:
    """Right choices of all pairs, of pairs that are alike, and of all in the deeper half of the layers."""
    sites = list(dict.fromkeys(one.feature.site for one in judged))
    deep = [one for one in judged if one.feature.site in sites[len(sites) // 2 :]]
    asked = ((judged, "plain"), (judged, "alike"), (deep, "plain"))
    return [table_of_shares(some, task, seed, ()) for some, task in asked]


def last_of(tables: Sequence[Table], way: str) -> list[Cell]:
    """Over all layers."""
    return [table.rows[-1][table.columns.index(way)] for table in tables]


def difference(values: Any, base: Any, seed: int) -> Cell:
    """Mean over features of what one way is better than another, where both are known."""
    apart = (values - base)[np.isfinite(values - base)]
    return bootstrap(lambda some: float(apart[some].mean()), len(apart), seed)


def save_sheets(out: Path, photographs: Photographs, found: Mapping[Run, Found]) -> None:
    """A sheet of each recipe with a row for each layer; and one of each layer with a row for each feature."""
    layers: dict[Site, list[int]] = {}
    for i, one in enumerate(next(iter(found.values())).judged):
        layers.setdefault(one.feature.site, []).append(i)
    columns = max(map(len, layers.values()))
    blank = Image.new("RGB", (SHEET, SHEET), "white")
    for (name, passes), own in found.items():
        shares, tiles = own.shares("picture"), []
        for places in layers.values():
            for i in places:
                feature = own.judged[i].feature
                image = pixels_to_image(own.pictures[feature][0])
                tiles.append((cover(image, (SHEET, SHEET)), f"{feature}  {shares[i]:.0f} %"))
            tiles += [(blank, "")] * (columns - len(places))
        save_small(contact_sheet(*zip(*tiles, strict=True), columns), out / f"sheet-{name}-{passes}.jpg")
    for site, places in layers.items():
        tiles = []
        for i in places:
            feature = next(iter(found.values())).judged[i].feature
            tiles += [
                (pixels_to_image(own.pictures[feature][0]), f"{name} {own.passes}: {own.shares('picture')[i]:.0f} %")
                for (name, _), own in found.items()
            ]
            best = [photographs.image(int(k)) for k in queries(photographs, feature).best[:4]]
            tiles += zip(best, (str(feature), "its best", "held-out", "photographs"), strict=True)
        small = [(cover(image, (ROW, ROW)), caption) for image, caption in tiles]
        save_small(contact_sheet(*zip(*small, strict=True), len(found) + 4), out / f"compare-{site}.jpg")


def save_small(sheet: Image.Image, path: Path) -> None:
    """In the best quality that makes no more than `LARGEST` bytes."""
    tries = (encode(sheet, "JPEG", quality=quality) for quality in (92, 85, 75, 60, 45, 30, 15))
    path.write_bytes(next((data for data in tries if len(data) <= LARGEST), encode(sheet, "JPEG", quality=8)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="Hub id, folder or file; at least 200 different images")
    parser.add_argument("--model", default="builtin", help="Hub id, folder or built-in model (default: builtin)")
    parser.add_argument("--judge", default="builtin-cnn", help="another model, which compares (default: builtin-cnn)")
    parser.add_argument("--limit", type=int, help="images that are read (default: all)")
    parser.add_argument("--size", help="input size such as 112x112 (default: the model's)")
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="auto", help="of all recipes (default: %(default)s)"
    )
    parser.add_argument(
        "--passes", default="160", help="images through the model for a picture, such as 160,640 (default: %(default)s)"
    )
    parser.add_argument("--per-layer", type=int, default=10, help="features of each of six layers (default: 10)")
    parser.add_argument(
        "--skip",
        type=int,
        default=0,
        help="first features of each layer to leave out, such as those that a recipe was chosen by (default: 0)",
    )
    parser.add_argument(
        "--recipes", default=",".join(PRESETS), help=f"of {', '.join(RECIPES)} (default: our presets, %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder (default: pictures)")
    parser.add_argument("--seed", type=int, default=0, help="of the features and of the pictures (default: 0)")
    arguments = parser.parse_args(argv)
    arguments.recipes = list(dict.fromkeys(arguments.recipes.split(",")))
    if unknown := [name for name in arguments.recipes if name not in RECIPES]:
        parser.error(f"unknown recipe {unknown[0]!r}; recipes are {', '.join(RECIPES)}")
    if arguments.per_layer < 1 or arguments.skip < 0:
        parser.error("--per-layer must be at least 1, --skip at least 0")
    if arguments.limit is not None and arguments.limit < LEAST_IMAGES:
        parser.error(f"--limit must be at least {LEAST_IMAGES}")
    passes = dict.fromkeys(arguments.passes.split(","))
    if not all(text.isdecimal() and int(text) for text in passes):
        parser.error(f"--passes must be numbers from 1 such as 160,640; got {arguments.passes!r}")
    arguments.passes = list(map(int, passes))
    return arguments


def main(argv: Sequence[str] | None = None) -> Table:
    arguments = parse(argv)
    out, seed = arguments.out, arguments.seed
    view = load_model(arguments.model)
    if arguments.size:
        view = at_size(view, parse_pair(arguments.size, "x", "--size must be HEIGHTxWIDTH such as 112x112"))
    judge, making = open_judge(arguments.judge, view), at_precision(view, arguments.precision)
    facts = {"model": view.identity.to_json(), "precision": making.precision, "seed": seed}
    claim(out, {**facts, "data": [arguments.dataset, arguments.limit]})
    photographs = read_once(arguments, view, judge)
    features = chosen_features(photographs, arguments.per_layer, arguments.skip)
    depths = next(iter(choose_depths(photographs)))
    found: dict[Run, Found] = {}
    for name, passes in product(arguments.recipes, arguments.passes):
        pictures, seconds = pictures_of(name, passes, out, making, features, photographs, seed)
        judged = judge_pictures(view, judge, photographs, depths, pictures)
        found[name, passes] = Found(passes_of(name, passes), pictures, seconds, judged)
    notes = [
        f"Agreement: share of right choices with 95 % intervals over features, of {len(photographs.keys):,} images of "
        f"{arguments.dataset}, by {arguments.judge} at {' + '.join(depths)}; alike: between photographs of like color "
        "and contrast; minus another's: less the share by the pictures of other features of the layer. Medians of "
        "transfer score (best image: 1), rank of the feature on its picture, and percentile of its score among the "
        f"images'. Made in {making.precision}, judged in float32. {view.device}, threads: {torch.get_num_threads()}.",
        *(f"{name}: {RECIPES[name].note}" for name in arguments.recipes if RECIPES[name].note),
    ]
    table = table_of(found, judge, photographs, depths, seed, notes)
    save_sheets(out, photographs, found)
    for (name, passes), own in found.items():
        (out / f"features-{name}-{passes}.json").write_text(table_of_features(own.judged).to_json(), "utf-8")
    (out / "table.md").write_text(table.to_markdown(), "utf-8")
    (out / "table.json").write_text(table.to_json(), "utf-8")
    print(table.to_markdown())
    return table


def claim(out: Path, facts: Mapping[str, Any]) -> None:
    """Pictures in a folder are of one model and seed, and some are made from the photographs."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "run.json"
    text = json.dumps(facts)
    if path.exists() and path.read_text("utf-8") != text:
        raise SystemExit(
            f"{out} holds pictures of another model, precision, dataset or seed; choose another folder with --out."
        )
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
