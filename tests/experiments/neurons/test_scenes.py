"""Scenes with masks of objects."""

import numpy as np
import pytest
from PIL import Image

from tests.conftest import draw_noise
from vitviz_hf.errors import DatasetError
from vitviz_hf.experiments.neurons.scenes import open_scenes, paste_scene, tile_scene


def test_scenes_have_exact_masks(generator):
    colors = ["red", "lime", "blue", "yellow", "white"]
    pictures = [(c, Image.new("RGB", (30 + 9 * i, 40), c)) for i, c in enumerate(colors)]

    for seed in range(5):
        pasted = paste_scene("s", pictures, np.random.default_rng(seed))
        tiled = tile_scene("s", pictures[:4], np.random.default_rng(seed))
        for scene, background in ((pasted, (255, 0, 0)), (tiled, None)):
            values = np.asarray(scene.image)
            assert 2 <= len(scene.names) <= 4 and scene.mask.max() == len(scene.names)
            for n, name in enumerate(scene.names, 1):
                assert (values[scene.mask == n] == Image.new("RGB", (1, 1), name).getpixel((0, 0))).all()
            if background:
                assert (values[scene.mask == 0] == background).all() and (scene.mask == 0).any()


def test_pascal_voc_is_read_with_all_names(tmp_path):
    for folder in ("JPEGImages", "SegmentationObject", "Annotations"):
        (tmp_path / folder).mkdir()
    draw_noise(0).save(tmp_path / "JPEGImages" / "a.jpg")
    mask = np.zeros((40, 48), np.uint8)
    mask[:20], mask[20:30], mask[30:32] = 1, 2, 255
    image = Image.fromarray(mask)
    image.putpalette([i for rgb in range(256) for i in (rgb, 0, 255 - rgb)])
    image.save(tmp_path / "SegmentationObject" / "a.png")
    names = "".join(f"<object><name>{n}</name></object>" for n in ("dog", "cat", "tiny"))
    (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation>{names}</annotation>")
    (tmp_path / "SegmentationObject" / "without.png").write_bytes(b"")

    scenes = list(open_scenes(str(tmp_path)))

    assert [s.name for s in scenes] == ["a"] and scenes[0].names == ("dog", "cat", "tiny")
    assert np.array_equal(scenes[0].mask, mask)


def test_a_datasets_column_of_masks_is_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw_noise(0).save(tmp_path / "p.png")
    mask = np.zeros((40, 48), np.uint8)
    mask[10:30, :24], mask[10:30, 24:] = 1, 2
    Image.fromarray(mask).save(tmp_path / "m.png")
    row = {
        "image": {"bytes": (tmp_path / "p.png").read_bytes(), "path": "p.png"},
        "instance_mask": {"bytes": (tmp_path / "m.png").read_bytes(), "path": "m.png"},
        "classes": ["dog"],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "validation.parquet")

    scene = next(open_scenes(str(tmp_path / "validation.parquet"), compose="none"))

    assert np.array_equal(scene.mask, mask) and scene.names == ("dog", "object 2")
    with pytest.raises(DatasetError, match="has no instance masks"):
        open_scenes("builtin", compose="none")
