"""What a visitor paints and the plot of the patches; the views by level are in test_views."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from vitviz_hf import at_size
from vitviz_hf.experiments.neurons import live
from vitviz_hf.experiments.neurons.clusters import group_tokens

COLORS = ["#9a9a9a", "#e4572e", "#2f79b5", "#3a9d5d", "#8e5bb5", "#d99a00"]
POINT = re.compile(
    r'<g tabindex="0"><circle cx="([\d.]+)" cy="([\d.]+)" r="5" fill="(#\w+)"/>\s*<image x="455" y="10" width="96" '
    r'height="96" href="data:image/jpeg;base64,([^"]+)"/>\s*<text x="455" y="126" font-size="13" '
    r'fill="currentColor">patch (\d+,\d+)</text></g>'
)


def test_several_pictures_have_a_view_in_each_third_and_near_the_end():
    assert [live._some_levels(n) for n in (12, 24, 6, 3)] == [[4, 8, 11], [8, 16, 22], [2, 4, 6], [1, 2, 3]]


def test_areas_that_do_not_touch_are_different_objects_at_the_size_that_is_wanted():
    painted = np.zeros((20, 40), bool)
    painted[2:6, 2:10], painted[6:8, 8:16], painted[14:18, 30:38] = True, True, True

    mask = live.split_objects(painted, (40, 60))

    expected = np.zeros((40, 60), np.int64)
    for place, number in [((4, 12, 3, 15), 1), ((12, 16, 12, 24), 1), ((28, 36, 45, 57), 2)]:
        top, bottom, left, right = place
        expected[top:bottom, left:right] = number
    assert np.array_equal(mask, expected) and mask.dtype == np.int64


@pytest.fixture
def wide(vit):
    """4 x 6 patches of 8 x 8."""
    return at_size(vit, (32, 48))


@pytest.fixture
def crop():
    """Each patch of one color of its own."""
    colors = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return colors.repeat(8, 0).repeat(8, 1)


def plotted(view, photo, mask, layer, places, monkeypatch):
    """The plot, the tokens that were embedded, and what the block gave."""
    embedded, outputs = [], []

    def embed(tokens):
        embedded.append(tokens)
        return places

    monkeypatch.setattr(live, "embed_tokens", embed)
    hook = view.module.vit.layers[layer].register_forward_hook(lambda *call: outputs.append(call[-1][0].numpy()))
    text = live.group_plot(view, photo, mask, layer)
    hook.remove()
    (tokens,) = embedded
    np.testing.assert_allclose(tokens, outputs[0], atol=1e-5)
    return text, tokens


@pytest.mark.parametrize("layer", [0, 2])
def test_every_patch_is_a_point_at_its_place_with_its_owner_and_its_pixels(layer, wide, crop, monkeypatch):
    mask = np.zeros((32, 48), np.int64)
    for k in range(1, 8):
        mask[:8, 8 * (k - 1) : 8 * k] = k  # six in the first row
    mask[8:16, :8] = 7
    places = 0.01 * np.random.default_rng(1).normal(size=(25, 2))
    places[0] = 1000  # the class token's, which is not drawn

    text, _ = plotted(wide, crop, mask, layer, places, monkeypatch)

    points = POINT.findall(text)
    assert len(points) == text.count("<g ") == 24
    own = places[1:]
    at = 20 + 420 * (own - own.min(0)) / (own.max(0) - own.min(0))
    owners = [1, 2, 3, 4, 5, 6, 7] + [0] * 17
    for k, (x, y, color, data, name) in enumerate(points):
        assert [float(x), float(y)] == pytest.approx(at[k], abs=0.051)
        assert color == COLORS[owners[k] if owners[k] < 6 else owners[k] - 5]  # the sixth has the first one's again
        assert name == f"{k // 6},{k % 6}"
        patch = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), float)
        assert patch.shape == (8, 8, 3) and abs(patch - crop[8 * (k // 6), 8 * (k % 6)]).max() < 12
    sentence = f"Patches after layer {layer + 1} of 3, colored by what you painted; gray: nothing."
    assert f"<p>{sentence}</p>" in text and f'aria-label="{sentence}"' in text  # no object has three patches


def test_two_objects_that_are_large_enough_have_their_measures_in_words(wide, crop, monkeypatch):
    mask = np.zeros((32, 48), np.int64)
    mask[:, :16], mask[8:, 24:] = 4, 2
    left = np.array([6 * r + c for r in range(4) for c in range(2)])
    right = np.array([6 * r + c for r in range(1, 4) for c in range(3, 6)])

    text, tokens = plotted(wide, crop, mask, 1, np.arange(50.0).reshape(25, 2), monkeypatch)

    patches = tokens[1:]
    unit = patches / np.linalg.norm(patches, axis=1, keepdims=True)
    within = [(unit[o] @ unit[o].T)[np.triu_indices(len(o), 1)].mean() for o in (left, right)]
    found = group_tokens(patches, [right, left], ["object 2", "object 4"]).measures
    numbers = {name: float(x) for name, x in re.findall(r"([a-z -]+) (-?\d\.\d\d)", text.split("<p>")[1])}
    assert numbers == {
        " purity": pytest.approx(found["purity"], abs=0.0051),
        " silhouette": pytest.approx(found["silhouette"], abs=0.0051),
        " in-object cosine": pytest.approx(np.mean(within), abs=0.0051),
        " between-object cosine": pytest.approx((unit[left] @ unit[right].T).mean(), abs=0.0051),
    }


def test_patches_at_one_place_are_drawn_there(wide, crop, monkeypatch):
    text, _ = plotted(wide, crop, np.zeros((32, 48), np.int64), 0, np.ones((25, 2)), monkeypatch)

    assert {(x, y, color) for x, y, color, *_ in POINT.findall(text)} == {("20.0", "20.0", COLORS[0])}
