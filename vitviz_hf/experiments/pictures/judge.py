"""A judge: a network that is not the model and tells how alike two pictures are."""

from dataclasses import dataclass

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from vitviz_hf.config import BUILTIN_CNN
from vitviz_hf.errors import ConfigError
from vitviz_hf.hub import hub_reachable
from vitviz_hf.models.view import ModelView, load_model, normalize
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Site

_DEPTHS = 6
_ON_THE_HUB = ("facebook/dinov2-base", "openai/clip-vit-base-patch32")


@dataclass(frozen=True, slots=True)
class Judge:
    """A network and the depths at which it may compare pictures."""

    view: ModelView
    sites: tuple[Site, ...]
    """After some layers of a transformer; empty for a network without, which compares after each of its stages."""

    def embed(self, pixels: Tensor) -> dict[str, Tensor]:
        """Means over positions of what the network has at each depth: {name: [B, D]} in float32, on the CPU.

        Args:
            pixels: [B, 3, H, W] in [0, 1], of any size; scaled to the judge's own.
        """
        view = self.view
        sized = tv.resize(pixels.to(view.device), list(view.input_size), antialias=True)
        if self.sites:
            found = activations(view, sized, self.sites)
            return {f"layer {s.layer}": found[s].scores().cpu() for s in self.sites}
        with torch.no_grad():
            output = view.module(**view.inputs(normalize(view, sized).to(view.dtype)), output_hidden_states=True)
        return {f"stage {i}": h.float().mean((2, 3)).cpu() for i, h in enumerate(output.hidden_states)}


def open_judge(name: str | None, model: ModelView) -> Judge:
    """The judge of a model's pictures.

    Args:
        name: Hub id, folder or built-in model; None takes one that is not the model: of the Hub if it can be reached,
            else `builtin-cnn`.

    Raises:
        ConfigError: it is the model itself.
        ModelError: it cannot be loaded.
    """
    if name is None:
        name = next(n for n in _ON_THE_HUB if n != model.model_id) if hub_reachable() else BUILTIN_CNN
    view = load_model(name, device=model.device)
    if _is_same(view.module, model.module):
        raise ConfigError(
            f"the judge is the model itself, {name!r}: it would agree with its own mistakes. Name another."
        )
    return Judge(view, tuple(Site(layer, "resid") for layer in spread_layers(view)))


def _is_same(one: nn.Module, other: nn.Module) -> bool:
    """Whether networks have the same weights, wherever they are kept, at any input size and dtype, with any head.

    Compared are those of the same name and shape; the first that differ end it.
    """
    own, others = dict(one.named_parameters()), dict(other.named_parameters())
    common = [n for n, weights in own.items() if n in others and weights.shape == others[n].shape]
    most = 2 * len(common) > min(len(own), len(others))
    return most and all(torch.equal(own[n].to(others[n]), others[n]) for n in common)


def spread_layers(view: ModelView) -> list[int]:
    """The layers at a sixth, a third, a half, two thirds, five sixths and the end; none of a network without layers."""
    depth = len(view.layers)
    return sorted({max(0, round(depth * i / _DEPTHS) - 1) for i in range(1, _DEPTHS + 1)}) if depth else []
