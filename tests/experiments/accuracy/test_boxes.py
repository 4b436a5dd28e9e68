"""Boxes from every place they may come from, and what becomes of odd ones."""

from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import draw_noise
from vitviz_hf.cli.main import main
from vitviz_hf.errors import DatasetError
from vitviz_hf.experiments.accuracy.boxes import (
    ENDS_FIRST,
    NO_NUMBERS,
    OUTSIDE,
    SEVERAL,
    USED,
    Box,
    box_mask,
    load_boxes,
)
from vitviz_hf.experiments.config import BackgroundConfig, OcclusionConfig
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.stream import Row, open_source

XML = (
    "<annotation><object><name>{name}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{x1}</xmax><ymax>40</ymax>"
    "</bndbox></object></annotation>"
)
SIZE = (100, 100)


def corners(boxes, row, size=SIZE):
    return [box.corners for box in boxes.find(row, size, [])]


def with_boxes(source, change):
    """The dataset with other boxes: change(place, boxes) -> boxes."""

    def read(rank, n_ranks, position):
        for i, (row, mark) in enumerate(source.read(rank, n_ranks, position)):
            yield replace(row, boxes=change(i, row.boxes)), mark

    return replace(source, read=read)


def test_a_box_holds_its_last_row_and_column_and_no_pixel_outside():
    mask = box_mask((10, 8), [Box((2, 1, 4, 3)), Box((8, 6, 20, 20))])
    assert mask.shape == (8, 10) and mask[1:4, 2:5].all() and mask[6:, 8:].all() and mask.sum() == 9 + 4
    assert not box_mask((10, 8), [Box((-9, 1, -3, 5)), Box((1, -7, 5, -2)), Box((10, 0, 12, 3))]).any()
    assert box_mask((10, 8), [Box((-9, -9, 0, 0))]).sum() == 1


def test_boxes_are_read_from_ilsvrcs_files_and_joined_by_name(tmp_path, labelled):
    (tmp_path / "boxes.CSV").write_text(
        "ImageId,PredictionString\nn01440764_10026,n01440764 1 2 30 40 n02000000 5 6 7 8\nval_1,n01440764 3 3 9 9 \n"
    )
    (tmp_path / "xml" / "n01440764").mkdir(parents=True)
    (tmp_path / "xml" / "n01440764" / "n01440764_10026.xml").write_text(XML.format(name="n01440764", x1=30))
    source = open_source(str(labelled))
    row = Row("n01440764_10026_n01440764.JPEG", "tench", b"")

    for where in ("boxes.CSV", "xml"):
        boxes = load_boxes(source, BackgroundConfig(boxes=str(tmp_path / where)))
        assert corners(boxes, row) == [(1, 2, 30, 40)]
        assert corners(boxes, Row("other.JPEG", "tench", b"")) == []
    joined = load_boxes(source, BackgroundConfig(boxes=str(labelled)))
    assert corners(joined, Row("train_3.jpg", "cat", b"")) == [(7, 5, 33, 29)]
    sized = load_boxes(source, BackgroundConfig(box_format="xywh"))
    assert corners(sized, Row("", "", b"", boxes=((7, 5, 10, 2),))) == [(7, 5, 16, 6)]


@pytest.mark.parametrize("ending", [".jpeg", ".JPG", ".JPEG", ".jpg", ".png", ".PNG", ".webp", ".bmp", ".tif", ""])
def test_any_ending_of_an_image_joins_its_boxes(ending, tmp_path, labelled):
    (tmp_path / "x.y.XML").write_text(XML.format(name="cat", x1=30))
    boxes = load_boxes(open_source(str(labelled)), BackgroundConfig(boxes=str(tmp_path)))
    assert corners(boxes, Row(f"some/folder/x.y{ending}", "cat", b"")) == [(1, 2, 30, 40)]
    assert corners(boxes, Row(f"x{ending}", "cat", b"")) == []


