"""Changes to the tokens of a plain vision transformer: the class token alone, the head on any token, no positions.

A plain one works on one sequence of prefix and patch tokens from its first block to its last.
"""

import copy
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitviz_hf.errors import ConfigError, NoClassifierError
from vitviz_hf.models.hooks import read_inputs_and_outputs, replace_inputs_and_outputs
from vitviz_hf.models.view import ModelView, logits, run

_Change = Callable[[Tensor], Tensor]
_POSITIONS = re.compile(r"(^|[._])pos(ition(al)?)?_embed(ding|dings)?(\.weight)?$")


def check_plain(view: ModelView) -> None:
    """Raise unless the model is a plain vision transformer with a class token and a classifier.

    Raises:
        NoClassifierError: it has no trained classifier.
        ConfigError: it is none, with the reason.
    """
    if view.labels is None:
        raise NoClassifierError(f"{view.model_id!r} has no trained classifier.")
    check_sequence(view)
    if not view.layers[0].n_prefix:
        raise ConfigError(f"{view.model_id!r} cannot be used here: it has no class token.")


def check_sequence(view: ModelView) -> None:
    """Raise unless one sequence of tokens goes through all blocks of the model.

    Raises:
        ConfigError: it does not, with the reason.
    """
    why = ""
    if not view.layers:
        why = "it has no transformer layers"
    elif len({layer.name for layer in view.layers}) < max(2, len(view.layers)):
        why = "its layers are not separate blocks"
    elif {layer.layout for layer in view.layers} != {"sequence"} or len({x.patch_grid for x in view.layers}) > 1:
        why = "its layers work on several patch grids, or on windows"
    elif len({layer.n_prefix for layer in view.layers}) > 1 or "resid" not in view.layers[-1].taps:
        why = "its class token enters late"
    if why:
        raise ConfigError(f"{view.model_id!r} cannot be used here: {why}.")


def check_isolation(view: ModelView) -> None:
    """Raise unless prefix tokens and patches can go through the blocks without each other.

    They can where no block asks for a token's place among the others: then patches in another order come out as
    before, in that order. Relative positions and rotation ask; some models stretch their tables to fewer tokens.

    Raises:
        ConfigError: they cannot.
    """
    n, (rows, cols) = view.layers[0].n_prefix, view.layers[0].patch_grid
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, *view.input_size, generator=generator).to(view.device)
    order = torch.cat([torch.arange(n), n + torch.randperm(rows * cols, generator=generator)]).to(view.device)
    end = len(view.layers)
    tokens = _go_through(view, noise, 0, end, lambda x: x)[:, order]
    moved = _go_through(view, noise, 0, end, lambda x: x[:, order])
    error = (moved - tokens).float().norm() / (tokens - tokens.mean(1, keepdim=True)).float().norm()
    if not error < torch.finfo(view.dtype).eps ** 0.5:
        raise ConfigError(
            f"{view.model_id!r} cannot be isolated: its blocks ask for a token's place, so its attention does not "
            "work on a part of the tokens."
        )
    isolated_logits(view, noise)


def lone_prefix(view: ModelView, pixels: Tensor, start: int, stop: int) -> Tensor:
    """What the prefix tokens are after layer `stop` - 1 if from layer `start` on they saw no patch, [B, n_prefix, D].

    From layer 0 on it is the same for every picture.
    """
    n = view.layers[0].n_prefix
    return _go_through(view, pixels, start, stop, lambda tokens: tokens[:, :n])


