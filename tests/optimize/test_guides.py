"""Real images in pictures, over again by plain hooks, numpy and torch."""

import base64
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from tests.by_hand import read_pictures
from tests.optimize.test_recipe import (
    canvas_of,
    drawn_apart,
    generator_of,
    measured_smoothness,
    read,
    reading,
    roughness,
    saved,
    turned,
)
from vitviz_hf import (
    Direction,
    Guide,
    VisualizeConfig,
    activations,
    at_size,
    builtin_images,
    guide_by_images,
    guide_by_photograph,
    replay,
    visualize,
    visualize_steps,
)
from vitviz_hf.errors import ConfigError, FeatureError, NonFiniteError, RecipeError
from vitviz_hf.images import cover
from vitviz_hf.optimize import guides
from vitviz_hf.optimize.collages import collages
from vitviz_hf.optimize.guides import Photographs, guide_by, guides_by_images, misfit
from vitviz_hf.optimize.loop import finish, seeded_steps
from vitviz_hf.optimize.objectives import to_objective
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.optimize.scores import score_pixels
from vitviz_hf.sites import Site
from vitviz_hf.stream import builtin_paths

FEATURE = "2.mlp_act:9"
ALIGNED, ACCENT = (VisualizeConfig.preset(name, steps=3, copies=2, margin=4) for name in ("aligned", "accent"))


@pytest.fixture(scope="module")
def photographs(shapes):
    """[40, 3, 64, 64]"""
    return torch.from_numpy(np.stack([p.pixels for p in read_pictures(shapes)[:40]])).permute(0, 3, 1, 2) / 255


def best_of(view, address, photographs, n=3):
    scores = score_pixels(view, [to_objective(address, view.kinds)], photographs[None])[0]
    return photographs[scores.argsort(descending=True)[:n]]


def guide_for(view, address, photographs, config, n=3):
    images = best_of(view, address, photographs, n)
    return guide_by_images(view, address, images) if config.align else guide_by_photograph(view, address, images[0])


