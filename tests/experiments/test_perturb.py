"""Tiles at their limits, and masks through every kind of preprocessing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.perturb import mask_to_model, occlude


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
