"""Attention, and attention joined across layers: which patches a token has heard of, at every level.

Source: "Vision Transformer Visualization: What Neurons Tell and How Neurons Behave?", arXiv:2210.07646.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vitviz_hf.errors import ConfigError, ModelError, NonFiniteError
from vitviz_hf.models.hooks import read_inputs_and_outputs
from vitviz_hf.models.measure import Tap
from vitviz_hf.models.view import ModelView, find_tap, run
from vitviz_hf.reading.maps import name_precision
from vitviz_hf.reading.recording import token_position
from vitviz_hf.reading.tokens import check_sequence
from vitviz_hf.sites import Site

_SOFTMAX = (torch.softmax, Tensor.softmax, functional.softmax)


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


def window_attention(view: ModelView, pixels: Tensor, layer: int, patch: tuple[int, int]) -> Tensor:
    """What one patch attends to in a layer, put back on the picture, [B, heads, R, C] in float32 on the CPU.

    For attention in windows (Swin, MaxViT), over coarser keys (PVT), and over all tokens alike. What is not in the
    patch's window is NaN; in a shifted window, patches from the other side of the picture are in it with a weight of 0.

    Read from what is executed: the one attention between the layer's queries and its output projection, torch's
    scaled dot-product attention or a softmax over keys, is taken apart by the measured places of queries and keys.

    Args:
        pixels: [B, 3, H, W] in [0, 1].
        layer: zero-based.
        patch: row and column on the grid of the layer's queries. The result is on the grid of its keys.

    Raises:
        SiteError: no such layer, or one without queries and keys.
        ConfigError: the patch is outside the grid.
        ModelError: the attention of this layer cannot be read.
    """
    query, key, mixed = (find_tap(view, Site(layer, kind)) for kind in ("attn_q", "attn_k", "attn_mix"))
    position = token_position(query, Site(layer, "attn_q"), patch)
    found: list[Tensor] = []
    runs, inside = itertools.count(), [False]

    def enter(_: Any) -> None:
        inside[0] = next(runs) == query.call

    def leave(_: Any) -> None:
        inside[0] = False

    def answer(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        given = func(*args, **kwargs)
        if inside[0] and func is functional.scaled_dot_product_attention:
            found.append(Attending(*args, **kwargs).weights())
        elif inside[0] and func in _SOFTMAX and given.ndim == 4 and not _may_be_channels(query, given):
            found.append(given.float())
        return given

    readers = read_inputs_and_outputs(view.module, {mixed.module: [leave]}, {query.module: [enter]})
    with torch.no_grad(), _Watched(answer), readers:
        run(view, pixels)
    if len(found) == 1:
        weights = found[0].cpu().unflatten(0, (len(pixels), -1))
        if _fits(query, weights.shape[1], weights.shape[-2]) and _fits(key, weights.shape[1], weights.shape[-1]):
            return _put_back(weights, query, key, position)
    raise unreadable(view)


def _may_be_channels(query: Tap, weights: Tensor) -> bool:
    """Whether weights [B, heads, N, N] may be those of a head's channels, as in XCiT: there are as many."""
    n_heads, *sides = weights.shape[1:]
    return sides == [query.size // n_heads] * 2


def _fits(tap: Tap, windows: int, n_rows: int) -> bool:
    """Whether windows of so many rows hold the tokens of a tap; they may be filled up."""
    n_tokens = tap.n_prefix + tap.patch_grid[0] * tap.patch_grid[1]
    if tap.order is None:
        return windows == 1 and n_rows == n_tokens
    return windows * n_rows > int(tap.order.max())


def _put_back(weights: Tensor, query: Tap, key: Tap, position: int) -> Tensor:
    """[B, heads, R, C] from the weights of all windows, [B, windows, heads, queries, keys]."""
    n_queries, n_keys = weights.shape[-2:]
    row = position if query.order is None else int(query.order[position])
    own = weights[:, row // n_queries, :, row % n_queries]
    n_tokens = key.n_prefix + key.patch_grid[0] * key.patch_grid[1]
    order = torch.arange(n_tokens) if key.order is None else key.order
    seen = order // n_keys == row // n_queries
    placed = torch.full((*own.shape[:2], n_tokens), torch.nan)
    placed[..., seen] = own[..., order[seen] % n_keys]
    return placed[..., key.n_prefix :].reshape(*own.shape[:2], *key.patch_grid)


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
