"""The growth of pictures as an animation."""

import io
from collections.abc import Sequence

from PIL import Image

_LEAST, _MOST_PIXELS = 224, 320
_MOST_FRAMES = 36
_MILLISECONDS, _END_MILLISECONDS = 167, 2000
"""Of a frame, and of the last one."""


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a row, the longer side of each 224 to 320 pixels."""
    width, height = pictures[0].size
    scale = min(max(width, height, _LEAST), _MOST_PIXELS) / max(width, height)
    size = round(width * scale), round(height * scale)
    row = Image.new("RGB", (size[0] * len(pictures), size[1]))
    for i, picture in enumerate(pictures):
        row.paste(picture.resize(size, Image.Resampling.BICUBIC), (i * size[0], 0))
    return row


class Growth:
    """Frames of a run of n pictures: at most 36, evenly spaced, and the last one."""

    def __init__(self, n: int) -> None:
        self._n, self._seen, self._every = n, 0, 1
        self._frames: list[Image.Image] = []
        self._last: Image.Image | None = None

    def add(self, pictures: Sequence[Image.Image]) -> None:
        """A moment; one at which not all pictures have begun is left out."""
        if len(pictures) < self._n:
            return
        self._last = side_by_side(pictures)
        if self._seen % self._every == 0:
            self._frames.append(self._last)
        self._seen += 1
        if len(self._frames) > _MOST_FRAMES - 1:
            self._frames, self._every = self._frames[::2], 2 * self._every

    def webp(self) -> bytes | None:
        """The animation, about six frames a second; None if there is no frame."""
        if self._last is None:
            return None
        frames = [*self._frames, self._last] if self._frames[-1] is not self._last else self._frames
        times = [_MILLISECONDS] * (len(frames) - 1) + [_END_MILLISECONDS]
        buffer = io.BytesIO()
        frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=75)
        return buffer.getvalue()
