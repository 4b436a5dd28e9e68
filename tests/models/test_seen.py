"""The part of a picture that a model sees, against cutting it out."""

import pytest
import torch
from PIL import Image

from tests.tiny_models import FAMILIES
from vitviz_hf import open_image, to_pixels
from vitviz_hf.images import image_to_pixels, pixels_to_image
from vitviz_hf.models.seen import seen_box

SIZES = [(400, 240), (150, 330), (200, 200)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("family", "crop"), [("vit", None), ("clip", 1), ("dinov2", 32 / 36), ("timm-vit", 0.9)])
def test_the_box_is_where_the_model_crops(family, crop, size, tiny_view):
    width, height = size
    side = min(size) * (crop or 1)
    wanted = ((1 - side / width) / 2, (1 - side / height) / 2, (1 + side / width) / 2, (1 + side / height) / 2)

    box = seen_box(tiny_view(family), size)

    assert box == pytest.approx((0, 0, 1, 1) if crop is None else wanted, abs=0.03)  # crops at whole pixels


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (5, 5)])
def test_of_a_tiny_picture_all_is_seen_where_nothing_is_cropped(size, tiny_view):
    assert seen_box(tiny_view("vit"), size) == pytest.approx((0, 0, 1, 1), abs=0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_box_cut_out_is_what_the_model_sees(family, tiny_view):
    view = tiny_view(family)
    coarse = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0))
    picture = pixels_to_image(coarse).resize((330, 200), Image.Resampling.BICUBIC)

    left, top, right, bottom = seen_box(view, picture.size)

    seen = to_pixels(view, picture)[0]
    cut = picture.crop((round(left * 330), round(top * 200), round(right * 330), round(bottom * 200)))
    again = image_to_pixels(cut.resize((seen.shape[2], seen.shape[1]), Image.Resampling.BICUBIC))
    assert float((again - seen).abs().mean()) < 0.03


def test_the_box_of_a_picture_that_its_file_turns_is_that_of_the_upright_picture(tiny_view, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200), "red").save(tmp_path / "turned.jpg", exif=exif)

    box = seen_box(tiny_view("clip"), open_image(tmp_path / "turned.jpg").size)

    assert box == pytest.approx((0, 1 / 6, 1, 5 / 6), abs=0.02)
