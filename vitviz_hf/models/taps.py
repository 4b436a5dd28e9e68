"""Kinds of sites that a view gains: functions of the values of others, such as a sparse autoencoder of `resid`."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import nn

from vitviz_hf.errors import ConfigError, SiteError
from vitviz_hf.models.measure import PRE_ACT, Layer
from vitviz_hf.sites import KINDS, Site


@dataclass(frozen=True, slots=True, eq=False)
class ExtraTap:
    """A site whose values are made from those of another site of its layer, each token from itself alone."""

    source: str
    """Kind that the layer has."""
    function: nn.Module
    """[B, T, F] -> [B, T, G], differentiable. What its parameters and buffers do not hold, its repr must tell."""


def prepare_taps(extra: Mapping[Site, ExtraTap], device: torch.device, dtype: torch.dtype) -> dict[Site, ExtraTap]:
    """Copies of the functions where the model is, and of its dtype: what happens to the originals changes no view.

    Raises:
        SiteError: a kind has the name of another.
    """
    for site in extra:
        if site.kind in (*KINDS, PRE_ACT) or not site.kind.isidentifier():
            raise SiteError(f"a new kind needs a name of its own, of letters, digits and '_'; got '{site}'.")
    return {
        site: replace(tap, function=copy.deepcopy(tap.function).to(device, dtype).eval().requires_grad_(False))
        for site, tap in extra.items()
    }


def extend_layers(layers: tuple[Layer, ...], extra: Mapping[Site, ExtraTap]) -> tuple[Layer, ...]:
    """The layers with the extra taps; grid and prefix tokens are those of their sources.

    Raises:
        SiteError: a layer has no such source, or is not there.
        ConfigError: a function does not give one token for each.
    """
    taps = [dict(layer.taps) for layer in layers]
    for site, added in extra.items():
        if site.layer >= len(layers) or added.source not in taps[site.layer]:
            raise SiteError(f"'{site}' cannot be made: there is no '{site.layer}.{added.source}'.")
        source = taps[site.layer][added.source]
        weight = next(added.function.parameters(), torch.zeros(()))
        with torch.no_grad():
            shape = tuple(added.function(weight.new_zeros(1, 2, source.size)).shape)
        if len(shape) != 3 or shape[:2] != (1, 2):
            raise ConfigError(f"'{site}' must be made token by token: [1, 2, {source.size}] became {list(shape)}.")
        function = added.function if source.function is None else nn.Sequential(source.function, added.function)
        taps[site.layer][site.kind] = replace(source, size=shape[2], function=function)
    return tuple(replace(layer, taps=own) for layer, own in zip(layers, taps, strict=True))


def digest_taps(extra: Mapping[Site, ExtraTap]) -> str | None:
    """Sha256 of what decides the values of the extra taps; None without any."""
    if not extra:
        return None
    whole = sha256()
    for site, tap in extra.items():
        whole.update(f"{site} {tap.source} {tap.function!r}".encode())
        for name, tensor in tap.function.state_dict().items():
            whole.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.double().cpu().numpy().tobytes())
    return whole.hexdigest()
