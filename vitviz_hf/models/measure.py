"""Finding the layers of a model by watching one forward pass. No table of module paths.

The rules, all of them about what was executed, in order, on one image of noise:

1. Patch grids are the sizes that convolutions put out, and their halves (patch merging: Swin).
2. Tokens are prefix tokens, then the patches row by row: [1, T, F] belongs to the largest known grid of at most
   T patches and has T - R*C prefix tokens (it may change between layers: CvT, PVT, ConViT); [1, R, C, F] says its grid
   itself (MaxViT, ConvNeXt). Tokens in windows (Swin, Twins, MaxViT) are put back in image order by finding the rows of
   the tensor that they were cut from.
3. A feed-forward block ends in a linear that runs right after its widening linear: `up` maps D -> F (or D -> 2F,
   packed gate: EVA-02), `down` maps F -> D, F > D. Two equal linears before `down` are a gated pair (AIMv2, the
   giant DINOv2). Each run of it is a layer, so a block that is shared by three scales gives three (CoaT).
4. The attention of a layer are the linears that ran before its feed-forward block and after the last one. Names say
   which are q, k and v, alone or fused (timm, Hiera, LeViT); the last other one is the output projection. What q is
   given is the input of the attention, what the output projection is given are the mixed values. Keys and values can
   have a coarser grid than their layer (PVT, CvT, Twins, LeViT), Hiera's queries a finer or coarser one.
5. The layer's own module is the smallest that holds both, or the largest that holds this feed-forward block only
   (LeViT's halves are siblings, ConvNeXt has no attention).
6. A layer's stage is the rank of its patch grid, the finest first.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitviz_hf.models.hooks import read_inputs_and_outputs
from vitviz_hf.models.trace import Call, Grid, Place, Told, Trace

# Input of the activation function: where a feature's gradient lives while GELU is flat. Not an address.
PRE_ACT = "mlp_pre"


@dataclass(frozen=True, slots=True, eq=False)
class Tap:
    """Where a site's tensor is read, and how it becomes [B, T, F] with the patches in image order."""

    module: str
    side: str
    """`input` or `output` of the module."""
    size: int
    """Number of features."""
    patch_grid: Grid
    """(rows, columns) of this tensor: keys and values can have a coarser grid than their layer."""
    n_prefix: int
    call: int = 0
    """Which run of the module within one forward pass."""
    item: int = 0
    """Which tensor, where the module returns several."""
    columns: slice | Tensor | None = None
    """This tap's share of a fused projection."""
    order: Tensor | None = None
    """[T], position of each token among the rows; None if they are in order."""
    channels_first: bool = False
    function: nn.Module | None = None
    """What makes the values of a kind that was added, see taps.py: [B, T, F] -> [B, T, G]."""

    def read(self, value: Any, batch: int) -> Tensor:
        """[B, T, F] from what the module was given or returned for B images."""
        if isinstance(value, tuple | list):
            value = value[self.item]
        rows: Tensor = value.flatten(2).mT if self.channels_first else value
        rows = rows.reshape(batch, -1, rows.shape[-1])
        if self.order is not None:
            rows = rows[:, self.order.to(rows.device, non_blocking=True)]
        if self.columns is not None:
            rows = rows[..., self.columns]
        values: Tensor = rows if self.function is None else self.function(rows)
        return values

    def change(self, value: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """What the module was given or returned, with other values at this site; for taps in image order.

        Args:
            function: [B, T, F] -> [B, T, F].
        """
        rows = value.flatten(2).mT if self.channels_first else value
        n_tokens = self.n_prefix + self.patch_grid[0] * self.patch_grid[1]
        values = rows.reshape(-1, n_tokens, rows.shape[-1]).clone()
        own = slice(None) if self.columns is None else self.columns
        values[..., own] = function(values[..., own])
        values = values.reshape(rows.shape)
        return values.mT.reshape(value.shape) if self.channels_first else values


@dataclass(frozen=True, slots=True)
class Layer:
    """One run of a feed-forward block with the attention before it."""

    name: str
    """Of the module."""
    stage: int
    """0 has the finest patch grid; all layers of a plain ViT are of stage 0."""
    patch_grid: Grid
    n_prefix: int
    """Prefix tokens that the feed-forward block sees."""
    layout: str
    """What the model itself works on here: `sequence` [B, T, F] or `map` [B, R, C, F], and whether in windows."""
    taps: Mapping[str, Tap]
    """By kind."""


def measure_layers(
    module: nn.Module,
    forward: Callable[[], Any],
    told: Told | None = None,
) -> tuple[Layer, ...]:
    """Layers in execution order, found by running `forward` once on one image of noise.

    Args:
        told: what the pass does not show.
    """
    trace = Trace(module, told or Told())
    with torch.no_grad(), read_inputs_and_outputs(module, *trace.readers()):
        forward()
    layers: list[Layer] = []
    blocks = [(i, n_up) for i in range(1, len(trace.calls)) if (n_up := _feed_forward_width(trace.calls, i))]
    downs = {trace.calls[i].name for i, _ in blocks}
    group: list[Call] = []
    end = 0
    for i, n_up in blocks:
        down = trace.calls[i]
        # CoaT: three scales share the block, and the attentions of all its runs came before the first.
        if not (end and trace.calls[end - 1].name == down.name):
            group = trace.calls[end : i - n_up]
        layers.append(_layer(trace, group, trace.calls[i - n_up : i + 1], downs - {down.name}))
        end = i + 1
    grids = sorted({layer.patch_grid for layer in layers}, key=lambda g: -g[0] * g[1])
    return tuple(replace(layer, stage=grids.index(layer.patch_grid)) for layer in layers)


def keeps_places(
    module: nn.Module, forward: Callable[[Tensor], Any], layer: Layer, input_size: tuple[int, int]
) -> bool:
    """Whether other noise in one corner of an image of noise changes a layer's activations most in that corner.

    Args:
        forward: runs the module on pixels [B, 3, H, W] in [0, 1].
        input_size: (height, width).
    """
    height, width = input_size
    device = next(module.parameters()).device
    noise = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    pixels = noise[0].repeat(5, 1, 1, 1)
    corners = [(slice(0, height // 4), slice(-(height // 4), None)), (slice(0, width // 4), slice(-(width // 4), None))]
    for i, (rows, cols) in enumerate(itertools.product(*corners), 1):
        pixels[i, :, rows, cols] = noise[1, :, rows, cols]
    tap, seen = layer.taps["mlp_act"], []
    readers = {tap.module: [lambda value: seen.append(tap.read(value, 5))]}
    with torch.no_grad(), read_inputs_and_outputs(module, readers, {}):
        forward(pixels)
    patches = seen[tap.call][:, tap.n_prefix :].float().unflatten(1, tap.patch_grid)
    change = (patches[1:] - patches[:1]).abs().sum(-1)
    quadrants = nn.functional.adaptive_avg_pool2d(change.unsqueeze(1), 2).flatten(1)
    return quadrants.argmax(1).tolist() == [0, 1, 2, 3]


def _feed_forward_width(calls: Sequence[Call], i: int) -> int:
    """Number of widening linears (1, or 2 if gated) before `calls[i]`; 0 if it does not end a feed-forward block."""
    first, last = calls[i - 1], calls[i]
    up, down = first.linear, last.linear
    if up.in_features != down.out_features or down.in_features <= down.out_features:
        return 0
    if up.out_features not in (down.in_features, 2 * down.in_features):  # twice: EVA-02's packed gate
        return 0
    if last.place is None or first.shape[:-1] != last.shape[:-1] or _attention_kinds(first.name)[0]:
        return 0
    # AIMv2 and the giant DINOv2 have a gate beside it.
    gate = calls[i - 2].linear if i >= 2 else None
    gated = gate is not None and (gate.in_features, gate.out_features) == (up.in_features, up.out_features)
    return 2 if gated else 1


def _layer(trace: Trace, group: Sequence[Call], block: Sequence[Call], other_downs: set[str]) -> Layer:
    up, down = block[0], block[-1]
    place = down.place
    assert place is not None
    dim, width = down.linear.out_features, down.linear.in_features
    attention = _attention_calls(group, place)
    taps = _attention_taps(trace, attention)
    taps |= {
        "mlp_in": _tap(up.name, "input", dim, place, up.number),
        "mlp_act": _tap(down.name, "input", width, place, down.number),
        "mlp_out": _tap(down.name, "output", dim, place, down.number),
    }
    if len(block) == 2 and up.linear.out_features == width and down.activation:
        taps[PRE_ACT] = _tap(down.activation[0], "input", width, place, down.activation[1])
    name = _block_name(trace, down.name, {c.name for c in attention.values()}, other_downs)
    if resid := _resid_tap(trace, name, down, place):
        taps["resid"] = resid
    return Layer(name, 0, place.patch_grid, place.n_prefix, _layout(down, taps), taps)


def _layout(down: Call, taps: Mapping[str, Tap]) -> str:
    layout = "sequence" if len(down.shape) == 3 else "map"
    if taps["mlp_act"].order is not None:
        return f"{layout}, reordered"
    return f"{layout}, windows" if any(t.order is not None for t in taps.values()) else layout


def _tap(module: str, side: str, size: int, place: Place, call: int, **options: Any) -> Tap:
    return Tap(module, side, size, place.patch_grid, place.n_prefix, call, order=place.order, **options)


def _attention_kinds(name: str) -> tuple[str, str]:
    """Which of q, k and v a linear projects, such as `qkv` or `k`, and the module that is named so."""
    parts = name.split(".")
    for end in (len(parts), len(parts) - 1):  # LeViT: queries_keys_values.linear, then its batch norm
        words = [w for w in parts[end - 1].split("_") if w not in ("proj", "projection")] if end > 0 else []
        if words and all(re.fullmatch(r"q|k|v|qkv|kv|qk|query|queries|keys?|values?", w) for w in words):
            letters = words[0] if len(words) == 1 and words[0] in ("qkv", "kv", "qk") else "".join(w[0] for w in words)
            return letters, ".".join(parts[:end])
    return "", name


def _attention_calls(group: Sequence[Call], place: Place) -> dict[str, Call]:
    """The run of a linear for q, k, v and the output (`o`); of several, the last on the layer's own tokens."""
    found: dict[str, Call] = {}
    for call in group:
        for letter in _attention_kinds(call.name)[0]:
            # CoaT's parallel blocks attend at three scales before one feed-forward block.
            old = found.get(letter)
            if old is None or not _on(old, place) or _on(call, place):
                found[letter] = call
    shapes = {c.shape[:-1] for c in found.values()}
    # Of several the last: Swin's patch merging, SigLIP 2's embedding and ConViT's positions run before it.
    others = [c for c in group if not _attention_kinds(c.name)[0] and (c.shape[:-1] in shapes or _on(c, place))]
    if others:
        found["o"] = others[-1]
    return found


def _on(call: Call, place: Place) -> bool:
    return call.place is not None and _same_tokens(call.place, place)


def _same_tokens(a: Place, b: Place) -> bool:
    return (a.patch_grid, a.n_prefix) == (b.patch_grid, b.n_prefix)


def _attention_taps(trace: Trace, calls: Mapping[str, Call]) -> dict[str, Tap]:
    taps = {}
    for letter, call in calls.items():
        place, size = call.place, call.linear.out_features
        if letter == "o":
            # Windows that no tensor was cut from as they are: Swin's and MaxViT's mixed values, in the order of q.
            if place is None and call.shape[:-1] == calls["q"].shape[:-1]:
                place = calls["q"].place
            if place:
                taps["attn_mix"] = _tap(call.name, "input", call.linear.in_features, place, call.number)
                taps["attn_out"] = _tap(call.name, "output", size, place, call.number)
        elif place:
            letters, module = _attention_kinds(call.name)
            heads, attention = trace.told.heads, trace.modules[module.rpartition(".")[0]]
            columns = _columns(heads(attention) if heads else None, letters, letter, size)
            share = len(torch.arange(size)[columns]) if columns is not None else size
            taps[f"attn_{letter}"] = _tap(module, "output", share, place, call.number, columns=columns)
            if letter == "q":
                taps["attn_in"] = _tap(call.name, "input", call.linear.in_features, place, call.number)
    return taps


def _columns(widths: Mapping[str, int] | None, letters: str, letter: str, size: int) -> slice | Tensor | None:
    """Share of one letter in a fused projection: equal parts side by side, unless each head has its own."""
    if len(letters) == 1:
        return None
    part, n = letters.index(letter), len(letters)
    if widths is None:
        return slice(part * size // n, (part + 1) * size // n)
    per_head = torch.arange(size).view(-1, sum(widths[x] for x in letters))
    start = sum(widths[x] for x in letters[:part])
    return per_head[:, start : start + widths[letter]].flatten()


def _block_name(trace: Trace, down: str, attention: set[str], other_downs: set[str]) -> str:
    """The smallest module around both parts, or else (LeViT, ConvNeXt) the largest around this feed-forward block."""
    parts = down.split(".")
    largest = ""
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        if any(d.startswith(name + ".") for d in other_downs):
            break
        if name in trace.shapes:
            largest = name
            if any(a.startswith(name + ".") for a in attention):
                break
    return largest


def _resid_tap(trace: Trace, name: str, down: Call, place: Place) -> Tap | None:
    """The output of the block that has the layer's tokens."""
    runs = trace.shapes.get(name, [])
    call = down.number if down.number < len(runs) and len(runs) > 1 else 0  # CoaT: one run for each scale, or for all
    dim = down.linear.out_features
    block = trace.modules[name]
    convolves = any(isinstance(m, nn.Conv2d) and m.in_channels == dim for m in block.modules())
    for item, shape in enumerate(runs[call] if runs else []):  # CoaT's parallel blocks return all scales
        found = trace.place_of(shape)
        last = found is not None and shape[-1] == dim and _same_tokens(found, place)
        first = shape == (1, dim, *place.patch_grid)  # ConvNeXt
        if last or first:  # both, where as many channels as rows: a block with a convolution has them first
            return _tap(name, "output", dim, place, call, item=item, channels_first=first and (convolves or not last))
    return None
