"""What fires where: activation maps, scores and ranked features."""

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from vitviz_hf.errors import ConfigError, ModelError, SiteError
from vitviz_hf.models.view import ModelView, to_site
from vitviz_hf.reading.recording import Acts, activations
from vitviz_hf.sites import Feature, Site


def activation_map(acts: Acts, feature: Feature) -> Tensor:
    """Activation of one feature at every patch, laid out on the patch grid.

    Prefix tokens are dropped first, so entry [b, r, c] belongs to the pixels
    [r*p:(r+1)*p, c*p:(c+1)*p] for patch size p.

    Args:
        acts: as returned by `activations` for `feature.site`.

    Returns:
        [B, R, C], raw activation values (not normalized), dtype of `acts.values`.

    Raises:
        SiteError: the values are of another site.
        FeatureError: `feature.index` >= F.

    Source: Ghiasi et al. 2022, arXiv:2212.06727, section 3.
    """
    if feature.site != acts.site:
        raise SiteError(f"the values are of '{acts.site}'; got '{feature}'. Take those of '{feature.site}'.")
    return acts.map(feature.index)


def top_features(
    view: ModelView,
    pixels: Tensor,
    site: Site | str,
    k: int = 8,
    patch: tuple[int, int] | None = None,
    reference: Mapping[Site, Tensor] | None = None,
) -> list[tuple[Feature, float]]:
    """The k features that fire most on an image, or on one patch of it.

    Args:
        pixels: [1, 3, H, W] in [0, 1].
        patch: (row, column) on the patch grid; all patches if None.
        reference: {site: [N, F]} scores of N other images, as from `reference_scores`. With it features are
            ranked by how unusual their score is, in standard deviations above those images; without it by
            the plain score.

    Returns:
        (feature, value) pairs, best first: the unusualness with `reference`, else the score.

    Raises:
        SiteError: the model has no such site.
        ConfigError: the patch is outside the grid, pixels hold more than one image, or the reference fewer than 2.
        ModelError: no feature of the site has a finite value.

    Warns:
        RuntimeWarning: some features have no finite value; they are left out.
    """
    site = to_site(view, site)
    if pixels.shape[0] != 1:
        raise ConfigError(f"top_features takes one image; got a batch of {pixels.shape[0]}.")
    return rank_features(view, activations(view, pixels, [site])[site], k, patch, reference)


def rank_features(
    view: ModelView,
    acts: Acts,
    k: int,
    patch: tuple[int, int] | None = None,
    reference: Mapping[Site, Tensor] | None = None,
) -> list[tuple[Feature, float]]:
    """As `top_features`, from the values of the site on one image."""
    site, acts = acts.site, acts.in_float32()
    values = (acts.scores() if patch is None else acts.at(patch))[0]
    if reference is not None:
        values = unusualness(values, reference[site].to(values.device))
    return rank_values(view, site, values, k)


def rank_values(view: ModelView, site: Site, values: Tensor, k: int) -> list[tuple[Feature, float]]:
    """The k features of a site with the highest of some values [F], best first.

    Raises:
        ModelError: none is finite.

    Warns:
        RuntimeWarning: some are not finite; they are left out.
    """
    finite = values.isfinite()
    n_finite = int(finite.sum())
    if n_finite < len(values):
        text = f"{name_precision(view)} gives non-finite values at {site} for {len(values) - n_finite} of {len(values)}"
        if not n_finite:
            raise ModelError(f"{text} features. Check its weights, or load it in float32.")
        warnings.warn(f"{text} features; they are left out.", RuntimeWarning, stacklevel=4)
    best = values.where(finite, -math.inf).topk(min(k, n_finite))
    return [(Feature(site, int(i)), float(v)) for v, i in zip(best.values, best.indices, strict=True)]


def unusualness(scores: Tensor, reference: Tensor) -> Tensor:
    """Standard deviations of scores [F] above the scores [N, F] of reference images, see `usual_scores`.

    Raises:
        ConfigError: fewer than 2 images have finite scores.
    """
    mean, std = usual_scores(reference)
    return (scores - mean) / std


def usual_scores(reference: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, both [F], of scores [N, F].

    A feature that never moves on the reference images would get an endless value for a tiny score, so the
    deviation is at least a tenth of the site's median deviation. Reference images with a score that is not finite
    are left out.

    Raises:
        ConfigError: fewer than 2 images are left.
    """
    reference = reference[reference.isfinite().all(1)]
    if len(reference) < 2:
        raise ConfigError(f"unusualness takes finite scores of 2 reference images or more; got {len(reference)}.")
    return reference.mean(0), usual_spread(reference.std(0))


def usual_spread(std: Tensor) -> Tensor:
    """Standard deviations [F] of a site's features, each at least a tenth of their median."""
    return std.clamp_min(float(0.1 * std.median() + torch.finfo(torch.float32).tiny))


def name_precision(view: ModelView) -> str:
    """The model and the type of its weights, for a message."""
    return f"{view.model_id!r} in {view.identity.dtype if view.precision == 'float32' else view.precision}"
