"""Where each head of a layer looks: from one token, joined over layers, and in the mean over pictures."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitviz_hf.errors import ConfigError
from vitviz_hf.models.measure import Layer
from vitviz_hf.models.view import ModelView
from vitviz_hf.reading.attention import attention_weights, joint_attention
from vitviz_hf.sites import Token


@dataclass(frozen=True, slots=True, eq=False)
class HeadMaps:
    """What one token looks at in one layer; leading axes, such as B, are those of the weights."""

    per_head: Tensor
    """[..., heads, R, C]; with `prefix` the sum of a head is 1."""
    prefix: Tensor
    """[..., heads, n_prefix], what goes to tokens without a patch."""

    @property
    def mean(self) -> Tensor:
        """[..., R, C], mean over heads."""
        return self.per_head.mean(-3)

    @property
    def maximum(self) -> Tensor:
        """[..., R, C], the highest of all heads at each patch."""
        return self.per_head.amax(-3)


def head_maps(weights: Tensor, layer: Layer, token: Token | int) -> HeadMaps:
    """Attention from one token, on the patch grid.

    Args:
        weights: [..., heads, T, T] of this layer, see `attention_weights`.
        token: (row, column) of a patch, `cls` for the first token without a patch, or a place among all tokens, T.

    Raises:
        ConfigError: there is no such token, or the weights have another number of tokens than the layer.
    """
    rows, cols = layer.patch_grid
    n_tokens = layer.n_prefix + rows * cols
    if weights.shape[-2:] != (n_tokens, n_tokens):
        raise ConfigError(
            f"the layer has {n_tokens} tokens; got weights of {' x '.join(map(str, weights.shape[-2:]))} tokens."
        )
    row = weights[..., _position(layer, token), :]
    return HeadMaps(row[..., layer.n_prefix :].unflatten(-1, (rows, cols)), row[..., : layer.n_prefix])


def _position(layer: Layer, token: Token | int) -> int:
    rows, cols = layer.patch_grid
    n_tokens = layer.n_prefix + rows * cols
    if isinstance(token, int) and 0 <= token < n_tokens:
        return token
    if token == "cls" and layer.n_prefix:
        return 0
    if isinstance(token, tuple) and 0 <= token[0] < rows and 0 <= token[1] < cols:
        return layer.n_prefix + token[0] * cols + token[1]
    cls = "'cls', " if layer.n_prefix else ""
    raise ConfigError(
        f"there is no token {token!r} here: choose {cls}a place from 0 to {n_tokens - 1}, or a patch from (0, 0) to "
        f"({rows - 1}, {cols - 1})."
    )


def rollout(weights: Tensor, residual: float = 0.5) -> Tensor:
    """Attention joined from the first layer on, [B, L, T, T]: row t is what token t holds of each token; sums are 1.

    Args:
        weights: [B, L, T, T], the first layers of the model, or all.
        residual: share of the skip connection in each layer.

    Raises:
        ConfigError: the weights are of other axes, or `residual` is outside 0 to 1.

    Source: Abnar and Zuidema 2020, arXiv:2005.00928.
    """
    if weights.ndim != 4:
        raise ConfigError(f"rollout takes the mean over heads, [B, L, T, T]; got {list(weights.shape)}.")
    return torch.stack([joint_attention(w, 0, residual).joint for w in weights])


def looked_at(view: ModelView, batches: Iterable[Tensor], token: int | None = None) -> Tensor:
    """Which tokens each head looks at in the mean over pictures, [L, heads, T] in float32; the sum over T is 1.

    Args:
        batches: pixels [B, 3, H, W] in [0, 1], any number of times.
        token: from this place among all tokens; in the mean over all of them if None.

    Raises:
        ConfigError: no picture, no such token, or one sequence does not go through all blocks.
        ModelError: the attention of this architecture cannot be read.
    """
    total, n_pictures = torch.zeros(()), 0
    for pixels in batches:
        weights = attention_weights(view, pixels, heads=True)
        rows = weights.mean(3) if token is None else weights[..., _position(view.layers[0], token), :]
        total, n_pictures = total + rows.double().sum(0), n_pictures + len(pixels)
    if not n_pictures:
        raise ConfigError("there is no picture to look at.")
    return (total / n_pictures).float()
