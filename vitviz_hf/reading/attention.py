"""Attention, and attention joined across layers: which patches a token has heard of, at every level.

Source: "Vision Transformer Visualization: What Neurons Tell and How Neurons Behave?", arXiv:2210.07646.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vitviz_hf.errors import ConfigError, ModelError, NonFiniteError
from vitviz_hf.models.view import ModelView, run
from vitviz_hf.reading.maps import name_precision
from vitviz_hf.reading.tokens import check_sequence


@dataclass(frozen=True, slots=True)
class JointAttention:
    """Attention joined from the first layer on."""

    joint: Tensor
    """[L, T, T]: row t of layer l is what token t holds of each token after l + 1 layers; rows sum to 1."""
    views: Tensor
    """[L + 1, T, P]: the patches' part of it by level; level l has passed l layers of attention."""


class _Watched(TorchFunctionMode):
    """Shows what scaled dot-product attention is called with, in this thread only; the module is not touched."""

    def __init__(self, show: Callable[..., None]) -> None:
        super().__init__()
        self._show = show

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            self._show(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention_weights(view: ModelView, pixels: Tensor) -> Tensor:
    """Attention of every layer, mean over heads, [L, B, T, T] in float32 on the CPU; rows sum to 1.

    The weights are computed beside the forward pass from the queries and keys of each layer. Nothing of the module is
    changed, so other threads may use it at the same time.

    Args:
        pixels: [B, 3, H, W] in [0, 1].

    Raises:
        ConfigError: no one sequence of tokens goes through all blocks, with the reason.
        ModelError: the attention of this architecture cannot be read.
        NonFiniteError: it is NaN or infinite.
    """
    check_sequence(view)
    layer = view.layers[0]
    n_tokens = layer.n_prefix + layer.patch_grid[0] * layer.patch_grid[1]
    maps: list[Tensor] = []

    def keep(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> None:
        if not query.shape[-2] == key.shape[-2] == n_tokens or is_causal:
            return  # a head that pools the tokens, for example
        scores = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        maps.append(scores.softmax(-1).mean(1).cpu())

    with torch.no_grad(), _Watched(keep):
        run(view, pixels)
    if [m.shape for m in maps] != [(len(pixels), n_tokens, n_tokens)] * len(view.layers):
        raise ModelError(
            f"the attention of {view.model_id!r} cannot be read: it is not torch's scaled dot-product attention, once "
            "over all tokens in each layer."
        )
    weights = torch.stack(maps)
    if not weights.isfinite().all():
        raise NonFiniteError(f"the attention of {name_precision(view)} is NaN or infinite. Load it in float32.")
    return weights


def joint_attention(weights: Tensor, n_prefix: int, residual: float = 0.5) -> JointAttention:
    """Join the attention of one picture across layers.

    Args:
        weights: [L, T, T], mean over heads.
        n_prefix: prefix tokens, which come first and have no patch of their own.
        residual: share of the skip connection in each layer; 0 is the paper's diagram, 0.5 what its figures show.

    Raises:
        ConfigError: `residual` outside 0 to 1.

    Source: arXiv:2210.07646; residual form as in attention rollout, arXiv:2005.00928.
    """
    if not 0 <= residual <= 1:
        raise ConfigError(f"residual must be a number from 0 to 1; got {residual!r}.")
    n_tokens = weights.shape[-1]
    identity = torch.eye(n_tokens)
    joined = [identity]
    for layer in (1 - residual) * weights + residual * identity:
        joined.append(layer / layer.sum(-1, keepdim=True) @ joined[-1])
    first = torch.cat([torch.zeros(n_prefix, n_tokens - n_prefix), torch.eye(n_tokens - n_prefix)])
    return JointAttention(torch.stack(joined[1:]), torch.stack([first, *(j[:, n_prefix:] for j in joined[1:])]))
