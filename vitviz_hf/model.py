"""A ModelView: the module as it is, and what was measured on it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
from PIL import Image
from torch import Tensor, nn

from vitviz_hf.errors import ConfigError, FeatureError, ModelError, SiteError, first_line
from vitviz_hf.hub import Snapshot, fetch_model
from vitviz_hf.images import to_rgb
from vitviz_hf.loading import is_naflex, is_tested, load_module, load_preprocessing, module_inputs, sized_pixels
from vitviz_hf.measure import Layer, Tap, keeps_places, measure_layers
from vitviz_hf.sites import KINDS, Feature, Site, parse_site


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model and the facts measured on it. It adds no behavior to the module, and several views may share one."""

    model_id: str
    """Hub id, folder or `builtin`, as given."""
    revision: str | None
    """Commit sha; None for a local folder and the built-in model."""
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
    preprocess: Callable[[Image.Image], Tensor]
    """RGB picture -> [3, H, W] in [0, 1] at the checkpoint's own size."""
    inputs: Callable[[Tensor], dict[str, Any]]
    """Normalized pixels [B, 3, H, W] -> keyword arguments of the module."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.module.parameters()).dtype


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
    size = preprocess(Image.new("RGB", (64, 48))).shape
    view = ModelView(
        model_id=snapshot.model_id, revision=snapshot.revision, module=module, layers=(), input_size=(size[1], size[2]),
        mean=mean, std=std, labels=labels, preprocess=preprocess, inputs=module_inputs(module),
    )  # fmt: skip
    view = _measured(view, view.input_size)
    forward = partial(run, view)
    if view.layers and not is_tested(module) and not keeps_places(module, forward, view.layers[0], view.input_size):
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
        ConfigError: not a multiple of the patch size, or the model does not take it.
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
    return _measured(view, size)


def normalize(view: ModelView, pixels: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] in [0, 1] -> the model's pixel_values, differentiable."""
    mean = pixels.new_tensor(view.mean)[:, None, None]
    std = pixels.new_tensor(view.std)[:, None, None]
    return (pixels - mean) / std


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
    return view.module(**view.inputs(normalize(view, pixels).to(view.dtype)))


def list_sites(view: ModelView) -> list[tuple[Site, int]]:
    """Every site of the model with its number of features, in execution order."""
    return [
        (Site(i, kind), layer.taps[kind].size)
        for i, layer in enumerate(view.layers)
        for kind in KINDS
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
        kinds = ", ".join(k for k in KINDS if k in taps)
        raise SiteError(f"layer {site.layer} of {view.model_id!r} has no {site.kind}; it has {kinds}.")
    return taps[site.kind]


def check_feature(view: ModelView, feature: Feature) -> None:
    """Raise unless the model has this feature.

    Raises:
        SiteError: no such site.
        FeatureError: the site has fewer features.
    """
    size = find_tap(view, feature.site).size
    if feature.index >= size:
        raise FeatureError(f"'{feature.site}' has {size} features (0-{size - 1}); got {feature.index}.")


def to_site(site: Site | str) -> Site:
    """A site, or its address."""
    return parse_site(site) if isinstance(site, str) else site


def best_device() -> torch.device:
    """CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _measured(view: ModelView, size: tuple[int, int]) -> ModelView:
    view = replace(view, input_size=size)
    # Noise, so that no two rows of tokens are alike.
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(view.device)
    first_grid = None
    if is_naflex(view.module.config):
        patch = int(view.module.config.patch_size)  # type: ignore[union-attr, arg-type]
        first_grid = (size[0] // patch, size[1] // patch)
    orders = _hiera_orders(view.module) if hasattr(_encoder(view.module), "reroll") else None
    try:
        layers = measure_layers(view.module, lambda: run(view, noise), first_grid, orders)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"{view.model_id!r} does not take input of {size[0]}x{size[1]} pixels: {error}") from error
    if orders and not layers:
        raise ConfigError(f"{view.model_id!r} does not take input of {size[0]}x{size[1]} pixels, only its own size.")
    return replace(view, layers=layers)


def _encoder(module: nn.Module) -> Any:
    base = getattr(module, getattr(module, "base_model_prefix", ""), module)
    return getattr(base, "encoder", None)


def _hiera_orders(module: nn.Module) -> dict[int, Tensor]:
    """Hiera keeps its patches grouped by mask unit; its own code puts them back, here a list of positions."""
    encoder = _encoder(module)
    orders = {}
    for stage, (_, (rows, cols)) in encoder.schedule.items():
        positions = torch.arange(rows * cols).view(1, -1, 1)
        orders[rows * cols] = encoder.reroll(positions, stage).flatten()
    return orders
