"""What recording returns knows which tokens are patches and where they lie."""

import numpy as np
import pytest
import torch

from vitviz_hf import Site, activation_map, activations, parse_feature
from vitviz_hf.errors import ConfigError, FeatureError, SiteError
from vitviz_hf.models.measure import Tap
from vitviz_hf.models.view import list_sites
from vitviz_hf.reading.recording import Acts, record_with_logits

SITE = Site(1, "mlp_act")


def made(n_prefix=2, grid=(2, 3), size=5, batch=4):
    values = torch.randn(batch, n_prefix + grid[0] * grid[1], size, generator=torch.Generator().manual_seed(0))
    return Acts(values, Tap("block", "input", size, grid, n_prefix), SITE)


def test_prefix_and_patches_are_all_tokens_in_order():
    acts = made()

    assert acts.prefix.shape == (4, 2, 5) and acts.patches.shape == (4, 6, 5)
    assert torch.equal(torch.cat([acts.prefix, acts.patches], 1), acts.values)


def test_a_map_has_the_patches_row_by_row():
    acts = made()

    found = acts.map(3)

    assert found.shape == (4, 2, 3)
    for row in range(2):
        for col in range(3):
            assert torch.equal(found[:, row, col], acts.values[:, 2 + 3 * row + col, 3])
            assert torch.equal(acts.at((row, col)), acts.values[:, 2 + 3 * row + col])


def test_scores_are_means_or_maxima_over_patches_alone():
    acts = made()
    acts.values[:, :2] = 100

    torch.testing.assert_close(acts.scores(), acts.values[:, 2:].mean(1))
    assert torch.equal(acts.scores("max"), acts.values[:, 2:].amax(1))


def test_what_is_not_there_is_told():
    acts = made()

    with pytest.raises(FeatureError, match=r"^'1\.mlp_act' has 5 features \(0-4\); got 5\.$"):
        acts.map(5)
    with pytest.raises(FeatureError, match=r"has 5 features \(0-4\); got 4000"):
        activation_map(acts, parse_feature("1.mlp_act:4000"))
    for patch in ((2, 0), (0, 3), (-1, 0)):
        with pytest.raises(ConfigError, match=r"is outside the grid of 2 rows \(0-1\) and 3 columns"):
            acts.at(patch)


def test_a_map_of_another_sites_values_is_refused():
    with pytest.raises(SiteError, match=r"the values are of '1\.mlp_act'; got '2\.mlp_act:3'"):
        activation_map(made(), parse_feature("2.mlp_act:3"))


def test_scores_are_float32_whatever_the_values_are_in():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        acts = Acts((made().values / 7).to(dtype), made().tap, SITE)
        exact = acts.patches.double().numpy()

        for reduce, expected in (("mean", exact.mean(1)), ("max", exact.max(1))):
            scores = acts.scores(reduce)
            assert scores.dtype == torch.float32
            np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-7)
        assert acts.in_float32().values.dtype == torch.float32 and acts.in_float32().tap is acts.tap


def test_every_site_comes_with_its_own_tap(view):
    pixels = torch.rand(2, 3, *view.input_size, generator=torch.Generator().manual_seed(0))
    sites = list_sites(view)

    found = activations(view, pixels, [s for s, _ in sites])

    for site, size in sites:
        acts = found[site]
        assert acts.site == site and acts.tap is view.layers[site.layer].taps[site.kind]
        assert acts.map(size - 1).shape == (2, *acts.tap.patch_grid) and acts.prefix.shape[1] == acts.tap.n_prefix


def test_values_beside_logits_are_those_without(vit):
    pixels = torch.rand(2, 3, *vit.input_size, generator=torch.Generator().manual_seed(0)).requires_grad_(True)

    acts, logits = record_with_logits(vit, pixels, [SITE])

    torch.testing.assert_close(acts[SITE].values, activations(vit, pixels, [SITE])[SITE].values)
    (gradient,) = torch.autograd.grad(acts[SITE].scores().sum() + logits.sum(), pixels)
    assert gradient.abs().sum() > 0


def test_one_token_is_a_patch_or_the_first_prefix_token():
    acts = made()

    assert torch.equal(acts.at("cls"), acts.values[:, 0])
    with pytest.raises(
        ConfigError, match=r"^'1\.mlp_act' has no class token, only the patches of a grid of 2 rows and 3"
    ):
        made(n_prefix=0).at("cls")
