"""Kinds of sites that a view gains: functions of the values of others, such as a sparse autoencoder of `resid`."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import nn

from vitviz_hf.errors import ConfigError, SiteError, first_line
from vitviz_hf.models.measure import PRE_ACT, Layer
from vitviz_hf.sites import KINDS, Site


@dataclass(frozen=True, slots=True, eq=False)
class ExtraTap:
    """A site whose values are made from those of another site of its layer, each token from itself alone."""

    source: str
    """Kind that the layer has."""
    function: nn.Module
    """[B, T, F] -> [B, T, G], differentiable. What its parameters and buffers do not hold, its repr must tell."""
    names: tuple[str, ...] = ()
    """What its features are called, if anything: texts, labels."""
    of_model: bool = False
    """The model's own weights and the names decide the values, so that these identify it on any device."""


def prepare_taps(extra: Mapping[Site, ExtraTap], device: torch.device, dtype: torch.dtype) -> dict[Site, ExtraTap]:
    """Copies of the functions where the model is, and of its dtype: what happens to the originals changes no view.

    Raises:
        SiteError: a kind has the name of another.
        ConfigError: a function is no module.
    """
    for site in extra:
        if site.kind in (*KINDS, PRE_ACT) or not site.kind.isidentifier():
            raise SiteError(f"a new kind needs a name of its own, of letters, digits and '_'; got '{site}'.")
    if odd := [s for s, tap in extra.items() if not isinstance(tap.function, nn.Module)]:
        raise ConfigError(f"the function of '{odd[0]}' must be a torch module, so that its weights identify it.")
    return {
        site: replace(tap, function=copy.deepcopy(tap.function).to(device, dtype).eval().requires_grad_(False))
        for site, tap in extra.items()
    }


def extend_layers(
    layers: tuple[Layer, ...], extra: Mapping[Site, ExtraTap], device: torch.device, dtype: torch.dtype
) -> tuple[Layer, ...]:
    """The layers with the extra taps; grid and prefix tokens are those of their sources, which may be extra ones too.

    Raises:
        SiteError: a layer has no such source, or is not there.
        ConfigError: a function does not make each token from itself alone.
    """
    taps, waiting = [dict(layer.taps) for layer in layers], dict(extra)
    while waiting:
        ready = [s for s, tap in waiting.items() if s.layer < len(layers) and tap.source in taps[s.layer]]
        if not ready:
            site, tap = next(iter(waiting.items()))
            raise SiteError(f"'{site}' cannot be made: there is no '{site.layer}.{tap.source}'.")
        for site in ready:
            added = waiting.pop(site)
            source = taps[site.layer][added.source]
            size = _width(site, added.function, source.size, device, dtype)
            function = added.function if source.function is None else nn.Sequential(source.function, added.function)
            taps[site.layer][site.kind] = replace(source, size=size, function=function)
    return tuple(replace(layer, taps=own) for layer, own in zip(layers, taps, strict=True))


def _width(site: Site, function: nn.Module, size: int, device: torch.device, dtype: torch.dtype) -> int:
    """Features that a function gives for each token, tried on three tokens together and one by one."""
    tokens = torch.randn(1, 3, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    try:
        with torch.no_grad():
            whole, alone = function(tokens), torch.cat([function(tokens[:, i : i + 1]) for i in range(3)], dim=1)
        fits = whole.shape[:2] == (1, 3) and whole.ndim == 3 and torch.allclose(whole, alone, rtol=0.05, atol=1e-2)
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ConfigError(
            f"the function of '{site}' must take [B, T, {size}] and give [B, T, G]: {first_line(error)}"
        ) from error
    if not fits:
        raise ConfigError(f"the function of '{site}' must make each token of [B, T, {size}] from itself alone.")
    return int(whole.shape[2])


def digest_taps(extra: Mapping[Site, ExtraTap]) -> str | None:
    """Sha256 of what decides the values of the extra taps, in whatever order they were given; None without any."""
    if not extra:
        return None
    whole = sha256()
    for site, tap in sorted(extra.items(), key=lambda pair: str(pair[0])):
        if tap.of_model:
            whole.update(f"{site} {tap.source} {tap.names!r}".encode())
            continue
        whole.update(f"{site} {tap.source} {tap.function!r}".encode())
        # Not the state_dict, which leaves out buffers that are not stored.
        for name, tensor in (*tap.function.named_parameters(), *tap.function.named_buffers()):
            whole.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.double().cpu().numpy().tobytes())
    return whole.hexdigest()
