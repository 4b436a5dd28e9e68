"""Changes inside a model against weights and hidden states that are changed by hand."""

import copy
import threading
from dataclasses import replace

import pytest
import torch

from tests.inside.test_components import noise
from vitviz_hf import AtToken, Direction, Site, activations, at_size, with_taps
from vitviz_hf.errors import ConfigError, FeatureError, SiteError
from vitviz_hf.inside.edits import compare_edit, edited
from vitviz_hf.models.hooks import replace_inputs_and_outputs
from vitviz_hf.models.taps import ExtraTap
from vitviz_hf.models.view import logits

RESID = Site(1, "resid")


def read(view, pixels, site=RESID):
    return activations(view, pixels, [site])[site].values


def changed(view, pixels, changes):
    with edited(view, changes):
        return logits(view, pixels)


@pytest.mark.parametrize("family", ["vit", "clip", "siglip", "dinov2-giant", "timm-vit", "swin", "convnext"])
def test_a_feature_that_is_off_is_a_column_of_zeros_in_the_last_linear(family, tiny_view):
    view = tiny_view(family)
    pixels, tap = noise(view, 2), view.layers[1].taps["mlp_act"]
    module = copy.deepcopy(view.module)
    module.get_submodule(tap.module).weight.data[:, 5] *= 3

    with edited(view, {"1.mlp_act:5": 3}):
        found = read(view, pixels)

    expected = read(replace(view, module=module), pixels)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, read(view, pixels), atol=1e-7)


@pytest.mark.parametrize("family", ["vit", "dinov2-registers", "clip", "timm-vit"])
def test_every_head_off_is_a_skipped_attention(family, tiny_view):
    view = tiny_view(family)
    pixels, tap = noise(view), view.layers[1].taps["attn_out"]
    bias = view.module.get_submodule(tap.module).bias

    with edited(view, {"1.head:0": 0, "1.head:1": 0}):
        found = read(view, pixels)

    with replace_inputs_and_outputs(view.module, {}, {tap.module: lambda x: bias.expand_as(x)}):
        torch.testing.assert_close(found, read(view, pixels))
    with edited(view, {"1.attn_out": 0}):
        skipped = read(view, pixels)
    with replace_inputs_and_outputs(view.module, {}, {tap.module: torch.zeros_like}):
        assert torch.equal(skipped, read(view, pixels))


def test_a_head_is_its_own_columns_of_the_output_projection(vit):
    pixels, tap = noise(vit), vit.layers[1].taps["attn_out"]

    with edited(vit, {"1.head:1": 0}):
        found = read(vit, pixels, Site(1, "attn_out"))

    linear, mixed = vit.module.get_submodule(tap.module), read(vit, pixels, Site(1, "attn_mix"))
    torch.testing.assert_close(found, mixed[..., :16] @ linear.weight[:, :16].T + linear.bias)


def test_a_token_of_a_grid_that_is_not_square_and_nothing_else_is_changed(vit):
    view = at_size(vit, (32, 48))
    pixels = noise(view, 2)
    before = read(view, pixels)

    with edited(view, {"1.resid@2,5": 0.5, "1.resid:3@cls": 0, "1.resid:4": 2}):
        after = read(view, pixels)

    expected = before.clone()
    expected[:, 1 + 2 * 6 + 5] *= 0.5
    expected[:, 0, 3] = 0
    expected[..., 4] *= 2
    torch.testing.assert_close(after, expected)
    assert torch.equal(read(view, pixels), before)


def test_only_the_component_along_a_direction_is_changed(vit):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(4))
    direction = Direction(RESID, tuple(vector.tolist()))
    pixels = noise(vit)
    before = read(vit, pixels)

    with edited(vit, {direction: 0}):
        off = read(vit, pixels)
    with edited(vit, {AtToken(direction, "cls"): 3}):
        up = read(vit, pixels)

    along = (before @ vector / vector.dot(vector))[..., None] * vector
    torch.testing.assert_close(off, before - along)
    torch.testing.assert_close(up[:, 0], before[:, 0] + 2 * along[:, 0])
    assert torch.equal(up[:, 1:], before[:, 1:])


