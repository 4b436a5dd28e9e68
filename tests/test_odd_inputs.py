"""What once went wrong on odd models, boxes and pictures."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vitviz_hf import VisualizeConfig, open_source, parse_feature, visualize
from vitviz_hf.errors import ConfigError, NonFiniteError
from vitviz_hf.experiments.accuracy.background import random_boxes
from vitviz_hf.experiments.accuracy.boxes import Box, box_mask, read_xml
from vitviz_hf.experiments.config import BackgroundConfig, OccludeConfig, SpatialConfig, ViewsConfig
from vitviz_hf.experiments.figures import bars, encode_figure
from vitviz_hf.experiments.neurons.occlude import run_occlude
from vitviz_hf.experiments.neurons.views import run_views
from vitviz_hf.experiments.perturb import mask_to_model
from vitviz_hf.experiments.pictures.spatial import measure
from vitviz_hf.experiments.result import claim, describe_run
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.experiments.tables import Table
from vitviz_hf.models.gate import fetch_model
from vitviz_hf.models.view import as_control
from vitviz_hf.stream import Row


@pytest.fixture
def broken(vit):
    """The tiny ViT with NaN in its first block."""
    module = copy.deepcopy(vit.module)
    module.vit.layers[0].mlp.fc1.bias.data[0] = float("nan")
    return replace(vit, module=module)


def test_bars_of_no_value_are_an_empty_figure():
    assert encode_figure(bars({"a": {}, "b": {}}, "share"), "png").startswith(b"\x89PNG")


def test_other_boxes_in_the_same_file_are_another_run(vit, labelled, tmp_path):
    (tmp_path / "boxes").mkdir()
    corners = "<xmin>{}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    xml = f"<annotation><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    (tmp_path / "boxes" / "a.xml").write_text(xml.format(1))
    config = BackgroundConfig(boxes=str(tmp_path / "boxes"))
    first = describe_run("background", [vit], open_source(str(labelled)), config)
    claim(tmp_path / "work", first)
    claim(tmp_path / "work", first)

    (tmp_path / "boxes" / "a.xml").write_text(xml.format(5))

    with pytest.raises(ConfigError, match="holds a run with boxes '"):
        claim(tmp_path / "work", describe_run("background", [vit], open_source(str(labelled)), config))


def test_a_model_that_gives_nan_is_refused_where_pictures_are_made(broken, photo):
    with pytest.raises(NonFiniteError, match=r"the score of 1\.mlp_act:3 in '.*vit' in float32 is NaN or infinite"):
        visualize(broken, ["1.mlp_act:3"], VisualizeConfig.preset("fast", steps=1))
    for run in (lambda: run_views(broken, photo, ViewsConfig()), lambda: run_occlude(broken, photo, OccludeConfig())):
        with pytest.raises(NonFiniteError, match=r"the attention of '.*vit' in float32 is NaN or infinite"):
            run()


def test_spatial_counts_features_that_are_not_finite(vit, labelled, tmp_path):
    module = copy.deepcopy(vit.module)

    def black_is_nan(_, args, output):
        black = (torch.nn.functional.max_pool2d(args[0], 8) == -1).all(1).flatten(1).any(1)
        return torch.where(black[:, None, None], torch.nan, output)

    module.vit.embeddings.patch_embeddings.register_forward_hook(black_is_nan)
    view = replace(vit, module=module)
    config = SpatialConfig(per_layer=3, threshold=0.0, min_active=1)

    with pytest.warns(RuntimeWarning, match=r"mlp_act:\d+ in '.*vit' in float32 is NaN or infinite on a picture"):
        table = run_experiment("spatial", [view], open_source(str(labelled)), config, tmp_path).tables["table"]

    assert any("Left out:" in note and "NaN or infinite" in note for note in table.notes)
    assert not any(isinstance(cell, float) and np.isnan(cell) for row in table.rows for cell in row)
    with pytest.raises(NonFiniteError):
        measure(view, parse_feature("1.mlp_act:3"), torch.zeros(1, 3, 32, 32), 0.0, 1, torch.Generator())


def test_a_table_with_nan_is_json():
    text = Table(("a", "b"), ((float("nan"), 1.5),)).to_json()

    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["rows"] == [{"a": None, "b": 1.5}]


@pytest.mark.parametrize(
    "boxes", [[(2, 2, 21, 21), (2, 2, 21, 21), (5, 5, 21, 21)], [(0, 0, 3, 3), (40, 50, 63, 63)], [(-9, 3, 4, 70)]]
)
def test_random_boxes_cover_as_much_however_they_overlap(boxes):
    own = [Box(b) for b in boxes]
    rng = np.random.default_rng(0)
    areas = {int(box_mask((64, 64), random_boxes(own, (64, 64), rng)).sum()) for _ in range(50)}

    assert areas == {int(box_mask((64, 64), own).sum())}


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)])
def test_masks_of_pictures_one_pixel_wide_are_scaled(size, vit):
    assert (mask_to_model(vit, np.full(size, 3, np.int64)) == 3).any()


def test_boxes_that_are_not_four_numbers_are_kept_to_be_counted():
    from vitviz_hf.stream import _boxes

    found = _boxes({"boxes": [[10, 10, None, 40], [1, 2, 3], [1, 2, 3, 4]]})

    assert len(found) == 3 and found[2] == (1, 2, 3, 4)
    assert np.isnan(found[0][2]) and np.isnan(found[1]).all()


def test_controls_made_in_threads_are_those_made_alone(vit):
    alone = torch.cat([p.flatten() for p in as_control(vit, "random-weights").module.parameters()])

    with ThreadPoolExecutor(8) as pool:
        views = list(pool.map(lambda _: as_control(vit, "random-weights"), range(8)))

    for view in views:
        assert torch.equal(torch.cat([p.flatten() for p in view.module.parameters()]), alone)


def test_another_tokenizer_is_another_model(tiny_folder, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_folder("clip"), tmp_path / "clip")
    before = fetch_model(str(folder)).digest()
    path = next(p for p in folder.iterdir() if p.name in ("tokenizer.json", "vocab.json"))
    path.write_text(path.read_text("utf-8") + "\n", "utf-8")

    assert fetch_model(str(folder)).digest() != before


def test_boxes_of_another_class_in_vocs_files_are_not_taken(tmp_path):
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        for name, x in (("cat", 1), ("dog", 5))
    )
    (tmp_path / "a.xml").write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "b.xml").write_text(f"<annotation>{objects.replace('cat', 'bus')}</annotation>")
    table = read_xml(tmp_path)

    assert [b.corners[0] for b in table.find(Row("a.jpg", "Cat", b""))] == [1]
    assert [b.corners[0] for b in table.find(Row("a.jpg", "dog", b""))] == [5]
    assert table.find(Row("a.jpg", "bus", b"")) == []
    assert len(table.find(Row("a.jpg", "kitten", b""))) == 2  # the files do not use this word


def test_a_picture_of_one_pixel_is_occluded(vit):
    image = Image.new("RGB", (1, 1), "red")

    assert run_occlude(vit, image, OccludeConfig(seeds=1, grid=4)).tables["table"].rows


def test_a_folder_of_pictures_is_read_whatever_else_is_called_like_one(photo, tmp_path):
    (tmp_path / "folder.png").mkdir()
    photo.save(tmp_path / "whole.png")
    photo.save(tmp_path / "gone.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(40_000_000_000)
    source = open_source(str(tmp_path))
    (tmp_path / "gone.png").unlink()

    rows = {row.name: len(row.data) for row, _ in source.read(0, 1, None)}

    assert rows == {"gone.png": 0, "huge.png": 30_000_001, "whole.png": (tmp_path / "whole.png").stat().st_size}
