import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.tiny_models import FAMILIES
from vitviz_hf import (
    Direction,
    Logit,
    Objective,
    VisualizeConfig,
    activations,
    at_size,
    guide_by_images,
    guide_by_photograph,
    load_model,
    parse_feature,
    parse_objective,
    replay,
    visualize,
    visualize_steps,
)
from vitviz_hf.errors import ConfigError, FeatureError, OutputExistsError, RecipeError, SiteError
from vitviz_hf.optimize import transforms
from vitviz_hf.optimize.canvas import fourier_canvas, pixel_canvas
from vitviz_hf.optimize.config import PRESETS
from vitviz_hf.optimize.loop import finish, seeded_steps
from vitviz_hf.optimize.objectives import can_revive, to_objective
from vitviz_hf.optimize.penalties import automatic_smoothness, total_variation
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.optimize.scores import score_pixels
from vitviz_hf.sites import Site

QUICK = VisualizeConfig.preset("fast", steps=6, copies=2, margin=4)


def seeded(n, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def guides_for(view, addresses, config):
    """Of noise, other images for each address; none where the options use none."""
    size = (3, *view.input_size)
    guides = []
    for i, address in enumerate(addresses):
        noise = torch.rand(40, *size, generator=torch.Generator().manual_seed(i))
        scores = score_pixels(view, [to_objective(address, view.kinds)], noise[None])[0]
        images = noise[scores.argsort(descending=True)[:3]]
        if config.align:
            guides.append(guide_by_images(view, address, images))
        elif config.keep:
            guides.append(guide_by_photograph(view, address, images[0]))
    return guides


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_rises_in_three_steps_for_every_family(family, tiny_view):
    view = tiny_view(family)
    last = len(view.layers) - 1
    still = {"rotate": 0.0, "zoom": 0.0, "noise": 0.0, "smoothness": 0.0, "margin": 0, "revive": False, "contrast": 0.0}
    config = VisualizeConfig.preset("fourier", steps=3, copies=1, learning_rate=0.01, **still)

    for address in ("1.mlp_act:5", f"{last}.resid:3"):
        first, *_, final = visualize_steps(view, [address], config)
        objective = [to_objective(address)]

        before, after = (score_pixels(view, objective, s.pixels[:, None]) for s in (first, final))
        assert after > before, address
        assert final.pixels.shape == (1, 3, *view.input_size)
        assert final.pixels.min() >= 0 and final.pixels.max() <= 1


@pytest.mark.parametrize("kind", ["attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_out", "resid"])
def test_every_kind_can_be_optimized(kind, vit):
    steps = list(visualize_steps(vit, [f"1.{kind}:3"], VisualizeConfig.preset("fast", steps=20, margin=4)))

    assert steps[-1].scores[0] > steps[0].scores[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_features_in_a_batch_get_the_picture_they_get_alone(preset, vit):
    config = VisualizeConfig.preset(preset, steps=5, copies=2, jitter=3, seed=4)
    addresses = ["1.mlp_act:5", "1.mlp_act:6", "2.attn_q:1", "1.mlp_act:5 - 2.resid:3"]
    guides = guides_for(vit, addresses, config)

    together = visualize(vit, addresses, config, guides)

    for i, (address, result) in enumerate(zip(addresses, together, strict=True)):
        alone = visualize(vit, [address], config, guides[i : i + 1])[0]
        torch.testing.assert_close(result.pixels, alone.pixels, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_each_seed_of_a_batch_gives_the_picture_and_the_recipe_that_it_gives_alone(preset, vit):
    config, wanted = VisualizeConfig.preset(preset, steps=6, copies=2, seed=4), to_objective("1.mlp_act:3")
    seeds = [4, 9, 2**53]
    *_, last = seeded_steps(vit, [wanted] * 3, config, seeds)

    together = finish(vit, [wanted] * 3, config, last, seeds)

    for seed, result in zip(seeds, together, strict=True):
        alone = visualize(vit, [wanted], replace(config, seed=seed))[0]
        torch.testing.assert_close(result.pixels, alone.pixels, rtol=1e-3, atol=1e-4)
        assert result.recipe["config"] == alone.recipe["config"]
        assert result.score == pytest.approx(alone.score, rel=1e-3)
    assert (together[0].pixels - together[1].pixels).abs().max() > 0.05


def test_the_batch_limit_does_not_change_the_pictures(vit):
    addresses = ["1.mlp_act:5", "1.mlp_act:6", "1.mlp_act:7"]
    large, small = (VisualizeConfig.preset("fast", steps=4, batch=n) for n in (64, 2))

    for a, b in zip(visualize(vit, addresses, large), visualize(vit, addresses, small), strict=True):
        torch.testing.assert_close(a.pixels, b.pixels, rtol=1e-3, atol=1e-4)


def test_the_seed_decides_the_picture(vit):
    a, b = (visualize(vit, ["1.mlp_act:5"], QUICK)[0].pixels for _ in range(2))
    other = visualize(vit, ["1.mlp_act:5"], VisualizeConfig.from_dict({**QUICK.to_dict(), "seed": 1}))[0].pixels

    assert torch.equal(a, b)
    assert not torch.allclose(a, other, atol=0.01)


def test_an_abandoned_run_leaves_the_model_as_it_was(vit):
    def state():
        modules = list(vit.module.modules())
        return (
            sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules),
            [m.training for m in modules],
            [(p.requires_grad, p.grad) for p in vit.module.parameters()],
        )

    before = state()
    steps = visualize_steps(vit, ["1.mlp_act:5"], QUICK)
    next(steps)
    next(steps)

    assert state() == before


def test_gradients_stay_on_even_if_the_caller_turned_them_off(vit):
    with torch.no_grad():
        scores = [s.scores[0] for s in visualize_steps(vit, ["1.mlp_act:5"], QUICK)]

    assert scores[-1] > scores[0]


def test_the_score_is_the_mean_over_patches_of_the_picture(vit):
    feature = parse_feature("1.mlp_act:5")

    result = visualize(vit, [feature], QUICK)[0]

    acts = activations(vit, result.pixels[None], [feature.site])[feature.site]
    assert result.score == pytest.approx(acts.values[0, 1:, 5].mean().item(), abs=1e-5)


def test_an_objective_is_the_weighted_sum_of_its_targets(vit):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    direction = Direction(Site(2, "resid"), tuple(vector.tolist()))
    objective = parse_objective("1.mlp_act:5 - 0.5*2.attn_q:3 + 2*logit:1") + to_objective(direction)
    images = torch.rand(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    value = score_pixels(vit, [objective], images)

    acts = activations(vit, images[0], ["1.mlp_act", "2.attn_q", "2.resid"])
    acts = {site: found.values for site, found in acts.items()}
    with torch.no_grad():
        logits = vit.module((images[0] - 0.5) / 0.5).logits
    expected = (
        acts[Site(1, "mlp_act")][:, 1:, 5].mean(1)
        - 0.5 * acts[Site(2, "attn_q")][:, 1:, 3].mean(1)
        + 2 * logits[:, 1]
        + (acts[Site(2, "resid")][:, 1:] @ vector).mean(1)
    )
    torch.testing.assert_close(value[0], expected, rtol=1e-4, atol=1e-4)


def test_minimizing_lowers_the_activation(vit):
    config = VisualizeConfig.preset("fast", steps=20, margin=4)
    low, high = (visualize(vit, [o], config)[0] for o in ("-2.resid:3", "2.resid:3"))

    assert -low.score < high.score


def test_a_class_logit_rises(vit):
    steps = list(visualize_steps(vit, [Logit(2)], VisualizeConfig.preset("fast", steps=20, margin=4)))

    assert steps[-1].scores[0] > steps[0].scores[0]


@given(
    st.lists(
        st.tuples(st.sampled_from([1.0, -1.0, 0.5, -2.0]), st.sampled_from(["5.mlp_act:10", "0.attn_q:1", "logit:3"])),
        min_size=1,
        max_size=4,
    )
)
def test_objectives_are_read_back_from_their_text(terms):
    objective = parse_objective(" + ".join(f"{a}" for _, a in terms))
    weighted = Objective(tuple((w, t) for (w, _), (_, t) in zip(terms, objective.terms, strict=True)))

    assert parse_objective(str(weighted)) == weighted


@pytest.mark.parametrize(
    "text", ["", "5.mlp_act", "5.mlp_act:1 5.mlp_act:2", "x*5.mlp_act:1", "5.mlp_act:1 -", "- -5.mlp_act:1"]
)
def test_malformed_objectives_are_refused(text):
    with pytest.raises(ConfigError, match="is not an objective; write"):
        parse_objective(text)


def test_a_missing_feature_is_refused_before_anything_runs(vit):
    with pytest.raises(FeatureError, match="has 64 features"):
        next(visualize_steps(vit, ["1.mlp_act:64"], QUICK))
    with pytest.raises(SiteError, match="unknown kind"):
        next(visualize_steps(vit, ["1.neuron:3"], QUICK))


def test_logits_need_a_classifier(tiny_view):
    with pytest.raises(FeatureError, match="has no classifier"):
        next(visualize_steps(tiny_view("dinov2"), ["logit:3"], QUICK))


def dead_view(tiny_folder):
    """A ViT whose feature 1.mlp_act:5 sits far below zero on noise, where GELU is flat."""
    view = load_model(str(tiny_folder("vit")), device="cpu")
    with torch.no_grad():
        up = view.module.get_submodule(view.layers[1].taps["mlp_in"].module)
        up.weight[5] *= 4
        up.bias[5] = -7.0
    return view


def test_a_dead_feature_comes_alive_with_revive_and_stays_dead_without(tiny_folder):
    view = dead_view(tiny_folder)
    options = {"steps": 250, "copies": 1, "margin": 0, "smoothness": 0.0, "learning_rate": 0.3}

    revived = visualize(view, ["1.mlp_act:5"], VisualizeConfig.preset("fast", **options))[0]
    pure = visualize(view, ["1.mlp_act:5"], VisualizeConfig.preset("fast", **options, revive=False))[0]

    assert revived.alive and revived.score > 0.1
    assert 0 < revived.dead_steps < 250
    assert not pure.alive and pure.dead_steps == 250


def test_only_a_maximized_neuron_behind_an_ungated_activation_can_be_revived(vit, tiny_view):
    assert can_revive(vit, parse_objective("1.mlp_act:5"))
    assert not can_revive(vit, parse_objective("-1.mlp_act:5"))
    assert not can_revive(vit, parse_objective("1.mlp_in:5"))
    assert not can_revive(tiny_view("dinov2-giant"), parse_objective("1.mlp_act:5"))


def test_automatic_smoothness_follows_the_scale_of_the_site(tiny_folder):
    view = load_model(str(tiny_folder("vit")), device="cpu")
    site = Site(1, "attn_q")
    before = automatic_smoothness(view, site, 1.0)
    with torch.no_grad():
        projection = view.module.get_submodule(view.layers[1].taps["attn_q"].module)
        projection.weight *= 100
        projection.bias *= 100

    assert before > 0
    assert automatic_smoothness(view, site, 1.0) == pytest.approx(100 * before, rel=1e-3)
    assert automatic_smoothness(view, site, 2.0) == pytest.approx(200 * before, rel=1e-3)


def test_more_smoothness_gives_a_smoother_picture(vit):
    rough, smooth = (
        visualize(vit, ["1.mlp_act:5"], VisualizeConfig.preset("paper", steps=15, copies=1, smoothness=s))[0]
        for s in (0.0, 1.0)
    )

    def roughness(result):
        return total_variation(result.pixels[None, None]).item()

    assert roughness(smooth) < 0.8 * roughness(rough)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 7},
        {"copies": 3},
        {"learning_rate": 0.2},
        {"beta1": 0.1},
        {"beta2": 0.5},
        {"decay": "none"},
        {"rotate": 30.0},
        {"zoom": 0.5},
        {"color_shift": 1.0},
        {"noise": 0.9},
        {"jitter": 5},
        {"smoothness": 1.0},
        {"contrast": 0.4},
        {"auto_strength": 50.0},
        {"canvas": "pixels"},
        {"margin": 8},
        {"seed": 3},
        {"precision": "bfloat16"},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_knob_changes_the_picture(change, vit):
    before = visualize(vit, ["1.mlp_act:5"], QUICK)[0].pixels
    after = visualize(vit, ["1.mlp_act:5"], VisualizeConfig.from_dict({**QUICK.to_dict(), **change}))[0].pixels

    assert not torch.equal(before, after)


def test_noise_per_color_is_constant_over_the_picture():
    images = torch.zeros(1, 2, 3, 8, 8)

    per_color = transforms.noise(images, 0.5, "color", seeded(1))
    per_pixel = transforms.noise(images, 0.5, "pixel", seeded(1))

    assert per_color.flatten(-2).std(-1).max() == 0
    assert per_color.std() > 0
    assert per_pixel.flatten(-2).std(-1).min() > 0.2


def test_the_paper_preset_is_the_papers_recipe():
    config = VisualizeConfig.preset("paper")

    assert (config.canvas, config.steps, config.copies) == ("pixels", 400, 8)
    assert (config.learning_rate, config.beta1, config.beta2, config.decay) == (0.1, 0.5, 0.99, "cosine")
    assert (config.color_shift, config.noise, config.noise_per, config.jitter) == (1.0, 0.5, "pixel", 32)
    assert (config.rotate, config.zoom, config.margin, config.revive) == (0, 0, 0, False)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 to 10000; got 0"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"canvas": "oil"}, "canvas must be one of pixels, fourier"),
        ({"smoothness": "some"}, "smoothness must be a number from 0 to 1e\\+06 or 'auto'; got 'some'"),
        ({"noise": float("nan")}, "noise must be"),
        ({"revive": 1}, "revive must be one of True, False"),
        ({"speed": 3}, "unknown option 'speed'; options are canvas"),
    ],
)
def test_impossible_options_are_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        VisualizeConfig.preset("fast", **change)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="presets are paper, paper-clip, fourier, fast"):
        VisualizeConfig.preset("best")