def test_a_share_of_a_fused_projection_is_changed_alone(tiny_view):
    view = tiny_view("timm-vit")
    pixels = noise(view)

    with edited(view, {"1.attn_q:2": 0, "1.attn_v": 2}):
        q, k, v = (read(view, pixels, Site(1, f"attn_{x}")) for x in "qkv")

    before = [read(view, pixels, Site(1, f"attn_{x}")) for x in "qkv"]
    assert not q[..., 2].any() and torch.equal(q[..., 3:], before[0][..., 3:])
    assert torch.equal(k, before[1]) and torch.equal(v, 2 * before[2])


def test_other_threads_see_no_change_and_nothing_stays(vit):
    pixels, seen = noise(vit), []
    before = logits(vit, pixels)

    with edited(vit, {"0.attn_out": 0}):
        other = threading.Thread(target=lambda: seen.append(logits(vit, pixels)))
        other.start()
        other.join()

    assert torch.equal(seen[0], before) and torch.equal(logits(vit, pixels), before)
    assert not torch.allclose(changed(vit, pixels, {"0.attn_out": 0}), before)
    assert torch.equal(changed(vit, pixels, {"0.attn_out": 1}), before)


def test_the_effect_lists_labels_and_later_features_that_change_most(vit):
    pixels, change = noise(vit), {"1.mlp_act:7": -40.0}

    found = compare_edit(vit, pixels, change, 4)

    before, after = (logits(vit, pixels), changed(vit, pixels, change))
    for name, old, new in found.labels:
        i = vit.labels.index(name)
        assert (old, new) == pytest.approx((float(before.softmax(1)[0, i]), float(after.softmax(1)[0, i])))
    assert found.labels[0][0] == vit.labels[int(before.argmax())] and len(found.labels) == 3
    site = Site(2, "mlp_act")
    old = read(vit, pixels, site)[0, 1:].mean(0)
    with edited(vit, change):
        new = read(vit, pixels, site)[0, 1:].mean(0)
    best = (new - old).abs().topk(4).indices.tolist()
    assert [str(f) for f, _, _ in found.features] == [f"2.mlp_act:{i}" for i in best]
    listed = torch.tensor([[b, a] for _, b, a in found.features])
    torch.testing.assert_close(listed, torch.stack([old[best], new[best]], 1))
    assert compare_edit(vit, pixels, {"1.mlp_act:7": 1}).features == []


def test_models_without_a_classifier_have_no_labels(tiny_view):
    view = tiny_view("dinov2")

    assert compare_edit(view, noise(view), {"0.head:0": 0}).labels == []


def test_what_cannot_be_changed_is_told(vit, tiny_view):
    wrong = {
        "mouth": (SiteError, "'mouth' cannot be changed; write a feature such as"),
        "1.mouth:0": (SiteError, "unknown kind 'mouth'"),
        "1.head:2": (FeatureError, "has heads 0-1; got 2"),
        "1.head": (FeatureError, "has heads 0-1; got no number"),
        "1.mlp_act:64": (FeatureError, "has 64 features"),
        "9.resid": (SiteError, "has layers 0-2; got layer 9"),
        "1.resid@4,0": (ConfigError, "patch 4,0 is outside the grid"),
    }
    for place, (error, text) in wrong.items():
        with pytest.raises(error, match=text), edited(vit, {place: 0}):
            pass
    with pytest.raises(ConfigError, match=r"the factor of '1.resid' must be a finite number; got nan"):
        compare_edit(vit, noise(vit), {"1.resid": float("nan")})
    with pytest.raises(ConfigError, match="compare_edit takes one picture; got a batch of 2"):
        compare_edit(vit, noise(vit, 2), {"1.resid": 0})
    with pytest.raises(ConfigError, match=r"'0.attn_q' of .* cannot be changed: its tokens lie in windows"):
        compare_edit(tiny_view("swin"), noise(tiny_view("swin")), {"0.attn_q": 0})
    with pytest.raises(ConfigError, match="cannot be changed: its block runs several times"):
        compare_edit(
            tiny_view("timm-coat"),
            noise(tiny_view("timm-coat")),
            {f"{len(tiny_view('timm-coat').layers) - 1}.mlp_act:0": 0},
        )
    twice = with_taps(vit, {"1.twice": ExtraTap("resid", torch.nn.Linear(32, 3))})
    with pytest.raises(ConfigError, match="it is computed beside the model; change what it is computed from"):
        compare_edit(twice, noise(vit), {"1.twice:0": 0})