def isolated_logits(view: ModelView, pixels: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Logits when patches see only patches, and prefix tokens only each other, in some of the layers.

    Args:
        view: one that `check_isolation` takes.
        pixels: [B, 3, H, W] in [0, 1].
        start: the first such layer.
        stop: the first layer after them in which all see all again; the last one if None, which is the paper's
            isolation of the class token.

    Returns:
        [B, N]

    Source: Ghiasi et al. 2022, arXiv:2212.06727, section 4.
    """
    stop = len(view.layers) - 1 if stop is None else stop
    if start >= stop:
        with torch.no_grad():
            return logits(view, pixels)
    n = view.layers[0].n_prefix
    prefix = lone_prefix(view, pixels if start else pixels[:1], start, stop)
    inputs, outputs = _before(view, stop, lambda x: torch.cat([prefix.expand(len(x), -1, -1), x], 1))
    inputs[view.layers[start].name] = lambda tokens: tokens[:, n:]
    with torch.no_grad(), replace_inputs_and_outputs(view.module, inputs, outputs):
        return logits(view, pixels)


class _Taken(BaseException):
    """The tokens have been read. Not an Exception, so that no model code swallows it."""


def _go_through(view: ModelView, pixels: Tensor, start: int, stop: int, change: _Change) -> Tensor:
    """Tokens before layer `stop`, or after the last one, if they are changed before layer `start`."""
    seen: list[Tensor] = []

    def take(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        raise _Taken

    inputs, outputs = _before(view, stop, take)
    inputs[view.layers[start].name] = change
    with torch.no_grad(), suppress(_Taken), replace_inputs_and_outputs(view.module, inputs, outputs):
        run(view, pixels)
    return seen[0]


def _before(view: ModelView, layer: int, change: _Change) -> tuple[dict[str, _Change], dict[str, _Change]]:
    """Changes of what enters a layer, or of what leaves the last one, as inputs and outputs of modules."""
    if layer < len(view.layers):
        return {view.layers[layer].name: change}, {}
    return {}, {view.layers[-1].name: change}


def final_norm(view: ModelView) -> str | None:
    """Name of the module that normalizes the outputs of the last block, each token alone, before the head takes some.

    Found by running the model: it is given these outputs, or the first of them, and returns as much. None where
    tokens are averaged before, as in BEiT.
    """
    seen: list[Tensor] = []
    found: list[str] = []
    given: dict[str, Any] = {}

    def keep(output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    def came_in(name: str, args: Any) -> None:
        given[name] = args[0] if seen and args else None

    def came_out(name: str, output: Any) -> None:
        tokens = given[name]
        if isinstance(tokens, Tensor) and tokens.data_ptr() == seen[0].data_ptr() and tokens.shape == output.shape:
            found.append(name)

    names = [
        name
        for name, module in view.module.named_modules()
        if next(module.parameters(), None) is not None
        and next(module.children(), None) is None
        and not isinstance(module, nn.Linear)
    ]
    inputs = {name: [partial(came_in, name)] for name in names}
    outputs = {name: [partial(came_out, name)] for name in names} | {view.layers[-1].name: [keep]}
    with torch.no_grad(), read_inputs_and_outputs(view.module, inputs, outputs):
        run(view, torch.zeros(1, 3, *view.input_size, device=view.device))
    return found[0] if found else None


def head_logits(view: ModelView, tokens: Tensor, norm: str | None = None) -> Tensor:
    """The model's own final norm and classifier, as if all tokens were this one.

    Args:
        tokens: [N, D], outputs of the last block, or of `norm`.
        norm: as from `final_norm`, for tokens that were normalized before.

    Returns:
        [N, number of labels]
    """
    blank = torch.zeros(1, 3, *view.input_size, device=view.device)
    # One patch too: some heads average the patches, alone or beside the class token.
    sequence = tokens[:, None].expand(-1, view.layers[-1].n_prefix + 1, -1)
    # CLIP normalizes its class token only.
    changes = {norm or view.layers[-1].name: lambda x: sequence if x.ndim == 3 else tokens}
    with torch.no_grad(), replace_inputs_and_outputs(view.module, {}, changes):
        return logits(view, blank)


def without_positions(view: ModelView) -> ModelView:
    """A copy of the model whose learned position embeddings are zero.

    What else tells it positions (rotation, relative biases, convolutions) stays.

    Raises:
        ConfigError: it has none; positions enter it in another way.
    """
    module = copy.deepcopy(view.module)
    found = [p for name, p in module.named_parameters() if _POSITIONS.search(name)]
    if not found:
        raise ConfigError(
            f"{view.model_id!r} has no learned position embeddings: positions enter it by rotation, relative biases "
            "or convolutions."
        )
    for parameter in found:
        parameter.data.zero_()
    return replace(view, module=module)
