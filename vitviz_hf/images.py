"""Safe decoding of strangers' pictures, and drawing of maps on them. Knows no model."""

import io
import os
import struct
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.Image import DecompressionBombError
from torch import Tensor

from vitviz_hf.errors import ImageError

Floats = NDArray[np.floating]

MAX_BYTES = 30_000_000
MAX_PIXELS = 50_000_000
MAX_ASPECT = 20
# Of the memory that Pillow asks for at once: what is larger than 32 MB is never kept by malloc when it is freed.
Image.core.set_block_size(64 * 2**20)  # type: ignore[attr-defined]
# Decoding takes up to 20 bytes for a pixel: one picture of so many at a time, whoever reads it.
_LARGE_PIXELS, _ONE_LARGE = 5_000_000, Lock()
if hasattr(os, "register_at_fork"):  # on ZeroGPU a job is a fork, which must not wait for what is not in it
    os.register_at_fork(
        before=_ONE_LARGE.acquire, after_in_parent=_ONE_LARGE.release, after_in_child=_ONE_LARGE.release
    )
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# What Pillow raises on files that are not whole.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, TypeError, LookupError, ArithmeticError)

# Dark to light, for maps without meaningful negative values (the color map "inferno" at nine points).
_SEQUENTIAL = ("000004", "1f0c48", "550f6d", "88226a", "ba3655", "e35933", "f98e09", "f9cb35", "fcffa4")
# Blue is negative, red positive, white is exactly zero.
_DIVERGING = ("053061", "2f79b5", "8fc4dd", "dbeaf2", "ffffff", "fbe0d0", "f4a582", "c13639", "67001f")

# Of the photograph and of the colors on it: so weak places are not darker than silent ones, whatever lies below.
_DIMMED, _ADDED = 0.6, 0.9


