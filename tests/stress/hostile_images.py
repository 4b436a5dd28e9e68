"""Pictures as strangers send them, each from a seed, with what must come of it."""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BOUND = 50_000_000
"""Pixels that are decoded at most, and the longest side in shortest ones."""
ASPECT = 20


@dataclass(frozen=True)
class Case:
    """One file."""

    name: str
    data: bytes
    pixels: NDArray[np.uint8] | None = None
    """[H, W, 3] that it must give; None where nothing is known of them."""
    off: int = 0
    """By how much a value may differ."""
    refused: bool = False
    """There must be an error; without it and `pixels` there may be one."""


def cases(seed: int, n: int, with_large: bool = True) -> Iterator[Case]:
    """The n cases of a seed: every maker in turn, each case from its own number."""
    makers = [m for m in MAKERS if with_large or m not in LARGE]
    order = random.Random(seed).sample(makers, len(makers))
    for i in range(n):
        made = order[i % len(order)](np.random.default_rng([seed, i]))
        yield Case(f"{made.name} (case {i} of seed {seed})", made.data, made.pixels, made.off, made.refused)


# Files of the formats, written here and not by Pillow, so that what they hold is known.


def png(
    rows: NDArray[np.uint8], size: tuple[int, int], depth: int, color: int, extra: bytes = b"", adam7=False
) -> bytes:
    """Rows of packed samples [H, bytes], or with `adam7` the bytes of its passes."""
    data = rows.tobytes() if adam7 else np.pad(rows, ((0, 0), (1, 0))).tobytes()
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, int(adam7))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data, 1)) + chunk(b"IEND")
    )


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(values: NDArray[np.integer], depth: int) -> NDArray[np.uint8]:
    """Samples [H, W] as rows of bytes."""
    if depth == 16:
        return values.astype(">u2").view(np.uint8).reshape(len(values), -1)
    bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :]
    return np.packbits(bits.reshape(len(values), -1), axis=1)


def tiff(samples: NDArray[np.integer], photometric: int, order: str) -> bytes:
    """Samples [H, W, C] of 8 or 16 bits, little (<) or big (>) endian, in one strip."""
    height, width, n = samples.shape
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    bits = 8 * samples.dtype.itemsize
    mark = b"II*\0" if order == "<" else b"MM\0*"
    after = 8 + 2 + 12 * 9 + 4
    wide = struct.pack(f"{order}{n}H", *[bits] * n)
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, n, bits if n == 1 else after),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, after + len(wide)),
        (277, 3, 1, n),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    table = b"".join(
        struct.pack(f"{order}HHI", tag, kind, times)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 and times == 1 else struct.pack(f"{order}I", value))
        for tag, kind, times, value in entries
    )
    head = mark + struct.pack(f"{order}I", 8) + struct.pack(f"{order}H", len(entries))
    return head + table + bytes(4) + wide + data


