"""Attention, and attention joined across layers: which patches a token has heard of, at every level.

Source: "Vision Transformer Visualization: What Neurons Tell and How Neurons Behave?", arXiv:2210.07646.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitviz_hf.errors import ConfigError, ModelError
from vitviz_hf.loading import attention_weights_to
from vitviz_hf.model import ModelView, run
from vitviz_hf.tokens import check_sequence


@dataclass(frozen=True, slots=True)
class JointAttention:
    """Attention joined from the first layer on."""

    joint: Tensor
    """[L, T, T]: row t of layer l is what token t holds of each token after l + 1 layers; rows sum to 1."""
    views: Tensor
    """[L + 1, T, P]: the patches' part of it by level; level l has passed l layers of attention."""


def attention_weights(view: ModelView, pixels: Tensor) -> Tensor:
    """Attention of every layer, mean over heads, [L, B, T, T] in float32 on the CPU; rows sum to 1.

    The attention computes its weights openly during this call only.

    Args:
        pixels: [B, 3, H, W] in [0, 1].

    Raises:
        ConfigError: no one sequence of tokens goes through all blocks, with the reason.
        ModelError: the attention of this architecture cannot be read.
    """
    check_sequence(view)
    maps: list[Tensor] = []

    def keep(weights: Tensor) -> None:
        maps.append(weights.float().mean(1).cpu())

    with torch.no_grad(), attention_weights_to(view.module, keep):
        run(view, pixels)
    layer = view.layers[0]
    n_tokens = layer.n_prefix + layer.patch_grid[0] * layer.patch_grid[1]
    wrong = [m for m in maps if m.shape != (len(pixels), n_tokens, n_tokens)]
    if len(maps) != len(view.layers) or wrong:
        raise ModelError(f"the attention of {view.model_id!r} is not one matrix over all tokens in each layer.")
    return torch.stack(maps)


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
