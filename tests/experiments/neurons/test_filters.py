"""Filters and captions at the limits of their rules."""

import numpy as np
import pytest
import torch

from vitviz_hf import top_features
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import ViewsConfig
from vitviz_hf.experiments.neurons.filters import DARK, Filters, outshining, readable_filters
from vitviz_hf.experiments.neurons.views import check_patches, display_notes


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
