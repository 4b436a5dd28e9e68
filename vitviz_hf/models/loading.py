"""From checked files to a module of transformers or timm, and how to feed it."""

import copy
import inspect
import math
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import timm
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torchvision.transforms import v2
from transformers.initialization import no_init_weights

from vitviz_hf.errors import ModelError, UnsafeModelError, VitvizError, first_line
from vitviz_hf.hub import INVALID
from vitviz_hf.images import cover
from vitviz_hf.models.families import BY_MODEL_TYPE, BY_TIMM_MODULE, TIMM, Exceptions, Family
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.models.trace import Told

UNFIT = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    INVALID,
)
"""What libraries raise on values that make no sense."""
LONGEST_SIDE = 4096
_MOST_LAYERS, _SLACK = 1000, 100_000_000


def load_module(snapshot: Snapshot, dtype: torch.dtype) -> tuple[Any, tuple[str, ...] | None]:
    """The vision model in eval mode, and the labels of its classifier if it has a trained one.

    Raises:
        ModelError: the weights do not fit, or an architecture is unknown.
    """
    name, has_labels = _class_name(snapshot)
    family = BY_MODEL_TYPE.get(snapshot.config["model_type"])
    keys = dict(family.exceptions.keys) if family else {}
    module = from_pretrained(snapshot, name, dtype, vision_only=not has_labels, key_mapping=keys or None)
    labels = None
    if has_labels:
        names = module.config.id2label or {}  # PVT's config may count its labels without naming them
        labels = tuple(str(names.get(i, f"LABEL_{i}")) for i in range(len(names) or module.config.num_labels))
    return module, labels


# Architectures draw their weights from torch's one generator: one at a time.
_GLOBAL_DRAWS = threading.Lock()


def reinitialized(module: Any, seed: int) -> Any:
    """A module of the same architecture whose weights are drawn anew by its own code."""
    with _GLOBAL_DRAWS, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(module)(module.config)
    weight = next(module.parameters())
    return fresh.eval().requires_grad_(False).to(weight.device, weight.dtype)


def shuffled(module: Any, seed: int) -> Any:
    """A copy of the module with the values of each weight tensor in a random order."""
    generator = torch.Generator().manual_seed(seed)
    copied = copy.deepcopy(module)
    for weight in copied.parameters():
        order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
        weight.data = weight.data.flatten()[order].view_as(weight)
    return copied


def from_pretrained(
    snapshot: Snapshot,
    name: str,
    dtype: torch.dtype,
    vision_only: bool = False,
    key_mapping: dict[str, str] | None = None,
) -> Any:
    """A class of transformers with the weights of a snapshot, in eval mode.

    Args:
        vision_only: with the vision tower's part of the config.
        key_mapping: names in the file -> names in the module, as regular expressions.

    Raises:
        ModelError: the weights do not fit.
    """
    try:
        config = _read_config(snapshot, vision_only)
        _check_extent(snapshot, getattr(transformers, name), config)
        with _no_progress_bars():
            module, report = getattr(transformers, name).from_pretrained(
                snapshot.folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                config=config,
                key_mapping=key_mapping,
            )
    except (*UNFIT, ImportError, SafetensorError) as error:
        if isinstance(error, VitvizError):
            raise
        raise ModelError(f"{snapshot.model_id!r} could not be loaded: {first_line(error)}") from error
    missing = {k for k in report["missing_keys"] if not re.search(r"(^|\.)(pooler|mask_token)\b", k)}
    if missing or report["mismatched_keys"]:
        names = ", ".join(sorted(missing)[:3]) or str(next(iter(report["mismatched_keys"])))
        raise ModelError(f"the weights of {snapshot.model_id!r} do not fit its config.json (first: {names}).")
    return module.eval()


def _class_name(snapshot: Snapshot) -> tuple[str, bool]:
    """Class of transformers, and whether it has a trained classifier."""
    config = snapshot.config
    if config["model_type"] == TIMM:
        has_classifier = bool(config.get("num_classes"))
        return ("TimmWrapperForImageClassification" if has_classifier else "TimmWrapperModel"), has_classifier
    family = BY_MODEL_TYPE[config["model_type"]]
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    return (named, True) if named in family.classifiers else (family.vision_class, False)


def _check_extent(snapshot: Snapshot, kind: Any, config: Any) -> None:
    """Refuse a model that is far larger than its weights, before memory and time are taken for it."""
    facts = {k: v for k, v in config.to_dict().items() if k != "label2id"}  # whose keys may be any words
    if (depth := max(_depths(facts), default=0)) > _MOST_LAYERS:
        raise ModelError(f"{snapshot.model_id!r} has {depth} layers; at most {_MOST_LAYERS} are possible.")
    with torch.device("meta"), no_init_weights():
        n = sum(parameter.numel() for parameter in kind(copy.deepcopy(config)).parameters())
    stored = sum(path.stat().st_size for path in snapshot.folder.glob("*.safetensors"))
    if n > stored + _SLACK:  # a value takes at least a byte
        raise ModelError(f"config.json of {snapshot.model_id!r} tells of {n / 1e6:,.0f} million weights; it has fewer.")


