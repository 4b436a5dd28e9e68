"""Drawing of what is found inside a picture: numbers in, pictures out. Knows no model."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw
from PIL.PngImagePlugin import PngInfo

from vitviz_hf.images import (
    Floats,
    color_bar,
    contact_sheet,
    encode,
    image_to_pixels,
    label_font,
    outline_patch,
    overlay,
    pixels_to_image,
)

SIDE = 336
"""Longer side in pixels of a picture that stands alone; of a small one it is half of that."""
CLASS_COLORS = (
    *("#4e9bff", "#ff9d3c", "#5fd38d", "#ff6b8b", "#b68cff"),
    *("#ffd84d", "#3fd6d0", "#d99a6c", "#ff8ee6", "#a6c34c"),
)
"""Of the labels that most patches have, in this order; what is rarer is gray."""
_RARE = "#8a8f98"
_LINES = ("#e8590c", "#1c8fd9", "#2f9e44", "#8a8f98")
_LINK = "#38d6ff"


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A picture, the numbers that it shows, and both in words."""

    picture: Image.Image
    numbers: Mapping[str, Any]
    """Name -> array, or what becomes one."""
    told: str
    """Says where the maximum is: an alt text."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the numbers."""
        return {name: np.shape(values) for name, values in self.numbers.items()}

    def to_npz(self) -> bytes:
        """The numbers as a NumPy archive."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{k: np.asarray(v) for k, v in self.numbers.items()})
        return buffer.getvalue()

    def to_png(self) -> bytes:
        """The picture with what it shows in words, as the field `told`."""
        info = PngInfo()
        info.add_itxt("told", self.told)
        return encode(self.picture, "PNG", pnginfo=info)


def peak(values: Floats) -> str:
    """Where a map [R, C] is highest, in words."""
    row, col = np.unravel_index(int(values.argmax()), values.shape)
    return f"highest {values.max():.3g} at patch {row},{col}"


def enlarged(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """The picture with a longer side of `side` pixels."""
    scale = side / max(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    return picture.resize(size, Image.Resampling.BICUBIC)


def paint(crop: Image.Image, colors: Floats, opacity: float = 0.85) -> Image.Image:
    """Colors [R, C, 3] in [0, 1], one block for each patch, over the picture in gray."""
    blocks = pixels_to_image(np.moveaxis(colors, -1, 0)).resize(crop.size, Image.Resampling.NEAREST)
    return Image.blend(crop.convert("L").convert("RGB"), blocks, opacity)


def tiles(pictures: Mapping[str, Image.Image], columns: int, title: str) -> Image.Image:
    """Pictures of one size in rows, each with its name below and the title above all."""
    return titled(contact_sheet(list(pictures.values()), list(pictures), columns), title)


def titled(picture: Image.Image, title: str) -> Image.Image:
    """The picture with a line of text above."""
    room = 30
    width = max(picture.width, round(label_font(15).getlength(title)) + 16)
    sheet = Image.new("RGB", (width, picture.height + room), "white")
    sheet.paste(picture, (0, room))
    ImageDraw.Draw(sheet).text((8, 8), title, "black", label_font(15))
    return sheet


def map_sheet(
    crops: Sequence[Image.Image], maps: Mapping[str, Sequence[Floats]], title: str, low: float | None = 0.0
) -> Image.Image:
    """Maps on pictures, one column for each name and one row for each picture, on one color scale.

    Args:
        maps: name -> a map [R, C] for each picture.
        low: at the lower end of the scale, at least 0; the lowest value if None.
    """
    every = [values for column in maps.values() for values in column]
    scale = (max(0.0, min(float(v.min()) for v in every)) if low is None else low, max(float(v.max()) for v in every))
    drawn = {
        f"{name}, {i + 1}" if len(crops) > 1 else name: overlay(crop, column[i] - scale[0], (0.0, scale[1] - scale[0]))
        for i, crop in enumerate(crops)
        for name, column in maps.items()
    }
    sheet = tiles(drawn, min(6, len(maps)), title)
    return _with_bar(sheet, scale)


def match_lines(
    left: Image.Image,
    right: Image.Image,
    pairs: Sequence[tuple[tuple[int, int], tuple[int, int]]],
    grid: tuple[int, int],
) -> Image.Image:
    """Two pictures side by side with a line from a patch of the left one to a patch of the right one for each pair."""
    gap = 16
    sheet = Image.new("RGB", (left.width + gap + right.width, max(left.height, right.height)), "white")
    for picture, x, side in ((left, 0, 0), (right, left.width + gap, 1)):
        for pair in pairs:
            picture = outline_patch(picture, pair[side], grid)
        sheet.paste(picture, (x, 0))
    draw = ImageDraw.Draw(sheet)
    for a, b in pairs:
        ends = [_middle(left, a, grid), _middle(right, b, grid)]
        line = (*ends[0], ends[1][0] + left.width + gap, ends[1][1])
        draw.line(line, "black", 4)
        draw.line(line, _LINK, 2)
    return sheet


def _middle(picture: Image.Image, patch: tuple[int, int], grid: tuple[int, int]) -> tuple[float, float]:
    return (patch[1] + 0.5) * picture.width / grid[1], (patch[0] + 0.5) * picture.height / grid[0]


def mark(picture: Image.Image, patches: Sequence[tuple[int, int]], grid: tuple[int, int]) -> Image.Image:
    """A copy of the picture with patches framed."""
    for patch in patches:
        picture = outline_patch(picture, patch, grid)
    return picture


def chart(lines: Mapping[str, Floats], title: str, ends: tuple[str, str], log: bool = False) -> Image.Image:
    """Lines over an even axis, with their names below.

    Args:
        ends: what stands at the two ends of the axis.
        log: on a logarithmic scale.
    """
    width, height, left, foot, top = 880, 520, 110, 150, 50
    values = {k: np.log10(np.maximum(v, 1e-6)) if log else np.asarray(v, float) for k, v in lines.items()}
    low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values())
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), label_font(26)
    floor, right = height - foot, width - 24
    draw.text((8, 8), title, "black", font)
    draw.line((left, top, left, floor, right, floor), "#777777", 2)
    for value, y in ((high, top), (low, floor)):
        draw.text((left - 10, y), f"{10**value if log else value:.3g}", "black", font, anchor="rm")
    draw.text((left, floor + 8), ends[0], "black", font)
    draw.text((right, floor + 8), ends[1], "black", font, anchor="ra")
    x = left
    for i, (name, points) in enumerate(values.items()):
        color = _LINES[i % len(_LINES)]
        across = np.linspace(left, right, len(points))
        down = floor - (points - low) / (high - low or 1) * (floor - top)
        draw.line([*zip(across, down, strict=True)], color, 5, "curve")
        draw.line((x, floor + 80, x + 40, floor + 80), color, 6)
        draw.text((x + 50, floor + 80), name, "black", font, anchor="lm")
        x += 80 + round(font.getlength(name))
    return sheet.resize((width // 2, height // 2), Image.Resampling.LANCZOS)


def label_map(
    crop: Image.Image, labels: NDArray[np.integer], shares: Floats, order: Sequence[int], opacity: float = 0.8
) -> Image.Image:
    """The label of each patch as a color, fainter where its probability is low.

    Args:
        labels: [R, C].
        shares: [R, C] in [0, 1].
        order: labels that have a color of their own, see `CLASS_COLORS`.
    """
    shade = {label: color for label, color in zip(order, CLASS_COLORS, strict=False)}
    shades = np.array([[ImageColor.getrgb(shade.get(int(label), _RARE)) for label in row] for row in labels], np.uint8)
    strength = 0.35 + 0.65 * shares[..., None]
    small = crop.convert("L").convert("RGB").resize(labels.shape[::-1], Image.Resampling.BOX)
    colors, gray = (np.moveaxis(image_to_pixels(p).numpy(), 0, -1) for p in (shades, small))
    return paint(crop, strength * colors + (1 - strength) * gray, opacity)


def legend(names: Sequence[tuple[str, float]]) -> Image.Image:
    """Names with the colors of `CLASS_COLORS`, and the share of patches that have each."""
    font, row = label_font(14), 24
    width = max((round(font.getlength(name)) for name, _ in names), default=0) + 100
    sheet = Image.new("RGB", (width, row * max(1, len(names)) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, share) in enumerate(names):
        y = 8 + row * i
        draw.rectangle((8, y, 22, y + 14), CLASS_COLORS[i])
        draw.text((30, y - 1), f"{name}  {share:.0%}", "black", font)
    return sheet


def text_sheet(lines: Sequence[str]) -> Image.Image:
    """Lines of text on white."""
    font, row = label_font(14), 21
    width = max((round(font.getlength(line)) for line in lines), default=0) + 24
    sheet = Image.new("RGB", (width, row * max(1, len(lines)) + 46), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(sheet).text((8, 38 + row * i), line, "black", font)
    return sheet


def beside(*pictures: Image.Image, gap: int = 12) -> Image.Image:
    """Pictures in a row, on white."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(p.height for p in pictures)), "white")
    x = 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width + gap
    return sheet


def below(*pictures: Image.Image, gap: int = 8) -> Image.Image:
    """Pictures in a column, on white."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height + gap for p in pictures)), "white")
    y = 0
    for picture in pictures:
        sheet.paste(picture, (0, y))
        y += picture.height + gap
    return sheet


def _with_bar(sheet: Image.Image, scale: tuple[float, float]) -> Image.Image:
    bar = color_bar((min(280, sheet.width - 16), 32), scale)
    framed = Image.new("RGB", (bar.width + 8, bar.height), "white")
    framed.paste(bar, (8, 0))
    return below(sheet, framed, gap=4)
