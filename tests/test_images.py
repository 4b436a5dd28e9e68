"""Pictures from strangers: the right result, or an error that says what is wrong."""

import io
import os
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from vitviz_hf import open_image
from vitviz_hf.errors import ImageError
from vitviz_hf.images import (
    bytes_to_image,
    bytes_to_pixels,
    color_bar,
    contact_sheet,
    heatmap,
    image_to_bytes,
    image_to_pixels,
    is_signed,
    map_panel,
    map_range,
    outline_patch,
    overlay,
    pixels_to_bytes,
    pixels_to_image,
    to_rgb,
    two_sided,
)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def gradient():
    values = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    return Image.fromarray(np.stack([values, values[::-1], values[:, ::-1]], -1))


def test_an_ordinary_picture_is_read_exactly(gradient, tmp_path):
    gradient.save(tmp_path / "a.png")

    assert np.array_equal(open_image(tmp_path / "a.png"), gradient)


def test_a_truncated_file_is_damaged(gradient):
    data = encoded(gradient, "JPEG")

    with pytest.raises(ImageError, match="damaged"):
        open_image(data[: len(data) // 2])


def test_a_truncated_png_is_damaged(gradient):
    data = encoded(gradient)

    with pytest.raises(ImageError, match="damaged"):
        open_image(data[: len(data) // 2])


def test_an_empty_file_is_named_empty():
    with pytest.raises(ImageError, match="empty"):
        open_image(b"")


def test_text_is_not_an_image():
    with pytest.raises(ImageError, match="not a supported image; use one of JPEG, PNG"):
        open_image(b"hello, I am not a picture")


def test_svg_is_named():
    with pytest.raises(ImageError, match="SVG drawings are not"):
        open_image(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>')


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png' cannot be read"):
        open_image(tmp_path / "nowhere.png")


def test_16_bit_gray_keeps_its_range():
    values = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)

    image = open_image(encoded(Image.fromarray(values)))

    assert image.mode == "RGB"
    assert np.abs(np.asarray(image)[..., 0] - values / 257.0).max() <= 1


def test_cmyk_keeps_its_colors():
    red = Image.new("RGB", (16, 16), (250, 10, 10))

    image = open_image(encoded(red.convert("CMYK"), "JPEG", quality=100))

    assert np.abs(np.asarray(image, int) - [250, 10, 10]).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_put_on_white(mode):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 4, 8))

    image = open_image(encoded(clear.convert(mode)))

    assert image.getpixel((1, 1)) == (0, 0, 0)
    assert image.getpixel((6, 6)) == (255, 255, 255)


def test_a_palette_with_a_transparent_index_is_put_on_white():
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 200, 0, 0] + [0] * 762)
    picture.paste(0, (0, 0, 4, 8))

    image = open_image(encoded(picture, transparency=1))

    assert image.getpixel((1, 1)) == (0, 0, 0)
    assert image.getpixel((6, 6)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]

    image = open_image(
        encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
    )

    assert image.getpixel((4, 4)) == (255, 0, 0)


def test_exif_rotation_is_applied():
    picture = Image.new("RGB", (20, 10), "white")
    picture.paste("red", (0, 0, 10, 10))  # left half
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise

    image = open_image(encoded(picture, "JPEG", exif=exif, quality=100, subsampling=0))

    assert image.size == (10, 20)
    assert image.getpixel((5, 3))[1] < 60 and image.getpixel((5, 16))[1] > 200


