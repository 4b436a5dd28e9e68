"""From files to a ModelView: the module as it is, and what was measured on it."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from vitviz_hf.hub import Snapshot, fetch_model
from vitviz_hf.images import to_rgb
from vitviz_hf.measure import Layer, Tap, measure_layers
from vitviz_hf.sites import KINDS, Feature, Site, parse_site

# model_type -> vision class, classifier class. Full CLIP and SigLIP repositories give their vision tower.
_CLASSES: dict[str, tuple[str, str | None]] = {
    "beit": ("BeitModel", "BeitForImageClassification"),
    "clip": ("CLIPVisionModel", None),
    "clip_vision_model": ("CLIPVisionModel", None),
    "deit": ("DeiTModel", "DeiTForImageClassificationWithTeacher"),
    "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"),
    "dinov3_vit": ("DINOv3ViTModel", None),
    "siglip": ("SiglipVisionModel", None),
    "siglip_vision_model": ("SiglipVisionModel", None),
    "timm_wrapper": ("TimmWrapperModel", "TimmWrapperForImageClassification"),
    "vit": ("ViTModel", "ViTForImageClassification"),
}
# These interpolate their position embeddings only when asked to.
_ASK_TO_INTERPOLATE = frozenset({"clip", "clip_vision_model", "deit", "siglip", "siglip_vision_model", "vit"})


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
    forward_options: Mapping[str, Any]

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
    preprocess, mean, std = _preprocessing(snapshot)
    size = preprocess(Image.new("RGB", (64, 48))).shape
    view = ModelView(
        model_id=snapshot.model_id, revision=snapshot.revision, module=module, layers=(), input_size=(size[1], size[2]),
        mean=mean, std=std, labels=labels, preprocess=preprocess, forward_options={},
    )  # fmt: skip
    return _measured(view, view.input_size)


def at_size(view: ModelView, size: tuple[int, int]) -> ModelView:
    """The same model at another input size: position embeddings are interpolated by the model's own code.

    Args:
        size: (height, width) in pixels, multiples of the patch size.

    Raises:
        ConfigError: not a multiple of the patch size, or the model does not take it.
    """
    if size == view.input_size:
        return view
    rows, cols = view.layers[0].patch_grid if view.layers else (1, 1)
    patch = (view.input_size[0] // rows, view.input_size[1] // cols)
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
    return view.module(normalize(view, pixels).to(view.dtype), **view.forward_options)


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
    config: Any = view.module.config
    own_size = size == tuple(view.preprocess(Image.new("RGB", (64, 48))).shape[1:])
    options = {"interpolate_pos_encoding": True} if config.model_type in _ASK_TO_INTERPOLATE and not own_size else {}
    view = replace(view, input_size=size, forward_options=options)
    blank = torch.zeros(1, 3, *size, device=view.device)
    try:
        layers = measure_layers(view.module, lambda: run(view, blank))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"{view.model_id!r} does not take input of {size[0]}x{size[1]} pixels: {error}") from error
    return replace(view, layers=layers)


def _load_module(snapshot: Snapshot, dtype: torch.dtype) -> tuple[nn.Module, tuple[str, ...] | None]:
    base, classifier = _CLASSES[snapshot.config["model_type"]]
    name = classifier if classifier and _has_classifier(snapshot) else base
    try:
        config = _read_config(snapshot)
        with _no_progress_bars():
            module, report = getattr(transformers, name).from_pretrained(
                snapshot.folder, dtype=dtype, use_safetensors=True, trust_remote_code=False,
                local_files_only=True, output_loading_info=True, config=config,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{snapshot.model_id!r} could not be loaded: {_first_line(error)}") from error
    missing = {k for k in report["missing_keys"] if not re.search(r"(^|\.)(pooler|mask_token)\b", k)}
    if missing or report["mismatched_keys"]:
        names = ", ".join(sorted(missing)[:3]) or str(next(iter(report["mismatched_keys"])))
        raise ModelError(f"the weights of {snapshot.model_id!r} do not fit its config.json (first: {names}).")
    labels = None
    if name == classifier:
        id2label = module.config.id2label
        labels = tuple(str(id2label[i]) for i in sorted(id2label))
    return module.eval(), labels


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers.utils.logging.enable_progress_bar()


def _has_classifier(snapshot: Snapshot) -> bool:
    if snapshot.config["model_type"] == "timm_wrapper":
        return bool(snapshot.config.get("num_classes"))
    architectures = snapshot.config.get("architectures") or [""]
    return "ForImageClassification" in architectures[0]


def _read_config(snapshot: Snapshot) -> Any:
    config = transformers.AutoConfig.from_pretrained(snapshot.folder, trust_remote_code=False, local_files_only=True)
    model_type = snapshot.config["model_type"]
    if model_type == "timm_wrapper":
        _check_timm(snapshot, config.architecture)
        # timm 1.0.31 writes num_classes a second time here, which transformers 5.23 refuses.
        arguments = {k: v for k, v in (config.model_args or {}).items() if k != "num_classes"}
        config.model_args = arguments | {"dynamic_img_size": True}
    if model_type in ("clip", "siglip"):
        config = config.vision_config
    return config


def _check_timm(snapshot: Snapshot, architecture: str) -> None:
    known = timm.is_model(architecture)
    if not known or not re.match(r"(vit|deit)(3)?_(?!.*(rope|swiftformer|relpos))", architecture):
        raise ModelError(
            f"{snapshot.model_id!r} is timm's {architecture!r}; of timm the plain vit_* and deit* can be used."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _preprocessing(snapshot: Snapshot) -> tuple[Callable[[Image.Image], Tensor], tuple[float, ...], tuple[float, ...]]:
    if snapshot.config["model_type"] == "timm_wrapper":
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
