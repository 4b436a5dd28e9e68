"""Random changes of the image at every step, so that a picture works for more than one exact input.

Each takes images [N, M, 3, H, W] (N pictures, M copies of each) and one generator per picture, so that a picture sees
the same draws alone and in a batch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

Generators = Sequence[torch.Generator]


def color_shift(images: Tensor, strength: float, generators: Generators) -> Tensor:
    """(x - m) / s with m ~ U(-strength, strength), s = exp(U(-strength, strength)), per copy and color.

    Source: the code of Ghiasi et al. 2022, arXiv:2212.06727 (the paper writes s*x + m).
    """
    draws = _uniform(images, (2, images.shape[1], 3, 1, 1), generators) * strength
    mean, log_std = draws.unbind(1)
    return (images - mean) / log_std.exp()


def noise(images: Tensor, std: float, per: str, generators: Generators) -> Tensor:
    """Additive Gaussian noise, one draw per pixel (the paper) or one per copy and color (its code)."""
    shape = images.shape[1:] if per == "pixel" else (images.shape[1], 3, 1, 1)
    draws = [torch.randn(shape, generator=g, device=images.device) for g in generators]
    return images + std * torch.stack(draws)


def jitter(images: Tensor, pixels: int, generators: Generators) -> Tensor:
    """Torus shift of both axes by a uniform integer in [-pixels, pixels], one draw per picture."""
    shifts = [_integers(-pixels, pixels, 2, g, images.device) for g in generators]
    return torch.stack([x.roll(shift, dims=(-2, -1)) for x, shift in zip(images, shifts, strict=True)])


def random_crop(images: Tensor, size: tuple[int, int], generators: Generators) -> Tensor:
    """A random window of `size` for every copy."""
    height, width = size
    spare = (images.shape[-2] - height, images.shape[-1] - width)
    if spare == (0, 0):
        return images
    copies = images.shape[1]
    crops = []
    for picture, generator in zip(images, generators, strict=True):
        tops = _integers(0, spare[0], copies, generator, images.device)
        lefts = _integers(0, spare[1], copies, generator, images.device)
        windows = [x[:, t : t + height, v : v + width] for x, t, v in zip(picture, tops, lefts, strict=True)]
        crops.append(torch.stack(windows))
    return torch.stack(crops)


def rotate_and_scale(images: Tensor, degrees: float, factor: float, generators: Generators) -> Tensor:
    """Rotation by U(-degrees, degrees) and zoom by exp(U(-factor, factor)) per copy; edges are reflected."""
    draws = _uniform(images, (2, images.shape[1]), generators)
    angle, zoom = draws[:, 0] * math.radians(degrees), (draws[:, 1] * factor).exp()
    height, width = images.shape[-2:]
    cos, sin, zero = angle.cos() * zoom, angle.sin() * zoom, torch.zeros_like(angle)
    # affine_grid works in [-1, 1] on both axes, so the aspect ratio enters the off-diagonal.
    rows = (cos, -sin * height / width, zero, sin * width / height, cos, zero)
    theta = torch.stack(rows, dim=-1).reshape(-1, 2, 3)
    flat = images.flatten(0, 1)
    grid = functional.affine_grid(theta, list(flat.shape), align_corners=False)
    turned = functional.grid_sample(flat, grid, padding_mode="reflection", align_corners=False)
    return turned.reshape(images.shape)


def total_variation(images: Tensor) -> Tensor:
    """Roughness of each picture: L2 norm over (H, W) of the difference image, summed over four directions.

    Args:
        images: [N, M, 3, H, W].

    Returns:
        [N], mean over copies and colors. 0 for constant images.

    Source: the code of Ghiasi et al. 2022, arXiv:2212.06727.
    """
    differences = (
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
    # vector_norm has gradient 0, not NaN, where the norm is 0.
    norms = [torch.linalg.vector_norm(d, dim=(-2, -1)) for d in differences]
    return torch.stack(norms).sum(0).mean(dim=(1, 2))


def _uniform(images: Tensor, shape: tuple[int, ...], generators: Generators) -> Tensor:
    """[N, *shape] in (-1, 1)."""
    draws = [torch.rand(shape, generator=g, device=images.device) for g in generators]
    return torch.stack(draws) * 2 - 1


def _integers(low: int, high: int, n: int, generator: torch.Generator, device: torch.device) -> list[int]:
    draws: list[int] = torch.randint(low, high + 1, (n,), generator=generator, device=device).tolist()
    return draws
