"""Joint attention over the levels, and models that have none."""

from itertools import pairwise

import pytest
import torch

from vitviz_hf.errors import ConfigError, ModelError
from vitviz_hf.reading.attention import attention_weights, joint_attention


def noise(view, batch=1, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("family", "why"),
    [("swin", "several patch grids"), ("resnet", "no transformer layers"), ("timm-convit", "enters late")],
)
def test_models_without_one_attention_matrix_are_refused_with_the_reason(family, why, tiny_view):
    with pytest.raises(ConfigError, match=why):
        attention_weights(tiny_view(family), noise(tiny_view(family)))


def test_an_attention_that_cannot_be_opened_is_told(tiny_view):
    with pytest.raises(ModelError, match="cannot be read"):
        attention_weights(tiny_view("timm-xcit"), noise(tiny_view("timm-xcit")))


def test_joint_attention_is_the_product_of_the_layers_with_their_skips(vit):
    weights = attention_weights(vit, noise(vit))[0]

    found = joint_attention(weights, 1)

    expected = torch.eye(17)
    for layer, (a, joint) in enumerate(zip(weights, found.joint, strict=True)):
        expected = (0.5 * a + 0.5 * torch.eye(17)) @ expected
        torch.testing.assert_close(joint, expected)
        assert torch.equal(found.views[layer + 1], joint[:, 1:])
    torch.testing.assert_close(found.joint.sum(-1), torch.ones(3, 17))
    assert torch.equal(found.views[0], torch.cat([torch.zeros(1, 16), torch.eye(16)]))
    torch.testing.assert_close(joint_attention(weights, 1, 0.0).joint[0], weights[0])
    with pytest.raises(ConfigError, match="residual must be a number from 0 to 1"):
        joint_attention(weights, 1, 1.5)


def test_identity_attention_keeps_level_0_and_uniform_attention_makes_all_tokens_alike():
    same = joint_attention(torch.eye(10).repeat(4, 1, 1), 1)
    flat = joint_attention(torch.full((8, 10, 10), 0.1), 1)

    assert all(torch.equal(a, b) for a, b in pairwise(same.views))
    spread = (flat.views[1:] - flat.views[1:, :1]).abs().amax((1, 2))
    assert all(b < a for a, b in pairwise(spread.tolist())) and spread[-1] < 0.01
