"""Reading a model's activations, computing nothing after the last one that is asked for."""

import itertools
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from vitviz_hf.models.hooks import Reader, read_inputs_and_outputs
from vitviz_hf.models.measure import Tap
from vitviz_hf.models.view import ModelView, find_tap, run, to_site
from vitviz_hf.sites import Site


class _Done(BaseException):
    """Everything asked for has been read. Not an Exception, so that no model code swallows it."""


def activations(view: ModelView, pixels: Tensor, sites: Iterable[Site | str]) -> dict[Site, Tensor]:
    """Values at some sites, without gradients.

    Args:
        pixels: [B, 3, H, W] in [0, 1], as given by `to_pixels`.

    Returns:
        {site: [B, T, F]}: prefix tokens, then the patches row by row, whatever order the model keeps them in.

    Raises:
        SiteError: the model has no such site.
    """
    with torch.no_grad():
        return record(view, pixels, [to_site(s) for s in sites])


def record(view: ModelView, pixels: Tensor, sites: Iterable[Site]) -> dict[Site, Tensor]:
    """As `activations`, with gradients to `pixels`. The forward pass ends at the last of the sites."""
    acts: dict[Site, Tensor] = {}
    record_each(view, pixels, sites, acts.__setitem__)
    return acts


def record_each(view: ModelView, pixels: Tensor, sites: Iterable[Site], use: Callable[[Site, Tensor], None]) -> None:
    """As `record`, but hands each site's [B, T, F] to `use` as soon as it is there, and keeps none."""
    if wanted := set(sites):
        with suppress(_Done):
            _read(view, pixels, wanted, use, stop=True)


def record_with_logits(view: ModelView, pixels: Tensor, sites: Iterable[Site]) -> tuple[dict[Site, Tensor], Tensor]:
    """As `record`, but runs to the end and also returns the logits [B, N]."""
    acts: dict[Site, Tensor] = {}
    return acts, view.head(_read(view, pixels, set(sites), acts.__setitem__, stop=False))


def _read(view: ModelView, pixels: Tensor, sites: set[Site], use: Callable[[Site, Tensor], None], stop: bool) -> Any:
    inputs: dict[str, list[Reader]] = {}
    outputs: dict[str, list[Reader]] = {}
    waiting = set(sites)

    def reader(site: Site, tap: Tap) -> Reader:
        runs = itertools.count()

        def read(value: Any) -> None:
            if next(runs) == tap.call:
                use(site, tap.read(value, len(pixels)))
                waiting.discard(site)
                if stop and not waiting:
                    raise _Done

        return read

    for site in sites:
        tap = find_tap(view, site)
        (inputs if tap.side == "input" else outputs).setdefault(tap.module, []).append(reader(site, tap))
    with read_inputs_and_outputs(view.module, inputs, outputs):
        return run(view, pixels)
