"""Tiles at their limits, and masks through every kind of preprocessing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitviz_hf import to_pixels
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.perturb import mask_to_model, occlude, owned_patches, patch_sources, salient_tiles, shuffle


def numbered(height, width):
    """A mask without two equal neighbors, nowhere 0."""
    return 1 + (np.arange(height)[:, None] * 7 + np.arange(width) * 3) % 190


def test_a_mask_of_the_models_own_size_stays_as_it_is(vit):
    mask = numbered(*vit.input_size)

    assert np.array_equal(mask_to_model(vit, mask), mask)


@pytest.mark.parametrize(("top", "bottom", "left", "right"), [(4, 4, 6, 6), (1, 7, 3, 2)])
def test_what_the_preprocessing_adds_around_a_picture_has_no_object(top, bottom, left, right, vit):
    height, width = vit.input_size[0] - top - bottom, vit.input_size[1] - left - right

    def pad(image):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return torch.nn.functional.pad(pixels, (left, right, top, bottom))

    mask = numbered(height, width)

    found = mask_to_model(replace(vit, preprocess=pad), mask)

    assert np.array_equal(found, np.pad(mask, ((top, bottom), (left, right))))


def test_a_grid_of_one_tile_is_the_picture_and_one_of_none_is_told():
    pixels = np.full((8, 8, 3), 9, np.uint8)

    assert occlude(pixels, None, "random", 1, grid=1).hidden.all()
    assert occlude(pixels, None, "random", 1, grid=8).hidden.all()
    for grid in (0, 9):
        with pytest.raises(ConfigError, match=f"grid must be from 1 to 8; got {grid}"):
            occlude(pixels, None, "random", 1, grid=grid)


@settings(max_examples=30)
@given(ratio=st.floats(0, 1), seed=st.integers(0, 5), mode=st.sampled_from(["random", "salient", "non-salient"]))
def test_as_many_tiles_are_blacked_out_as_the_ratio_says(ratio, seed, mode):
    pixels = np.full((28, 42, 3), 200, np.uint8)
    mask = np.zeros((28, 42), np.int64)
    mask[4:15, 6:20] = 2
    salient = salient_tiles(mask, 7)
    pool = {"random": 49, "salient": salient.sum(), "non-salient": (~salient).sum()}[mode]

    changed = occlude(pixels, mask, mode, ratio, 7, seed)

    assert len(changed.tiles) == int(ratio * pool)
    assert (changed.photo == 0).all(-1).sum() == changed.hidden.sum() == len(changed.tiles) * 4 * 6
    assert not changed.mask[changed.hidden].any() and (changed.mask == mask)[~changed.hidden].all()
    if mode != "random":
        assert (salient[changed.tiles] == (mode == "salient")).all()
    again = occlude(pixels, mask, mode, ratio, 7, seed)
    assert np.array_equal(again.tiles, changed.tiles) and (pixels == 200).all()


def test_chosen_tiles_are_blacked_out_and_bad_ones_told():
    pixels = np.ones((8, 8, 3), np.uint8)

    assert occlude(pixels, None, "random", grid=4, tiles=[5, 0]).hidden[[0, 2, 7], [0, 2, 7]].tolist() == [1, 1, 0]
    for options, why in [
        ({"tiles": [16]}, "numbered 0 to 15"),
        ({"mode": "some"}, "mode must be one of"),
        ({"ratio": 2}, "ratio must be"),
        ({"mode": "salient"}, "needs a mask"),
        ({"grid": 9}, "grid must be"),
    ]:
        with pytest.raises(ConfigError, match=why):
            occlude(pixels, None, **({"mode": "random", "grid": 4} | options))


@pytest.mark.parametrize("side", [2, 4, 8])
def test_shuffling_moves_picture_and_mask_together_and_can_be_undone(side):
    pixels = np.arange(16 * 24 * 3, dtype=np.uint64).astype(np.uint8).reshape(16, 24, 3)
    mask = np.arange(16 * 24).reshape(16, 24)

    changed = shuffle(pixels, mask, side, 1)

    flat = changed.mask.ravel()
    assert sorted(flat) == list(range(384)) and np.array_equal(
        pixels.reshape(-1, 3)[flat], changed.photo.reshape(-1, 3)
    )
    height, width = 16 // side, 24 // side
    for target, source in enumerate(changed.tiles):
        row, col = divmod(int(source), side)
        r, c = divmod(target, side)
        old = mask[row * height : (row + 1) * height, col * width : (col + 1) * width]
        assert np.array_equal(changed.mask[r * height : (r + 1) * height, c * width : (c + 1) * width], old)


def test_a_strip_that_tiles_do_not_cover_is_black_and_patches_know_where_they_came_from():
    pixels = np.full((14, 14, 3), 9, np.uint8)
    assert shuffle(pixels, None, 4).hidden.sum() == 14 * 14 - 12 * 12

    mask = np.kron(np.arange(16).reshape(4, 4), np.ones((8, 8), np.int64))
    changed = shuffle(np.zeros((32, 32, 3), np.uint8), mask, 2, 3)
    sources = patch_sources(changed, 2, (4, 4))
    assert np.array_equal(changed.mask[::8, ::8].ravel(), sources)
    assert patch_sources(changed, 8, (4, 4)) is None


def test_a_mask_goes_through_the_models_own_crop(builtin):
    picture = Image.new("RGB", (500, 380), "black")
    mask = np.zeros((380, 500), np.int64)
    for n, box in enumerate([(130, 60, 260, 150), (300, 200, 390, 330)], 1):
        picture.paste((255, 255, 255), box)
        mask[box[1] : box[3], box[0] : box[2]] = n
    mask[:40] = 255

    found = mask_to_model(builtin, mask)

    seen = to_pixels(builtin, picture)[0].mean(0).numpy() > 0.5
    assert found.shape == builtin.input_size and set(np.unique(found)) == {0, 1, 2}
    assert ((found > 0) != seen).sum() < 0.01 * seen.sum()


def test_patches_are_owned_from_two_fifths_on():
    for n, owned in [(102, False), (103, True)]:
        inside = np.zeros((32, 32), bool)
        inside[:16, :16].flat[:n] = False
        inside.reshape(2, 16, 2, 16)[0, :, 0] = (np.arange(256) < n).reshape(16, 16)
        assert owned_patches(inside, (2, 2)).tolist() == [owned, False, False, False]