def _depths(value: Any, name: str = "") -> Iterator[int]:
    """Numbers in nested dictionaries and lists that are called layers or depths."""
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else ((name, item) for item in value):
            yield from _depths(item, str(key))
    elif isinstance(value, int) and ("layers" in name or "depth" in name):
        yield value


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers.utils.logging.enable_progress_bar()


# Arguments of timm.create_model with which it opens other files; a checkpoint_path is unpickled.
_FETCHING = set(inspect.signature(timm.create_model).parameters) - {"model_name", "kwargs"}


def _read_config(snapshot: Snapshot, vision_only: bool) -> Any:
    config = transformers.AutoConfig.from_pretrained(snapshot.folder, trust_remote_code=False, local_files_only=True)
    if snapshot.config["model_type"] == TIMM:
        if not timm.is_model(config.architecture):
            raise ModelError(f"{snapshot.model_id!r} is of architecture {config.architecture!r}, unknown to timm.")
        # timm 1.0.31 writes num_classes a second time here, which transformers 5.23 refuses.
        arguments = {k: v for k, v in (config.model_args or {}).items() if k != "num_classes"}
        if unsafe := set(arguments) & _FETCHING:
            raise UnsafeModelError(f"{snapshot.model_id!r} asks timm for {min(unsafe)!r}, which loads other weights.")
        config.model_args = arguments | _timm_size_options(config.architecture)
    for name, value in exceptions_of(config).config.items():
        setattr(config, name, value)
    return getattr(config, "vision_config", config) if vision_only else config


def _timm_module(architecture: str) -> str:
    return str(timm.models.model_entrypoint(architecture).__module__)


def _timm_size_options(architecture: str) -> dict[str, bool]:
    """What makes a timm model take other input sizes, where its class knows how."""
    models = [c for c in vars(sys.modules[_timm_module(architecture)]).values() if inspect.isclass(c)]
    known = {p for c in models if c.__module__.startswith("timm.models") for p in inspect.signature(c).parameters}
    return {k: v for k, v in {"dynamic_img_size": True, "strict_img_size": False}.items() if k in known}


def family_of(config: Any) -> Family | None:
    """The family of a module's config; None for the kinds of timm's that are tried before they are used."""
    if config.model_type == TIMM:
        return BY_TIMM_MODULE.get(_timm_module(config.architecture).rpartition(".")[2])
    return BY_MODEL_TYPE[config.model_type]


def exceptions_of(config: Any) -> Exceptions:
    """What the family of a module's config does unlike all others."""
    family = family_of(config)
    return family.exceptions if family else Exceptions()


