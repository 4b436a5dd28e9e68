"""Optimized pictures in an atlas: what strangers put there, and damaged files, break no page."""

import json
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
from vitviz_hf.models.view import as_control
from vitviz_hf.stream import open_source
from vitviz_hf.ui.cards import made_picture

FEATURE = Feature(Site(1, "mlp_act"), 0)
WHOLE = {"schema": 1, "objective": [{"weight": 1.0, "target": "1.mlp_act:0"}], "score": 0.5}


@pytest.fixture
def atlas(vit, tmp_path):
    return make_atlas(
        vit, open_source("builtin"), SearchConfig(layers=(1,), kinds=("mlp_act",), k=2, limit=4), tmp_path / "atlas"
    )


def save_red(atlas, recipe):
    info = PngInfo()
    if recipe:
        info.add_text("vitviz", recipe if isinstance(recipe, str) else json.dumps(recipe))
    Image.new("RGB", atlas.manifest["input_size"], "red").save(atlas.picture_path(FEATURE), pnginfo=info)


@pytest.mark.parametrize(
    "recipe",
    [
        None,
        "{",
        WHOLE | {"guide": None},
        WHOLE | {"guide": [1]},
        WHOLE | {"guide": {"images": "<b>"}},
        WHOLE | {"guide": {"images": -5}},
        WHOLE | {"objective": None},
        {"schema": 1, "objective": WHOLE["objective"]},
        WHOLE | {"score": "high"},
        WHOLE | {"schema": 7},
    ],
)
def test_a_picture_that_does_not_tell_how_it_was_made_is_none_of_the_features(recipe, vit, atlas):
    save_red(atlas, WHOLE)
    assert atlas.visualization(FEATURE)

    save_red(atlas, recipe)

    assert atlas.visualization(FEATURE) is made_picture(atlas, FEATURE) is None
    with pytest.raises(AtlasError, match=r"1\.mlp_act-0\.png' is no whole picture of its feature"):
        missing_visualizations(atlas, [FEATURE])
    assert "No optimized picture yet." in feature_page(vit, atlas, FEATURE)


def test_the_picture_of_another_feature_is_none_of_the_features(vit, atlas):
    other = Feature(FEATURE.site, 1)
    made = visualize(vit, [other], VisualizeConfig.preset("fast", steps=1))[0]
    for feature in (FEATURE, other):
        made.save(atlas.picture_path(feature))

    assert atlas.visualization(FEATURE) is made_picture(atlas, FEATURE) is None
    assert atlas.visualization(other) and made_picture(atlas, other)
    with pytest.raises(AtlasError, match=r"1\.mlp_act-0\.png' is no whole picture of its feature"):
        missing_visualizations(atlas, [FEATURE, other])
    assert "No optimized picture yet." in feature_page(vit, atlas, FEATURE)


def test_the_picture_of_another_model_is_none_of_the_features(vit, atlas):
    found = []
    for view in (vit, as_control(vit, "random-weights")):
        made = visualize(view, [FEATURE], VisualizeConfig.preset("fast", steps=1))[0]
        atlas.picture_path(FEATURE).write_bytes(made.png())
        found.append(atlas.visualization(FEATURE))

    assert found[0] and found[1] is None and atlas.visualization(FEATURE) is made_picture(atlas, FEATURE) is None
    with pytest.raises(AtlasError, match=r"1\.mlp_act-0\.png' is no whole picture of its feature by this model"):
        missing_visualizations(atlas, [FEATURE])


def test_a_damaged_or_far_too_large_picture_is_not_shown_and_the_page_is(vit, atlas):
    path = atlas.picture_path(FEATURE)
    visualize(vit, [FEATURE], VisualizeConfig.preset("fast", steps=1))[0].save(path)
    whole = path.read_bytes()
    assert "No optimized" not in feature_page(vit, atlas, FEATURE) and made_picture(atlas, FEATURE)

    path.write_bytes(whole[: len(whole) - 500])
    damaged = feature_page(vit, atlas, FEATURE), made_picture(atlas, FEATURE)
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + whole[24:29]
    path.write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])

    assert "No optimized picture yet." in damaged[0] and damaged[1] is None
    assert "No optimized picture yet." in feature_page(vit, atlas, FEATURE)