@pytest.mark.parametrize("facts", [b"MM\0*\0\0\0\x08\0", b"MM\0*\0\0\0\x08\0\1\1\x12\0\5", b"II*\0\xff", b"nothing"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_with_broken_exif_is_a_picture(facts, kind):
    picture = Image.new("RGB", (20, 10), "red")

    image = open_image(encoded(picture, kind, exif=b"Exif\0\0" + facts, quality=100))

    assert image.size == (20, 10) and image.getpixel((5, 5))[0] > 250


def test_a_transparent_value_of_16_bits_is_put_on_white():
    values = np.array([[9000, 18000], [27000, 18000]], np.uint16)
    made = encoded(Image.fromarray(values))
    at = made.index(b"IDAT") - 4

    image = open_image(made[:at] + _chunk(b"tRNS", struct.pack(">H", 18000)) + made[at:])

    assert np.asarray(image)[..., 0].tolist() == [[35, 255], [105, 255]]


def test_one_pixel_is_a_picture():
    assert open_image(encoded(Image.new("RGB", (1, 1), "red"))).getpixel((0, 0)) == (255, 0, 0)


def _png_header(width, height):
    """A PNG that claims a size and has no pixels: it must be refused before it is decoded."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("size", [(30_000, 30_000), (30_000, 3_000)])
def test_a_bomb_is_refused_before_it_is_decoded(size):
    with pytest.raises(ImageError, match=r"million are decoded|too large"):
        open_image(_png_header(*size))


def test_a_strip_is_refused_because_resizing_would_explode_it():
    with pytest.raises(ImageError, match="at most 20 times as long as wide"):
        to_rgb(Image.new("RGB", (30_000, 2)))


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(31_000_000)

    with pytest.raises(ImageError, match="31 MB; at most 30 MB"):
        open_image(path)


def test_pixels_round_trip_through_a_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7)) / 255

    assert np.array_equal(np.asarray(pixels_to_image(pixels)).transpose(2, 0, 1), np.round(pixels * 255))


def test_the_scale_is_one_for_all_maps_of_a_feature():
    assert map_range(np.array([[0.1, 2.0]]), np.array([[-0.1, 1.0]])) == (0.0, 2.0)
    assert map_range(np.array([[-3.0, 2.0]])) == (-3.0, 3.0)


def test_gelu_dips_do_not_make_a_map_signed():
    assert not is_signed(np.array([-0.17, 1.0]))
    assert is_signed(np.array([-0.17, 0.1]))


def test_heatmap_puts_the_bright_top_right_patch_there():
    values = np.zeros((4, 6))
    values[0, 5] = 1

    colors = np.asarray(heatmap(values, (60, 40), (0, 1))).astype(int).sum(-1)

    assert colors[:10, 50:].min() > 600
    colors[:10, 50:] = 0
    assert colors.max() < 20


def test_a_diverging_map_is_white_at_zero_blue_below_and_red_above():
    low, zero, high = np.asarray(heatmap(np.array([[-1.0, 0.0, 1.0]]), (3, 1), (-1, 1)))[0].astype(int)

    assert zero.min() > 250
    assert low[2] > low[0] + 40
    assert high[0] > high[2] + 40


def test_overlay_leaves_silent_patches_gray():
    picture = Image.new("RGB", (40, 40), (200, 40, 40))
    values = np.zeros((4, 4))
    values[3, 3] = 1

    drawn = np.asarray(overlay(picture, values, (0, 1))).astype(int)

    assert np.ptp(drawn[5, 5]) == 0
    assert np.ptp(drawn[35, 35]) > 40


@pytest.mark.parametrize("gray", [0, 60, 128, 255])
def test_overlay_is_the_brighter_the_stronger_and_paints_nothing_at_or_below_zero(gray):
    picture = Image.new("RGB", (52, 1), (gray, gray, gray))
    values = np.concatenate([[-0.165, 0.0], np.linspace(0.004, 1, 50)])[None]

    drawn = np.asarray(overlay(picture, values, (0, 1)).convert("L")).astype(int)[0]

    assert drawn[0] == drawn[1]
    assert (np.diff(drawn) >= -1).all()
    assert drawn[-1] > drawn[0] + 60


def test_overlay_on_a_scale_of_two_sides_paints_both():
    values = np.array([[-1.0, 0.0, 1.0]])

    low, zero, high = np.asarray(overlay(Image.new("RGB", (3, 1), "gray"), values, two_sided(values)))[0].astype(int)

    assert low[2] > low[0] + 40 and high[0] > high[2] + 40 and np.ptp(zero) == 0
    assert two_sided(np.array([-3.0, 2.0])) == (-3.0, 3.0)


def test_a_map_of_zeros_is_drawn():
    assert overlay(Image.new("RGB", (8, 8)), np.zeros((2, 2)), (0, 0)).size == (8, 8)


def test_panels_hold_picture_heatmap_and_overlay():
    picture = Image.new("RGB", (64, 48), "green")

    panel = map_panel(picture, np.eye(4), (0, 1), "a title")

    assert panel.width > 3 * 64 and panel.height > 48
    assert panel.getpixel((30, 50)) == (0, 128, 0)
    assert contact_sheet([picture] * 5, list("abcde"), 3).width > 3 * 64
    assert color_bar((64, 32), (-1, 1)).size == (64, 32)


def test_the_outlined_patch_is_framed():
    framed = np.asarray(outline_patch(Image.new("RGB", (80, 80), "black"), (1, 2), (4, 4)))

    assert framed[20, 50].min() == 255
    assert framed[30, 50].max() == 0
    assert framed[5, 5].max() == 0


def test_a_picture_as_bytes_pixels_and_array_is_the_same_picture(gradient):
    array = np.array(gradient)

    values, pixels = image_to_bytes(gradient), image_to_pixels(gradient)

    assert values.shape == (3, 48, 64) and values.dtype == torch.uint8 and pixels.dtype == torch.float32
    assert values[2, 5, 7] == array[5, 7, 2] and float(pixels[2, 5, 7]) == np.float32(array[5, 7, 2]) / np.float32(255)
    assert torch.equal(image_to_bytes(array), values) and torch.equal(bytes_to_pixels(values), pixels)
    assert torch.equal(pixels_to_bytes(pixels), values)
    for picture in (bytes_to_image(values), pixels_to_image(pixels), pixels_to_image(pixels.numpy())):
        assert np.array_equal(picture, array)


def test_pixels_are_rounded_and_cut_off_at_both_ends():
    pixels = torch.tensor([-0.3, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 7.0])

    assert pixels_to_bytes(pixels).tolist() == [0, 0, 0, 1, 255, 255, 255]


@pytest.mark.parametrize(("large", "expected"), [(True, 1), (False, 2)])
def test_large_pictures_are_decoded_one_at_a_time(large, expected, photo, monkeypatch):
    meeting, inside, most = threading.Barrier(2), [], []
    prepare = PngImageFile.load_prepare  # called once for each

    def watched(self):
        inside.append(id(self))
        most.append(len(inside))
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.3 if large else 30)
        inside.remove(id(self))
        prepare(self)

    monkeypatch.setattr(PngImageFile, "load_prepare", watched)
    monkeypatch.setattr("vitviz_hf.images._LARGE_PIXELS", 80 * 60 - large)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(open_image, [encoded(photo)] * 2))

    assert max(most) == expected


def test_what_decoding_takes_is_given_back():
    """malloc keeps no block over 32 MB that is freed; what that makes of a search is measured by `make stress`."""
    assert Image.core.get_block_size() > 32 * 2**20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_fork_reads_large_pictures_though_another_thread_was_at_one(photo, monkeypatch):
    monkeypatch.setattr("vitviz_hf.images._LARGE_PIXELS", 0)
    begun, prepare, data = threading.Event(), PngImageFile.load_prepare, encoded(photo)

    def slow(self):
        begun.set()
        time.sleep(0.3)
        prepare(self)

    monkeypatch.setattr(PngImageFile, "load_prepare", slow)
    other = threading.Thread(target=open_image, args=[data])
    other.start()
    begun.wait()
    child = get_context("fork").Process(target=open_image, args=[data], daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child.start()
    other.join()
    child.join(30)

    assert child.exitcode == 0
    child.close()