def outputs(view, images, names):
    """What modules return on images [N, 3, H, W]: {name: [N, T, F]}."""
    seen = {}

    def keep(name):
        return lambda _, __, out: seen.update({name: out[0] if isinstance(out, tuple) else out})

    hooks = [view.module.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        view.module((images - 0.5) / 0.5)
    for hook in hooks:
        hook.remove()
    return seen


def activation(view, layer, images):
    """The feed-forward's activation on patches, [N, P, F] in numpy."""
    seen = []
    fc2 = view.module.vit.layers[layer].mlp.fc2
    hook = fc2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        view.module((images - 0.5) / 0.5)
    hook.remove()
    return seen[0][:, 1:].double().numpy()


def moments_by_hand(values, map_):
    """Values [N, P, F] and what excites [N, P] -> mean and deviation of every feature."""
    weights = np.maximum(map_, 0).ravel()
    weights = 0.7 * weights / weights.sum() + 0.3 / weights.size
    flat = values.reshape(-1, values.shape[-1])
    mean = (weights[:, None] * flat).sum(0)
    return np.stack([mean, np.sqrt((weights[:, None] * (flat - mean) ** 2).sum(0))])


# What is taken from the images


@pytest.mark.parametrize(("sign", "at"), [(1, ""), (-1, ""), (1, "@cls"), (1, "@5,2")])
def test_moments_count_patches_by_how_much_they_excite_the_feature(sign, at, trained, photographs):
    # What the fixture learns differs between processors: of all features one that fires most in this direction.
    index = int((sign * activation(trained, 2, photographs)).mean((0, 1)).argmax())
    address = f"{'-' * (sign < 0)}2.mlp_act:{index}{at}"
    images = best_of(trained, address, photographs)

    guide = guide_by_images(trained, address, images)

    own = sign * activation(trained, 2, images)[..., index]
    found = outputs(trained, images, [f"vit.layers.{i}" for i in range(3)])
    assert list(guide.moments) == [Site(i, "resid") for i in range(3)] and guide.n_images == 3
    for site, moments in guide.moments.items():
        values = found[f"vit.layers.{site.layer}"][:, 1:].double().numpy()
        expected = moments_by_hand(values, own)
        np.testing.assert_allclose(moments.numpy(), expected, atol=1e-4)
        assert abs(expected - moments_by_hand(values, np.ones_like(own))).max() > 0.02
        assert min(abs(np.diff(np.sort(expected), axis=1)).max(1)) > 1e-3
        assert not np.allclose(expected[:, 1:], expected[:, :-1], atol=1e-3)
    assert guide.best == pytest.approx(float(score_pixels(trained, [to_objective(address)], images[None]).max()))


@pytest.mark.parametrize("address", ["2.mlp_act:9 + 0.5*1.resid:3", "logit:2", "direction"])
def test_without_a_map_images_count_by_their_scores(address, trained, photographs):
    vector = torch.randn(48, generator=torch.Generator().manual_seed(2))
    target = Direction(Site(1, "resid"), tuple(vector.tolist())) if address == "direction" else address
    images = best_of(trained, target, photographs, 40)[[0, 1, 39]]

    guide = guide_by_images(trained, target, images)

    scores = score_pixels(trained, [to_objective(target)], images[None])[0].double().numpy()
    assert scores[0] > 0 and (scores[2] < 0 or address[0] == "2")
    last = 1 if address == "direction" else 2
    assert list(guide.moments) == [Site(i, "resid") for i in range(last + 1)]
    values = outputs(trained, images, ["vit.layers.1"])["vit.layers.1"][:, 1:].double().numpy()
    expected = moments_by_hand(values, np.repeat(scores[:, None], values.shape[1], 1))
    np.testing.assert_allclose(guide.moments[Site(1, "resid")].numpy(), expected, atol=1e-4)


def test_the_blocks_that_are_matched_are_the_first_ones_and_the_last_before_the_objective(tiny_view, photographs):
    view = tiny_view("timm-twins-svt")
    images = functional.interpolate(photographs, view.input_size)
    assert len(view.layers) == 8
    for address, layers in {"6.mlp_act:3": [0, 1, 3, 4, 6], "7.mlp_act:1": [0, 1, 3, 5, 7], "0.mlp_act:2": [0]}.items():
        guide = guide_by_images(view, address, best_of(view, address, images))
        assert [s.layer for s in guide.moments] == layers


def test_grids_that_differ_by_layer_are_weighted_each_on_its_own(tiny_view, photographs):
    view = tiny_view("swin")
    images = functional.interpolate(photographs, view.input_size)
    last = len(view.layers) - 1
    address = f"{last}.mlp_act:3"
    images = best_of(view, address, images)

    guide = guide_by_images(view, address, images)

    found = activations(view, images, [*guide.moments, Site(last, "mlp_act")])
    map_ = found[Site(last, "mlp_act")].map(3)
    sides = {found[s].tap.patch_grid for s in guide.moments}
    assert len(sides) == 2
    for site, moments in guide.moments.items():
        times = found[site].tap.patch_grid[0] // map_.shape[1]
        wide = map_.repeat_interleave(times, 1).repeat_interleave(times, 2).flatten(1)
        expected = moments_by_hand(found[site].patches.double().numpy(), wide.double().numpy())
        np.testing.assert_allclose(moments.numpy(), expected, atol=1e-4)
    made = visualize(view, [address], ALIGNED, [guide])[0]
    assert made.pixels.shape == (3, *view.input_size)


def test_the_misfit_is_0_for_the_statistics_of_the_images_themselves_and_relative_to_them_otherwise():
    rng = np.random.default_rng(0)
    sites = [Site(0, "resid"), Site(2, "resid")]
    reads = {s: torch.from_numpy(rng.normal(1 + i, 2, (2, 3, 5, 7))).float() for i, s in enumerate(sites)}
    own = [{s: v[n].double().numpy().reshape(15, 7) for s, v in reads.items()} for n in range(2)]
    right = [
        Guide(1, 1.0, {s: torch.tensor(np.stack([x.mean(0), x.std(0)])).float() for s, x in o.items()}) for o in own
    ]
    wrong = [Guide(1, 1.0, {s: torch.from_numpy(rng.normal(0, 1, (2, 7))).float() for s in sites}) for _ in range(2)]

    assert misfit(reads, right).abs().max() < 1e-5
    expected = []
    for o, guide in zip(own, wrong, strict=True):
        apart = []
        for s in sites:
            for value, want in zip((o[s].mean(0), o[s].std(0)), guide.moments[s].numpy(), strict=True):
                apart.append(np.linalg.norm(value - want) / np.linalg.norm(want))
        expected.append(2 * np.mean(apart))
    np.testing.assert_allclose(misfit(reads, wrong).numpy(), expected, rtol=1e-4)
    alone = {s: torch.zeros(1, 1, 1, 7) for s in sites}
    assert torch.isfinite(misfit(alone, [Guide(1, 1.0, {s: torch.zeros(2, 7) for s in sites})])).all()


# What it starts from


def test_the_collage_is_the_regions_that_excite_most_of_four_images():
    """Colors tell image, row and column of each pixel; of six images two excite less, one of them in a corner."""
    height, width, n = 56, 84, 6
    rows, cols = torch.meshgrid(torch.arange(height) / 100, torch.arange(width) / 100, indexing="ij")
    images = torch.stack([torch.stack([torch.full_like(rows, i / 10), rows, cols]) for i in range(n)])
    maps = torch.zeros(n, 7, 7)
    for i, (strength, at) in enumerate([(3, (0, 0)), (9, (6, 6)), (2, (0, 6)), (8, (0, 3)), (5, (3, 0)), (7, (3, 3))]):
        maps[i][at] = strength

    found = next(collages(images, maps))

    # They overlap by a seventh, and are (56 + 8) / 2 = 32 high and (84 + 12) / 2 = 48 wide, here well inside the seams.
    best = {1: (slice(0, 22), slice(0, 34)), 3: (slice(0, 22), slice(-34, None))}
    best |= {5: (slice(-22, None), slice(0, 34)), 4: (slice(-22, None), slice(-34, None))}
    corners = {1: (24, 36), 3: (0, None), 5: (None, None), 4: (None, 0)}
    for i, (down, across) in best.items():
        part = found[:, down, across]
        assert torch.allclose(part[0], torch.tensor(i / 10))
        step = part[1, 1, 0] - part[1, 0, 0], part[2, 0, 1] - part[2, 0, 0]
        assert torch.allclose(torch.stack(step), torch.tensor(0.01), atol=1e-4)
        top, left = (round(float(100 * part[axis, 0, 0])) for axis in (1, 2))
        inner = (0 if down.start == 0 else 10, 0 if across.start == 0 else 14)
        wanted = [None if at is None else at + plus for at, plus in zip(corners[i], inner, strict=True)]
        assert all(want is None or got == want for got, want in zip((top, left), wanted, strict=True))
        hot = [
            (at + 0.5) / 7 * size for at, size in zip(divmod(int(maps[i].argmax()), 7), (height, width), strict=True)
        ]
        assert top - inner[0] <= hot[0] <= top - inner[0] + 32 and left - inner[1] <= hot[1] <= left - inner[1] + 48
    seam = found[0, 10, 30:54]
    assert seam[0] == pytest.approx(0.1) and seam[-1] == pytest.approx(0.3) and (seam.diff() > -1e-6).all()
    assert seam.diff().max() < 0.05


def test_of_fewer_images_each_that_excites_stands_alone_and_of_even_ones_their_middles(photographs):
    for strengths, order in (([1.0, 3.0, 2.0], [1, 2, 0]), ([0.0, 3.0, 0.0], [1]), ([0.0, 0.0, 0.0], [0])):
        found = list(collages(photographs[:3], torch.tensor(strengths)[:, None, None]))
        assert torch.equal(torch.stack(found), photographs[order])

    found = next(collages(photographs[:4], torch.ones(4, 1, 1)))

    # A seventh of 64, made even, is 10: regions of 37, from row and column 12 (a multiple of 2), and seams of 10.
    torch.testing.assert_close(found[:, :27, :27], photographs[0, :, 12:39, 12:39])


@pytest.mark.parametrize(
    ("n", "firing", "sets"),
    [
        (9, 9, ["0123", "4567", "8012", "3456", "7801", "2345", "6780", "1234", "5678"]),
        (8, 8, ["0123", "4567", "1234", "5670", "2345", "6701", "3456", "7012"]),
        (9, 6, ["0123", "4501", "2345", "1234", "5012", "3450"]),
        (9, 4, ["0123", "1230", "2301", "3012"]),
        (9, 1, ["0123", "1230", "2301", "3012"]),
        (
            50,
            50,
            [*("".join(chr(48 + (4 * i + k + shift) % 36) for k in range(4)) for shift in range(4) for i in range(9))],
        ),
    ],
)
def test_collages_are_all_different_and_of_images_that_excite(n, firing, sets):
    images = (torch.arange(n) / 100)[:, None, None, None].expand(-1, 3, 28, 28)
    maps = torch.where(torch.arange(n) < firing, 100.0 - torch.arange(n), 0.0)[:, None, None]

    corners = [found[0, [0, 0, -1, -1], [0, -1, 0, -1]] * 100 for found in collages(images, maps)]

    assert ["".join(chr(48 + round(float(i))) for i in some) for some in corners] == sets


def test_the_next_seed_starts_from_the_next_four_images_and_is_pulled_to_the_same_statistics(trained, photographs):
    images = best_of(trained, FEATURE, photographs, 9)
    maps = torch.from_numpy(activation(trained, 2, images)[..., 9]).float().clamp_min(0).unflatten(1, (8, 8))
    wide = functional.interpolate(maps[:, None], (64, 64), mode="bilinear")
    strength = functional.avg_pool2d(wide, 37, 2).amax((1, 2, 3))
    order = strength.argsort(descending=True).tolist()

    found = guides_by_images(trained, FEATURE, images)
    first, *others = map(found.of, (0, 1, 2, 9))

    for guide, some in zip((first, *others), (order[:4], order[4:8], [order[8], *order[:3]], order[:4]), strict=True):
        falling = maps[some] * (torch.tensor([4.0, 3.0, 2.0, 1.0]) / strength[some])[:, None, None]
        assert (guide.photograph - next(collages(images[some], falling))).abs().mean() < 5 / 255, some
    assert (first.photograph - others[0].photograph).abs().mean() > 0.05
    for guide in others:
        assert guide.best == first.best and all(torch.equal(guide.moments[s], first.moments[s]) for s in first.moments)
    by_config = [guide_by(trained, FEATURE, images, replace(ALIGNED, seed=seed)).start for seed in (0, 1)]
    assert by_config == [first.start, others[0].start]
    few = guides_by_images(trained, FEATURE, images[:3])
    assert few.of(0).start == few.of(3).start != few.of(1).start


def test_a_guide_starts_from_the_collage_of_its_images(trained, photographs):
    images = best_of(trained, FEATURE, photographs, 6)
    maps = torch.from_numpy(activation(trained, 2, images)[..., 9]).float().clamp_min(0).unflatten(1, (8, 8))

    guide = guide_by_images(trained, FEATURE, images)

    assert (guide.photograph - next(collages(images, maps))).abs().mean() < 5 / 255
    first = next(visualize_steps(trained, [FEATURE], replace(ALIGNED, learning_rate=1e-6), [guide]))
    assert (first.pixels[0] - guide.photograph).abs().mean() < 0.01


def test_the_builtin_photographs_that_excite_most_are_found_whole_and_in_parts(trained):
    index = int(activation(trained, 2, stacked(whole_and_parts(0)[:1])).mean((0, 1)).argmax())

    told = []
    found = builtin_images(trained, f"2.mlp_act:{index}", lambda *at: told.append(at))

    wholes = [stacked(whole_and_parts(i)[:1]) for i in range(len(builtin_paths()))]
    order = np.argsort([-activation(trained, 2, x)[0, :, index].mean() for x in wholes])
    pool = torch.cat([*wholes, *(stacked(whole_and_parts(i)[1:]) for i in order[:8])])
    scores = activation(trained, 2, pool)[..., index].mean(1)
    assert len(found) == 9 and (np.sort(scores)[::-1][:9] > 0).all()
    assert told == [(i, 91) for i in (*range(1, 20), *range(28, 92, 9))]
    np.testing.assert_allclose(
        activation(trained, 2, found)[..., index].mean(1), np.sort(scores)[::-1][:9], rtol=1e-4, atol=1e-6
    )


def whole_and_parts(i):
    """Of the i-th built-in photograph: cropped at the center, and nine parts of half its side."""
    photograph = Image.open(list(builtin_paths().values())[i]).convert("RGB")
    whole, large = cover(photograph, (64, 64)), cover(photograph, (128, 128))
    return [whole, *(large.crop((x, y, x + 64, y + 64)) for y in (0, 32, 64) for x in (0, 32, 64))]


def stacked(pictures):
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in pictures])