def told(module: Any, size: tuple[int, int]) -> Told:
    """What a pass over an image of (height, width) does not show of the module."""
    exceptions, first_grid = exceptions_of(module.config), None
    if exceptions.inputs == "patches":
        patch = int(module.config.patch_size)
        first_grid = (size[0] // patch, size[1] // patch)
    return Told(first_grid, _hiera_orders(module) if exceptions.regrouped else {}, exceptions.heads)


def _hiera_orders(module: Any) -> dict[int, Tensor]:
    """Hiera's own code puts the patches back, here a list of positions: number of tokens -> place of each."""
    encoder = getattr(module, module.base_model_prefix, module).encoder
    orders = {}
    for stage, (_, (rows, cols)) in encoder.schedule.items():
        positions = torch.arange(rows * cols).view(1, -1, 1)
        orders[rows * cols] = encoder.reroll(positions, stage).flatten()
    return orders


def load_preprocessing(
    snapshot: Snapshot, config: Any
) -> tuple[Callable[[Image.Image], Tensor], tuple[float, ...], tuple[float, ...]]:
    """The checkpoint's own resize and crop to [3, H, W] in [0, 1], and its mean and standard deviation.

    Args:
        config: the loaded module's.

    Raises:
        ModelError: no usable preprocessor_config.json.
    """
    if snapshot.config["model_type"] == TIMM:
        return _timm_preprocessing(snapshot)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            snapshot.folder, backend="torchvision", trust_remote_code=False, local_files_only=True
        )
        for size in (processor.size, getattr(processor, "crop_size", None)):
            _check_sides(dict(size or {}).values())
        # Images of any shape: the square with as many patches as it was trained on.
        side = int(config.num_patches**0.5) * config.patch_size if exceptions_of(config).inputs == "patches" else 0
        _check_sides([side])
        mean = _three(processor.image_mean if processor.do_normalize else (0, 0, 0))
        std = _three(processor.image_std if processor.do_normalize else (1, 1, 1), least=1e-6)
    except UNFIT as error:
        raise ModelError(
            f"{snapshot.model_id!r} has no usable preprocessor_config.json: {first_line(error)}"
        ) from error

    def preprocess(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(image, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        return pixels

    return (partial(cover_pixels, size=(side, side)) if side else preprocess), mean, std


def _timm_preprocessing(
    snapshot: Snapshot,
) -> tuple[Callable[[Image.Image], Tensor], tuple[float, ...], tuple[float, ...]]:
    try:
        config = timm.data.resolve_data_config(snapshot.config["pretrained_cfg"], model=None, verbose=False)
        _check_sides([*config["input_size"], max(config["input_size"]) / (config["crop_pct"] or 1)])
        steps = timm.data.create_transform(**config, is_training=False).transforms
        transform = v2.Compose([s for s in steps if type(s).__name__ != "Normalize"])
        return transform, _three(config["mean"]), _three(config["std"], least=1e-6)
    except UNFIT as error:
        raise ModelError(f"{snapshot.model_id!r} has no usable pretrained_cfg: {first_line(error)}") from error


def _check_sides(sides: Iterable[Any]) -> None:
    """Raise a ValueError for an input that nobody has the memory for."""
    for side in sides:
        if side is not None and not 0 <= side <= LONGEST_SIDE:
            raise ValueError(f"its pictures have sides of {side}; possible are up to {LONGEST_SIDE} pixels")


def _three(values: Iterable[Any], least: float = -math.inf) -> tuple[float, ...]:
    numbers = tuple(map(float, values))
    if len(numbers) != 3 or not all(math.isfinite(x) and x >= least for x in numbers):
        raise ValueError(f"{numbers} is no mean or standard deviation of three colors")
    return numbers


def output_size(snapshot: Snapshot, preprocess: Callable[[Image.Image], Tensor]) -> tuple[int, int]:
    """(height, width) of what the checkpoint's preprocessing gives.

    Raises:
        ModelError: it gives nothing, or no three colors.
    """
    try:
        colors, height, width = preprocess(Image.new("RGB", (64, 48))).shape
    except UNFIT as error:
        raise ModelError(f"the preprocessing of {snapshot.model_id!r} fails: {first_line(error)}") from error
    if colors != 3:
        raise ModelError(f"the preprocessing of {snapshot.model_id!r} gives {colors} colors; only 3 are possible.")
    return height, width


def cover_pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """The picture scaled to cover (height, width) and cropped at the center, [3, H, W] in [0, 1]."""
    pixels: Tensor = v2.functional.to_dtype(v2.functional.to_image(cover(image, size)), torch.float32, scale=True)
    return pixels


def sized_pixels(preprocess: Callable[[Image.Image], Tensor], image: Image.Image, size: tuple[int, int]) -> Tensor:
    """The checkpoint's own preprocessing if it gives (height, width), else as `cover_pixels`."""
    pixels = preprocess(image)
    return pixels if tuple(pixels.shape[1:]) == size else cover_pixels(image, size)


def module_inputs(module: Any) -> Callable[[Tensor], dict[str, Any]]:
    """How normalized pixels [B, 3, H, W] become the module's keyword arguments."""
    wanted = exceptions_of(module.config).inputs
    if wanted == "patches":
        return partial(_naflex_inputs, module.config.patch_size)
    if wanted == "image and noise":
        return partial(_mae_inputs, module.config.patch_size)
    interpolate = "interpolate_pos_encoding" in inspect.signature(module.forward).parameters
    options = {"interpolate_pos_encoding": True} if interpolate else {}
    return lambda pixel_values: {"pixel_values": pixel_values, **options}


def _mae_inputs(patch: int, pixel_values: Tensor) -> dict[str, Any]:
    """MAE drops and shuffles patches by the rank of a noise value: rising values (and mask_ratio 0) keep them all."""
    n_patches = (pixel_values.shape[2] // patch) * (pixel_values.shape[3] // patch)
    noise = torch.arange(n_patches, device=pixel_values.device).expand(len(pixel_values), -1)
    return {"pixel_values": pixel_values, "noise": noise, "interpolate_pos_encoding": True}


def imagenet_synsets() -> dict[str, str]:
    """WordNet ids of ImageNet's 1000 classes in order, with their names, `tench, Tinca tinca` and so on."""
    info = timm.data.ImageNetInfo()
    return dict(zip(info.label_names(), info.label_descriptions(), strict=True))


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
