"""Curves: against pictures that are pasted together here, and the true evidence of a model that has learned."""

import re

import numpy as np
import pytest
import torch

from tests.shapes import draw_shapes
from vitviz_hf.errors import ConfigError, FeatureError
from vitviz_hf.inside.curves import Curves, CurvesConfig, curves
from vitviz_hf.models.view import at_size, logits


def noise(view, batch=1, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [4, 5])
def test_curves_are_those_of_pictures_pasted_patch_by_patch(steps, tiny_view):
    view = at_size(tiny_view("vit"), (32, 48))
    pixels, values = noise(view), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    gray = torch.tensor(view.mean)[:, None, None].expand(3, 32, 48)
    best_first = sorted(((r, c) for r in range(4) for c in range(6)), key=lambda rc: -values[rc])

    made = curves(view, pixels, "logit:1", values, CurvesConfig(steps=steps, fill="gray"))

    for start, goal, curve in [(gray, pixels[0], made.insertion), (pixels[0], gray, made.deletion)]:
        for step in range(steps + 1):
            count = round(24 * step / steps)
            pasted = start.clone()
            for r, c in best_first[:count]:
                pasted[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] = goal[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8]
            assert made.shares[step] == pytest.approx(count / 24)
            with torch.no_grad():
                torch.testing.assert_close(curve[step], logits(view, pasted[None])[0, 1], rtol=1e-4, atol=1e-5)


def test_random_orders_share_their_ends_with_the_map(vit):
    made = curves(vit, noise(vit), "1.mlp_act:3@1,1", torch.rand(4, 4), CurvesConfig(steps=4))

    for own, other in ((made.insertion, made.random_insertion), (made.deletion, made.random_deletion)):
        torch.testing.assert_close(own[[0, -1]], other[[0, -1]])
        assert not torch.allclose(own, other)
    torch.testing.assert_close(made.insertion[-1], made.deletion[0])
    torch.testing.assert_close(made.insertion[0], made.deletion[-1])
    torch.testing.assert_close(made.random_insertion, made.random_deletion.flip(0))


def test_random_orders_follow_the_seed(vit):
    values = torch.rand(4, 4)
    first, again, other = (
        curves(vit, noise(vit), "logit:1", values, CurvesConfig(steps=3, orders=2, seed=seed)) for seed in (0, 0, 1)
    )

    assert torch.equal(first.random_insertion, again.random_insertion)
    assert not torch.equal(first.random_insertion, other.random_insertion)
    torch.testing.assert_close(first.insertion, other.insertion)


def test_areas_are_means_of_the_curves():
    shares = torch.tensor([0.0, 0.25, 1.0])
    zero, line, step = torch.zeros(3), shares * 2, torch.tensor([4.0, 0.0, 0.0])

    made = Curves(shares, line, step, zero, zero + 3)

    assert (made.insertion_area, made.deletion_area) == (pytest.approx(1.0), pytest.approx(0.5))
    assert (made.random_insertion_area, made.random_deletion_area) == (0.0, pytest.approx(3.0))


def test_a_blurred_picture_keeps_its_mean_and_gray_does_not(vit):
    """The last value of deletion is that of the fill alone: a picture of one color is its own blur."""
    values = torch.rand(4, 4)
    plain = torch.full_like(noise(vit), 0.8)

    blurred = curves(vit, plain, "logit:1", values, CurvesConfig(steps=2))
    gray = curves(vit, plain, "logit:1", values, CurvesConfig(steps=2, fill="gray"))

    torch.testing.assert_close(blurred.deletion, blurred.deletion[:1].expand(3), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        expected = logits(vit, torch.tensor(vit.mean)[:, None, None].expand(1, 3, 32, 32))[0, 1]
    torch.testing.assert_close(gray.deletion[-1], expected)
    assert abs(gray.deletion[-1] - gray.deletion[0]) > 1e-3


def test_true_evidence_beats_random_orders(trained):
    """Patches of the object are what a model reads that has learned shapes; its mask is the map."""
    shapes = draw_shapes(12, np.random.default_rng(5), own_color=0.125)
    gains = []
    for picture, label, mask in zip(shapes.pixels, shapes.labels, shapes.masks, strict=True):
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        truth = torch.from_numpy(mask == 1).float().unfold(0, 8, 8).unfold(1, 8, 8).mean((2, 3))
        made = curves(trained, pixels, f"logit:{label}", truth, CurvesConfig(steps=8, fill="gray"))
        gains.append(
            [
                made.random_deletion_area - made.deletion_area,
                made.insertion_area - made.random_insertion_area,
            ]
        )

    deletion, insertion = torch.tensor(gains).T
    assert deletion.mean() > 0.15 and (deletion > 0).sum() >= 9
    assert insertion.mean() > 0.15 and (insertion > 0).sum() >= 9


def test_wrong_questions_are_told(vit):
    values = torch.rand(4, 4)
    with pytest.raises(ConfigError, match=re.escape("got [2, 3, 32, 32] and [4, 4]")):
        curves(vit, noise(vit, 2), "logit:1", values)
    with pytest.raises(ConfigError, match=re.escape("got [1, 3, 32, 32] and [16]")):
        curves(vit, noise(vit), "logit:1", values.flatten())
    with pytest.raises(ConfigError, match="the map must be finite; it has NaN or infinite values"):
        curves(vit, noise(vit), "logit:1", values / 0)
    with pytest.raises(FeatureError, match="has 3 classes; got 'logit:3'"):
        curves(vit, noise(vit), "logit:3", values)
    with pytest.raises(ConfigError, match="fill must be one of blur, gray; got 'black'"):
        CurvesConfig(fill="black")
    with pytest.raises(ConfigError, match="steps and orders must be 1 or more; got 0 and 3"):
        CurvesConfig(steps=0)
