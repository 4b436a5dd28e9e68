"""Drawing: what stands where, read from the pixels."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from vitviz_hf.inside import figures

GRAY = Image.new("RGB", (40, 40), (128, 128, 128))


def color(picture, patch, grid=(2, 2)):
    rows, cols = grid
    return picture.getpixel(
        (int((patch[1] + 0.5) * picture.width / cols), int((patch[0] + 0.5) * picture.height / rows))
    )


def test_colors_of_patches_are_painted_where_these_are():
    colors = np.zeros((2, 2, 3))
    colors[0, 1], colors[1, 0] = (1, 0, 0), (0, 0, 1)

    painted = figures.paint(GRAY, colors, opacity=1)

    assert [color(painted, p) for p in [(0, 0), (0, 1), (1, 0)]] == [(0, 0, 0), (255, 0, 0), (0, 0, 255)]


def test_a_picture_below_shines_through():
    assert color(figures.paint(GRAY, np.zeros((2, 2, 3)), opacity=0.5), (0, 0)) == (64, 64, 64)


def test_the_peak_of_a_map_is_told():
    assert figures.peak(np.array([[0.0, 1.0, 2.0], [9.25, 0.0, 1.0]])) == "highest 9.25 at patch 1,0"


def test_a_match_is_a_line_from_patch_to_patch():
    drawn = figures.match_lines(GRAY, GRAY, [((0, 0), (1, 1))], (2, 2))

    assert drawn.size == (96, 40)
    assert drawn.getpixel((48, 20)) == ImageColor.getrgb("#38d6ff")  # half-way from (10, 10) to (56 + 30, 30)
    assert drawn.getpixel((48, 36)) == (255, 255, 255)


def test_labels_have_colors_in_their_order_fainter_where_they_are_unlikely():
    labels, shares = np.array([[7, 7], [3, 9]]), np.array([[1.0, 0.0], [1.0, 1.0]])

    drawn = figures.label_map(GRAY, labels, shares, [7, 3], opacity=1)

    first, second = (ImageColor.getrgb(c) for c in figures.CLASS_COLORS[:2])
    assert np.allclose(color(drawn, (0, 0)), first, atol=1) and np.allclose(color(drawn, (1, 0)), second, atol=1)
    assert np.allclose(color(drawn, (0, 1)), 0.35 * np.array(first) + 0.65 * 128, atol=2)
    assert np.allclose(color(drawn, (1, 1)), ImageColor.getrgb("#8a8f98"), atol=1)  # a rare one


def test_a_chart_ends_where_its_numbers_do():
    drawn = figures.chart({"up": np.array([0.0, 1.0]), "down": np.array([1.0, 0.0])}, "Score", ("none", "all"))

    pixels = np.asarray(drawn.convert("RGB"), int)
    warm = np.argwhere((pixels[..., 0] > 200) & (pixels[..., 2] < 80))
    left, right = warm[warm[:, 1] < 70], warm[(warm[:, 1] > 410) & (warm[:, 0] < 190)]
    assert left[:, 0].min() > right[:, 0].min() + 100  # the first line rises


def test_a_map_sheet_has_one_scale_and_a_bar():
    weak, strong = np.full((2, 2), 0.1), np.array([[0.1, 1.0], [0.1, 0.1]])

    sheet = figures.map_sheet([GRAY], {"a": [weak], "b": [strong]}, "Two maps")

    pixels = np.asarray(sheet, int)
    assert (pixels.sum(-1) > 600).any() and sheet.height > 40 + 30 + 20 + 32


def test_what_was_drawn_keeps_its_numbers_and_its_words():
    drawn = figures.Drawn(GRAY, {"map": np.eye(2), "labels": ["a", "b"]}, "A map: highest 1 at patch 0,0")

    numbers, picture = np.load(io.BytesIO(drawn.to_npz())), Image.open(io.BytesIO(drawn.to_png()))

    assert np.array_equal(numbers["map"], np.eye(2)) and list(numbers["labels"]) == ["a", "b"]
    assert picture.text["told"] == "A map: highest 1 at patch 0,0"


@pytest.mark.parametrize("size", [(80, 40), (30, 60)])
def test_a_picture_is_enlarged_in_its_own_shape(size):
    assert max(figures.enlarged(Image.new("RGB", size), 120).size) == 120
    assert figures.enlarged(Image.new("RGB", size), 120).width == 120 * size[0] // max(size)


def test_pictures_stand_in_a_row_or_a_column():
    wide, high = Image.new("RGB", (30, 10)), Image.new("RGB", (10, 30))

    assert figures.beside(wide, high, gap=2).size == (42, 30)
    assert figures.below(wide, high, gap=2).size == (30, 44)