def test_configs_survive_json():
    config = VisualizeConfig.preset("paper", seed=7, smoothness="auto")

    assert VisualizeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_saved_picture_is_replayed_from_its_recipe(tiny_view, tmp_path):
    view = at_size(tiny_view("vit"), (32, 48))
    direction = Direction(Site(1, "resid"), tuple(torch.randn(32).tolist()), "random")
    results = visualize(view, ["1.mlp_act:5", direction], QUICK)

    for i, result in enumerate(results):
        result.save(tmp_path / f"{i}.png")
        again = replay(tmp_path / f"{i}.png")  # loads the model by the recipe's id

        assert torch.equal(again.pixels, result.pixels)
        assert again.score == result.score
        assert np.array_equal(Image.open(tmp_path / f"{i}.png"), again.image)


def test_the_recipe_names_everything_a_stranger_needs(vit, tmp_path):
    visualize(vit, ["1.mlp_act:5"], QUICK)[0].save(tmp_path / "a.png")

    recipe = read_recipe(tmp_path / "a.png")

    assert recipe["model_id"] == vit.model_id and recipe["address"] == "1.mlp_act:5"
    assert recipe["config"] == QUICK.to_dict() | {"precision": "float32"}
    assert set(recipe["versions"]) == {"vitviz_hf", "torch", "transformers", "timm"}
    assert {"score", "transfer_score", "dead_steps", "revision", "input_size", "device"} <= set(recipe)


