"""From files to a ModelView: the module as it is, and what was measured on it."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import timm
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.transforms import v2

from vitviz_hf.errors import ConfigError, FeatureError, ModelError, SiteError
from vitviz_hf.families import BY_MODEL_TYPE, BY_TIMM_MODULE, TIMM
from vitviz_hf.hub import Snapshot, fetch_model
from vitviz_hf.images import to_rgb
from vitviz_hf.measure import Layer, Tap, keeps_places, measure_layers
from vitviz_hf.sites import KINDS, Feature, Site, parse_site

# transformers finds the vision tower in a repository with two towers by itself, except in AIMv2's.
_AIMV2_KEYS = {r"^vision_model\.": ""}


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
    module, labels = _load_module(snapshot, dtype)
    try:
        module.requires_grad_(False).to(device or _best_device())
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {str(device)!r} cannot be used: {_first_line(error)}") from error
    preprocess, mean, std = _preprocessing(snapshot, module)
    size = preprocess(Image.new("RGB", (64, 48))).shape
    view = ModelView(
        model_id=snapshot.model_id, revision=snapshot.revision, module=module, layers=(), input_size=(size[1], size[2]),
        mean=mean, std=std, labels=labels, preprocess=preprocess, inputs=_inputs(module),
    )  # fmt: skip
    view = _measured(view, view.input_size)
    forward = partial(run, view)
    if view.layers and not _is_tested(module) and not keeps_places(module, forward, view.layers[0], view.input_size):
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
    image = to_rgb(image)
    pixels = view.preprocess(image)
    if tuple(pixels.shape[1:]) != view.input_size:
        pixels = _cover(image, view.input_size)
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


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _measured(view: ModelView, size: tuple[int, int]) -> ModelView:
    view = replace(view, input_size=size)
    # Noise, so that no two rows of tokens are alike.
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(view.device)
    first_grid = _naflex_grid(view.module, size) if _is_naflex(view.module) else None
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


def _inputs(module: Any) -> Callable[[Tensor], dict[str, Any]]:
    if _is_naflex(module):
        return partial(_naflex_inputs, module.config.patch_size)
    interpolate = "interpolate_pos_encoding" in inspect.signature(module.forward).parameters
    options = {"interpolate_pos_encoding": True} if interpolate else {}
    if module.config.model_type == "vit_mae":
        return partial(_mae_inputs, module.config.patch_size)
    return lambda pixel_values: {"pixel_values": pixel_values, **options}


def _mae_inputs(patch: int, pixel_values: Tensor) -> dict[str, Any]:
    """MAE drops and shuffles patches by the rank of a noise value: rising values (and mask_ratio 0) keep them all."""
    n_patches = (pixel_values.shape[2] // patch) * (pixel_values.shape[3] // patch)
    noise = torch.arange(n_patches, device=pixel_values.device).expand(len(pixel_values), -1)
    return {"pixel_values": pixel_values, "noise": noise, "interpolate_pos_encoding": True}


def _is_naflex(module: Any) -> bool:
    return str(module.config.model_type).startswith("siglip2")


def _naflex_grid(module: Any, size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // module.config.patch_size, size[1] // module.config.patch_size


def _naflex_inputs(patch: int, pixel_values: Tensor) -> dict[str, Any]:
    """SigLIP 2 takes patches [B, P, p*p*3] and their grid instead of an image."""
    batch, channels, height, width = pixel_values.shape
    rows, cols = height // patch, width // patch
    grid = pixel_values.reshape(batch, channels, rows, patch, cols, patch).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": grid.reshape(batch, rows * cols, -1),
        "pixel_attention_mask": torch.ones(batch, rows * cols, dtype=torch.long, device=pixel_values.device),
        "spatial_shapes": torch.tensor([[rows, cols]] * batch),
    }


def _load_module(snapshot: Snapshot, dtype: torch.dtype) -> tuple[Any, tuple[str, ...] | None]:
    name, has_labels = _class_name(snapshot)
    try:
        config = _read_config(snapshot, vision_only=not has_labels)
        with _no_progress_bars():
            module, report = getattr(transformers, name).from_pretrained(
                snapshot.folder, dtype=dtype, use_safetensors=True, trust_remote_code=False,
                local_files_only=True, output_loading_info=True, config=config,
                key_mapping=_AIMV2_KEYS if snapshot.config["model_type"] == "aimv2" else None,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{snapshot.model_id!r} could not be loaded: {_first_line(error)}") from error
    missing = {k for k in report["missing_keys"] if not re.search(r"(^|\.)(pooler|mask_token)\b", k)}
    if missing or report["mismatched_keys"]:
        names = ", ".join(sorted(missing)[:3]) or str(next(iter(report["mismatched_keys"])))
        raise ModelError(f"the weights of {snapshot.model_id!r} do not fit its config.json (first: {names}).")
    labels = None
    if has_labels:
        id2label = module.config.id2label
        labels = tuple(str(id2label[i]) for i in sorted(id2label))
    return module.eval(), labels


def _class_name(snapshot: Snapshot) -> tuple[str, bool]:
    """Class of transformers, and whether it has a trained classifier."""
    config = snapshot.config
    if config["model_type"] == TIMM:
        has_classifier = bool(config.get("num_classes"))
        return ("TimmWrapperForImageClassification" if has_classifier else "TimmWrapperModel"), has_classifier
    family = BY_MODEL_TYPE[config["model_type"]]
    named = (config.get("architectures") or [""])[0]
    return (named, True) if named in family.classifiers else (family.vision_class, False)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers.utils.logging.enable_progress_bar()


def _read_config(snapshot: Snapshot, vision_only: bool) -> Any:
    config = transformers.AutoConfig.from_pretrained(snapshot.folder, trust_remote_code=False, local_files_only=True)
    if snapshot.config["model_type"] == TIMM:
        if not timm.is_model(config.architecture):
            raise ModelError(f"{snapshot.model_id!r} is of architecture {config.architecture!r}, unknown to timm.")
        # timm 1.0.31 writes num_classes a second time here, which transformers 5.23 refuses.
        arguments = {k: v for k, v in (config.model_args or {}).items() if k != "num_classes"}
        config.model_args = arguments | _timm_size_options(config.architecture)
    elif snapshot.config["model_type"] == "vit_mae":
        config.mask_ratio = 0.0
    return getattr(config, "vision_config", config) if vision_only else config


def _timm_module(architecture: str) -> str:
    return str(timm.models.model_entrypoint(architecture).__module__)


def _timm_size_options(architecture: str) -> dict[str, bool]:
    """What makes a timm model take other input sizes, where its class knows how."""
    models = [c for c in vars(sys.modules[_timm_module(architecture)]).values() if inspect.isclass(c)]
    known = {p for c in models if c.__module__.startswith("timm.models") for p in inspect.signature(c).parameters}
    return {k: v for k, v in {"dynamic_img_size": True, "strict_img_size": False}.items() if k in known}


def _is_tested(module: Any) -> bool:
    if module.config.model_type != TIMM:
        return True
    return _timm_module(module.config.architecture).rpartition(".")[2] in BY_TIMM_MODULE


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _preprocessing(
    snapshot: Snapshot, module: Any
) -> tuple[Callable[[Image.Image], Tensor], tuple[float, ...], tuple[float, ...]]:
    if snapshot.config["model_type"] == TIMM:
        return _timm_preprocessing(snapshot.config["pretrained_cfg"])
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            snapshot.folder, backend="torchvision", trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{snapshot.model_id!r} has no usable preprocessor_config.json: {_first_line(error)}"
        ) from error

    def preprocess(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(image, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        return pixels

    if _is_naflex(module):  # of any shape, so the square with as many patches as it was trained on
        side = int(module.config.num_patches**0.5) * module.config.patch_size
        preprocess = partial(_cover, size=(side, side))
    mean = processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0)
    std = processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0)
    return preprocess, tuple(mean), tuple(std)


def _timm_preprocessing(
    pretrained_cfg: dict[str, Any],
) -> tuple[Callable[[Image.Image], Tensor], tuple[float, ...], tuple[float, ...]]:
    config = timm.data.resolve_data_config(pretrained_cfg, model=None, verbose=False)
    steps = timm.data.create_transform(**config, is_training=False).transforms
    transform = v2.Compose([s for s in steps if type(s).__name__ != "Normalize"])
    return transform, tuple(config["mean"]), tuple(config["std"])


def _cover(image: Image.Image, size: tuple[int, int]) -> Tensor:
    height, width = size
    scale = max(height / image.height, width / image.width)
    resized = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    cropped = resized.crop((left, top, left + width, top + height))
    pixels: Tensor = v2.functional.to_dtype(v2.functional.to_image(cropped), torch.float32, scale=True)
    return pixels
