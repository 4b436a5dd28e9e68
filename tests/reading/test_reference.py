"""Reference scores and rankings of one picture when some values are not finite."""

import math
from dataclasses import replace

import pytest
import torch

from vitviz_hf import Feature, activations, load_model, reference_scores, top_features
from vitviz_hf.errors import ConfigError, ModelError
from vitviz_hf.reading.maps import unusualness
from vitviz_hf.reading.reference import best_photograph
from vitviz_hf.sites import Site
from vitviz_hf.stream import builtin_paths

SITE = Site(1, "mlp_act")


@pytest.fixture
def pixels():
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def spoiled(tiny_folder, columns):
    """A tiny ViT of its own, with a number put into columns of `1.mlp_act`."""
    view = load_model(str(tiny_folder("vit")), device="cpu")

    def spoil(_, args):
        hidden = args[0].clone()
        for index, value in columns.items():
            hidden[:, 3, index] = value
        return (hidden,)

    view.module.get_submodule(view.layers[1].taps["mlp_act"].module).register_forward_pre_hook(spoil)
    return replace(view, weights=f"spoiled {columns}")  # what is cached is by weights


@pytest.mark.parametrize("patch", [None, (0, 2)])
def test_features_without_a_finite_value_are_not_ranked(patch, tiny_folder, vit, pixels):
    view = spoiled(tiny_folder, {4: math.nan, 9: math.inf, 11: -math.inf})
    acts = activations(vit, pixels, [SITE])[SITE].values[0, 1:]
    values = (acts.mean(0) if patch is None else acts[2]).double()

    with pytest.warns(RuntimeWarning, match=r"tiny/vit' in float32 gives non-finite values at 1\.mlp_act for 3 of 64"):
        found = top_features(view, pixels, SITE, 100, patch)

    expected = [i for i in values.argsort(descending=True).tolist() if i not in (4, 9, 11)]
    assert [f.index for f, _ in found] == expected
    assert [v for _, v in found] == pytest.approx(values[expected].tolist(), abs=1e-5)


def test_a_site_without_any_finite_value_is_an_error(tiny_folder, pixels):
    with pytest.raises(
        ModelError, match=r"gives non-finite values at 1\.mlp_act for 64 of 64 features\. Check its weig"
    ):
        top_features(spoiled(tiny_folder, dict.fromkeys(range(64), math.nan)), pixels, SITE)


def test_unusualness_leaves_out_reference_images_that_are_not_finite():
    reference = torch.randn(9, 5, generator=torch.Generator().manual_seed(1)) * torch.arange(1.0, 6) + 3
    scores = torch.tensor([1.0, 4.0, -2.0, 8.0, 3.0])
    spoiled = reference.clone()
    spoiled[2, 1], spoiled[7, 4] = math.nan, math.inf

    kept = reference[[0, 1, 3, 4, 5, 6, 8]].double()
    expected = (scores - kept.mean(0)) / kept.std(0)
    torch.testing.assert_close(unusualness(scores, spoiled).double(), expected, rtol=1e-4, atol=1e-5)
    for few in (reference[:1], torch.full((4, 5), math.nan)):
        with pytest.raises(ConfigError, match="finite scores of 2 reference images or more; got"):
            unusualness(scores, few)


def test_the_best_photograph_is_among_those_with_finite_scores():
    n = len(builtin_paths())
    scores = torch.arange(float(n))[:, None] * torch.tensor([[1.0, -2.0]])
    scores[n - 1, 0], scores[0, 1] = math.nan, math.inf

    assert best_photograph({SITE: scores}, Feature(SITE, 0)) == (list(builtin_paths())[n - 2], n - 2)
    assert best_photograph({SITE: scores}, Feature(SITE, 1)) == (list(builtin_paths())[1], -2)
    with pytest.raises(ModelError, match=r"no built-in photograph has finite scores at 1\.mlp_act"):
        best_photograph({SITE: scores * math.nan}, Feature(SITE, 0))


def test_reference_scores_tell_where_they_are_not_finite(tiny_folder):
    with pytest.warns(RuntimeWarning, match=r"in float32 gives non-finite scores at 1\.mlp_act, .* on astronaut, "):
        scores = reference_scores(spoiled(tiny_folder, {4: math.nan}))

    assert scores[Site(0, "mlp_act")].isfinite().all() and scores[SITE][:, 4].isnan().all()
    broken = replace(load_model(str(tiny_folder("vit")), device="cpu"), weights="broken")
    for parameter in broken.module.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(ModelError, match="non-finite scores at every site on every built-in photograph"):
        reference_scores(broken)
