"""Maps of heads: on models whose grid is not square, against hand computations and the averaged weights."""

import re

import pytest
import torch

from vitviz_hf.errors import ConfigError
from vitviz_hf.inside.heads import head_maps, looked_at, rollout
from vitviz_hf.models.view import at_size
from vitviz_hf.reading.attention import attention_weights, joint_attention

FAMILIES = ["vit", "deit", "dinov2-registers", "dinov3", "clip", "siglip", "timm-vit"]


def noise(view, batch=1, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_of_heads_is_the_averaged_attention_on_the_grid(family, tiny_view):
    view = at_size(tiny_view(family), (32, 48))
    pixels, n = noise(view, 2), view.layers[1].n_prefix
    weights = attention_weights(view, pixels, heads=True)

    found = head_maps(weights[:, 1], view.layers[1], (2, 5))

    mean = attention_weights(view, pixels)[:, 1, n + 2 * 6 + 5]
    assert found.per_head.shape == (2, 2, 4, 6) and found.prefix.shape == (2, 2, n)
    torch.testing.assert_close(found.mean, mean[:, n:].view(2, 4, 6))
    torch.testing.assert_close(found.prefix.mean(1), mean[:, :n])


def test_the_maximum_is_the_highest_head_at_each_patch(vit):
    weights = torch.zeros(2, 17, 17)
    weights[0, 0, 1], weights[1, 0, 1], weights[1, 0, 16], weights[0, 0, 0] = 0.6, 0.2, 0.8, 0.4

    found = head_maps(weights, vit.layers[0], "cls")

    assert found.maximum[0, 0] == torch.tensor(0.6) and found.maximum[3, 3] == torch.tensor(0.8)
    assert found.maximum.sum() == torch.tensor(0.6) + torch.tensor(0.8)
    assert found.prefix.tolist() == [[pytest.approx(0.4)], [0]]


def test_a_token_has_three_names(tiny_view):
    view = tiny_view("dinov2-registers")
    weights = attention_weights(view, noise(view), heads=True)[:, 0]

    def maps(token):
        return head_maps(weights, view.layers[0], token).per_head

    assert torch.equal(maps("cls"), maps(0)) and torch.equal(maps((1, 2)), maps(5 + 6))
    assert not torch.equal(maps(0), maps(1))


@pytest.mark.parametrize(
    ("token", "told"),
    [
        (
            (4, 0),
            "there is no token (4, 0) here: choose 'cls', a place from 0 to 16, or a patch from (0, 0) to (3, 3).",
        ),
        (17, "there is no token 17 here"),
        (-1, "there is no token -1 here"),
        ((0, -1), "there is no token (0, -1) here"),
    ],
)
def test_a_token_that_is_not_there_is_told(token, told, vit):
    with pytest.raises(ConfigError, match=re.escape(told)):
        head_maps(torch.zeros(2, 17, 17), vit.layers[0], token)


def test_a_class_token_that_is_not_there_is_told(tiny_view):
    with pytest.raises(ConfigError, match=r"there is no token 'cls' here: choose a place from 0 to 15, or a patch"):
        head_maps(torch.zeros(2, 16, 16), tiny_view("siglip").layers[0], "cls")


def test_weights_of_another_model_are_told(vit):
    with pytest.raises(ConfigError, match="the layer has 17 tokens; got weights of 16 x 16 tokens"):
        head_maps(torch.zeros(2, 16, 16), vit.layers[0], 0)


def test_rollout_is_the_joint_attention_of_each_picture(vit):
    weights = attention_weights(vit, noise(vit, 2))

    found = rollout(weights, 0.3)

    assert found.shape == (2, 3, 17, 17)
    for i in range(2):
        assert torch.equal(found[i], joint_attention(weights[i], 1, 0.3).joint)
    with pytest.raises(ConfigError, match=re.escape("mean over heads, [B, L, T, T]; got [17, 17]")):
        rollout(weights[0, 0])


def test_what_heads_look_at_is_the_mean_over_pictures_of_all_batches(vit):
    pixels = noise(vit, 3)
    weights = attention_weights(vit, pixels, heads=True)

    every, third = looked_at(vit, [pixels[:1], pixels[1:]]), looked_at(vit, [pixels[:1], pixels[1:]], 3)

    torch.testing.assert_close(every, weights.mean((0, 3)))
    torch.testing.assert_close(third, weights.mean(0)[:, :, 3])
    torch.testing.assert_close(every.sum(-1), torch.ones(3, 2))


def test_no_picture_is_told(vit):
    with pytest.raises(ConfigError, match="there is no picture to look at"):
        looked_at(vit, [])
