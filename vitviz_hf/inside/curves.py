"""How a score goes as patches are shown or removed in the order of a map: which map deserves belief."""

from dataclasses import dataclass

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as tv

from vitviz_hf.errors import ConfigError
from vitviz_hf.models.view import ModelView
from vitviz_hf.optimize.canvas import seeded_generator
from vitviz_hf.optimize.objectives import Objective, Target, check_objective, to_objective
from vitviz_hf.optimize.scores import score_pixels

FILLS = ("blur", "gray")
_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvesConfig:
    """How patches are removed."""

    steps: int = 10
    """Number of equal shares in which they go."""
    fill: str = "blur"
    """What takes their place: the picture blurred by an eighth of its height, or `gray`, the mean color of the model's
    normalization."""
    orders: int = 3
    """Random orders that the map's is compared with, in their mean."""
    seed: int = 0
    """Of these orders."""

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise ConfigError(f"fill must be one of {', '.join(FILLS)}; got {self.fill!r}.")
        if self.steps < 1 or self.orders < 1:
            raise ConfigError(f"steps and orders must be 1 or more; got {self.steps} and {self.orders}.")


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Values of an objective, [S + 1] each, from no patch to all; in float32 on the CPU."""

    shares: Tensor
    """Share of the patches that are shown, or removed, from 0 to 1."""
    insertion: Tensor
    """As patches are shown, the most relevant first. It should rise early."""
    deletion: Tensor
    """As they are removed, the most relevant first. It should fall early."""
    random_insertion: Tensor
    """As they are shown in random order, mean over orders."""
    random_deletion: Tensor

    @property
    def insertion_area(self) -> float:
        """Mean of the curve; the higher the better the map."""
        return self._area(self.insertion)

    @property
    def deletion_area(self) -> float:
        """Mean of the curve; the lower the better the map."""
        return self._area(self.deletion)

    @property
    def random_insertion_area(self) -> float:
        """What a map that knows nothing gets."""
        return self._area(self.random_insertion)

    @property
    def random_deletion_area(self) -> float:
        """What a map that knows nothing gets."""
        return self._area(self.random_deletion)

    def _area(self, curve: Tensor) -> float:
        return float(torch.trapezoid(curve.double(), self.shares.double()))


def curves(
    view: ModelView,
    pixels: Tensor,
    objective: Objective | Target | str,
    map: Tensor,
    config: CurvesConfig | None = None,
) -> Curves:
    """Insertion and deletion curves of a map, beside those of random orders.

    A picture with removed patches is not one that the model has learned from, so curves compare maps of one picture
    under one fill; alone they prove nothing.

    Args:
        pixels: [1, 3, H, W] in [0, 1].
        map: [R, C], any grid; the highest value goes first, of equal ones the first by rows.
        config: how patches are removed.

    Raises:
        ConfigError: several pictures, or the map is no grid, or not finite.
        SiteError, FeatureError: the model does not have what the objective asks for.

    Source: Petsiuk et al. 2018, arXiv:1806.07421, section 4; there the score is a probability, here the objective.
    """
    config = config or CurvesConfig()
    objective = to_objective(objective, view.kinds)
    check_objective(view, objective)
    if len(pixels) != 1 or map.ndim != 2:
        raise ConfigError(
            f"curves take one picture [1, 3, H, W] and a map [R, C]; got {list(pixels.shape)} and {list(map.shape)}."
        )
    if not map.isfinite().all():
        raise ConfigError("the map must be finite; it has NaN or infinite values.")
    n_patches, generator = map.numel(), seeded_generator(config.seed, "orders")
    counts = (torch.arange(config.steps + 1) * n_patches / config.steps).round()
    orders = [map.flatten().cpu().argsort(descending=True, stable=True)]
    orders += [torch.randperm(n_patches, generator=generator) for _ in range(config.orders)]
    ranks = torch.stack([order.argsort() for order in orders])
    # Random orders are deleted from their other end: these are the pictures of their insertion, once more.
    last = torch.cat([ranks[:1], n_patches - 1 - ranks[1:]])
    shown = torch.cat([ranks[:, None] < counts[:, None], last[:, None] >= counts[:, None]]).view(-1, *map.shape)
    found = _scores(view, objective, pixels, _filled(view, pixels, config.fill), shown)
    inserted, deleted = found.view(2, len(orders), len(counts))
    return Curves(counts / n_patches, inserted[0], deleted[0], inserted[1:].mean(0), deleted[1:].mean(0))


def _filled(view: ModelView, pixels: Tensor, fill: str) -> Tensor:
    if fill == "gray":
        return pixels.new_tensor(view.mean)[:, None, None].expand_as(pixels)
    sigma = pixels.shape[-2] / 8
    reach = [min(2 * int(2 * sigma), 2 * ((side - 1) // 2)) + 1 for side in (pixels.shape[-1], pixels.shape[-2])]
    blurred: Tensor = tv.gaussian_blur(pixels, reach, [sigma, sigma])
    return blurred


def _scores(view: ModelView, objective: Objective, pixels: Tensor, filled: Tensor, shown: Tensor) -> Tensor:
    """Objective where only the patches of masks [N, R, C] are shown, [N] on the CPU; each picture is run once."""
    masks, places = shown.float().unique(dim=0, return_inverse=True)
    found = []
    for part in masks.to(pixels.device).split(_BATCH):
        mask = functional.interpolate(part[:, None], pixels.shape[-2:], mode="nearest-exact")
        found.append(score_pixels(view, [objective], (filled + mask * (pixels - filled))[None])[0].float().cpu())
    return torch.cat(found)[places]
