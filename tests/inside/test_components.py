"""Components against scikit-learn's, and what fixes their signs, colors and foreground."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from vitviz_hf.errors import ConfigError, NonFiniteError
from vitviz_hf.inside.components import token_components
from vitviz_hf.models.measure import Tap
from vitviz_hf.models.view import at_size
from vitviz_hf.reading.recording import Acts, activations
from vitviz_hf.sites import Site

SITE = Site(1, "resid")


def noise(view, batch=1, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


def made(values, grid, n_prefix=0):
    """Acts of values [B, T, F]."""
    return Acts(values, Tap("block", "output", values.shape[-1], grid, n_prefix), SITE)


@pytest.mark.parametrize(("batch", "size"), [(1, (32, 48)), (3, (32, 32))], ids=["fewer-patches", "more-patches"])
def test_components_are_those_of_scikit_learn(batch, size, tiny_view):
    view = at_size(tiny_view("dinov2-registers"), size)
    acts = activations(view, noise(view, batch), [SITE])[SITE]

    found = token_components(acts, 5)

    rows = acts.values[:, acts.tap.n_prefix :].flatten(0, 1).double().numpy()
    expected = PCA(5, svd_solver="full").fit(rows)
    cosines = (found.directions.numpy() * expected.components_).sum(1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-9)
    np.testing.assert_allclose(found.explained, expected.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(found.mean, expected.mean_)
    projected = expected.transform(rows).reshape(batch, *acts.tap.patch_grid, 5) * np.sign(cosines)
    np.testing.assert_allclose(found.project(acts), projected, atol=1e-9)


def test_the_foreground_is_the_side_away_from_the_border():
    values = torch.randn(1, 36, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    thing = torch.zeros(6, 6, dtype=torch.bool)
    thing[2:4, 1:4] = True
    values[0, thing.flatten(), 2] += 5

    for sign in (1, -1):
        found = token_components(made(sign * values, (6, 6)))
        assert torch.equal(found.foreground(made(sign * values, (6, 6)))[0], thing)


def test_signs_do_not_depend_on_the_sign_of_the_decomposition(monkeypatch):
    acts = made(torch.randn(1, 36, 50, generator=torch.Generator().manual_seed(1)), (4, 9))
    before = token_components(acts).directions
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: (eigh(x)[0], -eigh(x)[1]))

    after = token_components(acts).directions

    assert torch.equal(before, after)
    assert all(d[d.abs().argmax()] > 0 for d in after[1:])


def test_components_of_one_picture_are_seen_on_another():
    generator = torch.Generator().manual_seed(2)
    first, second = (made(torch.randn(1, 17, 6, generator=generator), (4, 4), 1) for _ in range(2))

    found = token_components(first)

    by_hand = (second.values[0, 1:].double() - first.values[0, 1:].double().mean(0)) @ found.directions.mT
    torch.testing.assert_close(found.project(second)[0], by_hand.view(4, 4, 3))


def test_colors_end_at_all_but_one_patch_in_a_hundred_on_each_side():
    acts = made(torch.randn(2, 100, 6, generator=torch.Generator().manual_seed(3)), (10, 10))
    found = token_components(acts)

    colors = found.paint(acts)

    assert colors.shape == (2, 10, 10, 3) and colors.dtype == torch.float32
    assert [(int((c == 0).sum()), int((c == 1).sum())) for c in colors.flatten(0, 2).T] == [(2, 2)] * 3
    values = found.project(acts)[..., 1].numpy()
    low, high = np.quantile(values, [0.01, 0.99])
    np.testing.assert_allclose(colors[..., 1], ((values - low) / (high - low)).clip(0, 1), atol=1e-6)


def test_patches_that_are_all_alike_have_no_color_and_no_foreground():
    acts = made(torch.ones(1, 16, 6), (4, 4))

    found = token_components(acts)

    assert found.explained.tolist() == [0, 0, 0]
    assert not found.paint(acts).any() and not found.foreground(acts).any()


def test_what_cannot_be_decomposed_is_told():
    acts = made(torch.ones(1, 4, 6), (2, 2))

    with pytest.raises(ConfigError, match="4 patches of 6 features do not have 4 components"):
        token_components(acts, 4)
    with pytest.raises(NonFiniteError, match=r"the values of 1.resid are NaN or infinite"):
        token_components(replace(acts, values=acts.values * torch.nan))
    with pytest.raises(ConfigError, match="takes three components; there are 2"):
        token_components(acts, 2).paint(acts)
    with pytest.raises(ConfigError, match=r"'1.resid' has 5 features; the components have 6"):
        token_components(acts).project(made(torch.ones(1, 4, 5), (2, 2)))