def bmp(pixels: NDArray[np.uint8], upside_down: bool) -> bytes:
    height, width, _ = pixels.shape
    rows = pixels[::-1] if not upside_down else pixels
    body = np.pad(rows[..., ::-1].reshape(height, -1), ((0, 0), (0, -3 * width % 4))).tobytes()
    info = struct.pack("<IiiHHIIiiII", 40, width, -height if upside_down else height, 1, 24, 0, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + info + body


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(colors: NDArray[np.integer], alpha: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Colors [H, W, 3] of an opacity [H, W], both of 8 bits."""
    a = alpha[..., None] / 255
    return (colors * a + 255 * (1 - a)).round().astype(np.uint8)


def gray(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    return np.repeat(values[..., None], 3, 2).astype(np.uint8)


def noise(rng, *shape: int, top: int = 256) -> NDArray[np.int64]:
    return rng.integers(0, top, shape)


def sides(rng, least: int = 6) -> tuple[int, int]:
    return int(rng.integers(least, 60)), int(rng.integers(least, 60))


def a_valid_file(rng) -> tuple[str, bytes]:
    """Of any format, with what its writer offers."""
    height, width = sides(rng, 12)
    image = Image.fromarray(noise(rng, height, width, 4).astype(np.uint8))
    kind = str(rng.choice(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]))
    mode = str(
        rng.choice({"JPEG": ["RGB", "L", "CMYK"], "BMP": ["RGB", "L", "1", "P"]}.get(kind, ["RGB", "L", "P", "RGBA"]))
    )
    options = {
        "JPEG": {"progressive": bool(rng.integers(2)), "restart_marker_blocks": int(rng.integers(3))},
        "WEBP": {"lossless": bool(rng.integers(2))},
        "TIFF": {"compression": str(rng.choice(["raw", "tiff_lzw", "tiff_deflate", "packbits"]))},
    }.get(kind, {})
    made = image.convert("CMYK") if mode == "CMYK" else image.convert("RGB").convert(mode) if mode != "RGBA" else image
    if kind in ("GIF", "WEBP", "PNG") and rng.integers(2):
        options |= {"save_all": True, "append_images": [made.transpose(Image.Transpose.ROTATE_180)], "duration": 50}
    return f"{kind} {mode}", saved(made, kind, **options)


# Valid, but odd.


def gray_of_16_bits(rng) -> Case:
    height, width = sides(rng)
    top = int(rng.choice([200, 4096, 65536]))
    values = noise(rng, height, width, top=top)
    kind = str(rng.choice(["png", "tiff <", "tiff >"]))
    data = png(packed(values, 16), (width, height), 16, 0)
    if kind != "png":
        data = tiff(values[..., None].astype(np.uint16), 1, kind[-1])
    return Case(f"16 bits gray up to {top}, {kind}", data, gray(np.round(values / 257)))


def gray_of_16_bits_with_a_transparent_value(rng) -> Case:
    height, width = sides(rng)
    values = noise(rng, height, width, top=5) * 9000
    expected = gray(np.where(values == 18000, 255, np.round(values / 257)))
    extra = chunk(b"tRNS", struct.pack(">H", 18000))
    return Case(
        "16 bits gray with a transparent value", png(packed(values, 16), (width, height), 16, 0, extra), expected
    )


def color_of_16_bits(rng) -> Case:
    height, width = sides(rng)
    channels = int(rng.choice([3, 4]))
    values = noise(rng, height, width, channels, top=65536)
    rows = packed(values.reshape(height, -1), 16)
    eight = np.round(values / 257)
    expected = eight if channels == 3 else on_white(eight[..., :3], eight[..., 3])
    return Case(
        f"16 bits, {channels} channels",
        png(rows, (width, height), 16, 2 if channels == 3 else 6),
        expected.astype(np.uint8),
        2,
    )


def palette_with_transparency(rng) -> Case:
    height, width = sides(rng)
    depth = int(rng.choice([1, 2, 4, 8]))
    n = int(rng.integers(2, 2**depth + 1))
    colors, alphas = noise(rng, n, 3), noise(rng, int(rng.integers(1, n + 1)))
    places = noise(rng, height, width, top=n)
    opacity = np.concatenate([alphas, np.full(n - len(alphas), 255)])
    extra = chunk(b"PLTE", colors.astype(np.uint8).tobytes()) + chunk(b"tRNS", alphas.astype(np.uint8).tobytes())
    data = png(packed(places, depth), (width, height), depth, 3, extra)
    return Case(f"palette of {n} colors in {depth} bits", data, on_white(colors[places], opacity[places]), 1)


def gray_of_few_bits_with_a_transparent_value(rng) -> Case:
    height, width = sides(rng)
    depth = int(rng.choice([1, 8]))  # Pillow compares 2 and 4 bits with the value before it is scaled
    values = noise(rng, height, width, top=2**depth)
    clear = int(rng.integers(2**depth))
    levels = np.round(values * 255 / (2**depth - 1)).astype(int)
    data = png(packed(values, depth), (width, height), depth, 0, chunk(b"tRNS", struct.pack(">H", clear)))
    return Case(f"gray of {depth} bits with a transparent value", data, gray(np.where(values == clear, 255, levels)))


def gray_with_alpha(rng) -> Case:
    height, width = sides(rng)
    values = noise(rng, height, width, 2)
    data = png(values.astype(np.uint8).reshape(height, -1), (width, height), 8, 4)
    return Case("gray and alpha", data, on_white(gray(values[..., 0]), values[..., 1]), 1)


def color_with_a_transparent_one(rng) -> Case:
    height, width = sides(rng)
    values = noise(rng, height, width, 3, top=2) * 255
    clear = np.array([255, 0, 255])
    extra = chunk(b"tRNS", struct.pack(">HHH", *clear))
    data = png(values.astype(np.uint8).reshape(height, -1), (width, height), 8, 2, extra)
    expected = np.where((values == clear).all(2, keepdims=True), 255, values)
    return Case("one transparent color", data, expected.astype(np.uint8))


def interlaced(rng) -> Case:
    height, width = sides(rng, 1) if rng.integers(2) else (1, int(rng.integers(1, 20)))
    if max(height, width) > ASPECT * min(height, width):
        height = width
    values = noise(rng, height, width, 3).astype(np.uint8)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [values[y::down, x::right] for y, x, down, right in passes]
    data = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    return Case("interlaced", png(np.frombuffer(data, np.uint8), (width, height), 8, 2, adam7=True), values)


def cmyk(rng) -> Case:
    height, width = sides(rng)
    inks = noise(rng, height, width, 4).astype(np.uint8)
    expected = np.round((255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255).astype(np.uint8)
    if rng.integers(2):
        return Case("CMYK TIFF", tiff(inks, 5, str(rng.choice(["<", ">"]))), expected, 1)
    flat = np.broadcast_to(inks[:1, :1], inks.shape)
    data = saved(Image.fromarray(np.ascontiguousarray(flat), "CMYK"), "JPEG", quality=100)
    return Case("CMYK JPEG", data, np.broadcast_to(expected[:1, :1], expected.shape), 6)


def bitmap(rng) -> Case:
    values = noise(rng, *sides(rng), 3).astype(np.uint8)
    upside_down = bool(rng.integers(2))
    return Case(f"bitmap{' from the top' * upside_down}", bmp(values, upside_down), values)


def floats(rng) -> Case:
    values = rng.random(sides(rng)).astype(np.float32)
    return Case("floats", saved(Image.fromarray(values), "TIFF"), gray(np.round(values * 255)), 1)


def animation(rng) -> Case:
    height, width = sides(rng)
    kind = str(rng.choice(["GIF", "WEBP", "PNG"]))
    colors = noise(rng, 8, 3).astype(np.uint8)
    frames = [colors[noise(rng, height, width, top=8)] for _ in range(int(rng.integers(2, 5)))]
    first, *rest = map(Image.fromarray, frames)
    if kind == "GIF":
        first, *rest = [i.quantize(8, dither=Image.Dither.NONE) for i in (first, *rest)]
        frames[0] = np.array(first.convert("RGB"))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = saved(first, kind, save_all=True, append_images=rest, duration=40, loop=0, **options)
    return Case(f"animated {kind}", data, frames[0])


TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: np.rot90(p),
}
"""Stored pixels -> upright ones, by the table of the EXIF standard."""


def exif(orientation: int, order: str = ">") -> bytes:
    mark = b"MM\0*" if order == ">" else b"II*\0"
    return mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


def turned(rng) -> Case:
    values = noise(rng, *sides(rng), 3).astype(np.uint8)
    turn, order = int(rng.integers(1, 9)), str(rng.choice([">", "<"]))
    kind = str(rng.choice(["PNG", "WEBP"]))
    height, width, _ = values.shape
    facts = exif(turn, order)
    if kind == "PNG":
        data = png(values.reshape(height, -1), (width, height), 8, 2, chunk(b"eXIf", facts))
    else:
        data = saved(Image.fromarray(values), "WEBP", lossless=True, exact=True, exif=b"Exif\0\0" + facts)
    return Case(f"turned {kind} ({turn}, {order})", data, TURNS[turn](values))


def broken_exif(rng) -> Case:
    """The picture itself is whole, so it must be read; which way up it is may be lost."""
    side = sides(rng)[0]
    values = np.broadcast_to(noise(rng, 1, 1, 3).astype(np.uint8), (side, side, 3))
    facts = bytearray(exif(int(rng.choice([0, 9, 65535, 3]))))
    how = int(rng.integers(5))
    if how == 0:
        facts = bytearray(rng.bytes(int(rng.integers(1, 200))))
    elif how == 1:
        facts = facts[: int(rng.integers(1, len(facts)))]
    elif how == 2:  # types and numbers of values that do not fit
        facts[8:24] = rng.bytes(16)
    elif how == 3:  # an offset far away
        facts[12:20] = struct.pack(">HHI", 274, int(rng.integers(0, 14)), int(rng.integers(2**32)))
    elif how == 4:  # a rational over zero, as orientation
        facts = facts[:10] + struct.pack(">HHII", 274, 5, 1, 26) + bytes(4) + struct.pack(">II", 1, 0)
    kind = str(rng.choice(["PNG", "JPEG", "WEBP"]))
    if kind == "PNG":
        data = png(values.reshape(side, -1), (side, side), 8, 2, chunk(b"eXIf", bytes(facts)))
    else:
        data = saved(Image.fromarray(values), kind, quality=100, exif=b"Exif\0\0" + bytes(facts))
    return Case(f"broken EXIF in {kind} ({how})", data, values, 6)


def odd_extras(rng) -> Case:
    """A whole PNG with extra chunks of nonsense, and what stands behind its end."""
    height, width = sides(rng)
    values = noise(rng, height, width, 3).astype(np.uint8)
    kinds = [b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"zzZz", b"hIST", b"bKGD", b"sBIT"]
    extra = b"".join(
        chunk(kinds[k], rng.bytes(int(rng.integers(10, 40)))) for k in rng.choice(len(kinds), 2, replace=False)
    )
    return Case(f"odd chunks {extra[4:8]!r}", png(values.reshape(height, -1), (width, height), 8, 2, extra))


_MARKUP = b"<html><script>alert(1)</script><img src=x onerror=alert(2)></html>"
_PDF = b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog /OpenAction << /S /JavaScript /JS (app.alert\\(1\\)) >> >>\nendobj\n%%EOF"
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><image href="http://127.0.0.1:9/x"/></svg>'
_ZIP = b"PK\3\4" + bytes(26) + b"PK\5\6" + bytes(18)


def polyglot(rng) -> Case:
    """A whole picture with another file behind it or inside it."""
    height, width = sides(rng)
    values = noise(rng, height, width, 3).astype(np.uint8)
    other = [_MARKUP, _PDF, _SVG, _ZIP, b"\nimport os; os.abort()\n", b"<?php system($_GET[0]); ?>"][rng.integers(6)]
    if rng.integers(2):
        return Case(f"PNG and {other[:8]!r}", png(values.reshape(height, -1), (width, height), 8, 2) + other, values)
    inside = chunk(b"tEXt", b"Comment\0" + other)
    return Case(f"{other[:8]!r} in a PNG", png(values.reshape(height, -1), (width, height), 8, 2, inside), values)


def two_pictures(rng) -> Case:
    """As cameras write: the first of several pictures in one JPEG."""
    color = noise(rng, 1, 1, 3).astype(np.uint8)
    values = np.broadcast_to(color, (24, 16, 3))
    data = saved(
        Image.fromarray(np.ascontiguousarray(values)),
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (16, 24))],
        quality=100,
    )
    return Case("two pictures in a JPEG", data, values, 6)


def small(rng) -> Case:
    length = int(rng.integers(1, 26))
    values = noise(rng, 1, length, 3).astype(np.uint8)
    if rng.integers(2):
        values = values.transpose(1, 0, 2)
    height, width, _ = values.shape
    data = png(values.reshape(height, -1), (width, height), 8, 2)
    return Case(f"{width}x{height}", data, None if length > ASPECT else values, refused=length > ASPECT)


# Too large, or more than it seems.


def large(rng) -> Case:
    """As large as is decoded, or a little larger, of few bytes and every kind of sample."""
    width, height = [
        (7071, 7071),
        (20_000, 2_500),
        (2_500, 20_000),
        (20_000, 1_000),
        (7072, 7071),
        (20_001, 1_000),
        (20_000, 20_000),
    ][rng.integers(7)]
    color, depth = [(0, 1), (0, 8), (0, 16), (2, 8), (2, 16), (3, 8), (4, 8), (6, 8), (6, 16)][rng.integers(9)]
    n = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = (width * n * depth + 7) // 8
    too_large = width * height > BOUND or max(width, height) > ASPECT * min(width, height)
    squeeze = zlib.compressobj(1)
    body = b"".join(squeeze.compress(bytes(row + 1)) for _ in range(1 if too_large else height)) + squeeze.flush()
    palette = chunk(b"PLTE", bytes(range(30))) + chunk(b"tRNS", bytes(10)) if color == 3 else b""
    facts = chunk(b"eXIf", exif(int(rng.integers(1, 9))))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + facts + palette + chunk(b"IDAT", body) + chunk(b"IEND")
    return Case(f"{width}x{height} of color {color} in {depth} bits", data, refused=too_large)


def large_elsewhere(rng) -> Case:
    kind = str(rng.choice(["JPEG", "GIF", "WEBP", "TIFF", "BMP"]))
    image = Image.new(str(rng.choice(["L", "RGB"])), (7000, 7000), 90)
    if kind == "GIF" and rng.integers(2):
        return Case("large GIF", saved(image.convert("P"), "GIF", transparency=0))
    options = {"TIFF": {"compression": "tiff_deflate"}, "JPEG": {"progressive": bool(rng.integers(2))}}.get(kind, {})
    if kind == "BMP":  # over 30 MB, so smaller
        image = Image.new("1", (7000, 7000))
    return Case(f"large {kind}", saved(image, kind, **options))


def claims_to_be_large(rng) -> Case:
    """A header that tells of more than there is."""
    width, height = int(rng.integers(8_000, 2**31)), int(rng.integers(8_000, 2**31))
    how = int(rng.integers(4))
    if how == 0:
        return Case("a huge PNG without data", png(np.zeros((0, 1), np.uint8), (width, height), 8, 2), refused=True)
    if how == 1:
        made = bytearray(saved(Image.new("RGB", (16, 16)), "BMP"))
        made[18:26] = struct.pack("<ii", width, height)
    elif how == 2:
        made = bytearray(saved(Image.new("RGB", (16, 16)), "JPEG"))
        at = made.index(b"\xff\xc0")
        made[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    else:
        made = bytearray(saved(Image.new("L", (16, 16)), "GIF"))
        made[6:10] = struct.pack("<HH", 65_000, 65_000)
    return Case(f"a header that claims too much ({how})", bytes(made), refused=True)


def canvas_of_an_animation(rng) -> Case:
    """A WEBP whose canvas takes a gigabyte before a pixel is asked for."""
    made = bytearray(
        saved(Image.new("RGB", (16, 16)), "WEBP", save_all=True, append_images=[Image.new("RGB", (16, 16), "red")])
    )
    at = made.index(b"VP8X") + 12
    side = int(rng.integers(8_000, 16_383))
    made[at : at + 6] = struct.pack("<I", side)[:3] * 2
    return Case(f"an animated WEBP with a canvas of {side + 1}", bytes(made), refused=True)


def long_text(rng) -> Case:
    """Chunks that unpack to 100 MB."""
    squeezed = zlib.compress(bytes(100_000_000), 1)
    kind = [b"zTXt", b"iTXt", b"iCCP"][rng.integers(3)]
    head = b"a\0\0" if kind != b"iTXt" else b"a\0\1\0\0\0"
    return Case(
        f"100 MB in {kind!r}", png(noise(rng, 8, 24).astype(np.uint8), (8, 8), 8, 2, chunk(kind, head + squeezed))
    )


def many_frames(rng) -> Case:
    frame = Image.new("P", (40, 40))
    frame.putpalette([0, 0, 0, 255, 0, 0])
    rest = [Image.new("P", (40, 40), i % 2) for i in range(60)]
    return Case("60 frames", saved(frame, "GIF", save_all=True, append_images=rest), np.zeros((40, 40, 3), np.uint8))


def loops(rng) -> Case:
    """A TIFF whose folders follow each other in a circle."""
    made = bytearray(tiff(noise(rng, 9, 9, 3).astype(np.uint8), 2, "<"))
    made[8 + 2 + 12 * 9 : 8 + 2 + 12 * 9 + 4] = struct.pack("<I", 8)
    return Case("a TIFF in a circle", bytes(made))


# Damaged.


def flipped(rng) -> Case:
    name, data = a_valid_file(rng)
    made = bytearray(data)
    for _ in range(int(rng.integers(1, 40))):
        made[rng.integers(len(made))] ^= 1 << rng.integers(8)
    return Case(f"bits flipped in {name}", bytes(made))


def head_flipped(rng) -> Case:
    name, data = a_valid_file(rng)
    made = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        made[rng.integers(4, min(80, len(made)))] = rng.integers(256)
    return Case(f"another head of {name}", bytes(made))


def cut_off(rng) -> Case:
    name, data = a_valid_file(rng)
    return Case(f"{name} cut off", data[: int(rng.integers(1, len(data)))])


def mixed(rng) -> Case:
    (one, a), (two, b) = a_valid_file(rng), a_valid_file(rng)
    return Case(f"half {one}, half {two}", a[: len(a) // 2] + b[len(b) // 2 :])


def pieces_moved(rng) -> Case:
    name, data = a_valid_file(rng)
    cuts = sorted(rng.integers(8, len(data), 3).tolist())
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    return Case(f"{name} in another order", parts[0] + parts[2] + parts[1] + parts[3] + parts[2])


def zeros_inside(rng) -> Case:
    name, data = a_valid_file(rng)
    at = int(rng.integers(len(data)))
    return Case(f"{name} with zeros", data[:at] + bytes(int(rng.integers(1, 500))) + data[at + 50 :])


def wrong_checksum(rng) -> Case:
    height, width = sides(rng)
    made = bytearray(png(noise(rng, height, 3 * width).astype(np.uint8), (width, height), 8, 2))
    made[int(rng.choice([29, 32, len(made) - 14, len(made) - 1]))] ^= 255
    return Case("a wrong checksum", bytes(made))


# No pictures.


def in_disguise(rng) -> Case:
    others = {
        "SVG": b'<?xml version="1.0"?>\n' + _SVG,
        "HTML": b"<!DOCTYPE html>" + _MARKUP,
        "PDF": _PDF,
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\n%%EOF",
        "ZIP": _ZIP,
        "gzip": b"\x1f\x8b\x08\0" + rng.bytes(40),
        "ELF": b"\x7fELF" + rng.bytes(60),
        "PPM": b"P6 2 2 255\n" + rng.bytes(12),
        "XPM": b'/* XPM */ static char *x[] = {"1 1 1 1", "a c #000000", "a"};',
        "FITS": b"SIMPLE  =                    T" + bytes(2880),
        "ICO": b"\0\0\1\0\1\0" + rng.bytes(40),
        "ISO": b"\0\0\0\x18ftypavif" + rng.bytes(60),
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + rng.bytes(60),
        "PSD": b"8BPS\0\1" + rng.bytes(60),
        "pickle": b"cos\nsystem\n(S'touch executed'\ntR.",
        "JSON": b'{"picture": "' + rng.bytes(20).hex().encode() + b'"}',
        "PDF before a PNG": _PDF + png(noise(rng, 8, 24).astype(np.uint8), (8, 8), 8, 2),
    }
    name = str(rng.choice(list(others)))
    return Case(f"{name} in disguise", others[name], refused=True)


def only_a_mark(rng) -> Case:
    marks = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 ", b"BM", b"II*\0", b"MM\0*"]
    mark = marks[rng.integers(len(marks))]
    return Case(f"{mark!r} and noise", mark + rng.bytes(int(rng.integers(0, 300))) * int(rng.integers(2)))


def nothing(rng) -> Case:
    length = int(rng.choice([0, 0, 1, 7, 4096, 1_000_000]))
    data = bytes(length) if rng.integers(2) else rng.bytes(min(length, 4096))
    return Case(f"{len(data)} bytes without meaning", data, refused=not data.startswith((b"BM", b"GIF8")))


MAKERS = (
    gray_of_16_bits,
    gray_of_16_bits_with_a_transparent_value,
    color_of_16_bits,
    palette_with_transparency,
    gray_of_few_bits_with_a_transparent_value,
    gray_with_alpha,
    color_with_a_transparent_one,
    interlaced,
    cmyk,
    bitmap,
    floats,
    animation,
    turned,
    broken_exif,
    odd_extras,
    polyglot,
    two_pictures,
    small,
    large,
    large_elsewhere,
    claims_to_be_large,
    canvas_of_an_animation,
    long_text,
    many_frames,
    loops,
    flipped,
    head_flipped,
    cut_off,
    mixed,
    pieces_moved,
    zeros_inside,
    wrong_checksum,
    in_disguise,
    only_a_mark,
    nothing,
)
LARGE = (large, large_elsewhere)
"""Those that take seconds."""
