"""Optimized pictures in an atlas: what strangers put there, and damaged files, break no page."""

import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vitviz_hf import Feature, Site, VisualizeConfig, visualize
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.page import feature_page
from vitviz_hf.atlas.store import missing_visualizations
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.errors import AtlasError
from vitviz_hf.sites import file_stem
from vitviz_hf.stream import open_source
from vitviz_hf.ui.cards import made_picture

FEATURE = Feature(Site(1, "mlp_act"), 0)


@pytest.fixture
def atlas(vit, tmp_path):
    return make_atlas(
        vit, open_source("builtin"), SearchConfig(layers=(1,), kinds=("mlp_act",), k=2, limit=4), tmp_path / "atlas"
    )


@pytest.mark.parametrize(
    "recipe",
    [
        None,
        "{",
        '{"schema": 1, "guide": null, "score": 0.5}',
        '{"schema": 1, "guide": [1], "score": 0.5}',
        '{"schema": 1, "guide": {"images": "<b>"}, "score": 0.5}',
        '{"schema": 1, "guide": {"images": -5}, "score": 0.5}',
        '{"schema": 1}',
        '{"schema": 1, "score": "high"}',
        '{"schema": 7, "score": 0.5}',
    ],
)
def test_a_picture_that_does_not_tell_how_it_was_made_is_none_of_the_features(recipe, vit, atlas):
    info = PngInfo()
    if recipe:
        info.add_text("vitviz", recipe)
    path = atlas.folder / "visualizations" / f"{file_stem(FEATURE)}.png"
    Image.new("RGB", vit.input_size, "red").save(path, pnginfo=info)

    assert atlas.visualization(FEATURE) is made_picture(atlas, FEATURE) is None
    with pytest.raises(AtlasError, match=r"1\.mlp_act-0\.png' is no picture that vitviz made"):
        missing_visualizations(atlas, [FEATURE])
    assert "No optimized picture yet." in feature_page(vit, atlas, FEATURE)


def test_a_damaged_or_far_too_large_picture_is_not_shown_and_the_page_is(vit, atlas):
    path = atlas.folder / "visualizations" / f"{file_stem(FEATURE)}.png"
    visualize(vit, [FEATURE], VisualizeConfig.preset("fast", steps=1))[0].save(path)
    whole = path.read_bytes()
    assert "No optimized" not in feature_page(vit, atlas, FEATURE) and made_picture(atlas, FEATURE)

    path.write_bytes(whole[: len(whole) - 500])
    damaged = feature_page(vit, atlas, FEATURE), made_picture(atlas, FEATURE)
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + whole[24:29]
    path.write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])

    assert "No optimized picture yet." in damaged[0] and damaged[1] is None
    assert "No optimized picture yet." in feature_page(vit, atlas, FEATURE)
