"""Crops: pictures as models see them, in 8 bits so that many wait cheaply, and logits for any number of them."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from vitviz_hf.images import bytes_to_pixels, pixels_to_bytes
from vitviz_hf.models.loading import sized_pixels
from vitviz_hf.models.view import ModelView, logits


def to_crop(view: ModelView, image: Image.Image) -> Tensor:
    """The model's own resize and crop of an RGB picture, [3, H, W] in 0 to 255."""
    return pixels_to_bytes(sized_pixels(view.preprocess, image, view.input_size))


def crop_logits(view: ModelView, crops: Sequence[Tensor] | Tensor, batch: int) -> Tensor:
    """Logits [N, labels] of crops [N, 3, H, W] in 0 to 255, `batch` in each forward pass."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(crops), batch):
            some = crops[start : start + batch]
            stack = some if isinstance(some, Tensor) else torch.stack(list(some))
            parts.append(logits(view, bytes_to_pixels(stack.to(view.device))).float().cpu())
    return torch.cat(parts)
