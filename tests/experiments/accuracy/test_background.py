"""Foreground and background of pictures that a model knows, against the same in plain transformers and numpy."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.by_hand import Model, inside_box, interval, read_pictures, share
from vitviz_hf import classify, open_image, to_pixels
from vitviz_hf.experiments.accuracy.background import class_mask, hide, random_boxes
from vitviz_hf.experiments.accuracy.boxes import Box
from vitviz_hf.experiments.accuracy.paper import WITH_BOXES
from vitviz_hf.experiments.config import BackgroundConfig
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.stream import Row, open_source

SEED = 5
WAYS = ("full", "foreground", "background")


@pytest.fixture(scope="module")
def run(trained, trained_other, shapes, tmp_path_factory):
    """Of both models, with the pictures."""
    source, work = open_source(str(shapes)), tmp_path_factory.mktemp("work")
    config = BackgroundConfig(seed=SEED, batch=100)
    return run_experiment("background", [trained, trained_other], source, config, work), read_pictures(shapes)


@pytest.fixture(scope="module")
def models(trained, trained_other):
    return [Model(trained.model_id), Model(trained_other.model_id)]


def black(picture, hidden):
    return np.where(hidden[..., None], 0, picture.pixels)


def mean_colored(picture, hidden):
    mean = picture.pixels[~hidden].reshape(-1, 3).mean(0).round().astype(np.uint8)
    return np.where(hidden[..., None], mean, picture.pixels)


def blurred(picture, hidden):
    soft = np.asarray(Image.fromarray(picture.pixels).filter(ImageFilter.GaussianBlur(6.4)))
    return np.where(hidden[..., None], soft, picture.pixels)


def somewhere(picture):
    """A box of the same size, elsewhere."""
    x0, y0, x1, y1 = picture.box
    rng = np.random.default_rng(picture.key ^ SEED)
    inside = np.zeros(picture.pixels.shape[:2], bool)
    x, y = rng.integers(0, 64 - (x1 - x0)), rng.integers(0, 64 - (y1 - y0))
    inside[y : y + y1 - y0 + 1, x : x + x1 - x0 + 1] = True
    return inside


CONTROLS = {
    "black boxes": (inside_box, black),
    "mean-colored boxes": (inside_box, mean_colored),
    "blurred boxes": (inside_box, blurred),
    "black random boxes": (somewhere, black),
    "black masks": (lambda p: p.mask > 0, black),
}


@pytest.fixture(scope="module")
def ranks(run, models):
    """(model, control or full, way) -> how many classes stand before the true one, [n]."""
    pictures = run[1]
    truth = [p.label for p in pictures]
    found = {}
    for m, model in enumerate(models):
        found[m, "full"] = model.ranks([p.pixels for p in pictures], truth)
        for control, (region, fill) in CONTROLS.items():
            regions = [region(p) for p in pictures]
            for way, hidden in (("foreground", [~r for r in regions]), ("background", regions)):
                made = [fill(p, h).astype(np.uint8) for p, h in zip(pictures, hidden, strict=True)]
                found[m, control, way] = model.ranks(made, truth)
    return found


def test_every_column_is_that_of_pictures_masked_by_hand(run, ranks):
    result, pictures = run
    names = result.tables["table"].columns
    assert [n for n in names if n.startswith("top")] == [
        *(f"top-{k} {way}" for k in (5, 1) for way in WAYS),
        *(f"top-{k} background, only images with some" for k in (5, 1)),
    ]
    for m, (relative, plain) in enumerate(
        zip(*(result.tables[t].records() for t in ("table", "table-plain")), strict=True)
    ):
        full = ranks[m, "full"]
        for k in (5, 1):
            values = [share(full, k)]
            assert relative[f"top-{k} full"] == plain[f"top-{k} full"] == pytest.approx(values[-1])
            ends = [relative[f"top-{k} full {end}"] for end in ("low", "high")]
            assert ends == pytest.approx(interval(full, k), abs=1)
            for way in WAYS[1:]:
                part = ranks[m, "black boxes", way]
                values += [share(part, k), share(part, k, full)]
                assert plain[f"top-{k} {way}"] == pytest.approx(values[-2])
                assert relative[f"top-{k} {way}"] == pytest.approx(values[-1])
                ends = [relative[f"top-{k} {way} {end}"] for end in ("low", "high")]
                assert ends == pytest.approx(interval(part, k, full), abs=1.5)
        assert all(abs(a - b) > 0.4 for a, b in itertools.combinations(values, 2)), values  # of top-1
    assert f"{len(pictures)} images of" in " ".join(result.tables["table"].notes)


def test_controls_are_those_made_by_hand(run, ranks):
    rows = {(r["model"], r["what is hidden"]): r for r in run[0].tables["table-controls"].records()}
    models = list(dict.fromkeys(model for model, _ in rows))
    assert len(rows) == 10
    for m, model in enumerate(models):
        full, seen = ranks[m, "full"], []
        for control in CONTROLS:
            row = rows[model, control]
            assert row["images"] == (full >= 0).sum()
            for k in (5, 1):
                for way in WAYS[1:]:
                    assert row[f"top-{k} {way}"] == pytest.approx(share(ranks[m, control, way], k, full)), (
                        control,
                        way,
                    )
            seen.append((row["top-1 foreground"], row["top-1 background"]))
        assert len(set(seen)) == len(seen)


def with_boxes(source, box):
    """The dataset with a box for each place, or its own where that is None."""

    def read(rank, n_ranks, position):
        for i, (row, mark) in enumerate(source.read(rank, n_ranks, position)):
            yield (row if box(i) is None else replace(row, boxes=(box(i),))), mark

    return replace(source, read=read)


def test_strata_are_by_the_share_of_the_boxes(trained, models, shapes, tmp_path):
    lasts = (10, 30, 45, 63)  # 17, 48, 72 and 100 % of the picture
    source = with_boxes(
        open_source(str(shapes)), lambda i: (0.0, 0.0, 63.0, lasts[i % 4]) if i else (0.0, 0.0, 63.0, 15.0)
    )
    result = run_experiment("background", [trained], source, BackgroundConfig(controls=False), tmp_path)

    pictures = read_pictures(shapes)
    truth, n = [p.label for p in pictures], np.arange(len(pictures))
    regions = [np.arange(64)[:, None].repeat(64, 1) <= (lasts[i % 4] if i else 15) for i in n]
    found = {"full": models[0].ranks([p.pixels for p in pictures], truth)}
    for way, hidden in (("foreground", [~r for r in regions]), ("background", regions)):
        found[way] = models[0].ranks([black(p, h) for p, h in zip(pictures, hidden, strict=True)], truth)
    rows = result.tables["table-area"].records()
    names = ["0 to 25 %", "25 to 50 %", "50 to 75 %", "75 to 100 %"]
    assert [r["share of the boxes"] for r in rows] == names
    for i, row in enumerate(rows):
        use = (n % 4 == i) & (n > 0) if i != 1 else (n % 4 == i) | (n == 0)  # exactly a quarter is in the second
        assert row["images"] == use.sum()
        for way in WAYS:
            relative = {} if way == "full" else {"full": found["full"]}
            assert row[f"top-1 {way}"] == pytest.approx(share(found[way], 1, use=use, **relative))
    assert len({row["top-1 foreground"] for row in rows}) == len({row["top-1 background"] for row in rows}) == 4


def test_differences_between_models_are_on_the_images_that_both_know(run, ranks):
    (row,) = run[0].tables["table-differences"].records()
    use = (ranks[0, "full"] >= 0) & (ranks[1, "full"] >= 0)
    assert row["images"] == use.sum() < (ranks[0, "full"] >= 0).sum()
    values = []
    for k in (5, 1):
        for way in WAYS:
            a, b = (
                share(ranks[m, "full"], k, use=use)
                if way == "full"
                else share(ranks[m, "black boxes", way], k, ranks[m, "full"], use)
                for m in (0, 1)
            )
            values.append(row[f"top-{k} {way}"])
            assert values[-1] == pytest.approx(b - a)
            assert row[f"top-{k} {way} low"] <= values[-1] <= row[f"top-{k} {way} high"]
    assert len(set(values)) == len(values)


def test_images_that_their_boxes_cover_count_with_a_black_background(trained, models, shapes, tmp_path):
    covering = with_boxes(open_source(str(shapes)), lambda i: None if i % 3 else (0.0, 0.0, 63.0, 63.0))
    result = run_experiment("background", [trained], covering, BackgroundConfig(controls=False), tmp_path)

    pictures = read_pictures(shapes)
    truth = [p.label for p in pictures]
    covered = np.arange(len(pictures)) % 3 == 0
    hidden = [np.ones((64, 64), bool) if c else inside_box(p) for c, p in zip(covered, pictures, strict=True)]
    full = models[0].ranks([p.pixels for p in pictures], truth)
    back = models[0].ranks([black(p, h) for p, h in zip(pictures, hidden, strict=True)], truth)
    (row,) = result.tables["table"].records()
    for k in (5, 1):
        everything, some = share(back, k, full), share(back, k, full, ~covered)
        assert row[f"top-{k} background"] == pytest.approx(everything)
        assert row[f"top-{k} background, only images with some"] == pytest.approx(some)
        assert abs(everything - some) > 1
    assert f"{(~covered).sum()} have some background" in result.tables["table"].notes[0]
    assert result.tables["table-area"].records()[3]["images"] == covered.sum()
    assert "table-controls" not in result.tables and "table-differences" not in result.tables


def test_the_papers_columns_stand_beside_ours_in_its_setting_only(run, trained, shapes, tmp_path, monkeypatch):
    assert not any("paper" in c for c in run[0].tables["table"].columns)
    notes = " ".join(run[0].tables["table"].notes)
    assert "The paper's numbers are shown only for what was measured as in the paper: the dataset is" in notes
    monkeypatch.setattr(type(WITH_BOXES), "difference", lambda *_: "")
    monkeypatch.setattr("vitviz_hf.experiments.accuracy.paper._name", lambda _: "ViT-L/32")
    config = BackgroundConfig(controls=False, limit=50)
    table = run_experiment("background", [trained], open_source(str(shapes)), config, tmp_path).tables["table"]
    row = table.records()[0]
    assert [row[f"top-{k} {way}, paper"] for k in (5, 1) for way in WAYS] == [99.32, 93.89, 31.07, 94.64, 90.63, 17.67]
    assert "permuted" in " ".join(table.notes)


def test_fills_of_a_picture_that_is_hidden_altogether():
    image = Image.new("RGB", (20, 10), "orange")
    hidden = np.ones((10, 20), bool)
    assert not np.asarray(hide(image, hidden, "mean color")).any()
    assert np.array_equal(np.asarray(hide(image, ~hidden, "mean color")), np.asarray(image))
    assert np.array_equal(np.asarray(hide(image, hidden, "blurred")), np.asarray(image))


def test_random_boxes_are_anywhere_in_the_picture_and_as_large():
    rng = np.random.default_rng(0)
    found = [random_boxes([Box((-5, 2, 3, 4))], (10, 6), rng)[0].corners for _ in range(500)]
    assert {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in found} == {(3, 2)}
    assert {x0 for x0, *_ in found} == set(range(7)) and {y0 for _, y0, *_ in found} == set(range(4))
    assert random_boxes([Box((0, 0, 9, 5))], (10, 6), rng) == [Box((0, 0, 9, 5))]


def test_masks_are_those_of_the_class_where_names_tell():
    import io

    values = np.array([[0, 1, 1, 2], [0, 3, 255, 2]], np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    row = Row("", "dog", b"", mask=file.getvalue(), mask_names=("Dog", "cat", "dog"))
    assert np.array_equal(class_mask(row, (4, 2)), (values == 1) | (values == 3))
    unnamed = Row("", "dog", b"", mask=file.getvalue())
    assert np.array_equal(class_mask(unnamed, (4, 2)), (values > 0) & (values < 255))
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 199, 200, 201]], np.uint8)).save(file, "PNG")
    assert class_mask(Row("", "dog", b"", mask=file.getvalue()), (4, 1)).tolist() == [[False, True, True, False]]
    assert class_mask(Row("", "dog", b""), (4, 2)) is None and class_mask(unnamed, (2, 4)) is None
    assert class_mask(Row("", "dog", b"", mask=b"damaged"), (4, 2)) is None


def test_the_accuracy_of_masked_pictures_is_that_of_pictures_masked_by_hand(vit, labelled, tmp_path):
    source = open_source(str(labelled))
    right = {"top-1 foreground": [], "top-1 background": []}
    for row, _ in source.read(0, 1, None):
        if row.label != "zebra":
            x0, y0, x1, y1 = map(int, row.boxes[0])
            pixels = np.array(open_image(row.data))
            front = np.zeros_like(pixels)
            front[y0 : y1 + 1, x0 : x1 + 1] = pixels[y0 : y1 + 1, x0 : x1 + 1]
            for way, masked in (("foreground", front), ("background", pixels - front)):
                seen = (to_pixels(vit, Image.fromarray(masked)) * 255).round() / 255
                right[f"top-1 {way}"].append(classify(vit, seen).top(1)[0][0][0] == row.label)

    result = run_experiment("background", [vit], source, BackgroundConfig(), tmp_path / "w")

    record = result.tables["table-plain"].records()[0]
    for column, hits in right.items():
        assert record[column] == pytest.approx(100 * np.mean(hits))
