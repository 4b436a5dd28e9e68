"""What the neurons of the patch embedding see, and what tokens of higher levels have gathered of it.

Level 0 is the patch embedding: neuron j of patch k is the sum of filter j times the patch, plus bias and position. The
product before the sum is the view of the patch through the filter. A token of level l has the mosaic of all views,
each patch weighed by joint attention.

Source: "Vision Transformer Visualization: What Neurons Tell and How Neurons Behave?", arXiv:2210.07646.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from vitviz_hf.errors import ConfigError
from vitviz_hf.models.view import ModelView

FAINTEST = 1e-4
"""The weight that the logarithmic scale draws black."""
DARK = 0.05
"""Less than this share of full brightness is taken for black."""


OBJECT_SHARES = ("object share from the object", "object share from elsewhere")


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of the patch embedding, on the CPU in float32."""

    weight: Tensor
    """[D, 3, p, p]"""
    bias: Tensor
    """[D]"""

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.weight.shape[-1]


def patch_filters(view: ModelView) -> Filters:
    """The filters of a model whose patches do not overlap.

    Raises:
        ConfigError: its patches overlap, are cut outside of it, or go through several convolutions.
    """
    grid = view.layers[0].patch_grid if view.layers else (0, 0)
    for module in view.module.modules():
        if not isinstance(module, nn.Conv2d) or module.in_channels != 3:
            continue
        side = module.kernel_size[0]
        if module.kernel_size == module.stride == (side, side) and grid == tuple(s // side for s in view.input_size):
            bias = torch.zeros(len(module.weight)) if module.bias is None else module.bias
            return Filters(module.weight.detach().float().cpu(), bias.detach().float().cpu())
    raise ConfigError(
        f"{view.model_id!r} has no filters to show: its patches overlap, or are not cut by one convolution."
    )


def check_filter(filters: Filters, index: int) -> None:
    """Raise unless there is such a filter.

    Raises:
        ConfigError: there is none.
    """
    if not 0 <= index < len(filters.weight):
        raise ConfigError(f"there are {len(filters.weight)} filters (0-{len(filters.weight) - 1}); got {index}.")


def cut_patches(values: Tensor, patch: int) -> Tensor:
    """[3, H, W] normalized pixels -> [P, 3, p, p], row by row."""
    return values.unfold(1, patch, patch).unfold(2, patch, patch).permute(1, 2, 0, 3, 4).flatten(0, 1)


def patch_views(filters: Filters, values: Tensor, patch_number: int, indices: Tensor | list[int]) -> Tensor:
    """Views of one patch through some filters, [n, 3, p, p].

    Args:
        values: [3, H, W], normalized as the model takes them.
    """
    return filters.weight[indices] * cut_patches(values, filters.patch)[patch_number]


def mosaic(filters: Filters, values: Tensor, index: int) -> Tensor:
    """The views of all patches through one filter, put back at their places, [3, H, W]."""
    check_filter(filters, index)
    rows, cols = values.shape[1] // filters.patch, values.shape[2] // filters.patch
    return filters.weight[index].repeat(1, rows, cols) * values[:, : rows * filters.patch, : cols * filters.patch]


def responses(filters: Filters, values: Tensor) -> Tensor:
    """Sum of every view, [P, D]: the neurons of the patch embedding without bias and position."""
    return cut_patches(values, filters.patch).flatten(1) @ filters.weight.flatten(1).mT


def brightness(values: Tensor, white: float = 100.0) -> float:
    """What is drawn white: this percentile of the positive values, 0 if there is none; 100 is the largest."""
    positive = values[values > 0]
    return float(np.percentile(positive.numpy(), white)) if len(positive) else 0.0


def readable_filters(filters: Filters, n: int) -> list[int]:
    """The n filters that change least within themselves, |mean| / mean |.|, so that pictures stay readable in them."""
    flat = filters.weight.flatten(2)
    share = (flat.mean(2).abs() / flat.abs().mean(2).clamp_min(1e-12)).mean(1)
    return share.topk(min(n, len(share))).indices.tolist()


def to_display(values: Tensor, brightest: float | None = None) -> Tensor:
    """Values [..., 3, H, W] as a picture: divided by the largest, what is negative black (as in the paper's figures).

    Args:
        brightest: what becomes white, if several pictures are to be compared.
    """
    top = brightness(values) if brightest is None else brightest
    return (values / top).clamp(0, 1) if top > 0 else torch.zeros_like(values)


def global_view(
    values: Tensor,
    weights: Tensor,
    grid: tuple[int, int],
    brightest: float | None = None,
    white: float = 100.0,
    scale: str = "linear",
) -> Tensor:
    """What a token has gathered of a mosaic, [3, H, W] in [0, 1].

    Args:
        values: [3, H, W], a mosaic.
        weights: [P], a row of `JointAttention.views`; a row of zeros is black.
        grid: (rows, columns) of the patches.
        brightest: one constant for pictures that are compared.
        white: percentile of the weights that is drawn at full brightness, with the scale `linear`; 100, the largest,
            is the paper's rule.
        scale: `linear` draws weights relative to the largest of the row, so each row has its own gain; `log` draws the
            logarithm of the weights from `FAINTEST` (black) to 1 (full brightness), the same for all rows.

    Raises:
        ConfigError: another scale.
    """
    if scale == "log":
        relative = 1 - weights.clamp_min(FAINTEST).log10() / math.log10(FAINTEST)
    elif scale == "linear":
        top = brightness(weights, white)
        relative = (weights / top).clamp(0, 1) if top > 0 else weights
    else:
        raise ConfigError(f"scale must be 'linear' or 'log'; got {scale!r}.")
    blocks = nn.functional.interpolate(relative.reshape(1, 1, *grid), values.shape[1:], mode="nearest")[0]
    return to_display(values, brightest) * blocks


def view_caption(
    level: int, weights: Tensor, grid: tuple[int, int], white: float = 100.0, scale: str = "linear"
) -> str:
    """What stands below a view: its level, how it was brightened, and who outshines the others where it is dark.

    Args:
        weights, grid, white, scale: as in `global_view`.
    """
    if scale == "log":
        return f"level {level}, log{brightened(white)}"
    share, patch = outshining(weights)
    holds = f"; {patch // grid[1]},{patch % grid[1]} holds {share:.0%}" if share else ""
    return f"level {level}{brightened(white)}{holds}"


def brightened(white: float) -> str:
    """What the caption of a picture says that was drawn with this percentile as white; nothing for the largest."""
    return "" if white == 100 else f", white from {white:g} %"


def outshining(weights: Tensor) -> tuple[float, int]:
    """The share of a row that its largest patch holds, and which, if a linear view of the row is nearly black.

    Nearly black: more than half of the patches have less than `DARK` of the largest. Otherwise, and for zeros, 0 and 0.
    """
    patch = int(weights.argmax())
    dark = float(weights[patch]) > 0 and float((weights < DARK * weights[patch]).float().mean()) > 0.5
    return (float(weights[patch] / weights.sum()), patch) if dark else (0.0, 0)


def view_numbers(views: Tensor, n_prefix: int, object_patches: Tensor | None = None) -> dict[str, Tensor]:
    """Numbers beside the views, by level.

    Args:
        views: [L + 1, T, P], as in `JointAttention`.
        object_patches: [P], true on the object.

    Returns:
        own weight [L + 1, P] of each patch; entropy [L + 1, T] in nats; convergence [L + 1], mean cosine between the
        rows of two patches; with an object also its share in the rows of patches on it and of the others, [L + 1] each.
    """
    patches = views[:, n_prefix:]
    rows = views / views.sum(-1, keepdim=True).clamp_min(1e-12)
    unit = nn.functional.normalize(patches, dim=-1)
    n = patches.shape[1]
    cosines = unit @ unit.mT
    found = {
        "own weight": patches.diagonal(dim1=1, dim2=2),
        "entropy": torch.special.entr(rows).sum(-1),
        "convergence": (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(-1)) / max(n * (n - 1), 1),
    }
    if object_patches is not None and object_patches.any() and not object_patches.all():
        share = rows[:, n_prefix:, object_patches].sum(-1)
        found |= zip(OBJECT_SHARES, (share[:, own].mean(-1) for own in (object_patches, ~object_patches)), strict=True)
    return found


def filter_scores(values: Tensor, object_patches: Tensor | None = None) -> Tensor:
    """How well each filter tells object from background, [D] in 0 to 1.

    With an object: 2 |AUROC - 0.5| of the responses. Without: the share of their variance that the best threshold
    explains (Otsu's criterion).

    Args:
        values: [P, D], as from `responses`.
        object_patches: [P], true on the object; all or none counts as no object.
    """
    if object_patches is not None and object_patches.any() and not object_patches.all():
        inside, outside = values[object_patches].numpy(), values[~object_patches].numpy()
        area = stats.mannwhitneyu(inside, outside, axis=0).statistic / (len(inside) * len(outside))
        return torch.from_numpy(2 * np.abs(area - 0.5)).float()
    ordered = values.double().sort(0).values
    n = len(ordered)
    below = torch.arange(1, n, dtype=torch.float64)[:, None]
    sums = ordered.cumsum(0)
    difference = sums[:-1] / below - (sums[-1] - sums[:-1]) / (n - below)
    between = (below / n * (1 - below / n) * difference.square()).amax(0)
    return (between / ordered.var(0, correction=0).clamp_min(1e-12)).float()
