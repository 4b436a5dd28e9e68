"""Principal components of tokens as colors: what a layer tells apart most."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitviz_hf.errors import ConfigError, NonFiniteError
from vitviz_hf.models.trace import Grid
from vitviz_hf.reading.recording import Acts

_IN_COLOR = 0.98


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """Directions in which the patches of some pictures differ most; other pictures can be seen along them too."""

    mean: Tensor
    """[F] in float64 on the CPU, as the directions."""
    directions: Tensor
    """[k, F], each of length 1 and orthogonal to the others, that of most variance first."""
    explained: Tensor
    """[k], share of the variance."""
    low: Tensor
    """[k], value that is painted darkest: 1% of the patches are below."""
    high: Tensor
    """[k], value that is painted brightest: 1% of the patches are above."""

    def project(self, acts: Acts) -> Tensor:
        """Values of the patches along the components, [B, R, C, k] in float64 on the CPU."""
        _check_site(acts, len(self.mean))
        values = (_patches(acts) - self.mean) @ self.directions.mT
        return values.reshape(len(values), *acts.tap.patch_grid, -1)

    def paint(self, acts: Acts) -> Tensor:
        """The first three components as red, green and blue, [B, R, C, 3] in [0, 1], float32 on the CPU.

        Raises:
            ConfigError: there are fewer, or the values are of another width.
        """
        if len(self.low) < 3:
            raise ConfigError(f"a picture in colors takes three components; there are {len(self.low)}.")
        spread = (self.high - self.low).clamp_min(torch.finfo(torch.float32).tiny)
        return ((self.project(acts) - self.low) / spread)[..., :3].clamp(0, 1).float()

    def foreground(self, acts: Acts) -> Tensor:
        """Patches that the first component puts above 0, [B, R, C] bool: the side that is less at the border.

        Source: Oquab et al. 2023, arXiv:2304.07193, section 7.5, where the side is chosen by eye.
        """
        return self.project(acts)[..., 0] > 0


def token_components(acts: Acts, k: int = 3) -> Components:
    """Principal components of the patches of one or several pictures together.

    Exact and in float64, so that they are the same each time. The sign of the first is such that patches at the border
    of the grid are below the others in the mean; that of the others, or of the first where the border is all there is,
    such that the largest coordinate is positive.

    Args:
        acts: [B, T, F]; prefix tokens are left out.
        k: number of components.

    Raises:
        ConfigError: more components than patches or features can have.
        NonFiniteError: a value is NaN or infinite.
    """
    patches = _patches(acts)
    rows = patches.flatten(0, 1)
    if not 1 <= k <= min(len(rows) - 1, rows.shape[1]):
        raise ConfigError(f"{len(rows)} patches of {rows.shape[1]} features do not have {k} components.")
    if not rows.isfinite().all():
        raise NonFiniteError(f"the values of {acts.site} are NaN or infinite. Load the model in float32.")
    mean = rows.mean(0)
    centered = rows - mean
    directions, variances = _principal(centered, k)
    values = (centered @ directions.mT).unflatten(0, patches.shape[:2])
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True))[:, 0].sign()
    border = _border(acts.tap.patch_grid)
    if not border.all():
        signs[0] = -values[:, border, 0].mean().sign()
    # A component without any variance has no sign.
    signs[signs == 0] = 1
    directions, values = directions * signs[:, None], values.flatten(0, 1) * signs
    outside = torch.tensor([1 - _IN_COLOR, 1 + _IN_COLOR], dtype=torch.float64) / 2
    low, high = values.quantile(outside, dim=0)
    total = centered.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return Components(mean, directions, variances / total, low, high)


def _patches(acts: Acts) -> Tensor:
    return acts.patches.detach().cpu().double()


def _principal(centered: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first right singular vectors [k, F] of rows [N, F], and the squares of their singular values [k]."""
    # Of the smaller of the two products: a page asks for every layer.
    wide = centered.shape[1] > len(centered)
    squares, vectors = torch.linalg.eigh(centered @ centered.mT if wide else centered.mT @ centered)
    best = vectors.flip(1)[:, :k].mT
    if wide:
        best = torch.nn.functional.normalize(best @ centered, dim=1)
    return best, squares.flip(0)[:k].clamp_min(0)


def _border(grid: Grid) -> Tensor:
    """Which patches [P] lie at the border of the grid."""
    border = torch.ones(grid, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    return border.flatten()


def _check_site(acts: Acts, size: int) -> None:
    if acts.values.shape[-1] != size:
        raise ConfigError(f"'{acts.site}' has {acts.values.shape[-1]} features; the components have {size}.")
