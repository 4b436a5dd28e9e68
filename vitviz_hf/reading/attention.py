"""Attention, and attention joined across layers: which patches a token has heard of, at every level.

Source: "Vision Transformer Visualization: What Neurons Tell and How Neurons Behave?", arXiv:2210.07646.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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


@dataclass(frozen=True, slots=True, eq=False)
class Attending:
    """What one call of scaled dot-product attention was given."""

    query: Tensor
    """[B, heads, T, F], or windows in place of B, as key and value."""
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def over(self, n_tokens: int) -> bool:
        """Whether each of so many tokens looks at all of them; false for a head that pools tokens, for example."""
        return self.query.shape[-2] == self.key.shape[-2] == n_tokens and not self.is_causal

    def weights(self) -> Tensor:
        """[B, heads, T, T] in float32; rows sum to 1."""
        scale = self.query.shape[-1] ** -0.5 if self.scale is None else self.scale
        scores = self.query.float() @ self.key.float().mT * scale
        if self.attn_mask is not None and self.attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~self.attn_mask, -torch.inf)
        elif self.attn_mask is not None:
            scores = scores + self.attn_mask
        return scores.softmax(-1)


class _Watched(TorchFunctionMode):
    """Shows what torch is asked for, in this thread only; the module is not touched."""

    def __init__(self, answer: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]) -> None:
        super().__init__()
        self._answer = answer
        """Function and its arguments -> what it gives."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._answer(func, tuple(args), kwargs or {})


@contextmanager
def watch_attention(view: ModelView, use: Callable[[Attending], Tensor | None]) -> Iterator[None]:
    """Hand each attention over all tokens to `use`, inside the block and in this thread only.

    Args:
        use: what it returns takes the place of what the attention gives, unless it is None.

    Raises:
        ConfigError: no one sequence of tokens goes through all blocks, with the reason.
    """
    check_sequence(view)
    n_tokens = _count_tokens(view)

    def answer(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if func is functional.scaled_dot_product_attention and (call := Attending(*args, **kwargs)).over(n_tokens):
            given = use(call)
            return func(*args, **kwargs) if given is None else given
        return func(*args, **kwargs)

    with _Watched(answer):
        yield


def attention_weights(
    view: ModelView, pixels: Tensor, heads: bool = False, layers: Sequence[int] | None = None
) -> Tensor:
    """Attention by layer, [B, L, T, T] the mean over heads or [B, L, heads, T, T] of each, rows sum to 1.

    In float32 on the CPU. The weights are computed beside the forward pass from the queries and keys of each layer.
    Nothing of the module is changed, so other threads may use it at the same time.

    Args:
        pixels: [B, 3, H, W] in [0, 1].
        heads: each head for itself; as many times the memory.
        layers: only these, in this order; all if None.

    Raises:
        ConfigError: no one sequence of tokens goes through all blocks, with the reason; or no such layer.
        ModelError: the attention of this architecture cannot be read.
        NonFiniteError: it is NaN or infinite.
    """
    wanted = range(len(view.layers)) if layers is None else layers
    if layers is not None and not (layers and set(layers) <= set(range(len(view.layers)))):
        raise ConfigError(f"{view.model_id!r} has layers 0-{len(view.layers) - 1}; got layers {list(layers)}.")
    found: list[Tensor] = []

    def keep(call: Attending) -> None:
        weights = call.weights() if len(found) in wanted else torch.empty(0, 1)
        found.append((weights if heads else weights.mean(1)).cpu())

    with torch.no_grad(), watch_attention(view, keep):
        run(view, pixels)
    if len(found) != len(view.layers) or {len(found[i]) for i in wanted} != {len(pixels)}:
        raise unreadable(view)
    weights = torch.stack([found[i] for i in wanted], 1)
    if not weights.isfinite().all():
        raise NonFiniteError(f"the attention of {name_precision(view)} is NaN or infinite. Load it in float32.")
    return weights


def unreadable(view: ModelView) -> ModelError:
    """What is said of an architecture without attention as it is understood here."""
    return ModelError(
        f"the attention of {view.model_id!r} cannot be read: it is not torch's scaled dot-product attention, once "
        "over all tokens in each layer."
    )


def _count_tokens(view: ModelView) -> int:
    layer = view.layers[0]
    return layer.n_prefix + layer.patch_grid[0] * layer.patch_grid[1]


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
