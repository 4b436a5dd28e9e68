"""Masks of objects, from strangers' files."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitviz_hf.errors import ImageError, first_line
from vitviz_hf.images import open_image


def read_mask(data: bytes) -> NDArray[np.int64]:
    """Instance numbers [h, w] from a picture: those of a palette or gray picture, the first color of another.

    Raises:
        ImageError: no usable picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "BMP", "TIFF", "JPEG")) as image:
            open_image(data)  # the gate for strangers' files
            values = np.asarray(image if image.mode in ("P", "L", "I", "I;16", "1") else image.convert("RGB"))
    except OSError as error:
        raise ImageError(f"the mask cannot be read: {first_line(error)}.") from error
    return (values if values.ndim == 2 else values[..., 0]).astype(np.int64)


def read_object(data: bytes) -> NDArray[np.int64]:
    """1 on objects, 0 elsewhere, [h, w]: what is not black; in a palette picture, as Pascal VOC has them, 1 to 200.

    Raises:
        ImageError: no usable picture.
    """
    image = open_image(data)
    with Image.open(io.BytesIO(data)) as opened:
        if opened.mode == "P":
            numbers = read_mask(data)
            return np.asarray((numbers > 0) & (numbers <= 200), np.int64)
    return np.asarray(np.asarray(image).max(-1) > 0, np.int64)