def test_nothing_is_overwritten(vit, tmp_path):
    result = visualize(vit, ["1.mlp_act:5"], QUICK)[0]
    result.save(tmp_path / "a.png")

    with pytest.raises(OutputExistsError, match=r"a\.png' already exists; choose another --out"):
        result.save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        result.save(tmp_path / "a.jpg")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def _with_recipe(path, recipe):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("vitviz", recipe if isinstance(recipe, str) else json.dumps(recipe))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ("not json", "carries no vitviz recipe"),
        ({"schema": 99}, "another version"),
        ({"schema": 1}, "incomplete or damaged"),
        (
            {"schema": 1, "objective": [{"weight": 1, "target": "1.mlp_act:5"}], "config": {"steps": -1}},
            "cannot be followed: steps must be",
        ),
        (
            {"schema": 1, "objective": [{"weight": 1, "site": "1.resid", "float32": "AAA", "name": "x"}], "config": {}},
            "incomplete or damaged",
        ),
    ],
)
def test_strange_recipes_are_refused(recipe, text, tmp_path):
    with pytest.raises(RecipeError, match=text):
        replay(_with_recipe(tmp_path / "a.png", recipe))


def test_a_picture_without_a_recipe_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    with pytest.raises(RecipeError, match="carries no vitviz recipe"):
        replay(tmp_path / "a.png")