def test_of_files_with_one_name_the_folder_decides(tmp_path, labelled):
    for folder, x1 in (("cats", 30), ("dogs", 50)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.xml").write_text(XML.format(name="cat", x1=x1))
    boxes = load_boxes(open_source(str(labelled)), BackgroundConfig(boxes=str(tmp_path)))
    assert corners(boxes, Row("dogs/x.jpg", "", b"")) == [(1, 2, 50, 40)]
    assert corners(boxes, Row("x.jpg", "cats", b"")) == [(1, 2, 30, 40)]
    remarks = []
    assert boxes.find(Row("elsewhere/x.jpg", "", b""), SIZE, remarks) == [] and remarks == [SEVERAL]


def test_a_dataset_with_one_name_twice_does_not_say_whose_boxes_they_are(tmp_path, labelled):
    source = open_source(str(labelled))
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(next(labelled.rglob("*.parquet")))
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), tmp_path / "twice.parquet")
    boxes = load_boxes(source, BackgroundConfig(boxes=str(tmp_path / "twice.parquet")))
    remarks = []
    assert boxes.find(Row("train_0.png", "", b""), SIZE, remarks) == [] and remarks == [SEVERAL]
    assert corners(boxes, Row("train_1.png", "", b"")) == [(5, 5, 31, 29)]


def test_what_cannot_be_used_is_said_for_each_box(labelled):
    boxes = load_boxes(open_source(str(labelled)), BackgroundConfig())
    odd = (
        (1, 1, 5, 5),
        (5, 1, 1, 5),
        (200, 0, 300, 9),
        (-9, 0, -1, 9),
        (0, float("nan"), 3, 3),
        (0, 0, float("inf"), 3),
    )
    remarks = []
    assert boxes.find(Row("", "", b"", boxes=odd), SIZE, remarks) == [Box((1, 1, 5, 5))]
    assert remarks == [USED, ENDS_FIRST, OUTSIDE, OUTSIDE, NO_NUMBERS, NO_NUMBERS]


def test_bad_rows_and_files_are_counted_and_the_others_used(tmp_path, labelled):
    (tmp_path / "boxes.csv").write_text(
        "ImageId,PredictionString\na,n01440764 1 2 30\nb,n01440764 1 2 30 x\nc,n01440764 1 2 30 40\nd,\ne\n"
    )
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text("<annotation><object></object></annotation>")
    (tmp_path / "xml" / "b.xml").write_text("no xml")
    (tmp_path / "xml" / "c.xml").write_text(XML.format(name="cat", x1=30))
    source = open_source(str(labelled))
    csv, xml = (load_boxes(source, BackgroundConfig(boxes=str(tmp_path / name))) for name in ("boxes.csv", "xml"))
    for boxes in (csv, xml):
        assert corners(boxes, Row("c.jpg", "", b"", wnid="n01440764")) == [(1, 2, 30, 40)]
        assert corners(boxes, Row("a.jpg", "", b"", wnid="n01440764")) == []
    assert csv.notes == (f"2 rows of '{tmp_path / 'boxes.csv'}' could not be read.",)
    assert xml.notes == (f"2 XML files of '{tmp_path / 'xml'}' could not be read.",)


def test_boxes_that_are_not_there_are_told(tmp_path, labelled):
    source = open_source(str(labelled))
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "rows.csv").write_text("ImageId,PredictionString\na,1 2\nb,n 1 2 3 x\n")
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text("<annotation><object></object></annotation>")
    for config in (BackgroundConfig, OcclusionConfig):
        with pytest.raises(DatasetError, match="no CSV of boxes"):
            load_boxes(source, config(boxes=str(tmp_path / "bad.csv")))
        with pytest.raises(DatasetError, match="none of its 2 rows"):
            load_boxes(source, config(boxes=str(tmp_path / "rows.csv")))
        with pytest.raises(DatasetError, match="no XML of boxes"):
            load_boxes(source, config(boxes=str(tmp_path / "xml")))
    with pytest.raises(DatasetError, match="there are no boxes in 'builtin'"):
        load_boxes(source, BackgroundConfig(boxes="builtin"))
    with pytest.raises(DatasetError, match="has no boxes"):
        load_boxes(open_source("builtin"), BackgroundConfig())


