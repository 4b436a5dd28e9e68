"""Which part of a picture a model sees."""

from PIL import Image
from torch import Tensor, arange

from vitviz_hf.models.view import ModelView, to_pixels

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in shares of a picture's width and height."""

_SMALLEST = 32
_STEP = 1 / 256
"""Pillow's ramp has the values 0 to 255, in the middles of as many steps."""


def seen_box(view: ModelView, size: tuple[int, int]) -> Box:
    """Where the model's crop lies in a picture of (width, height).

    Measured: two ramps, from side to side and from top to bottom, go through the model's own resize and crop.
    """
    enlarged = -(-_SMALLEST // min(size))  # resizing blurs all of a tiny ramp
    size = (size[0] * enlarged, size[1] * enlarged)
    ramp = Image.linear_gradient("L")
    across, down = (
        r.resize(size, Image.Resampling.BILINEAR) for r in (ramp.transpose(Image.Transpose.TRANSPOSE), ramp)
    )
    seen = to_pixels(view, Image.merge("RGB", (across, down, across)))[0].double().cpu()
    (left, right), (top, bottom) = _ends(seen[0].mean(0)), _ends(seen[1].mean(1))
    return left, top, right, bottom


def _ends(ramp: Tensor) -> tuple[float, float]:
    """Shares at the two ends of a ramp, by a line through its middle: resizing bends the ends."""
    n = len(ramp)
    inner = slice(n // 8, n - n // 8)
    at = (arange(n, dtype=ramp.dtype) + 0.5 - n / 2)[inner]
    shares = ramp[inner] * (1 - _STEP) + _STEP / 2
    slope, middle = float((at * shares).sum() / (at * at).sum()), float(shares.mean())
    return max(0.0, middle - slope * n / 2), min(1.0, middle + slope * n / 2)
