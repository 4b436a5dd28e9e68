"""Crops in 8 bits and logits of many, against the module itself."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from vitviz_hf.experiments.accuracy.crops import crop_logits, to_crop


def test_what_a_filter_overshoots_is_clipped_and_the_rest_rounded(vit):
    values = torch.tensor([-0.4, 0.0, 0.3, 0.5, 0.998, 1.0, 1.3]).repeat_interleave(10)
    pixels = values[torch.arange(3 * 32 * 32) % 70].reshape(3, 32, 32)
    view = replace(vit, preprocess=lambda image: pixels)

    found = to_crop(view, Image.new("RGB", (9, 9)))

    expected = torch.tensor([0, 0, 76, 128, 254, 255, 255], dtype=torch.uint8).repeat_interleave(10)  # 76.5, 127.5
    assert torch.equal(found, expected[torch.arange(3 * 32 * 32) % 70].reshape(3, 32, 32))


@pytest.mark.parametrize("batch", [2, 5, 9])
def test_logits_are_those_of_the_module_in_any_batches(batch, vit, generator):
    crops = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=generator)
    sizes = []
    hook = vit.module.register_forward_pre_hook(
        lambda _, __, kw: sizes.append(len(kw["pixel_values"])), with_kwargs=True
    )

    found = crop_logits(vit, crops, batch), crop_logits(vit, list(crops), batch)

    hook.remove()
    mean, std = (torch.tensor(x)[:, None, None] for x in (vit.mean, vit.std))
    with torch.no_grad():
        expected = vit.module((crops / 255 - mean) / std).logits
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(found[0], found[1]) and not found[0].requires_grad
    assert sizes == 2 * {2: [2, 2, 1], 5: [5], 9: [5]}[batch]
