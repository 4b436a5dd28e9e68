"""Finding the layers of a model by watching one forward pass. No table of module paths.

The rules, all of them about what was executed, in order:

1. The patch grid is the output of the first convolution.
2. A feed-forward block ends in a linear that runs right after its widening linear:
   `up` maps D -> F (or D -> 2F, packed gate), `down` maps F -> D, F > D, both see all tokens.
   Two equal linears before `down` are a gated pair.
3. The layer is the innermost numbered module around them that also holds other linears: its attention.
4. The attention's q, k and v are told apart by the first letter of the linear's name, a fused
   projection by `qkv`; its last linear is the output projection.
5. Prefix tokens = tokens seen - rows * columns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitviz_hf.errors import ModelError
from vitviz_hf.hooks import read_inputs_and_outputs

# Input of the activation function: where a feature's gradient lives while GELU is flat. Not an address.
PRE_ACT = "mlp_pre"


@dataclass(frozen=True, slots=True)
class Tap:
    """Where a site's tensor is read: the input or output of a module, or one of `parts` equal slices of it."""

    module: str
    side: str
    size: int
    part: int = 0
    parts: int = 1

    def slice(self, value: Tensor) -> Tensor:
        """This tap's share of a fused projection's output."""
        return value if self.parts == 1 else value.chunk(self.parts, dim=-1)[self.part]


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block: its module name, patch grid (rows, columns), prefix tokens and taps by kind."""

    name: str
    patch_grid: tuple[int, int]
    n_prefix: int
    taps: Mapping[str, Tap]


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    linear: nn.Linear
    shape: tuple[int, ...]


def measure_layers(module: nn.Module, forward: Callable[[], Any]) -> tuple[Layer, ...]:
    """Layers in execution order, found by running `forward` once.

    Raises:
        ModelError: tokens do not cover the patch grid.
    """
    calls, grid = _trace(module, forward)
    if grid is None:
        return ()
    n_patches = grid[0] * grid[1]
    calls = [c for c in calls if len(c.shape) == 3 and c.shape[1] >= n_patches]
    layers = []
    for i in range(1, len(calls)):
        if (n_up := _feed_forward_width(calls, i)) > 0:
            layers.append(_layer(calls, i, n_up, grid))
    return tuple(layers)


def _trace(module: nn.Module, forward: Callable[[], Any]) -> tuple[list[_Call], tuple[int, int] | None]:
    calls: list[_Call] = []
    grids: list[tuple[int, int]] = []

    def linear_reader(name: str, linear: nn.Linear) -> Callable[[Tensor], None]:
        return lambda x: calls.append(_Call(name, linear, tuple(x.shape)))

    def grid_reader(y: Tensor) -> None:
        grids.append((y.shape[-2], y.shape[-1]))

    linears = {n: [linear_reader(n, m)] for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    convs = {n: [grid_reader] for n, m in module.named_modules() if isinstance(m, nn.Conv2d)}
    with torch.no_grad(), read_inputs_and_outputs(module, inputs=linears, outputs=convs):
        forward()
    return calls, grids[0] if grids else None


def _feed_forward_width(calls: list[_Call], i: int) -> int:
    """Number of widening linears (1, or 2 if gated) before `calls[i]`; 0 if it does not end a feed-forward block."""
    up, down = calls[i - 1].linear, calls[i].linear
    if up.in_features != down.out_features or down.in_features <= down.out_features:
        return 0
    if up.out_features not in (down.in_features, 2 * down.in_features):
        return 0
    gate = calls[i - 2].linear if i >= 2 else None
    gated = gate is not None and (gate.in_features, gate.out_features) == (up.in_features, up.out_features)
    return 2 if gated else 1


def _layer(calls: list[_Call], i: int, n_up: int, grid: tuple[int, int]) -> Layer:
    up, down = calls[i - n_up], calls[i]
    feed_forward = {c.name for c in calls[i - n_up : i + 1]}
    name = _block_name(down.name, feed_forward, calls)
    attention = [c for c in calls if c.name.startswith(name + ".") and c.name not in feed_forward]
    dim, width = down.linear.out_features, down.linear.in_features
    taps = _attention_taps(attention)
    taps |= {
        "mlp_in": Tap(up.name, "input", dim),
        "mlp_act": Tap(down.name, "input", width),
        "mlp_out": Tap(down.name, "output", dim),
        "resid": Tap(name, "output", dim),
    }
    if n_up == 1 and up.linear.out_features == width:
        taps[PRE_ACT] = Tap(up.name, "output", width)
    return Layer(name, grid, down.shape[1] - grid[0] * grid[1], taps)


def _block_name(down: str, feed_forward: set[str], calls: list[_Call]) -> str:
    parts = down.split(".")
    for end in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:end])
        if parts[end - 1].isdigit() and any(
            c.name.startswith(prefix + ".") and c.name not in feed_forward for c in calls
        ):
            return prefix
    raise ModelError(f"the feed-forward block around '{down}' belongs to no numbered layer with attention.")


def _attention_taps(calls: list[_Call]) -> dict[str, Tap]:
    taps = {}
    for call in calls:
        leaf = call.name.rpartition(".")[2]
        size = call.linear.out_features
        if leaf == "qkv":
            for part, kind in enumerate(("attn_q", "attn_k", "attn_v")):
                taps[kind] = Tap(call.name, "output", size // 3, part, 3)
        elif leaf in ("q_proj", "k_proj", "v_proj", "query", "key", "value"):
            taps[f"attn_{leaf[0]}"] = Tap(call.name, "output", size)
    if taps and calls[-1].name not in {t.module for t in taps.values()}:
        taps["attn_out"] = Tap(calls[-1].name, "output", calls[-1].linear.out_features)
    return taps
