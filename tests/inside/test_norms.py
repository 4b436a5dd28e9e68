"""Lengths of tokens against transformers' hidden states, and the rule that marks some."""

import numpy as np
import pytest
import torch

from tests.inside.test_components import noise
from vitviz_hf.errors import ConfigError, SiteError
from vitviz_hf.inside.norms import token_norms, without_outliers
from vitviz_hf.models.hooks import replace_inputs_and_outputs
from vitviz_hf.models.view import normalize


def test_norms_are_those_of_the_hidden_states(tiny_view):
    view = tiny_view("dinov2-registers")
    pixels = noise(view, 2)

    found = token_norms(view, pixels)

    hidden = view.module(normalize(view, pixels), output_hidden_states=True).hidden_states[1:]
    assert found.prefixes == (5, 5, 5) and len(found.norms) == 3
    for own, expected in zip(found.norms, hidden, strict=True):
        np.testing.assert_allclose(own, np.linalg.norm(expected.detach().numpy(), axis=-1), rtol=1e-5)


def test_tokens_that_are_over_three_times_the_median_patch_are_marked(vit):
    def stretch(tokens):
        tokens = tokens / tokens.norm(dim=-1, keepdim=True)
        lengths = torch.ones(2, 17, 1)
        lengths[0, 0], lengths[0, 4], lengths[0, 9], lengths[1, 5] = 9, 3.01, 2.99, 3.5
        return tokens * lengths

    with replace_inputs_and_outputs(vit.module, {}, {vit.layers[1].name: stretch}):
        found = token_norms(vit, noise(vit, 2))

    assert found.outliers[1].nonzero().tolist() == [[0, 0], [0, 4], [1, 5]]
    assert found.rule == "longer than 3 times the median patch"


def test_long_prefix_tokens_do_not_move_the_measure(tiny_view):
    view = tiny_view("dinov2-registers")
    lengths = torch.tensor([50.0] * 5 + [1.0] * 9 + [3.1] * 7)[None, :, None]

    def stretch(tokens):
        return tokens / tokens.norm(dim=-1, keepdim=True) * lengths

    with replace_inputs_and_outputs(view.module, {}, {view.layers[1].name: stretch}):
        found = token_norms(view, noise(view))

    assert found.outliers[1][0].tolist() == [True] * 5 + [False] * 9 + [True] * 7


def test_hierarchical_models_have_as_many_tokens_as_each_layer(tiny_view):
    found = token_norms(tiny_view("swin"), noise(tiny_view("swin")), "mlp_act")

    assert [x.shape for x in found.norms] == [
        (1, layer.patch_grid[0] * layer.patch_grid[1]) for layer in tiny_view("swin").layers
    ]


def test_a_map_loses_the_range_that_only_outliers_span():
    values = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 20.0]])

    found = without_outliers(values, torch.tensor([False, False, False, False, False, True]))

    assert found.map.tolist() == [[0, 1, 2], [3, 4, 2]] and found.change == pytest.approx(0.8)
    assert without_outliers(values, torch.zeros(2, 3, dtype=torch.bool)).change == 0
    assert without_outliers(torch.ones(2, 3), torch.zeros(6, dtype=torch.bool)).change == 0


def test_what_cannot_be_measured_is_told(vit):
    with pytest.raises(SiteError, match="has no mouth"):
        token_norms(vit, noise(vit), "mouth")
    with pytest.raises(ConfigError, match="4 of 4 patches cannot be left out of 4"):
        without_outliers(torch.ones(2, 2), torch.ones(4, dtype=torch.bool))