# Pictures


def written_out(view, address, guide, config):
    """Two steps of a guided picture of a feature of the trained model. -> pixels, scores of each step."""
    layer, index = int(address[0]), int(address.rpartition(":")[2])
    generator = generator_of(f"{config.seed} {address}")
    side, copies = 64 + 2 * config.margin, config.copies
    params, show = canvas_of(side, generator)
    photograph = held = None
    if guide.start:
        mirrored = functional.pad(guide.photograph[None], [config.margin] * 4, mode="reflect")[0]
        params, _ = canvas_of(side, generator, mirrored)
    if config.keep:
        map_ = torch.from_numpy(activation(view, layer, guide.photograph[None])[0, :, index]).reshape(1, 1, 8, 8)
        fires = functional.interpolate(map_.clamp(min=0).float(), (64, 64), mode="bilinear")
        fires = functional.pad(fires / fires.max(), [config.margin] * 4, mode="reflect")[0]
        photograph, held, unit = mirrored, 1 - fires, float(map_.abs().max())
    params.requires_grad_()
    smooth = config.auto_strength * measured_smoothness(view, layer, None, 64)
    mean, square = torch.zeros_like(params), torch.zeros_like(params)
    pictures, scores = [], []
    for step in range(config.steps):
        canvas = show(params)
        images = canvas.expand(copies, -1, -1, -1)
        if config.rotate:
            angle, zoom = torch.rand(2, copies, generator=generator) * 2 - 1
            images = turned(images, angle * math.radians(config.rotate), (zoom * config.zoom).exp())
        tops, lefts = (torch.randint(0, side - 63, (copies,), generator=generator) for _ in range(2))
        images = torch.stack([x[:, t : t + 64, c : c + 64] for x, t, c in zip(images, tops, lefts, strict=True)])
        if config.noise:
            noise = torch.randn(copies, 3, 64, 64, generator=generator)
            images = images + config.noise * (1 - step / config.steps) * noise
        seen = (
            drawn_apart(images, config.contrast, torch.rand(copies, generator=generator)) if config.contrast else images
        )
        tokens = []
        hooks = [
            view.module.vit.layers[i].register_forward_hook(lambda _, __, out, keep=tokens: keep.append(out[:, 1:]))
            for i in range(3)
        ]
        with reading(view, layer) as inner:
            act, pre = read(view, inner, seen, index)
        for hook in hooks:
            hook.remove()
        scores.append(act.mean().item())
        target = guide.best * torch.tanh(act.mean() / guide.best) if config.align else act.mean()
        if config.revive and scores[-1] <= 0:
            target = pre.mean()
        if config.align:
            apart = []
            for i in range(layer + 1):
                want, flat = guide.moments[Site(i, "resid")], tokens[i].flatten(0, 1)
                apart += [(flat.mean(0) - want[0]).norm() / want[0].norm()]
                apart += [(flat.var(0, correction=0).sqrt() - want[1]).norm() / want[1].norm()]
            target = target - config.align * guide.best * 2 * sum(apart) / len(apart)
        if config.keep:
            left = (held * (canvas - photograph) ** 2).mean() / photograph.var()
            target = target - config.keep * unit * left
        (gradient,) = torch.autograd.grad(smooth * roughness(images) - target, params)
        rate = config.learning_rate * (1 + math.cos(math.pi * step / config.steps)) / 2
        mean = config.beta1 * mean + (1 - config.beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient**2
        mean_now, square_now = mean / (1 - config.beta1 ** (step + 1)), square / (1 - config.beta2 ** (step + 1))
        with torch.no_grad():
            params -= rate * mean_now / (square_now.sqrt() + 1e-8)
            inner = slice(config.margin, side - config.margin)
            shown = show(params)[:, inner, inner].clone()
            pictures.append(drawn_apart(shown[None], config.contrast)[0] if config.contrast else shown)
    return pictures, scores


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("aligned", {}),
        ("aligned", {"contrast": 0.2, "noise": 0.1}),
        # As in recipes of old. Turning rounds otherwise here, which the first steps of a nearly gray picture enlarge.
        ("aligned from noise", {"rotate": 0.0, "zoom": 0.0}),
        ("accent", {}),
        ("accent", {"contrast": 0.2, "keep": 30.0}),
    ],
)
def test_a_guided_picture_is_its_recipe_written_out_in_plain_torch(preset, changes, trained, photographs):
    preset, _, noise = preset.partition(" from ")
    config = VisualizeConfig.preset(preset, **{"steps": 2, **changes})
    guide = guide_for(trained, FEATURE, photographs, config, n=5)
    guide = replace(guide, start=b"") if noise else guide

    found = list(visualize_steps(trained, [FEATURE], config, [guide]))

    pictures, scores = written_out(trained, FEATURE, guide, config)
    for step, picture, score in zip(found, pictures, scores, strict=True):
        assert float(step.scores[0]) == pytest.approx(score, abs=1e-4)
        assert ((step.pixels[0] - picture).abs() < 2e-3).float().mean() > 0.99
        torch.testing.assert_close(step.pixels[0].mean(), picture.mean(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("canvas", ["fourier", "pixels"])
def test_an_accented_picture_starts_as_the_photograph(canvas, trained, photographs):
    photograph = functional.avg_pool2d(best_of(trained, FEATURE, photographs)[0], 5, 1, 2)
    guide = guide_by_photograph(trained, FEATURE, photograph)
    assert (guide.photograph - photograph).abs().mean() < 3 / 255

    first = next(visualize_steps(trained, [FEATURE], replace(ACCENT, canvas=canvas, learning_rate=1e-6), [guide]))

    near = (guide.photograph > 0.03) & (guide.photograph < 0.97)
    apart = (first.pixels[0] - guide.photograph).abs()
    assert near.float().mean() > 0.7 and apart[near].max() < 2e-3 and apart.max() < 0.03


def test_a_photograph_is_held_where_its_feature_does_not_fire(trained, photographs):
    maps = activation(trained, 2, photographs)[..., 9]
    guide = guide_by_photograph(trained, FEATURE, photographs[(maps.min(1) / maps.max(1)).argmin()])
    own, everywhere = (Photographs(trained, [to_objective(a)], [guide], 4) for a in (FEATURE, "logit:2"))
    map_ = activation(trained, 2, guide.photograph[None])[0, :, 9].reshape(8, 8)
    row, col = np.unravel_index(map_.argmax(), map_.shape)
    strongest = (slice(None), 8 * row + 8, 8 * col + 8)

    assert (own.held >= 0).all() and (own.held <= 1).all()
    assert own.held[0][strongest].max() < 0.3 and own.held.max() > 0.9
    assert (everywhere.held == 1).all()
    gray = torch.full_like(own.pixels, 0.5)
    apart = float((own.held * (own.pixels - 0.5) ** 2).mean() / own.pixels.var())
    assert float(own.left(gray)) == pytest.approx(float(np.abs(map_).max()) * apart, rel=1e-4)
    assert abs(np.abs(map_).max() - 1) > 0.05
    assert own.left(own.pixels).abs().max() == 0 and (everywhere.left(1 - everywhere.pixels) > 0).all()


@pytest.mark.parametrize("config", [ALIGNED, ACCENT], ids=["aligned", "accent"])
def test_guided_pictures_of_a_batch_come_out_as_each_alone(config, trained, photographs):
    addresses = [FEATURE, "2.mlp_act:20", "2.mlp_act:9@cls", "logit:2", "1.mlp_act:5 - 0.5*1.resid:3"]
    guides = [guide_for(trained, a, photographs, config) for a in addresses]

    together = visualize(trained, addresses, config, guides)

    for address, guide, result in zip(addresses, guides, together, strict=True):
        alone = visualize(trained, [address], config, [guide])[0]
        torch.testing.assert_close(result.pixels, alone.pixels, rtol=1e-3, atol=1e-3)
        assert result.recipe["guide"] == guide.to_json()
    others = visualize(trained, addresses[:2], config, guides[1::-1] if config.keep else guides[:1] * 2)
    assert (others[1].pixels - together[1].pixels).abs().max() > 0.01


@pytest.mark.parametrize("config", [ALIGNED, ACCENT], ids=["aligned", "accent"])
def test_a_guided_picture_is_replayed_bit_for_bit_from_its_png_alone(config, trained, photographs, tmp_path):
    view = at_size(trained, (64, 96))
    wide = functional.interpolate(photographs, (64, 96))
    result = visualize(view, [FEATURE], config, [guide_for(view, FEATURE, wide, config)])[0]
    result.save(tmp_path / "a.png")

    again = replay(tmp_path / "a.png")

    assert torch.equal(again.pixels, result.pixels) and again.score == result.score
    assert again.recipe == result.recipe == read_recipe(tmp_path / "a.png")
    assert read_recipe(tmp_path / "a.png")["guide"]["images"] == (3 if config.align else 1)


def test_several_pictures_of_one_feature_share_its_guide(trained, photographs):
    guide = guide_for(trained, FEATURE, photographs, ALIGNED)
    *_, last = seeded_steps(trained, [to_objective(FEATURE)] * 2, ALIGNED, [0, 7], [guide] * 2)

    made = finish(trained, [to_objective(FEATURE)] * 2, ALIGNED, last, [0, 7])

    alone = visualize(trained, [FEATURE], replace(ALIGNED, seed=7), [guide])[0]
    torch.testing.assert_close(made[1].pixels, alone.pixels, rtol=1e-3, atol=1e-3)
    assert made[1].recipe["guide"] == guide.to_json() and made[1].recipe["config"]["seed"] == 7


def test_the_pull_brings_the_statistics_near_those_of_the_images(trained, photographs):
    often = activation(trained, 2, photographs).mean((0, 1)).argsort()[-3:]
    features = [f"2.mlp_act:{i}" for i in often]
    guides = [guide_for(trained, feature, photographs, ALIGNED) for feature in features]
    config = VisualizeConfig.preset("aligned")
    free = {**config.to_dict(), "align": 0.0}
    pulled, alone = (
        [made.pixels for made in visualize(trained, features, c, g)]
        for c, g in ((config, guides), (VisualizeConfig.from_dict(free), []))
    )

    def apart(pictures):
        found = outputs(trained, torch.stack(pictures), [f"vit.layers.{i}" for i in range(3)])
        tokens = {Site(i, "resid"): found[f"vit.layers.{i}"][:, None, 1:] for i in range(3)}
        return float(sum(misfit({s: x[[n]] for s, x in tokens.items()}, [g])[0] for n, g in enumerate(guides)))

    assert apart(pulled) < 0.8 * apart(alone)


def test_the_more_a_photograph_is_kept_the_nearer_the_picture_stays(trained, photographs):
    guide = guide_for(trained, FEATURE, photographs, ACCENT)
    left = [
        float((visualize(trained, [FEATURE], c, [guide])[0].pixels - guide.photograph).abs().mean())
        for c in (VisualizeConfig.preset("accent", steps=15, copies=1, keep=k) for k in (1e-3, 1e3))
    ]

    assert left[1] < 0.7 * left[0]


# Errors


def test_guides_that_are_missing_not_used_or_of_something_else_are_told(trained, photographs, tiny_view):
    pulled, start = (guide_for(trained, FEATURE, photographs, c) for c in (ALIGNED, ACCENT))
    small = guide_by_photograph(at_size(trained, (64, 32)), FEATURE, photographs[0, :, :, :32])

    def refuse(message, config, guides, addresses=(FEATURE,)):
        with pytest.raises(ConfigError, match=message):
            next(visualize_steps(trained, addresses, config, guides))

    refuse("need images that excite the feature, for each of 1 objectives; got 0 .* guide_by_images", ALIGNED, [])
    refuse("need a photograph to start from, for each of 1 objectives; got 0 .* guide_by_photograph", ACCENT, [])
    refuse("for each of 2 objectives; got 1 guides", ALIGNED, [pulled], (FEATURE, "1.mlp_act:3"))
    refuse("need images that excite", ALIGNED, [start])
    refuse("need a photograph", ACCENT, [pulled])
    refuse("options use none; take the preset 'aligned' or 'accent'", VisualizeConfig.preset("fast"), [pulled])
    refuse("set one of them to 0", replace(ALIGNED, keep=1.0), [pulled])
    refuse("'1.mlp_act:3' was made for another objective or model", ALIGNED, [pulled], ("1.mlp_act:3",))
    refuse(r"input size \(64, 64\); got \(64, 32\)", ACCENT, [small])
    refuse("margin must be below 64", replace(ACCENT, margin=64), [start])


def test_images_that_give_nothing_are_told(trained, photographs):
    values = outputs(trained, photographs[:2], ["vit.layers.2"])["vit.layers.2"][:, 1:]
    nowhere = int(values.amax((0, 1)).argmin())
    assert values[..., nowhere].max() < 0
    with pytest.raises(ConfigError, match=rf"'2\.resid:{nowhere}' is above 0 nowhere on the 2 images"):
        guide_by_images(trained, f"2.resid:{nowhere}", photographs[:2])
    with pytest.raises(NonFiniteError, match=r"'2\.mlp_act:9' is NaN or infinite on some of the 1 images"):
        guide_by_images(trained, FEATURE, photographs[:1] * torch.nan)
    with pytest.raises(ConfigError, match="above 0 nowhere on the 0 images"):
        guide_by_images(trained, FEATURE, photographs[:0])
    with pytest.raises(ConfigError, match=r"must have the input size \(64, 64\); got \(32, 64\); see to_pixels"):
        guide_by_images(trained, FEATURE, photographs[:, :, :32])
    with pytest.raises(ConfigError, match="must have the input size"):
        guide_by_photograph(trained, FEATURE, photographs[0, :, :32])
    with pytest.raises(FeatureError):
        guide_by_photograph(trained, "2.mlp_act:999", photographs[0])


@pytest.mark.parametrize("at", ["cls", "5,2"])
def test_at_one_token_a_picture_starts_from_the_best_image_though_no_patch_may_fire(at, trained, photographs):
    images = photographs[:2].repeat(3, 1, 1, 1)  # enough for a collage
    values = outputs(trained, images, ["vit.layers.2"])["vit.layers.2"]
    values = torch.cat([values, -values], 2)
    own = values[:, 0 if at == "cls" else 1 + 5 * 8 + 2]
    unlike = (values[:, 1:].amax((0, 1)) < 0) if at == "cls" else own.argmax(0) != values[:, 1:].mean(1).argmax(0)
    index = int((unlike & (own.amax(0) > 0)).nonzero()[0])
    minus, number = divmod(index, values.shape[2] // 2)

    guide = guide_by_images(trained, f"{'-' * minus}2.resid:{number}@{at}", images)

    best = int(own[:, index].argmax())
    assert (guide.photograph - images[best]).abs().mean() < 5 / 255
    assert guide.best == pytest.approx(float(own[best, index]), rel=1e-4)
    found, scores = guides_by_images(trained, f"{'-' * minus}2.resid:{number}@{at}", images[::3]), own[::3, index]
    second = scores.argmin() if scores.min() > 0 else scores.argmax()
    assert (found.of(1).photograph - images[::3][second]).abs().mean() < 5 / 255


def test_a_photograph_keeps_the_colors_of_its_pixels(trained):
    stripes = torch.zeros(3, 64, 64)
    stripes[0, :, ::2] = stripes[2, :, 1::2] = 0.8

    assert (guide_by_photograph(trained, FEATURE, stripes).photograph - stripes).abs().mean() < 20 / 255


def test_a_start_that_is_too_large_is_refused_before_it_is_decoded(trained, photographs, monkeypatch):
    guide = guide_for(trained, FEATURE, photographs, ACCENT)
    monkeypatch.setattr(guides, "open_image", None)

    for data, told in ((jpeg(3000), r"got \(3000, 3000\)"), (b"\x89PNG", "no JPEG")):
        with pytest.raises(ConfigError, match=told):
            next(visualize_steps(trained, [FEATURE], ACCENT, [replace(guide, start=data)]))


def jpeg(side):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_the_unit_of_a_feature_whose_means_are_below_0_is_what_is_above(trained, photographs):
    values = outputs(trained, photographs[:2], ["vit.layers.2"])["vit.layers.2"][:, 1:]
    mixed = int(((values.mean(1) < 0).all(0) & (values > 0).any(1).any(0)).nonzero()[0])

    guide = guide_by_images(trained, f"2.resid:{mixed}", photographs[:2])

    assert guide.best == pytest.approx(float(values[..., mixed].clamp(min=0).mean(1).max()), rel=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"moments": {}},
        {"moments": {"2.resid": "AAA"}},
        {"images": "x"},
        {"images": math.inf},
        {"best": None},
        {"best": math.nan},
        {"best": 0},
        {"best": 1e-300},
        {"best": 1e300},
        {"moments": None},
        {"moments": dict.fromkeys(("0.resid", "1.resid", "2.resid"), base64.b64encode(b"\0\0\xc0\x7f" * 128).decode())},
    ],
)
def test_a_damaged_guide_in_a_recipe_is_refused(change, trained, photographs, tmp_path):
    made = visualize(trained, [FEATURE], ALIGNED, [guide_for(trained, FEATURE, photographs, ALIGNED)])[0]
    recipe = json.loads(json.dumps(made.recipe))
    recipe["guide"].update(change)

    with pytest.raises((RecipeError, ConfigError)):
        replay(saved(tmp_path / "a.png", recipe), trained)


def test_a_guide_survives_json(trained, photographs):
    for config in (ALIGNED, ACCENT):
        guide = guide_for(trained, FEATURE, photographs, config)

        again = Guide.from_json(json.loads(json.dumps(guide.to_json())))

        assert (again.n_images, again.best, again.start) == (guide.n_images, guide.best, guide.start)
        assert list(again.moments) == list(guide.moments)
        assert all(torch.equal(again.moments[s], m) for s, m in guide.moments.items())
