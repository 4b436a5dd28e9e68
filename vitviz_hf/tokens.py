"""Changes to the tokens of a plain vision transformer: the class token alone, the head on any token, no positions.

A plain one works on one sequence of prefix and patch tokens from its first block to its last.
"""

import copy
import re
from dataclasses import replace

import torch
from torch import Tensor

from vitviz_hf.errors import ConfigError, NoClassifierError, first_line
from vitviz_hf.hooks import replace_inputs_and_outputs
from vitviz_hf.model import ModelView, logits, run

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


def lone_prefix(view: ModelView) -> Tensor:
    """What the prefix tokens are when they enter the last block, if they saw no patch before.

    Returns:
        [1, n_prefix, D], the same for every picture.

    Raises:
        ConfigError: the attention needs all tokens, as with position tables of their number.
    """
    n, seen = view.layers[0].n_prefix, []
    blank = torch.zeros(1, 3, *view.input_size, device=view.device)

    def keep(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return tokens

    first, last = view.layers[0].name, view.layers[-1].name
    with torch.no_grad(), replace_inputs_and_outputs(view.module, {first: lambda x: x[:, :n], last: keep}, {}):
        try:
            run(view, blank)
        except (RuntimeError, IndexError) as error:
            raise ConfigError(
                f"{view.model_id!r} cannot be used here: its attention does not work on a part of the tokens "
                f"({first_line(error)})."
            ) from error
    return seen[0]


def isolated_logits(view: ModelView, pixels: Tensor, prefix: Tensor) -> Tensor:
    """Logits when patches see only patches, and prefix tokens only each other, in all layers but the last.

    Args:
        pixels: [B, 3, H, W] in [0, 1].
        prefix: as from `lone_prefix`.

    Returns:
        [B, N]

    Source: Ghiasi et al. 2022, arXiv:2212.06727, section 4.
    """
    n = view.layers[0].n_prefix
    changes = {
        view.layers[0].name: lambda tokens: tokens[:, n:],
        view.layers[-1].name: lambda patches: torch.cat([prefix.expand(len(patches), -1, -1), patches], 1),
    }
    with torch.no_grad(), replace_inputs_and_outputs(view.module, changes, {}):
        return logits(view, pixels)


def head_logits(view: ModelView, tokens: Tensor) -> Tensor:
    """The model's own final norm and classifier on outputs of the last block, as if all tokens were this one.

    Args:
        tokens: [N, D].

    Returns:
        [N, number of labels]
    """
    blank = torch.zeros(1, 3, *view.input_size, device=view.device)
    # One patch too: some heads average the patches, alone or beside the class token.
    sequence = tokens[:, None].expand(-1, view.layers[-1].n_prefix + 1, -1)
    with torch.no_grad(), replace_inputs_and_outputs(view.module, {}, {view.layers[-1].name: lambda _: sequence}):
        return logits(view, blank)


def without_positions(view: ModelView) -> ModelView:
    """A copy of the model whose learned position embeddings are zero.

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