def test_total_variation_is_zero_for_a_constant_and_has_no_nan_gradient():
    images = torch.full((2, 3, 3, 8, 8), 0.4, requires_grad=True)

    value = total_variation(images)
    value.sum().backward()

    assert value.tolist() == [0, 0]
    assert torch.isfinite(images.grad).all()


def test_the_gradient_of_total_variation_is_that_of_small_differences():
    images = torch.rand(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    assert torch.autograd.gradcheck(total_variation, images.requires_grad_())


def test_total_variation_equals_the_formula_written_out():
    image = torch.rand(1, 2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for copy in image[0]:
        for plane in copy:
            for dr, dc in ((0, 1), (1, 0), (1, 1), (1, -1)):
                squares = [
                    (plane[r + dr, c + dc] - plane[r, c]) ** 2
                    for r in range(5 - dr)
                    for c in range(6)
                    if 0 <= c + dc < 6
                ]
                total += float(sum(squares)) ** 0.5
    assert total_variation(image).item() == pytest.approx(total / 6, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 4))
def test_transforms_keep_shape_and_do_not_mix_pictures(seed, n, copies):
    images = torch.rand(n, copies, 3, 12, 16, generator=torch.Generator().manual_seed(seed))
    changes = [
        lambda x, g: transforms.color_shift(x, 1.0, g),
        lambda x, g: transforms.noise(x, 0.5, "pixel", g),
        lambda x, g: transforms.contrast(x, 0.4, g),
        lambda x, g: transforms.noise(x, 0.5, "color", g),
        lambda x, g: transforms.jitter(x, 5, g),
        lambda x, g: transforms.rotate_and_scale(x, 20, 0.2, g),
        lambda x, g: transforms.random_crop(x, (8, 10), g),
    ]
    for change in changes:
        together = change(images, seeded(n, seed))
        assert together.shape[:3] == images.shape[:3] and together.dtype == images.dtype
        alone = change(images[-1:], seeded(n, seed)[-1:])
        torch.testing.assert_close(together[-1:], alone)


def test_a_quarter_turn_turns_the_picture(monkeypatch):
    image = torch.zeros(1, 1, 3, 9, 9)
    image[..., 4, 8] = 1

    monkeypatch.setattr(transforms, "_uniform", lambda *_: torch.tensor([[[1.0], [0.0]]]))
    turned = transforms.rotate_and_scale(image, 90, 0.0, seeded(1))

    peak = turned[0, 0, 0].argmax().item()
    assert divmod(peak, 9) in ((0, 4), (8, 4))


def test_crops_come_from_the_picture():
    image = torch.arange(12.0 * 16).reshape(1, 1, 1, 12, 16).expand(1, 4, 3, 12, 16)

    crops = transforms.random_crop(image, (8, 10), seeded(1))

    corners = crops[0, :, 0, 0, 0].long().tolist()
    for crop, corner in zip(crops[0], corners, strict=True):
        top, left = divmod(corner, 16)
        assert torch.equal(crop, image[0, 0, :, top : top + 8, left : left + 10])


@pytest.mark.parametrize("make", [pixel_canvas, fourier_canvas])
def test_canvases_start_as_pictures_in_range(make):
    canvas = make((12, 16), seeded(2), torch.device("cpu"), [None, None])
    pixels = canvas.to_pixels(canvas.params)

    assert pixels.shape == (2, 3, 12, 16)
    assert pixels.min() >= 0 and pixels.max() <= 1
    assert not torch.equal(pixels[0], pixels[1])


@pytest.mark.slow
def test_a_feature_of_the_builtin_model_that_is_dead_in_noise_comes_alive_and_transfers(builtin):
    view = at_size(builtin, (112, 112))

    (result,) = visualize(view, ["5.mlp_act:1123"], VisualizeConfig.preset("fast"))

    assert result.alive and result.dead_steps
    assert result.score > 0.2 and result.transfer_score > 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_optimizes_with_autocast(tiny_folder):
    view = load_model(str(tiny_folder("vit")), device="cuda")
    config = VisualizeConfig.preset("fast", steps=20, margin=4)

    steps = list(visualize_steps(view, ["1.mlp_act:5"], config))

    assert steps[-1].scores[0] > steps[0].scores[0]