def open_image(source: str | Path | bytes) -> Image.Image:
    """A picture from a file or bytes, as RGB: upright, first frame, transparency on white.

    Raises:
        ImageError: missing, empty, damaged, of an unknown format, or too large to decode safely.
    """
    data = source if isinstance(source, bytes) else _read(Path(source))
    if not data:
        raise ImageError("the image file is empty (0 bytes).")
    if len(data) > MAX_BYTES:
        raise ImageError(f"the image file has {len(data) / 1e6:.0f} MB; at most {MAX_BYTES / 1e6:.0f} MB are read.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(image)
                with _ONE_LARGE if image.width * image.height > _LARGE_PIXELS else nullcontext():
                    return to_rgb(image)
    except UnidentifiedImageError as error:
        kind = "SVG drawings are" if b"<svg" in data[:1000].lower() else "this file is"
        raise ImageError(f"{kind} not a supported image; use one of {', '.join(_FORMATS)}.") from error
    except DecompressionBombError as error:
        raise ImageError(f"the image is too large: {error}") from error
    except _DAMAGED as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"the image file is damaged: {error}.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB: EXIF rotation applied, 16-bit scaled, transparency put on white.

    Raises:
        ImageError: too many pixels, or more than 20 times as long as wide.
    """
    _check_size(image)
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _scaled_to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    made = image.convert("RGB")
    for name in ("exif", "Raw profile type exif"):  # it has been obeyed, or is broken
        made.info.pop(name, None)
    return made


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file of a Pillow format, such as PNG or JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture scaled (bicubic) to cover (height, width), and cropped at the center."""
    height, width = size
    scale = max(height / image.height, width / image.width)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    resized = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def pixels_to_bytes(pixels: Tensor) -> Tensor:
    """[..., 3, H, W] in [0, 1], what is outside cut off -> the same in 8 bits."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def bytes_to_pixels(values: Tensor) -> Tensor:
    """[..., 3, H, W] in 8 bits -> the same as float32 in [0, 1]."""
    return values.float() / 255


def image_to_bytes(image: Image.Image | NDArray[np.uint8]) -> Tensor:
    """RGB picture, or an array [H, W, 3] of one -> [3, H, W] in 8 bits."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def bytes_to_image(values: Tensor) -> Image.Image:
    """[3, H, W] in 8 bits -> picture; `np.array` of it is [H, W, 3]."""
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def image_to_pixels(image: Image.Image | NDArray[np.uint8]) -> Tensor:
    """RGB picture, or an array [H, W, 3] of one -> [3, H, W] in [0, 1]. For a model's resize see `to_pixels`."""
    return bytes_to_pixels(image_to_bytes(image))


def pixels_to_image(pixels: Tensor | Floats) -> Image.Image:
    """[3, H, W] in [0, 1] -> 8-bit picture."""
    return bytes_to_image(pixels_to_bytes(torch.as_tensor(pixels)))


def is_signed(values: Floats) -> bool:
    """Whether negative values matter enough for a diverging color map: at least a fifth of the positive ones.

    GELU never goes below -0.17, so a map of a firing GELU feature counts as unsigned.
    """
    return bool(values.min() < 0 and -values.min() >= 0.2 * values.max())


def two_sided(values: Floats) -> tuple[float, float]:
    """A color scale that is symmetric around 0."""
    high = float(np.abs(values).max())
    return -high, high


def map_range(*maps: Floats) -> tuple[float, float]:
    """One color scale for all maps of a feature: (0, max), or symmetric around 0 if they are signed."""
    low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
    if is_signed(np.array([low, high])):
        high = max(-low, high)
        return -high, high
    return 0.0, high


def heatmap(values: Floats, size: tuple[int, int], scale: tuple[float, float]) -> Image.Image:
    """A map [R, C] as colors, one block for each patch.

    Args:
        size: (width, height) of the picture.
        scale: (low, high) values at the ends of the color map; diverging if low < 0.
    """
    palette = _palette(_DIVERGING if scale[0] < 0 else _SEQUENTIAL)
    span = scale[1] - scale[0]
    position = (values - scale[0]) / span if span > 0 else np.zeros_like(values)
    colors = palette[(position.clip(0, 1) * 255).round().astype(int)]
    return Image.fromarray(colors).resize(size, Image.Resampling.NEAREST)


def overlay(image: Image.Image, values: Floats, scale: tuple[float, float], opacity: float = 0.75) -> Image.Image:
    """The picture in gray with the map over it.

    On a scale from 0 the stronger is the brighter, and values of 0 and less are not painted. On a scale of two sides
    values of either sign are painted, more opaque where they are far from 0.
    """
    colors, gray = heatmap(values, image.size, scale), ImageOps.grayscale(image).convert("RGB")
    limit = max(abs(scale[0]), abs(scale[1]))
    shown = np.abs(values) if scale[0] < 0 else values.clip(min=0)
    strength = (shown / limit).clip(0, 1) if limit > 0 else np.zeros_like(values)
    if scale[0] < 0:
        return Image.composite(colors, gray, _blocks(255 * opacity * strength**0.5, image.size))
    # The color is added, not mixed in: dark colors would make weak places darker than silent ones.
    kept = ImageChops.multiply(gray, _blocks(255 * _DIMMED * (1 - opacity * strength), image.size).convert("RGB"))
    added = ImageChops.multiply(colors, _blocks(255 * _ADDED * (strength > 0), image.size).convert("RGB"))
    return ImageChops.add(kept, added)


def _blocks(values: Floats, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def palette_stops(scale: tuple[float, float]) -> list[str]:
    """The colors of a heatmap's scale, evenly spaced from low to high, as #rrggbb."""
    return [f"#{color}" for color in (_DIVERGING if scale[0] < 0 else _SEQUENTIAL)]


def color_bar(size: tuple[int, int], scale: tuple[float, float]) -> Image.Image:
    """Horizontal legend of a color scale, with the values at its ends and at zero."""
    width, height = size
    ramp = np.linspace(scale[0], scale[1], width)[None].repeat(1, axis=0)
    bar = Image.new("RGB", size, "white")
    bar.paste(heatmap(ramp, (width, height // 2), scale), (0, 0))
    draw, font = ImageDraw.Draw(bar), label_font(height // 2 - 2)
    draw.text((0, height // 2), f"{scale[0]:.3g}", "black", font)
    draw.text((width, height // 2), f"{scale[1]:.3g}", "black", font, anchor="ra")
    if scale[0] < 0:
        draw.text((width // 2, height // 2), "0", "black", font, anchor="ma")
    return bar


def map_panel(image: Image.Image, values: Floats, scale: tuple[float, float], title: str) -> Image.Image:
    """Picture | heatmap | overlay, with the title above and the value range below."""
    width, height = image.size
    tiles = [image, heatmap(values, image.size, scale), overlay(image, values, scale)]
    gap, head, foot = 8, 26, 30
    panel = Image.new("RGB", (3 * width + 4 * gap, height + head + foot + gap), "white")
    for i, tile in enumerate(tiles):
        panel.paste(tile, (gap + i * (width + gap), head))
    text = f"{title}   values {values.min():.3g} to {values.max():.3g}, mean {values.mean():.3g}"
    ImageDraw.Draw(panel).text((gap, 5), text, "black", label_font(14))
    panel.paste(color_bar((width, foot), scale), (width + 2 * gap, head + height + 4))
    return panel


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """Pictures of one size in rows of `columns`, each with its caption below."""
    width, height = images[0].size
    gap, foot = 8, 20
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + foot + gap) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), label_font(13)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + foot + gap)
        sheet.paste(image, (x, y))
        draw.text((x, y + height + 2), caption, "black", font)
    return sheet


def outline_patch(image: Image.Image, patch: tuple[int, int], grid: tuple[int, int]) -> Image.Image:
    """A copy of the picture with one patch (row, column) of the grid framed."""
    width, height = image.size[0] / grid[1], image.size[1] / grid[0]
    row, col = patch
    box = (col * width, row * height, (col + 1) * width - 1, (row + 1) * height - 1)
    framed = image.copy()
    draw = ImageDraw.Draw(framed)
    draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline="black", width=1)
    draw.rectangle(box, outline="white", width=2)
    return framed


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(
                f"'{path}' has {path.stat().st_size / 1e6:.0f} MB; at most {MAX_BYTES / 1e6:.0f} MB are read."
            )
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"'{path}' cannot be read: {error.strerror}.") from error


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"the image has {width}x{height} pixels; at most {MAX_PIXELS // 10**6} million are decoded.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"the image has {width}x{height} pixels; at most {MAX_ASPECT} times as long as wide.")


def _upright(image: Image.Image) -> Image.Image:
    """As its EXIF says, which may be broken in a picture that is whole."""
    image.load()  # raises here what is wrong with the picture itself
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:  # spares a copy
            return image
        return ImageOps.exif_transpose(image)
    except _DAMAGED:
        return image


def _scaled_to_8_bit(image: Image.Image) -> Image.Image:
    values, clear = np.asarray(image), image.info.get("transparency")
    if image.mode == "F":
        top = 1.0 if values.max(initial=0) <= 1 else 255.0
    else:
        top = 65535.0 if values.max(initial=0) > 255 or image.mode.startswith("I;16") else 255.0
    parts = (rows.astype(np.float64).clip(0, top) for rows in np.array_split(values, 64))  # not all at once
    levels = np.concatenate([(rows / top * 255).round().astype(np.uint8) for rows in parts])
    return Image.fromarray(levels if clear is None else np.where(values == clear, np.uint8(255), levels))


def _palette(anchors: Sequence[str]) -> NDArray[np.uint8]:
    """256 colors interpolated between hexadecimal anchors."""
    points = np.array([[int(a[i : i + 2], 16) for i in (0, 2, 4)] for a in anchors])
    x = np.linspace(0, len(anchors) - 1, 256)
    return np.stack([np.interp(x, range(len(anchors)), points[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def label_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, so that labels look the same everywhere."""
    return ImageFont.load_default(size)
