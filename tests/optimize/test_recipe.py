"""Optimization against the same recipe written out in plain torch, replaying, and which pictures are dead."""

import json
import math
import warnings
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch.nn import functional

from vitviz_hf import (
    Direction,
    Logit,
    VisualizeConfig,
    load_model,
    replay,
    visualize,
    visualize_steps,
)
from vitviz_hf.cli.main import main
from vitviz_hf.cli.options import describe
from vitviz_hf.errors import RecipeError
from vitviz_hf.optimize import objectives, transforms
from vitviz_hf.optimize import recipe as recipes
from vitviz_hf.optimize import replay as replaying
from vitviz_hf.optimize.config import PRESETS, PresetName
from vitviz_hf.optimize.objectives import Objective, parse_objective, to_objective
from vitviz_hf.optimize.penalties import automatic_smoothness
from vitviz_hf.optimize.scores import transfer_scores
from vitviz_hf.sites import Site

QUICK = VisualizeConfig.preset("fast", steps=3, copies=2, margin=4)


def generator_of(text):
    return torch.Generator().manual_seed(int.from_bytes(sha256(text.encode()).digest()[:7], "big"))


@contextmanager
def reading(view, layer):
    """What the feed-forward's two linears of a tiny ViT see: {'pre': fc1's output, 'act': fc2's input}, [B, T, 64]."""
    mlp, seen = view.module.vit.layers[layer].mlp, {}
    hooks = [
        mlp.fc1.register_forward_hook(lambda _, __, out: seen.update(pre=out)),
        mlp.fc2.register_forward_pre_hook(lambda _, inputs: seen.update(act=inputs[0])),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def read(view, seen, images, index, token=None):
    """A feature and its pre-activation on [M, 3, H, W]: means over patches, or at one of all tokens."""
    view.module((images - 0.5) / 0.5)
    tokens = slice(1, None) if token is None else slice(token, token + 1)
    return seen["act"][:, tokens, index].mean(1), seen["pre"][:, tokens, index].mean(1)


def roughness(images):
    """Total variation of [M, 3, H, W], each direction written out."""
    total = 0.0
    right, down = images[:, :, :, 1:] - images[:, :, :, :-1], images[:, :, 1:] - images[:, :, :-1]
    falling, rising = images[:, :, 1:, 1:] - images[:, :, :-1, :-1], images[:, :, 1:, :-1] - images[:, :, :-1, 1:]
    for difference in (right, down, falling, rising):
        total = total + difference.square().sum((2, 3)).sqrt()
    return total.mean()


def measured_smoothness(view, layer, token, side=32):
    generator = generator_of(f"0 {layer}.mlp_act")
    start = torch.rand(4, 3, side, side, generator=generator).requires_grad_()
    with reading(view, layer) as seen:
        view.module((start - 0.5) / 0.5)
    values = seen["pre"][:, 1:].mean(1) if token is None else seen["pre"][:, token]
    probes = torch.randn(values.shape, generator=generator)
    (signal,) = torch.autograd.grad((values * probes).sum(), start)
    (rough,) = torch.autograd.grad(sum(roughness(x[None]) for x in start), start)
    return float(signal.norm() / math.sqrt(values.shape[1]) / rough.norm())


def turned(images, angle, zoom):
    """Each [3, H, W] of the copies read at turned places, pixel by pixel; edges reflected."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    grids = []
    for a, z in zip(angle, zoom, strict=True):
        from_x, from_y = z * (a.cos() * x - a.sin() * y), z * (a.sin() * x + a.cos() * y)
        grids.append(torch.stack([2 * from_x / width, 2 * from_y / height], -1))
    return functional.grid_sample(images, torch.stack(grids), padding_mode="reflection", align_corners=False)


def drawn_apart(images, least, power=1.0):
    """Images [M, 3, H, W] whose gray values deviate by `least` or more, by a power of the gain."""
    gray = images.mean(1).flatten(1)
    gain = torch.clamp(least / gray.std(1), min=1) ** power
    color = images.flatten(2).mean(2)[:, :, None, None]
    return (color + (images - color) * gain[:, None, None, None]).clamp(0, 1)


def canvas_of(side, generator, photograph=None):
    """Parameters of a square spectrum, drawn or of a photograph, and how they become pixels."""
    rows, cols = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)
    scale = side / (rows**2 + cols**2).sqrt().clamp_min(1 / side)
    colors = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    colors = colors / colors.norm(dim=0).max()

    def show(params):
        planes = torch.fft.irfft2(torch.view_as_complex(params) * scale, s=(side, side)) / 4
        return (colors @ planes.flatten(1)).reshape(planes.shape).sigmoid()

    if photograph is None:
        return 0.01 * torch.randn(3, side, side // 2 + 1, 2, generator=generator), show
    light = photograph.clamp(0.02, 0.98)
    planes = torch.linalg.solve(colors, (light / (1 - light)).log().flatten(1)).reshape(photograph.shape)
    return torch.view_as_real(torch.fft.rfft2(4 * planes) / scale).clone(), show


def written_out(view, layer, index, config, token=None, at=""):
    """The recipe for one feature, with nothing of the package. -> pixels after each step, scores, dead steps."""
    generator = generator_of(f"{config.seed} {layer}.mlp_act:{index}{at}")
    side, copies = 32 + 2 * config.margin, config.copies
    if config.canvas == "pixels":
        params = torch.rand(3, side, side, generator=generator)
    else:
        params, show = canvas_of(side, generator)

    def canvas():
        return params if config.canvas == "pixels" else show(params)

    params.requires_grad_()
    smoothness = measured_smoothness(view, layer, token) if config.smoothness == "auto" else config.smoothness
    mean, square = torch.zeros_like(params), torch.zeros_like(params)
    pictures, scores, dead_steps = [], [], 0
    for step in range(config.steps):
        images = canvas().expand(copies, -1, -1, -1)
        if config.rotate:
            angle, zoom = torch.rand(2, copies, generator=generator) * 2 - 1
            images = turned(images, angle * math.radians(config.rotate), (zoom * config.zoom).exp())
        if config.margin:
            tops, lefts = (torch.randint(0, side - 31, (copies,), generator=generator) for _ in range(2))
            images = torch.stack([x[:, t : t + 32, c : c + 32] for x, t, c in zip(images, tops, lefts, strict=True)])
        if config.color_shift:
            shift, spread = (torch.rand(2, copies, 3, 1, 1, generator=generator) * 2 - 1) * config.color_shift
            images = (images - shift) / spread.exp()
        noise = torch.randn(copies, 3, 32, 32, generator=generator)
        images = images + config.noise * (1 - step / config.steps) * noise
        if config.jitter:
            dy, dx = torch.randint(-config.jitter, config.jitter + 1, (2,), generator=generator).tolist()
            images = torch.roll(images, (dy, dx), (2, 3))
        looked_at = images
        if config.contrast:
            looked_at = drawn_apart(images, config.contrast, torch.rand(copies, generator=generator))
        with reading(view, layer) as seen:
            act, pre = read(view, seen, looked_at, index, token)
        scores.append(act.mean().item())
        dead_steps += scores[-1] <= 0
        target = pre.mean() if config.revive and scores[-1] <= 0 else act.mean()
        (gradient,) = torch.autograd.grad(smoothness * roughness(images) - target, params)
        rate = config.learning_rate * (1 + math.cos(math.pi * step / config.steps)) / 2
        mean = config.beta1 * mean + (1 - config.beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient**2
        mean_now, square_now = mean / (1 - config.beta1 ** (step + 1)), square / (1 - config.beta2 ** (step + 1))
        with torch.no_grad():
            params -= rate * mean_now / (square_now.sqrt() + 1e-8)
            if config.canvas == "pixels":
                params.clamp_(0, 1)
            inner = slice(config.margin, side - config.margin)
            shown = canvas()[:, inner, inner].clone()
            pictures.append(drawn_apart(shown[None], config.contrast)[0] if config.contrast else shown)
    return pictures, scores, dead_steps


def made_late(tiny_folder, token=None):
    """A ViT whose feature 1.mlp_act:5 is dead on gray noise, but not far from firing."""
    view = load_model(str(tiny_folder("vit")), device="cpu")
    with torch.no_grad():
        fc1 = view.module.vit.layers[1].mlp.fc1
        fc1.bias[5] = 0
        with reading(view, 1) as seen:
            gray = 0.5 + 0.1 * torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            fc1.bias[5] = -0.1 - read(view, seen, gray, 5, token)[1].mean()
    return view


@pytest.fixture(scope="module")
def late(tiny_folder):
    return made_late(tiny_folder)


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("paper", {}),
        ("paper-clip", {}),
        ("paper", {"smoothness": "auto", "copies": 3, "seed": 5}),
        ("fourier", {}),
        ("fast", {"steps": 8}),
        ("fast", {"steps": 5, "revive": False, "jitter": 6}),
        ("fast", {"steps": 8, "contrast": 0.0}),
    ],
)
def test_a_picture_is_its_recipe_written_out_in_plain_torch(preset, changes, late):
    config = VisualizeConfig.preset(preset, **{"steps": 3, **changes})

    found = list(visualize_steps(late, ["1.mlp_act:5"], config))

    pictures, scores, dead_steps = written_out(late, 1, 5, config)
    for step, picture, score in zip(found, pictures, scores, strict=True):
        assert float(step.scores[0]) == pytest.approx(score, abs=1e-5)
        # Where a gradient is nearly 0, Adam makes a step of it whose sign is chance.
        assert ((step.pixels[0] - picture).abs() < 1e-3).float().mean() > 0.999
        torch.testing.assert_close(step.pixels[0].mean(), picture.mean(), atol=1e-4, rtol=0)
    assert int(found[-1].dead_steps[0]) == dead_steps
    if preset == "fast" and "revive" not in changes:
        assert 0 < dead_steps < config.steps


@pytest.mark.parametrize(("at", "token"), [("@cls", 0), ("@1,3", 1 + 1 * 4 + 3)])
@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_a_picture_at_a_token_is_its_recipe_written_out_in_plain_torch(preset, at, token, tiny_folder):
    view, config = made_late(tiny_folder, token), VisualizeConfig.preset(preset, steps=8 if preset == "fast" else 3)

    found = list(visualize_steps(view, [f"1.mlp_act:5{at}"], config))

    pictures, scores, dead_steps = written_out(view, 1, 5, config, token, at)
    for step, picture, score in zip(found, pictures, scores, strict=True):
        assert float(step.scores[0]) == pytest.approx(score, abs=1e-4)
        assert ((step.pixels[0] - picture).abs() < 1e-3).float().mean() > 0.99
    assert int(found[-1].dead_steps[0]) == dead_steps
    if preset == "fast":
        assert 0 < dead_steps < config.steps


@pytest.mark.parametrize("address", ["0.mlp_act:1", "2.attn_q:3", "logit:1"])
def test_automatic_smoothness_is_its_rule_written_out(address, vit):
    objective = to_objective(address)
    target = objective.terms[0][1]
    site = None if isinstance(target, Logit) else target.site
    generator = generator_of(f"0 {site}")
    start = torch.rand(4, 3, 32, 32, generator=generator).requires_grad_()
    layers = vit.module.vit.layers
    with reading(vit, 0) as seen:
        hook = layers[2].attention.q_proj.register_forward_hook(lambda _, __, out: seen.update(query=out))
        logits = vit.module((start - 0.5) / 0.5).logits
        hook.remove()
    by_address = {"0": lambda: seen["pre"][:, 1:].mean(1), "2": lambda: seen["query"][:, 1:].mean(1)}
    values = by_address.get(address[0], lambda: logits)()
    probes = torch.randn(values.shape, generator=generator)
    (signal,) = torch.autograd.grad((values * probes).sum(), start)
    (rough,) = torch.autograd.grad(sum(roughness(x[None]) for x in start), start)

    found = automatic_smoothness(vit, site, 3.0)

    assert found == pytest.approx(3 * float(signal.norm() / math.sqrt(values.shape[1]) / rough.norm()), rel=1e-4)


def test_transfer_is_scored_on_eight_fixed_turns_zooms_and_blurs(vit):
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    objectives = [to_objective("1.mlp_act:5"), to_objective("1.mlp_act:9")]

    found = transfer_scores(vit, objectives, pixels)

    angle, zoom = torch.rand(2, 8, generator=generator_of("0 transfer")) * 2 - 1
    weights = torch.exp(-(torch.arange(-2.0, 3) ** 2) / 2)
    kernel = (weights[:, None] * weights / weights.sum() ** 2).expand(3, 1, 5, 5)
    for n, index in enumerate((5, 9)):
        images = turned(pixels[n].expand(8, -1, -1, -1), angle * math.radians(20), (0.25 * zoom).exp())
        blurred = functional.conv2d(functional.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
        with torch.no_grad(), reading(vit, 1) as seen:
            expected = read(vit, seen, blurred, index)[0].mean()
        assert float(found[n]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_the_loop_runs_on_a_device_that_is_never_waited_for(preset, tiny_folder):
    """The meta device holds no values: a draw on it, or a number read from it, fails."""
    view = load_model(str(tiny_folder("vit")), device="cpu")
    view = replace(view, module=view.module.to("meta"))
    config = VisualizeConfig.preset(preset, steps=2, copies=2, jitter=3, color_shift=0.5, smoothness=0.1)

    steps = list(visualize_steps(view, ["1.mlp_act:5", "1.mlp_act:6", "2.attn_q:1 - logit:1"], config))

    assert [s.pixels.device.type for s in steps] == ["meta"] * 2 and steps[1].pixels.shape == (3, 3, 32, 32)


def test_a_device_beside_the_cpu_scores_pictures_of_a_site_in_one_pass(tiny_folder):
    view = load_model(str(tiny_folder("vit")), device="cpu")
    view = replace(view, module=view.module.to("meta"))
    passes, objectives = [], [to_objective(a) for a in ("1.mlp_act:5", "2.attn_q:1", "1.mlp_act:6")]
    hook = view.module.vit.embeddings.register_forward_hook(lambda _, __, out: passes.append(len(out)))

    scores = transfer_scores(view, objectives, torch.rand(3, 3, 32, 32, device="meta"))

    hook.remove()
    assert passes == [16, 8] and scores.shape == (3,)


# Presets


def test_presets_are_one_list():
    assert get_args(PresetName) == tuple(PRESETS)


def test_the_paper_preset_for_clip_learns_faster_and_is_smoother():
    paper, clip = (VisualizeConfig.preset(name).to_dict() for name in ("paper", "paper-clip"))

    assert paper["smoothness"] == pytest.approx(8 * 5e-4)
    assert clip == paper | {"learning_rate": 1.0, "smoothness": pytest.approx(100 * 8 * 5e-4)}


# Dead pictures


def _picture(score, objective, dead_steps=0, steps=4):
    recipe = {"objective": objective, "score": score, "config": {"steps": steps}, "dead_steps": dead_steps}
    return recipes.Visualization(
        pixels=torch.zeros(3, 8, 8), score=score, transfer_score=0.0, dead_steps=dead_steps, recipe=recipe
    )


def test_a_picture_is_alive_if_its_feature_fires_on_it_at_the_end():
    feature = [{"weight": 1.0, "target": "1.mlp_act:5"}]

    assert not _picture(-0.01, feature, dead_steps=3).alive  # it fired in one step of four
    assert _picture(0.01, feature, dead_steps=4).alive
    assert not _picture(0.0, feature).alive and not _picture(float("nan"), feature).alive
    assert "does not fire" in describe(_picture(-0.01, feature))
    assert "does not fire" not in describe(_picture(0.01, feature))


@pytest.mark.parametrize(
    ("objective", "alive"),
    [
        ("1.attn_q:3", False),
        ("1.mlp_act:5 + 0.5*2.resid:1", False),
        ("-1.mlp_act:5", True),
        ("logit:2", True),
        ("1.mlp_act:5 - 2.resid:1", True),
        (Direction(Site(1, "resid"), (1.0,) * 32), False),
    ],
    ids=str,
)
def test_only_sums_of_features_and_directions_can_be_dead(objective, alive, vit):
    recipe = visualize(vit, [objective], QUICK)[0].recipe

    assert recipes.is_alive({**recipe, "score": -1.0}) == alive
    assert recipes.is_alive({**recipe, "score": 1.0})


# The JSON form


def test_an_objective_in_a_recipe_is_as_it_always_was_and_comes_back_the_same():
    direction = Direction(Site(1, "resid"), (0.5, -2.0), "up")
    objective = parse_objective("1.mlp_act:5 - 0.5*2.attn_q:3 + 2*logit:1") + to_objective(direction)
    text = (
        '[{"weight": 1.0, "target": "1.mlp_act:5"}, {"weight": -0.5, "target": "2.attn_q:3"}, '
        '{"weight": 2.0, "target": "logit:1"}, '
        '{"weight": 1.0, "site": "1.resid", "float32": "AAAAPwAAAMA=", "name": "up"}]'
    )

    assert json.dumps(objective.to_json()) == text
    assert Objective.from_json(json.loads(text)) == objective


def test_an_address_is_parsed_once_on_its_way_to_the_picture(vit, tmp_path, monkeypatch):
    parsed, parse = [], objectives.parse_feature
    monkeypatch.setattr(objectives, "parse_feature", lambda text, kinds: parsed.append(text) or parse(text, kinds))

    visualize(vit, ["1.mlp_act:5"], QUICK)[0].save(tmp_path / "a.png")

    assert parsed == ["1.mlp_act:5"]


# Replaying


def saved(path, recipe):
    info = PngInfo()
    info.add_text("vitviz", json.dumps(recipe))
    Image.new("RGB", (32, 32), "gray").save(path, pnginfo=info)
    return path


@pytest.fixture
def recipe(vit):
    return visualize(vit, ["1.mlp_act:5"], QUICK)[0].recipe


def test_a_replay_has_the_dtype_of_the_recipe_whatever_view_is_at_hand(vit, tiny_folder, tmp_path):
    half = load_model(str(tiny_folder("vit")), device="cpu", dtype=torch.bfloat16)
    made = visualize(half, ["1.mlp_act:5"], QUICK)[0]
    made.save(tmp_path / "a.png")
    assert not torch.equal(made.pixels, visualize(vit, ["1.mlp_act:5"], QUICK)[0].pixels)

    for view in (None, vit, half):
        again = replay(tmp_path / "a.png", view)
        assert again.recipe["dtype"] == "bfloat16" and torch.equal(again.pixels, made.pixels)


def test_a_fitting_view_saves_loading(vit, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(replaying, "load_model", lambda *_: pytest.fail("the model was loaded again"))

    assert replay(saved(tmp_path / "a.png", recipe), vit).score == recipe["score"]


def test_a_recipe_of_a_missing_device_is_followed_with_a_warning(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(replaying, "best_device", lambda: torch.device("cpu"))
    path = saved(tmp_path / "a.png", {**recipe, "device": "cuda"})

    with pytest.warns(
        replaying.ReplayWarning, match="'cuda', which is not here: it is made again on 'cpu' from the same"
    ):
        assert replay(path).score == recipe["score"]
    assert main(["replay", str(path)]) == 0
    told = capsys.readouterr()
    assert "which is not here" in told.err and "Warning" not in told.err
    assert "largest difference" in told.out and ", mean " in told.out


def test_a_recipe_whose_draws_were_the_devices_says_that_the_picture_will_be_another(recipe, tmp_path):
    old = {k: v for k, v in recipe.items() if k != "draws"}

    with pytest.warns(replaying.ReplayWarning, match="earlier version, which drew its random numbers on 'cuda'"):
        replay(saved(tmp_path / "a.png", {**old, "device": "cuda"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replay(saved(tmp_path / "b.png", old)).score == recipe["score"]


def test_a_recipe_of_the_cpu_is_followed_on_the_cpu_though_there_is_a_better_device(recipe, tmp_path, monkeypatch):
    asked = []
    load = replaying.load_model
    monkeypatch.setattr(recipes, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(replaying, "load_model", lambda *args: asked.append(args) or load(*args))

    replay(saved(tmp_path / "a.png", recipe))

    assert asked[0][2:] == (torch.device("cpu"), torch.float32)


def test_a_picture_in_bfloat16_is_made_again_in_it_and_a_processor_without_says_that_it_differs(
    vit, tmp_path, monkeypatch
):
    made = visualize(vit, ["1.mlp_act:5"], VisualizeConfig.preset("fast", steps=3, precision="bfloat16"))[0]
    made.save(tmp_path / "a.png")

    with pytest.warns(replaying.ReplayWarning, match="bfloat16, which this processor has no instructions for"):
        again = replay(tmp_path / "a.png", vit)
    assert torch.equal(again.pixels, made.pixels)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replay(tmp_path / "a.png", vit).recipe == made.recipe


def test_what_a_replay_will_differ_by_is_told_by_device_and_precision(monkeypatch):
    monkeypatch.setattr(recipes, "best_device", lambda: torch.device("cuda"))
    looks, rounding = "looks different, since rounding in bfloat16 grows", "differs by rounding"
    for device, config, able, told in (
        ("cpu", {"precision": "float32"}, False, None),
        ("cpu", {"precision": "bfloat16"}, False, looks),
        ("cpu", {"autocast": True}, False, looks),
        ("cpu", {"autocast": False}, False, None),
        ("cpu", {"precision": "bfloat16"}, True, None),
        ("cuda", {"precision": "bfloat16"}, False, None),
        ("mps", {"precision": "bfloat16"}, True, looks),
        ("mps", {"precision": "float32"}, True, rounding),
        ("cpu", ["no options"], False, None),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able})
        found = recipes.expected_difference({"device": device, "draws": "cpu", "config": config})
        assert (told in found) if told else found is None, (device, config, able)


def test_an_old_recipe_without_the_newer_options_gives_the_picture_that_it_gave(vit, tmp_path, monkeypatch):
    old = VisualizeConfig.preset("fast", steps=3, copies=2, margin=4, contrast=0.0)
    made = visualize(vit, ["1.mlp_act:5"], old)[0]
    newer = ("contrast", "align", "keep")
    recipe = {**made.recipe, "config": {k: v for k, v in made.recipe["config"].items() if k not in newer}}
    monkeypatch.setattr(transforms, "stretch", lambda *_: pytest.fail("an old picture has the contrast that it has"))

    again = replay(saved(tmp_path / "a.png", recipe), vit)

    assert torch.equal(again.pixels, made.pixels) and again.recipe == made.recipe
    picture, _, _ = written_out(vit, 1, 5, old)
    torch.testing.assert_close(again.pixels, picture[-1], atol=1e-4, rtol=0)


def test_an_unknown_dtype_is_refused(recipe, tmp_path):
    with pytest.raises(RecipeError, match="incomplete or damaged"):
        replay(saved(tmp_path / "a.png", {**recipe, "dtype": "int4"}))


def test_the_command_says_how_far_the_pictures_are_apart(recipe, tmp_path, capsys, vit):
    again = visualize(vit, ["1.mlp_act:5"], QUICK)[0]
    again.save(tmp_path / "same.png")
    apart = np.abs(np.asarray(again.image, dtype=int) - 128)

    assert main(["replay", str(tmp_path / "same.png")]) == 0
    assert capsys.readouterr().out.startswith("identical; score")
    assert main(["replay", str(saved(tmp_path / "gray.png", recipe))]) == 0
    assert f"largest difference {apart.max()} of 255, mean {apart.mean():.2g}; score" in capsys.readouterr().out
    small = saved(tmp_path / "small.png", recipe)
    info = PngInfo()
    info.add_text("vitviz", json.dumps(recipe))
    Image.new("RGB", (16, 8)).save(small, pnginfo=info)
    assert main(["replay", str(small)]) == 0
    assert "of another size: 16x8, now 32x32" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"stopped_after": math.inf},
        {"input_size": [math.inf, 32]},
        {"objective": [{"weight": 10**400, "target": "1.mlp_act:5"}]},
        {"control": "random-weights, seed x"},
    ],
)
def test_numbers_that_are_none_are_refused(change, vit, recipe, tmp_path):
    with pytest.raises(RecipeError, match="incomplete or damaged"):
        replay(saved(tmp_path / "a.png", recipe | change), vit)


def test_a_recipe_that_is_nested_without_end_is_refused(tmp_path):
    info = PngInfo()
    info.add_text("vitviz", '{"a":' * 100_000)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png", pnginfo=info)

    with pytest.raises(RecipeError, match="carries no vitviz recipe"):
        replay(tmp_path / "a.png")


@pytest.mark.parametrize("score", [None, "0.5", []])
def test_a_recipe_without_a_score_is_followed(score, recipe, tmp_path, capsys):
    assert main(["replay", str(saved(tmp_path / "a.png", recipe | {"score": score}))]) == 0
    assert "was not told" in capsys.readouterr().out
