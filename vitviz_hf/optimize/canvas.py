"""The optimized image: its parameters, and the pixels they stand for. Its start is drawn by generators of the CPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split


# Correlation of RGB over ImageNet photographs, as in lucid (Olah et al. 2017, "Feature Visualization", appendix).
_COLOR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


@dataclass(frozen=True, slots=True)
class Canvas:
    """Parameters of N images, and how they become pixels."""

    params: Tensor
    """First axis N; the optimizer changes it in place."""
    to_pixels: Callable[[Tensor], Tensor]
    """Parameters of some of the images -> [n, 3, H, W] in [0, 1]."""
    constrain: Callable[[Tensor], object]
    """Called on the parameters after every step."""


def pixel_canvas(size: tuple[int, int], generators: Sequence[torch.Generator], device: torch.device) -> Canvas:
    """Free pixels, uniform noise in [0, 1] at the start, kept in [0, 1].

    Source: Ghiasi et al. 2022, arXiv:2212.06727, section 3.
    """
    start = [torch.rand(3, *size, generator=g) for g in generators]
    return Canvas(torch.stack(start).to(device), lambda p: p, lambda p: p.clamp_(0, 1))


def fourier_canvas(size: tuple[int, int], generators: Sequence[torch.Generator], device: torch.device) -> Canvas:
    """Spectrum of decorrelated colors, scaled by 1/frequency, so that steps favor no frequency or color.

    Source: Olah et al. 2017, "Feature Visualization", distill.pub, "preconditioning".
    """
    height, width = size
    frequency = torch.fft.fftfreq(height, device=device)[:, None].hypot(torch.fft.rfftfreq(width, device=device))
    scale = (height * width) ** 0.5 / frequency.clamp_min(1 / max(size))
    color = torch.tensor(_COLOR, device=device)
    color = color / color.norm(dim=0).max()

    def to_pixels(params: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(params) * scale
        planes = torch.fft.irfft2(spectrum, s=size) / 4
        return torch.einsum("cd,ndhw->nchw", color, planes).sigmoid()

    shape = (3, height, width // 2 + 1, 2)
    start = [0.01 * torch.randn(shape, generator=g) for g in generators]
    return Canvas(torch.stack(start).to(device), to_pixels, lambda p: None)


def seeded_generator(seed: int, address: str) -> torch.Generator:
    """Of the CPU, so that draws are the same whatever device makes the picture."""
    digest = sha256(f"{seed} {address}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
