"""Objectives at the class token and at single patches, against plain hooks on the model's own modules."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.optimize.test_recipe import generator_of, turned
from vitviz_hf import (
    AtToken,
    Direction,
    Objective,
    Site,
    VisualizeConfig,
    activations,
    at_size,
    parse_feature,
    parse_objective,
    replay,
    visualize,
    visualize_steps,
)
from vitviz_hf.errors import ConfigError, FeatureError, RecipeError, SiteError
from vitviz_hf.optimize.objectives import can_revive, to_objective
from vitviz_hf.optimize.penalties import automatic_smoothness
from vitviz_hf.optimize.recipe import is_alive, read_recipe, shows
from vitviz_hf.optimize.scores import Readout, score_pixels, transfer_scores
from vitviz_hf.sites import file_stem

QUICK = VisualizeConfig.preset("fast", steps=5, copies=2, margin=4)
CLS, PATCH = 0, 1 + 5 * 8 + 2
"""Among all tokens of the trained model: the class token; of its 8 x 8 patches that in row 5, column 2."""


def inputs_of(module, model, images):
    """What a module is given, [B, T, F]."""
    return _seen(module.register_forward_pre_hook, lambda _, inputs: inputs[0], model, images)


def outputs_of(module, model, images):
    """What a module returns, [B, T, F]."""
    return _seen(module.register_forward_hook, lambda _, __, output: output, model, images)


def _seen(register, take, model, images):
    seen = []
    hook = register(lambda *told: seen.append(take(*told)))
    with torch.no_grad():
        model((images - 0.5) / 0.5)
    hook.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def acts_of(view, layer, images):
    return inputs_of(view.module.vit.layers[layer].mlp.fc2, view.module, images)


def some_images(n=3, size=(64, 64)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("at", "token"), [("cls", CLS), ("5,2", PATCH)])
@pytest.mark.parametrize("layer", [1, 2])
def test_the_score_is_the_value_at_that_token(layer, at, token, trained):
    config = replace(QUICK, contrast=0.0)
    results = visualize(trained, [f"{layer}.mlp_act:9@{at}", f"{layer}.resid:7@{at}"], config)

    for result, module, read, index in zip(results, ("mlp.fc2", ""), (inputs_of, outputs_of), (9, 7), strict=True):
        own = trained.module.vit.layers[layer].get_submodule(module)
        values = read(own, trained.module, result.pixels[None])[0, :, index]
        assert result.score == pytest.approx(float(values[token]), abs=1e-4)
        turned_over = 1 + 2 * 8 + 5
        elsewhere = [*values[[token + 1, token - 1, turned_over]], values[1:].mean()]
        assert min(abs(result.score - float(v)) for v in elsewhere) > 1e-3


def test_the_transfer_score_is_of_that_token_too(trained):
    pixels = some_images(1)

    found = transfer_scores(trained, [parse_objective("2.mlp_act:5@5,2")], pixels)

    angle, zoom = torch.rand(2, 8, generator=generator_of("0 transfer")) * 2 - 1
    images = turned(pixels.expand(8, -1, -1, -1), angle * torch.pi / 9, (0.25 * zoom).exp())
    weights = torch.exp(-(torch.arange(-2.0, 3) ** 2) / 2)
    kernel = (weights[:, None] * weights / weights.sum() ** 2).expand(3, 1, 5, 5)
    padded = nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")
    blurred = nn.functional.conv2d(padded, kernel, groups=3)
    assert float(found[0]) == pytest.approx(float(acts_of(trained, 2, blurred)[:, PATCH, 5].mean()), abs=1e-5)


def test_the_class_token_is_the_first_of_several_prefix_tokens_and_patches_come_after_them(tiny_view):
    view = at_size(tiny_view("dinov2-registers"), (32, 48))
    images = some_images(2, (32, 48))
    mean, std = (torch.tensor(v)[:, None, None] for v in (view.mean, view.std))
    fc2 = view.module.get_submodule(view.layers[1].taps["mlp_act"].module)
    values = inputs_of(fc2, view.module, ((images - mean) / std) * 0.5 + 0.5)

    objectives = [parse_objective(a) for a in ("1.mlp_act:5@cls", "1.mlp_act:5@3,4")]
    found = score_pixels(view, objectives, images.expand(2, -1, -1, -1, -1))

    torch.testing.assert_close(found, torch.stack([values[:, 0, 5], values[:, 5 + 3 * 6 + 4, 5]]))


def test_tokens_means_and_directions_are_added_up(trained):
    vector = torch.randn(48, generator=torch.Generator().manual_seed(0))
    direction = AtToken(Direction(Site(2, "resid"), tuple(vector.tolist())), "cls")
    objective = parse_objective("2.mlp_act:10@cls - 0.5*2.mlp_act:3 + 2*1.mlp_act:4@5,2 + logit:1")
    objective = objective + to_objective(direction)
    images = some_images()

    found = score_pixels(trained, [objective], images[None])[0]

    second, first = acts_of(trained, 2, images), acts_of(trained, 1, images)
    resid = outputs_of(trained.module.vit.layers[2], trained.module, images)
    with torch.no_grad():
        logits = trained.module((images - 0.5) / 0.5).logits
    expected = second[:, CLS, 10] - 0.5 * second[:, 1:, 3].mean(1) + 2 * first[:, PATCH, 4]
    torch.testing.assert_close(found, expected + logits[:, 1] + resid[:, CLS] @ vector, rtol=1e-4, atol=1e-4)


def test_other_tokens_of_a_site_share_its_pass_and_each_picture_comes_out_as_alone(trained):
    texts = ["1.mlp_act:5@cls", "1.mlp_act:5@5,2", "1.mlp_act:5", "-1.mlp_act:6@0,0", "1.mlp_act:5@cls - 1.mlp_act:3"]
    passes = []
    hook = trained.module.vit.embeddings.register_forward_hook(lambda *_: passes.append(1))
    Readout(trained, [parse_objective(t) for t in texts])(some_images(10).unflatten(0, (5, 2)))
    hook.remove()

    together = visualize(trained, texts, QUICK)

    assert len(passes) == 1
    for text, result in zip(texts, together, strict=True):
        alone = visualize(trained, [text], QUICK)[0]
        # Where a gradient is nearly 0, Adam makes a step of it whose sign is chance.
        assert ((result.pixels - alone.pixels).abs() < 1e-3).float().mean() > 0.999
        assert result.score == pytest.approx(alone.score, abs=1e-3)


def test_smoothness_is_measured_at_the_token(trained):
    site = Site(1, "mlp_out")
    generator = generator_of("0 1.mlp_out")
    noise = torch.rand(4, 3, 64, 64, generator=generator).requires_grad_()
    seen = []
    hook = trained.module.vit.layers[1].mlp.fc2.register_forward_hook(lambda _, __, out: seen.append(out[:, PATCH]))
    trained.module((noise - 0.5) / 0.5)
    hook.remove()
    probes = torch.randn(4, 48, generator=generator)
    (signal,) = torch.autograd.grad((seen[0] * probes).sum(), noise)

    whole, own = (automatic_smoothness(trained, site, 1.0, token) for token in (None, (5, 2)))
    scaled = automatic_smoothness(trained, site, 1.0, "cls")

    (mean_signal,) = _mean_gradient(trained, probes)
    assert own / whole == pytest.approx(float(signal.norm() / mean_signal.norm()), rel=1e-3)
    assert own != pytest.approx(whole, rel=0.1) and scaled != pytest.approx(own, rel=0.01)


def _mean_gradient(view, probes):
    noise = torch.rand(4, 3, 64, 64, generator=generator_of("0 1.mlp_out")).requires_grad_()
    seen = []
    fc2 = view.module.vit.layers[1].mlp.fc2
    hook = fc2.register_forward_hook(lambda _, __, out: seen.append(out[:, 1:].mean(1)))
    view.module((noise - 0.5) / 0.5)
    hook.remove()
    return torch.autograd.grad((seen[0] * probes).sum(), noise)


@given(
    st.sampled_from(["5.mlp_act:10", "0.attn_q:1"]),
    st.one_of(st.just("cls"), st.tuples(st.integers(0, 9999), st.integers(0, 9999))),
)
def test_an_address_at_a_token_is_read_back(address, token):
    target = AtToken(parse_feature(address), token)

    assert parse_objective(f"-2*{target} + logit:1").terms[0] == (-2.0, target)
    assert Objective.from_json(json.loads(json.dumps(to_objective(target).to_json()))) == to_objective(target)


def test_addresses_recipes_and_file_names_tell_features_directions_and_tokens_apart():
    up = Direction(Site(1, "resid"), (0.5, -2.0), "up")
    targets = [parse_objective("1.resid:3").terms[0][1], up]
    objectives = [to_objective(t) for t in (*targets, *(AtToken(t, k) for t in targets for k in ("cls", (3, 4))))]

    assert [str(o) for o in objectives] == [
        "1.resid:3",
        "1.resid@up",
        "1.resid:3@cls",
        "1.resid:3@3,4",
        "1.resid@up@cls",
        "1.resid@up@3,4",
    ]
    assert [file_stem(o) for o in objectives][2:4] == ["1.resid-3-cls", "1.resid-3-3-4"]
    assert len({file_stem(o) for o in objectives}) == 6
    assert objectives[2].to_json() == [{"weight": 1.0, "target": "1.resid:3@cls"}]
    assert objectives[5].to_json() == [{"weight": 1.0, "site": "1.resid@3,4", "float32": "AAAAPwAAAMA=", "name": "up"}]
    for objective in objectives:
        assert Objective.from_json(json.loads(json.dumps(objective.to_json()))) == objective


def test_a_picture_at_a_token_is_replayed_bit_for_bit_and_shows_that_token_alone(trained, tmp_path):
    direction = AtToken(Direction(Site(1, "resid"), tuple(torch.randn(48).tolist()), "random"), "cls")
    results = visualize(trained, ["1.mlp_act:5@cls", "1.mlp_act:5@5,2 - 0.5*2.resid:3", direction], QUICK)

    for i, result in enumerate(results):
        result.save(tmp_path / f"{i}.png")
        again = replay(tmp_path / f"{i}.png")

        assert torch.equal(again.pixels, result.pixels) and again.score == result.score
    recipe = read_recipe(tmp_path / "0.png")
    assert recipe["address"] == "1.mlp_act:5@cls" and shows(recipe, trained, "1.mlp_act:5@cls")
    assert not shows(recipe, trained, "1.mlp_act:5") and not shows(recipe, trained, "1.mlp_act:5@0,0")


def test_a_recipe_with_a_strange_token_is_refused(trained, tmp_path):
    result = visualize(trained, ["1.mlp_act:5@cls"], QUICK)[0]
    result.recipe["objective"][0]["target"] = "1.mlp_act:5@cis"
    result.save(tmp_path / "a.png")

    with pytest.raises(RecipeError, match="cannot be followed: '@cis' is not a token"):
        replay(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.mlp_act:5@class", "'@class' is not a token; write '@cls', or '@ROW,COLUMN' of a patch such as '@3,4'"),
        ("1.mlp_act:5@3", "'@3' is not a token"),
        ("1.mlp_act:5@3,4,5", "'@3,4,5' is not a token"),
        ("1.mlp_act:5@3,99999", "'@3,99999' is not a token"),
        ("logit:1@cls", "'logit:1@cls': a class has no tokens; write 'logit:1'"),
        ("1.neuron:5@cls", "unknown kind 'neuron'"),
    ],
)
def test_what_is_no_token_is_refused(text, message):
    with pytest.raises(SiteError, match=message):
        parse_objective(f"2*1.mlp_act:3 - {text}")


def test_what_is_no_objective_is_told_the_forms():
    with pytest.raises(
        ConfigError, match=r"'5\.mlp_act:10@cls' is at the class token, '5\.mlp_act:10@3,4' at the patch"
    ):
        parse_objective("5.mlp_act@cls")


def test_a_token_that_is_not_there_is_refused_before_anything_runs(trained, tiny_view):
    with pytest.raises(ConfigError, match=r"patch 8,0 is outside the grid of 8 rows \(0-7\) .* of '1\.mlp_act'"):
        next(visualize_steps(trained, ["2.resid:1 + 1.mlp_act:5@8,0"], QUICK))
    with pytest.raises(ConfigError, match=r"patch 0,8 is outside the grid .* 8 columns \(0-7\)"):
        next(visualize_steps(trained, ["1.mlp_act:5@0,8"], QUICK))
    with pytest.raises(FeatureError, match="has 96 features"):
        next(visualize_steps(trained, ["1.mlp_act:96@cls"], QUICK))
    no_class_token = (
        r"'1\.mlp_act' has no class token, only .* grid of 4 rows and 4 columns; leave '@cls' out for their"
    )
    with pytest.raises(ConfigError, match=no_class_token):
        next(visualize_steps(tiny_view("siglip"), ["1.mlp_act:5@cls"], QUICK))


def test_layers_with_other_grids_have_other_patches(tiny_view):
    view = tiny_view("swin")
    last = len(view.layers) - 1
    first_grid, last_grid = (view.layers[i].taps["resid"].patch_grid for i in (0, last))
    assert first_grid > last_grid
    corner = "{},{}".format(*(n - 1 for n in first_grid))

    next(visualize_steps(view, [f"0.resid:3@{corner}"], QUICK))
    with pytest.raises(ConfigError, match=f"patch {corner} is outside the grid of {last_grid[0]} rows"):
        next(visualize_steps(view, [f"{last}.resid:3@{corner}"], QUICK))


def test_every_family_has_its_tokens_optimized(view):
    last = len(view.layers) - 1
    still = {"rotate": 0.0, "zoom": 0.0, "noise": 0.0, "smoothness": 0.0, "margin": 0, "revive": False, "contrast": 0.0}
    config = VisualizeConfig.preset("fourier", steps=3, copies=1, learning_rate=0.01, **still)
    tap = view.layers[last].taps["resid"]
    texts = [f"{last}.resid:3@{tap.patch_grid[0] - 1},0"] + [f"{last}.resid:3@cls"] * bool(tap.n_prefix)

    for text in texts:
        first, *_, final = visualize_steps(view, [text], config)
        before, after = (score_pixels(view, [parse_objective(text)], s.pixels[:, None]) for s in (first, final))
        assert after > before, text
    if not tap.n_prefix:
        with pytest.raises(ConfigError, match="has no class token"):
            next(visualize_steps(view, [f"{last}.resid:3@cls"], config))


@pytest.mark.parametrize("kind", ["attn_in", "attn_q", "attn_k", "attn_v"])
def test_a_class_token_that_has_seen_nothing_yet_is_refused(kind, trained):
    message = (
        rf"the class token is the same for every picture at '0\.{kind}', .* such as '0\.mlp_act', or a later layer"
    )
    with pytest.raises(ConfigError, match=message):
        next(visualize_steps(trained, [f"0.{kind}:3@cls"], QUICK))

    next(visualize_steps(trained, [f"0.{kind}:3@5,2", "0.attn_mix:3@cls", f"1.{kind}:3@cls"], QUICK))


def test_a_patch_of_the_last_layer_is_excited_by_its_surroundings_too(trained):
    pixels = some_images(1).requires_grad_(True)
    values = Readout(trained, [parse_objective("2.mlp_act:5@5,2")])(pixels[None]).values

    (gradient,) = torch.autograd.grad(values.sum(), pixels)

    strength = gradient[0].abs().sum(0).unflatten(0, (8, 8)).unflatten(2, (8, 8)).sum((1, 3))
    assert strength.argmax() == 5 * 8 + 2 and (strength > 0).all()


def test_tokens_are_revived_and_dead_as_features_are(trained, tiny_view):
    for at in ("cls", "5,2"):
        assert can_revive(trained, parse_objective(f"1.mlp_act:5@{at}"))
        assert not can_revive(trained, parse_objective(f"-1.mlp_act:5@{at}"))
        assert not can_revive(trained, parse_objective(f"1.mlp_in:5@{at}"))
        recipe = {"objective": parse_objective(f"1.mlp_act:5@{at}").to_json()}
        assert is_alive({**recipe, "score": 0.1}) and not is_alive({**recipe, "score": -0.1})
    vector = AtToken(Direction(Site(1, "mlp_act"), (1.0,) * 96), "cls")
    assert not can_revive(trained, to_objective(vector))


@pytest.mark.slow
def test_the_class_token_that_the_head_reads_is_excited_in_a_real_model(builtin):
    view = at_size(builtin, (98, 98))
    config = VisualizeConfig.preset("fast", steps=60, copies=1)

    first, *_, last = visualize_steps(view, ["11.resid:5@cls"], config)

    pixels = torch.cat([first.pixels, last.pixels])
    before, after = activations(view, pixels, ["11.resid"])[Site(11, "resid")].values[:, 0, 5].tolist()
    assert after > before + 0.2
    found = score_pixels(view, [parse_objective("11.resid:5@cls")], last.pixels[:, None])
    assert float(found) == pytest.approx(after, abs=1e-3)
