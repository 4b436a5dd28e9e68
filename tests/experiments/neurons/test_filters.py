"""Filters and captions at the limits of their rules."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from vitviz_hf import top_features
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import ViewsConfig
from vitviz_hf.experiments.neurons.filters import (
    DARK,
    Filters,
    brightness,
    filter_scores,
    global_view,
    mosaic,
    outshining,
    patch_filters,
    patch_views,
    readable_filters,
    responses,
    to_display,
    view_numbers,
)
from vitviz_hf.experiments.neurons.views import check_patches, display_notes
from vitviz_hf.reading.attention import attention_weights, joint_attention


def test_readable_filters_are_those_with_the_largest_mean_relative_to_their_size(generator):
    weight = torch.randn(6, 3, 4, 4, generator=generator) * torch.tensor([100, 1, 0.01, 1, 1, 5])[:, None, None, None]
    weight[2] += 0.01
    weight[4] += 0.5

    found = readable_filters(Filters(weight, torch.zeros(6)), 6)

    w = weight.numpy()
    shares = (abs(w.mean((2, 3))) / abs(w).mean((2, 3))).mean(1)
    assert found == np.argsort(-shares).tolist() and set(found[:2]) == {2, 4}


def test_a_view_is_nearly_black_if_more_than_half_of_it_is():
    half = torch.tensor([1.0, DARK / 2, 1.0, DARK / 2])
    most = torch.tensor([1.0, DARK / 2, DARK / 2, DARK / 2])

    assert outshining(half) == (0.0, 0)
    assert outshining(most.roll(2)) == (float(1 / most.sum()), 2)
    assert outshining(torch.zeros(4)) == (0.0, 0)


@pytest.mark.parametrize("patch", [(4, 0), (0, 6), (9, 0), (0, 9)])
def test_a_patch_beyond_the_last_row_or_column_is_told(patch):
    check_patches([(3, 5)], (4, 6))
    with pytest.raises(ConfigError, match="patch {},{} is outside the grid of 4 rows and 6 columns".format(*patch)):
        check_patches([(0, 0), patch], (4, 6))


@pytest.mark.parametrize("n", [0, 2])
def test_features_are_ranked_on_one_image_only(n, vit):
    with pytest.raises(ConfigError, match=f"takes one image; got a batch of {n}"):
        top_features(vit, torch.rand(n, 3, 32, 32), "1.mlp_act")


@pytest.mark.parametrize(("scale", "what"), [("linear", "mosaics and rows of weights is"), ("log", "mosaics is")])
def test_what_is_brightened_is_said(scale, what):
    told = display_notes(ViewsConfig(scale=scale, white=90.0), 3, "the largest")

    assert f"percentile 90 of {what} drawn white" in told[-1]
    assert len(display_notes(ViewsConfig(scale=scale, white=100.0), 3, "the largest")) == 1


def test_neurons_are_the_sums_of_views_with_bias_and_position(vit, normal):
    filters = patch_filters(vit)
    embeddings = vit.module.vit.embeddings
    tokens = embeddings(normal[None])[0]

    for k in (0, 7, 15):
        views = patch_views(filters, normal, k, list(range(32)))
        neurons = views.sum((1, 2, 3)) + filters.bias + embeddings.position_embeddings[0, 1 + k]
        torch.testing.assert_close(neurons, tokens[1 + k], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(responses(filters, normal)[k], views.sum((1, 2, 3)), atol=1e-5, rtol=1e-4)


def test_a_mosaic_is_all_views_at_their_places(vit, normal):
    filters = patch_filters(vit)

    whole = mosaic(filters, normal, 5)

    for k in range(16):
        r, c = divmod(k, 4)
        tile = whole[:, r * 8 : (r + 1) * 8, c * 8 : (c + 1) * 8]
        torch.testing.assert_close(tile, patch_views(filters, normal, k, [5])[0])
    with pytest.raises(ConfigError, match="there are 32 filters"):
        mosaic(filters, normal, 32)


def noise(view, batch=1, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


def test_global_views_equal_the_recursion_over_pictures(vit, normal):
    """V[l+1][t] = sum over tokens u of a[t, u] V[l][u], with pictures instead of weights."""
    filters, weights = patch_filters(vit), attention_weights(vit, noise(vit))[0]
    whole = mosaic(filters, normal, 3)
    blocks = torch.eye(16).reshape(16, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    pictures = torch.cat([torch.zeros(1, 3, 32, 32), blocks * whole])
    for a in weights:
        pictures = torch.einsum("tu,uchw->tchw", 0.5 * a + 0.5 * torch.eye(17), pictures)

    views = joint_attention(weights, 1).views

    for token in (0, 4, 16):
        row = views[-1, token].reshape(1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
        torch.testing.assert_close(row * whole, pictures[token], atol=1e-6, rtol=1e-5)
        shown = global_view(whole, views[-1, token], (4, 4))
        expected = (whole / whole.max()).clamp(0, 1) * row / views[-1, token].max()
        torch.testing.assert_close(shown, expected)


def test_display_is_relative_to_the_largest_and_negative_is_black(vit, normal):
    whole = mosaic(patch_filters(vit), normal, 0)

    shown = to_display(whole)

    assert shown.max() == 1 and (shown[whole <= 0] == 0).all()
    torch.testing.assert_close(shown[whole > 0], whole[whole > 0] / whole.max())
    assert to_display(-torch.ones(3, 2, 2)).sum() == 0 and global_view(whole, torch.zeros(16), (4, 4)).sum() == 0
    assert brightness(torch.arange(-5.0, 101)) == 100 and brightness(torch.arange(-5.0, 101), 50) == 50.5


def test_own_patch_stays_as_bright_while_it_weighs_most(vit, normal):
    whole = mosaic(patch_filters(vit), normal, 1)
    weights = torch.full((16,), 0.01)

    levels = []
    for own in (1.0, 0.6, 0.2):
        weights[5] = own
        levels.append(global_view(whole, weights.clone(), (4, 4))[:, 8:16, 8:16])

    assert torch.equal(levels[0], levels[1]) and torch.equal(levels[0], levels[2])


@pytest.mark.parametrize("family", ["pvt-v2", "siglip2", "levit", "resnet", "timm-xcit"])
def test_models_whose_patches_overlap_or_are_cut_elsewhere_have_no_filters(family, tiny_view):
    with pytest.raises(ConfigError, match="has no filters to show"):
        patch_filters(tiny_view(family))


def test_numbers_beside_views_are_those_of_the_rows():
    views = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.6, 0.2], [0.3, 0.3]]])

    found = view_numbers(views, 1, torch.tensor([True, False]))

    assert found["own weight"].tolist() == [[1, 1], [pytest.approx(0.6), pytest.approx(0.3)]]
    assert found["entropy"][1, 0] == pytest.approx(np.log(2)) and found["entropy"][0].tolist() == [0, 0, 0]
    cosine = (0.6 * 0.3 + 0.2 * 0.3) / np.hypot(0.6, 0.2) / np.hypot(0.3, 0.3)
    assert found["convergence"].tolist() == [0, pytest.approx(cosine)]
    assert found["object share from the object"].tolist() == [1, pytest.approx(0.75)]
    assert found["object share from elsewhere"].tolist() == [0, pytest.approx(0.5)]


def test_filters_are_ranked_by_the_area_under_the_curve(generator):
    values = torch.randn(30, 4, generator=generator)
    inside = torch.arange(30) < 11
    values[inside, 2] += 9
    values[inside, 3] -= 9

    found = filter_scores(values, inside)

    areas = [roc_auc_score(inside.numpy(), values[:, j].numpy()) for j in range(4)]
    np.testing.assert_allclose(found, [2 * abs(a - 0.5) for a in areas], atol=1e-6)
    assert found[2] == 1 and found[3] == 1


def test_without_a_mask_filters_are_ranked_by_otsu(generator):
    values = torch.randn(40, 3, generator=generator)
    values[:15, 1] += 8

    found = filter_scores(values)

    for j in range(3):
        v = values[:, j].double().numpy()
        cuts = np.sort(v)[:-1]
        between = max((v <= t).mean() * (v > t).mean() * (v[v <= t].mean() - v[v > t].mean()) ** 2 for t in cuts)
        assert found[j] == pytest.approx(between / v.var(), rel=1e-5)
    assert found[1] > 0.9 > found[0]
