"""A ModelView: the module as it is, and what was measured on it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from hashlib import sha256
from operator import attrgetter
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
from PIL import Image
from torch import Tensor, nn

from vitviz_hf.config import Precision, check_control
from vitviz_hf.errors import ConfigError, FeatureError, ModelError, SiteError, first_line
from vitviz_hf.images import to_rgb
from vitviz_hf.models.device import best_device, has_bfloat16
from vitviz_hf.models.gate import Snapshot, fetch_model
from vitviz_hf.models.loading import (
    UNFIT,
    family_of,
    load_module,
    load_preprocessing,
    module_inputs,
    output_size,
    reinitialized,
    shuffled,
    sized_pixels,
    told,
)
from vitviz_hf.models.measure import Layer, Tap, keeps_places, measure_layers
from vitviz_hf.models.taps import ExtraTap, digest_taps, extend_layers, prepare_taps
from vitviz_hf.sites import KINDS, Feature, Site, parse_site


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What decides every number that a model gives; the one key of caches, work folders, atlases and recipes."""

    model_id: str
    revision: str | None
    weights: str | None
    """Sha256 of a local folder's files; None where a commit pins them."""
    control: str | None
    """How the weights were made to know nothing, see `as_control`."""
    input_size: tuple[int, int]
    dtype: str
    taps: str | None = field(default=None, repr=False)
    """Digest of the taps that it gained, see `with_taps`; None without any."""

    @property
    def key(self) -> str:
        """32 hexadecimal digits for the names of files."""
        return sha256((repr(self) + (self.taps or "")).encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        """For manifests and recipes."""
        found = asdict(self) | {"input_size": list(self.input_size)}
        if self.taps is None:
            del found["taps"]
        return found

    def difference(self, made: Mapping[str, Any]) -> str:
        """How the model of a manifest or recipe differs, see `model_difference`."""
        return model_difference(self.to_json(), made)


def model_difference(own: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """How the model of one manifest or recipe differs from another's: `input size 168x168, not 224x224`; empty if not.

    What either lacks (older ones have no digest) is not compared; folders of one digest may have other paths.
    """
    moved = own.get("weights") is not None and own["weights"] == made.get("weights")
    for name in (f.name for f in fields(Identity) if f.name in own and f.name in made):
        if own[name] != made[name] and not (moved and name == "model_id"):
            return f"{name.replace('_', ' ')} {_told(made[name])}, not {_told(own[name])}"
    return ""


def _told(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value or "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model and the facts measured on it. It adds no behavior to the module, and several views may share one."""

    snapshot: Snapshot
    """The checked files that it was loaded from."""
    weights: str | None
    """Sha256 of the files of a local folder and the built-in model; None where a commit pins them."""
    control: str | None = None
    """How the weights were made to know nothing, see `as_control`; None for those of the checkpoint."""
    module: nn.Module
    """In eval mode, without parameter gradients."""
    layers: tuple[Layer, ...]
    """In execution order; empty for a model without feed-forward blocks."""
    input_size: tuple[int, int]
    """(height, width) in pixels that `to_pixels` gives."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...] | None
    """Names of the logits; None without a trained classifier."""
    head: Callable[[Any], Tensor] = attrgetter("logits")
    """What the module returned -> logits [B, N]."""
    preprocess: Callable[[Image.Image], Tensor]
    """RGB picture -> [3, H, W] in [0, 1] at the checkpoint's own size."""
    inputs: Callable[[Tensor], dict[str, Any]]
    """Normalized pixels [B, 3, H, W] -> keyword arguments of the module."""
    extra_taps: Mapping[Site, ExtraTap] = field(default_factory=dict)
    """Sites that it gained, see `with_taps`; `layers` have their taps."""
    precision: Precision = "float32"
    """`bfloat16`: its large products are computed in it, see `at_precision`; else all is in the type of the weights."""

    @property
    def model_id(self) -> str:
        """Hub id, folder or `builtin`, as given."""
        return self.snapshot.model_id

    @property
    def revision(self) -> str | None:
        """Commit sha; None for a local folder and the built-in model."""
        return self.snapshot.revision

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.module.parameters()).dtype

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of sites that its layers may have: those of every model, then those that it gained."""
        return tuple(dict.fromkeys((*KINDS, *(site.kind for site in self.extra_taps))))

    @property
    def identity(self) -> Identity:
        """What decides every number that the model gives."""
        return Identity(
            model_id=self.model_id,
            revision=self.revision,
            weights=self.weights,
            control=self.control,
            input_size=self.input_size,
            dtype=str(self.dtype).removeprefix("torch."),
            taps=digest_taps(self.extra_taps),
        )


def load_model(
    model_id: str,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    token: str | bool | None = None,
) -> ModelView:
    """Load a vision transformer by Hub id, from a local folder, or the built-in one.

    Args:
        model_id: Hub id, path of a local folder, or `builtin`.
        revision: branch, tag or commit; it is pinned to its commit sha.
        device: default: CUDA, else MPS, else CPU.
        dtype: of the weights; float32 suits optimization.
        token: Hub token; None uses the machine's login, False asks anonymously.

    Raises:
        ModelError: one subclass for each reason, see errors.py.
    """
    return load_snapshot(fetch_model(model_id, revision, token), device, dtype)


def load_snapshot(
    snapshot: Snapshot, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> ModelView:
    """As `load_model`, from files that `fetch_model` checked."""
    module, labels = load_module(snapshot, dtype)
    try:
        module.requires_grad_(False).to(device or best_device())
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error
    preprocess, mean, std = load_preprocessing(snapshot, module.config)
    view = ModelView(
        snapshot=snapshot,
        weights=snapshot.digest(),
        module=module,
        layers=(),
        input_size=output_size(snapshot, preprocess),
        mean=mean,
        std=std,
        labels=labels,
        preprocess=preprocess,
        inputs=module_inputs(module),
    )
    view = _measured(view, view.input_size)
    untested = family_of(module.config) is None
    if view.layers and untested and not keeps_places(module, partial(run, view), view.layers[0], view.input_size):
        raise ModelError(
            f"{view.model_id!r} is timm's {module.config.architecture!r}: which token is which patch could not be "
            "established, so its maps would be wrong."
        )
    return view


def at_size(view: ModelView, size: tuple[int, int]) -> ModelView:
    """The same model at another input size: position embeddings are interpolated by the model's own code.

    Args:
        size: (height, width) in pixels, multiples of the patch size.

    Raises:
        ConfigError: not a multiple of the patch size, a single patch, or the model does not take it.
    """
    if size == view.input_size:
        return view
    grid = view.layers[0].patch_grid if view.layers else (1, 1)
    # Patches that overlap do not divide the image; the model says then what it takes.
    patch = [s // g if s % g == 0 else 1 for s, g in zip(view.input_size, grid, strict=True)]
    if any(s < p or s % p for s, p in zip(size, patch, strict=True)) or max(size) > 4096:
        raise ConfigError(
            f"input size {size[0]}x{size[1]} does not fit {view.model_id!r}: height must be a multiple of {patch[0]} "
            f"and width of {patch[1]}, at most 4096."
        )
    resized = _measured(view, size)
    if view.layers and not resized.layers:
        raise ConfigError(
            f"input size {size[0]}x{size[1]} leaves {view.model_id!r} no grid of patches; take a larger one."
        )
    return resized


def as_control(view: ModelView, control: str, seed: int = 0) -> ModelView:
    """The same architecture with weights that know nothing: what a number is worth without learning.

    Text embeddings that words were turned into (`load_zero_shot`) and the projection to them stay.

    Args:
        control: `random-weights`, initialized anew as its own code does; or `shuffled-weights`, the values of each
            weight tensor in a random order.
        seed: of the draws.

    Raises:
        ConfigError: an unknown control, or a seed that is none.
    """
    check_control(control, seed)
    make = reinitialized if control == "random-weights" else shuffled
    return replace(view, module=make(view.module, seed), control=control if seed == 0 else f"{control}, seed {seed}")


def at_precision(view: ModelView, wanted: Precision) -> ModelView:
    """The same model, computing in bfloat16 (torch's autocast) or as exactly as its weights are.

    Args:
        wanted: `auto` is bfloat16 where the device has instructions for it, see `has_bfloat16`, and float32 elsewhere.
            Weights of another type than float32 compute in their own.
    """
    if wanted == "auto":
        wanted = "bfloat16" if has_bfloat16(view.device) else "float32"
    return replace(view, precision=wanted if view.dtype == torch.float32 else "float32")


def with_taps(view: ModelView, extra: Mapping[str, ExtraTap]) -> ModelView:
    """The same model with more kinds of sites, each a function of the values of another.

    They can be read, ranked, searched and optimized as the others.

    Args:
        extra: address such as `2.my_kind` -> what makes its values.

    Raises:
        SiteError: a malformed address, a name that is taken, or a source that the layer does not have.
        ConfigError: a function does not give one token for each.
    """
    sites = {parse_site(address, None): tap for address, tap in extra.items()}
    if taken := [str(s) for s in sites if s in view.extra_taps]:
        raise SiteError(f"the view has a tap '{taken[0]}' already; choose another name.")
    added = prepare_taps(sites, view.device, view.dtype)
    return replace(
        view, layers=extend_layers(view.layers, added, view.device, view.dtype), extra_taps={**view.extra_taps, **added}
    )


def normalize(view: ModelView, pixels: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] in [0, 1] -> the model's pixel_values, differentiable."""
    # From the CPU without waiting for the device.
    mean, std = torch.tensor([view.mean, view.std], dtype=pixels.dtype).to(pixels.device, non_blocking=True)
    values: Tensor = (pixels - mean[:, None, None]) / std[:, None, None]
    return values


def to_pixels(view: ModelView, image: Image.Image) -> Tensor:
    """The model's own resize and crop of one picture.

    At a size that `at_size` chose, the picture is scaled to cover it (bicubic) and cropped at the center.

    Returns:
        [1, 3, H, W] in [0, 1] on the model's device. Normalization happens inside `activations`.

    Raises:
        ImageError: the picture is unusable, see images.py.
    """
    pixels = sized_pixels(view.preprocess, to_rgb(image), view.input_size)
    return pixels.clamp(0, 1).unsqueeze(0).to(view.device)


def run(view: ModelView, pixels: Tensor) -> Any:
    """The model's output for pixels [B, 3, H, W] in [0, 1], in float32 or its own dtype."""
    inputs = view.inputs(normalize(view, pixels).to(view.dtype))
    with autocast(view):
        return view.module(**inputs)


def autocast(view: ModelView, on: bool = True) -> AbstractContextManager[Any]:
    """Where the view computes in bfloat16, on or off; else nothing."""
    return torch.autocast(view.device.type, torch.bfloat16, on) if view.precision == "bfloat16" else nullcontext()


def logits(view: ModelView, pixels: Tensor) -> Tensor:
    """Logits [B, N] of pixels [B, 3, H, W] in [0, 1] by the model's classifier, with gradients where they are on."""
    return view.head(run(view, pixels))


def list_sites(view: ModelView) -> list[tuple[Site, int]]:
    """Every site of the model with its number of features, in execution order."""
    return [
        (Site(i, kind), layer.taps[kind].size)
        for i, layer in enumerate(view.layers)
        for kind in view.kinds
        if kind in layer.taps
    ]


def find_tap(view: ModelView, site: Site) -> Tap:
    """Where a site is read in the module.

    Raises:
        SiteError: no such layer or kind in this model.
    """
    if not view.layers:
        raise SiteError(
            f"{view.model_id!r} has no feed-forward blocks, so it has no features; "
            "it can be used in the classification experiments."
        )
    if site.layer >= len(view.layers):
        raise SiteError(f"{view.model_id!r} has layers 0-{len(view.layers) - 1}; got layer {site.layer} in '{site}'.")
    taps = view.layers[site.layer].taps
    if site.kind not in taps:
        kinds = ", ".join(k for k in view.kinds if k in taps)
        raise SiteError(f"layer {site.layer} of {view.model_id!r} has no {site.kind}; it has {kinds}.")
    return taps[site.kind]


def check_feature(view: ModelView, feature: Feature) -> None:
    """Raise unless the model has this feature.

    Raises:
        SiteError: no such site.
        FeatureError: the site has fewer features.
    """
    check_index(feature, find_tap(view, feature.site))


def check_index(feature: Feature, tap: Tap) -> None:
    """Raise unless the tap of its site has so many features.

    Raises:
        FeatureError: it has fewer.
    """
    if feature.index >= tap.size:
        raise FeatureError(f"'{feature.site}' has {tap.size} features (0-{tap.size - 1}); got {feature.index}.")


def to_site(view: ModelView, site: Site | str) -> Site:
    """A site, or its address, of whatever kinds the view has.

    Raises:
        SiteError: malformed address, or unknown kind.
    """
    return parse_site(site, view.kinds) if isinstance(site, str) else site


def _measured(view: ModelView, size: tuple[int, int]) -> ModelView:
    view = replace(view, input_size=size)
    # Noise, so that no two rows of tokens are alike.
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(view.device)
    try:
        facts = told(view.module, size)
        layers = measure_layers(view.module, lambda: run(view, noise), facts)
    except UNFIT as error:
        raise ConfigError(f"{view.model_id!r} does not take input of {size[0]}x{size[1]} pixels: {error}") from error
    if facts.orders and not layers:
        raise ConfigError(f"{view.model_id!r} does not take input of {size[0]}x{size[1]} pixels, only its own size.")
    return replace(view, layers=extend_layers(layers, view.extra_taps, view.device, view.dtype))
