"""The optimized image: its parameters, and the pixels they stand for. Its start is drawn by generators of the CPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor
from torch.nn import functional

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision
from vitviz_hf.optimize.config import VisualizeConfig

# isort: split


# Correlation of RGB over ImageNet photographs, as in lucid (Olah et al. 2017, "Feature Visualization", appendix).
_COLOR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
_DARKEST = 0.02
"""Of a photograph that is a start: black itself would need an infinite value."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """Parameters of N images, and how they become pixels."""

    params: Tensor
    """First axis N; the optimizer changes it in place."""
    to_pixels: Callable[[Tensor], Tensor]
    """Parameters of some of the images -> [n, 3, H, W] in [0, 1]."""
    constrain: Callable[[Tensor], object]
    """Called on the parameters after every step."""


def make_canvas(
    config: VisualizeConfig,
    size: tuple[int, int],
    generators: Sequence[torch.Generator],
    device: torch.device,
    start: Sequence[Tensor | None] = (),
) -> Canvas:
    """The canvas of some options: the input size with the margin around it.

    Args:
        start: photographs [3, *size] in [0, 1], whose margin shows them mirrored, or None for noise, for each image.
    """
    grown = (size[0] + 2 * config.margin, size[1] + 2 * config.margin)
    make = pixel_canvas if config.canvas == "pixels" else fourier_canvas
    pad = [config.margin] * 4
    wider = [p if p is None else functional.pad(p, pad, mode="reflect") for p in start]
    return make(grown, generators, device, wider or [None] * len(generators))


def pixel_canvas(
    size: tuple[int, int],
    generators: Sequence[torch.Generator],
    device: torch.device,
    start: Sequence[Tensor | None],
) -> Canvas:
    """Free pixels, kept in [0, 1].

    Args:
        start: [3, H, W] in [0, 1] for each image, or None for uniform noise.

    Source: Ghiasi et al. 2022, arXiv:2212.06727, section 3.
    """
    # Nothing is drawn for a photograph, or recipes of old would go on with other draws.
    first = [torch.rand(3, *size, generator=g) if p is None else p for g, p in zip(generators, start, strict=True)]
    return Canvas(torch.stack(first).to(device), lambda p: p, lambda p: p.clamp_(0, 1))


def fourier_canvas(
    size: tuple[int, int],
    generators: Sequence[torch.Generator],
    device: torch.device,
    start: Sequence[Tensor | None],
) -> Canvas:
    """Spectrum of decorrelated colors, scaled by 1/frequency, so that steps favor no frequency or color.

    Args:
        start: a photograph [3, H, W] in [0, 1] for each image, or None for noise.

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

    def to_params(photograph: Tensor) -> Tensor:
        values = photograph.to(device).clamp(_DARKEST, 1 - _DARKEST).logit()
        planes = torch.einsum("dc,chw->dhw", torch.linalg.inv(color), values)
        return torch.view_as_real(torch.fft.rfft2(planes * 4) / scale)

    shape = (3, height, width // 2 + 1, 2)
    noise = [0.01 * torch.randn(shape, generator=g).to(device) for g in generators]
    first = [n if p is None else to_params(p) for n, p in zip(noise, start, strict=True)]
    return Canvas(torch.stack(first), to_pixels, lambda p: None)


def seeded_generator(seed: int, address: str) -> torch.Generator:
    """Of the CPU, so that draws are the same whatever device makes the picture."""
    digest = sha256(f"{seed} {address}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
