"""Random changes of the image at every step, so that a picture works for more than one exact input.

Each takes images [N, M, 3, H, W] (N pictures, M copies of each) and one generator per picture, so that a picture sees
the same draws alone and in a batch. The generators are the CPU's: a picture sees the same draws on every device, and
none is read back from it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vitviz_hf.optimize.draws import Ahead, draw

Generators = Sequence[torch.Generator | Ahead]


def color_shift(images: Tensor, strength: float, generators: Generators) -> Tensor:
    """(x - m) / s with m ~ U(-strength, strength), s = exp(U(-strength, strength)), per copy and color.

    Source: the code of Ghiasi et al. 2022, arXiv:2212.06727 (the paper writes s*x + m).
    """
    draws = _uniform((2, images.shape[1], 3, 1, 1), generators) * strength
    mean, log_std = to_device(draws, images.device).unbind(1)
    return (images - mean) / log_std.exp()


def contrast(images: Tensor, least: float, generators: Generators) -> Tensor:
    """Each copy with the contrast it has, or more, up to `least` (see `stretch`), by a power U(0, 1) of the gain."""
    power = torch.stack([draw(g, torch.rand, images.shape[1]) for g in generators])
    flat = images.flatten(0, 1)
    return stretch(flat, least, to_device(power, images.device).flatten()).view_as(images)


def stretch(images: Tensor, least: float, power: Tensor | None = None) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] whose gray values deviate by less than `least`, drawn apart around their mean.

    What would leave [0, 1] stays at its end.

    Args:
        power: [N] of the gain; None: 1.
    """
    gain = (least / images.mean(1).flatten(1).std(1).clamp_min(1e-6)).clamp_min(1)
    gain = gain if power is None else gain**power
    mean = images.mean((2, 3), keepdim=True)
    return (mean + (images - mean) * gain[:, None, None, None]).clamp(0, 1)


def noise(images: Tensor, std: float, per: str, generators: Generators) -> Tensor:
    """Additive Gaussian noise, one draw per pixel (the paper) or one per copy and color (its code)."""
    shape = images.shape[1:] if per == "pixel" else (images.shape[1], 3, 1, 1)
    draws = torch.stack([draw(g, torch.randn, shape) for g in generators])
    return images + std * to_device(draws, images.device)


def jitter(images: Tensor, pixels: int, generators: Generators) -> Tensor:
    """Torus shift of both axes by a uniform integer in [-pixels, pixels], one draw per picture."""
    height, width = images.shape[-2:]
    shifts = torch.stack([draw(g, torch.randint, -pixels, pixels + 1, (2,)) for g in generators])[:, :, None, None]
    rows = (torch.arange(height) - shifts[:, 0]) % height
    cols = (torch.arange(width) - shifts[:, 1]) % width
    return _pick(images, rows, cols)


def random_crop(images: Tensor, size: tuple[int, int], generators: Generators) -> Tensor:
    """A random window of `size` for every copy."""
    spare = (images.shape[-2] - size[0], images.shape[-1] - size[1])
    if spare == (0, 0):
        return images
    draws = [draw(g, torch.randint, 0, s + 1, (images.shape[1],)) for g in generators for s in spare]
    corners = torch.stack(draws).unflatten(0, (-1, 2))[..., None]
    return _pick(images, corners[:, 0] + torch.arange(size[0]), corners[:, 1] + torch.arange(size[1]))


def rotate_and_scale(
    images: Tensor, degrees: float, factor: float, generators: Generators, size: tuple[int, int] | None = None
) -> Tensor:
    """Rotation by U(-degrees, degrees) and zoom by exp(U(-factor, factor)) per copy; edges are reflected.

    Args:
        size: of a random window of every copy, as by `random_crop` afterwards; nothing else is computed.
    """
    draws = _uniform((2, images.shape[1]), generators)
    angle, zoom = draws[:, 0] * math.radians(degrees), (draws[:, 1] * factor).exp()
    height, width = images.shape[-2:]
    cos, sin, zero = angle.cos() * zoom, angle.sin() * zoom, torch.zeros_like(angle)
    # affine_grid works in [-1, 1] on both axes, so the aspect ratio enters the off-diagonal.
    rows = (cos, -sin * height / width, zero, sin * width / height, cos, zero)
    theta = to_device(torch.stack(rows, dim=-1).reshape(-1, 2, 3), images.device)
    flat = images.flatten(0, 1)
    grid = functional.affine_grid(theta, list(flat.shape), align_corners=False)
    if size:
        places = grid.movedim(3, 1).unflatten(0, images.shape[:2])
        grid = random_crop(places, size, generators).flatten(0, 1).movedim(1, 3).contiguous()
    turned: Tensor = functional.grid_sample(flat, grid, padding_mode="reflection", align_corners=False)
    return turned.view(*images.shape[:2], *turned.shape[1:])


def to_device(draws: Tensor, device: torch.device) -> Tensor:
    """What was drawn on the CPU, on the device, which is not waited for."""
    return draws.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else draws.to(device)


def _uniform(shape: tuple[int, ...], generators: Generators) -> Tensor:
    """[N, *shape] in (-1, 1), on the CPU."""
    return torch.stack([draw(g, torch.rand, shape) for g in generators]) * 2 - 1


def _pick(images: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Rows [N, M or 1, h] and columns [N, M or 1, w] of each copy: [N, M, 3, H, W] -> [N, M, 3, h, w]."""
    shape = (*images.shape[:3], rows.shape[-1], cols.shape[-1])
    rows, cols = (to_device(index, images.device) for index in (rows, cols))
    bands = images.gather(-2, rows[:, :, None, :, None].expand(*shape[:-1], images.shape[-1]))
    return bands.gather(-1, cols[:, :, None, None, :].expand(shape))