@pytest.mark.parametrize(("name", "config"), [("background", BackgroundConfig), ("occlusion", OcclusionConfig)])
def test_odd_boxes_are_counted_below_the_table_and_the_run_goes_on(name, config, vit, labelled, tmp_path):
    def odd(i, boxes):
        return {0: (), 1: ((30.0, 5.0, 3.0, 9.0),), 2: ((900.0, 0.0, 950.0, 9.0),), 4: ((3.0, 3.0, 3.0, 3.0),)}.get(
            i, boxes
        )

    source = with_boxes(open_source(str(labelled)), odd)
    options = {"grid": 4, "shuffles": (2,)} if name == "occlusion" else {"controls": False}
    result = run_experiment(name, [vit], source, config(**options), tmp_path)

    notes = " ".join(result.tables["table"].notes)
    assert f"{USED}: 12." in notes and f"{ENDS_FIRST}: 1." in notes and f"{OUTSIDE}: 1." in notes
    if name == "occlusion":
        assert "Pictures whose boxes are too small for a tile, left out of salient and non-salient: 1." in notes
        rows = {r["change"]: r["images"] for r in result.tables["table"].records()}
        assert rows == {"natural": 15, "random": 15, "salient": 11, "non-salient": 11, "shuffle": 15}
    else:
        assert "3 because it has no usable box of its class" in notes


@pytest.mark.parametrize(("name", "config"), [("background", BackgroundConfig), ("occlusion", OcclusionConfig)])
def test_only_boxes_that_all_end_before_they_start_are_an_error(name, config, vit, labelled, tmp_path):
    source = with_boxes(open_source(str(labelled)), lambda i, boxes: ((30.0, 25.0, 10.0, 12.0),))
    with pytest.raises(DatasetError, match="--box-format"):
        run_experiment(name, [vit], source, config(), tmp_path / "a")
    result = run_experiment(name, [vit], source, config(box_format="xywh"), tmp_path / "b")
    assert f"{USED}: 15." in " ".join(result.tables["table"].notes)


def test_occlusion_reads_boxes_of_any_format_from_anywhere(vit, labelled, tmp_path):
    source = open_source(str(labelled))
    corners_ = OcclusionConfig(grid=4, shuffles=(2,))
    sized = with_boxes(source, lambda i, b: tuple((x0, y0, x1 - x0 + 1, y1 - y0 + 1) for x0, y0, x1, y1 in b))
    none = with_boxes(source, lambda i, b: ())
    own = run_experiment("occlusion", [vit], source, corners_, tmp_path / "a")
    same = run_experiment("occlusion", [vit], sized, replace(corners_, box_format="xywh"), tmp_path / "b")
    joined = run_experiment("occlusion", [vit], none, replace(corners_, boxes=str(labelled)), tmp_path / "c")
    without = run_experiment("occlusion", [vit], none, corners_, tmp_path / "d")
    assert own.tables["table"].rows == same.tables["table"].rows == joined.tables["table"].rows
    assert [r[4] for r in without.tables["table"].rows if "salient" in r[1]] == [None] * 10


def test_the_commands_have_the_same_options(capsys):
    for name in ("background", "occlusion", "all"):
        with pytest.raises(SystemExit):
            main(["experiment", name, "--help"])
        shown = capsys.readouterr().out
        assert "--boxes" in shown and "--box-format" in shown


def test_masked_parts_make_the_picture():
    from vitviz_hf.experiments.accuracy.background import hide

    image = draw_noise(3)
    inside = box_mask(image.size, [Box((5, 5, 20, 20))])
    front, back = np.asarray(hide(image, ~inside)), np.asarray(hide(image, inside))
    assert np.array_equal(front | back, np.asarray(image))
    assert front[0, 0].tolist() == [0, 0, 0] and back[10, 10].tolist() == [0, 0, 0]
